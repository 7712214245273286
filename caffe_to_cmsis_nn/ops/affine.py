# SPDX-License-Identifier: Apache-2.0
"""Caffe's BatchNorm, Scale and Bias, which apply gain * x + offset to each channel.

If possible, they are folded into the weights of the layer before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import (
    Array,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import I_contra, LayerView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.eltwise import BiasByInput, ScaleByInput
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.target import Target

LARGEST_FACTOR = (1 << 15) - 1
MOST_SHIFT = 20  # bits; products of 8 and 16 bits plus the rounding term are then exact in float32
LARGEST_OFFSET = 1 << 30  # larger ones saturate every output, and overflow 32 bits


def factors(factors: np.ndarray, lshift: int) -> tuple[np.ndarray, int]:
    """factors * 2**lshift as int16, and the right shift (bits) of products with them.

    The shift is as large as possible. A factor that does not fit into 16 bits saturates every output, except for inputs
    of 0.
    """
    largest = float(np.abs(factors).max(initial=0)) or 1.0
    shift = min(max(math.floor(math.log2(LARGEST_FACTOR / largest)) - lshift, 0), MOST_SHIFT)
    scaled = np.ldexp(factors.astype(np.float64), lshift + shift)
    return np.clip(np.rint(scaled), -LARGEST_FACTOR, LARGEST_FACTOR).astype(np.int16), shift


@dataclass(frozen=True, eq=False)
class Gains:
    """clamp((x * gain + offset) >> rshift) per channel; gains int16 (C,), offsets int32 (C,) with rounding term."""

    gains: np.ndarray
    offsets: np.ndarray
    rshift: int

    @classmethod
    def fit(cls, gain: np.ndarray, offset: np.ndarray, x: int, y: int) -> Gains:
        """The integers for gain * x + offset (C,); `x` and `y` are the fraction bits of input and output."""
        gains, rshift = factors(gain, y - x)
        offsets = np.rint(np.ldexp(offset.astype(np.float64), y + rshift)) + (1 << rshift >> 1)
        return cls(gains, np.clip(offsets, -LARGEST_OFFSET, LARGEST_OFFSET).astype(np.int32), rshift)


class Affine(Layer):
    """gain * x + offset for each channel; `load` returns both, float64 (C,)."""

    folds = True
    own_format = True
    simulates_rounding = True

    def holds(self, gain: np.ndarray, offset: np.ndarray) -> bool:
        """Whether Caffe's layer can compute gain * x + offset (C,) with suitable blobs."""
        raise NotImplementedError

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        axes = [1] * (len(self.in_shape) - 1)
        gain, offset = (values.astype(np.float32).reshape(-1, *axes) for values in weights)
        return g.add("Add", g.add("Mul", xs[0], gain), offset)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Gains:
        assert weights and formats.x and formats.y
        return Gains.fit(*weights, formats.x.fraction_bits, formats.y.fraction_bits)

    def neutral(self, offset: np.ndarray) -> list[np.ndarray] | None:
        """Blobs with which Caffe's layer computes x + offset, or None if it cannot."""
        gain = np.ones_like(offset)
        return self.blobs((gain, offset)) if self.holds(gain, offset) else None


def _each_channel(param: Any) -> None:
    if param.axis != 1 or param.num_axes != 1:
        raise UnsupportedLayer(f"axis {param.axis} and num_axes {param.num_axes}, allowed are 1 and 1")


