# SPDX-License-Identifier: Apache-2.0
"""Caffe's ReLU, Clip, Sigmoid and TanH, and ReLU6 from branches of Caffe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_q7
from caffe_to_cmsis_nn.kernels.base import (
    Bounds,
    IntWidth,
    Work,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.kernels.instructions import elements
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops import functions
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.elementwise import Elementwise, Lookup
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, LayerFormats, QFormat
from caffe_to_cmsis_nn.target import OWN, S8, Target

Slope = float  # the factor of negative inputs


class ReLU(Elementwise):
    """max(x, 0)."""

    caffe_type = "ReLU"
    op = "Relu"
    homogeneous = True


@dataclass(frozen=True, eq=False)
class LeakyReLU(Elementwise):
    """With a negative_slope: max(x, 0) + negative_slope * min(x, 0)."""

    caffe_type = "ReLU"
    variant = "leaky"
    simulates_rounding = True
    homogeneous = True

    negative_slope: float = 0.01

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"negative_slope": message.relu_param.negative_slope}

    def check(self) -> None:
        if not 0 < abs(self.negative_slope) <= 1:
            raise UnsupportedLayer(
                f"negative_slope {self.negative_slope:g}, allowed are -1 to 1, since the output has the input's format"
            )

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("LeakyRelu", xs[0], alpha=self.negative_slope)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Slope:
        return self.negative_slope


def relu(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a ReLU layer."""
    slope = message.relu_param.negative_slope
    return functions.SteepReLU if abs(slope) > 1 else LeakyReLU if slope else ReLU


@dataclass(frozen=True, eq=False)
class Clip(Elementwise):
    """max(low, min(x, high))."""

    caffe_type = "Clip"

    low: float = 0.0
    high: float = 6.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"low": message.clip_param.min, "high": message.clip_param.max}

    def check(self) -> None:
        if not self.low < self.high:
            raise UnsupportedLayer(f"min {self.low:g} must be below max {self.high:g}")

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.clip(xs[0], self.low, self.high)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Bounds:
        assert formats.x
        bounds = np.rint(formats.x.scaled(np.array([self.low, self.high])))
        low, high = np.clip(bounds, INT8_MIN, INT8_MAX).astype(int).tolist()
        return Bounds(low, high)


class ReLU6(Clip):
    """max(0, min(x, 6)); from branches of Caffe."""

    caffe_type = "ReLU6"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {}


class _Curve(Elementwise):
    simulates_rounding = True

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """int_width = 7 - n_x is 0 to 3 (arm_nn_activations_q7.c)."""
        return 4, 7

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> IntWidth:
        assert formats.x
        return formats.x.integer_bits


class Sigmoid(_Curve):
    """1 / (1 + exp(-x))."""

    caffe_type = "Sigmoid"
    op = "Sigmoid"


class TanH(_Curve):
    """tanh(x)."""

    caffe_type = "TanH"
    op = "Tanh"


class OwnClip(OwnLoop[LayerView, Bounds]):
    """max(low, min(x, high))."""

    header = "clip_q7"
    promises_in_place = True
    computes_rows = True

    def work(self, layer: LayerView) -> Work | None:
        return {"clip_q7": elements(layer)}

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Bounds, target: Target) -> str:
        return g.clip(xs[0], integers.low, integers.high)

    def bounds(self, integers: Bounds) -> Bounds:
        return integers

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        size = c.elements(layer.out_shape)
        return [Call(self.name, (c.input, size, c.macro("LOW"), c.macro("HIGH"), c.output))]

    def defines(self, integers: Bounds) -> dict[str, int]:
        return {"LOW": integers.low, "HIGH": integers.high}


class OwnReLU(OwnLoop[LayerView, object], cmsis_q7.Relu):
    """The same results as arm_relu_q7."""

    header = "clip_q7"
    libraries = (OWN,)

    def work(self, layer: LayerView) -> Work | None:
        return {"clip_q7": elements(layer)}

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.elements(layer.out_shape), "0", str(INT8_MAX), c.output))]


class OwnLeakyReLU(Lookup[Slope]):
    """x, and slope * x for negative inputs, rounded half to even and saturated."""

    def outputs(self, integers: Slope) -> np.ndarray:
        x = np.arange(INT8_MIN, INT8_MAX + 1)
        return np.clip(np.rint(np.where(x < 0, integers, 1) * x), INT8_MIN, INT8_MAX)


@dataclass(frozen=True)
class OwnCurve(Lookup[IntWidth]):
    """The same results as arm_nn_activations_direct_q7; the s8 library has no 8-bit sigmoid or tanh."""

    libraries = (S8, OWN)

    table: Callable[[], np.ndarray] = cmsis_q7.sigmoid_table

    def outputs(self, integers: IntWidth) -> np.ndarray:
        return self.table()[(np.arange(INT8_MIN, INT8_MAX + 1) >> (3 - integers)) - INT8_MIN]


computed_by(ReLU, cmsis_q7.Relu("arm_relu_q7"), OwnReLU("clip_q7"))
computed_by(LeakyReLU, OwnLeakyReLU("lookup_q7"))
computed_by(Clip, OwnClip("clip_q7"))
computed_by(
    Sigmoid,
    cmsis_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_SIGMOID", table=cmsis_q7.sigmoid_table),
    OwnCurve("lookup_q7", table=cmsis_q7.sigmoid_table),
)
computed_by(
    TanH,
    cmsis_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_TANH", table=cmsis_q7.tanh_table),
    OwnCurve("lookup_q7", table=cmsis_q7.tanh_table),
)

CLASSES = (ReLU, LeakyReLU, ReLU6, Clip, Sigmoid, TanH)
CHOICES = {"ReLU": relu}
