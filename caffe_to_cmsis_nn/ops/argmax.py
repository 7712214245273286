# SPDX-License-Identifier: Apache-2.0
"""Caffe's ArgMax (argmax_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.along_axis import AlongAxis, AxisLoop, axis_of
from caffe_to_cmsis_nn.ops.base import Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.qformat import INT8_MAX, QFormat
from caffe_to_cmsis_nn.target import Target

MOST_PLACES = 1 << 16  # a place and an 8-bit value fit into 32 bits


@dataclass(frozen=True, eq=False)
class ArgMax(AlongAxis):
    """The indices (at most 127) of the top_k largest elements along an axis, or with out_max_val their values.

    Of equal elements, the last comes first.
    """

    caffe_type = "ArgMax"

    top_k: int = 1
    out_max_val: bool = False

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param, shape = message.argmax_param, in_shapes[0]
        if not param.HasField("axis") and (math.prod(shape) > shape[0] or param.out_max_val):
            raise UnsupportedLayer(f"no axis with out_max_val {param.out_max_val} and an input of shape {shape}")
        axis = axis_of(param, shape) if param.HasField("axis") else 0
        return {"axis": axis, "top_k": param.top_k, "out_max_val": param.out_max_val}

    def check(self) -> None:
        super().check()
        places, most = self.in_shape[self.axis], MOST_PLACES if self.out_max_val else INT8_MAX + 1
        if places > most:
            raise UnsupportedLayer(f"axis {self.axis + 1} has {places} places, allowed are {most}")
        if not 1 <= self.top_k <= places:
            raise UnsupportedLayer(f"top_k {self.top_k}, allowed are 1 to {places}")

    @property
    def out_shape(self) -> Shape:
        return tuple(self.top_k if axis == self.axis else extent for axis, extent in enumerate(self.in_shape))

    def inherited(self, x: QFormat) -> QFormat:
        return x if self.out_max_val else QFormat(0)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return largest(g, xs[0], self)


def largest(g: OnnxGraph, x: str, layer: ArgMax) -> str:
    """ArgMax of a blob in Caffe's order; reverses the axis, since ONNX's TopK prefers the first of equal elements."""
    axis, count = layer.axis + 1, layer.in_shape[layer.axis]
    backwards = g.add("Gather", x, np.arange(count)[::-1], axis=axis)
    values, places = g.add_all(2, "TopK", backwards, np.array([layer.top_k]), axis=axis)
    return values if layer.out_max_val else g.cast(g.add("Sub", np.array(count - 1), places), np.float32)


class OwnArgMax(AxisLoop[ArgMax, object]):
    """The largest elements or their indices, the largest first; of equal ones, the last comes first, as in Caffe."""

    header = "argmax_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: ArgMax, integers: object, target: Target) -> str:
        return largest(g, xs[0], layer)

    def calls(self, layer: ArgMax, c: CNames) -> list[Statement]:
        what = "VALUES" if layer.out_max_val else "PLACES"
        return [Call(self.name, (c.input, *self._lines(layer, c), str(layer.top_k), what, c.output))]


computed_by(ArgMax, OwnArgMax("largest_along_q7"))

CLASSES = (ArgMax,)
