# SPDX-License-Identifier: Apache-2.0
"""Our own loop that makes an image larger or smaller: each element lies between four of the input's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.kernels.own_loops import OwnLoop
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.target import Target

PARTS = 2048  # of the way from one element to the next: products of 8 bits with two of these stay within 32


def between(size: int, out_size: int, parts: int = 0) -> np.ndarray:
    """Weights (out_size, size), float64, of the two inputs that each output lies between; each row's sum is 1.

    With `parts` they are integers, rounded half up, whose sum that is. The first and last cells of input and output are
    at the same places (DeepLab's interp_layer.cpp).
    """
    steps = max(out_size - 1, 1)
    cells, way = np.divmod(np.arange(out_size) * (size - 1) if out_size > 1 else np.zeros(1, np.int64), steps)
    next_one = (way * parts + steps // 2) // steps if parts else way / steps
    found, rows = np.zeros((out_size, size)), np.arange(out_size)
    found[rows, cells] = (parts or 1) - next_one
    found[rows, np.minimum(cells + 1, size - 1)] += next_one
    return found


class Bilinear(OwnLoop[LayerView, object]):
    """Along both axes the weighted mean of two elements; weights are rounded to 2048ths, the result once, half up."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: object, target: Target) -> str:
        total = g.cast(xs[0], np.float64)
        (_, height, width), (_, out_height, out_width) = layer.in_shape, layer.out_shape
        total = g.add("MatMul", between(height, out_height, PARTS), total)
        total = g.add("MatMul", total, between(width, out_width, PARTS).T)
        total = g.add("Add", g.add("Mul", total, np.array(PARTS**-2.0)), np.array(0.5))
        return g.cast(g.add("Floor", total), np.float32)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        channels, *size = map(str, layer.in_shape)
        return [Call(self.name, (c.input, *size, channels, *map(str, layer.out_shape[1:]), c.output))]
