# SPDX-License-Identifier: Apache-2.0
"""How the scripts end: an exit code, and one sentence on stderr where it is not 0."""

from __future__ import annotations

import sys
from collections.abc import Callable

from q7.errors import Q7Error


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
    except OSError as error:  # a full disk, or a pipe that nobody reads
        sys.stdout = None
        note(script, f"cannot write to standard output: {error.strerror}")
        return 2
    except KeyboardInterrupt as stop:
        note(script, str(stop) or interrupted)
        return 130
    return 0
