# SPDX-License-Identifier: Apache-2.0
"""Caffe's LRN: local response normalisation across channels or within each (lrn_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.kernels.lrn import MOST_CELLS, Powers
from caffe_to_cmsis_nn.layers.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.layers.windowed import spatial, window_defines
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import LayerFormats

MOST_FACTOR = 1e30  # alpha and k, so that all products with scales are finite
MOST_BETA = 10.0  # beyond, a table would take tens of thousands of bytes


@dataclass(frozen=True, eq=False)
class _Lrn(Layer):
    caffe_type = "LRN"
    own_format = True
    floors = True
    axes: ClassVar[int]  # along which cells are added up

    local_size: int = 5
    alpha: float = 1.0
    beta: float = 0.75
    k: float = 1.0

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.lrn_param
        spatial(in_shapes[0])
        return {"local_size": param.local_size, "alpha": param.alpha, "beta": param.beta, "k": param.k}

    @property
    def cells(self) -> int:
        """How many squares are added up; those outside are zero, and count."""
        return self.local_size**self.axes

    def check(self) -> None:
        most = int(MOST_CELLS ** (1 / self.axes))
        if not (self.local_size % 2 and 0 < self.local_size <= most):
            raise UnsupportedLayer(f"local_size {self.local_size}, allowed are odd numbers up to {most - 1 + most % 2}")
        if not 0 < self.k <= MOST_FACTOR:
            raise UnsupportedLayer(f"k {self.k:g}, allowed is more than 0, up to {MOST_FACTOR:g}")
        if not 0 <= self.alpha <= MOST_FACTOR:
            raise UnsupportedLayer(f"alpha {self.alpha:g}, allowed are 0 to {MOST_FACTOR:g}")
        if not 0 <= self.beta <= MOST_BETA:
            raise UnsupportedLayer(f"beta {self.beta:g}, allowed are 0 to {MOST_BETA:g}")

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Powers:
        assert formats.x and formats.y
        own = self.cells, self.alpha, self.beta, self.k
        return Powers.fit(*own, formats.x.fraction_bits, formats.y.fraction_bits)

    def describe(self) -> str:
        return f"{super().describe()}, local_size {self.local_size}"


@computed_by(registry.LRN_ACROSS)
class Across(_Lrn):
    """ACROSS_CHANNELS: x * (k + alpha / n * s)**-beta, where s adds up the squares of n channels around each."""

    variant = "ACROSS_CHANNELS"
    axes = 1

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("LRN", xs[0], size=self.local_size, alpha=self.alpha, beta=self.beta, bias=self.k)

    def defines(self) -> dict[str, int]:
        pixels = math.prod(self.out_shape[1:])
        return {"OUT_CH": self.out_shape[0], "PIXELS": pixels, "LOCAL_SIZE": self.local_size}


@computed_by(registry.LRN_WITHIN)
class Within(_Lrn):
    """WITHIN_CHANNEL: x * (1 + alpha / n**2 * s)**-beta, where s adds up the squares of n x n pixels around each."""

    variant = "WITHIN_CHANNEL"
    axes = 2
    stride = (1, 1)
    dilation = (1, 1)

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """Caffe does not read k."""
        return {**super().options(message, in_shapes), "k": 1.0}

    @property
    def window(self) -> tuple[int, int]:
        return self.local_size, self.local_size

    @property
    def pad(self) -> tuple[int, int]:
        return self.local_size // 2, self.local_size // 2

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        squares = g.add("Mul", xs[0], xs[0])
        mean = g.add("AveragePool", squares, kernel_shape=[*self.window], pads=[*self.pad] * 2, count_include_pad=1)
        scaled = g.add("Mul", mean, np.array(self.alpha, np.float32))
        sums = g.add("Add", scaled, np.array(self.k, np.float32))
        return g.add("Mul", xs[0], g.add("Pow", sums, np.array(-self.beta, np.float32)))

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], **window_defines(self)}


def lrn(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of an LRN layer."""
    param = message.lrn_param
    return Within if param.norm_region == param.WITHIN_CHANNEL else Across
