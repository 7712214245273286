# SPDX-License-Identifier: Apache-2.0
"""Our own kernels in place of CMSIS-NN's q7 kernels, with the same integers, for all cores.

Those with weights (templates/common/weighted_q7.h) have them in orders that suit their loops, and take about half of
the instructions. Beside each of them stands one for weights of 4 bits, which Arm's q7 kernels do not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import arm_q7, exact_onnx, weight_layouts
from caffe_to_cmsis_nn.kernels.base import Array, Integers, ShiftingKernel
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, L_contra, LayerView
from caffe_to_cmsis_nn.kernels.own_loops import Clamp, WindowLoop
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import INT8_MAX
from caffe_to_cmsis_nn.target import OWN, Q7, Library, Target

AT_ONCE = 3  # pixels of a convolution whose sums fit into a core's registers, for two outputs


class WeightedLoop(ShiftingKernel[L_contra]):
    """For sizes that the compiler knows; its output is limited in the same instruction that saturates."""

    source = "templates/common/weighted_q7.h"
    own_loop = True
    libraries: ClassVar[tuple[Library, ...]] = (OWN,)
    limits = True

    def arrays(self, layer: L_contra, integers: Integers, c: CNames) -> list[Array]:
        weights, bias = super().arrays(layer, integers, c)
        return [replace(weights, in_words=True), bias]

    @property
    def _bits(self) -> str:
        return str(self.weight_bits)

    def _scaling(self, c: CNames) -> Declaration:
        values = (c.bias, *map(c.macro, ("BIAS_LSHIFT", "OUT_RSHIFT", "ACT_MIN", "ACT_MAX")))
        return Declaration("const scaling_t", c.variable("out_scaling"), values)


@dataclass(frozen=True)
class Strip:
    """How a convolution's image columns lie in its scratch memory."""

    column: int  # elements of an image column in a window, in words
    pitch: int  # columns from one window to the next
    room: int  # columns
    at_once: int  # windows
    window: int  # columns

    @property
    def length(self) -> int:
        """Elements that are multiplied, in blocks of four."""
        return 4 * math.ceil(self.window * self.column / 4)


