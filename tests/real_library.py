#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs generated programs with Arm's own kernels on emulated boards, and says which computed what was predicted.

Builds each program as its Makefile does for a user, with the kernels of the folders given: CMSIS 5.9.0 (CMSIS/NN,
CMSIS/DSP and CMSIS/Core) and any releases of CMSIS-NN. Networks are the project's, those of the development data, and
random ones. Every program runs several images, one after the other. The exit code is 1 where any program failed.

Run from the project's root:
python -m tests.real_library --cmsis-5 DIR --cmsis-nn DIR [DIR ...] [--random N] [--only TEXT ...] [--instructions]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

import code_gen
from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.plan import lowering, rows
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Library, Target
from tests.benchmarks.rows import CASES, CIFAR_FLAGS, DATA, Case, quantize
from tests.generated import printed_ticks
from tests.networks import BEFORE_LAST, prototxts
from tests.networks import quantize as quantize_random
from tests.support import SHARED

IMAGES = 3
OUTPUTS = (0, 0, 1, BEFORE_LAST)  # of random networks
SECONDS = 120  # in which a program must be built and end
CORES = {"cortex-m3": Core.PLAIN, "cortex-m4": Core.DSP, "cortex-m7": Core.DSP, "cortex-m55": Core.MVE}
MLPERF, BREADTH = DATA / "mlperf_tiny", DATA / "breadth"


def _features(name: str) -> Case:
    prototxt = MLPERF / f"mlperf_tiny_{name}.prototxt"
    return Case(prototxt, prototxt.with_suffix(".caffemodel"))


NETWORKS = {
    **CASES,
    "arm_m4": Case(
        DATA / "arm_m4" / "cifar10_m4_train_test.prototxt",
        DATA / "arm_m4" / "cifar10_m4_iter_70000.caffemodel.h5",
        CIFAR_FLAGS,
    ),
    "cifar10_full": Case(
        BREADTH / "cifar10_full_train_test.prototxt", BREADTH / "cifar10_full_iter_70000.caffemodel.h5", CIFAR_FLAGS
    ),
    "KWS": _features("kws"),
    "AD": _features("ad"),
}


# What it is called, the library, flags of nn_quantizer.py, and flags of code_gen.py.
KINDS: list[tuple[str, Library, tuple[str, ...], tuple[str, ...]]] = [
    ("", Q7, (), ()),
    ("", S8, ("--api", "s8"), ()),
    ("truncate", Q7, ("--rounding", "truncate"), ()),
    ("softmax", Q7, (), ("--softmax",)),
    ("4 bits", S8, ("--api", "s8", "--weight_bits", "4"), ()),
]
WITH_ALL_KINDS = ("LeNet", "arm_m4")


def _minimal() -> dict[str, Case]:
    """Small networks that went wrong once."""
    folders = sorted((SHARED / "cases").glob("min_*"))
    return {
        folder.name: Case(folder / "net.prototxt", folder / "net.caffemodel.h5", ("--lmdb", str(folder / "lmdb")))
        for folder in folders
    }


@dataclass(frozen=True)
class Release:
    """A folder with Arm's kernels, and what make is told of it."""

    folder: Path
    core_folder: Path | None = None  # CMSIS 5, for releases of CMSIS-NN that need its Core

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def library(self) -> Library:
        return Q7 if (self.folder / "CMSIS" / "NN").is_dir() else S8

    @property
    def has_4_bits(self) -> bool:
        """CMSIS-NN has kernels for such weights from version 5 on."""
        return any(self.folder.glob("Source/*/arm_convolve_wrapper_s4.c"))

    @property
    def arguments(self) -> list[str]:
        core = [f"CMSIS_CORE_PATH={self.core_folder}"] if self.core_folder and self.library is S8 else []
        return [f"CMSIS_PATH={self.folder}", *core]


@dataclass(frozen=True)
class Program:
    """What is built, and with what."""

    network: str
    source: Path | tuple[str, tuple[int, int, int], str]  # a pickle, or a random network
    release: Release | None  # none for kernels that come with the code
    core: str
    ram: str = "fast"
    flags: tuple[str, ...] = ()  # of code_gen.py
    kind: str = ""  # what it was quantized with, or ends in
    seed: int = 0

    @property
    def library(self) -> Library:
        return self.release.library if self.release else OWN

    def __str__(self) -> str:
        release = self.release.name if self.release else "own kernels"
        return " | ".join([self.network, release, self.core, self.ram, self.kind])


