# SPDX-License-Identifier: Apache-2.0
"""Our own loops in own_q7.h, for what the library has no kernel for; all of them round half up, whatever the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import Array, Bounds, IntWidth, Kernel, Operands, stays_ahead
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import AverageView, AxisView, I_contra, L_contra, LayerView, WindowedView
from caffe_to_cmsis_nn.kernels.layout import lines
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import crop, max_pool, window_attributes
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Target

W_contra = TypeVar("W_contra", bound=WindowedView, contravariant=True)
LeftShift = int  # bits, may be negative
Rescalings = tuple[int, ...]  # shifts to the right of each input, bits
Shift = int  # to the right, bits, may be negative
Slope = float  # what negative inputs are multiplied with

LIMITED = ("SIZE", "OUT_RSHIFT", "ACT_MIN", "ACT_MAX")

MOST_ALIGNMENT = 16  # bits that operands are shifted left
MOST_MERGED_RSHIFT = 20  # bits from the finest operand to the output
MOST_PRODUCT_LSHIFT = 16  # bits that products of two are shifted left: they have 15 with their sign
MOST_OPERANDS = 128  # with 128 << 16 each, and the rounding term, they stay within 32 bits
MOST_POOLED_SHIFT = 7  # bits either way: 32768 cells of 8 bits, twice, stay within 32 bits
MOST_RESCALING = 8  # bits; further shifts of 8 bits change nothing


class OwnLoop(Kernel[L_contra, I_contra]):
    own_loop = True
    source = "templates/common/own_q7.h"


@dataclass(frozen=True)
class Merge(OwnLoop[LayerView, Operands]):
    """clamp((f(factor * x, ...) + rounding term) >> out_rshift), where f is the sum or the maximum."""

    promises_in_place = True
    limits = True

    op: str = "Sum"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Operands, target: Target) -> str:
        return exact_onnx.merge(g, xs, layer, integers, self.op)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        operands = tuple((x, c.macro(f"FACTOR_{i}")) for i, x in enumerate(c.inputs, 1))
        name = c.variable("out_operands")
        return [
            Declaration("const operand_t", f"{name}[]", operands),
            Call(self.name, (name, str(len(operands)), *map(c.macro, LIMITED), c.output)),
        ]

    def defines(self, integers: Operands) -> dict[str, int]:
        return {**{f"FACTOR_{i}": f for i, f in enumerate(integers.factors, 1)}, "OUT_RSHIFT": integers.out_rshift}


class ChannelSum(Merge):
    """Of two inputs, of which the second may be a vector with one number for each channel of the first."""

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return layer.in_shapes[0] == layer.in_shapes[1]

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        operands, call = super().calls(layer, c)
        assert isinstance(call, Call)
        name, _, size, *limits = call.arguments
        return [operands, replace(call, arguments=(name, size, _second_size(layer, size), *limits))]


def _second_size(layer: LayerView, size: str) -> str:
    """The elements of a second input, which may be a vector."""
    return size if layer.in_shapes[0] == layer.in_shapes[1] else str(layer.out_shape[0])


class Product(OwnLoop[LayerView, Shift]):
    """x * y, shifted; a second input that is a vector has one number for each channel of the first."""

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        return layer.in_shapes[0] == layer.in_shapes[1]

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Shift, target: Target) -> str:
        """Exact in float32: products have 15 bits."""
        total = g.add("Mul", *exact_onnx.same_axes(g, xs, layer))
        total = g.add("Mul", total, np.array(2.0**-integers, np.float32))
        half = np.array(0.5 if integers > 0 else 0, np.float32)
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", total, half)))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        size = c.macro("SIZE")
        shifts = (c.macro("OUT_LSHIFT"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (*c.inputs, size, _second_size(layer, size), *shifts, c.output))]

    def defines(self, integers: Shift) -> dict[str, int]:
        return {"OUT_LSHIFT": max(-integers, 0), "OUT_RSHIFT": max(integers, 0)}


def rescaling(rshift: int) -> int:
    """A shift to the right (bits, negative to the left) that does the same to every int8, and that C allows."""
    return min(max(rshift, -MOST_RESCALING), MOST_RESCALING)


class Concatenate(OwnLoop[AxisView, Rescalings]):
    """Each input, shifted to the output's format and saturated, goes to its channels of every pixel.

    Along another axis, what neighbours in memory takes the channels' place.
    """

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AxisView, integers: Rescalings, target: Target) -> str:
        parts = []
        for x, rshift in zip(exact_onnx.same_axes(g, xs, layer), integers):
            scaled = g.add("Mul", x, np.array(2.0**-rshift, np.float32))
            half = np.array(0.5 if rshift > 0 else 0, np.float32)
            parts.append(exact_onnx.saturate(g, g.add("Floor", g.add("Add", scaled, half))))
        return g.add("Concat", *parts, axis=layer.axis + 1)

    def calls(self, layer: AxisView, c: CNames) -> list[Statement]:
        calls: list[Statement] = []
        offset = 0
        stretches, whole, distance = lines(layer.out_shape, layer.axis)
        outer, length = str(stretches), str(whole * distance)
        if layer.axis == 0 and len(layer.out_shape) != 2:
            outer, length = c.macro("PIXELS"), c.macro("OUT_CH")
        for i, (x, shape) in enumerate(zip(c.inputs, layer.in_shapes), 1):
            part = shape[layer.axis] * distance
            source = (x, outer, str(part), c.macro(f"RSHIFT_{i}"))
            calls.append(Call(self.name, (*source, f"{c.output} + {offset}", length)))
            offset += part
        return calls

    def defines(self, integers: Rescalings) -> dict[str, int]:
        return {f"RSHIFT_{i}": rshift for i, rshift in enumerate(integers, 1)}


def _ratio(lshift: LeftShift) -> tuple[int, int]:
    """2**lshift as multiplier / divisor, one of which is 1."""
    return 1 << max(lshift, 0), 1 << max(-lshift, 0)


class WindowLoop(OwnLoop[W_contra, I_contra]):
    """Windows of any shape, stride and padding; the image stays as it is, unless the output takes its place."""

    def calls(self, layer: W_contra, c: CNames) -> list[Statement]:
        window = c.variable("out_window")
        sizes = tuple(size for pair in c.extents for size in pair)
        return [
            Declaration("const window_t", window, sizes),
            Call(self.name, (c.input, f"&{window}", *self._arguments(layer, c), c.output)),
        ]

    def _arguments(self, layer: W_contra, c: CNames) -> list[str]:
        return [c.macro("IN_CH")]


class PoolLoop(WindowLoop[W_contra, I_contra]):
    def in_place(self, layer: W_contra, promised_only: bool) -> bool:
        return stays_ahead(layer)


class OwnMaxPool(PoolLoop[WindowedView, object]):
    """The maximum of the cells in the image."""

    selects = True
    libraries = (Q7, OWN)

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: WindowedView, integers: object, target: Target) -> str:
        return max_pool(g, xs[0], layer)


class OwnAveragePool(PoolLoop[AverageView, LeftShift]):
    """sum * multiplier / (cells * divisor), rounded half up; cells as Caffe counts them, with some of the padding."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AverageView, integers: LeftShift, target: Target) -> str:
        if layer.covers_image:
            total = g.add("ReduceSum", xs[0], np.array([2, 3]))
        else:
            total = crop(g, exact_onnx.window_sum(g, xs[0], **window_attributes(layer)), layer)
        multiplier, divisor = _ratio(integers)
        # floor(total * multiplier / halves + 1/2); float64 holds quotients of 32-bit integers without crossing one.
        numerator = g.add("Mul", g.cast(total, np.float64), np.array(2.0 * multiplier))
        halves = (layer.divisors() * divisor).astype(np.float64)
        quotient = g.add("Floor", g.add("Div", g.add("Add", numerator, halves), 2 * halves))
        return g.cast(g.clip(quotient, INT8_MIN, INT8_MAX, np.float64), np.float32)

    def defines(self, integers: LeftShift) -> dict[str, int]:
        return dict(zip(("MULTIPLIER", "DIVISOR"), _ratio(integers)))

    def _arguments(self, layer: AverageView, c: CNames) -> list[str]:
        return [c.macro(what) for what in ("IN_CH", "MULTIPLIER", "DIVISOR")]


