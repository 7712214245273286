# SPDX-License-Identifier: Apache-2.0
"""What code can be generated for, and what depends on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from q7.codegen.c_text import Names
from q7.errors import Q7Error
from q7.target import Core, Rounding, Target

TARGETS = ("mbed", "keil", "mps2", "host")
PORTABLE = ("mps2", "host")  # where our portable kernels come along
SPLIT = ()  # where the network stands in a file of its own, whether it has a name or not
# Of headers that generated code includes, and of files beside it.
TAKEN_NAMES = {"main", "startup", "own_q7", "rows_q7", "mbed", "stddef", "stdint", "stdio", "string", "time"}
BOARDS = {Core.DSP: "cortex-m4", Core.PLAIN: "cortex-m3", Core.MVE: "cortex-m55"}  # that mps2 code is run on

MEMORY = {("mps2", Core.MVE): 512 << 10}  # bytes for code and constants, and as many for data, where they are few
LEAST_CODE = 12 << 10  # bytes that a program takes beside its constants


@dataclass(frozen=True)
class Options:
    """What code_gen.py was asked for."""

    target: str = TARGETS[0]
    profile: bool = False
    weights_in_ram: bool = False  # weights and biases, but not the mean, which each pixel meets once
    name: str = ""  # what the network's symbols, macros and files begin with

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise Q7Error(f"--name '{self.name}' is not a C identifier in lower case")
        if self.name in TAKEN_NAMES:
            raise Q7Error(f"--name '{self.name}' is the name of another file")

    @property
    def names(self) -> Names:
        return Names(self.name)

    @property
    def split(self) -> bool:
        """Whether the network stands in a file of its own, in C, beside the program."""
        return bool(self.name) or self.target in SPLIT


def definitions(target: Target) -> list[str]:
    """What the preprocessor is told of the core and the rounding on a computer, and by kernels' users."""
    dsp = ["ARM_MATH_DSP"] if target.core is not Core.PLAIN else []
    mve = ["ARM_MATH_MVEI"] if target.core is Core.MVE else []
    return [*dsp, *mve, *(["ARM_NN_TRUNCATE"] if target.rounding is Rounding.TRUNCATE else [])]
