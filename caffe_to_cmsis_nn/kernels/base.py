# SPDX-License-Identifier: Apache-2.0
"""The base class of kernels: constraints, exact integer computation, constants, scratch memory and C calls."""

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

Work = Mapping[str, float]  # how often a kernel does each item of instructions.COSTS

# --- integer parameters of layers -------------------------------------------------------------------------------------

IntWidth = int  # the input's integer bits


@dataclass(frozen=True)
class Integers:
    """A weighted layer's integers: int8 weights, OIHW or (rows, columns in CHW order), and the bias (O,).

    The bias is int8; for s8 kernels it is int32, with the accumulator's fraction bits.
    """

    weights: np.ndarray
    bias: np.ndarray
    shifts: Shifts


@dataclass(frozen=True)
class Bounds:
    """The range that an output is clamped to, both ends included."""

    low: int = INT8_MIN
    high: int = INT8_MAX

    def within(self, other: Bounds) -> Bounds:
        """The range after clamping to `other` as well."""
        return Bounds(*(min(max(value, other.low), other.high) for value in (self.low, self.high)))


MOST_FACTOR_BITS, MOST_FACTOR_RSHIFT = 16, 20  # with these, 128 operands and the rounding term fit into 32 bits


@dataclass(frozen=True)
class Operands:
    """The factor of each input, and the right shift of their sum to the output's format (bits)."""

    factors: tuple[int, ...]
    out_rshift: int

    @classmethod
    def align(cls, fraction_bits: Sequence[int], negative: Sequence[bool], output: int) -> Operands:
        """Factors that bring all inputs to the finest format among inputs and output."""
        finest = max(*fraction_bits, output)
        factors = tuple((-1 if minus else 1) << (finest - n) for n, minus in zip(fraction_bits, negative))
        return cls(factors, finest - output)

    @classmethod
    def weigh(cls, fraction_bits: Sequence[int], coefficients: Sequence[float], output: int) -> Operands:
        """Factors of at most 16 bits for inputs with coefficients.

        A coefficient that needs more bits saturates every output, except for inputs of 0.
        """
        scaled = [math.ldexp(c, output - n) for n, c in zip(fraction_bits, coefficients)]
        spare = MOST_FACTOR_BITS - math.frexp(max(map(abs, scaled)))[1]
        rshift = min(max(spare, 0), MOST_FACTOR_RSHIFT)
        limit = 1 << MOST_FACTOR_BITS
        return cls(tuple(min(max(round(math.ldexp(f, rshift)), -limit), limit) for f in scaled), rshift)


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """A constant array in C: its macro in weights.h, its name, type, and values in the kernel's order.

    The kernel reads `spare` more elements after the values, and ignores them.
    """

    macro: str
    name: str
    type: str
    values: np.ndarray
    spare: int = 0
    in_words: bool = False  # aligned to 4 bytes, since the kernel reads words

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.spare * self.values.itemsize


