# SPDX-License-Identifier: Apache-2.0
"""Our own loops that multiply each channel with a number of its own, of 16 bits; rounded half up and saturated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import Array
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import I_contra, LayerView
from caffe_to_cmsis_nn.kernels.own_loops import OwnLoop
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.target import Target

LARGEST_FACTOR = (1 << 15) - 1
MOST_SHIFT = 20  # bits: products of 8 and 16 bits, and their rounding term, are exact in float32
LARGEST_OFFSET = 1 << 30  # beyond, an output saturates whatever the input, and 32 bits overflow


def _factors(factors: np.ndarray, lshift: int) -> tuple[np.ndarray, int]:
    """Integers of 16 bits that stand for factors * 2**lshift, and the shift (bits) that products with them need.

    It is as large as it can be. A factor that 16 bits do not hold without it saturates every output but 0's.
    """
    largest = float(np.abs(factors).max(initial=0)) or 1.0
    shift = min(max(math.floor(math.log2(LARGEST_FACTOR / largest)) - lshift, 0), MOST_SHIFT)
    scaled = np.ldexp(factors.astype(np.float64), lshift + shift)
    return np.clip(np.rint(scaled), -LARGEST_FACTOR, LARGEST_FACTOR).astype(np.int16), shift


@dataclass(frozen=True, eq=False)
class Gains:
    """clamp((x * gain + offset) >> rshift) for each channel: int16 and int32 (C,); offsets round."""

    gains: np.ndarray
    offsets: np.ndarray
    rshift: int

    @classmethod
    def fit(cls, gain: np.ndarray, offset: np.ndarray, x: int, y: int) -> Gains:
        """For gain * x + offset (C,), with so many fraction bits of inputs and outputs."""
        gains, rshift = _factors(gain, y - x)
        offsets = np.rint(np.ldexp(offset.astype(np.float64), y + rshift)) + (1 << rshift >> 1)
        return cls(gains, np.clip(offsets, -LARGEST_OFFSET, LARGEST_OFFSET).astype(np.int32), rshift)


@dataclass(frozen=True, eq=False)
class Slopes:
    """clamp((x * (x < 0 ? slope : one) + rounding term) >> rshift) for each channel; int16 (C,)."""

    slopes: np.ndarray
    one: int
    rshift: int

    @classmethod
    def fit(cls, slope: np.ndarray, x: int, y: int) -> Slopes:
        """For x, and slope * x (C,) where x is negative, with so many fraction bits of inputs and outputs."""
        factors, rshift = _factors(np.append(slope, 1), y - x)
        return cls(factors[:-1], int(factors[-1]), rshift)


def _by_channel(values: np.ndarray, layer: LayerView) -> np.ndarray:
    """(C,) as (C, 1, 1) where the layer has images."""
    return values.astype(np.float64).reshape(-1, *[1] * (len(layer.out_shape) - 1))


class _Channelwise(OwnLoop[LayerView, I_contra]):
    promises_in_place = True

    def _sizes(self, layer: LayerView, c: CNames) -> tuple[str, str]:
        return c.elements(layer.out_shape), str(layer.out_shape[0])


class ChannelAffine(_Channelwise[Gains]):
    """(x * gain + offset) >> rshift."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Gains, target: Target) -> str:
        gains, offsets = (_by_channel(values, layer) for values in (integers.gains, integers.offsets))
        total = g.add("Add", g.add("Mul", g.cast(xs[0], np.float64), gains), offsets)
        total = g.add("Floor", g.add("Mul", total, np.array(2.0**-integers.rshift)))
        return exact_onnx.saturate(g, g.cast(total, np.float32))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        constants = (c.variable("gains"), c.variable("offsets"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (c.input, *self._sizes(layer, c), *constants, c.output))]

    def defines(self, integers: Gains) -> dict[str, int]:
        return {"OUT_RSHIFT": integers.rshift}

    def arrays(self, layer: LayerView, integers: Gains, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_GAINS", c.variable("gains"), "int16_t", integers.gains),
            Array(f"{c.prefix}_OFFSETS", c.variable("offsets"), "int32_t", integers.offsets),
        ]


class PRelu(_Channelwise[Slopes]):
    """x * one, or x * slope where x is negative."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Slopes, target: Target) -> str:
        """With everything scaled by powers of two, which changes no digit of a float."""
        slopes = _by_channel(integers.slopes, layer) / integers.one
        total = g.scale(g.add("PRelu", xs[0], slopes.astype(np.float32)), integers.one * 2.0**-integers.rshift)
        half = np.array(0.5 if integers.rshift else 0, np.float32)
        return exact_onnx.saturate(g, g.add("Floor", g.add("Add", total, half)))

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        constants = (c.variable("slopes"), c.macro("ONE"), c.macro("OUT_RSHIFT"))
        return [Call(self.name, (c.input, *self._sizes(layer, c), *constants, c.output))]

    def defines(self, integers: Slopes) -> dict[str, int]:
        return {"ONE": integers.one, "OUT_RSHIFT": integers.rshift}

    def arrays(self, layer: LayerView, integers: Slopes, c: CNames) -> list[Array]:
        return [Array(f"{c.prefix}_SLOPES", c.variable("slopes"), "int16_t", integers.slopes)]
