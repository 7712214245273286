# SPDX-License-Identifier: Apache-2.0
"""Exact integer arithmetic in ONNX graphs.

Every tensor holds integers as float32, NCHW or (N, features). Sums stay exact because they are proved to stay below
2**24, or are split until they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from q7.kernel import Integers
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX, INT8_MIN, Target

EXACT_FLOAT32 = 1 << 24  # every integer of smaller magnitude is a float32, and so is every partial sum on the way


def end_padding(extent: int, out: int, kernel: int, stride: int, pad: int) -> int:
    """Cells to add behind an axis so that its last window is whole, where `pad` were added before it."""
    return max(0, (out - 1) * stride + kernel - extent - pad)


def window_attributes(layer: Any) -> dict[str, list[int]]:
    """ONNX attributes of a layer's windows; the padding at the end follows from the output shape."""
    ends = [
        end_padding(d, o, k, s, p)
        for d, o, k, s, p in zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad)
    ]
    return {"kernel_shape": list(layer.kernel), "strides": list(layer.stride), "pads": [*layer.pad, *ends]}


def crop(g: OnnxGraph, y: str, layer: Any) -> str:
    """Drops rows and columns beyond the layer's output, where the windows allow more than it asks for."""
    for axis, (d, o, k, s, p) in enumerate(
        zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad), 2
    ):
        if (d + p + end_padding(d, o, k, s, p) - k) // s + 1 > o:
            y = g.slice(y, axis, 0, o)
    return y


def saturate(g: OnnxGraph, x: str) -> str:
    return g.clip(x, INT8_MIN, INT8_MAX)


def _exact_parts(weights: np.ndarray, budget: int) -> list[np.ndarray]:
    """Splits weights (O, ...) into arrays that sum to them, so that each output's sum of |w| is within the budget."""
    flat = np.abs(weights.reshape(len(weights), -1).astype(np.int64))
    part = np.cumsum(flat, axis=1).max(axis=0) // (budget - INT8_MAX - 1)
    return [np.where((part == i).reshape(weights.shape[1:]), weights, 0) for i in np.unique(part)]


def weighted_sum(
    g: OnnxGraph, integers: Integers, target: Target, product: Callable[[np.ndarray, np.ndarray], str]
) -> str:
    """clamp((sum(x * w) + (bias << bias_lshift) + rounding term) >> out_rshift), exact for every int8 input.

    `product(weights, constants)` adds the convolution or matrix product of float32 weights and per-output constants.
    Scaling by 2**-out_rshift is put on the weights, which keeps every float exact. The kernels' 32-bit sums cannot
    overflow: at most 65535 * 2**14 of products, 2**29 of bias and 2**29 of rounding stay below 2**31.
    """
    shift = integers.shifts
    weights = integers.weights.astype(np.float64)
    constants = (integers.bias.astype(np.int64) << shift.bias_lshift) + target.rounding.term(shift.out_rshift)
    sums = np.abs(weights.reshape(len(weights), -1)).sum(axis=1) * -INT8_MIN
    bound = int((sums + np.abs(constants)).max())
    scale = 2.0**-shift.out_rshift
    if bound < EXACT_FLOAT32:
        total = product((weights * scale).astype(np.float32), (constants * scale).astype(np.float32))
        return saturate(g, g.add("Floor", total))
    none = np.zeros(len(weights), np.float32)
    parts = [
        g.cast(product(part.astype(np.float32), none), np.float64)
        for part in _exact_parts(weights, EXACT_FLOAT32 // -INT8_MIN)
    ]
    shape = (-1,) + (1,) * (weights.ndim - 2)
    total = g.add("Sum", *parts, constants.astype(np.float64).reshape(shape))
    total = g.add("Floor", g.add("Mul", total, np.array(scale)))
    return g.cast(g.clip(total, INT8_MIN, INT8_MAX, np.float64), np.float32)


def convolution(g: OnnxGraph, x: str, layer: Any, integers: Integers, target: Target) -> str:
    """The weighted sum of a convolution layer."""

    def convolve(weights: np.ndarray, constants: np.ndarray) -> str:
        return g.add("Conv", x, weights, constants, group=layer.group, **window_attributes(layer))

    return crop(g, weighted_sum(g, integers, target, convolve), layer)


def divide(g: OnnxGraph, total: str, count: np.ndarray) -> str:
    """C's division, which truncates toward zero; float32 divides integers below 2**24 without crossing one."""
    return g.cast(g.cast(g.add("Div", total, count.astype(np.float32)), np.int32), np.float32)


def window_sum(g: OnnxGraph, x: str, **windows: Any) -> str:
    """The sum over each window, zeros outside: exact, since the mean's rounding error is far below 1 / cells."""
    cells = float(np.prod(windows["kernel_shape"]))
    mean = g.add("AveragePool", x, count_include_pad=1, **windows)
    return g.add("Round", g.add("Mul", mean, np.array(cells, np.float32)))


def window_cells(extent: int, out: int, kernel: int, stride: int, pad: int) -> np.ndarray:
    """How many cells of the image each window holds along one axis."""
    start = np.arange(out) * stride - pad
    return np.minimum(start + kernel, extent) - np.maximum(start, 0)
