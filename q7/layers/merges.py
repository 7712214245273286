# SPDX-License-Identifier: Apache-2.0
"""Layers that make one blob of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from q7.kernels import registry
from q7.kernels.base import Operands
from q7.kernels.exact_onnx import same_axes
from q7.kernels.own_loops import MOST_ALIGNMENT, MOST_MERGED_RSHIFT, MOST_OPERANDS, Rescalings, rescaling
from q7.layers.base import Declined, Layer, Shape, Weights, computed_by
from q7.onnx_graph import OnnxGraph
from q7.qformat import MOST_FRACTION_BITS, LayerFormats, QFormat


class _Merge(Layer):
    own_format = True
    floors = True
    most_inputs: ClassVar[int] = MOST_OPERANDS
    any_channels: ClassVar[bool] = False  # the inputs may differ in their number

    def check(self) -> None:
        if len(self.in_shapes) < 2:
            raise Declined(f"it has {len(self.in_shapes)} input, allowed are 2 or more")
        vectors = [shape[:1] if shape[1:] == (1, 1) else shape for shape in self.in_shapes]  # images of one pixel, too
        if len({shape[self.any_channels :] for shape in vectors}) > 1:
            what = "sizes" if self.any_channels else "shapes"
            raise Declined(f"its inputs have different {what}: {', '.join(map(str, self.in_shapes))}")


class _Eltwise(_Merge):
    caffe_type = "Eltwise"
    elementwise = True

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """n_x - n_coarsest <= 16, the largest factor's bits: all inputs are brought to the finest format."""
        return -MOST_FRACTION_BITS, min(xs).fraction_bits + MOST_ALIGNMENT

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """out_rshift = n_finest - n_y <= 20, and n_y - n_coarsest <= 16 as for inputs."""
        return max(xs).fraction_bits - MOST_MERGED_RSHIFT, min(xs).fraction_bits + MOST_ALIGNMENT

    def _operands(self, formats: LayerFormats, negative: Sequence[bool]) -> Operands:
        assert formats.y
        return Operands.align([x.fraction_bits for x in formats.inputs], negative, formats.y.fraction_bits)

    def defines(self) -> dict[str, int]:
        return {"SIZE": self.out_size}


@computed_by(registry.SUM)
@dataclass(frozen=True, eq=False)
class Sum(_Eltwise):
    """SUM: the sum of the inputs, each with coefficient 1 or -1."""

    variant = "SUM"

    negative: tuple[bool, ...] = ()

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        coefficients = list(message.eltwise_param.coeff) or [1.0] * len(in_shapes)
        if len(coefficients) != len(in_shapes) or not set(coefficients) <= {1.0, -1.0}:
            raise Declined(f"coefficients {coefficients}, allowed is 1 or -1 for each of {len(in_shapes)} inputs")
        return {"negative": tuple(c < 0 for c in coefficients)}

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        xs = same_axes(g, xs, self)
        return g.add("Sum", *(g.add("Neg", x) if negative else x for x, negative in zip(xs, self.negative)))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, self.negative)


@computed_by(registry.MAXIMUM)
class Maximum(_Eltwise):
    """MAX: the largest of the inputs."""

    variant = "MAX"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if message.eltwise_param.coeff:
            raise Declined("coefficients are for SUM only")
        return {}

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Max", *same_axes(g, xs, self))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, [False] * len(self.in_shapes))


def eltwise(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of an Eltwise layer."""
    param = message.eltwise_param
    if param.operation == param.PROD:
        raise Declined("operation PROD, allowed are SUM and MAX")
    return Maximum if param.operation == param.MAX else Sum


@computed_by(registry.CONCAT)
class Concat(_Merge):
    """Caffe's Concat over channels."""

    caffe_type = "Concat"
    any_channels = True

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.concat_param
        axis = param.concat_dim if param.HasField("concat_dim") else param.axis
        if axis not in (1, -len(in_shapes[0])):
            raise Declined(f"axis {axis}, allowed is 1")
        return {}

    @property
    def out_shape(self) -> Shape:
        return sum(shape[0] for shape in self.in_shapes), *self.in_shape[1:]

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Concat", *same_axes(g, xs, self), axis=1)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Rescalings:
        assert formats.y
        return tuple(rescaling(x.fraction_bits - formats.y.fraction_bits) for x in formats.inputs)

    def defines(self) -> dict[str, int]:
        return {"OUT_CH": self.out_shape[0], "PIXELS": math.prod(self.out_shape[1:])}
