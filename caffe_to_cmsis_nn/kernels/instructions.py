# SPDX-License-Identifier: Apache-2.0
"""Estimates of the instructions that kernels take on cores with the DSP extension.

A kernel's `work` counts what its loops do. The cost of each item was fitted to QEMU's instruction counts of whole
networks, built with GCC 12 and -O3 (tests/benchmarks/instructions.py). For Arm's kernels, the cost of a
multiply-accumulate was measured on a few networks, with CMSIS 5.9.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.kernels.contract import LayerView

# Instructions for each item in `work`.
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
    """The number of pixels in the output."""
    return math.prod(layer.out_shape[1:])


def elements(layer: LayerView) -> int:
    """The number of elements in the output."""
    return math.prod(layer.out_shape)


def steps_of_four(steps: int, instructions: int) -> int:
    """Instructions of a loop that is unrolled four times, with three instructions per iteration, and the rest."""
    return steps * instructions + steps // 4 * 3


def estimate(kernel: AnyKernel, layer: LayerView) -> float | None:
    """Instructions for one image on a core with the DSP extension, or None if unknown."""
    work = kernel.work(layer)
    return None if work is None else sum(COSTS[what] * count for what, count in work.items())
