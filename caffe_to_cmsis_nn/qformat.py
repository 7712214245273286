# SPDX-License-Identifier: Apache-2.0
"""Q-formats: fixed point of 8 or 4 bits with a power-of-two scale, and the shifts between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from caffe_to_cmsis_nn.errors import UserError

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_BITS = (8, 4)  # supported by kernels

# Up to 22, an 8-bit bias cannot overflow the kernels' 32-bit accumulator.
MAX_BIAS_LSHIFT = 22
LARGEST_BIAS = 1 << 29  # of 32-bit biases, for the same reason
MOST_FRACTION_BITS = 200  # positive or negative; more than any float32 needs
FLOAT32_EXPONENTS = 126  # positive or negative; such powers of two are normal numbers
# At 31, the rounding term of CMSIS 5.9.0 overflows.
MAX_OUT_RSHIFT = 30


@dataclass(frozen=True, order=True)
class QFormat:
    """Qm.n: an integer q of `bits` bits represents q * 2**-n; m = bits - 1 - n. m or n may be negative."""

    fraction_bits: int
    bits: int = 8

    @property
    def integer_bits(self) -> int:
        return self.bits - 1 - self.fraction_bits

    @property
    def least(self) -> int:
        """The smallest integer."""
        return -1 << (self.bits - 1)

    @property
    def most(self) -> int:
        """The largest integer."""
        return ~self.least

    def __str__(self) -> str:
        return f"Q{self.integer_bits}.{self.fraction_bits}"

    @classmethod
    def covering(cls, largest: float, bits: int = 8) -> QFormat:
        """The finest format with m >= log2(largest), where the original tool starts each search.

        `largest` is max(|min|, |max|) of the tensor; an all-zero tensor gets m = 0. Raises UserError if not finite.
        """
        if not math.isfinite(largest):
            raise UserError(f"a range of {largest} has no Q-format")
        if largest <= 0:
            return cls(bits - 1, bits)
        fraction, exponent = math.frexp(largest)  # largest = fraction * 2**exponent, 0.5 <= fraction < 1
        return cls(bits - 1 - (exponent - 1 if fraction == 0.5 else exponent), bits)

    def finer(self, by: int) -> QFormat:
        """The format with `by` more fraction bits; negative values make it coarser."""
        return QFormat(self.fraction_bits + by, self.bits)

    def within(self, low: int, high: int) -> QFormat:
        """The format with the nearest number of fraction bits from low to high, or high if high < low."""
        return QFormat(min(max(self.fraction_bits, low), high), self.bits)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """values * 2**n in float64, not rounded."""
        return values.astype(np.float64) * 2.0**self.fraction_bits

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Rounds half to even and saturates: int8."""
        if values.dtype == np.float32 and abs(self.fraction_bits) <= FLOAT32_EXPONENTS:  # as exact, in half the memory
            scaled = values * np.float32(2.0**self.fraction_bits)
        else:
            scaled = self.scaled(values)
        return np.clip(np.rint(scaled), self.least, self.most).astype(np.int8)

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """The real numbers that integers represent, float32."""
        return (values.astype(np.float64) * 2.0**-self.fraction_bits).astype(np.float32)


@dataclass(frozen=True)
class LayerFormats:
    """The formats of a layer's input, weights, bias and output; None if the layer has no such tensor.

    For s8 kernels, biases have no format: they have 32 bits, and the accumulator's fraction bits.
    """

    x: QFormat | None = None
    w: QFormat | None = None
    b: QFormat | None = None
    y: QFormat | None = None
    others: tuple[QFormat, ...] = ()  # of inputs after the first

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        return (self.x, *self.others) if self.x else ()

    @property
    def weight_bits(self) -> int:
        """The bits of each weight; 8 for layers without weights."""
        return self.w.bits if self.w else 8

    @property
    def accumulator(self) -> QFormat:
        """The format of a weighted layer's sums."""
        assert self.x and self.w
        return QFormat(self.x.fraction_bits + self.w.fraction_bits)

    @property
    def bias_grid(self) -> QFormat:
        return self.b or self.accumulator

    def quantize_bias(self, bias: np.ndarray) -> np.ndarray:
        """The bias as int8 if it has a format, else as int32; saturates."""
        if self.b:
            return self.b.quantize(bias)
        return np.clip(np.rint(self.accumulator.scaled(bias)), -LARGEST_BIAS, LARGEST_BIAS).astype(np.int32)


@dataclass(frozen=True)
class Shifts:
    """The shift arguments of the weighted kernels (bits)."""

    bias_lshift: int
    out_rshift: int

    def __post_init__(self) -> None:
        for what, value, most in (
            ("bias shift", self.bias_lshift, MAX_BIAS_LSHIFT),
            ("output shift", self.out_rshift, MAX_OUT_RSHIFT),
        ):
            if not 0 <= value <= most:
                raise UserError(f"the {what} would be {value}, but the kernel only takes 0 to {most}")


def shifts(formats: LayerFormats) -> Shifts:
    """bias_lshift = n_x + n_w - n_b and out_rshift = n_x + n_w - n_y.

    Raises UserError for values that the kernels do not take: in C, negative shifts are undefined.
    """
    assert formats.y
    accumulator = formats.accumulator.fraction_bits
    return Shifts(accumulator - formats.bias_grid.fraction_bits, accumulator - formats.y.fraction_bits)
