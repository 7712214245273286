# SPDX-License-Identifier: Apache-2.0
"""Our portable kernels leave the same memory as Arm's, also where a call is outside of the kernel's contract."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import ROOT, run, shared, tool

Case = dict[str, Any]
FLAGS = {"m3": [], "m4": ["-DARM_MATH_DSP"], "m55": ["-DARM_MATH_DSP", "-DARM_MATH_MVEI"]}
PAIRS = ("kernel", "pad", "stride")
ALIGNMENT = 16


def vectors(name: str, core: str) -> tuple[list[Case], list[np.ndarray]]:
    """The recorded calls, and the whole memory after each of them."""
    description = json.loads(shared("golden", f"{name}.json").read_text())
    with np.load(shared("golden", f"{name}.npz")) as arrays:
        return description["cases"], [arrays[f"{i}_{core}"] for i in range(len(description["cases"]))]


def build(folder: str, core: str, out: Path) -> ctypes.CDLL:
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", *FLAGS[core]]
    built = run(tool("gcc", "cc"), *flags, "-o", out, ROOT / "templates" / folder / "arm_nnfunctions.c")
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(out))


def memory_before(seed: int, size: int) -> np.ndarray:
    """The high bytes of a linear congruential generator, at an aligned address."""
    room = np.empty(size + ALIGNMENT, np.int8)
    memory = room[-room.ctypes.data % ALIGNMENT :][:size]
    factors = np.cumprod(np.full(size, 1664525, np.uint32), dtype=np.uint32)
    summands = 1013904223 * np.cumsum(np.append(np.uint32(1), factors[:-1]), dtype=np.uint32)
    memory[:] = (factors * np.uint32(seed) + summands >> 24).astype(np.uint8).view(np.int8)
    return memory


def outside(memory: np.ndarray, case: Case, scratch_bytes: int) -> np.ndarray:
    """All but the scratch memory, which any kernel may leave as it likes."""
    scratch = case["scratch"]
    return np.concatenate([memory[:scratch], memory[scratch + scratch_bytes :]])


# --- CMSIS 5.9.0 ------------------------------------------------------------------------------------------------------

Q7_NAMES = {
    "fast": "arm_convolve_HWC_q7_fast_nonsquare",
    "basic": "arm_convolve_HWC_q7_basic_nonsquare",
    "one": "arm_convolve_1x1_HWC_q7_fast_nonsquare",
    "dw": "arm_depthwise_separable_conv_HWC_q7_nonsquare",
}


def call_q7(library: ctypes.CDLL, case: Case, at: Any) -> int:
    if case["kernel"] == "maxpool":
        sizes = [case[name] for name in ("in_x", "ch_in", "kernel_x", "pad_x", "stride_x", "out_x")]
        library.arm_maxpool_q7_HWC(at("input"), *sizes, None, at("output"))
        return 0
    inputs = [case["in_x"], case["in_y"], case["ch_in"], at("weights"), case["ch_out"]]
    sizes = [case[f"{what}_{axis}"] for what in PAIRS for axis in "xy"]
    scaling = [at("bias"), case["bias_lshift"], case["out_rshift"]]
    outputs = [at("output"), case["out_x"], case["out_y"], at("scratch"), None]
    return int(getattr(library, Q7_NAMES[case["kernel"]])(at("input"), *inputs, *sizes, *scaling, *outputs))


@pytest.mark.parametrize("core", ["m3", "m4"])
def test_q7_kernels_leave_the_same_memory(core: str, tmp_path: Path) -> None:
    library = build("portable", core, tmp_path / "kernels.so")
    wild = 0
    for number, (case, expected) in enumerate(zip(*vectors("cmsis_nn_q7_memory", core))):
        memory = memory_before(case["seed"], case["end"])
        base = memory.ctypes.data
        status = call_q7(library, case, lambda what: ctypes.c_void_p(base + case[what]))  # noqa: B023
        assert status == case[core]["status"], number
        scratch_bytes = case["scratch_bytes"] if core == "m4" else 0
        np.testing.assert_array_equal(
            outside(memory, case, scratch_bytes), outside(expected, case, scratch_bytes), f"{number}: {case}"
        )
        wild += case[core]["output_correct"] is False or case[core]["writes_past"] is not None
    assert wild == (20 if core == "m4" else 0)


# --- CMSIS-NN 7.0.0 ---------------------------------------------------------------------------------------------------

S8_NAMES = {
    "conv": "arm_convolve_wrapper_s8",
    "one": "arm_convolve_wrapper_s8",
    "dw": "arm_depthwise_conv_wrapper_s8",
    "maxpool": "arm_max_pool_s8",
    "avgpool": "arm_avgpool_s8",
}


class Context(ctypes.Structure):
    _fields_ = (("buf", ctypes.c_void_p), ("size", ctypes.c_int32))


class Quantization(ctypes.Structure):
    _fields_ = (("multiplier", ctypes.c_void_p), ("shift", ctypes.c_void_p))


def numbers(*values: int) -> Any:
    """A structure of int32_t."""
    return ctypes.byref((ctypes.c_int32 * len(values))(*values))


def call_s8(library: ctypes.CDLL, case: Case, scratch_bytes: int, at: Any) -> int:
    kernel, outputs = case["kernel"], case["ch_out"]
    context = Context(at("scratch"), scratch_bytes)
    stride, padding = ((case[f"{what}_x"], case[f"{what}_y"]) for what in ("stride", "pad"))  # width before height
    in_dims = numbers(1, case["in_y"], case["in_x"], case["ch_in"])
    out_dims = numbers(1, case["out_y"], case["out_x"], outputs)
    window = case["kernel_y"], case["kernel_x"]
    function = getattr(library, S8_NAMES[kernel])
    function.restype = ctypes.c_int32
    if "pool" in kernel:
        params = numbers(*stride, *padding, -128, 127)
        arguments = (params, in_dims, at("input"), numbers(1, *window, 1), out_dims, at("output"))
        return int(function(ctypes.byref(context), *arguments))
    multipliers = (ctypes.c_int32 * outputs)(*[1 << (31 - case["out_rshift"])] * outputs)
    shifts = (ctypes.c_int32 * outputs)()
    bias = (ctypes.c_int32 * outputs)(*[((case["seed"] >> (j % 16)) & 1023) - 512 for j in range(outputs)])
    quantization = Quantization(ctypes.addressof(multipliers), ctypes.addressof(shifts))
    more = [outputs // case["ch_in"]] if kernel == "dw" else []
    params = numbers(0, 0, *more, *stride, *padding, 1, 1, -128, 127)
    filters = numbers(1, *window, outputs) if kernel == "dw" else numbers(outputs, *window, case["ch_in"])
    arguments = (in_dims, at("input"), filters, at("weights"), numbers(1, 1, 1, outputs), ctypes.byref(bias))
    return int(function(ctypes.byref(context), params, ctypes.byref(quantization), *arguments, out_dims, at("output")))


@pytest.mark.parametrize("core", ["m4", "m55"])
def test_s8_kernels_leave_the_same_memory(core: str, tmp_path: Path) -> None:
    library = build("portable_s8", core, tmp_path / "kernels.so")
    wild = 0
    for number, (case, expected) in enumerate(zip(*vectors("cmsis_nn_s8_memory", core))):
        found = case[core]
        memory = memory_before(case["seed"], found["end"])
        base = memory.ctypes.data
        status = call_s8(library, case, found["scratch_bytes"], lambda what: ctypes.c_void_p(base + case[what]))  # noqa: B023
        assert status == found["status"], number
        np.testing.assert_array_equal(
            outside(memory, case, found["scratch_bytes"]),
            outside(expected, case, found["scratch_bytes"]),
            f"{number}: {case}",
        )
        wild += found["output_correct"] is False or found["writes_past"] is not None
    assert wild == (14 if core == "m4" else 10)
