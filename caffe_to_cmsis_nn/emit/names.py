# SPDX-License-Identifier: Apache-2.0
"""Names of a network's files, functions and macros in generated code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """What a network's files, functions and macros are called; where it has a name, all of them begin with that."""

    name: str = ""  # a C identifier in lower case, or nothing
    features: bool = False  # whether the network takes integers in a Q-format, and not pixels

    @property
    def prefix(self) -> str:
        """Of files, variables and, in upper case, macros."""
        return f"{self.name}_" if self.name else ""

    @property
    def nn(self) -> str:
        """The prefix of what network.h declares, where there is no name."""
        return self.prefix or "nn_"

    @property
    def file(self) -> str:
        """Of the network and its header, without a suffix."""
        return self.name or "network"

    @property
    def run(self) -> str:
        return (f"{self.prefix}run" if self.name else "run_nn") + "_q7" * self.features

    @property
    def cell(self) -> str:
        """The type of an input's elements."""
        return "int8_t" if self.features else "uint8_t"

    @property
    def classify(self) -> str:
        return f"{self.prefix}classify"
