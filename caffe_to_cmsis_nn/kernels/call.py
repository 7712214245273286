# SPDX-License-Identifier: Apache-2.0
"""C calls and declarations as data, and the C expressions in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Union

Value = Union[str, tuple["Value", ...]]  # a C expression, or a brace initializer


@dataclass(frozen=True)
class Call:
    """A function, and a C expression for each argument."""

    function: str
    arguments: tuple[str, ...]
    checked: bool = False  # it returns an arm_cmsis_nn_status (CMSIS-NN 4 to 7)


@dataclass(frozen=True)
class Declaration:
    """A variable and its brace initializer; the type includes qualifiers, the name of an array ends in []."""

    type: str
    name: str
    values: tuple[Value, ...]


Statement = Union[Call, Declaration]


class Extent(NamedTuple):
    """C expressions along x and y (width before height)."""

    x: str
    y: str


@dataclass(frozen=True)
class CNames:
    """The C expressions for the arguments of a layer's calls: pointers, and macros of parameter.h.

    `replaced` maps macros, without their prefix, to other expressions, for layers that run row by row: IN_DIM_Y, PAD_Y
    and OUT_DIM_Y (also of square layers), SIZE (elements) and PIXELS.
    """

    prefix: str
    inputs: tuple[str, ...]
    output: str
    scratch: str
    weights: str
    bias: str
    scratch_bytes: int = 0
    in_place: bool = False  # the output overwrites the first input
    square: bool = True  # one macro for height and width
    replaced: Mapping[str, str] = field(default_factory=dict)
    network: str = ""  # the prefix of all macros of the network

    @property
    def input(self) -> str:
        return self.inputs[0]

    def macro(self, what: str) -> str:
        """The expression for a number in parameter.h."""
        return self.replaced.get(what, f"{self.prefix}_{what}")

    def variable(self, what: str) -> str:
        """The name of a variable of the layer."""
        return f"{self.prefix.lower()}_{what}"

    def extent(self, what: str) -> Extent:
        """The macros for width and height."""
        if not self.square:
            return Extent(self.macro(f"{what}_X"), self.macro(f"{what}_Y"))
        return Extent(self.macro(what), self.replaced.get(f"{what}_Y", self.macro(what)))

    @property
    def input_extent(self) -> Extent:
        return self.extent("IN_DIM")

    @property
    def output_extent(self) -> Extent:
        return self.extent("OUT_DIM")

    @property
    def extents(self) -> list[Extent]:
        """The extents of input, window, padding, stride and output, in this order."""
        return [self.extent(what) for what in ("IN_DIM", "KER_DIM", "PAD", "STRIDE", "OUT_DIM")]

    def elements(self, out_shape: tuple[int, ...]) -> str:
        """The number of elements in an elementwise layer's output."""
        whole = [self.macro("OUT_DIM")] if len(out_shape) != 3 else [self.macro("OUT_CH"), *self.output_extent]
        return self.replaced.get("SIZE", "*".join(whole))
