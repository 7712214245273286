# SPDX-License-Identifier: Apache-2.0
"""Our own loops along one axis of a blob: the softmax, the largest element's place, and sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q7.kernels import exact_onnx
from q7.kernels.base import Array
from q7.kernels.call import Call, CNames, Statement
from q7.kernels.contract import AxisView, I_contra
from q7.kernels.layout import lines
from q7.kernels.own_loops import OwnLoop
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX
from q7.target import Target


class _Along(OwnLoop[AxisView, I_contra]):
    def _lines(self, layer: AxisView, c: CNames) -> tuple[str, str, str]:
        """C's loops over the input; of channels, which a row holds all of, `PIXELS` says how many stretches."""
        stretches, count, distance = map(str, lines(layer.in_shape, layer.axis))
        return c.replaced.get("PIXELS", stretches) if layer.axis == 0 else stretches, count, distance


MOST_EXPONENTIAL_BITS = 23  # 128 times an exponential, and half of their sum, stay within 32 bits


@dataclass(frozen=True, eq=False)
class Exponentials:
    """uint32 (256,): of 0, -1, ... -255 on the input's grid; `count` of the largest stay within 31 bits."""

    table: np.ndarray

    @classmethod
    def of(cls, fraction_bits: int, count: int) -> Exponentials:
        """Rounded half to even; with so many fraction bits of the inputs, and so many inputs that are added up."""
        bits = min(MOST_EXPONENTIAL_BITS, 31 - (count - 1).bit_length())
        return cls(np.rint(np.ldexp(np.exp(-np.ldexp(np.arange(256.0), -fraction_bits)), bits)).astype(np.uint32))


class SoftmaxAlong(_Along[Exponentials]):
    """exp(x - largest) * 128 / sum of these, rounded half up."""

    promises_in_place = True

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AxisView, integers: Exponentials, target: Target) -> str:
        axis = layer.axis + 1
        below = g.add("Sub", g.add("ReduceMax", xs[0], axes=[axis], keepdims=1), xs[0])
        powers = g.add("Gather", integers.table.astype(np.float64), g.cast(below, np.int64))
        total = g.add("ReduceSum", powers, np.array([axis]), keepdims=1)
        half = g.add("Floor", g.add("Mul", total, np.array(0.5)))
        quotient = g.add("Div", g.add("Add", g.add("Mul", powers, np.array(128.0)), half), total)
        return g.cast(g.clip(g.add("Floor", quotient), 0, INT8_MAX, np.float64), np.float32)

    def calls(self, layer: AxisView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, *self._lines(layer, c), c.variable("table"), c.output))]

    def arrays(self, layer: AxisView, integers: Exponentials, c: CNames) -> list[Array]:
        return [Array(f"{c.prefix}_TABLE", c.variable("table"), "uint32_t", integers.table)]


class ArgMaxAlong(_Along[object]):
    """The last place of the largest element, as pycaffe's ArgMax gives it."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AxisView, integers: object, target: Target) -> str:
        return g.cast(g.add("ArgMax", xs[0], axis=layer.axis + 1, keepdims=1, select_last_index=1), np.float32)

    def calls(self, layer: AxisView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, *self._lines(layer, c), c.output))]


MOST_REDUCED = 1 << 17  # elements, so that sums of squares stay within 32 bits
MOST_REDUCTION_SHIFT = 46  # bits, so that 64 hold the rounding term, too


@dataclass(frozen=True)
class Ratio:
    """(sum * multiplier + rounding term) >> rshift, in 64 bits; the multiplier has 15 bits and a sign."""

    multiplier: int
    rshift: int

    @classmethod
    def fit(cls, factor: float) -> Ratio:
        """The nearest to a factor."""
        if factor == 0:
            return cls(0, 1)
        rshift = min(max(14 - math.frexp(factor)[1] + 1, 1), MOST_REDUCTION_SHIFT)
        limit = (1 << 15) - 1
        return cls(min(max(round(math.ldexp(factor, rshift)), -limit), limit), rshift)


@dataclass(frozen=True)
class Reduce(_Along[Ratio]):
    """The sum of elements, of their magnitudes or of their squares, times a number; rounded half up."""

    terms: str = "ELEMENTS"  # what is added up, in C

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: AxisView, integers: Ratio, target: Target) -> str:
        flat = g.cast(g.add("Reshape", xs[0], np.array([0, *layer.out_shape, -1])), np.float64)
        added = {"MAGNITUDES": ("Abs", flat), "SQUARES": ("Mul", flat, flat)}.get(self.terms)
        terms = g.add(*added) if added else flat
        total = g.add("ReduceSum", terms, np.array([-1]), keepdims=0)
        scaled = g.add("Mul", total, np.array(math.ldexp(integers.multiplier, -integers.rshift)))
        return exact_onnx.saturate(g, g.cast(g.add("Floor", g.add("Add", scaled, np.array(0.5))), np.float32))

    def calls(self, layer: AxisView, c: CNames) -> list[Statement]:
        count = str(math.prod(layer.in_shape) // math.prod(layer.out_shape))
        # Of an image's channels each, whose cells are as many bytes apart as there are channels; else of neighbours.
        apart = (str(layer.in_shape[0]), "1") if layer.axis == 1 and len(layer.in_shape) == 3 else ("1", count)
        sizes = (str(math.prod(layer.out_shape)), apart[1], count, apart[0])
        ratio = (c.macro("MULTIPLIER"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (c.input, *sizes, self.terms, *ratio, c.output))]

    def defines(self, integers: Ratio) -> dict[str, int]:
        return {"MULTIPLIER": integers.multiplier, "OUT_RSHIFT": integers.rshift}
