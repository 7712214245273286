# SPDX-License-Identifier: Apache-2.0
"""Caffe's Concat (concat_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import RowForm
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.exact_onnx import same_axes
from caffe_to_cmsis_nn.kernels.layout import lines
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.along_axis import axis_of
from caffe_to_cmsis_nn.ops.base import OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.eltwise import Merged
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.target import Target

Rescalings = tuple[int, ...]  # the right shift of each input, bits
MOST_RESCALING = 8  # bits; larger shifts of an int8 have the same result


@dataclass(frozen=True, eq=False)
class Concat(Merged):
    """Concatenates the inputs along an axis."""

    caffe_type = "Concat"

    axis: int = 0  # not counting the batch axis

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.concat_param
        return {"axis": axis_of(param, in_shapes[0], "concat_dim" if param.HasField("concat_dim") else "axis")}

    def check(self) -> None:
        if self.axis >= min(map(len, self.in_shapes)):
            raise UnsupportedLayer(
                f"axis {self.axis + 1}, its inputs have shapes {', '.join(map(str, self.in_shapes))}"
            )
        super().check()

    def _common(self, shape: Shape) -> Shape:
        """The shape without the extent along the axis."""
        known = super()._common(shape) if self.axis == 0 else shape
        return (*known[: self.axis], 0, *known[self.axis + 1 :])

    @property
    def out_shape(self) -> Shape:
        first = self.in_shape
        return *first[: self.axis], sum(shape[self.axis] for shape in self.in_shapes), *first[self.axis + 1 :]

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Concat", *same_axes(g, xs, self), axis=self.axis + 1)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Rescalings:
        assert formats.y
        return tuple(rescaling(x.fraction_bits - formats.y.fraction_bits) for x in formats.inputs)

    def defines(self) -> dict[str, int]:
        if self.axis or len(self.out_shape) == 2:
            return {}
        return {"OUT_CH": self.out_shape[0], "PIXELS": math.prod(self.out_shape[1:])}


def rescaling(rshift: int) -> int:
    """An equivalent right shift of an int8 that is valid in C (bits; negative values shift left)."""
    return min(max(rshift, -MOST_RESCALING), MOST_RESCALING)


class OwnConcat(OwnLoop[Concat, Rescalings]):
    """Copies each input, shifted to the output's format and saturated, to its channels of every pixel.

    Along another axis, it copies stretches of memory instead of channels.
    """

    header = "concat_q7"

    def row_form(self, layer: Concat, target: Target) -> RowForm | None:
        """Along channels only: a row holds all channels of its cells."""
        return RowForm(self) if layer.axis == 0 else None

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Concat, integers: Rescalings, target: Target) -> str:
        parts = []
        for x, rshift in zip(exact_onnx.same_axes(g, xs, layer), integers):
            scaled = g.add("Mul", x, np.array(2.0**-rshift, np.float32))
            half = np.array(0.5 if rshift > 0 else 0, np.float32)
            parts.append(exact_onnx.saturate(g, g.add("Floor", g.add("Add", scaled, half))))
        return g.add("Concat", *parts, axis=layer.axis + 1)

    def calls(self, layer: Concat, c: CNames) -> list[Statement]:
        calls: list[Statement] = []
        offset = 0
        stretches, whole, distance = lines(layer.out_shape, layer.axis)
        outer, length = str(stretches), str(whole * distance)
        if layer.axis == 0 and len(layer.out_shape) != 2:
            outer, length = c.macro("PIXELS"), c.macro("OUT_CH")
        for i, (x, shape) in enumerate(zip(c.inputs, layer.in_shapes), 1):
            part = shape[layer.axis] * distance
            source = (x, outer, str(part), c.macro(f"RSHIFT_{i}"))
            calls.append(Call(self.name, (*source, f"{c.output} + {offset}", length)))
            offset += part
        return calls

    def defines(self, integers: Rescalings) -> dict[str, int]:
        return {f"RSHIFT_{i}": rshift for i, rshift in enumerate(integers, 1)}


computed_by(Concat, OwnConcat("concat_q7"))

CLASSES = (Concat,)
