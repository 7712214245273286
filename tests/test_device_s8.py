# SPDX-License-Identifier: Apache-2.0
"""The model of the s8 and s4 kernels, their calls' constants, and our portable ones, against vectors of CMSIS-NN 7."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from caffe_to_cmsis_nn.emit.projects import definitions
from caffe_to_cmsis_nn.kernels import cmsis_s8, weight_layouts
from caffe_to_cmsis_nn.kernels.base import AnyKernel, Bounds, Integers, Operands
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.registry import ALL_KERNELS
from caffe_to_cmsis_nn.qformat import MAX_OUT_RSHIFT, Shifts
from caffe_to_cmsis_nn.target import S8, Core, Target
from tests.support import ROOT, run, shared, tool
from tests.test_device import Geometry

CORES = {Core.DSP: "m4", Core.PLAIN: "m3", Core.MVE: "m55"}
# Functions that compute what one of ours does; the names that are left out are not called.
SAME = {
    "arm_convolve_s8": "arm_convolve_wrapper_s8",
    "arm_convolve_s4": "arm_convolve_wrapper_s4",
    "arm_fully_connected_wrapper_s8": "arm_fully_connected_s8",
    "arm_fully_connected_per_channel_s8": "arm_fully_connected_s8",
    "arm_maximum_s8": "max_q7",
    "arm_concatenation_s8_x": "concat_q7",
}
KERNELS = {kernel.name: kernel for kernel in ALL_KERNELS[::-1] if S8 in kernel.libraries}
GUARD = 64  # bytes after scratch memory, that must stay as they are
ROOM = 1 << 16  # after an output: 1x1 convolutions write as many pixels as they read
WHAT = {"MULTIPLIER": "mult", "SHIFT": "shift"}
NAMES = CNames("L", ("in",), "out", "scratch", "l_wt", "l_bias")


@dataclass(frozen=True)
class Layer(Geometry):
    """Also of two inputs, beside each other in channels."""

    axis: ClassVar[int] = 0

    @property
    def in_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.in_shape, self.in_shape)


@dataclass(frozen=True)
class Vector:
    """A recorded call of a real kernel."""

    id: str
    function: str
    kernel: AnyKernel
    layer: Layer
    args: Mapping[str, int]
    legacy: Mapping[str, Any]
    shifts: np.ndarray  # of each output, or one for all; empty where scales are no powers of two
    arrays: Mapping[str, np.ndarray]  # as in C
    outputs: Mapping[Core, np.ndarray]
    bad: frozenset[Core]  # where the kernel is wrong
    buffer: Mapping[Core, int]

    @property
    def computable(self) -> bool:
        """The scales follow from formats."""
        if "weights" in self.arrays:
            return len(self.shifts) > 0 and max(self.shifts) <= MAX_OUT_RSHIFT
        return "block_size" not in self.args or "f1" in self.legacy

    @property
    def modelled(self) -> bool:
        """We call kernels with one scale for all channels."""
        return self.computable and len(np.unique(self.shifts)) <= 1

    @property
    def bounds(self) -> Bounds:
        prefix = "out_activation" if "block_size" in self.args else "act"
        return Bounds(self.args.get(f"{prefix}_min", -128), self.args.get(f"{prefix}_max", 127))

    @property
    def inputs_chw(self) -> list[np.ndarray]:
        shape = self.layer.in_shape
        arrays = [self.arrays[name] for name in ("input", "input2") if name in self.arrays]
        if len(shape) == 1:
            return [x.reshape(1, -1) for x in arrays]
        return [x.reshape(-1, *shape[1:], shape[0]).transpose(0, 3, 1, 2) for x in arrays]

    @property
    def integers(self) -> Any:
        a = self.args
        if "block_size" in a:
            bits = self.legacy["f1"], self.legacy["f2"]
            return Operands.align(bits, (False, False), self.legacy["fo"])
        if self.function == "arm_maximum_s8":
            return Operands((1, 1), 0)
        if self.function == "arm_concatenation_s8_x":
            return (0,)
        if "weights" not in self.arrays:
            return None
        return self.shifted(int(self.shifts[0]))

    def shifted(self, out_rshift: int) -> Integers:
        """Where all outputs have this shift."""
        w, layer = self.arrays["weights"], self.layer
        if len(layer.in_shape) == 1:
            w = w.reshape(layer.out_shape[0], -1)
        elif "ch_mult" in self.args:
            w = w.reshape(*layer.window, layer.out_shape[0]).transpose(2, 0, 1)[:, None]
        else:
            w = w.reshape(layer.out_shape[0], *layer.window, -1).transpose(0, 3, 1, 2)
        return Integers(w, self.arrays["bias32"], Shifts(0, out_rshift))


def _layer(name: str, a: Mapping[str, int], shape: tuple[int, ...]) -> Layer:
    def pair(what: str, default: int = 1) -> tuple[int, int]:
        return a.get(f"{what}_h", default), a.get(f"{what}_w", default)

    if "input_h" not in a:
        if "input_x" in a:
            image = (a["input_x"], a["input_z"], a["input_y"])
            return Layer(name, image, image)
        length = a.get("accum_depth") or a.get("size") or a.get("block_size") or int(np.prod(shape))
        return Layer(name, (length,), (a.get("output_c", length),))
    channels = a.get("input_c") or a["channels"]
    group = channels if "ch_mult" in a else channels // a.get("filter_c", channels)
    shapes = (channels, *pair("input")), (a.get("output_c", channels), *pair("output"))
    windows = pair("filter"), pair("stride"), pair("pad", 0)
    return Layer(name, *shapes, *windows, group, False, dilation=pair("dilation"))


def _read(family: str) -> list[Vector]:
    cases = json.loads(shared("golden", f"cmsis_nn_{family}_golden.json").read_text())["cases"]
    arrays = np.load(shared("golden", f"cmsis_nn_{family}_golden.npz"))
    result = []
    for case in cases:
        name, outputs = case["kernel"], case["arrays"]["output"]
        kernel = KERNELS.get(SAME.get(name, name))
        if kernel is None:
            continue
        legacy = case.get("legacy") or {}
        result.append(
            Vector(
                case["id"],
                name,
                kernel,
                _layer(case["id"], case["args"], tuple(case["out_shape"])),
                case["args"],
                legacy,
                np.atleast_1d(case.get("out_shift") or legacy.get("out_shift", [])),
                {k: arrays[v] for k, v in case["arrays"].items() if k != "output"},
                {core: arrays[outputs[tag]] if outputs[tag] else np.empty(0) for core, tag in CORES.items()},
                frozenset(core for core, tag in CORES.items() if tag in case.get("known_bad", ())),
                {core: case.get("buffer_size", {}).get(tag, 0) for core, tag in CORES.items()},
            )
        )
    return result


@pytest.fixture(scope="module")
def vectors() -> list[Vector]:
    s8, s4 = _read("s8"), _read("s4")
    assert len(s8) >= 230 and len(s4) == 238
    return s8 + s4


def _computed(vector: Vector, target: Target, integers: Any) -> np.ndarray:
    """The model's output in the order of the device's memory."""
    g = OnnxGraph()
    inputs = vector.inputs_chw
    xs = [g.cast(g.input(f"in_x{i}", np.int8, x.shape[1:]), np.float32) for i, x in enumerate(inputs)]
    y = vector.kernel.build(g, xs, vector.layer, integers, target)
    g.output(g.cast(g.clip(y, vector.bounds.low, vector.bounds.high), np.int8))
    (result,) = g.session().run(None, {f"in_x{i}": x for i, x in enumerate(inputs)})
    return np.moveaxis(result, 1, -1)


@pytest.mark.parametrize("core", Core)
def test_device_model_equals_the_kernels(vectors: list[Vector], core: Core) -> None:
    compared = 0
    for vector in vectors:
        if not vector.computable or core in vector.bad or not vector.outputs[core].size:
            continue
        compared += 1
        target, expected = Target(core, library=S8), vector.outputs[core]
        if len(vector.shifts) > 1:
            for shift in np.unique(vector.shifts):
                outputs = _computed(vector, target, vector.shifted(int(shift))).reshape(-1, len(vector.shifts))
                same = vector.shifts == shift
                wanted = expected.reshape(outputs.shape)[:, same]
                np.testing.assert_array_equal(outputs[:, same], wanted, vector.id)
            continue
        if "offset_x" in vector.args:
            first, depth = vector.args["offset_x"], vector.args["input_x"]
            expected = expected.reshape(-1, vector.args["output_x"])[:, first : first + depth]
        result = _computed(vector, target, vector.integers).ravel()
        size = vector.args.get("size", result.size)
        np.testing.assert_array_equal(result[:size], expected.ravel()[:size], vector.id)
    assert compared >= 228 + 211


def _constants(vector: Vector) -> dict[str, np.ndarray]:
    """The arrays that our call would have, by the end of their names."""
    arrays = vector.kernel.arrays(vector.layer, vector.integers, NAMES)
    return {array.macro[2:].lower(): array.values for array in arrays}


def test_constants(vectors: list[Vector]) -> None:
    """Layouts, biases, multipliers and shifts are those that the recorded calls had."""
    recorded = {"wt": "weights_packed", "bias": "bias32", "multiplier": "multiplier", "shift": "shift"}
    compared = 0
    for vector in vectors:
        if vector.modelled and "weights" in vector.arrays:
            for name, values in _constants(vector).items():
                expected = vector.arrays.get(recorded[name], vector.arrays["weights"])
                identity = vector.shifts[0] == 0 and name in ("multiplier", "shift")
                if not identity:  # two pairs do
                    np.testing.assert_array_equal(values.ravel(), expected.ravel(), vector.id)
            defines = vector.kernel.defines(vector.integers)
            if defines and vector.shifts[0]:
                assert defines["MULTIPLIER"] == vector.arrays["multiplier"][0]
            compared += 1
        elif vector.modelled and "block_size" in vector.args:
            a, defines = vector.args, vector.kernel.defines(vector.integers)
            names = {"MULTIPLIER": "out_mult"}
            names.update({f"{macro}_{i}": f"input_{i}_{name}" for i in (1, 2) for macro, name in WHAT.items()})
            assert {macro: a[name] for macro, name in names.items()} == defines
            assert a["left_shift"] == cmsis_s8.ADD_LSHIFT
            compared += 1
    assert compared >= 130 + 200


@pytest.mark.parametrize("core", Core)
def test_scratch_memory_is_what_the_library_asks_for(vectors: list[Vector], core: Core) -> None:
    """At least for all, and no more than that for most."""
    exact = 0
    for vector in vectors:
        if vector.layer.group == 1 and "ch_mult" in vector.args:
            continue  # a convolution for us
        target = Target(core, library=S8)
        if "ch_mult" in vector.args and vector.kernel.objection(vector.layer, target):
            continue
        if vector.function == vector.kernel.name != "arm_fully_connected_s8" and vector.modelled:
            asked, planned = vector.buffer[core], vector.kernel.scratch_bytes(vector.layer, target)
            assert planned >= asked, vector.id
            exact += planned == asked
    assert exact >= 60 + 100


def struct(*values: int, pointers: Sequence[np.ndarray | None] = ()) -> ctypes.Structure:
    """The library's structures hold int32 numbers alone, but for the pointers in front of two of them."""
    fields: list[tuple[str, Any]] = [(f"p{i}", ctypes.c_void_p) for i in range(len(pointers))]
    fields += [(f"i{i}", ctypes.c_int32) for i in range(len(values))]
    made = type("Structure", (ctypes.Structure,), {"_fields_": fields})
    return made(*(None if p is None else p.ctypes.data for p in pointers), *values)


