# SPDX-License-Identifier: Apache-2.0
"""Layers that compute each element alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from q7.kernels import registry
from q7.kernels.base import Bounds, IntWidth
from q7.kernels.own_loops import Slope
from q7.layers.base import Declined, Layer, Shape, Weights, computed_by
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX, INT8_MIN, LayerFormats, QFormat


class Elementwise(Layer):
    elementwise = True

    op: ClassVar[str]  # ONNX's, where one with no attributes computes it

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add(self.op, xs[0])


@computed_by(registry.RELU)
class ReLU(Elementwise):
    """max(x, 0)."""

    caffe_type = "ReLU"
    op = "Relu"


@computed_by(registry.LEAKY_RELU)
@dataclass(frozen=True, eq=False)
class LeakyReLU(Elementwise):
    """With a negative_slope: max(x, 0) + negative_slope * min(x, 0)."""

    caffe_type = "ReLU"
    variant = "leaky"
    floors = True

    negative_slope: float = 0.01

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"negative_slope": message.relu_param.negative_slope}

    def check(self) -> None:
        if not 0 < abs(self.negative_slope) <= 1:
            raise Declined(
                f"negative_slope {self.negative_slope:g}, allowed are -1 to 1: the output's format is the input's"
            )

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("LeakyRelu", xs[0], alpha=self.negative_slope)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Slope:
        return self.negative_slope


def relu(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a ReLU layer."""
    return LeakyReLU if message.relu_param.negative_slope else ReLU


@computed_by(registry.CLIP)
@dataclass(frozen=True, eq=False)
class Clip(Elementwise):
    """max(low, min(x, high))."""

    caffe_type = "Clip"

    low: float = 0.0
    high: float = 6.0

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"low": message.clip_param.min, "high": message.clip_param.max}

    def check(self) -> None:
        if not self.low < self.high:
            raise Declined(f"min {self.low:g} must be below max {self.high:g}")

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.clip(xs[0], self.low, self.high)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Bounds:
        assert formats.x
        bounds = np.rint(formats.x.scaled(np.array([self.low, self.high])))
        low, high = np.clip(bounds, INT8_MIN, INT8_MAX).astype(int).tolist()
        return Bounds(low, high)


class ReLU6(Clip):
    """max(0, min(x, 6)), a layer of some branches of Caffe."""

    caffe_type = "ReLU6"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {}


class _Curve(Elementwise):
    floors = True

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """int_width = 7 - n_x is 0 to 3 (arm_nn_activations_q7.c)."""
        return 4, 7

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> IntWidth:
        assert formats.x
        return formats.x.integer_bits


@computed_by(registry.SIGMOID)
class Sigmoid(_Curve):
    """1 / (1 + exp(-x))."""

    caffe_type = "Sigmoid"
    op = "Sigmoid"


@computed_by(registry.TANH)
class TanH(_Curve):
    """tanh(x)."""

    caffe_type = "TanH"
    op = "Tanh"
