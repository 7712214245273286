# SPDX-License-Identifier: Apache-2.0
"""Caffe's LRN (lrn_layer.cpp): local response normalisation across channels or within each.

It computes x * (k + alpha / cells * s)**-beta, where s is the sum of x**2 over some cells.

The sum is an exact integer. The power is interpolated linearly in a table of 16-bit numbers. Each octave of about
s + k / alpha has 2**steps pieces of equal length. Interpolation then errs by at most 2**-10 of the power, which is 1/8
of an output step. The table's rounding adds at most 1/4 of a step. So before the final rounding, the result is less
than half a step from the real number, for every input and format (tests/test_lrn.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels.base import (
    Array,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import L_contra
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.windowed import WindowLoop, spatial, window_defines
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, LayerFormats
from caffe_to_cmsis_nn.target import Target

MOST_CELLS = 1023  # the sum of their squares is below 2**24, hence exact in float32
MOST_OFFSET_BITS = 30  # of the offset of a sum; both together fit into 32 bits
MOST_LISTED = 1 << 21  # sums; up to this many, an ONNX graph has a table of all multipliers
MOST_MULTIPLIER = 255.0  # from 128, all inputs but 0 saturate; twice as much, for the interpolation's far end
MOST_RSHIFT = 30
LINE_ERROR = 2.0**-10  # of the interpolation between two entries, relative to the power
PLACE_BITS, KEPT_BITS = 15, 7  # of a position between two entries, and of an interpolated value below an entry's bits
MOST_FACTOR = 1e30  # of alpha and k; all products with scales are then finite
MOST_BETA = 10.0  # with larger ones, a table would take tens of thousands of bytes


@dataclass(frozen=True, eq=False)
class Powers:
    """A table of multipliers by sum, uint16: entries at the ends of 2**steps pieces of each octave of sum + 2**octave.

    The output is x * multiplier >> rshift, where an interpolated multiplier has `KEPT_BITS` more bits than an entry.
    """

    table: np.ndarray
    octave: int
    steps: int
    rshift: int
    most: int  # the largest sum

    @classmethod
    def fit(cls, cells: int, alpha: float, beta: float, k: float, x: int, y: int) -> Powers:
        """The table for (k + alpha / cells * s)**-beta; `x` and `y` are the fraction bits of input and output."""
        scale, gain = 2.0**-x, 2.0 ** (y - x)
        slope, most = alpha / cells * scale * scale, cells * INT8_MIN**2
        offset = k / slope if slope else math.inf
        octave = int(math.log2(min(max(offset, 1), 1 << MOST_OFFSET_BITS)))
        steps = 1
        while beta * (beta + 1) / 8 * 4**-steps * (1 + 2**-steps) ** (beta + 2) > LINE_ERROR:
            steps += 1
        last, _ = _pieces(np.array([most]), octave, steps)
        piece = np.arange(int(last[0]) + 2)
        ends = (2.0**octave) * 2.0 ** (piece >> steps) * (1 + (piece % (1 << steps)) / (1 << steps))
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            powers = gain * (k + slope * (ends - 2.0**octave)) ** -beta
        powers = np.minimum(powers, MOST_MULTIPLIER)
        shift = min(15 - math.frexp(float(powers[0]))[1] + 1, MOST_RSHIFT - KEPT_BITS)
        table = np.minimum(np.rint(powers * 2.0**shift), np.iinfo(np.uint16).max).astype(np.uint16)
        return cls(table, octave, steps, shift + KEPT_BITS, most)

    def build(self, g: OnnxGraph, sums: str) -> str:
        """Adds the multipliers (float64) of sums to a graph, as a table of all sums if that is small."""
        if self.most < MOST_LISTED:
            return g.add("Gather", self.multipliers().astype(np.float64), g.cast(sums, np.int64))
        value = g.add("Add", g.cast(sums, np.float64), np.array(2.0**self.octave))
        octave = _octave(g, value)
        fraction = g.add("Mul", value, g.add("Gather", 2.0 ** -np.arange(32.0), octave))  # 1 to 2
        whole = g.add("Add", g.cast(octave, np.float64), np.array(-1.0 - self.octave))
        along = g.add("Mul", g.add("Add", fraction, whole), np.array(2.0**self.steps))
        piece = g.add("Floor", along)
        place = g.add("Floor", g.add("Mul", g.add("Sub", along, piece), np.array(2.0**PLACE_BITS)))
        index, table = g.cast(piece, np.int64), self.table.astype(np.float64)
        here, there = g.add("Gather", table[:-1], index), g.add("Gather", table[1:], index)
        fall = g.add("Mul", g.add("Sub", here, there), place)
        line = g.add("Sub", g.add("Mul", here, np.array(2.0**PLACE_BITS)), fall)
        return g.add("Floor", g.add("Mul", line, np.array(2.0 ** (KEPT_BITS - PLACE_BITS))))

    def multipliers(self) -> np.ndarray:
        """The multipliers of the sums 0 to `most`, int64, as `power_q7` in lrn_q7.h computes them."""
        piece, place = _pieces(np.arange(self.most + 1), self.octave, self.steps)
        here, there = (self.table.astype(np.int64)[piece + i] for i in (0, 1))
        return ((here << PLACE_BITS) - (here - there) * place) >> (PLACE_BITS - KEPT_BITS)


def _pieces(sums: np.ndarray, octave: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The piece of each sum, and the position within it in units of 2**-PLACE_BITS, rounded down."""
    values = sums.astype(np.int64) + (1 << octave)
    octaves = np.frexp(values.astype(np.float64))[1] - 1
    fraction = (values << (32 - octaves)) & 0xFFFFFFFF
    piece = ((octaves - octave) << steps) + (fraction >> (32 - steps))
    return piece, ((fraction << steps) & 0xFFFFFFFF) >> (32 - PLACE_BITS)


