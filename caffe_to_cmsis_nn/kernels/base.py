# SPDX-License-Identifier: Apache-2.0
"""What every kernel has: what it can do, what exactly it computes, its constants, scratch memory and C calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels.call import CNames, Statement
from caffe_to_cmsis_nn.kernels.constraints import Constraint
from caffe_to_cmsis_nn.kernels.contract import I, I_contra, L, L_contra, WindowedView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, Shifts
from caffe_to_cmsis_nn.target import LIBRARIES, OWN, Q7, S8, Library, Target

Work = Mapping[str, float]  # how often a kernel does what instructions.COSTS names

# --- what layers hold as integers -------------------------------------------------------------------------------------

IntWidth = int  # the input's integer bits


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


MOST_FACTOR_BITS, MOST_FACTOR_RSHIFT = 16, 20  # of operands; 128 of them and the rounding term stay within 32 bits


@dataclass(frozen=True)
class Operands:
    """What each input is multiplied with, and the shift to the output's format (bits)."""

    factors: tuple[int, ...]
    out_rshift: int

    @classmethod
    def align(cls, fraction_bits: Sequence[int], negative: Sequence[bool], output: int) -> Operands:
        """All inputs are brought to the finest format, that of the output included."""
        finest = max(*fraction_bits, output)
        factors = tuple((-1 if minus else 1) << (finest - n) for n, minus in zip(fraction_bits, negative))
        return cls(factors, finest - output)

    @classmethod
    def weigh(cls, fraction_bits: Sequence[int], coefficients: Sequence[float], output: int) -> Operands:
        """Inputs times numbers, as factors of 16 bits at most; one beyond these saturates all outputs but that of 0."""
        scaled = [math.ldexp(c, output - n) for n, c in zip(fraction_bits, coefficients)]
        spare = MOST_FACTOR_BITS - math.frexp(max(map(abs, scaled)))[1]
        rshift = min(max(spare, 0), MOST_FACTOR_RSHIFT)
        limit = 1 << MOST_FACTOR_BITS
        return cls(tuple(min(max(round(math.ldexp(f, rshift)), -limit), limit) for f in scaled), rshift)


# --- kernels ----------------------------------------------------------------------------------------------------------


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
    in_words: bool = False  # the kernel reads words of 4 bytes, and needs them aligned

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.spare * self.values.itemsize


@dataclass(frozen=True)
class Kernel(Generic[L_contra, I_contra]):
    """A C function: the kernel library's, or our own. It takes a kind of layer, and what that holds as integers."""

    source: ClassVar[str]  # its file: in CMSIS 5.9.0's CMSIS/, in CMSIS-NN 7, or here; {} stands for its name
    tables: ClassVar[str] = ""  # another file of the library, which no function there is named after
    header: ClassVar[str] = ""  # of one of ours: its file in templates/ops, without the suffix
    libraries: ClassVar[tuple[Library, ...]] = (Q7, S8, OWN)  # it is of, or can be used beside
    promises_in_place: ClassVar[bool] = False  # its output may take the input's memory, whatever the layer
    weight_bits: ClassVar[int] = 8  # of each weight that it takes, at most
    selects: ClassVar[bool] = False  # each output is one of the inputs, the largest of some
    limits: ClassVar[bool] = False  # takes the range to limit its output to, as macros ACT_MIN and ACT_MAX
    trims: ClassVar[bool] = False  # takes windows without their edges of zeros, whatever the shape that is left
    sums_rows: ClassVar[bool] = False  # adds one row of the input after the other: see last_calls

    name: str
    constraints: tuple[Constraint[L_contra], ...] = ()
    overread: int = 0  # bytes after its input that it reads and ignores

    @property
    def source_file(self) -> str:
        """The file that defines it."""
        return self.source.format(self.name)

    def objection(self, layer: L_contra, target: Target) -> str | None:
        """Why the kernel cannot serve the layer, or None."""
        for constraint in self.constraints:
            if not constraint(layer, target):
                return f"{self.name} needs {constraint.__doc__}"
        return None

    def scratch_bytes(self, layer: L_contra, target: Target) -> int:
        """Bytes of scratch memory that the kernel touches, 4-byte aligned."""
        return 0

    def in_place(self, layer: L_contra, promised_only: bool) -> bool:
        """Whether the output may take the input's memory: as the library promises, or as was measured exact."""
        return self.promises_in_place

    def least_version(self, layer: L_contra) -> int:
        """The oldest CMSIS-NN whose kernel computes the layer; among the s8 kernels they differ."""
        return 4

    def row_form(self, layer: L_contra, target: Target) -> RowForm | None:
        """What computes one row of the output at a time, with the same constants and bits; None where nothing can."""
        return None

    def work(self, layer: L_contra) -> Work | None:
        """What it does on a core with the DSP extension, by the names in instructions.COSTS; None where unknown."""
        return None

    def bounds(self, integers: I_contra) -> Bounds | None:
        """The range that the kernel limits its input to, where that is all it does."""
        return None

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: L_contra, integers: I_contra, target: Target) -> str:
        """Adds the kernel's exact integer computation to a graph."""
        raise NotImplementedError

    def calls(self, layer: L_contra, c: CNames) -> list[Statement]:
        """The C calls, and the variables that they take."""
        raise NotImplementedError

    def last_calls(self, layer: L_contra, c: CNames) -> list[Statement]:
        """What makes the output of sums to which all rows were added."""
        return []

    def defines(self, integers: I_contra) -> dict[str, int]:
        """Macros that follow from the quantization, without the layer's prefix."""
        return {}

    def arrays(self, layer: L_contra, integers: I_contra, c: CNames) -> list[Array]:
        """The constants that the calls read."""
        return []


