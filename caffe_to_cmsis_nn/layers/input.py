# SPDX-License-Identifier: Apache-2.0
"""The input layer: raw 8-bit pixels, and how the device reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.kernels.own_loops import MOST_PIXEL_SHIFT, Pixels, RealInput
from caffe_to_cmsis_nn.layers.base import Layer, Weights, computed_by
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import MOST_FRACTION_BITS, LayerFormats, QFormat


@computed_by(registry.READ_PIXELS)
@dataclass(frozen=True, eq=False)
class Input(Layer):
    """8-bit pixels; Caffe's transform_param makes (pixel - mean) * scale of them. `mean` is CHW or (C, 1, 1)."""

    caffe_type = "Data"
    own_format = True
    floors = True

    features: ClassVar[bool] = False  # real numbers in place of pixels
    stored: ClassVar[type] = np.uint8  # the type of what is read

    mean: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1), np.float32))
    scale: float = 1.0

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        x = g.add("Sub", xs[0], self.mean.astype(np.float32))
        return g.add("Mul", x, np.array(self.scale, np.float32))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Pixels:
        """The mean is rounded half to even. The scale is a power of two here: the rest went into the first weights."""
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


@computed_by(registry.READ_FEATURES)
class Features(Input):
    """Real numbers; the device gets them as integers of the input's Q-format, rounded half up."""

    variant = "features"
    features = True
    stored = np.float32

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> RealInput:
        assert formats.y
        return RealInput(self.mean, -formats.y.fraction_bits, self.scale)

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        return -MOST_FRACTION_BITS, MOST_FRACTION_BITS
