# SPDX-License-Identifier: Apache-2.0
"""Our own loops in own_q7.h, for what the library has no kernel for; all of them round half up, whatever the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from q7.kernels import exact_onnx
from q7.kernels.base import Array, Bounds, Kernel, WeightedKernel
from q7.kernels.call import Call, CNames, Declaration, Statement
from q7.onnx_graph import OnnxGraph
from q7.onnx_windows import crop, max_pool, same_axes, window_attributes
from q7.qformat import INT8_MAX, INT8_MIN
from q7.target import Api, Rounding, Target

MOST_ALIGNMENT = 16  # bits that operands are shifted left
MOST_MERGED_RSHIFT = 20  # bits from the finest operand to the output
MOST_OPERANDS = 128  # with 128 << 16 each, and the rounding term, they stay within 32 bits
MOST_POOLED_SHIFT = 7  # bits either way: 32768 cells of 8 bits, twice, stay within 32 bits
MOST_RESCALING = 8  # bits; further shifts of 8 bits change nothing


@dataclass(frozen=True)
class OwnLoop(Kernel):
    own_loop = True


@dataclass(frozen=True)
class Operands:
    """What each input is multiplied with, 1 or -1 times a power of two, and the shift to the output's format (bits)."""

    factors: tuple[int, ...]
    out_rshift: int

    @classmethod
    def align(cls, fraction_bits: Sequence[int], negative: Sequence[bool], output: int) -> Operands:
        """All inputs are brought to the finest format, that of the output included."""
        finest = max(*fraction_bits, output)
        factors = tuple((-1 if minus else 1) << (finest - n) for n, minus in zip(fraction_bits, negative))
        return cls(factors, finest - output)


@dataclass(frozen=True)
class Merge(OwnLoop):
    """clamp((f(factor * x, ...) + rounding term) >> out_rshift), where f is the sum or the maximum."""

    op: str = "Sum"

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        return True

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        scale = 2.0**-integers.out_rshift
        # Scaled by the power of two from the start, which keeps every number exact that its type holds.
        bound = 128 * sum(abs(factor) for factor in integers.factors) + (1 << integers.out_rshift)
        dtype = np.float32 if bound < exact_onnx.EXACT_FLOAT32 else np.float64
        terms = [
            g.add("Mul", x if dtype is np.float32 else g.cast(x, dtype), np.array(factor * scale, dtype))
            for x, factor in zip(same_axes(g, xs, layer), integers.factors)
        ]
        total = g.add(self.op, *terms)
        if integers.out_rshift:
            total = g.add("Floor", g.add("Add", total, np.array(0.5, dtype)))
        total = g.clip(total, INT8_MIN, INT8_MAX, dtype)
        return total if dtype is np.float32 else g.cast(total, np.float32)

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        operands = tuple((x, c.macro(f"FACTOR_{i}")) for i, x in enumerate(c.inputs, 1))
        name = c.variable("out_operands")
        return [
            Declaration("const operand_t", f"{name}[]", operands),
            Call(self.name, (name, str(len(operands)), c.macro("SIZE"), c.macro("OUT_RSHIFT"), c.output)),
        ]

    def defines(self, integers: Any) -> dict[str, int]:
        return {**{f"FACTOR_{i}": f for i, f in enumerate(integers.factors, 1)}, "OUT_RSHIFT": integers.out_rshift}


def rescaling(rshift: int) -> int:
    """A shift to the right (bits, negative to the left) that does the same to every int8, and that C allows."""
    return min(max(rshift, -MOST_RESCALING), MOST_RESCALING)


