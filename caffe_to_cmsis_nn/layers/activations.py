# SPDX-License-Identifier: Apache-2.0
"""Layers that compute each element alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.kernels.base import Bounds, IntWidth
from caffe_to_cmsis_nn.kernels.channelwise import Slopes
from caffe_to_cmsis_nn.kernels.own_loops import Slope
from caffe_to_cmsis_nn.layers import functions
from caffe_to_cmsis_nn.layers.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.layers.elementwise import Elementwise
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, LayerFormats, QFormat


@computed_by(registry.RELU)
class ReLU(Elementwise):
    """max(x, 0)."""

    caffe_type = "ReLU"
    op = "Relu"
    homogeneous = True


@computed_by(registry.LEAKY_RELU)
@dataclass(frozen=True, eq=False)
class LeakyReLU(Elementwise):
    """With a negative_slope: max(x, 0) + negative_slope * min(x, 0)."""

    caffe_type = "ReLU"
    variant = "leaky"
    floors = True
    homogeneous = True

    negative_slope: float = 0.01

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"negative_slope": message.relu_param.negative_slope}

    def check(self) -> None:
        if not 0 < abs(self.negative_slope) <= 1:
            raise UnsupportedLayer(
                f"negative_slope {self.negative_slope:g}, allowed are -1 to 1: the output's format is the input's"
            )

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("LeakyRelu", xs[0], alpha=self.negative_slope)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Slope:
        return self.negative_slope


@computed_by(registry.PRELU)
@dataclass(frozen=True, eq=False)
class PReLU(Layer):
    """max(x, 0) + slope * min(x, 0), with a trained slope for each channel or for all (prelu_layer.cpp)."""

    caffe_type = "PReLU"
    own_format = True
    floors = True

    channel_shared: bool = False

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"channel_shared": message.prelu_param.channel_shared}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return ((),) if self.channel_shared else (self.in_shape[:1],)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """The slopes, and no bias."""
        return np.broadcast_to(blobs[0], self.in_shape[:1]).astype(np.float32), np.zeros(0, np.float32)

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        return [weights[0][0] if self.channel_shared else weights[0]]

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """So that 1 is a power of two in the 16 bits that slopes have, too (channelwise.Slopes)."""
        return xs[0].fraction_bits - 14, xs[0].fraction_bits + 8

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("PRelu", xs[0], weights[0].reshape(-1, *[1] * (len(self.in_shape) - 1)))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Slopes:
        assert weights and formats.x and formats.y
        return Slopes.fit(weights[0], formats.x.fraction_bits, formats.y.fraction_bits)


def relu(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a ReLU layer."""
    slope = message.relu_param.negative_slope
    return functions.SteepReLU if abs(slope) > 1 else LeakyReLU if slope else ReLU


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
            raise UnsupportedLayer(f"min {self.low:g} must be below max {self.high:g}")

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
