# SPDX-License-Identifier: Apache-2.0
"""Caffe's Eltwise, and Scale and Bias with two inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_s8, exact_onnx
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import (
    Operands,
    RowForm,
    Work,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.kernels.exact_onnx import same_axes
from caffe_to_cmsis_nn.kernels.instructions import elements
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.qformat import MOST_FRACTION_BITS, LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

Shift = int  # to the right (bits), may be negative
LIMITED = ("SIZE", "OUT_RSHIFT", "ACT_MIN", "ACT_MAX")
MOST_ALIGNMENT = 16  # left shift of operands, bits
MOST_MERGED_RSHIFT = 20  # right shift from the finest operand to the output, bits
MOST_PRODUCT_LSHIFT = 16  # left shift of products, bits; they have 15 bits and a sign
MOST_OPERANDS = 128  # their sum, of at most 128 << 16 each plus the rounding term, fits into 32 bits


class Merged(Layer):
    own_format = True
    simulates_rounding = True
    any_rank = True
    most_inputs: ClassVar[int] = MOST_OPERANDS

    def check(self) -> None:
        if len(self.in_shapes) < 2:
            raise UnsupportedLayer(f"it has {len(self.in_shapes)} input, allowed are 2 or more")
        if len({*map(self._common, self.in_shapes)}) > 1:
            raise UnsupportedLayer(f"its inputs have different shapes: {', '.join(map(str, self.in_shapes))}")

    def _common(self, shape: Shape) -> Shape:
        """The shape that all inputs must share; an image of one pixel counts as a vector."""
        return shape[:1] if shape[1:] == (1, 1) else shape


class _Eltwise(Merged):
    caffe_type = "Eltwise"
    elementwise = True

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """n_x - n_coarsest <= 16, the most bits of a factor, since all inputs are brought to the finest format."""
        return -MOST_FRACTION_BITS, min(xs).fraction_bits + MOST_ALIGNMENT

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """out_rshift = n_finest - n_y <= 20, and n_y - n_coarsest <= 16 as for inputs."""
        return max(xs).fraction_bits - MOST_MERGED_RSHIFT, min(xs).fraction_bits + MOST_ALIGNMENT

    def _operands(self, formats: LayerFormats, negative: Sequence[bool]) -> Operands:
        assert formats.y
        return Operands.align([x.fraction_bits for x in formats.inputs], negative, formats.y.fraction_bits)

    def defines(self) -> dict[str, int]:
        return {"SIZE": self.out_size}


@dataclass(frozen=True, eq=False)
class Sum(_Eltwise):
    """SUM with coefficients 1 or -1."""

    variant = "SUM"

    negative: tuple[bool, ...] = ()

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        coefficients = list(message.eltwise_param.coeff) or [1.0] * len(in_shapes)
        if len(coefficients) != len(in_shapes) or not set(coefficients) <= {1.0, -1.0}:
            raise UnsupportedLayer(f"coefficients {coefficients}, allowed is one for each of {len(in_shapes)} inputs")
        return {"negative": tuple(c < 0 for c in coefficients)}

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        xs = same_axes(g, xs, self)
        return g.add("Sum", *(g.add("Neg", x) if negative else x for x, negative in zip(xs, self.negative)))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Operands:
        return self._operands(formats, self.negative)


@dataclass(frozen=True, eq=False)
class WeightedSum(_Eltwise):
    """SUM with any coefficients."""

    variant = "SUM with coefficients"

    coefficients: tuple[float, ...] = ()

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
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


class Maximum(_Eltwise):
    """MAX of the inputs."""

    variant = "MAX"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
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
        """A product has the fraction bits of both inputs together; limits its shift to the output's format."""
        own = sum(x.fraction_bits for x in xs)
        return own - MOST_MERGED_RSHIFT, own + MOST_PRODUCT_LSHIFT

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Mul", *same_axes(g, xs, self))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Shift:
        assert formats.y
        return sum(x.fraction_bits for x in formats.inputs) - formats.y.fraction_bits


class Product(_Product):
    """PROD of two inputs."""

    variant = "PROD"


class _ByInput(_Eltwise):
    """A layer with a second input of the same shape, or a vector with one number per channel."""

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
                f"inputs of shapes {shapes}: the second must have the first one's shape, or one number per channel"
            )