@dataclass(frozen=True)
class Concatenate(OwnLoop):
    """Each input, shifted to the output's format and saturated, goes to its channels of every pixel."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        parts = []
        for x, rshift in zip(same_axes(g, xs, layer), integers):
            scaled = g.add("Mul", x, np.array(2.0**-rshift, np.float32))
            half = np.array(0.5 if rshift > 0 else 0, np.float32)
            parts.append(exact_onnx.saturate(g, g.add("Floor", g.add("Add", scaled, half))))
        return g.add("Concat", *parts, axis=1)

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        calls: list[Statement] = []
        offset = 0
        for i, (x, shape) in enumerate(zip(c.inputs, layer.in_shapes), 1):
            source = (x, c.macro("PIXELS"), str(shape[0]), c.macro(f"RSHIFT_{i}"))
            calls.append(Call(self.name, (*source, f"{c.output} + {offset}", c.macro("OUT_CH"))))
            offset += shape[0]
        return calls

    def defines(self, integers: Any) -> dict[str, int]:
        return {f"RSHIFT_{i}": rshift for i, rshift in enumerate(integers, 1)}


def _rounded_division(g: OnnxGraph, total: str, multiplier: int, divisors: np.ndarray) -> str:
    """floor(total * multiplier / divisors + 1/2); float64 holds quotients of 32-bit integers without crossing one."""
    numerator = g.add("Mul", g.cast(total, np.float64), np.array(2.0 * multiplier))
    halves = divisors.astype(np.float64)
    quotient = g.add("Floor", g.add("Div", g.add("Add", numerator, halves), 2 * halves))
    return g.cast(g.clip(quotient, INT8_MIN, INT8_MAX, np.float64), np.float32)


@dataclass(frozen=True)
class Ratio:
    """A power of two as multiplier / divisor, one of which is 1."""

    multiplier: int
    divisor: int

    @classmethod
    def shift(cls, lshift: int) -> Ratio:
        """2**lshift (bits, may be negative)."""
        return cls(1 << max(lshift, 0), 1 << max(-lshift, 0))


@dataclass(frozen=True)
class WindowLoop(OwnLoop):
    """Windows of any shape, stride and padding; the image stays as it is."""

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        window = c.variable("out_window")
        sizes = (*c.input_extent, *c.window, *c.padding, *c.stride, *c.output_extent)
        return [
            Declaration("const window_t", window, sizes),
            Call(self.name, (c.input, f"&{window}", *self._arguments(c), c.output)),
        ]

    def _arguments(self, c: CNames) -> list[str]:
        return [c.macro("IN_CH")]


@dataclass(frozen=True)
class OwnMaxPool(WindowLoop):
    """The maximum of the cells in the image."""

    apis = (Api.Q7,)

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        return max_pool(g, xs[0], layer)


@dataclass(frozen=True)
class OwnAveragePool(WindowLoop):
    """sum * multiplier / (cells * divisor), rounded half up; cells as Caffe counts them, with some of the padding."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        if layer.covers_image:
            total = g.add("ReduceSum", xs[0], np.array([2, 3]))
        else:
            total = crop(g, exact_onnx.window_sum(g, xs[0], **window_attributes(layer)), layer)
        return _rounded_division(g, total, integers.multiplier, layer.divisors() * integers.divisor)

    def defines(self, integers: Any) -> dict[str, int]:
        return {"MULTIPLIER": integers.multiplier, "DIVISOR": integers.divisor}

    def _arguments(self, c: CNames) -> list[str]:
        return [c.macro(what) for what in ("IN_CH", "MULTIPLIER", "DIVISOR")]


@dataclass(frozen=True)
class GroupConvolution(WindowLoop, WeightedKernel):
    """Each group of outputs reads its own channels of every cell; weights are O,KH,KW,C of the group."""

    apis = (Api.Q7,)

    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        return weights.transpose(0, 2, 3, 1).ravel()

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        return exact_onnx.convolution(g, xs[0], layer, integers, Target(target.core, Rounding.NEAREST))

    def defines(self, integers: Any) -> dict[str, int]:
        return WeightedKernel.defines(self, integers)

    def _arguments(self, c: CNames) -> list[str]:
        sizes = [c.macro(what) for what in ("IN_CH", "GROUPS", "OUT_CH")]
        return [*sizes, c.weights, c.bias, c.macro("BIAS_LSHIFT"), c.macro("OUT_RSHIFT")]


@dataclass(frozen=True)
class Clamp(OwnLoop):
    """max(low, min(x, high))."""

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        return True

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        return g.clip(xs[0], integers.low, integers.high)

    def bounds(self, integers: Any) -> Bounds:
        assert isinstance(integers, Bounds)
        return integers

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        size = c.elements(layer.out_shape)
        return [Call(self.name, (c.input, size, c.macro("LOW"), c.macro("HIGH"), c.output))]

    def defines(self, integers: Any) -> dict[str, int]:
        return {"LOW": integers.low, "HIGH": integers.high}


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
        return exact_onnx.saturate(g, g.add("Floor", x))

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.output))]

    def defines(self, integers: Any) -> dict[str, int]:
        return {"RSHIFT": max(integers.rshift, 0), "LSHIFT": max(-integers.rshift, 0)}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        mean = integers.mean if integers.mean.any() else np.zeros((1, 1, 1))
        return [Array("MEAN_DATA", "mean", "uint8_t", mean.transpose(1, 2, 0).astype(np.uint8).ravel())]
