# SPDX-License-Identifier: Apache-2.0
"""The input: pixels or features, and how the device reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import (
    Array,
    Kernel,
    Work,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import LayerView
from caffe_to_cmsis_nn.kernels.instructions import elements
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, Weights, computed_by
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

MOST_FLOAT_EXPONENT = 126  # of normal float32
MOST_PIXEL_SHIFT = 22  # 8-bit pixels stay within C's int


@dataclass(frozen=True, eq=False)
class Pixels:
    """The input layer's integers: the mean to subtract, CHW or (C, 1, 1), and the right shift (bits, may be < 0)."""

    mean: np.ndarray
    rshift: int


@dataclass(frozen=True, eq=False)
class RealInput(Pixels):
    """How real numbers are converted before the device gets them: (x - mean) * scale, shifted; the mean is float32."""

    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Input(Layer):
    """8-bit pixels, transformed to (pixel - mean) * scale (Caffe's transform_param); `mean` is CHW or (C, 1, 1)."""

    caffe_type = "Data"
    own_format = True
    simulates_rounding = True

    features: ClassVar[bool] = False  # real numbers instead of pixels
    stored: ClassVar[type] = np.uint8  # the type of the data that it reads

    mean: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1), np.float32))
    scale: float = 1.0

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        x = g.add("Sub", xs[0], self.mean.astype(np.float32))
        return g.add("Mul", x, np.array(self.scale, np.float32))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Pixels:
        """Rounds the mean half to even; folding has already reduced the scale to a power of two."""
        assert formats.y
        mantissa, exponent = math.frexp(self.scale)
        assert mantissa == 0.5, "the scale is folded before"
        rshift = -(exponent - 1) - formats.y.fraction_bits
        if abs(rshift) > MOST_PIXEL_SHIFT:
            raise UserError(f"its pixels would be shifted by {rshift}, allowed are {MOST_PIXEL_SHIFT} bits either way")
        return Pixels(np.clip(np.rint(self.mean), 0, 255).astype(np.int32), rshift)

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """abs(rshift) = abs(-log2(scale) - n_y) <= 22."""
        middle = 1 - math.frexp(self.scale)[1]
        return middle - MOST_PIXEL_SHIFT, middle + MOST_PIXEL_SHIFT


class Features(Input):
    """Real numbers; the device gets them as integers in the input's Q-format, rounded half up."""

    variant = "features"
    features = True
    stored = np.float32

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> RealInput:
        assert formats.y
        return RealInput(self.mean, -formats.y.fraction_bits, self.scale)

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """So that a float holds scale * 2**n_y, by which network.h has features multiplied."""
        middle = 1 - math.frexp(self.scale)[1]
        return middle - MOST_FLOAT_EXPONENT, middle + MOST_FLOAT_EXPONENT


class ReadPixels(Kernel[LayerView, Pixels]):
    """clamp((pixel - mean) >> rshift, -128, 127); a negative shift is a left shift."""

    source = "templates/common/_network.c.jinja"

    def work(self, layer: LayerView) -> Work | None:
        return {"read_pixels": elements(layer)}

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Pixels, target: Target) -> str:
        x = g.add("Sub", xs[0], integers.mean.astype(np.float32))
        x = g.add("Mul", x, np.array(2.0**-integers.rshift, np.float32))
        return exact_onnx.saturate(g, g.add("Floor", x))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.output))]

    def defines(self, integers: Pixels) -> dict[str, int]:
        return {"RSHIFT": max(integers.rshift, 0), "LSHIFT": max(-integers.rshift, 0)}

    def arrays(self, layer: LayerView, integers: Pixels, c: CNames) -> list[Array]:
        mean = integers.mean if integers.mean.any() else np.zeros((1, 1, 1))
        return [Array(f"{c.network}MEAN_DATA", "mean", "uint8_t", mean.transpose(1, 2, 0).astype(np.uint8).ravel())]


class ReadFeatures(Kernel[LayerView, RealInput]):
    """clamp(floor(x * 2**-rshift + 1/2)) in float32; the generated quantize function computes it."""

    source = "templates/common/_network.c.jinja"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: RealInput, target: Target) -> str:
        x = g.add("Mul", g.add("Sub", xs[0], integers.mean.astype(np.float32)), np.array(integers.scale, np.float32))
        x = g.add("Mul", x, np.array(2.0**-integers.rshift, np.float32))
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", x, np.array(0.5, np.float32))))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.output))]


computed_by(Input, ReadPixels("read_pixels"))
computed_by(Features, ReadFeatures("read_features"))
