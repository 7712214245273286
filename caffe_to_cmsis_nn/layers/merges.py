# SPDX-License-Identifier: Apache-2.0
"""Layers that make one blob of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.kernels.base import Operands
from caffe_to_cmsis_nn.kernels.exact_onnx import same_axes
from caffe_to_cmsis_nn.kernels.own_loops import (
    MOST_ALIGNMENT,
    MOST_MERGED_RSHIFT,
    MOST_OPERANDS,
    MOST_PRODUCT_LSHIFT,
    Rescalings,
    Shift,
    rescaling,
)
from caffe_to_cmsis_nn.layers.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.layers.moves import axis_of
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import MOST_FRACTION_BITS, LayerFormats, QFormat


class _Merge(Layer):
    own_format = True
    floors = True
    any_rank = True
    most_inputs: ClassVar[int] = MOST_OPERANDS

    def check(self) -> None:
        if len(self.in_shapes) < 2:
            raise UnsupportedLayer(f"it has {len(self.in_shapes)} input, allowed are 2 or more")
        if len({*map(self._common, self.in_shapes)}) > 1:
            raise UnsupportedLayer(f"its inputs have different shapes: {', '.join(map(str, self.in_shapes))}")

    def _common(self, shape: Shape) -> Shape:
        """What all inputs have in common; images of one pixel are vectors, too."""
        return shape[:1] if shape[1:] == (1, 1) else shape


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
            raise UnsupportedLayer(f"coefficients {coefficients}, allowed is one for each of {len(in_shapes)} inputs")
        return {"negative": tuple(c < 0 for c in coefficients)}

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        xs = same_axes(g, xs, self)
        return g.add("Sum", *(g.add("Neg", x) if negative else x for x, negative in zip(xs, self.negative)))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, self.negative)


@computed_by(registry.WEIGHTED_SUM)
@dataclass(frozen=True, eq=False)
class WeightedSum(_Eltwise):
    """SUM with coefficients: of the inputs, each times a number."""

    variant = "SUM with coefficients"

    coefficients: tuple[float, ...] = ()

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"coefficients": tuple(message.eltwise_param.coeff)}

    def check(self) -> None:
        super().check()
        if len(self.coefficients) != len(self.in_shapes) or not all(map(math.isfinite, self.coefficients)):
            raise UnsupportedLayer(f"coefficients {[*self.coefficients]}, allowed is one number for each input")

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        terms = (g.add("Mul", x, np.array(c, np.float32)) for x, c in zip(same_axes(g, xs, self), self.coefficients))
        return g.add("Sum", *terms)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        assert formats.y
        return Operands.weigh([x.fraction_bits for x in formats.inputs], self.coefficients, formats.y.fraction_bits)


@computed_by(registry.MAXIMUM)
class Maximum(_Eltwise):
    """MAX: the largest of the inputs."""

    variant = "MAX"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if message.eltwise_param.coeff:
            raise UnsupportedLayer("coefficients are for SUM only")
        return {}

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Max", *same_axes(g, xs, self))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, [False] * len(self.in_shapes))


class _Product(_Eltwise):
    most_inputs = 2

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        return -MOST_FRACTION_BITS, MOST_FRACTION_BITS

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """Products, which have the fraction bits of both, are shifted so many bits at most."""
        own = sum(x.fraction_bits for x in xs)
        return own - MOST_MERGED_RSHIFT, own + MOST_PRODUCT_LSHIFT

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Mul", *same_axes(g, xs, self))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Shift:
        assert formats.y
        return sum(x.fraction_bits for x in formats.inputs) - formats.y.fraction_bits


@computed_by(registry.PRODUCT)
class Product(_Product):
    """PROD: the product of two inputs."""

    variant = "PROD"


class _ByInput(_Eltwise):
    """With a blob of the same shape, or with a vector of one number for each channel."""

    variant = "two inputs"
    elementwise = False
    most_inputs = 2

    @staticmethod
    def _axis(param: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if param.axis not in (0, -1 - len(in_shapes[0])):
            raise UnsupportedLayer(f"axis {param.axis} with two inputs, allowed is 0")
        return {}

    def check(self) -> None:
        first, second = (*self.in_shapes, ())[:2]
        if len(self.in_shapes) != 2 or second not in (first, first[:1], (*first[:1], 1, 1)):
            shapes = ", ".join(map(str, self.in_shapes))
            raise UnsupportedLayer(
                f"inputs of shapes {shapes}: the second may be as the first, or have a number per channel"
            )


@computed_by(registry.PRODUCT)
class ScaleByInput(_ByInput, _Product):
    """Of two inputs: the product with a blob of the same shape, or with a vector of one number for each channel."""

    caffe_type = "Scale"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if message.scale_param.bias_term:
            raise UnsupportedLayer("bias_term with two inputs")
        return cls._axis(message.scale_param, in_shapes)


@computed_by(registry.SUM_BY_INPUT)
class BiasByInput(_ByInput):
    """Of two inputs: the sum with a blob of the same shape, or with a vector of one number for each channel."""

    caffe_type = "Bias"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return cls._axis(message.bias_param, in_shapes)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Add", *same_axes(g, xs, self))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, (False, False))


def eltwise(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of an Eltwise layer."""
    param = message.eltwise_param
    if param.operation == param.PROD:
        return Product
    return Maximum if param.operation == param.MAX else WeightedSum if {*param.coeff} - {1, -1} else Sum


@computed_by(registry.CONCAT)
@dataclass(frozen=True, eq=False)
class Concat(_Merge):
    """The inputs one after the other along an axis."""

    caffe_type = "Concat"

    axis: int = 0  # without the batch's

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.concat_param
        return {"axis": axis_of(param, in_shapes[0], "concat_dim" if param.HasField("concat_dim") else "axis")}

    def check(self) -> None:
        if self.axis >= min(map(len, self.in_shapes)):
            raise UnsupportedLayer(
                f"axis {self.axis + 1}, its inputs have shapes {', '.join(map(str, self.in_shapes))}"
            )
        super().check()

    def _common(self, shape: Shape) -> Shape:
        """All but the extents along the axis."""
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
