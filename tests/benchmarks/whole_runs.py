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
from q7.data import lmdb_images, pictures
from q7.engines.networks import FloatNetwork, as_trained
from q7.pipeline.job import prepare
from tests.support import MODELS, ROOT, SHARED

DATA = SHARED / "data"
CIFAR = DATA / "cifar10" / "cifar10_test_lmdb"
CIFAR_FLAGS = ("--lmdb", CIFAR, "--mean", DATA / "cifar10" / "mean.binaryproto")
VWW_PICTURES = 2000
FLAGS: dict[str, Sequence[Path | str]] = {
    "LeNet": ("lenet_train_test.prototxt", "lenet_iter_12000.caffemodel.h5"),
    "arm_m4": ("cifar10_m4_train_test.prototxt", "cifar10_m4_iter_70000.caffemodel.h5", *CIFAR_FLAGS),
    "m4": ("cifar10_m4_train_test.prototxt", "cifar10_m4_iter_40000.caffemodel.h5", *CIFAR_FLAGS),
    "m7": ("cifar10_m7_train_test.prototxt", "cifar10_m7_iter_12000.caffemodel.h5", *CIFAR_FLAGS),
    "ResNet-8": ("mlperf_tiny_resnet8_train_test.prototxt", "mlperf_tiny_resnet8.caffemodel", "--lmdb", CIFAR),
    "resnet20": (
        *("res20_cifar_train_test.prototxt", "cifar10_res20_iter_64000.caffemodel"),
        *(*CIFAR_FLAGS, "--accuracy", "Accuracy1"),
    ),
    "VWW": ("mlperf_tiny_vww_train_test.prototxt", "mlperf_tiny_vww.caffemodel", "--lmdb", "vww_lmdb"),
}
FOLDERS = {"LeNet": MODELS, "m4": MODELS, "m7": MODELS, "arm_m4": DATA / "arm_m4", "resnet20": DATA / "resnet20"}


def arguments(name: str, folder: Path) -> list[str]:
    """nn_quantizer's, for copies of the network's files in a folder."""
    model, weights, *flags = FLAGS[name]
    files = [Path(shutil.copy(FOLDERS.get(name, DATA / "mlperf_tiny") / one, folder)) for one in (model, weights)]
    if name == "VWW":
        flags[-1] = folder / flags[-1]
        enlarged(folder, Path(flags[-1]), files)
    if name == "LeNet":
        flags = ["--lmdb", MODELS / "mnist_test_lmdb"]
    return [str(flag) for flag in ("--model", files[0], "--weights", files[1], *flags)]


def enlarged(folder: Path, lmdb: Path, files: Sequence[Path]) -> None:
    """CIFAR-10 pictures of 96x96 pixels, whose labels are what the float network says."""
    images, labels = lmdb_images.read(CIFAR, range(VWW_PICTURES))
    large = [pictures.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), 96, 96) for image in images]
    turned = [image.transpose(2, 0, 1) for image in large]
    lmdb_images.write(lmdb, turned, np.zeros_like(labels))
    job = prepare(parsed([str(part) for part in ("--model", files[0], "--weights", files[1], "--lmdb", lmdb)], folder))
    logits = FloatNetwork(job.graph, job.images).logits(as_trained(job.graph))
    shutil.rmtree(lmdb)
    lmdb_images.write(lmdb, turned, logits.argmax(axis=1))


def parsed(flags: Sequence[str], folder: Path) -> Any:
    return nn_quantizer.parse_arguments([*flags, "--save", str(folder / "net.pkl"), "-q"])


def one_pass(flags: Sequence[str], folder: Path) -> float:
    """Seconds of the float network over all images, in this process."""
    job = prepare(parsed(flags, folder))
    network = FloatNetwork(job.graph, job.images)
    start = time.perf_counter()
    network.logits(as_trained(job.graph))
    return time.perf_counter() - start


def measured(command: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """What a program prints, its seconds, and its peak memory in MB."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        out.seek(0)
        return out.read().decode(), seconds, usage.ru_maxrss / 1000


def command(flags: Sequence[str], folder: Path) -> list[str]:
    return [sys.executable, "nn_quantizer.py", "-q", *flags, "--save", str(folder / "net.pkl")]


def report(tool: Path, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a run's --json says."""
    output = folder / "net.json"
    measured([*command(flags, folder), "--json", str(output)], tool)
    return dict(json.loads(output.read_text()))


def row(tool: Path, name: str, api: str, splits: int) -> str:
    """A network's figures, all from runs of this moment."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flags = [*arguments(name, folder), "--api", api]
        printed, _, _ = measured([sys.executable, "-m", "tests.benchmarks.whole_runs", "--pass", *flags], ROOT)
        _, seconds, memory = measured(command(flags, folder), tool)
        found = report(tool, flags, folder)
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
    parser.add_argument("network", nargs="*", default=[*FLAGS], help="names (default: all)")
    parser.add_argument("--tools", nargs="+", type=Path, default=[ROOT], help="checkouts to hold against each other")
    parser.add_argument("--api", nargs="+", choices=("q7", "s8"), default=["q7", "s8"])
    parser.add_argument("--splits", type=int, default=5, help="held-out halves")
    if sys.argv[1:2] == ["--pass"]:
        with tempfile.TemporaryDirectory() as folder:
            print(one_pass(sys.argv[2:], Path(folder)))
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
