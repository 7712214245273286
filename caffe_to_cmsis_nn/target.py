# SPDX-License-Identifier: Apache-2.0
"""What decides the kernels' results beside their arguments: library, core, rounding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from caffe_to_cmsis_nn.errors import UserError


class Rounding(Enum):
    """How the kernels requantize: as shipped, or built with ARM_NN_TRUNCATE."""

    NEAREST = "nearest"
    TRUNCATE = "truncate"

    def term(self, shift: int) -> int:
        """What is added to the accumulator before it is shifted right (NN_ROUND of arm_nnsupportfunctions.h)."""
        return (1 << shift) >> 1 if self is Rounding.NEAREST else 0


class Core(Enum):
    """Which path of the kernels runs: with the DSP extension (Cortex-M4, M7, M33), plain C (M0, M3), or MVE (M55).

    The q7 kernels have no code for MVE and take their plain path there.
    """

    DSP = "dsp"
    PLAIN = "plain"
    MVE = "mve"


@dataclass(frozen=True)
class Library:
    """A library of kernels: what the flags and the pickle call it, what it can do, and where its templates are."""

    name: str
    bias_bits: int  # of a weighted layer's bias: 8 on a Q-format's grid, 32 on the accumulator's
    roundings: tuple[Rounding, ...]  # the usual one first
    portable: str  # our portable kernels' folder among the templates; none where the network brings its own
    guards: str  # the template of what generated code includes, and asks of the library and the core

    def __str__(self) -> str:
        return self.name


Q7 = Library("q7", 8, (Rounding.NEAREST, Rounding.TRUNCATE), "portable", "common/_q7.c.jinja")
"""CMSIS-NN up to CMSIS 5.9.0."""
S8 = Library("s8", 32, (Rounding.NEAREST,), "portable_s8", "common/_s8.c.jinja")
"""CMSIS-NN 4 to 7, which replaced it."""
LIBRARIES = {library.name: library for library in (Q7, S8)}
"""That networks are quantized for."""
OWN = Library("own", Q7.bias_bits, Q7.roundings, "", "common/_own.c.jinja")
"""Our kernels, which compute the integers of the q7 kernels on any core."""
KERNEL_LIBRARIES = {**LIBRARIES, OWN.name: OWN}
"""That code is generated for."""


@dataclass(frozen=True)
class Target:
    """What decides the kernels' results beside their arguments."""

    core: Core = Core.DSP
    rounding: Rounding = Rounding.NEAREST
    library: Library = Q7

    def __post_init__(self) -> None:
        if self.rounding not in self.library.roundings:
            supporting = " or ".join(rounding.value for rounding in self.library.roundings)
            raise UserError(f"{self.rounding.value} rounding: the {self.library} kernels round to {supporting}")

    @classmethod
    def named(cls, core: str, rounding: str, api: str) -> Target:
        """As flags, pickles and reports name it; raises UserError where the library cannot round so."""
        return cls(Core(core), Rounding(rounding), LIBRARIES[api])

    def names(self) -> dict[str, str]:
        """What `named` takes."""
        return {"core": self.core.value, "rounding": self.rounding.value, "api": self.library.name}

    def __str__(self) -> str:
        library = "" if self.library is Q7 else f", {self.library} kernels"
        return f"{self.core.value} core, {self.rounding.value} rounding{library}"
