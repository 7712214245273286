# SPDX-License-Identifier: Apache-2.0
"""Caffe's Convolution (conv_layer.cpp), including dilated and depthwise ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_q7, cmsis_s4, cmsis_s8, exact_onnx, weight_layouts
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import (
    Integers,
    Work,
)
from caffe_to_cmsis_nn.kernels.call import CNames, Statement
from caffe_to_cmsis_nn.kernels.instructions import pixels, steps_of_four
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import (
    convolution_attributes,
    crop,
    dilated_kernel_size,
)
from caffe_to_cmsis_nn.ops.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.weighted import Packed, Weighted, WeightedLoop
from caffe_to_cmsis_nn.ops.windowed import (
    Windowed,
    WindowLoop,
    along_axes,
    height_and_width,
    spatial,
    window_defines,
)
from caffe_to_cmsis_nn.target import OWN, Q7, Library, Target

DEPTHWISE = ("ConvolutionDepthwise", "DepthwiseConvolution")


def _groups(message: Any, channels: int) -> int:
    """A convolution's number of groups; depthwise types do not need the field."""
    group: int = message.convolution_param.group
    if message.type not in DEPTHWISE:
        return group
    if group not in (1, channels):
        raise UnsupportedLayer(f"group {group}, allowed is the number of channels, {channels}")
    return channels