class Clamp(OwnLoop[LayerView, Bounds]):
    """max(low, min(x, high))."""

    promises_in_place = True

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Bounds, target: Target) -> str:
        return g.clip(xs[0], integers.low, integers.high)

    def bounds(self, integers: Bounds) -> Bounds:
        return integers

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        size = c.elements(layer.out_shape)
        return [Call(self.name, (c.input, size, c.macro("LOW"), c.macro("HIGH"), c.output))]

    def defines(self, integers: Bounds) -> dict[str, int]:
        return {"LOW": integers.low, "HIGH": integers.high}


def sigmoid_table() -> np.ndarray:
    """round(128 / (1 + exp(-k / 16))) for k = -128 to 127, as arm_nntables.c of CMSIS-NN 5.9.0 has it."""
    return np.minimum(np.floor(128 / (1 + np.exp(np.arange(-128, 128) / -16)) + 0.5), INT8_MAX)


def tanh_table() -> np.ndarray:
    """round(128 * tanh(k / 16)) for k = -128 to 127, as arm_nntables.c of CMSIS-NN 5.9.0 has it."""
    return np.minimum(np.floor(128 * np.tanh(np.arange(-128, 128) / 16) + 0.5), INT8_MAX)


class Lookup(OwnLoop[LayerView, I_contra]):
    """A table of the output of each of the 256 inputs."""

    promises_in_place = True

    def outputs(self, integers: I_contra) -> np.ndarray:
        """Of the inputs -128 to 127."""
        raise NotImplementedError

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: I_contra, target: Target) -> str:
        index = g.cast(g.add("Add", xs[0], np.array(-INT8_MIN, np.float32)), np.int64)
        return g.add("Gather", self.outputs(integers).astype(np.float32), index)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.elements(layer.out_shape), c.variable("table"), c.output))]

    def arrays(self, layer: LayerView, integers: I_contra, c: CNames) -> list[Array]:
        """Indexed by the input's bits as an unsigned number: 0 to 127 come before -128 to -1."""
        values = np.roll(self.outputs(integers), INT8_MIN).astype(np.int8)
        return [Array(f"{c.prefix}_TABLE", c.variable("table"), "int8_t", values)]


