#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Changes one line at a time where a rule stands, in a copy of the project, and says which changes no test sees.

Run from the project's root: python -m tests.benchmarks.mutants [--count N] [--seed N] [--only TEXT] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from tests.support import ROOT, SHARED

# Where rules stand, and the tests that must see them change, the fastest first.
RULES = {
    "q7/qformat.py": "qformat search_device device",
    "q7/target.py": "qformat device device_s8 codegen_golden",
    "q7/onnx_windows.py": "graph device device_s8 cases",
    "q7/kernels/*.py": "rules cases device_s8 device own_q7 memory rows codegen_golden softmax lowering codegen_random",
    "q7/layers/*.py": "rules cases graph caffe_files prototxts device_s8 codegen_golden search",
    "q7/network/folding.py": "graph caffe_files prototxts",
    "q7/codegen/serving.py": "serving",
    "q7/codegen/[lmrs][!e]*.py": "rules codegen_golden memory rows lowering passes codegen_networks codegen_random",
    "q7/search/[cdvw]*.py": "rules search weight_bits search_device",
    "q7/engines/[ben]*.py": "engines search_device same_bytes",
    "q7/store/*.py": "record old_versions console",
    "q7/data/*.py": "images lmdb_images datasets special_files sizes graph prototxts caffe_files bad_input",
    "templates/common/*_q7.h": "device_s8 device own_q7 rows codegen_random",
    "templates/portable/*.c": "device codegen_random",
    "templates/portable_s8/*.c": "device_s8 codegen_random",
}
SECONDS = 300  # of a mutant's tests; what takes longer hangs
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
    r"^\s*(#|//|/?\*|\"\"\"|import |from |raise |@|def |class |assert )|Q7Error|:\s*ClassVar|\bf\"|(\d+, ){6}"
)


@dataclass(frozen=True)
class Mutant:
    """A file with one line in place of another."""

    file: str
    line: int
    before: str
    after: str
    tests: str

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


def mutants() -> list[list[Mutant]]:
    """All of them, by lines."""
    found = []
    for pattern, tests in RULES.items():
        for path in sorted(ROOT.glob(pattern)):
            text = False  # within a docstring
            for number, line in enumerate(path.read_text().split("\n"), 1):
                quotes = line.count('"""')
                if text or quotes or _NO_RULE.search(line):
                    text ^= quotes % 2 == 1
                    continue
                name = str(path.relative_to(ROOT))
                found.append([Mutant(name, number, line, after, tests) for after in _changes(line)])
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
    tests = [f"tests/test_{name}.py" for name in mutant.tests.split()]
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "HYPOTHESIS_DATABASE": "none"}
    try:
        ended = subprocess.run(command, cwd=copy, capture_output=True, env=environment, timeout=SECONDS, check=False)
        return ended.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of the files whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once, each in a copy of its own")
    args = parser.parse_args()
    rng, lines = random.Random(args.seed), [changes for changes in mutants() if args.only in changes[0].file]
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
