#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Feeds every reader damaged files: how many it reads, how many it refuses, and the most time and memory that it takes.

Run from the project's root: python -m tests.benchmarks.fuzz [--count N] [READER ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.test_fuzz import READERS, TELLING, WAYS, Edit, damage, outcome, samples


def _edits(rng: random.Random) -> list[Edit]:
    """What Hypothesis draws in the tests, many times faster."""
    return [
        (rng.choice(WAYS), rng.random(), rng.choice([*TELLING, rng.randbytes(rng.randint(1, 8))]))
        for _ in range(rng.randint(1, 6))
    ]


def fuzz(reader: str, count: int, folder: Path, sound: bytes) -> str:
    """A row: the ends of so many damaged files, each checked as in the tests."""
    rng, ends, slowest = random.Random(reader), Counter[str](), 0.0
    for number in range(count):
        edits, start = _edits(rng), time.process_time()
        try:
            ends[outcome(reader, folder / "damaged", damage(sound, edits))] += 1
        except BaseException:
            print(f"{reader}, file {number}: {edits}", flush=True)
            raise
        slowest = max(slowest, time.process_time() - start)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return f"| {reader} | {count} | {ends['read']} | {ends['refused']} | {slowest:.2f} | {megabytes:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*", default=[*READERS], help="default: all")
    parser.add_argument("--count", type=int, default=20_000, help="files for each reader")
    args = parser.parse_args()
    print("| reader | files | read | refused | slowest (s) | memory (MB, most so far) |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        with contextlib.redirect_stdout(io.StringIO()):
            sound = samples(Path(name))
        for reader in args.reader:
            print(fuzz(reader, args.count, Path(name), sound[reader]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