@dataclass(frozen=True)
class Curve(Lookup[IntWidth]):
    """table[x >> (3 - int_width)], as the q7 library computes it; the s8 library has no curves of 8 bits."""

    libraries = (S8, OWN)

    table: Callable[[], np.ndarray] = sigmoid_table

    def outputs(self, integers: IntWidth) -> np.ndarray:
        return self.table()[(np.arange(INT8_MIN, INT8_MAX + 1) >> (3 - integers)) - INT8_MIN]


class LeakyRelu(Lookup[Slope]):
    """x, and slope * x for negative inputs, rounded half to even and saturated."""

    def outputs(self, integers: Slope) -> np.ndarray:
        x = np.arange(INT8_MIN, INT8_MAX + 1)
        return np.clip(np.rint(np.where(x < 0, integers, 1) * x), INT8_MIN, INT8_MAX)


class Function(Lookup[np.ndarray]):
    """Any function of one number: the layer holds its 256 outputs."""

    def outputs(self, integers: np.ndarray) -> np.ndarray:
        return integers


MOST_PIXEL_SHIFT = 22  # 8-bit pixels stay within C's int


@dataclass(frozen=True, eq=False)
class Pixels:
    """The input layer on the device: integer mean to subtract, CHW or (C, 1, 1); shift right (bits, may be < 0)."""

    mean: np.ndarray
    rshift: int


class ReadPixels(Kernel[LayerView, Pixels]):
    """Our own loop: clamp((pixel - mean) >> rshift, -128, 127); a negative shift goes to the left."""

    source = "templates/common/_network.c.jinja"

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


@dataclass(frozen=True, eq=False)
class RealInput(Pixels):
    """What is made of real numbers before the device gets them: (x - mean) * scale, shifted; the mean is a float."""

    scale: float = 1.0


class ReadFeatures(Kernel[LayerView, RealInput]):
    """clamp(floor(x * 2**-rshift + 1/2)) in float32, which the program's quantize function does beforehand."""

    source = "templates/common/_network.c.jinja"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: RealInput, target: Target) -> str:
        x = g.add("Mul", g.add("Sub", xs[0], integers.mean.astype(np.float32)), np.array(integers.scale, np.float32))
        x = g.add("Mul", x, np.array(2.0**-integers.rshift, np.float32))
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", x, np.array(0.5, np.float32))))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.output))]
