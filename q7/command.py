# SPDX-License-Identifier: Apache-2.0
"""What the scripts have in common: how they end, and flags that have no use with others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection

from q7.errors import Q7Error


def note(script: str, text: str) -> None:
    print(f"{script}: {text}", file=sys.stderr)


def finish(script: str, work: Callable[[], None], interrupted: Callable[[], str]) -> int:
    """Does the work; returns the exit code, with one sentence on stderr where it is not 0."""
    try:
        work()
        print(end="", flush=True)
    except Q7Error as error:
        note(script, str(error))
        return 2
    except OSError as error:  # a full disk, or a pipe that nobody reads
        sys.stdout = None
        note(script, f"cannot write to standard output: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        note(script, interrupted())
        return 130
    return 0


def allow_only(parser: argparse.ArgumentParser, args: argparse.Namespace, flag: str, useful: Collection[str]) -> None:
    """Ends the script where `flag` is given together with one that has no use then."""
    useless = {name for name, value in vars(args).items() if value != parser.get_default(name)} - {*useful}
    if getattr(args, flag) and useless:
        parser.error(f"--{min(useless)} has no use with --{flag}")
