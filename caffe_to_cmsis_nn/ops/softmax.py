# SPDX-License-Identifier: Apache-2.0
"""Caffe's Softmax (softmax_layer.cpp), and the softmax that --softmax adds to a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_q7
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import (
    Array,
    RowForm,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.along_axis import AlongAxis, AxisLoop, axis_of
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, Weights, computed_by
from caffe_to_cmsis_nn.qformat import INT8_MAX, LayerFormats, QFormat
from caffe_to_cmsis_nn.target import OWN, Target

MOST_EXPONENTIAL_BITS = 23  # 128 times an exponential plus half of their sum fits into 32 bits


class Softmax(AlongAxis):
    """exp(x) / sum of exp along an axis, in 7 fraction bits; left out at the end of a network with one output."""

    caffe_type = "Softmax"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"axis": axis_of(message.softmax_param, in_shapes[0])}

    @property
    def keeps_order(self) -> bool:
        """Softmax does not change which class has the largest output."""
        return self.axis == 0

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Softmax", xs[0], axis=self.axis + 1)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Exponentials:
        assert formats.x
        return Exponentials.of(formats.x.fraction_bits, self.in_shape[self.axis])


class PowersSoftmax(Layer):
    """A softmax with powers of two instead of exponentials, after a classifier's logits (arm_softmax_q7)."""

    caffe_type = "Softmax"
    probabilities = True

    @property
    def out_shape(self) -> Shape:
        return (math.prod(self.in_shape),)

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)


@dataclass(frozen=True, eq=False)
class Exponentials:
    """Scaled exponentials of 0, -1, ... -255 in the input's format: uint32 (256,)."""

    table: np.ndarray

    @classmethod
    def of(cls, fraction_bits: int, count: int) -> Exponentials:
        """For inputs with these fraction bits; the sum of `count` exponentials fits into 31 bits."""
        bits = min(MOST_EXPONENTIAL_BITS, 31 - (count - 1).bit_length())
        return cls(np.rint(np.ldexp(np.exp(-np.ldexp(np.arange(256.0), -fraction_bits)), bits)).astype(np.uint32))


class OwnSoftmax(AxisLoop[Softmax, Exponentials]):
    """exp(x - largest) * 128 / sum of the exponentials, rounded half up."""

    header = "softmax_q7"
    promises_in_place = True

    def row_form(self, layer: Softmax, target: Target) -> RowForm | None:
        """Along channels only: a row holds all channels of its cells."""
        return RowForm(self) if layer.axis == 0 else None

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Softmax, integers: Exponentials, target: Target) -> str:
        axis = layer.axis + 1
        below = g.add("Sub", g.add("ReduceMax", xs[0], axes=[axis], keepdims=1), xs[0])
        powers = g.add("Gather", integers.table.astype(np.float64), g.cast(below, np.int64))
        total = g.add("ReduceSum", powers, np.array([axis]), keepdims=1)
        half = g.add("Floor", g.add("Mul", total, np.array(0.5)))
        quotient = g.add("Div", g.add("Add", g.add("Mul", powers, np.array(128.0)), half), total)
        return g.cast(g.clip(g.add("Floor", quotient), 0, INT8_MAX, np.float64), np.float32)

    def calls(self, layer: Softmax, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, *self._lines(layer, c), c.variable("table"), c.output))]

    def arrays(self, layer: Softmax, integers: Exponentials, c: CNames) -> list[Array]:
        return [Array(f"{c.prefix}_TABLE", c.variable("table"), "uint32_t", integers.table)]


class OwnPowersSoftmax(OwnLoop[LayerView, object], cmsis_q7.Softmax):
    """The same results as arm_softmax_q7."""

    header = "softmax_q7"
    libraries = (OWN,)
    promises_in_place = True

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return True


computed_by(Softmax, OwnSoftmax("softmax_along_q7"))


computed_by(PowersSoftmax, cmsis_q7.Softmax("arm_softmax_q7", (needs.short_vector,)), OwnPowersSoftmax("softmax_q7"))

CLASSES = (Softmax,)