AnyKernel = Kernel[Any, Any]  # where layers of all kinds are held, each with a kernel that takes it


@dataclass(frozen=True)
class RowForm:
    """What computes one row of an output from the rows that it reads.

    A kernel that does not check rows reads all rows of a window: rows of zeros must stand for the padding, except that
    it takes one row of padding above.
    """

    kernel: AnyKernel
    checks_rows: bool = True


class WeightedKernel(Kernel[L_contra, Integers]):
    def layout(self, weights: np.ndarray, layer: L_contra) -> np.ndarray:
        """Weights in the order of the C array, flat int8."""
        raise NotImplementedError


class ShiftingKernel(WeightedKernel[L_contra]):
    """Takes biases of 8 bits, and both shifts as arguments."""

    def defines(self, integers: Integers) -> dict[str, int]:
        return {"BIAS_LSHIFT": integers.shifts.bias_lshift, "OUT_RSHIFT": integers.shifts.out_rshift}

    def arrays(self, layer: L_contra, integers: Integers, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "q7_t", integers.bias),
        ]


def can_pool_in_place(layer: WindowedView) -> bool:
    """Whether a pooling may write over its input.

    With pad < stride, window i starts at i * stride - pad >= i for i >= 1, along each axis. So output (i, j) lies at or
    before the first cell that it is made of, and every later window starts after it: nothing is overwritten that is
    still to be read, provided that output rows are no longer than input rows.
    """
    return all(p < s and o <= d for p, s, o, d in zip(layer.pad, layer.stride, layer.out_shape[1:], layer.in_shape[1:]))


def consider(
    kernels: Sequence[Kernel[L, I]], layer: L, target: Target, weight_bits: int
) -> tuple[Kernel[L, I] | None, list[str]]:
    """The first kernel whose constraints the layer meets, and the objections of those before it."""
    objections: list[str] = []
    for kernel in kernels:
        if target.library not in kernel.libraries or kernel.weight_bits < weight_bits:
            continue
        objection = kernel.objection(layer, target)
        if objection is None:
            return kernel, objections
        objections.append(objection)
    return None, objections


def choose(kernels: Sequence[Kernel[L, I]], layer: L, target: Target, weight_bits: int) -> Kernel[L, I]:
    """The first kernel whose constraints the layer meets; raises UserError with every objection."""
    kernel, objections = consider(kernels, layer, target, weight_bits)
    if kernel is None:
        supporting = " or ".join(
            library.name for library in LIBRARIES.values() if any(library in k.libraries for k in kernels)
        )
        reasons = "; ".join(objections) or f"there is no {target.library} kernel, use --library {supporting}"
        raise UserError(f"layer '{layer.name}' ({layer.caffe_type}): no kernel can compute it: {reasons}")
    return kernel
