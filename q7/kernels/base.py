# SPDX-License-Identifier: Apache-2.0
"""What every kernel has: what it can do, what exactly it computes, its constants, scratch memory and C calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from q7.errors import Q7Error
from q7.kernels.call import CNames, Statement
from q7.kernels.constraints import Constraint
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX, INT8_MIN, Shifts
from q7.target import Api, Target


@dataclass(frozen=True)
class Integers:
    """A weighted layer as the device holds it: int8 weights OIHW or (rows, columns in CHW order), the bias (O,).

    The bias is int8, or, for s8 kernels, int32 on the accumulator's grid.
    """

    weights: np.ndarray
    bias: np.ndarray
    shifts: Shifts


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest integer that pass."""

    low: int = INT8_MIN
    high: int = INT8_MAX

    def within(self, other: Bounds) -> Bounds:
        """What is left where `other` limits the result."""
        return Bounds(*(min(max(value, other.low), other.high) for value in (self.low, self.high)))


@dataclass(frozen=True)
class Array:
    """A constant array in C: its macro in weights.h, its name, type, and values in the kernel's order.

    `spare` elements follow that the kernel reads and ignores.
    """

    macro: str
    name: str
    type: str
    values: np.ndarray
    spare: int = 0

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.spare * self.values.itemsize


@dataclass(frozen=True)
class Kernel:
    """A C function: the kernel library's, or our own."""

    own_loop: ClassVar[bool] = False  # one of ours, in own_q7.h, and not the library's
    apis: ClassVar[tuple[Api, ...]] = tuple(Api)  # the kernel libraries beside which it can be used
    limits: ClassVar[bool] = False  # takes the range to limit its output to, as macros ACT_MIN and ACT_MAX

    name: str
    constraints: tuple[Constraint, ...] = ()

    def objection(self, layer: Any, target: Target) -> str | None:
        """Why the kernel cannot serve the layer, or None."""
        for constraint in self.constraints:
            if not constraint(layer, target):
                return f"{self.name} needs {constraint.__doc__}"
        return None

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        """Bytes of scratch memory that the kernel touches, 4-byte aligned."""
        return 0

    def overread_bytes(self) -> int:
        """Bytes behind its input that the kernel reads and ignores."""
        return 0

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        """Whether the output may take the input's memory: as the library promises, or as was measured exact."""
        return False

    def least_version(self, layer: Any) -> int:
        """The oldest CMSIS-NN whose kernel computes the layer; among the s8 kernels they differ."""
        return 4

    def bounds(self, integers: Any) -> Bounds | None:
        """The range that the kernel limits its input to, where that is all it does."""
        return None

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Any, target: Target) -> str:
        """Adds the kernel's exact integer computation to a graph."""
        raise NotImplementedError

    def calls(self, layer: Any, c: CNames) -> list[Statement]:
        """The C calls, and the variables that they take."""
        raise NotImplementedError

    def defines(self, integers: Any) -> dict[str, int]:
        """Macros that follow from the quantization, without the layer's prefix."""
        return {}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        """The constants that the calls read."""
        return []


@dataclass(frozen=True)
class WeightedKernel(Kernel):
    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        """Weights in the order of the C array, flat int8."""
        raise NotImplementedError

    def defines(self, integers: Any) -> dict[str, int]:
        return {"BIAS_LSHIFT": integers.shifts.bias_lshift, "OUT_RSHIFT": integers.shifts.out_rshift}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "q7_t", integers.bias),
        ]


def consider(kernels: Sequence[Kernel], layer: Any, target: Target) -> tuple[Kernel | None, list[str]]:
    """The first kernel whose constraints the layer meets, and the objections of those before it."""
    objections: list[str] = []
    for kernel in kernels:
        if target.api not in kernel.apis:
            continue
        objection = kernel.objection(layer, target)
        if objection is None:
            return kernel, objections
        objections.append(objection)
    return None, objections


def choose(kernels: Sequence[Kernel], layer: Any, target: Target) -> Kernel:
    """The first kernel whose constraints the layer meets; raises Q7Error with every objection."""
    kernel, objections = consider(kernels, layer, target)
    if kernel is None:
        reasons = "; ".join(objections) or f"there is no {target.api.value} kernel"
        raise Q7Error(f"layer '{layer.name}' ({layer.caffe_type}): no kernel can compute it: {reasons}")
    return kernel
