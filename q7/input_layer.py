# SPDX-License-Identifier: Apache-2.0
"""The input layer: raw 8-bit pixels, and how the device reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from q7 import exact
from q7.errors import Q7Error
from q7.kernel import Array, CNames, Kernel
from q7.layer import Layer, Weights, extents
from q7.onnx_graph import OnnxGraph
from q7.qformat import LayerFormats, QFormat, Target

MOST_PIXEL_SHIFT = 22  # 8-bit pixels stay within C's int


@dataclass(frozen=True, eq=False)
class Pixels:
    """The input layer on the device: integer mean to subtract, CHW or (C, 1, 1); shift right (bits, may be < 0)."""

    mean: np.ndarray
    rshift: int


@dataclass(frozen=True)
class ReadPixels(Kernel):
    """Our own loop: clamp((pixel - mean) >> rshift, -128, 127); a negative shift goes to the left."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        x = g.add("Sub", xs[0], integers.mean.astype(np.float32))
        x = g.add("Mul", x, np.array(2.0**-integers.rshift, np.float32))
        return exact.saturate(g, g.add("Floor", x))

    def calls(self, layer: Any, c: CNames) -> list[str]:
        return [f"{self.name}({c.input}, {c.output})"]

    def defines(self, integers: Any) -> dict[str, int]:
        return {"RSHIFT": max(integers.rshift, 0), "LSHIFT": max(-integers.rshift, 0)}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        mean = integers.mean if integers.mean.any() else np.zeros((1, 1, 1))
        return [Array("MEAN_DATA", "mean", "uint8_t", mean.transpose(1, 2, 0).astype(np.uint8).ravel())]


@dataclass(frozen=True, eq=False)
class Input(Layer):
    """8-bit pixels; Caffe's transform_param makes (pixel - mean) * scale of them. `mean` is CHW or (C, 1, 1)."""

    caffe_type = "Data"
    kernels = (ReadPixels("read_pixels"),)
    own_format = True
    floors = True

    mean: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1), np.float32))
    scale: float = 1.0

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        x = g.add("Sub", xs[0], self.mean.astype(np.float32))
        return g.add("Mul", x, np.array(self.scale, np.float32))

    @property
    def integer_mean(self) -> np.ndarray:
        """The mean rounded half to even, as the device subtracts it."""
        return np.clip(np.rint(self.mean), 0, 255).astype(np.int32)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Pixels:
        """The scale is a power of two here: the graph has put what is left of it into the first layer's weights."""
        assert formats.y
        mantissa, exponent = math.frexp(self.scale)
        assert mantissa == 0.5, "the scale is folded before"
        rshift = -(exponent - 1) - formats.y.fraction_bits
        if abs(rshift) > MOST_PIXEL_SHIFT:
            raise Q7Error(f"its pixels would be shifted by {rshift}, allowed are {MOST_PIXEL_SHIFT} bits either way")
        return Pixels(self.integer_mean, rshift)

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        middle = 1 - math.frexp(self.scale)[1]
        return middle - MOST_PIXEL_SHIFT, middle + MOST_PIXEL_SHIFT

    def defines(self) -> dict[str, int]:
        return {"OUT_CH": self.out_shape[0], **extents("OUT_DIM", self.out_shape[1:])}  # type: ignore[arg-type]
