#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Feeds every reader damaged files, and damages further those by which it comes to lines that it had not come to.

A file that ends in anything but a result or a UserError, or that takes too long, is a finding; it is kept in --keep.

Run from the project's root: python -m tests.benchmarks.fuzz [--seconds N] [READER ...]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support import ROOT
from tests.test_fuzz import READERS, TELLING, WAYS, Edit, damage, outcome, samples

Arc = tuple[int, int, int]  # a code object, and the numbers of two of its lines, one executed after the other


class Coverage:
    """The arcs of our own code that have been taken; a frame's last line is kept while it runs."""

    def __init__(self) -> None:
        self.taken: set[Arc] = set()
        self._last: dict[int, int] = {}
        self._ours: dict[Any, bool] = {}

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._ours:
            self._ours[code] = code.co_filename.startswith(
                (str(ROOT / "caffe_to_cmsis_nn"), str(ROOT / "tests/test_fuzz"))
            )
        return self._line if self._ours[code] else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        key = id(frame)
        if event == "line":
            self.taken.add((id(frame.f_code), self._last.get(key, 0), frame.f_lineno))
            self._last[key] = frame.f_lineno
        elif event == "return":
            self._last.pop(key, None)
        return self._line

    @contextlib.contextmanager
    def watched(self) -> Any:
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)


def seconds_of_processor() -> float:
    """Of this process and of those that it has started."""
    return sum(os.times()[:4])


def edits(rng: random.Random) -> list[Edit]:
    """What Hypothesis draws in the tests, many times faster."""
    return [
        (rng.choice(WAYS), rng.random(), rng.choice([*TELLING, rng.randbytes(rng.randint(1, 8))]))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6)))
    ]


def damaged(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One of the files with edits, sometimes with another one's end; the first, which is sound, is more likely."""
    content = corpus[0] if rng.random() < 0.3 else rng.choice(corpus)
    if rng.random() < 0.2:
        other = rng.choice(corpus)
        content = content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]
    return damage(content, edits(rng))


def fuzz(reader: str, seconds: float, folder: Path, sound: bytes, keep: Path) -> str:
    """A row about so many seconds of a reader."""
    rng, ends, coverage, corpus = random.Random(reader), Counter[str](), Coverage(), [sound]
    findings: dict[tuple[type, str, int], str] = {}  # by where they come from
    slowest, end = 0.0, seconds_of_processor() + seconds
    while seconds_of_processor() < end:
        content, before = damaged(rng, corpus), len(coverage.taken)
        start = seconds_of_processor()
        try:
            with coverage.watched():
                ends[outcome(reader, folder / "damaged", content)] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            findings.setdefault((type(error), where.filename, where.lineno or 0), traceback.format_exc())
            ends["found"] += 1
            keep.mkdir(exist_ok=True)
            (keep / f"{reader}-{hashlib.sha256(content).hexdigest()[:12]}").write_bytes(content)
        slowest = max(slowest, seconds_of_processor() - start)
        if len(coverage.taken) > before:
            corpus.append(content)
    print(*findings.values(), sep="\n", file=sys.stderr)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    counts = ends["read"], ends["refused"], len(findings)
    row = (reader, sum(ends.values()), len(coverage.taken), len(corpus), *counts, f"{slowest:.2f}", f"{megabytes:.0f}")
    return f"| {' | '.join(map(str, row))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*", default=[*READERS], help="default: all")
    parser.add_argument("--seconds", type=float, default=600, help="of the processor, for each reader")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder for files that are findings")
    args = parser.parse_args()
    columns = (
        "reader",
        "files",
        "arcs",
        "kept",
        "read",
        "refused",
        "findings",
        "slowest (s)",
        "memory (MB, most so far)",
    )
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    with tempfile.TemporaryDirectory() as name:
        with contextlib.redirect_stdout(io.StringIO()):
            sound = samples(Path(name))
        for reader in args.reader:
            print(fuzz(reader, args.seconds, Path(name), sound[reader], args.keep), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
