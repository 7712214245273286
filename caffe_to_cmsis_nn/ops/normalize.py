# SPDX-License-Identifier: Apache-2.0
"""Normalize of SSD and ParseNet (normalize_layer.cpp): scales vectors to length 1, then by a trained factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels.base import RowForm
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.affine import Affine
from caffe_to_cmsis_nn.ops.along_axis import MOST_REDUCED
from caffe_to_cmsis_nn.ops.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.lrn import MOST_FACTOR, Powers, PowersLoop
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True, eq=False)
class UnitLength(Layer):
    """First x / sqrt(eps + s), where s is the sum of squares over a pixel's channels, with across_spatial over all."""

    caffe_type = "Normalize"
    variant = "length"
    own_format = True
    simulates_rounding = True

    across_spatial: bool = True
    eps: float = 1e-10

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"across_spatial": message.norm_param.across_spatial, "eps": message.norm_param.eps}

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Sequence[Layer]:
        name = f"{message.name}/length"
        unit = replace(cls.parse(message, inputs, in_shapes), name=name, blob=name)
        return [unit, LengthScale.parse(message, (name,), in_shapes)]

    def check(self) -> None:
        if not 0 < self.eps <= MOST_FACTOR:
            raise UnsupportedLayer(f"eps {self.eps:g}, allowed is more than 0, up to {MOST_FACTOR:g}")
        if self.cells >= MOST_REDUCED:
            raise UnsupportedLayer(f"{self.cells} elements, allowed are fewer than {MOST_REDUCED}")

    @property
    def cells(self) -> int:
        """The number of elements in a vector."""
        return math.prod(self.in_shape) if self.across_spatial else self.in_shape[0]

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        squares = squared_length(g, xs[0], self)
        return g.add("Div", xs[0], g.add("Sqrt", g.add("Add", squares, np.array(self.eps, np.float32))))

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Powers:
        assert formats.x and formats.y
        return Powers.fit(self.cells, self.cells, 0.5, self.eps, formats.x.fraction_bits, formats.y.fraction_bits)


@dataclass(frozen=True, eq=False)
class LengthScale(Affine):
    """Then times a trained factor per channel, or one for all."""

    caffe_type = "Normalize"
    variant = "scale"
    folds = False  # the layer before it has no weights

    channel_shared: bool = True

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"channel_shared": message.norm_param.channel_shared}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return ((1,) if self.channel_shared else self.in_shape[:1],)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        gain = np.broadcast_to(blobs[0].astype(np.float64), self.in_shape[:1])
        return gain, np.zeros_like(gain)

    def holds(self, gain: np.ndarray, offset: np.ndarray) -> bool:
        return not offset.any() and not (self.channel_shared and np.ptp(gain))

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        return [weights[0][:1] if self.channel_shared else weights[0]]


def squared_length(g: OnnxGraph, x: str, layer: UnitLength) -> str:
    """The sum of squares of each vector."""
    axes = np.arange(1, 1 + (len(layer.in_shape) if layer.across_spatial else 1))
    return g.add("ReduceSum", g.add("Mul", x, x), axes)


class OwnLength(PowersLoop[UnitLength]):
    """Sums over all channels of a pixel, or over the whole image."""

    header = "normalize_q7"
    promises_in_place = True

    def row_form(self, layer: UnitLength, target: Target) -> RowForm | None:
        return None if layer.across_spatial else RowForm(self)

    def _squares(self, g: OnnxGraph, x: str, layer: UnitLength) -> str:
        return squared_length(g, g.cast(x, np.float64), layer)

    def calls(self, layer: UnitLength, c: CNames) -> list[Statement]:
        pixels = c.replaced.get("PIXELS", str(math.prod(layer.in_shape) // layer.cells))
        arguments = (c.input, pixels, str(layer.cells), f"&{c.variable('out_powers')}", c.output)
        return [self._powers(c), Call(self.name, arguments)]


computed_by(UnitLength, OwnLength("normalize_q7"))

CLASSES = (UnitLength, LengthScale)
CHOICES = {"Normalize": UnitLength}
