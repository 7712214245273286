# SPDX-License-Identifier: Apache-2.0
"""Command-line flags of both scripts: each in either spelling, and refused where another flag makes it useless."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from caffe_to_cmsis_nn.target import KERNEL_LIBRARIES, LIBRARIES, OWN, S8

CORES = "dsp: M4, M7, M33; plain: M0, M3; mve: M55"
LIBRARY = (
    "kernel library: q7: CMSIS-NN up to CMSIS 5.9.0; s8: CMSIS-NN 4 to 7; own: kernels that come with the code and "
    "compute what q7 does, on M4, M7 and M33 in half of the instructions"
)


class Size(NamedTuple):
    """What a picture is resized to, in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """HEIGHTxWIDTH; raises argparse's error for anything else."""
        match = re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)
        if not match:
            raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH, for example 32x32")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def _spelled(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default in (None, False, "")
        return action.help if none else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Knows flags under names with underscores, and takes hyphens for them."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Formatter)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, rest = super().parse_known_args([*map(_spelled, sys.argv[1:] if args is None else args)], namespace)
        for action in self._actions:  # an unset variable of a script would choose another mode, or other data
            value = getattr(known, action.dest, None)
            if value != action.default and "" in (value if isinstance(value, list) else [value]):
                self.error(f"{action.option_strings[-1]} is empty: give it a value, or leave it out")
        return known, rest

    def spell_out(self, args: argparse.Namespace) -> list[str]:
        """The arguments that stand for these values, defaults included."""
        words: list[str] = []
        for action in self._actions:
            value = None if action.help == argparse.SUPPRESS else getattr(args, action.dest, None)
            if value is not None and value is not False:
                flag, values = action.option_strings[-1], value if isinstance(value, list) else [value]
                words += [flag] if action.nargs == 0 else [word for one in values for word in (flag, str(one))]
        return words

    def allow_only(self, args: argparse.Namespace, flag: str, useful: Collection[str]) -> None:
        """Ends the script where `flag` is given together with one that has no use then."""
        useless = {name for name, value in vars(args).items() if value != self.get_default(name)} - {*useful}
        if getattr(args, flag) and useless:
            self.error(f"--{min(useless)} has no use with --{flag}")


def add_library(parser: Any, otherwise: str = "") -> None:
    """--library, and its former spellings --api and --kernels."""
    add_choice(parser, "--library", KERNEL_LIBRARIES, LIBRARY, otherwise)
    for flag, choices in (("--api", LIBRARIES), ("--kernels", ("cmsis", OWN.name))):
        parser.add_argument(flag, choices=[*choices], action=_FormerLibrary, help=argparse.SUPPRESS)


class _FormerLibrary(argparse.Action):
    """--api and --kernels own are --library, but for the pair that contradicts itself."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, values)
        if (namespace.api, namespace.kernels) == (S8.name, OWN.name):
            parser.error("--kernels own cannot be combined with --api s8: --library takes one of q7, s8 and own")
        if values != "cmsis" and namespace.library != OWN.name:
            namespace.library = values


def add_choice(parser: Any, flag: str, choices: Iterable[str], text: str, otherwise: str = "") -> None:
    """A flag that takes one of some names to a parser or a group; the first, unless `otherwise` says what is taken."""
    names = [*choices]
    default = None if otherwise else names[0]
    parser.add_argument(flag, choices=names, default=default, help=text + otherwise)


def is_verbose(arguments: Sequence[str] | None) -> bool:
    """Whether a script was called with -v; None stands for the command line."""
    return not {"-v", "--verbose"}.isdisjoint(sys.argv[1:] if arguments is None else arguments)
