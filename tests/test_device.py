# SPDX-License-Identifier: Apache-2.0
"""The device model and our portable C kernels against vectors of the real kernels, and Arm's network on the device."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines.accuracy import accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import AnyKernel, Integers, IntWidth, Kernel, WeightedKernel
from caffe_to_cmsis_nn.kernels.cmsis_q7 import MaxPool
from caffe_to_cmsis_nn.kernels.constraints import padding_below_stride
from caffe_to_cmsis_nn.network.from_caffe import parse_network
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import end_padding, window_cells
from caffe_to_cmsis_nn.ops.activations import Sigmoid, TanH
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.input import Pixels
from caffe_to_cmsis_nn.ops.pooling import AveragePooling
from caffe_to_cmsis_nn.ops.registry import ALL_KERNELS
from caffe_to_cmsis_nn.qformat import Shifts
from caffe_to_cmsis_nn.target import Core, Rounding, Target
from tests.support import ROOT, run, shared, tool

KERNELS: dict[str, AnyKernel] = {kernel.name: kernel for kernel in ALL_KERNELS}
CURVES = (Sigmoid.kernels[0], TanH.kernels[0])  # by the kernel's argument
SCRATCH = np.zeros(1 << 16, np.int16)
CORES = {Core.DSP: "m4", Core.PLAIN: "m3", Core.MVE: "m3"}  # with MVE, the plain path runs


@dataclass(frozen=True)
class Geometry:
    """What a kernel asks of a layer; unlike a layer's, the output may be cropped or larger than the windows allow."""

    name: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    group: int = 1
    square: bool = True
    caffe_type: str = ""
    shared_input: bool = False
    macs: int = 0
    dilation: tuple[int, int] = (1, 1)

    @property
    def in_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.in_shape,)


@dataclass(frozen=True)
class Vector:
    """A recorded call of a real kernel."""

    kernel: AnyKernel
    layer: Geometry
    args: Mapping[str, int]
    truncate: bool
    arrays: Mapping[str, np.ndarray]  # as in C
    outputs: Mapping[Core, np.ndarray]
    status: Mapping[Core, int | None]

    @property
    def input_chw(self) -> np.ndarray:
        shape = self.layer.in_shape
        if len(shape) == 1:
            return self.arrays["input"].reshape(1, -1)
        return self.arrays["input"].reshape(*shape[1:], shape[0]).transpose(2, 0, 1)[None]

    @property
    def weights(self) -> np.ndarray:
        """OIHW or (rows, columns)."""
        w, layer = self.arrays.get("weights_rowmajor", self.arrays["weights"]), self.layer
        if len(layer.in_shape) == 1:
            return w.reshape(layer.out_shape[0], -1)
        if layer.group > 1:
            return w.reshape(*layer.window, layer.in_shape[0]).transpose(2, 0, 1)[:, None]
        return w.reshape(layer.out_shape[0], *layer.window, layer.in_shape[0]).transpose(0, 3, 1, 2)

    @property
    def integers(self) -> Any:
        if "int_width" in self.args:
            return IntWidth(self.args["int_width"])
        if "weights" not in self.arrays:
            return None
        shifts = Shifts(self.args["bias_shift"], self.args["out_shift"])
        return Integers(self.weights, self.arrays["bias"], shifts)


def _layer(name: str, a: Mapping[str, int]) -> Geometry:
    def pair(what: str) -> tuple[int, int]:
        return (a[f"{what}_y"], a[f"{what}_x"]) if f"{what}_y" in a else (a[what], a[what])

    if "size" in a:
        return Geometry(name, (a["size"],), (a["size"],))
    if "dim_vec" in a:
        return Geometry(name, (a["dim_vec"],), (a.get("num_of_rows", a["dim_vec"]),))
    channels = a["ch_im_in"]
    return Geometry(
        name,
        (channels, *pair("dim_im_in")),
        (a.get("ch_im_out", channels), *pair("dim_im_out")),
        pair("dim_kernel"),
        pair("stride"),
        pair("padding"),
        channels if "depthwise" in name else 1,
        "dim_im_in" in a,
    )


@pytest.fixture(scope="module")
def vectors() -> list[Vector]:
    cases = json.loads(shared("golden", "cmsis_nn_q7_golden.json").read_text())["cases"]
    arrays = np.load(shared("golden", "cmsis_nn_q7_golden.npz"))
    result = []
    for case in cases:
        if case["kernel"] in KERNELS:
            names = case["arrays"]
            result.append(
                Vector(
                    CURVES[case["args"]["type"]] if "type" in case["args"] else KERNELS[case["kernel"]],
                    _layer(case["id"], case["args"]),
                    case["args"],
                    bool(case["truncate"]),
                    {k: arrays[v] for k, v in names.items() if k != "output"},
                    {
                        core: arrays[names["output"][tag]] if names["output"][tag] else np.empty(0, np.int8)
                        for core, tag in CORES.items()
                    },
                    {core: case["return"][tag] for core, tag in CORES.items()},
                )
            )
    assert len(result) >= 230
    return result


