# SPDX-License-Identifier: Apache-2.0
"""Layers that look at their input through windows, and the inner product, which has one for all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import constraints, registry
from caffe_to_cmsis_nn.kernels.base import Integers
from caffe_to_cmsis_nn.kernels.contract import WindowedView
from caffe_to_cmsis_nn.kernels.own_loops import MOST_POOLED_SHIFT, LeftShift
from caffe_to_cmsis_nn.kernels.weight_layouts import exchanged
from caffe_to_cmsis_nn.layers.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import (
    convolution_attributes,
    crop,
    deconvolution_attributes,
    max_pool,
    reach,
    window_attributes,
    window_cells,
)
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat, shifts
from caffe_to_cmsis_nn.target import Target


def _along_axes(what: str, values: Sequence[int]) -> tuple[int, int] | None:
    """(height, width) of a repeated field."""
    if len(values) > 2:
        raise UnsupportedLayer(f"{what} has {len(values)} spatial axes, allowed are 2")
    return (values[0], values[-1]) if values else None


def _pair(what: str, values: Sequence[int], param: Any, prefix: str, default: int | None) -> tuple[int, int]:
    """(height, width) of a repeated or single field, or of its _h and _w forms (Caffe's base_conv_layer.cpp)."""
    pair = _along_axes(what, values)
    if param.HasField(f"{prefix}_h") or param.HasField(f"{prefix}_w"):
        return getattr(param, f"{prefix}_h"), getattr(param, f"{prefix}_w")
    if pair:
        return pair
    if default is None:
        raise UnsupportedLayer(f"{what} is missing")
    return default, default


def window_defines(layer: WindowedView) -> dict[str, int]:
    """Macros of a layer's windows, without its prefix."""
    pairs = {
        "IN_DIM": layer.in_shape[1:],
        "KER_DIM": layer.window,
        "PAD": layer.pad,
        "STRIDE": layer.stride,
        "OUT_DIM": layer.out_shape[1:],
    }
    if layer.square:
        return {what: pair[0] for what, pair in pairs.items()}
    return {f"{what}_{axis}": pair[i] for what, pair in pairs.items() for axis, i in (("X", 1), ("Y", 0))}


@dataclass(frozen=True, eq=False)
class _Windowed(Layer):
    """What convolution and pooling share; pairs are (height, width)."""

    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation = (1, 1)  # a field where windows may skip cells

    @property
    def square(self) -> bool:
        sizes = (self.in_shape[1:], self.out_shape[1:], self.window, self.stride, self.pad, self.dilation)
        return all(height == width for height, width in sizes)

    def check(self) -> None:
        if min(*self.window, *self.stride) < 1:
            raise UnsupportedLayer(f"kernel {self.window} and stride {self.stride} must be at least 1")
        if min(self.out_shape) < 1:
            raise UnsupportedLayer(f"its output would be empty: input {self.in_shape}, kernel {self.window}")

    def describe(self) -> str:
        return f"{super().describe()}, kernel {self.window[0]}x{self.window[1]}, stride {self.stride[0]}"


def spatial(in_shape: Shape) -> None:
    """Raises UnsupportedLayer where a layer's input is no image."""
    if len(in_shape) != 3:
        raise UnsupportedLayer(f"its input has shape {in_shape}, allowed is (channels, height, width)")


class _Weighted(Layer):
    weighted = True
    own_format = True
    floors = True

    @property
    def macs(self) -> int:
        """Each weight is used once for each pixel of the output."""
        return math.prod(self.out_shape[1:]) * math.prod(self.weight_shapes()[0])

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """A missing bias becomes zeros, since kernels always read one."""
        return blobs[0], blobs[1] if len(blobs) > 1 else np.zeros(len(blobs[0]), np.float32)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Integers:
        assert weights and formats.w
        return Integers(formats.w.quantize(weights[0]), formats.quantize_bias(weights[1]), shifts(formats))


DEPTHWISE = ("ConvolutionDepthwise", "DepthwiseConvolution")


def _groups(message: Any, channels: int) -> int:
    """Of a convolution; types for one group for each channel do not need the field."""
    group: int = message.convolution_param.group
    if message.type not in DEPTHWISE:
        return group
    if group not in (1, channels):
        raise UnsupportedLayer(f"group {group}, allowed are as many groups as channels, {channels}")
    return channels


@dataclass(frozen=True, eq=False)
class Grouped(_Windowed, _Weighted):
    """What Caffe's ConvolutionParameter says."""

    num_output: int = 1
    group: int = 1
    bias_term: bool = True

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.convolution_param
        spatial(in_shapes[0])
        if param.axis != 1:
            raise UnsupportedLayer(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise UnsupportedLayer("num_output is missing")
        group = _groups(message, in_shapes[0][0])
        if group < 1 or in_shapes[0][0] % group or param.num_output % group:
            raise UnsupportedLayer(
                f"group {group} does not divide {in_shapes[0][0]} inputs and {param.num_output} outputs"
            )
        return {
            "window": _pair("kernel_size", param.kernel_size, param, "kernel", None),
            "stride": _pair("stride", param.stride, param, "stride", 1),
            "pad": _pair("pad", param.pad, param, "pad", 0),
            "num_output": param.num_output,
            "group": group,
            "bias_term": param.bias_term,
        }

    def defines(self) -> dict[str, int]:
        sizes = {"IN_CH": self.in_shape[0], "OUT_CH": self.num_output, **window_defines(self)}
        return {**sizes, "GROUPS": self.group} if self.group > 1 else sizes


@computed_by(registry.CONVOLUTION)
@dataclass(frozen=True, eq=False)
class Convolution(Grouped):
    """The output size rounds down. The types of branches have as many groups as channels."""

    caffe_type = "Convolution"
    other_types = DEPTHWISE
    sums_windows = True

    @property
    def out_shape(self) -> Shape:
        sizes = zip(self.in_shape[1:], reach(self), self.stride, self.pad)
        return self.num_output, *((d + 2 * p - k) // s + 1 for d, k, s, p in sizes)

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, self.in_shape[0] // self.group, *self.window)
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        attributes = convolution_attributes(self)
        return crop(g, g.add("Conv", xs[0], *weights, group=self.group, **attributes), self)


@computed_by(registry.DILATED_CONVOLUTION)
@dataclass(frozen=True, eq=False)
class DilatedConvolution(Convolution):
    """With dilation: windows take every second row or column, or fewer."""

    variant = "dilated"

    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """Along an axis in which a window has one cell, dilation means nothing."""
        options = super().options(message, in_shapes)
        dilation = _along_axes("dilation", message.convolution_param.dilation) or (1, 1)
        along = tuple(d if k > 1 else min(d, 1) for k, d in zip(options["window"], dilation))
        return {**options, "dilation": along}

    def check(self) -> None:
        if min(self.dilation) < 1:
            raise UnsupportedLayer(f"dilation {self.dilation} must be at least 1")
        if any(k == 1 < d for k, d in zip(self.window, self.dilation)):
            raise UnsupportedLayer(f"dilation {self.dilation} of a kernel {self.window}")
        super().check()

    def defines(self) -> dict[str, int]:
        height, width = self.dilation
        return {
            **super().defines(),
            **({"DILATION": height} if self.square else {"DILATION_X": width, "DILATION_Y": height}),
        }


def convolution(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Convolution layer."""
    return Convolution if set(message.convolution_param.dilation) <= {1} else DilatedConvolution


@computed_by(registry.DECONVOLUTION)
@dataclass(frozen=True, eq=False)
class Deconvolution(Grouped):
    """Each pixel adds its products with a window of weights to the output, `stride` cells apart (deconv_layer.cpp).

    Weights are (inputs, outputs of a group, height, width).
    """

    caffe_type = "Deconvolution"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        dilation = list(message.convolution_param.dilation)
        if set(dilation) - {1}:
            raise UnsupportedLayer(f"dilation {dilation}, allowed is 1")
        return super().options(message, in_shapes)

    @property
    def out_shape(self) -> Shape:
        sizes = zip(self.in_shape[1:], self.window, self.stride, self.pad)
        return self.num_output, *((d - 1) * s + k - 2 * p for d, k, s, p in sizes)

    @property
    def macs(self) -> int:
        """Each weight is used once for each pixel of the input."""
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


@computed_by(registry.FULLY_CONNECTED)
@dataclass(frozen=True, eq=False)
class InnerProduct(_Weighted):
    """Caffe's InnerProduct: an image is flattened in CHW order."""

    caffe_type = "InnerProduct"
    sums_windows = True
    flattens = True
    any_rank = True

    num_output: int = 1
    bias_term: bool = True
    transpose: bool = False

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.inner_product_param
        if param.axis != 1:
            raise UnsupportedLayer(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise UnsupportedLayer("num_output is missing")
        return {"num_output": param.num_output, "bias_term": param.bias_term, "transpose": param.transpose}

    @property
    def out_shape(self) -> Shape:
        return (self.num_output,)

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, math.prod(self.in_shape))
        weights = weights[::-1] if self.transpose else weights
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        w = np.ascontiguousarray(blobs[0].T) if self.transpose else blobs[0]
        return super().load([w, *blobs[1:]])

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("Gemm", g.add("Flatten", xs[0]), *weights, transB=1)

    def defines(self) -> dict[str, int]:
        return {"IN_DIM": math.prod(self.in_shape), "OUT_DIM": self.num_output}


@dataclass(frozen=True, eq=False)
class Pooling(_Windowed):
    """What all of Caffe's poolings share."""

    caffe_type = "Pooling"
    homogeneous = True

    round_up: bool = True

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.pooling_param
        spatial(in_shapes[0])
        round_up = param.round_mode == param.CEIL
        if param.HasField("ceil_mode"):  # of branches that have it in place of round_mode
            if param.HasField("round_mode") and param.ceil_mode is not round_up:
                raise UnsupportedLayer("ceil_mode and round_mode contradict each other")
            round_up = param.ceil_mode
        if param.global_pooling:
            return {"window": in_shapes[0][1:], "round_up": round_up}
        sizes = [param.kernel_size] if param.HasField("kernel_size") else []
        return {
            "window": _pair("kernel_size", sizes, param, "kernel", None),
            "stride": _pair("stride", [param.stride], param, "stride", 1),
            "pad": _pair("pad", [param.pad], param, "pad", 0),
            "round_up": round_up,
        }

    def check(self) -> None:
        if any(p >= k for p, k in zip(self.pad, self.window)):
            raise UnsupportedLayer(f"pad {self.pad} must be below the kernel {self.window}")
        super().check()
        if not constraints.no_empty_window(self, Target()):
            raise UnsupportedLayer(
                f"the last window lies outside the image: kernel {self.window}, stride {self.stride}"
            )

    @property
    def out_shape(self) -> Shape:
        sizes = []
        for d, k, s, p in zip(self.in_shape[1:], self.window, self.stride, self.pad):
            out = -(-(d + 2 * p - k) // s) + 1 if self.round_up else (d + 2 * p - k) // s + 1
            # With padding, Caffe drops a last window that would start after the image.
            sizes.append(out - 1 if max(self.pad) > 0 and (out - 1) * s >= d + p else out)
        return self.in_shape[0], *sizes

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], **window_defines(self)}


@computed_by(registry.MAX_POOL)
class MaxPooling(Pooling):
    """MAX: the output size rounds up, and windows are clipped (pooling_layer.cpp)."""

    variant = "MAX"

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return max_pool(g, xs[0], self)


@computed_by(registry.AVERAGE_POOL)
class AveragePooling(Pooling):
    """AVE: as MAX, but cells of the padding count."""

    variant = "AVE"
    floors = True

    @property
    def covers_image(self) -> bool:
        return covers_image(self.in_shape, self.window, self.pad)

    def check(self) -> None:
        super().check()
        if self.covers_image is not self.own_format:
            raise UnsupportedLayer("the mean of a whole image, and no other, has a format of its own")

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> LeftShift:
        assert formats.x and formats.y
        return formats.y.fraction_bits - formats.x.fraction_bits

    def divisors(self) -> np.ndarray:
        """(height, width) cells of each window clipped to the padded image: what Caffe divides a sum by."""
        geometry = zip(self.in_shape[1:], self.out_shape[1:], self.window, self.stride, self.pad)
        rows, columns = (window_cells(d + 2 * p, o, k, s, 0) for d, o, k, s, p in geometry)
        return rows[:, None] * columns

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        correction = math.prod(self.window) / self.divisors()
        mean = crop(g, g.add("AveragePool", xs[0], count_include_pad=1, **window_attributes(self)), self)
        return mean if (correction == 1).all() else g.add("Mul", mean, correction.astype(np.float32))


@computed_by(registry.OWN_AVERAGE_POOL)
class GlobalAveragePooling(AveragePooling):
    """AVE over the whole image, whose mean has a far smaller range than its pixels, and so a format of its own."""

    variant = "global AVE"
    own_format = True

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """abs(n_y - n_x) <= 7, so that the sum times or divided by 2**(n_y - n_x) stays within 32 bits."""
        return xs[0].fraction_bits - MOST_POOLED_SHIFT, xs[0].fraction_bits + MOST_POOLED_SHIFT


def covers_image(in_shape: Shape, window: Sequence[int], pad: Sequence[int]) -> bool:
    """Whether one window is the whole image."""
    return tuple(pad) == (0, 0) and all(k >= d for k, d in zip(window, in_shape[1:]))


def pooling(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Pooling layer."""
    param = message.pooling_param
    if param.pool == param.STOCHASTIC:
        raise UnsupportedLayer("STOCHASTIC pooling, allowed are MAX and AVE")
    if param.pool == param.MAX:
        return MaxPooling
    options = AveragePooling.options(message, in_shapes)
    whole = covers_image(in_shapes[0], options["window"], options.get("pad", (0, 0)))
    return GlobalAveragePooling if whole else AveragePooling