@dataclass(frozen=True)
class Kernel(Generic[L_contra, I_contra]):
    """A C function of a kernel library or of this tool, for one kind of layer and its integer parameters."""

    source: ClassVar[str]  # its file in CMSIS 5.9.0's CMSIS/, in CMSIS-NN 7, or here; {} stands for its name
    tables: ClassVar[str] = ""  # a second file of the library that it needs
    header: ClassVar[str] = ""  # of a kernel of this tool: its file in templates/ops, without the suffix
    libraries: ClassVar[tuple[Library, ...]] = (Q7, S8, OWN)  # the libraries that it belongs to, or works beside
    promises_in_place: ClassVar[bool] = False  # the output may overwrite the input, whatever the layer
    computes_rows: ClassVar[bool] = False  # can itself compute one output row per call, whatever the layer
    weight_bits: ClassVar[int] = 8  # the widest weights that it takes
    selects: ClassVar[bool] = False  # each output equals one of the inputs: the largest of a window
    limits: ClassVar[bool] = False  # clamps its output to the macros ACT_MIN and ACT_MAX
    trims: ClassVar[bool] = False  # takes windows of any shape, so edges of zeros can be cut off
    sums_rows: ClassVar[bool] = False  # adds up the input's rows, one call for each: see last_calls

    name: str
    constraints: tuple[Constraint[L_contra], ...] = ()
    overread: int = 0  # bytes that it reads past its input, and ignores

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
        """The bytes of scratch memory that the kernel uses; the memory is 4-byte aligned."""
        return 0

    def in_place(self, layer: L_contra, promised_only: bool) -> bool:
        """Whether the output may overwrite the input.

        With `promised_only`, only if the library documents it; else also if tests showed that results are exact.
        """
        return self.promises_in_place

    def least_version(self, layer: L_contra) -> int:
        """The oldest major version of CMSIS-NN with an s8 kernel for the layer."""
        return 4

    def row_form(self, layer: L_contra, target: Target) -> RowForm | None:
        """The kernel that computes one output row per call, with the same constants and results, or None."""
        return RowForm(self) if self.computes_rows else None

    def work(self, layer: L_contra) -> Work | None:
        """What the kernel does on a DSP core, in the terms of instructions.COSTS; None if unknown."""
        return None

    def bounds(self, integers: I_contra) -> Bounds | None:
        """The range, for a kernel that only clamps its input; else None."""
        return None

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: L_contra, integers: I_contra, target: Target) -> str:
        """Adds the kernel's exact integer computation to a graph."""
        raise NotImplementedError

    def calls(self, layer: L_contra, c: CNames) -> list[Statement]:
        """The C calls, and the declarations of the variables that they use."""
        raise NotImplementedError

    def last_calls(self, layer: L_contra, c: CNames) -> list[Statement]:
        """The calls that turn the sums of all rows into the output, if `sums_rows`."""
        return []

    def defines(self, integers: I_contra) -> dict[str, int]:
        """The macros that depend on the formats, without the layer's prefix."""
        return {}

    def arrays(self, layer: L_contra, integers: I_contra, c: CNames) -> list[Array]:
        """The constants that the calls read."""
        return []


AnyKernel = Kernel[Any, Any]  # for collections that pair layers of all kinds with their kernels


@dataclass(frozen=True)
class RowForm:
    """The kernel that computes one output row from the input rows in its window.

    Without `checks_rows`, the kernel reads all rows of a window, so padding must be stored as rows of zeros. A single
    row of padding above needs no storage.
    """

    kernel: AnyKernel
    checks_rows: bool = True


class WeightedKernel(Kernel[L_contra, Integers]):
    def layout(self, weights: np.ndarray, layer: L_contra) -> np.ndarray:
        """Weights in the order of the C array, flat int8."""
        raise NotImplementedError


class ShiftingKernel(WeightedKernel[L_contra]):
    """A kernel with 8-bit biases that takes both shifts as arguments."""

    def defines(self, integers: Integers) -> dict[str, int]:
        return {"BIAS_LSHIFT": integers.shifts.bias_lshift, "OUT_RSHIFT": integers.shifts.out_rshift}

    def arrays(self, layer: L_contra, integers: Integers, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "q7_t", integers.bias),
        ]


def can_pool_in_place(layer: WindowedView) -> bool:
    """Whether a pooling layer may overwrite its input.

    With pad < stride, window i starts at i * stride - pad >= i for i >= 1, along each axis. So output (i, j) lies at or
    before the first cell of its window, and all later windows start after it. If output rows are no longer than input
    rows, no cell is overwritten before it is read.
    """
    return all(p < s and o <= d for p, s, o, d in zip(layer.pad, layer.stride, layer.out_shape[1:], layer.in_shape[1:]))


def consider(
    kernels: Sequence[Kernel[L, I]], layer: L, target: Target, weight_bits: int
) -> tuple[Kernel[L, I] | None, list[str]]:
    """The first kernel that supports the layer, or None, and why each kernel before it does not."""
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
    """The first kernel that supports the layer; raises UserError with the objection of each kernel."""
    kernel, objections = consider(kernels, layer, target, weight_bits)
    if kernel is None:
        supporting = " or ".join(
            library.name for library in LIBRARIES.values() if any(library in k.libraries for k in kernels)
        )
        reasons = "; ".join(objections) or f"there is no {target.library} kernel, use --library {supporting}"
        raise UserError(f"layer '{layer.name}' ({layer.caffe_type}): no kernel can compute it: {reasons}")
    return kernel