def _target(vector: Vector, core: Core) -> Target:
    return Target(core, Rounding.TRUNCATE if vector.truncate else Rounding.NEAREST)


def _refused(vector: Vector, core: Core) -> bool:
    """Whether the kernel reports an error, or is a pooling that reads what it overwrote."""
    overwritten = isinstance(vector.kernel, MaxPool) and not padding_below_stride(vector.layer, _target(vector, core))
    return bool(vector.status[core]) or overwritten


def modelled(vector: Vector, core: Core) -> np.ndarray:
    """The output that the device model says, flat, as it lies in C."""
    g = OnnxGraph()
    x = g.cast(g.input("in_x", np.int8, vector.input_chw.shape[1:]), np.float32)
    y = vector.kernel.build(g, [x], vector.layer, vector.integers, _target(vector, core))
    g.output(g.cast(y, np.int8))
    (result,) = g.session().run(None, {"in_x": vector.input_chw})
    return np.ravel(result[0].transpose(1, 2, 0) if result.ndim == 4 else result)


@pytest.mark.parametrize("core", Core)
def test_device_model_equals_the_kernels(vectors: list[Vector], core: Core) -> None:
    for vector in vectors:
        if not _refused(vector, core):
            np.testing.assert_array_equal(modelled(vector, core), vector.outputs[core].ravel(), vector.layer.name)


@pytest.mark.parametrize("core", Core)
def test_a_mismatch_on_the_device_is_declined(vectors: list[Vector], core: Core) -> None:
    refused = [vector for vector in vectors if _refused(vector, core)]
    assert len(refused) >= (15 if core is Core.DSP else 11)
    for vector in refused:
        assert vector.kernel.objection(vector.layer, _target(vector, core)), vector.layer.name


def test_weight_layouts(vectors: list[Vector]) -> None:
    for vector in vectors:
        if isinstance(vector.kernel, WeightedKernel) and not any(vector.status.values()):
            layout = vector.kernel.layout(vector.weights, vector.layer)
            np.testing.assert_array_equal(layout, vector.arrays["weights"].ravel(), vector.layer.name)


def test_where_cores_differ_the_kernels_objected(vectors: list[Vector]) -> None:
    """What max pooling gets wrong on DSP cores is never generated."""
    for vector in vectors:
        if "maxpool" in vector.kernel.name and not np.array_equal(vector.outputs[Core.DSP], vector.outputs[Core.PLAIN]):
            assert "padding smaller than the stride" in str(vector.kernel.objection(vector.layer, Target(Core.DSP)))


@pytest.mark.parametrize("core", Core)
@pytest.mark.parametrize("rounding", Rounding)
def test_portable_kernels_equal_the_kernels(
    vectors: list[Vector], core: Core, rounding: Rounding, tmp_path: Path
) -> None:
    source = ROOT / "templates" / "portable" / "arm_nnfunctions.c"
    flags = ["-DARM_MATH_DSP"] * (core is Core.DSP) + ["-DARM_NN_TRUNCATE"] * (rounding is Rounding.TRUNCATE)
    flags += ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"]
    built = run(tool("gcc", "cc"), *flags, "-o", tmp_path / "kernels.so", source)
    assert built.returncode == 0, built.stderr
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))
    orders = json.loads(shared("golden", "cmsis_nn_q7_golden.json").read_text())["meta"]["c_call"]
    compared = 0
    for vector in vectors:
        if vector.truncate != (rounding is Rounding.TRUNCATE):
            continue
        output = np.zeros(max(vector.outputs[core].size, int(np.prod(vector.layer.out_shape))), np.int8)
        arrays = {k: np.array(v) for k, v in vector.arrays.items()}
        arguments = _c_arguments(vector, orders[vector.kernel.name], arrays, output)
        status = getattr(library, vector.kernel.name)(*arguments)
        compared += 1
        if vector.status[core] is not None:
            assert ctypes.c_int32(status).value == vector.status[core], vector.layer.name
        if not vector.status[core]:
            result = arrays["input"] if "size" in vector.args else output
            np.testing.assert_array_equal(result.ravel(), vector.outputs[core].ravel(), vector.layer.name)
    assert compared >= 15


def _c_arguments(vector: Vector, order: str, arrays: Mapping[str, np.ndarray], output: np.ndarray) -> list[Any]:
    """Pointers and numbers in the order of the prototype: "(input, dim_im_in, ...)"."""
    pointers = {"output": output, "bufferA": SCRATCH, "vec_buffer": SCRATCH, "data": arrays["input"], **arrays}
    named = {name: ctypes.c_void_p(values.ctypes.data) for name, values in pointers.items()}
    values = {**named, "bufferB": None, **vector.args}
    return [values[name.strip()] for name in order.strip("()").split(",")]