@dataclass
class Results:
    """Programs by what became of them."""

    counts: Counter[str] = field(default_factory=Counter)
    instructions: dict[tuple[str, str], int] = field(default_factory=dict)  # of one image, by core and plan

    def add(self, program: Program, ended: str, text: str) -> None:
        self.counts[ended] += 1
        ticks = printed_ticks(text)
        if ended == "pass" and "all" in ticks:
            self.instructions[program.core, program.ram] = ticks["all"]


# --- one program ------------------------------------------------------------------------------------------------------


def _random_network(program: Program, folder: Path) -> None:
    """Writes the program's files."""
    assert isinstance(program.source, tuple)
    target = Target(CORES[program.core], library=program.library)
    origin = replace(target, library=Q7) if program.library is OWN else target
    text, shape, top = program.source
    quantized = quantize_random(folder, text, shape, top, origin, program.seed, OUTPUTS[program.seed % 4])
    lowered = lowering.fuse(lowering.retarget(quantized, target))
    images = np.random.default_rng(program.seed).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    answers = known_answers.compute(lowered, images, np.zeros(IMAGES, np.int32))
    plan = rows.plan(lowered, ram=program.ram)
    render.write(folder, render.render(lowered, plan, CodeOptions("mps2"), answers))


def _generate(program: Program, folder: Path) -> None:
    if isinstance(program.source, tuple):
        _random_network(program, folder)
        return
    flags = ["--target", "mps2", "--test_images", str(IMAGES), "--ram", program.ram, *program.flags]
    kernels = ["--kernels", "own"] if program.library is OWN else ["--api", program.library.name]
    core = ["--core", CORES[program.core].value]
    arguments = ["--model", str(program.source), "--out_dir", str(folder), *flags, *kernels, *core]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        if code_gen.main(arguments):
            raise UserError(errors.getvalue())


def _objects(program: Program, cache: Path) -> Path:
    """Where objects of one library and core are kept for all programs of this process."""
    release = program.release.name if program.release else "own"
    objects = cache / str(os.getpid()) / f"{release}-{program.core}-{'truncate' in program.kind}"
    for name in ("main.o", "startup.o", "network.elf"):
        (objects / name).unlink(missing_ok=True)
    return objects