class ScaleByInput(_ByInput, _Product):
    """With two inputs: the product with a blob of the same shape, or with one number per channel."""

    caffe_type = "Scale"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if message.scale_param.bias_term:
            raise UnsupportedLayer("bias_term with two inputs")
        return cls._axis(message.scale_param, in_shapes)


class BiasByInput(_ByInput):
    """With two inputs: the sum with a blob of the same shape, or with one number per channel."""

    caffe_type = "Bias"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
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


@dataclass(frozen=True)
class OwnMerge(OwnLoop[LayerView, Operands]):
    """clamp((f(factor * x, ...) + rounding term) >> out_rshift), where f is the sum or the maximum."""

    header = "eltwise_q7"
    promises_in_place = True
    limits = True

    op: str = "Sum"
    computes_rows = True

    def work(self, layer: LayerView) -> Work | None:
        return {"merged element": elements(layer) * len(layer.in_shapes)}

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Operands, target: Target) -> str:
        return exact_onnx.merge(g, xs, layer, integers, self.op)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        operands = tuple((x, c.macro(f"FACTOR_{i}")) for i, x in enumerate(c.inputs, 1))
        name = c.variable("out_operands")
        return [
            Declaration("const operand_t", f"{name}[]", operands),
            Call(self.name, (name, str(len(operands)), *map(c.macro, LIMITED), c.output)),
        ]

    def defines(self, integers: Operands) -> dict[str, int]:
        return {**{f"FACTOR_{i}": f for i, f in enumerate(integers.factors, 1)}, "OUT_RSHIFT": integers.out_rshift}


class OwnChannelSum(OwnMerge):
    """The sum of two inputs; the second may be a vector with one number per channel."""

    def row_form(self, layer: LayerView, target: Target) -> RowForm | None:
        """A vector has no rows."""
        return RowForm(self) if layer.in_shapes[0] == layer.in_shapes[1] else None

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return layer.in_shapes[0] == layer.in_shapes[1]

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        operands, call = super().calls(layer, c)
        assert isinstance(call, Call)
        name, _, size, *limits = call.arguments
        return [operands, replace(call, arguments=(name, size, _second_size(layer, size), *limits))]


def _second_size(layer: LayerView, size: str) -> str:
    """The number of elements in the second input, which may be a vector."""
    return size if layer.in_shapes[0] == layer.in_shapes[1] else str(layer.out_shape[0])


class OwnProduct(OwnLoop[LayerView, Shift]):
    """x * y, shifted; the second input may be a vector with one number per channel."""

    header = "eltwise_q7"

    def row_form(self, layer: LayerView, target: Target) -> RowForm | None:
        """A vector has no rows."""
        return RowForm(self) if layer.in_shapes[0] == layer.in_shapes[1] else None

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return layer.in_shapes[0] == layer.in_shapes[1]

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Shift, target: Target) -> str:
        """Exact in float32, since products have 15 bits."""
        total = g.add("Mul", *exact_onnx.same_axes(g, xs, layer))
        total = g.add("Mul", total, np.array(2.0**-integers, np.float32))
        half = np.array(0.5 if integers > 0 else 0, np.float32)
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", total, half)))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        size = c.macro("SIZE")
        shifts = (c.macro("OUT_LSHIFT"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (*c.inputs, size, _second_size(layer, size), *shifts, c.output))]

    def defines(self, integers: Shift) -> dict[str, int]:
        return {"OUT_LSHIFT": max(-integers, 0), "OUT_RSHIFT": max(integers, 0)}


def plain_sum_of_two(layer: Sum, target: Target) -> bool:
    """two inputs with coefficient 1"""
    return layer.negative in ((), (False, False)) and len(layer.in_shapes) == 2


computed_by(Sum, cmsis_s8.Add("arm_elementwise_add_s8", (plain_sum_of_two, needs.vector_core)), OwnMerge("add_q7"))
computed_by(WeightedSum, OwnMerge("add_q7"))
computed_by(Maximum, OwnMerge("max_q7", op="Max"))
computed_by(BiasByInput, OwnChannelSum("add_channels_q7"))
computed_by(_Product, OwnProduct("multiply_q7"))

CLASSES = (Sum, WeightedSum, Maximum, Product, ScaleByInput, BiasByInput)
CHOICES = {"Eltwise": eltwise}
