# SPDX-License-Identifier: Apache-2.0
"""Runs the scripts in processes of their own, which may be killed, get little disk, or have no rights.

Children are forked from a server that has imported everything, so that one costs little more than its work.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support import MODELS, ROOT

sys.path.insert(0, str(MODELS))

SCRIPTS = ("nn_quantizer", "code_gen", "make_lmdb", "get_cifar10")
SECONDS = 300  # in which every child must end

os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(MODELS), *filter(None, [os.environ.get("PYTHONPATH")])]
)  # the server's
_context = multiprocessing.get_context("forkserver")
# What the scripts import only when they need it would otherwise be imported by each child.
LATER = [f"caffe_to_cmsis_nn.pipeline.{name}" for name in ("job", "quantize", "evaluate", "generate")]
_context.set_forkserver_preload([*SCRIPTS, *LATER, "onnxruntime", "PIL.Image", "tests.children"])


@dataclass(frozen=True)
class Ended:
    """A child's exit code (negative: the signal that ended it), and what it printed."""

    code: int
    out: str
    err: str


def little_disk(most: int) -> None:
    """Every file that grows beyond so many bytes fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def bound_by_permissions() -> None:
    """Permissions count for root, too: without the capabilities DAC_OVERRIDE and DAC_READ_SEARCH (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


CHANGES = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp"}


def killed_at(number: int, folder: str) -> None:
    """The process kills itself before it opens or changes files below a folder for this time (from 0)."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES and str(arguments[0]).startswith(folder):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def writes_below(*folders: str) -> None:
    """Opening any other file for writing fails."""
    sys.dont_write_bytecode = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            path = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else folders[0]
            if not str(path).startswith(folders):
                raise AssertionError(f"{path} was opened for writing")

    sys.addaudithook(hook)


def _main(
    pipe: Connection, script: str, arguments: Sequence[str], folder: str, setups: Sequence[tuple[Any, ...]]
) -> None:
    out, err = io.StringIO(), io.StringIO()
    os.sched_setaffinity(0, {random.choice([*os.sched_getaffinity(0)])})  # small networks need one thread
    os.chdir(folder)
    main = importlib.import_module(script).main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            for setup, *values in setups:
                setup(*values)
            code = main(list(arguments))
        except BaseException:
            traceback.print_exc()
            code = 1
    pipe.send(Ended(code, out.getvalue(), err.getvalue()))


def start(
    folder: Path, script: str, arguments: Sequence[str], *setups: tuple[Any, ...]
) -> tuple[BaseProcess, Callable[[], Ended]]:
    """A child that runs a script in a folder, each of `setups` (function, arguments) first; and what waits for it."""
    pipe, childs_end = _context.Pipe(duplex=False)
    child = _context.Process(target=_main, args=(childs_end, script, [*arguments], str(folder), setups))
    child.start()
    childs_end.close()

    def wait() -> Ended:
        if not pipe.poll(SECONDS):
            child.kill()
            raise TimeoutError(f"{script} did not end in {SECONDS} s")
        try:
            ended: Ended = pipe.recv()
        except EOFError:  # it was killed
            child.join()
            assert child.exitcode is not None
            ended = Ended(child.exitcode, "", "")
        child.join()
        return ended

    return child, wait


def run(folder: Path, script: str, arguments: Sequence[str], *setups: tuple[Any, ...]) -> Ended:
    """A child's end."""
    return start(folder, script, arguments, *setups)[1]()
