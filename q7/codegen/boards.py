# SPDX-License-Identifier: Apache-2.0
"""What code can be generated for, and what depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from q7.target import Core, Rounding, Target

TARGETS = ("mbed", "keil", "mps2", "host")
PORTABLE = ("mps2", "host")  # where our portable kernels come along
BOARDS = {Core.DSP: "cortex-m4", Core.PLAIN: "cortex-m3", Core.MVE: "cortex-m55"}  # that mps2 code is run on


@dataclass(frozen=True)
class Options:
    """What code_gen.py was asked for."""

    target: str = TARGETS[0]
    profile: bool = False
    weights_in_ram: bool = False  # weights and biases, but not the mean, which each pixel meets once


def definitions(target: Target) -> list[str]:
    """What the preprocessor is told of the core and the rounding on a computer, and by kernels' users."""
    dsp = ["ARM_MATH_DSP"] if target.core is not Core.PLAIN else []
    mve = ["ARM_MATH_MVEI"] if target.core is Core.MVE else []
    return [*dsp, *mve, *(["ARM_NN_TRUNCATE"] if target.rounding is Rounding.TRUNCATE else [])]
