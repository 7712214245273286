# SPDX-License-Identifier: Apache-2.0
"""What decides the kernels' results beside their arguments: library, core, rounding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from q7.errors import Q7Error


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


class Api(Enum):
    """Which kernel library is called: CMSIS-NN up to CMSIS 5.9.0, or the one that replaced it (CMSIS-NN 4 to 7)."""

    Q7 = "q7"
    S8 = "s8"


@dataclass(frozen=True)
class Target:
    """What decides the kernels' results beside their arguments."""

    core: Core = Core.DSP
    rounding: Rounding = Rounding.NEAREST
    api: Api = Api.Q7

    def __post_init__(self) -> None:
        if self.api is Api.S8 and self.rounding is Rounding.TRUNCATE:
            raise Q7Error("truncate rounding is for the q7 kernels: the s8 kernels round to nearest")

    def __str__(self) -> str:
        api = "" if self.api is Api.Q7 else f", {self.api.value} kernels"
        return f"{self.core.value} core, {self.rounding.value} rounding{api}"
