#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions, flash and RAM of networks with our own q7 kernels on an emulated Cortex-M4, and the model's error.

Instructions are those of one image, from pixels to logits (QEMU, -icount shift=0). Flash is code and constants of the
network's own file, RAM is data + bss (-O3). What CMSIS 5.9.0 takes was counted once with the real library. Needs the
development data, arm-none-eabi-gcc and qemu-system-arm.

Run from the project's root: python -m tests.benchmarks.instructions [--layers] [--fit] [--4bits] [NETWORK ...]
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import code_gen
from caffe_to_cmsis_nn.kernels import instructions
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import OWN, Target
from tests.benchmarks.rows import CASES, quantize
from tests.generated import make, network, printed_ticks, sections
from tests.support import run

COUNTED = {"LeNet": 4_774_440, "m4": 13_415_920, "resnet20": 73_230_080}  # with CMSIS 5.9.0, q7
Row = tuple[Any, Any, int]  # layer, kernel, instructions


def measure(pickle: Path, folder: Path) -> tuple[list[Row], int, int, int]:
    """The layers' counts, the whole network's, and bytes of flash and RAM."""
    flags = ["--kernels", "own", "--target", "mps2", "--name", "net"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert code_gen.main(["--model", str(pickle), "--out_dir", str(folder), "--profile", *flags]) == 0
    text = make(folder, "run")
    assert "PASS" in text
    ticks = printed_ticks(text)
    build = ["-O3", "-mcpu=cortex-m4", "-mthumb", "-ffunction-sections", "-fdata-sections"]
    done = run("arm-none-eabi-gcc", *build, "-c", folder / "net.c", "-o", folder / "n.o")
    assert done.returncode == 0, done.stderr
    held = sections(folder / "n.o")
    flash = sum(n for name, n in held.items() if name.startswith((".text", ".rodata")) and "observed" not in name)
    ram = sum(n for name, n in held.items() if name.startswith((".data", ".bss")))
    lowered = lowering.fuse(lowering.retarget(network(pickle), Target(library=OWN)))
    counts = [ticks[name] for name in ticks if name != "all"]
    assert len(counts) == len(lowered.layers)
    rows = [(layer, held.kernel, n) for layer, held, n in zip(lowered.graph.layers, lowered.layers, counts)]
    return rows, ticks["all"], flash, ram


def fit(rows: list[Row]) -> None:
    """Costs with the least relative squared error; what takes one instruction is not fitted."""
    works = [(kernel.work(layer) or {}, count) for layer, kernel, count in rows]
    names = sorted({name for work, _ in works for name in work} - {"instruction"})
    matrix = np.array([[work.get(name, 0) / count for name in names] for work, count in works])
    wanted = np.array([1 - work.get("instruction", 0) / count for work, count in works])
    found = dict(zip(names, _nonnegative(matrix, wanted)))
    print("\n".join(f'    "{name}": {cost:.1f},' for name, cost in found.items()))


def _nonnegative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares of which nothing is negative: what would be is left out, the most negative first."""
    kept = list(range(matrix.shape[1]))
    while True:
        solution = np.linalg.lstsq(matrix[:, kept], wanted, rcond=None)[0]
        if solution.min() >= 0:
            break
        del kept[int(solution.argmin())]
    result = np.zeros(matrix.shape[1])
    result[kept] = solution
    return result


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if not name.startswith("--")] or list(CASES)
    narrow = ["--weight_bits", "4"] if "--4bits" in arguments else []
    everything: list[Row] = []
    print("| network | MACs | CMSIS 5.9.0 | own | each MAC | ratio | estimate | flash | RAM |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows, total, flash, ram = measure(quantize(CASES[name], Path(folder), *narrow), Path(folder))
        everything += rows
        macs = sum(layer.macs for layer, _, _ in rows)
        estimates = [instructions.estimate(kernel, layer) for layer, kernel, _ in rows]
        whole = sum(n or 0 for n in estimates) / total
        theirs = COUNTED.get(name)
        cells = [f"{macs:,}", f"{theirs:,}" if theirs else "", f"{total:,}", f"{total / macs:.2f}"]
        cells += [f"{total / theirs:.2f}" if theirs else "", f"{100 * (whole - 1):+.1f} %", f"{flash:,}", f"{ram:,}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if "--layers" in arguments:
            for (layer, kernel, count), estimate in zip(rows, estimates):
                each = f"{count / layer.macs:5.2f}" if layer.macs else " " * 5
                error = f"{100 * (estimate / count - 1):+6.1f} %" if estimate else ""
                print(f"    {layer.name:24} {kernel.name:20} {layer.macs:>9} {count:>9} {each} {error}")
    if "--fit" in arguments:
        fit(everything)


if __name__ == "__main__":
    main(sys.argv[1:])