@dataclass(frozen=True, eq=False)
class Grouped(Windowed, Weighted):
    """A layer with Caffe's ConvolutionParameter."""

    num_output: int = 1
    group: int = 1
    bias_term: bool = True

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.convolution_param
        spatial(in_shapes[0])
        if param.axis != 1:
            raise UnsupportedLayer(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise UnsupportedLayer("num_output is missing")
        return {
            "window": height_and_width("kernel_size", param.kernel_size, param, "kernel", None),
            "stride": height_and_width("stride", param.stride, param, "stride", 1),
            "pad": height_and_width("pad", param.pad, param, "pad", 0),
            "num_output": param.num_output,
            "group": _groups(message, in_shapes[0][0]),
            "bias_term": param.bias_term,
        }

    def check(self) -> None:
        spatial(self.in_shape)
        if self.group < 1 or self.in_shape[0] % self.group or self.num_output % self.group:
            raise UnsupportedLayer(
                f"group {self.group} does not divide {self.in_shape[0]} inputs and {self.num_output} outputs"
            )
        super().check()

    def defines(self) -> dict[str, int]:
        sizes = {"IN_CH": self.in_shape[0], "OUT_CH": self.num_output, **window_defines(self)}
        return {**sizes, "GROUPS": self.group} if self.group > 1 else sizes


@dataclass(frozen=True, eq=False)
class Convolution(Grouped):
    """Convolution; the output size is rounded down. The types from branches of Caffe are depthwise."""

    caffe_type = "Convolution"
    other_types = DEPTHWISE
    sums_windows = True

    @property
    def out_shape(self) -> Shape:
        sizes = zip(self.in_shape[1:], dilated_kernel_size(self), self.stride, self.pad)
        return self.num_output, *((d + 2 * p - k) // s + 1 for d, k, s, p in sizes)

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, self.in_shape[0] // self.group, *self.window)
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        attributes = convolution_attributes(self)
        return crop(g, g.add("Conv", xs[0], *weights, group=self.group, **attributes), self)

    def trimmed(self, integers: Any, rows: bool = True, columns: bool = True) -> tuple[Layer, Any]:
        """Some converters write such zeros to get a padding that differs above and below, or left and right."""
        weights = integers.weights
        every = slice(None)
        used_rows = _used(weights.any(axis=(0, 1, 3)), self.pad[0]) if rows else every
        used_columns = _used(weights.any(axis=(0, 1, 2)), self.pad[1]) if columns else every
        weights = weights[:, :, used_rows, used_columns]
        if weights.shape[2:] == self.window:
            return self, integers
        known = {field.name: getattr(self, field.name) for field in fields(Convolution)}
        pad = self.pad[0] - (used_rows.start or 0), self.pad[1] - (used_columns.start or 0)
        known.update(window=weights.shape[2:], pad=pad)
        return _Trimmed(**known, full_shape=self.out_shape), replace(integers, weights=weights)


@dataclass(frozen=True, eq=False)
class _Trimmed(Convolution):
    """A convolution with trimmed windows and an unchanged output."""

    full_shape: tuple[int, ...] = ()

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.full_shape


def _used(nonzero: np.ndarray, pad: int) -> slice:
    """The part of a window's axis to keep; at the start, at most the padding can be cut off."""
    used = np.flatnonzero(nonzero)
    return slice(min(int(used[0]), pad), int(used[-1]) + 1) if used.size else slice(0, len(nonzero))


@dataclass(frozen=True, eq=False)
class DilatedConvolution(Convolution):
    """Convolution with dilation."""

    variant = "dilated"

    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """Ignores dilation along an axis where the window has one cell."""
        options = super().read_fields(message, in_shapes)
        dilation = along_axes("dilation", message.convolution_param.dilation) or (1, 1)
        along = tuple(d if k > 1 else min(d, 1) for k, d in zip(options["window"], dilation))
        return {**options, "dilation": along}

    def check(self) -> None:
        if min(self.dilation) < 1:
            raise UnsupportedLayer(f"dilation {self.dilation} must be at least 1")
        if any(k == 1 < d for k, d in zip(self.window, self.dilation)):
            raise UnsupportedLayer(f"dilation {self.dilation} of a kernel {self.window}")
        super().check()

    def trimmed(self, integers: Any, rows: bool = True, columns: bool = True) -> tuple[Layer, Any]:
        """Dilated windows are not trimmed."""
        return self, integers

    def defines(self) -> dict[str, int]:
        height, width = self.dilation
        return {
            **super().defines(),
            **({"DILATION": height} if self.square else {"DILATION_X": width, "DILATION_Y": height}),
        }


def convolution(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Convolution layer."""
    return Convolution if set(message.convolution_param.dilation) <= {1} else DilatedConvolution


AT_ONCE = 3  # pixels; with two outputs each, their sums fit into a core's registers


@dataclass(frozen=True)
class Strip:
    """The layout of a convolution's image columns in its scratch memory."""

    column: int  # elements in a window's column, rounded up to whole words
    pitch: int  # columns from one window to the next
    room: int  # columns that fit into the strip
    at_once: int  # windows computed together
    window: int  # columns in a window

    @property
    def length(self) -> int:
        """Elements in a window, rounded up to blocks of four."""
        return 4 * math.ceil(self.window * self.column / 4)


class OwnConvolution(WeightedLoop[Convolution], WindowLoop[Convolution, Integers]):
    """Grouped convolutions; scratch memory holds a strip of image columns as int16, where each window is contiguous."""

    header = "convolution_q7"
    libraries: ClassVar[tuple[Library, ...]] = (Q7, OWN)  # Arm's q7 kernels take one group, or one per channel
    trims = True

    def plan(self, layer: Convolution) -> Strip:
        """Room for three windows, or as much as the two windows of Arm's kernels take."""
        (height, width), pixels = layer.window, layer.out_shape[2]
        cells = height * layer.in_shape[0] // layer.group
        column = 2 * math.ceil(cells / 2)
        pitch, at_once = min(layer.stride[1], width), min(pixels, AT_ONCE)
        least, most = (width + (n - 1) * pitch for n in (at_once, pixels))
        return Strip(column, pitch, min(max(least, 2 * width * cells // column), most), at_once, width)

    def scratch_bytes(self, layer: Convolution, target: Target) -> int:
        """The strip, and the bytes that the last window's last block reads past it."""
        strip = self.plan(layer)
        return 2 * (strip.room * strip.column + strip.length - strip.window * strip.column)

    def layout(self, weights: np.ndarray, layer: Convolution) -> np.ndarray:
        outputs, depth, height, width = weights.shape
        columns = weights.transpose(0, 3, 2, 1).reshape(outputs, width, height * depth)
        columns = np.pad(columns, ((0, 0), (0, 0), (0, height * depth % 2)))
        groups = columns.reshape(layer.group, outputs // layer.group, -1)
        return np.concatenate([weight_layouts.blocks(group, 2, depth % 4 == 0) for group in groups])

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Convolution, integers: Integers, target: Target) -> str:
        return exact_onnx.convolution(g, xs[0], layer, integers, target)

    def calls(self, layer: Convolution, c: CNames) -> list[Statement]:
        return [self._scaling(c), *super().calls(layer, c)]

    def _arguments(self, layer: Convolution, c: CNames) -> list[str]:
        groups = c.macro("GROUPS") if layer.group > 1 else "1"
        sizes = [c.macro("IN_CH"), groups, c.macro("OUT_CH")]
        strip = [str(self.plan(layer).room), f"(q15_t *){c.scratch}"]
        return [*sizes, c.weights, self._bits, f"&{c.variable('out_scaling')}", *strip]

    def work(self, layer: Convolution) -> Work | None:
        """Counts blocks of two outputs of up to three pixels."""
        plan, narrow = self.plan(layer), self.weight_bits == 4
        full, rest = divmod(layer.out_shape[2], plan.at_once)
        pairs = layer.group * layer.out_shape[1] * math.ceil(layer.out_shape[0] / layer.group / 2)
        widening = 5 + 3 * narrow  # three instructions unpack eight 4-bit weights into two words
        inner = full * steps_of_four(plan.length // 4, widening + 5 * plan.at_once)
        inner += steps_of_four(plan.length // 4, widening + 5 * rest) if rest else 0
        groups = layer.out_shape[1] * (full + (rest > 0)) * layer.group
        fresh = layer.out_shape[1] * (plan.window + (layer.out_shape[2] - 1) * plan.pitch) * layer.group
        depth = layer.in_shape[0] // layer.group
        widened = fresh * layer.window[0] * depth
        return {
            "instruction": pairs * inner,
            "block": pairs * (full + (rest > 0)),
            "narrow block": narrow * pairs * (full + (rest > 0)),
            "pixel group": groups,
            "column": fresh,
            "widened number": widened / 4 if depth % 4 == 0 else widened,
        }


class OwnDilatedConvolution(OwnConvolution):
    """Dilated convolutions; windows that skip columns do not share columns in the strip."""

    def plan(self, layer: Convolution) -> Strip:
        plan, width = super().plan(layer), layer.window[1]
        return plan if layer.dilation[1] == 1 else replace(plan, pitch=width, room=width * plan.at_once)

    def _arguments(self, layer: Convolution, c: CNames) -> list[str]:
        return [*c.extent("DILATION"), *super()._arguments(layer, c)]


class OwnDepthwise(OwnConvolution):
    """Depthwise convolutions with one output per channel; no scratch memory."""

    header = "depthwise_q7"
    libraries: ClassVar[tuple[Library, ...]] = (OWN,)

    def scratch_bytes(self, layer: Convolution, target: Target) -> int:
        return 0

    def _taps(self, weights: np.ndarray) -> np.ndarray:
        """(C/4, KH * KW, 4)."""
        channels = np.pad(weights[:, 0], ((0, -len(weights) % 4), (0, 0), (0, 0)))
        return channels.reshape(len(channels) // 4, 4, -1).transpose(0, 2, 1)

    def layout(self, weights: np.ndarray, layer: Convolution) -> np.ndarray:
        return self._taps(weights).ravel()

    def _arguments(self, layer: Convolution, c: CNames) -> list[str]:
        return [c.macro("IN_CH"), c.weights, self._bits, f"&{c.variable('out_scaling')}"]

    def work(self, layer: Convolution) -> Work | None:
        fours = pixels(layer) * math.ceil(layer.in_shape[0] / 4)
        taps = fours * math.prod(layer.window)
        narrow = self.weight_bits == 4
        return {"depthwise tap": taps, "narrow depthwise tap": narrow * taps, "depthwise outputs": fours}


class PackedConvolution(Packed[Convolution], OwnConvolution):
    """With 4-bit weights."""


class PackedDilatedConvolution(Packed[Convolution], OwnDilatedConvolution):
    """With 4-bit weights."""


class PackedDepthwise(Packed[Convolution], OwnDepthwise):
    """With 4-bit weights."""

    def layout(self, weights: np.ndarray, layer: Convolution) -> np.ndarray:
        return weight_layouts.nibbles_of_taps(self._taps(weights))


_CONVOLUTION = (needs.indexable, needs.short_column)
_FAST = (
    needs.one_group,
    needs.channels_of_four_and_two,
    needs.output_covers_padding,
    needs.windows_within_padding,
    *_CONVOLUTION,
)
_WRAPPED = (needs.pixels_within_image, needs.indexable, needs.short_image_column)
_COLUMNS = (needs.one_channel_groups, needs.padding_within_kernel, *_CONVOLUTION)


# A kernel for square images computes rows with its nonsquare sibling. For three channels, this tool's convolution does,
# since that sibling takes 50 % more instructions.
_OWN = OwnConvolution("convolve_q7", _CONVOLUTION)
_FAST_ROWS = cmsis_q7.Convolution("arm_convolve_HWC_q7_fast_nonsquare", _FAST, nonsquare=True, unchecked_rows=True)
_DEPTHWISE_ROWS = cmsis_q7.Depthwise(
    "arm_depthwise_separable_conv_HWC_q7_nonsquare", (needs.depthwise, *_CONVOLUTION), nonsquare=True
)
_BASIC_ROWS = cmsis_q7.Convolution(
    "arm_convolve_HWC_q7_basic_nonsquare", (needs.one_group, *_CONVOLUTION), nonsquare=True
)
computed_by(
    Convolution,
    PackedDepthwise("depthwise_q7", (needs.depthwise, *_CONVOLUTION)),
    PackedConvolution("convolve_q7", _CONVOLUTION),
    cmsis_q7.Convolution(
        "arm_convolve_1x1_HWC_q7_fast_nonsquare", (needs.pointwise, *_FAST), nonsquare=True, unchecked_rows=True
    ),
    cmsis_q7.Convolution(
        "arm_convolve_HWC_q7_RGB",
        (needs.one_group, needs.three_channels, needs.square, *_CONVOLUTION),
        overread=1,
        row_kernel=_OWN,
        macs_cost=2.32,
    ),
    cmsis_q7.Convolution(
        "arm_convolve_HWC_q7_fast", (*_FAST, needs.square), row_kernel=_FAST_ROWS, unchecked_rows=True, macs_cost=1.75
    ),
    _FAST_ROWS,
    cmsis_q7.Depthwise(
        "arm_depthwise_separable_conv_HWC_q7",
        (needs.depthwise, needs.square, *_CONVOLUTION),
        row_kernel=_DEPTHWISE_ROWS,
    ),
    _DEPTHWISE_ROWS,
    cmsis_q7.Convolution(
        "arm_convolve_HWC_q7_basic",
        (needs.one_group, needs.square, *_CONVOLUTION),
        row_kernel=_BASIC_ROWS,
        macs_cost=4.35,
    ),
    _BASIC_ROWS,
    cmsis_s4.Convolution("arm_convolve_wrapper_s4", (needs.one_group, *_WRAPPED)),
    cmsis_s4.Depthwise("arm_depthwise_conv_wrapper_s4", (needs.single_or_even, needs.no_mve, *_COLUMNS)),
    cmsis_s4.PlainDepthwise("arm_depthwise_conv_s4", (needs.one_channel_groups, needs.even_channels, *_CONVOLUTION)),
    OwnDepthwise("depthwise_q7", (needs.depthwise, *_CONVOLUTION)),
    _OWN,
    cmsis_s8.Convolution("arm_convolve_wrapper_s8", (needs.wide_groups, *_WRAPPED)),
    cmsis_s8.Depthwise("arm_depthwise_conv_wrapper_s8", (needs.second_columns_within_image, *_COLUMNS)),
    cmsis_s8.PlainDepthwise("arm_depthwise_conv_s8", (needs.one_channel_groups, *_CONVOLUTION)),
)
computed_by(
    DilatedConvolution,
    PackedDilatedConvolution("convolve_dilated_q7", _CONVOLUTION),
    cmsis_s4.Convolution("arm_convolve_wrapper_s4", (needs.one_group, *_WRAPPED)),
    OwnDilatedConvolution("convolve_dilated_q7", _CONVOLUTION),
    cmsis_s8.Convolution("arm_convolve_wrapper_s8", (needs.wide_groups, *_WRAPPED)),
    cmsis_s8.Depthwise("arm_depthwise_conv_wrapper_s8", (needs.one_channel_groups, *_CONVOLUTION)),
)

CLASSES = (Convolution, DilatedConvolution)
CHOICES = dict.fromkeys(("Convolution", *DEPTHWISE), convolution)
