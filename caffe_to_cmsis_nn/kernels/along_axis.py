# SPDX-License-Identifier: Apache-2.0
"""Our own loops along one axis of a blob: the softmax, the largest element's place, and sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import Array
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import AxisView, I_contra, LargestView
from caffe_to_cmsis_nn.kernels.layout import lines
from caffe_to_cmsis_nn.kernels.own_loops import OwnLoop
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import INT8_MAX
from caffe_to_cmsis_nn.target import Target

A_contra = TypeVar("A_contra", bound=AxisView, contravariant=True)


class _Along(OwnLoop[A_contra, I_contra]):
    def _lines(self, layer: A_contra, c: CNames) -> tuple[str, str, str]:
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


class SoftmaxAlong(_Along[AxisView, Exponentials]):
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


MOST_PLACES = 1 << 16  # beside 8 bits of a value, in 32


class LargestAlong(_Along[LargestView, object]):
    """The largest elements or their places, the largest first; of equal ones the last comes first, as in Caffe."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LargestView, integers: object, target: Target) -> str:
        return largest(g, xs[0], layer)

    def calls(self, layer: LargestView, c: CNames) -> list[Statement]:
        what = "VALUES" if layer.out_max_val else "PLACES"
        return [Call(self.name, (c.input, *self._lines(layer, c), str(layer.top_k), what, c.output))]


def largest(g: OnnxGraph, x: str, layer: LargestView) -> str:
    """Of a blob in Caffe's order; ONNX's TopK takes the first of equal ones, and so gets them from the last on."""
    axis, count = layer.axis + 1, layer.in_shape[layer.axis]
    backwards = g.add("Gather", x, np.arange(count)[::-1], axis=axis)
    values, places = g.add_all(2, "TopK", backwards, np.array([layer.top_k]), axis=axis)
    return values if layer.out_max_val else g.cast(g.add("Sub", np.array(count - 1), places), np.float32)


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
class Reduce(_Along[AxisView, Ratio]):
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
        outputs, count = math.prod(layer.out_shape), math.prod(layer.in_shape) // math.prod(layer.out_shape)
        sums = (1, outputs, 0, count, 1)  # of neighbours
        if layer.axis and len(layer.in_shape) == 3:  # of some of an image's channel, whose cells are apart
            channels = layer.in_shape[0]
            sums = (channels, outputs // channels, 1, count * channels, channels)
        ratio = (c.macro("MULTIPLIER"), c.macro("OUT_RSHIFT"))
        name = c.variable("out_sums")
        return [
            Declaration("const sums_t", name, (*map(str, (*sums[:2], count, *sums[2:])), self.terms)),
            Call(self.name, (c.input, f"&{name}", *ratio, c.output)),
        ]

    def defines(self, integers: Ratio) -> dict[str, int]:
        return {"MULTIPLIER": integers.multiplier, "OUT_RSHIFT": integers.rshift}
