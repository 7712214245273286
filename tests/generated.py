# SPDX-License-Identifier: Apache-2.0
"""Generating code in tests, building it, and reading what the programs print."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

import code_gen
from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.emit import projects, render
from caffe_to_cmsis_nn.engines.known_answers import KnownAnswers
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.plan.rows import RowPlan, Section
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.target import Q7, Target
from tests.support import ROOT, run, tool

PORTABLE = ROOT / "templates" / "portable"
PORTABLE_S8 = ROOT / "templates" / "portable_s8"
# Undefined behaviour stops the program.
CHECKED = ("-O0", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def generate(pickle: Path, folder: Path, *flags: str) -> Path:
    """What code_gen.py writes with these flags."""
    assert code_gen.main(["--model", str(pickle), "--out_dir", str(folder), *flags]) == 0
    return folder


def network(pickle: Path) -> QuantizedNetwork:
    loaded = record.load(pickle).network
    assert loaded is not None
    return loaded


def stored_images(quantized: QuantizedNetwork, pickle: Path, count: int) -> np.ndarray:
    """The first images (N, C, H, W) of the network's LMDB."""
    lmdb = files.find(quantized.dataset, pickle.parent, "the LMDB")
    return test_images.open_images(quantized, lmdb, count)[0]


def predicted(quantized: QuantizedNetwork, images: np.ndarray) -> np.ndarray:
    """The device model's logits."""
    return DeviceNetwork(quantized.graph, images, quantized.target).logits(quantized.layers)


def make(folder: Path, *arguments: str) -> str:
    """Runs make, which must succeed, and gives what it printed.

    Unless `arguments` say otherwise, programs for boards are built with -O1, which takes a third of the time of -O3,
    and those for this computer with -O0; test_codegen_run.py builds with -O3 and -Os for each core.
    """
    done = made(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make as above, which may fail."""
    levels = {"OPTIMIZE": "-O1"} if (folder / "mps2.ld").exists() else {"CFLAGS": "-O0", "CXXFLAGS": "-O0"}
    chosen = [f"{name}={level}" for name, level in levels.items() if not any(a.startswith(name) for a in arguments)]
    return run(tool("make"), "-s", "-C", folder, *chosen, *arguments)


def share_kernels(folder: Path) -> None:
    """Has the code call one copy of each of our kernels, where it would have a copy for each call.

    Without optimisation, the compiler makes the same instructions of all copies, and takes several times as long.
    """
    header = folder / "words_q7.h"
    if header.exists():
        text = header.read_text()
        assert text.count("always_inline") == 1
        header.write_text(text.replace("always_inline", "unused"))


def on_host(folder: Path, images: np.ndarray) -> np.ndarray:
    """The logits that a built host program computes."""
    np.ascontiguousarray(np.moveaxis(images, 1, -1)).tofile(folder / "images.bin")
    done = run("./network", "images.bin", "logits.bin", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return np.fromfile(folder / "logits.bin", np.int8).reshape(len(images), -1)


def printed_logits(text: str) -> np.ndarray:
    """The logits that a program's known-answer test printed."""
    rows = re.findall(r"^image \d+: .*, logits([- 0-9]+)$", text, re.M)
    return np.array([[int(value) for value in row.split()] for row in rows])


def printed_ticks(text: str) -> dict[str, int]:
    """Layer names and times of a --profile table, "all" included."""
    return {name: int(time) for name, time in re.findall(r"^(\w+) +(\d+) (?:us|ns|cycles)$", text, re.M)}


def macros(header: Path) -> dict[str, str]:
    """The macros of a generated header as text, continued lines joined."""
    text = header.read_text().replace("\\\n", " ")
    return {name: value.strip() for name, value in re.findall(r"^#define (\w+) (.+)$", text, re.M)}


def without_fingerprint(text: str) -> str:
    """A generated file apart from the number that all headers of a run share, which comes of their comments, too."""
    return re.sub(r"(_FINGERPRINT(?: !=)?) 0x[0-9a-f]{8}u", r"\1", text)


def array(macro: str) -> np.ndarray:
    """The numbers of a brace initializer."""
    return np.array([int(value) for value in macro.strip("{} ").split(",")])


def flip_first_value(header: Path, macro: str) -> None:
    """Damages one weight."""
    text = header.read_text()
    match = re.search(rf"#define {macro} \{{ \\\n +(-?\d+)", text)
    assert match
    value = int(match.group(1))
    header.write_text(text[: match.start(1)] + str(value - 64 if value > 0 else value + 64) + text[match.end(1) :])


def cross_compile(source: Path, output: Path, *flags: str | Path) -> Path:
    """Builds one C++ file for Cortex-M."""
    compiler = tool("arm-none-eabi-g++")
    done = run(compiler, "-Os", "-mthumb", *flags, "-I", PORTABLE, "-c", source, "-o", output)
    if done.returncode != 0:
        pytest.fail(done.stderr)
    return output


def sections(binary: Path) -> dict[str, int]:
    """Bytes of each section of a built object."""
    lines = run(tool("arm-none-eabi-size"), "-A", binary).stdout.splitlines()
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 3 and words[1].isdigit()}


