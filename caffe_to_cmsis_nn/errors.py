# SPDX-License-Identifier: Apache-2.0
"""The one exception for input that cannot be used, what scripts print, and how they end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


def printable(text: str) -> str:
    """Text in one line, without what a terminal would take for a command: names come out of files of any origin."""
    return "".join(c if c.isprintable() else "?" for c in text)


MOST_CHARACTERS = 4000  # of a message: names come out of files that may be millions long


class UserError(Exception):
    """Input that cannot be used: the message names the place, the value seen and what is allowed, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message[:MOST_CHARACTERS]) + " ..." * (len(message) > MOST_CHARACTERS))


def _write(stream: Any, lines: tuple[str, ...]) -> None:
    """Writes text to a stream, if there is one: a stream closed before the start is None."""
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = "\n".join(map(printable, lines))
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=stream is sys.stderr)


def print_lines(*lines: str) -> None:
    """Prints lines to standard output."""
    _write(sys.stdout, lines)


def warn(script: str, text: str) -> None:
    """Prints a sentence to standard error, or to standard output where that takes nothing, as on a full disk."""
    try:
        _write(sys.stderr, (f"{script}: {text}",))
    except OSError:
        sys.stderr = None  # closing it at the end would fail again
        _write(sys.stdout, (f"{script}: {text}",))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Turns the signals that end a process into KeyboardInterrupt; lists those that came."""
    came: list[int] = []

    def interrupt(number: int, _: Any) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as nohup has it
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


REPORT = "this is a fault of the tool: please report it with the command and its input files (CONTRIBUTING.md)"


def _unforeseen(error: Exception, verbose: bool) -> str:
    """What is said of an error that nothing else explains."""
    if verbose:
        _write(
            sys.stderr, tuple("".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines())
        )
    if isinstance(error, MemoryError):
        return f"the memory does not suffice: give less --memory, or fewer images at once; otherwise, {REPORT}"
    reason = " ".join(str(error).split())[:300]
    hint = "" if verbose else "; -v shows where it happened"
    return f"unexpected {type(error).__name__}{reason and ': '}{reason}: {REPORT}{hint}"


def finish(script: str, work: Callable[[], None], interrupted: str = "interrupted", verbose: bool = False) -> int:
    """Does the work; returns the exit code.

    `interrupted` is said where the user, or the system, ends the work, unless KeyboardInterrupt carries a sentence of
    its own. An error that is not foreseen ends in one sentence, too; where `verbose`, after its traceback.
    """
    with _interrupts() as came:
        try:
            work()
            print(end="", flush=True)
        except UserError as error:
            warn(script, str(error))
            return 2
        except OSError as error:
            if not error.filename:  # a full disk, or a pipe that nobody reads
                sys.stdout = None
            where = f"'{error.filename}'" if error.filename else "cannot write to standard output"
            warn(script, f"{where}: {error.strerror}")
            return 2
        except Exception as error:
            warn(script, _unforeseen(error, verbose))
            return 2
        except KeyboardInterrupt as stop:
            warn(script, str(stop) or interrupted)
            return 128 + (came[0] if came else signal.SIGINT)
    return 0