def _c_arguments(vector: Vector, output: np.ndarray, scratch: np.ndarray) -> list[Any]:
    """As the prototypes have them; guards follow the scratch memory."""
    a, layer, bounds = vector.args, vector.layer, (vector.bounds.low, vector.bounds.high)
    arrays = {name: ctypes.c_void_p(values.ctypes.data) for name, values in vector.arrays.items()}
    weights_data = arrays.get("weights_packed", arrays.get("weights"))
    out = ctypes.c_void_p(output.ctypes.data)
    if "size" in a:
        return [out, ctypes.c_uint16(a["size"])]
    if "block_size" in a:
        operands = [a[f"input_{i}_{what}"] for i in (1, 2) for what in ("offset", "mult", "shift")]
        ends = [a["out_offset"], a["out_mult"], a["out_shift"], *bounds, a["block_size"]]
        return [arrays["input"], arrays["input2"], *operands, a["left_shift"], out, *ends]
    context = struct(scratch.nbytes - GUARD, pointers=[scratch if scratch.nbytes > GUARD else None])
    if "accum_depth" in a:
        context = struct(vector.arrays["bias32"].nbytes, pointers=[vector.arrays["bias32"]])
        depth, rows = a["accum_depth"], a["output_c"]
        shift = [int(vector.arrays[name][0]) for name in ("multiplier", "shift")]
        dims = struct(1, 1, 1, depth), struct(depth, 1, 1, rows), struct(1, 1, 1, rows)
        params, quantization = struct(0, 0, 0, *bounds), struct(*shift)
    else:
        tiles = [*layer.stride[::-1], *layer.pad[::-1]]
        count = layer.out_shape[0]
        filters = (1, count) if "ch_mult" in a else (count, a.get("filter_c", layer.in_shape[0]))
        dims = (
            struct(1, *layer.in_shape[1:], layer.in_shape[0]),
            struct(filters[0], *layer.window, filters[1]),
            struct(1, *layer.out_shape[1:], layer.out_shape[0]),
        )
        if "weights" not in arrays:
            params = struct(*tiles, *bounds)
            return [*map(ctypes.byref, (context, params, dims[0])), arrays["input"], *map(ctypes.byref, dims[1:]), out]
        offsets = [0, 0, a["ch_mult"]] if "ch_mult" in a else [0, 0]
        params = struct(*offsets, *tiles, a["dilation_w"], a["dilation_h"], *bounds)
        quantization = struct(pointers=[vector.arrays["multiplier"], vector.arrays["shift"]])
    structures = [ctypes.byref(s) for s in (context, params, quantization, *dims)]
    ctx, par, quant, inputs, weights, outputs = structures
    return [
        *(ctx, par, quant, inputs, arrays["input"], weights, weights_data, outputs, arrays["bias32"], outputs),
        out,
    ]


