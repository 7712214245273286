#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Changes one line at a time where a rule stands, in a copy of the project, and says which changes no test sees.

All tests run once first, to record which of them come to which line of Python: a changed line gets those alone.
Run from the project's root, with pytest-cov: python -m tests.benchmarks.mutants [--count N] [--seed N] [--only TEXT]
[--jobs N] [--record FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

from coverage import CoverageData

from tests.support import ROOT, SHARED

# Where rules stand, and the tests that must see them change, the fastest first; a line of Python that the record has
# gets the tests that come to it instead.
RULES = {
    "src/qformat.py": "qformat search_device device",
    "src/target.py": "qformat device device_s8 codegen_golden",
    "src/onnx_windows.py": "graph device device_s8 cases",
    "src/kernels/*.py": "rules cases device_s8 device own_q7 memory rows codegen_golden softmax lowering",
    "src/ops/*.py": "rules cases own_q7 memory rows softmax lowering device graph caffe_files prototxts device_s8",
    "src/network/folding.py": "graph caffe_files prototxts",
    "src/board/*.py": "serving",
    "src/plan/[lmrst]*.py": "rules codegen_golden memory rows lowering passes codegen_networks defects codegen_random",
    "src/search/[cdvw]*.py": "rules search weight_bits search_device",
    "src/engines/[ben]*.py": "engines search_device same_bytes",
    "src/store/*.py": "record console",
    "src/data/*.py": "images lmdb_images datasets special_files sizes graph prototxts caffe_files bad_input",
    "templates/ops/*.h": "device_s8 device own_q7 rows defects codegen_random",
    "templates/portable/*.c": "kernel_memory device defects codegen_random",
    "templates/portable_s8/*.c": "kernel_memory device_s8 defects codegen_random",
}
SECONDS = 300  # of a mutant's tests; what takes longer hangs
MOST_SECONDS = 60  # of the tests that come to a mutant's line, as they were recorded
SWAPS = [
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<![<>=!-])<(?![<=])", "<="),
    (r"(?<![<>=!-])>(?![>=])", ">="),
    (r"==", "!="),
    (r"!=", "=="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " + "),
    (r"<<", ">>"),
    (r">>", "<<"),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"&&", "||"),
    (r"\|\|", "&&"),
    (r"\bnot ", ""),
    (r"\ball\(", "any("),
    (r"\bany\(", "all("),
    (r"\bTrue\b", "False"),
    (r"\bfloat64\b", "float32"),
    (r"\bif first\b", "if not first"),
]
NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_NO_RULE = re.compile(
    r"^\s*(#|//|/?\*|\"\"\"|import |from |raise |@|def |class |assert )|UserError|:\s*ClassVar|\bf\"|(\d+, ){6}"
)


@dataclass(frozen=True)
class Mutant:
    """A file with one line in place of another."""

    file: str
    line: int
    before: str
    after: str
    tests: list[str]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before.strip()}  ->  {self.after.strip()}"


def _changes(line: str) -> Iterator[str]:
    """The line with one operator, name or number in place of another; comments and texts stay as they are."""
    code = re.split(r"  #|//|/\*", line)[0]
    texts = [match.span() for match in re.finditer(r"\"[^\"]*\"|'[^']*'", code)]

    def inside(start: int) -> bool:
        return any(first <= start < last for first, last in texts)

    for pattern, new in SWAPS:
        for match in re.finditer(pattern, code):
            if not inside(match.start()):
                yield line[: match.start()] + new + line[match.end() :]
    for match in NUMBER.finditer(code):
        if not inside(match.start()):
            yield line[: match.start()] + str(int(match.group()) + 1) + line[match.end() :]