def run(program: Program, cache: Path) -> tuple[str, str]:
    """What became of it in a word, and what was printed."""
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        try:
            _generate(program, folder)
        except UnsatisfiedAssumption:
            return "refused", "no formats"
        except UserError as error:
            return "refused", str(error)
        os.utime(folder / "Makefile", (1, 1))  # which all objects depend on
        objects = _objects(program, cache)
        build = [f"CORE={program.core}", f"B={objects}"]
        arguments = program.release.arguments if program.release else []
        command: list[str | Path] = ["make", "-s", "-C", folder, *build, *arguments]
        try:
            built = subprocess.run(
                [*command, objects / "network.elf"], capture_output=True, text=True, timeout=SECONDS, check=False
            )
            if built.returncode:
                return "not built", built.stdout + built.stderr
            ended = subprocess.run([*command, "run"], capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-f", str(folder)], check=False)
            return "hanging", ""
        good = (
            ended.returncode == 0 and f"PASS: every layer as predicted for {IMAGES} of {IMAGES} images" in ended.stdout
        )
        return "pass" if good else "wrong", ended.stdout + ended.stderr


# --- which programs ---------------------------------------------------------------------------------------------------


def _network(
    name: str, case: Case, releases: Sequence[Release], cores: Sequence[str], profile: bool, cache: Path
) -> Iterator[Program]:
    """Programs of one network: each library with each release, core and plan."""
    plans = list(itertools.product(cores, ("fast", "least")))
    for number, (kind, library, options, flags) in enumerate(KINDS):
        if kind and name not in WITH_ALL_KINDS:
            continue
        folder = cache / f"{name}-{number}"
        folder.mkdir()
        pickle = quantize(case, folder, *options)
        given = (*flags, "--profile") if profile else flags
        own = [None] if not kind and library is Q7 else []
        able = [r for r in releases if r.library is library and (kind != "4 bits" or r.has_4_bits)]
        for release in [*able, *own]:
            for core, ram in plans:
                yield Program(name, pickle, release, core, ram, given, kind)


def random_networks(count: int, seed: int) -> list[tuple[tuple[str, tuple[int, int, int], str], int]]:
    """So many, each with a number that decides on its weights and images."""
    found: list[tuple[tuple[str, tuple[int, int, int], str], int]] = []

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
    @given(prototxts(), st.integers(0, 1 << 30))
    def collect(network: tuple[str, tuple[int, int, int], str], number: int) -> None:
        found.append((network, number))

    collect()
    return found


def _random(count: int, seed: int, releases: Sequence[Release], cores: Sequence[str]) -> Iterator[Program]:
    """Each random network with one library and core after the other, row by row."""
    combinations = [(release, core) for core in cores for release in (*releases, None)]
    for i, (network, number) in enumerate(random_networks(count, seed)):
        release, core = combinations[i % len(combinations)]
        yield Program(f"random {i}", network, release, core, "least", seed=number)


def _programs(args: argparse.Namespace, cache: Path) -> Iterator[Program]:
    releases = [Release(args.cmsis_5)] if args.cmsis_5 else []
    releases += [Release(folder, args.cmsis_5) for folder in args.cmsis_nn]
    cases = {**_minimal(), **NETWORKS}
    for name, case in cases.items():
        if args.only and not any(text in name for text in args.only):
            continue
        if case.model.exists():
            yield from _network(name, case, releases, args.cores, args.instructions, cache)
    if args.random:
        yield from _random(args.random, args.seed, releases, args.cores)


def print_instructions(table: Mapping[str, Results]) -> None:
    """Of one image, whole and row by row, and how many times as many these are."""
    print("\n| network | kernels | core | whole | row by row | ratio |\n|---|---|---|---|---|---|")
    for key, results in table.items():
        for core in CORES:
            counts = [results.instructions.get((core, ram)) for ram in ("fast", "least")]
            if counts[0] and counts[1]:
                print(f"| {key} | {core} | {counts[0]:,} | {counts[1]:,} | {counts[1] / counts[0]:.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cmsis-5", type=lambda text: Path(text).resolve(), help="folder that holds CMSIS/")
    parser.add_argument("--cmsis-nn", type=lambda text: Path(text).resolve(), nargs="*", default=[], help="of releases")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random networks as well")
    parser.add_argument("--seed", type=int, default=0, help="of the random networks")
    parser.add_argument("--only", nargs="*", help="networks whose names contain one of these")
    parser.add_argument("--cores", nargs="*", default=["cortex-m3", "cortex-m4", "cortex-m55"], choices=[*CORES])
    parser.add_argument("--instructions", action="store_true", help="count those of one image, by QEMU")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="programs at once")
    args = parser.parse_args()
    table: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(args.jobs) as pool:
        cache = Path(name)
        waiting = [(program, pool.submit(run, program, cache)) for program in _programs(args, cache)]
        for program, future in waiting:
            ended, text = future.result()
            release = program.release.name if program.release else "own kernels"
            network = "random" if program.network.startswith("random") else f"{program.network} {program.kind}".strip()
            results = table.setdefault(f"{network} | {release}", Results())
            results.add(program, ended, text)
            if ended not in ("pass", "refused"):
                print(f"{program}: {ended}\n{text[-1500:]}", file=sys.stderr, flush=True)
    words = ("pass", "wrong", "not built", "hanging", "refused")
    print(f"| network | kernels | {' | '.join(words)} |\n|{'---|' * (len(words) + 2)}")
    total: Counter[str] = Counter()
    for key, results in table.items():
        total += results.counts
        print(f"| {key} | {' | '.join(str(results.counts[word]) for word in words)} |")
    print(f"| all | | {' | '.join(str(total[word]) for word in words)} |")
    if args.instructions:
        print_instructions(table)
    return 0 if total["pass"] + total["refused"] == sum(total.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