@pytest.mark.parametrize("out_rshift", [0, 5, 15])
@pytest.mark.parametrize("rows", [2, 5])
def test_sums_that_float32_cannot_hold_stay_exact(rows: int, out_rshift: int) -> None:
    """4000 products of extremes reach 2**26; int64 arithmetic is the judge."""
    rng = np.random.default_rng(rows)
    weights = rng.choice(np.array([-128, -127, 127, 126], np.int8), (rows, 4000))
    bias = rng.integers(-128, 128, rows).astype(np.int8)
    x = rng.choice(np.array([-128, 127, 126], np.int8), (50, 4000))
    x[0] = np.where(weights[0] < 0, -128, 127)  # the largest sum that there is
    layer = Geometry("fc", (4000,), (rows,))
    g = OnnxGraph()
    integers = Integers(weights, bias, Shifts(3, out_rshift))
    xs = [g.cast(g.input("in_x", np.int8, (4000,)), np.float32)]
    (kernel,) = (k for k in InnerProduct.kernels if k.name == "arm_fully_connected_q7")
    g.output(kernel.build(g, xs, layer, integers, Target()))
    (result,) = g.session().run(None, {"in_x": x})
    sums = x.astype(np.int64) @ weights.T.astype(np.int64) + (bias.astype(np.int64) << 3)
    assert np.abs(sums).max() > exact_onnx.EXACT_FLOAT32
    np.testing.assert_array_equal(result, np.clip((sums + ((1 << out_rshift) >> 1)) >> out_rshift, -128, 127))


class ArmAveragePool(Kernel[Any, Any]):
    """arm_avepool_q7_HWC, which the tool does not call: sums / cells, truncated; with DSP along x and then along y."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        x = xs[0]
        windows = list(zip(layer.in_shape[1:], layer.out_shape[1:], layer.window, layer.stride, layer.pad))
        for axes in [(1,), (0,)] if target.core is Core.DSP else [(0, 1)]:
            own = [window if axis in axes else (1, 1, 1, 1, 0) for axis, window in enumerate(windows)]
            (_, _, sizes, strides, begin), end = map(list, zip(*own)), [end_padding(*window) for window in own]
            total = exact_onnx.window_sum(g, x, kernel_shape=sizes, strides=strides, pads=[*begin, *end])
            rows, columns = (window_cells(*window) for window in own)
            x = exact_onnx.divide(g, total, rows[:, None] * columns)
        return x


@pytest.mark.parametrize(
    ("target", "file", "percent"),
    [
        (Target(), "device_logits_cortex_m4.npy", 76.33),
        (Target(Core.PLAIN), "device_logits_cortex_m3_first1000.npy", 76.8),
        (Target(Core.DSP, Rounding.TRUNCATE), "device_logits_cortex_m4_truncate_first1000.npy", 76.7),
    ],
)
def test_arm_m4_as_published(arm_m4: Path, target: Target, file: str, percent: float) -> None:
    """Arm's published integers give, image by image, the logits of the emulated device."""
    arrays = np.load(arm_m4 / "published_weights.npz")
    parameters = json.loads((arm_m4 / "published_parameters.json").read_text())
    expected = np.load(arm_m4 / file)
    prototxt = read_prototxt(arm_m4 / "cifar10_m4_train_test.prototxt")
    source = data_source(prototxt)
    images, labels = lmdb_images.read(source.find_images(), range(len(expected)))
    network = parse_network(prototxt, "accuracy", source, images.shape[1:])
    layers = []
    for layer in network.layers:
        kernel, macro = layer.kernel_for(target), layer.name.upper()
        kernel = ArmAveragePool("arm_avepool_q7_HWC") if isinstance(layer, AveragePooling) else kernel
        integers: Any = None
        if layer is network.input:
            mean = arrays["MEAN_DATA"].reshape(32, 32, 3).transpose(2, 0, 1)
            integers = Pixels(mean, parameters["DATA_RSHIFT"])
        elif isinstance(kernel, WeightedKernel):
            shape = layer.weight_shapes()[0]
            # Which element each place of the C array holds, to undo the layout.
            places = kernel.layout(np.arange(np.prod(shape)).reshape(shape), layer)
            weights = np.empty(places.size, np.int8)
            weights[places] = arrays[f"{macro}_WT"]
            shifts = Shifts(parameters[f"{macro}_BIAS_LSHIFT"], parameters[f"{macro}_OUT_RSHIFT"])
            integers = Integers(weights.reshape(shape), arrays[f"{macro}_BIAS"], shifts)
        layers.append(IntegerLayer(kernel, integers))
    logits = DeviceNetwork(network, images, target).logits(layers)
    np.testing.assert_array_equal(logits, expected)
    assert accuracy_first(logits, labels) == pytest.approx(percent)