def build_portable(folder: Path, core: Core) -> ctypes.CDLL:
    """Our portable kernels as a library."""
    source, requantize = ROOT / "templates" / "portable_s8", folder / "requantize.c"
    requantize.write_text(
        f'#include "{source}/arm_nnsupportfunctions.h"\n'
        "int32_t requantize(int32_t v, int32_t m, int32_t s) { return arm_nn_requantize(v, m, s); }\n"
    )
    flags = [f"-D{name}" for name in definitions(Target(core, library=S8))]
    flags += ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-o"]
    built = run(tool("gcc", "cc"), *flags, folder / "kernels.so", source / "arm_nnfunctions.c", requantize)
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


@pytest.mark.parametrize("core", Core)
def test_portable_kernels_equal_the_kernels(vectors: list[Vector], core: Core, tmp_path: Path) -> None:
    """With the scratch memory that the plan gives them, which they fill and do not leave."""
    portable, compared = build_portable(tmp_path, core), 0
    for vector in vectors:
        per_channel = len(np.unique(vector.arrays.get("multiplier", np.zeros(1)))) > 1
        if vector.kernel.header or core in vector.bad or (per_channel and "accum_depth" in vector.args):
            continue
        row = core is Core.MVE and vector.layer.in_shape[1:2] == (1,)
        other = vector.function != vector.kernel.name
        if other and (row or vector.kernel.objection(vector.layer, Target(core, library=S8))):
            continue  # a wrapper takes another function there, which is wrong
        expected = vector.outputs[core]
        output = vector.arrays["input"].copy() if "size" in vector.args else np.zeros(expected.size + ROOM, np.int8)
        scratch_bytes = vector.kernel.scratch_bytes(vector.layer, Target(core, library=S8))
        scratch = np.full(scratch_bytes + GUARD, 0x11, np.int8)
        arguments = _c_arguments(vector, output, scratch)
        assert getattr(portable, vector.kernel.name)(*arguments) == 0 or "size" in vector.args, vector.id
        np.testing.assert_array_equal(output.ravel()[: expected.size], expected.ravel(), vector.id)
        assert (scratch[scratch_bytes:] == 0x11).all(), vector.id
        compared += 1
    assert compared >= 200 + 225


def test_portable_requantization_equals_the_library(tmp_path: Path) -> None:
    portable = build_portable(tmp_path, Core.DSP)
    cases = json.loads(shared("golden", "cmsis_nn_s8_golden.json").read_text())["cases"]
    arrays = np.load(shared("golden", "cmsis_nn_s8_golden.npz"))
    recorded = [case for case in cases if case["kernel"] == "arm_nn_requantize"]
    assert len(recorded) == 32
    for case in recorded:
        pair = case["args"]["multiplier"], case["args"]["shift"]
        result = [portable.requantize(int(value), *pair) for value in arrays[case["arrays"]["input"]]]
        np.testing.assert_array_equal(result, arrays[case["arrays"]["output"]["m4"]], case["id"])


def test_weights_of_4_bits_are_packed_from_the_low_half_on() -> None:
    packed = weight_layouts.nibbles(np.array([1, 2, 3, 4, -8, 7, -1], np.int8))
    assert packed.view(np.uint8).tolist() == [0x21, 0x43, 0x78, 0x0F]
