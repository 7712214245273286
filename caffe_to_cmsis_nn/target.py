# SPDX-License-Identifier: Apache-2.0
"""The target of quantization: kernel library, core and rounding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from caffe_to_cmsis_nn.errors import UserError


class Rounding(Enum):
    """How the kernels requantize: as shipped, or built with ARM_NN_TRUNCATE."""

    NEAREST = "nearest"
    TRUNCATE = "truncate"

    def term(self, shift: int) -> int:
        """The rounding term to add before a right shift (NN_ROUND in arm_nnsupportfunctions.h)."""
        return (1 << shift) >> 1 if self is Rounding.NEAREST else 0


class Core(Enum):
    """The code path in the kernels: for the DSP extension (Cortex-M4, M7, M33), plain C (M0, M3), or MVE (M55).

    The q7 kernels have no code for MVE, and use plain C there.
    """

    DSP = "dsp"
    PLAIN = "plain"
    MVE = "mve"


@dataclass(frozen=True)
class Library:
    """A kernel library: its name in flags and pickles, its properties, and its templates."""

    name: str
    bias_bits: int  # 8: biases have a Q-format; 32: biases have the accumulator's fraction bits
    roundings: tuple[Rounding, ...]  # the usual one first
    portable: str  # the template folder with portable kernels; empty if generated code contains all kernels
    guards: str  # the template for includes, and for checks of library and core

    def __str__(self) -> str:
        return self.name


Q7 = Library("q7", 8, (Rounding.NEAREST, Rounding.TRUNCATE), "portable", "common/_q7.c.jinja")
"""CMSIS-NN up to CMSIS 5.9.0."""
S8 = Library("s8", 32, (Rounding.NEAREST,), "portable_s8", "common/_s8.c.jinja")
"""CMSIS-NN 4 to 7, its successor."""
LIBRARIES = {library.name: library for library in (Q7, S8)}
"""The libraries that networks are quantized for."""
OWN = Library("own", Q7.bias_bits, Q7.roundings, "", "common/_own.c.jinja")
"""This tool's kernels, with the results of the q7 kernels on any core."""
KERNEL_LIBRARIES = {**LIBRARIES, OWN.name: OWN}
"""The libraries that code is generated for."""


@dataclass(frozen=True)
class Target:
    """Library, core and rounding, which determine the kernels' results."""

    core: Core = Core.DSP
    rounding: Rounding = Rounding.NEAREST
    library: Library = Q7

    def __post_init__(self) -> None:
        if self.rounding not in self.library.roundings:
            supporting = " or ".join(rounding.value for rounding in self.library.roundings)
            raise UserError(f"{self.rounding.value} rounding: the {self.library} kernels round to {supporting}")

    @classmethod
    def named(cls, core: str, rounding: str, api: str) -> Target:
        """The target with these names; raises UserError if the library does not support the rounding."""
        return cls(Core(core), Rounding(rounding), LIBRARIES[api])

    def names(self) -> dict[str, str]:
        """The arguments of `named`."""
        return {"core": self.core.value, "rounding": self.rounding.value, "api": self.library.name}

    def __str__(self) -> str:
        library = "" if self.library is Q7 else f", {self.library} kernels"
        return f"{self.core.value} core, {self.rounding.value} rounding{library}"
