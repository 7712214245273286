# SPDX-License-Identifier: Apache-2.0
"""Our own loop that makes an image larger or smaller: each element lies between four of the input's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from q7.kernels.call import Call, CNames, Statement
from q7.kernels.contract import LayerView
from q7.kernels.own_loops import OwnLoop
from q7.onnx_graph import OnnxGraph
from q7.target import Target

PARTS = 2048  # of the way from one element to the next: products of 8 bits with two of these stay within 32


def places(size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each output's cell: the input's cell before it, and how many of the last number's steps it lies behind that.

    The first and last cells of both are at the same places (DeepLab's interp_layer.cpp).
    """
    steps = max(out_size - 1, 1)
    way = np.arange(out_size) * (size - 1) if out_size > 1 else np.zeros(1, np.int64)
    return way // steps, way % steps, steps


def matrix(size: int, cells: np.ndarray, parts: np.ndarray, whole: float) -> np.ndarray:
    """(out_size, size) weights, float64, each row's sum `whole`: those of a cell and of the next one."""
    weights = np.zeros((len(cells), size))
    rows = np.arange(len(cells))
    weights[rows, cells] = whole - parts
    weights[rows, np.minimum(cells + 1, size - 1)] += parts
    return weights


class Bilinear(OwnLoop[LayerView, object]):
    """Along both axes the weighted mean of two elements; weights are rounded to 2048ths, the result once, half up."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: object, target: Target) -> str:
        total = g.cast(xs[0], np.float64)
        (_, height, width), (_, out_height, out_width) = layer.in_shape, layer.out_shape
        total = g.add("MatMul", _parts(height, out_height), total)
        total = g.add("MatMul", total, _parts(width, out_width).T)
        total = g.add("Add", g.add("Mul", total, np.array(PARTS**-2.0)), np.array(0.5))
        return g.cast(g.add("Floor", total), np.float32)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        channels, *size = map(str, layer.in_shape)
        return [Call(self.name, (c.input, *size, channels, *map(str, layer.out_shape[1:]), c.output))]


def _parts(size: int, out_size: int) -> np.ndarray:
    cells, way, steps = places(size, out_size)
    return matrix(size, cells, (way * PARTS + steps // 2) // steps, PARTS)
