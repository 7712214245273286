# SPDX-License-Identifier: Apache-2.0
"""Caffe's Pooling (pooling_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_q7, cmsis_s8, constraints, exact_onnx
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import (
    RowForm,
    Work,
    can_pool_in_place,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import I_contra, WindowedView
from caffe_to_cmsis_nn.kernels.instructions import elements, pixels
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import (
    crop,
    max_pool,
    window_attributes,
    window_cells,
)
from caffe_to_cmsis_nn.ops.base import Layer, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.windowed import (
    W_contra,
    Windowed,
    WindowLoop,
    height_and_width,
    spatial,
    window_defines,
)
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, LayerFormats, QFormat
from caffe_to_cmsis_nn.target import OWN, Q7, Target

LeftShift = int  # bits, may be negative
MOST_POOLED_SHIFT = 7  # bits either way; twice the sum of 32768 cells of 8 bits then fits into 32 bits


@dataclass(frozen=True, eq=False)
class Pooling(Windowed):
    """A layer with Caffe's PoolingParameter."""

    caffe_type = "Pooling"
    homogeneous = True

    round_up: bool = True

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.pooling_param
        spatial(in_shapes[0])
        round_up = param.round_mode == param.CEIL
        if param.HasField("ceil_mode"):  # in branches of Caffe, instead of round_mode
            if param.HasField("round_mode") and param.ceil_mode is not round_up:
                raise UnsupportedLayer("ceil_mode and round_mode contradict each other")
            round_up = param.ceil_mode
        if param.global_pooling:
            return {"window": in_shapes[0][1:], "round_up": round_up}
        sizes = [param.kernel_size] if param.HasField("kernel_size") else []
        return {
            "window": height_and_width("kernel_size", sizes, param, "kernel", None),
            "stride": height_and_width("stride", [param.stride], param, "stride", 1),
            "pad": height_and_width("pad", [param.pad], param, "pad", 0),
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
            # With padding, Caffe drops a last window that starts after the image.
            sizes.append(out - 1 if max(self.pad) > 0 and (out - 1) * s >= d + p else out)
        return self.in_shape[0], *sizes

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], **window_defines(self)}


class MaxPooling(Pooling):
    """MAX; the output size is rounded up, and windows are clipped to the image (pooling_layer.cpp)."""

    variant = "MAX"

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return max_pool(g, xs[0], self)


class AveragePooling(Pooling):
    """AVE; as MAX, but the average includes padded cells."""

    variant = "AVE"
    simulates_rounding = True

    @property
    def covers_image(self) -> bool:
        return covers_image(self.in_shape, self.window, self.pad)

    def check(self) -> None:
        super().check()
        if self.covers_image is not self.own_format:
            raise UnsupportedLayer("only the average of a whole image has its own format")

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> LeftShift:
        assert formats.x and formats.y
        return formats.y.fraction_bits - formats.x.fraction_bits

    def divisors(self) -> np.ndarray:
        """(height, width) the divisor of each window's sum: its cells in the padded image, as Caffe counts them."""
        geometry = zip(self.in_shape[1:], self.out_shape[1:], self.window, self.stride, self.pad)
        rows, columns = (window_cells(d + 2 * p, o, k, s, 0) for d, o, k, s, p in geometry)
        return rows[:, None] * columns

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        correction = math.prod(self.window) / self.divisors()
        mean = crop(g, g.add("AveragePool", xs[0], count_include_pad=1, **window_attributes(self)), self)
        return mean if (correction == 1).all() else g.add("Mul", mean, correction.astype(np.float32))


class GlobalAveragePooling(AveragePooling):
    """AVE over the whole image; the average has its own format, since its range is far smaller than the pixels'."""

    variant = "global AVE"
    own_format = True

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """abs(n_y - n_x) <= 7, so that the sum times 2**(n_y - n_x) fits into 32 bits."""
        return xs[0].fraction_bits - MOST_POOLED_SHIFT, xs[0].fraction_bits + MOST_POOLED_SHIFT


def covers_image(in_shape: Shape, window: Sequence[int], pad: Sequence[int]) -> bool:
    """Whether one window covers the whole image."""
    return tuple(pad) == (0, 0) and all(k >= d for k, d in zip(window, in_shape[1:]))