class Convolution(WeightedLoop[ConvolutionView], WindowLoop[ConvolutionView, Integers]):
    """Convolutions in groups; a strip of image columns as 16-bit numbers, in which each window is one piece."""

    libraries: ClassVar[tuple[Library, ...]] = (Q7, OWN)  # Arm's q7 kernels have one group, or as many as channels

    def plan(self, layer: ConvolutionView) -> Strip:
        """Room for three windows, or as many columns as fill the two windows that Arm's kernels have."""
        (height, width), pixels = layer.window, layer.out_shape[2]
        cells = height * layer.in_shape[0] // layer.group
        column = 2 * math.ceil(cells / 2)
        pitch, at_once = min(layer.stride[1], width), min(pixels, AT_ONCE)
        least, most = (width + (n - 1) * pitch for n in (at_once, pixels))
        return Strip(column, pitch, min(max(least, 2 * width * cells // column), most), at_once, width)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        """The strip, and what is read of the last window's last block."""
        strip = self.plan(layer)
        return 2 * (strip.room * strip.column + strip.length - strip.window * strip.column)

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        outputs, depth, height, width = weights.shape
        columns = weights.transpose(0, 3, 2, 1).reshape(outputs, width, height * depth)
        columns = np.pad(columns, ((0, 0), (0, 0), (0, height * depth % 2)))
        groups = columns.reshape(layer.group, outputs // layer.group, -1)
        return np.concatenate([weight_layouts.blocks(group, 2, depth % 4 == 0) for group in groups])

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: ConvolutionView, integers: Integers, target: Target) -> str:
        return exact_onnx.convolution(g, xs[0], layer, integers, target)

    def calls(self, layer: ConvolutionView, c: CNames) -> list[Statement]:
        return [self._scaling(c), *super().calls(layer, c)]

    def _arguments(self, layer: ConvolutionView, c: CNames) -> list[str]:
        groups = c.macro("GROUPS") if layer.group > 1 else "1"
        sizes = [c.macro("IN_CH"), groups, c.macro("OUT_CH")]
        strip = [str(self.plan(layer).room), f"(q15_t *){c.scratch}"]
        return [*sizes, c.weights, self._bits, f"&{c.variable('out_scaling')}", *strip]


class DilatedConvolution(Convolution):
    """Each window has columns of its own in the strip, where it skips some of the image's."""

    def plan(self, layer: ConvolutionView) -> Strip:
        plan, width = super().plan(layer), layer.window[1]
        return plan if layer.dilation[1] == 1 else replace(plan, pitch=width, room=width * plan.at_once)

    def _arguments(self, layer: ConvolutionView, c: CNames) -> list[str]:
        return [*c.extent("DILATION"), *super()._arguments(layer, c)]


class Depthwise(Convolution):
    """As many groups as input and output channels; no scratch memory."""

    libraries: ClassVar[tuple[Library, ...]] = (OWN,)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        return 0

    def _taps(self, weights: np.ndarray) -> np.ndarray:
        """(C/4, KH * KW, 4)."""
        channels = np.pad(weights[:, 0], ((0, -len(weights) % 4), (0, 0), (0, 0)))
        return channels.reshape(len(channels) // 4, 4, -1).transpose(0, 2, 1)

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return self._taps(weights).ravel()

    def _arguments(self, layer: ConvolutionView, c: CNames) -> list[str]:
        return [c.macro("IN_CH"), c.weights, self._bits, f"&{c.variable('out_scaling')}"]


class InnerProduct(WeightedLoop[LayerView]):
    """Matrix times vector, which is widened to 16 bits first; it comes in H,W,C order where an image precedes it."""

    def scratch_bytes(self, layer: LayerView, target: Target) -> int:
        return 2 * 4 * math.ceil(math.prod(layer.in_shape) / 4)

    def layout(self, weights: np.ndarray, layer: LayerView) -> np.ndarray:
        matrix = weight_layouts.channels_last(weights, layer.in_shape)
        rows, columns = matrix.shape
        rest = rows % 4 if rows % 4 < 3 else 0
        parts = [(matrix[: rows - rest], 4), (matrix[rows - rest :], 2)]
        return np.concatenate([weight_layouts.blocks(part, n, columns % 4 == 0) for part, n in parts])

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Integers, target: Target) -> str:
        return exact_onnx.inner_product(g, xs[0], integers, target)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        sizes = (c.macro("IN_DIM"), c.macro("OUT_DIM"))
        arguments = (c.weights, self._bits, f"&{c.variable('out_scaling')}", f"(q15_t *){c.scratch}", c.output)
        return [self._scaling(c), Call(self.name, (c.input, *sizes, *arguments))]


class _Packed(WeightedLoop[L_contra]):
    """The same with weights of 4 bits; beside Arm's kernels, too, which take 8."""

    libraries: ClassVar[tuple[Library, ...]] = (Q7, OWN)
    weight_bits = 4

    def layout(self, weights: np.ndarray, layer: L_contra) -> np.ndarray:
        return weight_layouts.nibbles_of_blocks(super().layout(weights, layer))


class PackedConvolution(_Packed[ConvolutionView], Convolution):
    """Weights of 4 bits."""


class PackedDilatedConvolution(_Packed[ConvolutionView], DilatedConvolution):
    """Weights of 4 bits."""


class PackedDepthwise(_Packed[ConvolutionView], Depthwise):
    """Weights of 4 bits."""

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return weight_layouts.nibbles_of_taps(self._taps(weights))


class PackedInnerProduct(_Packed[LayerView], InnerProduct):
    """Weights of 4 bits."""


class Deconvolution(ShiftingKernel[ConvolutionView], WindowLoop[ConvolutionView, Integers]):
    """Transposed convolutions in groups, which no library has; beside all of them, since the bias has 32 bits."""

    limits = True

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return weight_layouts.ohwi(weight_layouts.exchanged(weights, layer.group))

    def arrays(self, layer: ConvolutionView, integers: Integers, c: CNames) -> list[Array]:
        bias = integers.bias.astype(np.int32) << integers.shifts.bias_lshift
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "int32_t", bias),
        ]

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: ConvolutionView, integers: Integers, target: Target) -> str:
        return exact_onnx.deconvolution(g, xs[0], layer, integers, target)

    def _arguments(self, layer: ConvolutionView, c: CNames) -> list[str]:
        groups = c.macro("GROUPS") if layer.group > 1 else "1"
        scaling = map(c.macro, ("OUT_RSHIFT", "ACT_MIN", "ACT_MAX"))
        return [c.macro("IN_CH"), groups, c.macro("OUT_CH"), c.weights, c.bias, *scaling]


class Relu(arm_q7.Relu):
    """What arm_relu_q7 computes."""

    source = Clamp.source
    own_loop = True
    libraries = (OWN,)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.elements(layer.out_shape), "0", str(INT8_MAX), c.output))]


class Softmax(arm_q7.Softmax):
    """What arm_softmax_q7 computes."""

    source = Clamp.source
    own_loop = True
    libraries = (OWN,)
    promises_in_place = True

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return True
