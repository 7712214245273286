#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What whole runs of nn_quantizer.py cost and bring: passes, peak memory, accuracy, agreement, loss on held-out images.

A pass is the float network's over all images, in a process of its own before each run; passes are how many of them the
run takes, with the start of Python. `--tools` holds this checkout against others, in one run of this script.

Run from the project's root: python -m tests.benchmarks.whole_runs [NETWORK ...] [--tools FOLDER ...] [--splits N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nn_quantizer
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.pipeline.job import prepare
from tests.benchmarks import rows
from tests.benchmarks.rows import CASES, CIFAR_FLAGS, DATA, Case
from tests.support import ROOT

VWW_PICTURES = 2000
ARM = DATA / "arm_m4"
ARM_CASE = Case(ARM / "cifar10_m4_train_test.prototxt", ARM / "cifar10_m4_iter_70000.caffemodel.h5", CIFAR_FLAGS)
NETWORKS = {**CASES, "arm_m4": ARM_CASE}


def arguments(name: str, folder: Path) -> list[str]:
    """nn_quantizer's; VWW's labels are what the float network says."""
    flags = rows.arguments(NETWORKS[name], folder, VWW_PICTURES)
    if name == "VWW":
        job = prepare(parsed(flags))
        answers = FloatNetwork(job.graph, job.images).logits(as_trained(job.graph)).argmax(axis=1)
        shutil.rmtree(folder / "vww_lmdb")
        lmdb_images.write(folder / "vww_lmdb", job.images, answers)
    return flags


def parsed(flags: Sequence[str]) -> Any:
    return nn_quantizer.parse_arguments([*flags, "-q"])


def one_pass(flags: Sequence[str]) -> float:
    """Seconds of the float network over all images, in this process."""
    job = prepare(parsed(flags))
    network = FloatNetwork(job.graph, job.images)
    start = time.perf_counter()
    network.logits(as_trained(job.graph))
    return time.perf_counter() - start


def measured(command: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """What a program prints, its seconds, and its peak memory in MB; Python may keep what it compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        out.seek(0)
        return out.read().decode(), seconds, usage.ru_maxrss / 1000


def command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, "nn_quantizer.py", "-q", *flags]


def report(tool: Path, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a run's --json says."""
    output = folder / "net.json"
    measured([*command(flags), "--json", str(output)], tool)
    return dict(json.loads(output.read_text()))


def row(tool: Path, name: str, api: str, splits: int) -> str:
    """A network's figures, all from runs of this moment."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flags = [*arguments(name, folder), "--api", api]
        printed, _, _ = measured([sys.executable, "-m", "tests.benchmarks.whole_runs", "--pass", *flags], ROOT)
        found = report(tool, flags, folder)
        _, seconds, memory = measured(command(flags), tool)
        losses = []
        for seed in range(splits):
            half = report(tool, [*flags, "--holdout", "0.5", "--seed", str(seed)], folder)
            losses.append(half["accuracy"]["loss"])
    accuracy, count = found["accuracy"], found["images"]["count"]
    agreement = 100 * (1 - len(found["changed"]) / count)
    chosen = next(one for one in found["candidates"] if one["chosen"])
    sqnr = found["layers"][-1]["activations"]["sqnr"]
    held_out = f"{np.mean(losses):+.2f} ± {np.std(losses, ddof=1) / len(losses) ** 0.5:.2f}" if splits > 1 else ""
    cells = [
        *(tool.name, name, api, f"{float(printed):.1f}", f"{seconds:.1f}", f"{seconds / float(printed):.1f}"),
        *(f"{memory:.0f}", f"{accuracy['float']:.2f}", f"{accuracy['device']:.2f}", f"{agreement:.2f}"),
        *(f"{sqnr:.1f}", f"{chosen['divergence']:.2g}", held_out),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", default=[*NETWORKS], help="names (default: all)")
    parser.add_argument("--tools", nargs="+", type=Path, default=[ROOT], help="checkouts to hold against each other")
    parser.add_argument("--api", nargs="+", choices=("q7", "s8"), default=["q7", "s8"])
    parser.add_argument("--splits", type=int, default=5, help="held-out halves")
    if sys.argv[1:2] == ["--pass"]:
        print(one_pass(sys.argv[2:]))
        return 0
    args = parser.parse_args()
    print(
        "| tool | network | api | one pass (s) | run (s) | passes | MB | float % | device % | agree % | logits dB "
        "| divergence | held-out loss |\n" + "|---" * 13 + "|"
    )
    for name in args.network:
        for api in args.api:
            for tool in args.tools:
                print(row(tool.resolve(), name, api, args.splits), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
