# SPDX-License-Identifier: Apache-2.0
"""How many instructions kernels take on cores with the DSP extension: estimates, fitted to counts of an emulator.

A kernel's `work` says what our own loops do, counted exactly as far as they say it; what each of it costs was fitted to
QEMU's counts of whole networks, built by GCC 12 with -O3 (tests/benchmarks/instructions.py fits and checks). For Arm's
kernels it is what was counted for each multiply-accumulate of a few networks, with CMSIS 5.9.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.kernels.contract import LayerView

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


def pixels(layer: LayerView) -> int:
    """Of the output."""
    return math.prod(layer.out_shape[1:])


def elements(layer: LayerView) -> int:
    """Of the output."""
    return math.prod(layer.out_shape)


def steps_of_four(steps: int, instructions: int) -> int:
    """A loop of four steps, and three instructions that close it, then the steps that are left."""
    return steps * instructions + steps // 4 * 3


def estimate(kernel: AnyKernel, layer: LayerView) -> float | None:
    """Instructions for one image on a core with the DSP extension, where that is known."""
    work = kernel.work(layer)
    return None if work is None else sum(COSTS[what] * count for what, count in work.items())
