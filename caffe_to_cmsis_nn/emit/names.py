# SPDX-License-Identifier: Apache-2.0
"""Names of a network's files, functions and macros in generated code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """The names of a network's files, functions and macros; with --name, all of them begin with that name."""

    name: str = ""  # a lower-case C identifier, or empty
    features: bool = False  # whether the network takes integers in a Q-format instead of pixels

    @property
    def prefix(self) -> str:
        """The prefix of files, variables and, in upper case, macros."""
        return f"{self.name}_" if self.name else ""

    @property
    def nn(self) -> str:
        """The prefix of declarations in network.h; never empty."""
        return self.prefix or "nn_"

    @property
    def file(self) -> str:
        """The name of the network's source and header, without suffix."""
        return self.name or "network"

    @property
    def run(self) -> str:
        return (f"{self.prefix}run" if self.name else "run_nn") + "_q7" * self.features

    @property
    def cell(self) -> str:
        """The C type of input elements."""
        return "int8_t" if self.features else "uint8_t"

    @property
    def classify(self) -> str:
        return f"{self.prefix}classify"
