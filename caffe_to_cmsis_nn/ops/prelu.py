# SPDX-License-Identifier: Apache-2.0
"""Caffe's PReLU (prelu_layer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import (
    Array,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.affine import ChannelLoop, by_channel, factors
from caffe_to_cmsis_nn.ops.base import Layer, Shape, Weights, computed_by
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True, eq=False)
class PReLU(Layer):
    """max(x, 0) + slope * min(x, 0), with a trained slope per channel, or one for all (prelu_layer.cpp)."""

    caffe_type = "PReLU"
    own_format = True
    simulates_rounding = True

    channel_shared: bool = False

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"channel_shared": message.prelu_param.channel_shared}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return ((),) if self.channel_shared else (self.in_shape[:1],)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """The slopes, and no bias."""
        return np.broadcast_to(blobs[0], self.in_shape[:1]).astype(np.float32), np.zeros(0, np.float32)

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        return [weights[0][0] if self.channel_shared else weights[0]]

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """Limits the shift so that the factor 1 is a power of two within 16 bits, as slopes are (Slopes)."""
        return xs[0].fraction_bits - 14, xs[0].fraction_bits + 8

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("PRelu", xs[0], weights[0].reshape(-1, *[1] * (len(self.in_shape) - 1)))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Slopes:
        assert weights and formats.x and formats.y
        return Slopes.fit(weights[0], formats.x.fraction_bits, formats.y.fraction_bits)


@dataclass(frozen=True, eq=False)
class Slopes:
    """clamp((x * (x < 0 ? slope : one) + rounding term) >> rshift) for each channel; int16 (C,)."""

    slopes: np.ndarray
    one: int
    rshift: int

    @classmethod
    def fit(cls, slope: np.ndarray, x: int, y: int) -> Slopes:
        """The integers for slopes (C,); `x` and `y` are the fraction bits of input and output."""
        found, rshift = factors(np.append(slope, 1), y - x)
        return cls(found[:-1], int(found[-1]), rshift)


class OwnPReLU(ChannelLoop[Slopes]):
    """x * one, or x * slope if x is negative."""

    header = "prelu_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Slopes, target: Target) -> str:
        """Exact in float32, since all scaling is by powers of two."""
        slopes = by_channel(integers.slopes, layer) / integers.one
        total = g.scale(g.add("PRelu", xs[0], slopes.astype(np.float32)), integers.one * 2.0**-integers.rshift)
        half = np.array(0.5 if integers.rshift else 0, np.float32)
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", total, half)))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        constants = (c.variable("slopes"), c.macro("ONE"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (c.input, *self._sizes(layer, c), *constants, c.output))]

    def defines(self, integers: Slopes) -> dict[str, int]:
        return {"ONE": integers.one, "OUT_RSHIFT": integers.rshift}

    def arrays(self, layer: LayerView, integers: Slopes, c: CNames) -> list[Array]:
        return [Array(f"{c.prefix}_SLOPES", c.variable("slopes"), "int16_t", integers.slopes)]


computed_by(PReLU, OwnPReLU("prelu_q7"))

CLASSES = (PReLU,)
