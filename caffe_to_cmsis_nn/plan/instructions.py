# SPDX-License-Identifier: Apache-2.0
"""How many instructions kernels take on cores with the DSP extension: estimates, fitted to counts of an emulator.

What a kernel of ours does is counted exactly as far as loops say it; what each of it costs was fitted to QEMU's counts
of whole networks, built by GCC 12 with -O3 (tests/benchmarks/instructions.py fits and checks). For Arm's kernels it is
what was counted for each multiply-accumulate of a few networks, with CMSIS 5.9.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from caffe_to_cmsis_nn.kernels import own_loops, own_q7
from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.target import Core

# Instructions for each of what `work` counts.
COSTS: Mapping[str, float] = {
    "instruction": 1,
    "block": 33.7,
    "narrow block": 20.0,
    "column": 5.6,
    "pixel group": 35.9,
    "widened number": 2.9,
    "inner product block": 60.0,
    "depthwise tap": 16.4,
    "narrow depthwise tap": 6.5,
    "depthwise outputs": 1.8,
    "averaged cell": 1.9,
    "average": 26.9,
    "maximum cell": 4.5,
    "merged element": 4.5,
    "clip_q7": 5.0,
    "read_pixels": 5.8,
}
# Instructions for each multiply-accumulate, by kernel: layers of Arm's own CIFAR-10 networks, and LeNet.
ARM_MACS: Mapping[str, float] = {
    "arm_convolve_HWC_q7_basic": 4.35,
    "arm_convolve_HWC_q7_RGB": 2.32,
    "arm_convolve_HWC_q7_fast": 1.75,
    "arm_fully_connected_q7_opt": 1.6,
}

Work = Mapping[str, float]


def _cells(layer: Any) -> int:
    return math.prod(layer.window)


def _pixels(layer: Any) -> int:
    return math.prod(layer.out_shape[1:])


def _elements(layer: Any) -> int:
    return math.prod(layer.out_shape)


def _steps(steps: int, instructions: int) -> int:
    """A loop of four steps, and three instructions that close it, then the steps that are left."""
    return steps * instructions + steps // 4 * 3


def _narrow(kernel: AnyKernel) -> bool:
    """Whether weights have 4 bits, which takes more: three instructions to make two words of eight of them."""
    return kernel.weight_bits == 4


@singledispatch
def work(kernel: AnyKernel, layer: Any) -> Work | None:
    """What the kernel does for the layer, by the names in COSTS; None where it is not known."""
    return None


@work.register(own_q7.Convolution)
def _(kernel: own_q7.Convolution, layer: Any) -> Work:
    """Blocks of two outputs of up to three pixels (weighted_q7.h, dot_q7.h)."""
    plan = kernel.plan(layer)
    full, rest = divmod(layer.out_shape[2], plan.at_once)
    pairs = layer.group * layer.out_shape[1] * math.ceil(layer.out_shape[0] / layer.group / 2)
    widening = 5 + 3 * _narrow(kernel)
    inner = full * _steps(plan.length // 4, widening + 5 * plan.at_once)
    inner += _steps(plan.length // 4, widening + 5 * rest) if rest else 0
    groups = layer.out_shape[1] * (full + (rest > 0)) * layer.group
    fresh = layer.out_shape[1] * (plan.window + (layer.out_shape[2] - 1) * plan.pitch) * layer.group
    depth = layer.in_shape[0] // layer.group
    widened = fresh * layer.window[0] * depth
    return {
        "instruction": pairs * inner,
        "block": pairs * (full + (rest > 0)),
        "narrow block": _narrow(kernel) * pairs * (full + (rest > 0)),
        "pixel group": groups,
        "column": fresh,
        "widened number": widened / 4 if depth % 4 == 0 else widened,
    }


@work.register(own_q7.Depthwise)
def _(kernel: own_q7.Depthwise, layer: Any) -> Work:
    fours = _pixels(layer) * math.ceil(layer.in_shape[0] / 4)
    taps = fours * _cells(layer)
    return {"depthwise tap": taps, "narrow depthwise tap": _narrow(kernel) * taps, "depthwise outputs": fours}


@work.register(own_q7.InnerProduct)
def _(kernel: own_q7.InnerProduct, layer: Any) -> Work:
    size, fours = math.prod(layer.in_shape), math.ceil(layer.out_shape[0] / 4)
    steps = _steps(math.ceil(size / 4), 19 + 6 * _narrow(kernel))
    return {"instruction": fours * steps, "inner product block": fours}


@work.register(own_loops.OwnAveragePool)
def _(kernel: AnyKernel, layer: Any) -> Work:
    return {"averaged cell": _elements(layer) * _cells(layer), "average": _elements(layer)}


@work.register(own_loops.OwnMaxPool)
def _(kernel: own_loops.OwnMaxPool, layer: Any) -> Work:
    channels = layer.in_shape[0]
    words = _pixels(layer) * (channels // 4 + channels % 4)
    return {"maximum cell": words * _cells(layer)}


@work.register(own_loops.Merge)
def _(kernel: own_loops.Merge, layer: Any) -> Work:
    return {"merged element": _elements(layer) * len(layer.in_shapes)}


@work.register(own_q7.Relu)
@work.register(own_loops.Clamp)
@work.register(own_loops.Lookup)
@work.register(own_loops.Concatenate)
@work.register(own_loops.ReadPixels)
@work.register(own_q7.Softmax)
def _(kernel: AnyKernel, layer: Any) -> Work:
    return {kernel.name: _elements(layer)}


def estimates(network: QuantizedNetwork) -> dict[str, float]:
    """Of the layers of which it is known, by name."""
    if network.target.core is not Core.DSP:
        return {}
    pairs = zip(network.graph.layers, network.layers)
    found = {layer.name: estimate(held.kernel, layer) for layer, held in pairs}
    return {name: count for name, count in found.items() if count is not None}


def estimate(kernel: AnyKernel, layer: Any) -> float | None:
    """Instructions for one image on a core with the DSP extension, where that is known."""
    if kernel.name in ARM_MACS:
        return ARM_MACS[kernel.name] * float(layer.macs)
    known = work(kernel, layer)
    if known is None or not set(known) <= set(COSTS):
        return None
    return sum(COSTS[what] * count for what, count in known.items())
