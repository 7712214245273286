# SPDX-License-Identifier: Apache-2.0
"""Layers that go along one axis of a blob, or over all axes from one on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.kernels.along_axis import MOST_PLACES, MOST_REDUCED, Exponentials, Ratio, largest
from caffe_to_cmsis_nn.layers.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.layers.moves import axis_of
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import INT8_MAX, LayerFormats, QFormat


@dataclass(frozen=True, eq=False)
class _Along(Layer):
    any_rank = True

    axis: int = 0  # without the batch's

    def check(self) -> None:
        if self.axis >= len(self.in_shape):
            raise UnsupportedLayer(f"axis {self.axis + 1}, its input has shape {self.in_shape}")


@computed_by(registry.SOFTMAX)
class Softmax(_Along):
    """exp(x) / sum of exp along an axis, in 7 fraction bits; at the end of a network with one output it is left out."""

    caffe_type = "Softmax"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"axis": axis_of(message.softmax_param, in_shapes[0])}

    @property
    def keeps_order(self) -> bool:
        """It does not change which class is the largest."""
        return self.axis == 0

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Softmax", xs[0], axis=self.axis + 1)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Exponentials:
        assert formats.x
        return Exponentials.of(formats.x.fraction_bits, self.in_shape[self.axis])


@computed_by(registry.LARGEST)
@dataclass(frozen=True, eq=False)
class ArgMax(_Along):
    """The places of the top_k largest along an axis, integers up to 127, or with out_max_val their values.

    Of equal ones, the last comes first.
    """

    caffe_type = "ArgMax"

    top_k: int = 1
    out_max_val: bool = False

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
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


@dataclass(frozen=True, eq=False)
class Reduction(_Along):
    """Over all axes from one on; the output has a format of its own."""

    caffe_type = "Reduction"
    own_format = True
    floors = True

    coeff: float = 1.0

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
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
        """Elements that make one."""
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


@computed_by(registry.SUM_ALONG)
class ReductionSum(Reduction):
    """SUM: the sum of all axes from one on, times coeff."""

    variant = "SUM"


@computed_by(registry.SUM_ALONG)
class ReductionMean(Reduction):
    """MEAN: their mean, times coeff."""

    variant = "MEAN"

    @property
    def factor(self) -> float:
        return self.coeff / self.count


@computed_by(registry.SUM_OF_MAGNITUDES)
class ReductionMagnitudes(Reduction):
    """ASUM: the sum of their magnitudes, times coeff."""

    variant = "ASUM"

    def _terms(self, g: OnnxGraph, x: str) -> str:
        return g.add("Abs", x)


@computed_by(registry.SUM_OF_SQUARES)
class ReductionSquares(Reduction):
    """SUMSQ: the sum of their squares, times coeff."""

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


CLASSES = (Softmax, ArgMax, *REDUCTIONS)
