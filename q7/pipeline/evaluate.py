# SPDX-License-Identifier: Apache-2.0
"""Runs the network of a pickle again, on the images that it was quantized with or on others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from q7 import files
from q7.codegen import known_answers
from q7.data.image_set import pick
from q7.engines import engine
from q7.engines.accuracy import accuracy_first
from q7.engines.networks import DeviceNetwork
from q7.errors import say
from q7.pipeline.job import memory_bytes, note, split
from q7.report import summary
from q7.store import original


@np.errstate(over="ignore", invalid="ignore")
def evaluate(
    path: Path, lmdb: str | None, memory: float, quiet: bool, weights: str | None = None, mean: str | None = None
) -> None:
    """Prints what is in a pickle, and how many images its network has right on the device; raises Q7Error.

    `memory` is in GB; `weights` and `mean` are for the original's pickles.
    """
    size = memory_bytes(memory)
    network = original.open_network(path, note, weights, mean)
    outcome = network.outcome
    data = files.find(lmdb or network.dataset, path.parent, f"the test {network.reader.kind}")
    images, labels = known_answers.open_images(
        network, data, outcome.images_read if outcome else None, size / engine.MEMORY_SHARES
    )
    _, reported = split(len(images), *((outcome.holdout, outcome.seed) if outcome else (0, 0)))
    logits = DeviceNetwork(network.graph, pick(images, reported), network.target, size).logits(network.layers)
    if not quiet:
        say(*summary.describe(network))
    counted = summary.counted(len(reported), bool(outcome and outcome.holdout))
    if network.graph.classifier:
        accuracy = accuracy_first(logits, labels[reported])
        say(f"Accuracy now: device {accuracy:.2f} % ({counted} of '{data}', {network.target})")