def _octave(g: OnnxGraph, value: str) -> str:
    """floor(log2(value)) as int64, for integers below 2**32 in float64."""
    high = g.add("Floor", g.add("Mul", value, np.array(2.0**-16)))
    low = g.add("Sub", value, g.add("Mul", high, np.array(2.0**16)))
    octaves = np.frexp(np.arange(1 << 16))[1].astype(np.int64) - 1
    above = np.where(octaves < 0, -1, octaves + 16)  # -1 if the high half is 0
    return g.add("Max", *(g.add("Gather", table, g.cast(x, np.int64)) for table, x in ((above, high), (octaves, low))))


@dataclass(frozen=True, eq=False)
class _Lrn(Layer):
    caffe_type = "LRN"
    own_format = True
    simulates_rounding = True
    axes: ClassVar[int]  # number of axes that the sum runs along

    local_size: int = 5
    alpha: float = 1.0
    beta: float = 0.75
    k: float = 1.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.lrn_param
        spatial(in_shapes[0])
        return {"local_size": param.local_size, "alpha": param.alpha, "beta": param.beta, "k": param.k}

    @property
    def cells(self) -> int:
        """The number of squares in a sum, zeros outside the image included."""
        return self.local_size**self.axes

    def check(self) -> None:
        most = int(MOST_CELLS ** (1 / self.axes))
        if not (self.local_size % 2 and 0 < self.local_size <= most):
            raise UnsupportedLayer(f"local_size {self.local_size}, allowed are odd numbers up to {most - 1 + most % 2}")
        if not 0 < self.k <= MOST_FACTOR:
            raise UnsupportedLayer(f"k {self.k:g}, allowed is more than 0, up to {MOST_FACTOR:g}")
        if not 0 <= self.alpha <= MOST_FACTOR:
            raise UnsupportedLayer(f"alpha {self.alpha:g}, allowed are 0 to {MOST_FACTOR:g}")
        if not 0 <= self.beta <= MOST_BETA:
            raise UnsupportedLayer(f"beta {self.beta:g}, allowed are 0 to {MOST_BETA:g}")

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Powers:
        assert formats.x and formats.y
        own = self.cells, self.alpha, self.beta, self.k
        return Powers.fit(*own, formats.x.fraction_bits, formats.y.fraction_bits)

    def describe(self) -> str:
        return f"{super().describe()}, local_size {self.local_size}"


class Across(_Lrn):
    """ACROSS_CHANNELS: x * (k + alpha / n * s)**-beta, where s is the sum of squares over n neighbouring channels."""

    variant = "ACROSS_CHANNELS"
    axes = 1

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        if not (self.alpha and self.beta):  # which onnxruntime's LRN refuses: every element is multiplied alike
            return g.add("Mul", xs[0], np.array(self.k**-self.beta, np.float32))
        return g.add("LRN", xs[0], size=self.local_size, alpha=self.alpha, beta=self.beta, bias=self.k)

    def defines(self) -> dict[str, int]:
        pixels = math.prod(self.out_shape[1:])
        return {"OUT_CH": self.out_shape[0], "PIXELS": pixels, "LOCAL_SIZE": self.local_size}


