# SPDX-License-Identifier: Apache-2.0
"""Base classes of weighted layers and of this tool's kernels for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import weight_layouts
from caffe_to_cmsis_nn.kernels.base import (
    Array,
    Integers,
    ShiftingKernel,
)
from caffe_to_cmsis_nn.kernels.call import CNames, Declaration
from caffe_to_cmsis_nn.kernels.contract import L_contra
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Weights
from caffe_to_cmsis_nn.qformat import LayerFormats, shifts
from caffe_to_cmsis_nn.target import OWN, Q7, Library


class Weighted(Layer):
    weighted = True
    own_format = True
    simulates_rounding = True

    @property
    def macs(self) -> int:
        """Each weight is used once per output pixel."""
        return math.prod(self.out_shape[1:]) * math.prod(self.weight_shapes()[0])

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """A missing bias becomes zeros, since all kernels read a bias."""
        return blobs[0], blobs[1] if len(blobs) > 1 else np.zeros(len(blobs[0]), np.float32)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Integers:
        assert weights and formats.w
        return Integers(formats.w.quantize(weights[0]), formats.quantize_bias(weights[1]), shifts(formats))


class WeightedLoop(ShiftingKernel[L_contra], OwnLoop[L_contra, Integers]):
    """A kernel with the results of Arm's q7 kernels on any core, in about half as many instructions.

    The compiler knows all sizes, one instruction both saturates and clamps the output, and weights are stored in the
    order of the loop. Each kernel has a variant for 4-bit weights, which Arm's q7 kernels lack.
    """

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


class Packed(WeightedLoop[L_contra]):
    """The variant for 4-bit weights; also used beside Arm's q7 kernels, which take only 8 bits."""

    libraries: ClassVar[tuple[Library, ...]] = (Q7, OWN)
    weight_bits = 4

    def layout(self, weights: np.ndarray, layer: L_contra) -> np.ndarray:
        return weight_layouts.nibbles_of_blocks(super().layout(weights, layer))
