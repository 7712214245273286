#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Device accuracy (dsp core, nearest rounding) of the original's formats and of ours, for both libraries.

The columns are for the q7 kernels, except for the one that says s8.

Run from the project's root: python -m tests.benchmarks.accuracy [NETWORK ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nn_quantizer
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.pipeline.job import Job, prepare
from caffe_to_cmsis_nn.pipeline.quantize import find_formats, open_journal
from caffe_to_cmsis_nn.search.common import Candidate, SearchResult
from caffe_to_cmsis_nn.target import S8 as S8_LIBRARY
from caffe_to_cmsis_nn.target import Target
from tests.support import MODELS, SHARED

Q7, S8 = Target(), Target(library=S8_LIBRARY)


@dataclass(frozen=True)
class Case:
    """A trained network and its test images."""

    model: Path
    weights: Path
    accuracy: str = "accuracy"
    straight: bool = True  # no branches, which the original cannot take


def cases() -> dict[str, Case]:
    """The networks whose files are here."""
    data = SHARED / "data"
    found = {
        "LeNet": Case(MODELS / "lenet_train_test.prototxt", next(MODELS.glob("lenet_iter_*.caffemodel.h5"))),
        "arm_m4": Case(
            data / "arm_m4" / "cifar10_m4_train_test.prototxt",
            data / "arm_m4" / "cifar10_m4_iter_70000.caffemodel.h5",
        ),
        "resnet20": Case(
            data / "resnet20" / "res20_cifar_train_test.prototxt",
            data / "resnet20" / "cifar10_res20_iter_64000.caffemodel",
            "Accuracy1",
            straight=False,
        ),
    }
    if (MODELS / "cifar10_test_lmdb").exists():
        for name in ("m4", "m7"):
            weights = next(MODELS.glob(f"cifar10_{name}_iter_*.caffemodel.h5"))
            found[name] = Case(MODELS / f"cifar10_{name}_train_test.prototxt", weights)
    return {name: case for name, case in found.items() if case.model.exists()}


def search(case: Case, folder: Path, *options: str) -> tuple[Job, SearchResult, float]:
    """The inputs, what the search found, and its seconds."""
    arguments = ["--model", str(case.model), "--weights", str(case.weights), "--accuracy", case.accuracy]
    asked = nn_quantizer.parse_arguments([*arguments, "--save", str(folder / "net.pkl"), *options])
    with contextlib.redirect_stderr(io.StringIO()):
        job = prepare(asked)
    start = time.perf_counter()
    answers = open_journal(job, asked)
    found, _ = find_formats(job, asked, answers)
    answers.remove()
    return job, found, time.perf_counter() - start


def on_device(job: Job, candidate: Candidate, target: Target = Q7) -> float:
    """Percent of the reported images."""
    layers = quantize_network(candidate.graph, candidate.formats, target)
    logits = DeviceNetwork(candidate.graph, job.pick(job.reported), target).logits(layers)
    return accuracy_first(logits, job.labels[job.reported])


def in_float(job: Job) -> float:
    logits = FloatNetwork(job.graph, job.pick(job.reported)).logits(as_trained(job.graph))
    return accuracy_caffe(logits, job.labels[job.reported])


def all_images(name: str, case: Case, folder: Path) -> str:
    """A row: float, the original's formats on the device, ours, loss, seconds, ours for the s8 kernels."""
    job, ours, seconds = search(case, folder)
    theirs = "not possible"
    if case.straight:
        theirs = f"{on_device(job, search(case, folder, '--objective', 'caffe')[1].chosen):.2f}"
    reference, accuracy = in_float(job), on_device(job, ours.chosen)
    s8 = on_device(job, search(case, folder, "--api", "s8")[1].chosen, S8)
    loss = f"{reference - accuracy:+.2f}"
    return f"| {name} | {reference:.2f} | {theirs} | {accuracy:.2f} | {loss} | {seconds:.0f} | {s8:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", help="names (default: all that are here)")
    args = parser.parse_args()
    names = args.network
    chosen = {name: case for name, case in cases().items() if not names or name in names}
    with tempfile.TemporaryDirectory() as folder:
        print(
            "| network | float % | original's formats % | ours % | loss | seconds | ours, s8 % |\n" + "|---" * 7 + "|"
        )
        for name, case in chosen.items():
            print(all_images(name, case, Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