class Record:
    """Which tests come to which lines, and their seconds."""

    def __init__(self, folder: Path, jobs: int) -> None:
        coverage, times = folder / "coverage", folder / "times.xml"
        if not times.exists():
            modules = [_module(name) for name in dict.fromkeys(" ".join(RULES.values()).split())]
            command = [sys.executable, "-m", "pytest", "-n", str(jobs), f"--junit-xml={times}", *modules]
            command += ["--cov=caffe_to_cmsis_nn", "--cov-context=test", "--cov-report="]
            subprocess.run(command, cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(coverage)}, check=False)
        self._data = CoverageData(str(coverage))
        self._data.read()
        self._seconds = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
            for case in ElementTree.parse(times).iter("testcase")
            if not len(case)  # one that fails as it is, or is skipped, says nothing
        }

    def tests(self, file: str, line: int) -> list[str]:
        """Those that come to the line, or to the one where its statement begins: one of each function first."""
        lines = self._data.contexts_by_lineno(str(ROOT / file))
        contexts: list[str] = next((lines[i] for i in range(line, max(line - 6, 0), -1) if any(lines.get(i, ()))), [])
        by_function: dict[str, list[str]] = {}
        for test in sorted({c.rpartition("|")[0] for c in contexts} & {*self._seconds}, key=self._seconds.__getitem__):
            by_function.setdefault(test.partition("[")[0], []).append(test)
        chosen, seconds = [], 0.0
        for test in filter(None, itertools.chain(*itertools.zip_longest(*by_function.values()))):
            seconds += self._seconds[test]
            if seconds < MOST_SECONDS:
                chosen.append(test)
        return chosen


def _module(name: str) -> str:
    return f"tests/test_{name}.py"


def mutants(record: Record) -> list[list[Mutant]]:
    """All of them, by lines."""
    found = []
    for pattern, tests in RULES.items():
        for path in sorted(ROOT.glob(pattern.replace("src/", "caffe_to_cmsis_nn/"))):
            text = False  # within a docstring
            for number, line in enumerate(path.read_text().split("\n"), 1):
                quotes = line.count('"""')
                if text or quotes or _NO_RULE.search(line):
                    text ^= quotes % 2 == 1
                    continue
                name = str(path.relative_to(ROOT))
                near = (path.suffix == ".py" and record.tests(name, number)) or [*map(_module, tests.split())]
                found.append([Mutant(name, number, line, after, near) for after in _changes(line)])
    return [changes for changes in found if changes]


def _copy(folder: Path) -> Path:
    """The project's files beside the development data."""
    copy = folder / "project"
    copy.mkdir(parents=True)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    (folder / "shared").symlink_to(SHARED.resolve())
    return copy


def lives(mutant: Mutant, copy: Path) -> bool:
    """Whether all tests pass with it."""
    path = copy / mutant.file
    before = path.read_text()
    lines = before.split("\n")
    assert lines[mutant.line - 1] == mutant.before
    lines[mutant.line - 1] = mutant.after
    path.write_text("\n".join(lines))
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    environment = {**os.environ, "HYPOTHESIS_DATABASE": "none"}
    nowhere = subprocess.DEVNULL
    ended = subprocess.Popen(command, cwd=copy, env=environment, start_new_session=True, stdout=nowhere, stderr=nowhere)
    try:
        return ended.wait(SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ended.pid, signal.SIGKILL)  # also programs that never end with it
        ended.wait()
        path.write_text(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of the files whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once, each in a copy of its own")
    parser.add_argument("--record", type=Path, help="folder that keeps what the first run of all tests says")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record = Record((args.record or Path(name)).resolve(), args.jobs)
        lines = [changes for changes in mutants(record) if args.only in changes[0].file]
    rng = random.Random(args.seed)
    chosen = [rng.choice(changes) for changes in rng.sample(lines, min(args.count, len(lines)))]
    survivors = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.jobs) as pool:
        copies: Queue[Path] = Queue()
        for i in range(args.jobs):
            copies.put(_copy(Path(name, str(i))))

        def try_one(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return lives(mutant, copy)
            finally:
                copies.put(copy)

        for i, (mutant, alive) in enumerate(zip(chosen, pool.map(try_one, chosen)), 1):
            survivors += alive
            if alive:
                print(mutant, flush=True)
            print(f"{i - survivors} of {i} killed", file=sys.stderr, flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed, on as many of {len(lines)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
