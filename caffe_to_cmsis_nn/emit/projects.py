# SPDX-License-Identifier: Apache-2.0
"""What code can be generated for, and what depends on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caffe_to_cmsis_nn.emit.names import Names
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Library, Rounding, Target
from caffe_to_cmsis_nn.templating import TEMPLATES

if TYPE_CHECKING:
    from caffe_to_cmsis_nn.plan.cost import Totals


@dataclass(frozen=True)
class Project:
    """What a target's folder of templates asks of the code beside them."""

    split: bool = False  # the network stands in a file of its own, whether it has a name or not
    portable: bool = False  # our portable kernels come along
    libraries: tuple[Library, ...] = (Q7, S8)  # that can be had there
    has_core: bool = False  # CMSIS-Core's headers, for all files
    checked: bool = False  # the code checks that nothing is written outside of its place


PROJECTS = {
    "mbed": Project(has_core=True),
    "keil": Project(split=True),
    "zephyr": Project(split=True, libraries=(S8,)),
    "cmake": Project(split=True, portable=True),
    "mps2": Project(portable=True),
    "host": Project(portable=True, checked=True),
}


@dataclass(frozen=True)
class Packs:
    """CMSIS packs with a library's kernels, and the components that have them."""

    packs: tuple[str, ...]
    components: tuple[str, ...]


PACKS = {
    Q7: Packs(("ARM::CMSIS@5.9.0", "ARM::CMSIS-Compiler"), ("ARM::CMSIS:NN Lib@3.1.0", "ARM::CMSIS:DSP&Source")),
    S8: Packs(
        ("ARM::CMSIS@>=6.0.0", "ARM::CMSIS-NN@>=4.0.0", "ARM::Cortex_DFP", "ARM::CMSIS-Compiler"),
        ("ARM::CMSIS:NN Lib@>=4.0.0",),
    ),
    OWN: Packs(("ARM::CMSIS@5.9.0", "ARM::CMSIS-Compiler"), ()),
}
DEVICES = {Core.DSP: ("ARMCM4_FP", "ARMCM7"), Core.PLAIN: ("ARMCM3",), Core.MVE: ("ARMCM55",)}  # Arm's own, in packs
# Of headers that generated code includes, and of files beside it.
TAKEN_NAMES = {
    "main",
    "startup",
    "rows_q7",
    *(path.stem for path in (TEMPLATES / "ops").iterdir()),
    "mbed",
    "stddef",
    "stdint",
    "stdio",
    "string",
    "time",
}
BOARDS = {Core.DSP: "cortex-m4", Core.PLAIN: "cortex-m3", Core.MVE: "cortex-m55"}  # that mps2 code is run on

MEMORY = {("mps2", Core.MVE): 512 << 10}  # bytes for code and constants, and as many for data, where they are few
LEAST_CODE = 12 << 10  # bytes that a program takes beside its constants


@dataclass(frozen=True)
class CodeOptions:
    """What code_gen.py was asked for."""

    project: str = "mbed"  # of PROJECTS
    profile: bool = False
    weights_in_ram: bool = False  # weights and biases, but not the mean, which each pixel meets once
    name: str = ""  # what the network's symbols, macros and files begin with
    serve: bool = False  # have the program run images that a host sends
    class_names: tuple[str, ...] = ()  # that the program prints beside their numbers

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise UserError(f"--name '{self.name}' is not a C identifier in lower case")
        if self.name in TAKEN_NAMES:
            raise UserError(f"--name '{self.name}' is the name of another file")

    @property
    def names(self) -> Names:
        return Names(self.name)

    @property
    def split(self) -> bool:
        """Whether the network stands in a file of its own, in C, beside the program."""
        return bool(self.name) or PROJECTS[self.project].split


def definitions(target: Target) -> list[str]:
    """What the preprocessor is told of the core and the rounding on a computer, and by kernels' users."""
    dsp = ["ARM_MATH_DSP"] if target.core is not Core.PLAIN else []
    mve = ["ARM_MATH_MVEI"] if target.core is Core.MVE else []
    return [*dsp, *mve, *(["ARM_NN_TRUNCATE"] if target.rounding is Rounding.TRUNCATE else [])]


def check_memory(project: str, core: Core, total: Totals, images_bytes: int) -> None:
    """Raises UserError where a project's board lacks memory for the network and its test images."""
    memory = MEMORY.get((project, core))
    if memory and total.ram > memory:
        raise UserError(f"the board has {memory} bytes of RAM, the network takes {total.ram}")
    if memory and total.flash + images_bytes + LEAST_CODE > memory:
        raise UserError(
            f"the board has {memory} bytes for code and constants, too few for {total.flash} of the network and "
            f"{images_bytes} of test images: give --test_images fewer"
        )
