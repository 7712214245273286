# SPDX-License-Identifier: Apache-2.0
"""Exact integer arithmetic in ONNX graphs.

Every tensor holds integers as float32, NCHW or (N, features). Sums are exact because they provably stay below 2**24, or
are split into parts that do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn.kernels.base import Integers, Operands
from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, LayerView
from caffe_to_cmsis_nn.kernels.weight_layouts import exchanged
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import convolution_attributes, crop, deconvolution_attributes
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN
from caffe_to_cmsis_nn.target import Target

EXACT_FLOAT32 = 1 << 24  # float32 represents every integer of smaller magnitude exactly


def saturate(g: OnnxGraph, x: str) -> str:
    return g.clip(x, INT8_MIN, INT8_MAX)


def _exact_parts(weights: np.ndarray, budget: int) -> list[np.ndarray]:
    """Splits weights (O, ...) into arrays that add up to them, each output's sum of |w| being at most `budget`."""
    flat = np.abs(weights.reshape(len(weights), -1).astype(np.int64))
    part = np.cumsum(flat, axis=1).max(axis=0) // (budget - INT8_MAX - 1)
    return [np.where((part == i).reshape(weights.shape[1:]), weights, 0) for i in np.unique(part)]


def weighted_sum(
    g: OnnxGraph, integers: Integers, target: Target, product: Callable[[np.ndarray, np.ndarray], str]
) -> str:
    """clamp((sum(x * w) + (bias << bias_lshift) + rounding term) >> out_rshift), exact for every int8 input.

    `product(weights, constants)` adds a convolution or matrix product with float32 weights and per-output constants to
    the graph. Weights are scaled by 2**-out_rshift in advance, which keeps every float exact. The kernels' 32-bit sums
    cannot overflow: 65535 * 2**14 of products, 2**29 of bias and 2**29 of rounding stay below 2**31.
    """
    shift = integers.shifts
    weights = integers.weights
    constants = (integers.bias.astype(np.int64) << shift.bias_lshift) + target.rounding.term(shift.out_rshift)
    sums = np.abs(weights.reshape(len(weights), -1).astype(np.int16)).sum(axis=1, dtype=np.int64) * -INT8_MIN
    bound = int((sums + np.abs(constants)).max())
    scale = 2.0**-shift.out_rshift
    if bound < EXACT_FLOAT32:
        total = product(weights * np.float32(scale), (constants * scale).astype(np.float32))
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


def convolution(g: OnnxGraph, x: str, layer: ConvolutionView, integers: Integers, target: Target) -> str:
    """The weighted sum of a convolution layer."""
    windows = {"group": layer.group, **convolution_attributes(layer)}
    total = weighted_sum(g, integers, target, lambda weights, bias: g.add("Conv", x, weights, bias, **windows))
    return crop(g, total, layer)


def deconvolution(g: OnnxGraph, x: str, layer: ConvolutionView, integers: Integers, target: Target) -> str:
    """The weighted sum of a transposed convolution with weights (inputs, outputs of a group, height, width)."""

    def product(weights: np.ndarray, constants: np.ndarray) -> str:
        windows = {"group": layer.group, **deconvolution_attributes(layer)}
        return g.add("ConvTranspose", x, exchanged(weights, layer.group), constants, **windows)

    by_output = replace(integers, weights=exchanged(integers.weights, layer.group))
    return weighted_sum(g, by_output, target, product)


def inner_product(g: OnnxGraph, x: str, integers: Integers, target: Target) -> str:
    """The weighted sum of a matrix with a vector, or with an image in CHW order."""
    vector = g.add("Flatten", x)
    return weighted_sum(g, integers, target, lambda weights, bias: g.add("Gemm", vector, weights, bias, transB=1))


def merge(g: OnnxGraph, xs: Sequence[str], layer: LayerView, operands: Operands, op: str) -> str:
    """clamp((op(factor * x, ...) + rounding term) >> out_rshift), rounded half up; op is ONNX's Sum or Max."""
    scale = 2.0**-operands.out_rshift
    # Scaling by the power of two first keeps all numbers exact.
    bound = 128 * sum(abs(factor) for factor in operands.factors) + (1 << operands.out_rshift)
    dtype = np.float32 if bound < EXACT_FLOAT32 else np.float64
    terms = [
        g.add("Mul", x if dtype is np.float32 else g.cast(x, dtype), np.array(factor * scale, dtype))
        for x, factor in zip(same_axes(g, xs, layer), operands.factors)
    ]
    total = g.add(op, *terms)
    if operands.out_rshift:
        total = g.add("Floor", g.add("Add", total, np.array(0.5, dtype)))
    total = g.clip(total, INT8_MIN, INT8_MAX, dtype)
    return total if dtype is np.float32 else g.cast(total, np.float32)


def same_axes(g: OnnxGraph, xs: Sequence[str], layer: LayerView) -> list[str]:
    """Inputs with the output's number of axes; a vector is taken as one number per channel."""
    ones = [1] * (len(layer.out_shape) - 1)
    return [
        x if len(shape) == len(layer.out_shape) else g.add("Reshape", x, np.array([0, shape[0], *ones]))
        for x, shape in zip(xs, layer.in_shapes)
    ]


def divide(g: OnnxGraph, total: str, count: np.ndarray) -> str:
    """Division that truncates toward zero, as in C; exact, since float32 holds integers below 2**24."""
    return g.cast(g.cast(g.add("Div", total, count.astype(np.float32)), np.int32), np.float32)


def window_sum(g: OnnxGraph, x: str, **windows: list[int]) -> str:
    """The sum over each zero-padded window; exact, since the mean's rounding error is far below 1 / cells."""
    cells = float(np.prod(windows["kernel_shape"]))
    mean = g.add("AveragePool", x, count_include_pad=1, **windows)
    return g.add("Round", g.add("Mul", mean, np.array(cells, np.float32)))