def arm_compilers() -> dict[str, list[str]]:
    """GCC, and Clang with the C library that came with GCC."""
    gcc = tool("arm-none-eabi-gcc")
    library = Path(run(gcc, "-print-sysroot").stdout.strip() or "/nowhere") / "include"
    library = library if library.is_dir() else Path("/usr/include/newlib")
    return {"gcc": [gcc], "clang": [tool("clang"), "--target=arm-none-eabi", "-isystem", str(library)]}


# --- programs for this computer, beside portable kernels that are built once ------------------------------------------


def longest_row_groups(quantized: QuantizedNetwork, promised_only: bool = False) -> RowPlan:
    """A plan that computes as much row by row as can be, whether that takes less memory or not."""
    planner = rows.Planner(quantized, promised_only)
    found: list[Section] = []
    start = 0
    while start < len(planner.cuts) - 1:
        stop, one = max(planner.row_groups(start), default=(start + 1, None), key=lambda found: found[0])
        found.append(Section(tuple(range(planner.cuts[start], planner.cuts[stop])), one))
        start = stop
    return planner.plan(found)


def _flags(target: Target) -> list[str]:
    folder = PORTABLE if target.library is Q7 else PORTABLE_S8
    return [f"-I{folder}", *(f"-D{name}" for name in projects.definitions(target))]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def portable_kernels(target: Target) -> Path:
    """An object file with the portable kernels for a target."""
    built = Path(_folder().name, f"{'-'.join(target.names().values())}.o")
    source = (PORTABLE if target.library is Q7 else PORTABLE_S8) / "arm_nnfunctions.c"
    done = run(tool("gcc", "cc"), "-O1", *_flags(target), "-c", source, "-o", built)
    assert done.returncode == 0, done.stderr
    return built


def check_on_host(folder: Path, quantized: QuantizedNetwork, plan: RowPlan, answers: KnownAnswers) -> None:
    """Builds a program and runs its known-answer test, which must pass."""
    target, count = quantized.target, len(answers.labels)
    render.write(folder, render.render(quantized, plan, projects.CodeOptions("host"), answers))
    share_kernels(folder)
    flags = [*CHECKED, *STRICT, *_flags(target), "-fno-exceptions"]
    compiled = run(tool("g++", "c++"), *flags, "-c", "main.cpp", "-o", "main.o", cwd=folder)
    assert compiled.returncode == 0, compiled.stderr
    objects: list[str | Path] = ["main.o", *([portable_kernels(target)] if target.library.portable else [])]
    linked = run(tool("gcc", "cc"), *objects, "-o", "network", cwd=folder)
    assert linked.returncode == 0, linked.stderr
    done = run(folder / "network")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS: every layer as predicted for {count} of {count} images" in done.stdout
