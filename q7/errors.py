# SPDX-License-Identifier: Apache-2.0
"""The one exception for input that cannot be used, and how scripts end: an exit code, and a sentence on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Q7Error(Exception):
    """Input that cannot be used: the message names the place, the value seen and what is allowed, in one line."""

    def __init__(self, message: str) -> None:
        # Names out of a damaged or hostile file reach the terminal here.
        super().__init__("".join(c if c.isprintable() else "?" for c in message))


def note(script: str, text: str) -> None:
    print(f"{script}: {text}", file=sys.stderr)


def finish(script: str, work: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Does the work; returns the exit code.

    `interrupted` is said where the user ends the work, unless KeyboardInterrupt carries a sentence of its own.
    """
    try:
        work()
        print(end="", flush=True)
    except Q7Error as error:
        note(script, str(error))
        return 2
    except OSError as error:
        if not error.filename:  # a full disk, or a pipe that nobody reads
            sys.stdout = None
        note(script, str(error) if error.filename else f"cannot write to standard output: {error.strerror}")
        return 2
    except KeyboardInterrupt as stop:
        note(script, str(stop) or interrupted)
        return 130
    return 0
