# SPDX-License-Identifier: Apache-2.0
"""The kinds of projects for which code can be generated, and their options."""

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
    """The properties of a project's folder of templates."""

    split: bool = False  # the network always has its own source file, even without a name
    portable: bool = False  # includes portable kernels
    libraries: tuple[Library, ...] = (Q7, S8)  # available in this kind of project
    has_core: bool = False  # all files can include CMSIS-Core's headers
    checked: bool = False  # the code checks for writes outside of buffers


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
    """The CMSIS packs and components that contain a library's kernels."""

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
DEVICES = {Core.DSP: ("ARMCM4_FP", "ARMCM7"), Core.PLAIN: ("ARMCM3",), Core.MVE: ("ARMCM55",)}  # in Arm's packs
# Names of headers that generated code includes, and of files beside it.
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
BOARDS = {Core.DSP: "cortex-m4", Core.PLAIN: "cortex-m3", Core.MVE: "cortex-m55"}  # that QEMU emulates for mps2

MEMORY = {("mps2", Core.MVE): 512 << 10}  # bytes for code and constants, and the same again for data, if scarce
LEAST_CODE = 12 << 10  # bytes of a program without its constants


@dataclass(frozen=True)
class CodeOptions:
    """The options of code_gen.py that affect the generated code."""

    project: str = "mbed"  # a key of PROJECTS
    profile: bool = False
    weights_in_ram: bool = False  # copy weights and biases to RAM, but not the mean, which is read once per image
    name: str = ""  # prefix of the network's symbols, macros and files
    serve: bool = False  # the program runs images that a host sends
    class_names: tuple[str, ...] = ()  # printed beside class numbers

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise UserError(f"--name '{self.name}' is not a lower-case C identifier")
        if self.name in TAKEN_NAMES:
            raise UserError(f"--name '{self.name}' is the name of another file")

    @property
    def names(self) -> Names:
        return Names(self.name)

    @property
    def split(self) -> bool:
        """Whether the network has its own C file beside the program."""
        return bool(self.name) or PROJECTS[self.project].split


def definitions(target: Target) -> list[str]:
    """The preprocessor macros with which kernels are built for a core and rounding."""
    dsp = ["ARM_MATH_DSP"] if target.core is not Core.PLAIN else []
    mve = ["ARM_MATH_MVEI"] if target.core is Core.MVE else []
    return [*dsp, *mve, *(["ARM_NN_TRUNCATE"] if target.rounding is Rounding.TRUNCATE else [])]


def check_memory(project: str, core: Core, total: Totals, images_bytes: int) -> None:
    """Raises UserError if a project's board lacks memory for the network and its test images."""
    memory = MEMORY.get((project, core))
    if memory and total.ram > memory:
        raise UserError(f"the board has {memory} bytes of RAM, but the network needs {total.ram}")
    if memory and total.flash + images_bytes + LEAST_CODE > memory:
        raise UserError(
            f"the board has {memory} bytes for code and constants, too few for {total.flash} of the network and "
            f"{images_bytes} of test images: reduce --test_images"
        )
