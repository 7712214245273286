#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seconds of the original's procedure on Caffe with a full pass for each trial, and of ours, on the same images.

Run from the project's root, where Caffe is installed: python -m tests.benchmarks.sweep [--iterations N] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import nn_quantizer
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.engines.pycaffe_network import PycaffeNetwork
from caffe_to_cmsis_nn.pipeline.job import Job, prepare
from caffe_to_cmsis_nn.search.caffe_objective import CaffeSimulation, ScreenedSimulation, caffe_objective
from caffe_to_cmsis_nn.search.common import Search
from caffe_to_cmsis_nn.search.device_objective import device_objective
from caffe_to_cmsis_nn.target import Target
from tests.benchmarks.accuracy import Case, cases

TOLERANCE = 0.001


Way = Callable[[Job, FloatNetwork], Search]


def by_caffe(simulation: type[CaffeSimulation]) -> Way:
    return lambda job, network: caffe_objective(job.graph, simulation(network, job.labels), TOLERANCE)


def by_device(job: Job, network: FloatNetwork) -> Search:
    return device_objective(job.graph, network, job.labels, Target(), TOLERANCE)


def _seconds(search: Way, job: Job, network: FloatNetwork) -> float:
    start = time.perf_counter()
    deque(search(job, network), maxlen=0)
    return time.perf_counter() - start


def _one_pass(network: FloatNetwork) -> float:
    start = time.perf_counter()
    network.logits(as_trained(network.graph))
    return time.perf_counter() - start


def rows(name: str, case: Case, folder: Path, iterations: str) -> None:
    """Prints a row for each way: seconds, the same in passes of the float network, times faster than the original."""
    arguments = ["--model", str(case.model), "--weights", str(case.weights), "--accuracy", case.accuracy]
    arguments += ["--save", str(folder / "net.pkl"), "--iterations", iterations]
    job = prepare(nn_quantizer.parse_arguments(arguments))
    original = None
    for way, network, search in (
        (
            "Caffe, full passes (the original)",
            PycaffeNetwork(job.graph, job.images, job.prototxt),
            by_caffe(CaffeSimulation),
        ),
        (
            "--engine caffe --objective caffe",
            PycaffeNetwork(job.graph, job.images, job.prototxt),
            by_caffe(ScreenedSimulation),
        ),
        ("onnxruntime, full passes", FloatNetwork(job.graph, job.images), by_caffe(CaffeSimulation)),
        ("--objective caffe", FloatNetwork(job.graph, job.images), by_caffe(ScreenedSimulation)),
        ("--objective device (default)", FloatNetwork(job.graph, job.images), by_device),
    ):
        one_pass, seconds = _one_pass(network), _seconds(search, job, network)
        original = original or seconds
        print(f"| {name} | {way} | {seconds:.1f} | {seconds / one_pass:.1f} | {original / seconds:.1f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", help="names (default: LeNet and arm_m4)")
    parser.add_argument("--iterations", default="100", help="number of test batches")
    args = parser.parse_args()
    print("| network | way | seconds | passes | times faster |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases().items():
            if name in (args.network or ("LeNet", "arm_m4")):
                rows(name, case, Path(folder), args.iterations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
