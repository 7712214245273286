# SPDX-License-Identifier: Apache-2.0
"""Caffe's Reduction (reduction_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.along_axis import MOST_REDUCED, AlongAxis, AxisLoop, axis_of
from caffe_to_cmsis_nn.ops.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

MOST_REDUCTION_SHIFT = 46  # bits; product and rounding term fit into 64 bits


@dataclass(frozen=True)
class Ratio:
    """(sum * multiplier + rounding term) >> rshift, in 64 bits; the multiplier has 15 bits and a sign."""

    multiplier: int
    rshift: int

    @classmethod
    def fit(cls, factor: float) -> Ratio:
        """The nearest ratio to a factor."""
        if factor == 0:
            return cls(0, 1)
        rshift = min(max(14 - math.frexp(factor)[1] + 1, 1), MOST_REDUCTION_SHIFT)
        limit = (1 << 15) - 1
        return cls(min(max(round(math.ldexp(factor, rshift)), -limit), limit), rshift)


@dataclass(frozen=True, eq=False)
class Reduction(AlongAxis):
    """A reduction over all axes from `axis` on; the output has its own format."""

    caffe_type = "Reduction"
    own_format = True
    simulates_rounding = True

    coeff: float = 1.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.reduction_param
        return {"axis": axis_of(param, in_shapes[0]), "coeff": param.coeff}

    def check(self) -> None:
        super().check()
        if not math.isfinite(self.coeff):
            raise UnsupportedLayer(f"coeff {self.coeff:g}")
        if self.count >= MOST_REDUCED:
            raise UnsupportedLayer(f"{self.count} elements, allowed are fewer than {MOST_REDUCED}")

    @property
    def out_shape(self) -> Shape:
        return self.in_shape[: self.axis] or (1,)

    @property
    def count(self) -> int:
        """The number of elements that are reduced to one."""
        return math.prod(self.in_shape[self.axis :])

    @property
    def factor(self) -> float:
        return self.coeff

    def _terms(self, g: OnnxGraph, x: str) -> str:
        return x

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        flat = g.add("Reshape", xs[0], np.array([0, *self.out_shape, -1]))
        total = g.add("ReduceSum", self._terms(g, flat), np.array([-1]), keepdims=0)
        return g.add("Mul", total, np.array(self.factor, np.float32))

    def _input_bits(self, x: QFormat) -> int:
        return x.fraction_bits

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Ratio:
        assert formats.x and formats.y
        return Ratio.fit(math.ldexp(self.factor, formats.y.fraction_bits - self._input_bits(formats.x)))


class ReductionSum(Reduction):
    """SUM over all axes from `axis` on, times coeff."""

    variant = "SUM"


class ReductionMean(Reduction):
    """MEAN over these axes, times coeff."""

    variant = "MEAN"

    @property
    def factor(self) -> float:
        return self.coeff / self.count


class ReductionMagnitudes(Reduction):
    """ASUM, the sum of magnitudes over these axes, times coeff."""

    variant = "ASUM"

    def _terms(self, g: OnnxGraph, x: str) -> str:
        return g.add("Abs", x)


class ReductionSquares(Reduction):
    """SUMSQ, the sum of squares over these axes, times coeff."""

    variant = "SUMSQ"

    def _terms(self, g: OnnxGraph, x: str) -> str:
        return g.add("Mul", x, x)

    def _input_bits(self, x: QFormat) -> int:
        return 2 * x.fraction_bits


REDUCTIONS = (ReductionSum, ReductionMean, ReductionMagnitudes, ReductionSquares)


def reduction(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Reduction layer."""
    param = message.reduction_param
    operation = param.ReductionOp.Name(param.operation)
    return next(cls for cls in REDUCTIONS if cls.variant == operation)


@dataclass(frozen=True)
class OwnReduction(AxisLoop[Reduction, Ratio]):
    """The sum of elements, magnitudes or squares, times a ratio, rounded half up."""

    header = "reduction_q7"

    terms: str = "ELEMENTS"  # what to add up: an enumerator in reduction_q7.h

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Reduction, integers: Ratio, target: Target) -> str:
        flat = g.cast(g.add("Reshape", xs[0], np.array([0, *layer.out_shape, -1])), np.float64)
        added = {"MAGNITUDES": ("Abs", flat), "SQUARES": ("Mul", flat, flat)}.get(self.terms)
        terms = g.add(*added) if added else flat
        total = g.add("ReduceSum", terms, np.array([-1]), keepdims=0)
        scaled = g.add("Mul", total, np.array(math.ldexp(integers.multiplier, -integers.rshift)))
        return exact_onnx.saturate(g, g.cast(g.add("Floor", g.add("Add", scaled, np.array(0.5))), np.float32))

    def calls(self, layer: Reduction, c: CNames) -> list[Statement]:
        outputs, count = math.prod(layer.out_shape), math.prod(layer.in_shape) // math.prod(layer.out_shape)
        sums = (1, outputs, 0, count, 1)  # of adjacent elements
        if layer.axis and len(layer.in_shape) == 3:  # within a channel of an HWC image: elements lie apart
            channels = layer.in_shape[0]
            sums = (channels, outputs // channels, 1, count * channels, channels)
        ratio = (c.macro("MULTIPLIER"), c.macro("OUT_RSHIFT"))
        name = c.variable("out_sums")
        return [
            Declaration("const sums_t", name, (*map(str, (*sums[:2], count, *sums[2:])), self.terms)),
            Call(self.name, (c.input, f"&{name}", *ratio, c.output)),
        ]

    def defines(self, integers: Ratio) -> dict[str, int]:
        return {"MULTIPLIER": integers.multiplier, "OUT_RSHIFT": integers.rshift}


computed_by(ReductionSum, OwnReduction("reduce_q7"))
computed_by(ReductionMean, OwnReduction("reduce_q7"))
computed_by(ReductionMagnitudes, OwnReduction("reduce_q7", terms="MAGNITUDES"))
computed_by(ReductionSquares, OwnReduction("reduce_q7", terms="SQUARES"))

CLASSES = REDUCTIONS
CHOICES = {"Reduction": reduction}
