# SPDX-License-Identifier: Apache-2.0
"""Caffe's Deconvolution, a transposed convolution (deconv_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels import exact_onnx, weight_layouts
from caffe_to_cmsis_nn.kernels.base import (
    Array,
    Integers,
    ShiftingKernel,
)
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.kernels.weight_layouts import exchanged
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import (
    deconvolution_attributes,
)
from caffe_to_cmsis_nn.ops.base import Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.convolution import Grouped
from caffe_to_cmsis_nn.ops.windowed import WindowLoop
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True, eq=False)
class Deconvolution(Grouped):
    """Transposed convolution; weights are (inputs, outputs of a group, height, width) (deconv_layer.cpp)."""

    caffe_type = "Deconvolution"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        dilation = list(message.convolution_param.dilation)
        if set(dilation) - {1}:
            raise UnsupportedLayer(f"dilation {dilation}, allowed is 1")
        return super().read_fields(message, in_shapes)

    @property
    def out_shape(self) -> Shape:
        sizes = zip(self.in_shape[1:], self.window, self.stride, self.pad)
        return self.num_output, *((d - 1) * s + k - 2 * p for d, k, s, p in sizes)

    @property
    def macs(self) -> int:
        """Each weight is used once per input pixel."""
        return math.prod(self.in_shape[1:]) * math.prod(self.weight_shapes()[0])

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.in_shape[0], self.num_output // self.group, *self.window)
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        return blobs[0], blobs[1] if len(blobs) > 1 else np.zeros(self.num_output, np.float32)

    def with_gain(self, weights: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return exchanged(super().with_gain(exchanged(weights, self.group), gain), self.group)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("ConvTranspose", xs[0], *weights, group=self.group, **deconvolution_attributes(self))


class OwnDeconvolution(ShiftingKernel[Deconvolution], WindowLoop[Deconvolution, Integers]):
    """Grouped transposed convolutions; used beside all libraries, so the bias has 32 bits."""

    header = "deconvolution_q7"
    limits = True

    computes_rows = False  # not supported: windows lie on the output, not on the input

    def layout(self, weights: np.ndarray, layer: Deconvolution) -> np.ndarray:
        return weight_layouts.ohwi(weight_layouts.exchanged(weights, layer.group))

    def arrays(self, layer: Deconvolution, integers: Integers, c: CNames) -> list[Array]:
        bias = integers.bias.astype(np.int32) << integers.shifts.bias_lshift
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "int32_t", bias),
        ]

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Deconvolution, integers: Integers, target: Target) -> str:
        return exact_onnx.deconvolution(g, xs[0], layer, integers, target)

    def _arguments(self, layer: Deconvolution, c: CNames) -> list[str]:
        groups = c.macro("GROUPS") if layer.group > 1 else "1"
        scaling = map(c.macro, ("OUT_RSHIFT", "ACT_MIN", "ACT_MAX"))
        return [c.macro("IN_CH"), groups, c.macro("OUT_CH"), c.weights, c.bias, *scaling]


computed_by(Deconvolution, OwnDeconvolution("deconvolve_q7", (needs.indexable, needs.few_products)))

CLASSES = (Deconvolution,)