def pooling(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of a Pooling layer."""
    param = message.pooling_param
    if param.pool == param.STOCHASTIC:
        raise UnsupportedLayer("STOCHASTIC pooling, allowed are MAX and AVE")
    if param.pool == param.MAX:
        return MaxPooling
    options = AveragePooling.read_fields(message, in_shapes)
    whole = covers_image(in_shapes[0], options["window"], options.get("pad", (0, 0)))
    return GlobalAveragePooling if whole else AveragePooling


class PoolLoop(WindowLoop[W_contra, I_contra]):
    header = "pooling_q7"

    def in_place(self, layer: W_contra, promised_only: bool) -> bool:
        return can_pool_in_place(layer)


class OwnMaxPool(PoolLoop[WindowedView, object]):
    """The maximum of a window's cells within the image."""

    selects = True
    libraries = (Q7, OWN)

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: WindowedView, integers: object, target: Target) -> str:
        return max_pool(g, xs[0], layer)

    def work(self, layer: WindowedView) -> Work | None:
        channels = layer.in_shape[0]
        words = pixels(layer) * (channels // 4 + channels % 4)
        return {"maximum cell": words * math.prod(layer.window)}


def _ratio(lshift: LeftShift) -> tuple[int, int]:
    """2**lshift as multiplier / divisor, one of which is 1."""
    return 1 << max(lshift, 0), 1 << max(-lshift, 0)


class OwnAveragePool(PoolLoop[AveragePooling, LeftShift]):
    """sum * multiplier / (cells * divisor), rounded half up; cells include padding, as in Caffe."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AveragePooling, integers: LeftShift, target: Target) -> str:
        if layer.covers_image:
            total = g.add("ReduceSum", xs[0], np.array([2, 3]))
        else:
            total = crop(g, exact_onnx.window_sum(g, xs[0], **window_attributes(layer)), layer)
        multiplier, divisor = _ratio(integers)
        # floor(total * multiplier / halves + 1/2) is exact: float64 divides 32-bit integers without reaching the next.
        numerator = g.add("Mul", g.cast(total, np.float64), np.array(2.0 * multiplier))
        halves = (layer.divisors() * divisor).astype(np.float64)
        quotient = g.add("Floor", g.add("Div", g.add("Add", numerator, halves), 2 * halves))
        return g.cast(g.clip(quotient, INT8_MIN, INT8_MAX, np.float64), np.float32)

    def defines(self, integers: LeftShift) -> dict[str, int]:
        return dict(zip(("MULTIPLIER", "DIVISOR"), _ratio(integers)))

    def _arguments(self, layer: AveragePooling, c: CNames) -> list[str]:
        return [c.macro(what) for what in ("IN_CH", "MULTIPLIER", "DIVISOR")]

    def row_form(self, layer: AveragePooling, target: Target) -> RowForm | None:
        if layer.covers_image:
            return RowForm(SummedAveragePool("avepool_of_sums_q7"))
        # A single row does not show how much padding below the image Caffe counts.
        return RowForm(self) if layer.pad[0] == 0 else None

    def work(self, layer: AveragePooling) -> Work | None:
        return {"averaged cell": elements(layer) * math.prod(layer.window), "average": elements(layer)}


class SummedAveragePool(OwnAveragePool):
    """The average of a whole image, from sums that take one row per call."""

    sums_rows = True

    def _sums(self, c: CNames) -> str:
        return f"(q31_t *)(void *){c.output}"

    def calls(self, layer: AveragePooling, c: CNames) -> list[Statement]:
        """Adds a row; `c.output` holds a 32-bit sum per channel until the last row."""
        return [Call("add_row_q7", (c.input, c.input_extent.x, c.macro("IN_CH"), c.macro("FIRST_ROW"), self._sums(c)))]

    def last_calls(self, layer: AveragePooling, c: CNames) -> list[Statement]:
        """Turns the sums into the output."""
        cells = str(layer.in_shape[1] * layer.in_shape[2])
        ratio = (c.macro("MULTIPLIER"), c.macro("DIVISOR"))
        return [Call(self.name, (self._sums(c), c.macro("IN_CH"), cells, *ratio, c.output))]


_WINDOWS = (needs.no_empty_window, needs.indexable)
_DSP_POOL = (needs.pooled_row, needs.padding_below_stride, needs.input_may_be_lost)
_POOL = (needs.square, *_WINDOWS, needs.output_within_input, *_DSP_POOL)
_OWN_MAXIMUM = OwnMaxPool("maxpool_q7", _WINDOWS)
_OWN_AVERAGE = OwnAveragePool("avepool_q7", (*_WINDOWS, needs.countable))
computed_by(
    MaxPooling,
    cmsis_q7.MaxPool("arm_maxpool_q7_HWC", _POOL, row_kernel=_OWN_MAXIMUM),
    cmsis_s8.MaxPool("arm_max_pool_s8", _WINDOWS),
    _OWN_MAXIMUM,
)
computed_by(
    AveragePooling,
    cmsis_s8.AveragePool("arm_avgpool_s8", (needs.unpadded, *_WINDOWS, needs.countable)),
    _OWN_AVERAGE,
)
computed_by(GlobalAveragePooling, _OWN_AVERAGE)

CLASSES = (MaxPooling, AveragePooling, GlobalAveragePooling)
CHOICES = {"Pooling": pooling}
