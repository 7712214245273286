# SPDX-License-Identifier: Apache-2.0
"""Runs before a script's other imports, which take about a second."""

import signal
import sys


def is_run(script: str) -> bool:
    """Whether the process runs this script or command, and does not just import it."""
    return sys.argv[0].replace("\\", "/").rpartition("/")[2].partition(".")[0] == script


def die_quietly() -> None:
    """Makes Ctrl-C exit without a traceback, until `errors.finish` takes over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