class Within(_Lrn):
    """WITHIN_CHANNEL: x * (1 + alpha / n**2 * s)**-beta, where s is the sum of squares over n x n pixels."""

    variant = "WITHIN_CHANNEL"
    axes = 2
    stride = (1, 1)
    dilation = (1, 1)

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """Caffe ignores k here."""
        return {**super().read_fields(message, in_shapes), "k": 1.0}

    @property
    def window(self) -> tuple[int, int]:
        return self.local_size, self.local_size

    @property
    def pad(self) -> tuple[int, int]:
        return self.local_size // 2, self.local_size // 2

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        squares = g.add("Mul", xs[0], xs[0])
        mean = g.add("AveragePool", squares, kernel_shape=[*self.window], pads=[*self.pad] * 2, count_include_pad=1)
        scaled = g.add("Mul", mean, np.array(self.alpha, np.float32))
        sums = g.add("Add", scaled, np.array(self.k, np.float32))
        return g.add("Mul", xs[0], g.add("Pow", sums, np.array(-self.beta, np.float32)))

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], **window_defines(self)}


def lrn(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class of an LRN layer."""
    param = message.lrn_param
    return Within if param.norm_region == param.WITHIN_CHANNEL else Across


class PowersLoop(OwnLoop[L_contra, Powers]):
    header = "lrn_q7"

    def _squares(self, g: OnnxGraph, x: str, layer: L_contra) -> str:
        """The sum of squares for each element."""
        raise NotImplementedError

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: L_contra, integers: Powers, target: Target) -> str:
        multipliers = integers.build(g, self._squares(g, xs[0], layer))
        product = g.add("Mul", g.cast(xs[0], np.float64), multipliers)
        scaled = g.add("Mul", product, np.array(2.0**-integers.rshift))
        rounded = g.add("Floor", g.add("Add", scaled, np.array(0.5)))
        return g.cast(g.clip(rounded, INT8_MIN, INT8_MAX, np.float64), np.float32)

    def defines(self, integers: Powers) -> dict[str, int]:
        return {"OCTAVE": integers.octave, "STEPS": integers.steps, "OUT_RSHIFT": integers.rshift}

    def arrays(self, layer: L_contra, integers: Powers, c: CNames) -> list[Array]:
        return [Array(f"{c.prefix}_TABLE", c.variable("table"), "uint16_t", integers.table)]

    def _powers(self, c: CNames) -> Declaration:
        values = (c.variable("table"), *map(c.macro, ("OCTAVE", "STEPS", "OUT_RSHIFT")))
        return Declaration("const powers_t", c.variable("out_powers"), values)


class OwnAcross(PowersLoop[Across]):
    """Sums over neighbouring channels of the same pixel."""

    computes_rows = True

    def _squares(self, g: OnnxGraph, x: str, layer: Across) -> str:
        channels, height, width = layer.in_shape
        rows = g.add("Reshape", g.add("Mul", x, x), np.array([-1, 1, channels, height * width]))
        half = layer.local_size // 2
        ones = np.ones((1, 1, layer.local_size, 1), np.float32)
        sums = g.add("Conv", rows, ones, kernel_shape=[layer.local_size, 1], pads=[half, 0, half, 0])
        return g.add("Reshape", sums, np.array([-1, channels, height, width]))

    def calls(self, layer: Across, c: CNames) -> list[Statement]:
        sizes = map(c.macro, ("PIXELS", "OUT_CH", "LOCAL_SIZE"))
        return [self._powers(c), Call(self.name, (c.input, *sizes, f"&{c.variable('out_powers')}", c.output))]


class OwnWithin(PowersLoop[Within], WindowLoop[Within, Powers]):
    """Sums over neighbouring pixels of the same channel, padded with zeros."""

    def _squares(self, g: OnnxGraph, x: str, layer: Within) -> str:
        channels = layer.in_shape[0]
        ones = np.ones((channels, 1, *layer.window), np.float32)
        return g.add(
            "Conv", g.add("Mul", x, x), ones, group=channels, kernel_shape=[*layer.window], pads=[*layer.pad] * 2
        )

    def calls(self, layer: Within, c: CNames) -> list[Statement]:
        return [self._powers(c), *WindowLoop.calls(self, layer, c)]

    def _arguments(self, layer: Within, c: CNames) -> list[str]:
        return [c.macro("IN_CH"), f"&{c.variable('out_powers')}"]


computed_by(Across, OwnAcross("lrn_across_q7"))
computed_by(Within, OwnWithin("lrn_within_q7"))

CLASSES = (Across, Within)
CHOICES = {"LRN": lrn}