@dataclass(frozen=True, eq=False)
class BatchNorm(Affine):
    """(x - mean) / sqrt(variance + eps); the third blob divides the stored sums (batch_norm_layer.cpp).

    NVCaffe's scale_bias adds a trained gain and offset.
    """

    caffe_type = "BatchNorm"

    eps: float = 1e-5
    scale_bias: bool = False

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.batch_norm_param
        if param.HasField("use_global_stats") and not param.use_global_stats:
            raise UnsupportedLayer(
                "use_global_stats false in the TEST phase: each batch would have its own mean and variance"
            )
        return {"eps": param.eps, "scale_bias": param.scale_bias}

    def weight_shapes(self) -> tuple[Shape, ...]:
        channels = self.in_shape[:1]
        return (channels, channels, (1,), *(channels, channels) * self.scale_bias)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        mean, variance, factor, *line = (blob.astype(np.float64) for blob in blobs)
        unit = 1 / factor if factor[0] != 0 else 0 * factor
        with np.errstate(all="ignore"):  # folding rejects NaN and infinity
            gain = 1 / np.sqrt(variance * unit + self.eps)
        offset = -mean * unit * gain
        return (gain * line[0], offset * line[0] + line[1]) if line else (gain, offset)

    def holds(self, gain: np.ndarray, offset: np.ndarray) -> bool:
        return self.scale_bias or bool((gain > 0).all())

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        gain, offset = (values.astype(np.float64) for values in weights)
        if self.scale_bias:
            return [np.zeros_like(gain), np.full_like(gain, 1 - self.eps), np.ones(1), gain, offset]
        return [-offset / gain, gain**-2 - self.eps, np.ones(1)]


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """A trained gain, and with bias_term a trained offset."""

    caffe_type = "Scale"

    bias_term: bool = False

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        _each_channel(message.scale_param)
        return {"bias_term": message.scale_param.bias_term}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return (self.in_shape[:1],) * (2 if self.bias_term else 1)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        gain = blobs[0].astype(np.float64)
        return gain, blobs[1].astype(np.float64) if self.bias_term else np.zeros_like(gain)

    def holds(self, gain: np.ndarray, offset: np.ndarray) -> bool:
        return self.bias_term or not offset.any()

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        return [*weights] if self.bias_term else [weights[0]]


def scale(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Scale layer."""
    return ScaleByInput if len(in_shapes) > 1 else Scale


class Bias(Affine):
    """A trained offset."""

    caffe_type = "Bias"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        _each_channel(message.bias_param)
        return {}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return (self.in_shape[:1],)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        offset = blobs[0].astype(np.float64)
        return np.ones_like(offset), offset

    def holds(self, gain: np.ndarray, offset: np.ndarray) -> bool:
        return bool((gain == 1).all())

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        return [weights[1]]


def bias(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Bias layer."""
    return BiasByInput if len(in_shapes) > 1 else Bias


def by_channel(values: np.ndarray, layer: LayerView) -> np.ndarray:
    """(C,) as (C, 1, 1) if the layer's output is an image."""
    return values.astype(np.float64).reshape(-1, *[1] * (len(layer.out_shape) - 1))


class ChannelLoop(OwnLoop[LayerView, I_contra]):
    """A kernel with an int16 factor per channel; rounds half up and saturates."""

    promises_in_place = True
    computes_rows = True

    def _sizes(self, layer: LayerView, c: CNames) -> tuple[str, str]:
        return c.elements(layer.out_shape), str(layer.out_shape[0])


class OwnAffine(ChannelLoop[Gains]):
    """(x * gain + offset) >> rshift."""

    header = "affine_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Gains, target: Target) -> str:
        gains, offsets = (by_channel(values, layer) for values in (integers.gains, integers.offsets))
        total = g.add("Add", g.add("Mul", g.cast(xs[0], np.float64), gains), offsets)
        total = g.add("Floor", g.add("Mul", total, np.array(2.0**-integers.rshift)))
        return exact_onnx.saturate(g, g.cast(total, np.float32))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        constants = (c.variable("gains"), c.variable("offsets"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (c.input, *self._sizes(layer, c), *constants, c.output))]

    def defines(self, integers: Gains) -> dict[str, int]:
        return {"OUT_RSHIFT": integers.rshift}

    def arrays(self, layer: LayerView, integers: Gains, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_GAINS", c.variable("gains"), "int16_t", integers.gains),
            Array(f"{c.prefix}_OFFSETS", c.variable("offsets"), "int32_t", integers.offsets),
        ]


computed_by(Affine, OwnAffine("affine_q7"))

CLASSES = (BatchNorm, Scale, Bias)
CHOICES = {"Bias": bias, "Scale": scale}
