# SPDX-License-Identifier: Apache-2.0
"""What a script does before its imports, which take a second."""

import signal
import sys


def is_run(script: str) -> bool:
    """Whether the process is this script, or the command of that name, and not a program that imports it."""
    return sys.argv[0].replace("\\", "/").rpartition("/")[2].partition(".")[0] == script


def die_quietly() -> None:
    """Has Ctrl-C end the process without a traceback, until `errors.finish` takes over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
