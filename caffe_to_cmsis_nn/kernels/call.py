# SPDX-License-Identifier: Apache-2.0
"""C calls and declarations as data, and the C expressions that they are made of."""

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
    checked: bool = False  # it returns a status of CMSIS-NN 4 to 7


@dataclass(frozen=True)
class Declaration:
    """A variable with its brace initializer: its type with qualifiers, and its name, with [] where it is an array."""

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
    """The C expressions for what a layer's calls take: pointers, extents, and other macros of parameter.h.

    Who runs a layer a few rows at a time gives other pointers, and in `replaced` expressions in place of macros, named
    without their prefix: IN_DIM_Y, PAD_Y and OUT_DIM_Y (of square layers, too), SIZE (elements), PIXELS.
    """

    prefix: str
    inputs: tuple[str, ...]
    output: str
    scratch: str
    weights: str
    bias: str
    scratch_bytes: int = 0
    in_place: bool = False  # the output lies where the first input lay
    square: bool = True  # one macro stands for both directions
    replaced: Mapping[str, str] = field(default_factory=dict)
    network: str = ""  # what all macros of the network begin with

    @property
    def input(self) -> str:
        return self.inputs[0]

    def macro(self, what: str) -> str:
        """A number of parameter.h."""
        return self.replaced.get(what, f"{self.prefix}_{what}")

    def variable(self, what: str) -> str:
        """The name of another variable of the layer's."""
        return f"{self.prefix.lower()}_{what}"

    def extent(self, what: str) -> Extent:
        """The macros of a pair."""
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
        """Of the input, the window, its padding and stride, and the output."""
        return [self.extent(what) for what in ("IN_DIM", "KER_DIM", "PAD", "STRIDE", "OUT_DIM")]

    def elements(self, out_shape: tuple[int, ...]) -> str:
        """The number of elements of an output of an elementwise layer."""
        whole = [self.macro("OUT_DIM")] if len(out_shape) != 3 else [self.macro("OUT_CH"), *self.output_extent]
        return self.replaced.get("SIZE", "*".join(whole))
