#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each step of the search brings: the logits' divergence from the float network's, their noise, and agreement.

All images judge; channels' factors (docs/method.md) are left out in the columns that say so.

Run from the project's root: python -m tests.benchmarks.steps [NETWORK ...] [--api q7|s8]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from caffe_to_cmsis_nn.data.image_set import evenly_spaced, pick
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.pipeline.job import prepare
from caffe_to_cmsis_nn.search import common, device_objective, layer_errors
from caffe_to_cmsis_nn.search.common import Candidate
from caffe_to_cmsis_nn.search.layer_errors import LayerErrors, layer_by_layer
from caffe_to_cmsis_nn.search.verdict import Expected
from caffe_to_cmsis_nn.search.weight_fitting import Fit
from caffe_to_cmsis_nn.target import LIBRARIES, Target
from tests.benchmarks.whole_runs import NETWORKS, arguments, parsed
from tests.support import run_through

STEPS = ("ranges", "searched, no factors", "searched", "no factors, fitted", "fitted")


def steps(reference: FloatNetwork, target: Target) -> dict[str, Candidate]:
    """The networks after each step, by what STEPS call it."""
    graph, images = reference.graph, reference.images
    some = reference.part(pick(images, evenly_spaced(len(images), device_objective.SAMPLE)))
    _, ranges = some.survey(as_trained(graph), {layer.name for layer in graph.layers if layer.own_format})
    choices = device_objective._start(graph, ranges, target)
    found = {"ranges": Candidate(graph, common.table(graph, choices))}
    for factors, searched, fitted in (
        (((), ()), "searched, no factors", "no factors, fitted"),
        (layer_errors.FACTORS, "searched", "fitted"),
    ):
        with mock.patch.object(layer_errors, "FACTORS", factors):
            _, found[searched] = run_through(layer_by_layer(LayerErrors(graph, images, target), choices))
        seen = pick(images, evenly_spaced(len(images), device_objective.FIT_SAMPLE))
        found[fitted] = Fit(found[searched].graph, seen, target).refine(found[searched].formats)
    return found


def quality(candidate: Candidate, logits: np.ndarray, images: np.ndarray, target: Target) -> str:
    """Divergence (nats), signal to noise (dB) and agreement (percent) of a network's logits."""
    integers = quantize_network(candidate.graph, candidate.formats, target)
    found = DeviceNetwork(candidate.graph, images, target).logits(integers)
    y = candidate.formats[candidate.graph.outputs[0]].y
    assert y
    noise = np.ldexp(found.astype(np.float64), -y.fraction_bits) - logits
    decibels = 10 * np.log10(np.square(logits, dtype=np.float64).sum() / np.square(noise).sum())
    expected = Expected(candidate.graph, np.zeros(len(images)), logits)
    divergence = expected.judge(found, candidate.formats).divergences.mean()
    agreement = 100 * np.mean(found.argmax(axis=1) == logits.argmax(axis=1))
    return f"{divergence:.2g}, {decibels:.1f} dB, {agreement:.2f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", default=[*NETWORKS], help="names (default: all)")
    parser.add_argument("--api", choices=LIBRARIES, default="q7", help="kernel library")
    args = parser.parse_args()
    target = Target(library=LIBRARIES[args.api])
    print(f"| network | {' | '.join(STEPS)} |\n" + "|---" * (1 + len(STEPS)) + "|")
    for name in args.network:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            job = prepare(parsed(arguments(name, folder)))
            reference = FloatNetwork(job.graph, job.images)
            logits = reference.logits(as_trained(job.graph))
            found = steps(reference, target)
            cells = [quality(found[step], logits, job.images, target) for step in STEPS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
