# SPDX-License-Identifier: Apache-2.0
"""Runs the network of a pickle again, on the images that it was quantized with or on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from q7 import files
from q7.caffe_io.blobs import read_weights
from q7.caffe_io.prototxt import read_prototxt
from q7.codegen import known_answers
from q7.data.image_set import pick
from q7.data.source import data_source
from q7.engines import engine
from q7.engines.accuracy import accuracy_first
from q7.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from q7.errors import Q7Error, say
from q7.network.folding import simplify
from q7.network.from_caffe import ACCURACY, attach_weights, parse_network
from q7.network.quantized import QuantizedNetwork
from q7.pipeline.job import memory_bytes, note, split
from q7.report import statistics, summary
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
    about = f"{counted} of '{data}', {network.target}"
    if not network.graph.classifier:
        in_float = _in_float(network, path, pick(images, reported), size)
        qualities = statistics.output_qualities(network.graph, network.formats, in_float, logits)
        say(*summary.outputs(qualities), f"SQNR now: {summary.worst(qualities)} ({about})")
        return
    for k in network.graph.top_k[1:]:
        say(f"{summary.of_first(k)} now: device {accuracy_first(logits, labels[reported], k):.2f} %")
    accuracy = accuracy_first(logits, labels[reported])
    say(f"Accuracy now: device {accuracy:.2f} % ({about})")


def _in_float(network: QuantizedNetwork, path: Path, images: Any, memory: int) -> np.ndarray:
    """The float network's outputs, from the prototxt and the weights that the pickle names; `memory` is in bytes.

    Raises Q7Error where they are not there any more.
    """
    model, weights = (
        files.find(network.sources[what].name, path.parent, f"the {what} that the outputs are held against")
        for what in ("model", "weights")
    )
    prototxt, graph = read_prototxt(model), network.graph
    source = replace(data_source(prototxt), mean_file="", mean_values=(), scale=network.scale, crop=0)
    blobs = [layer.blob for layer in graph.output_layers]
    trained = parse_network(prototxt, ACCURACY, source, graph.input.out_shape, network.target, blobs)
    data = replace(trained.input, mean=graph.input.mean)
    trained = replace(trained, layers=(data, *trained.layers[1:]))
    trained = simplify(attach_weights(trained, read_weights(weights)))
    if trained.outputs != graph.outputs:
        raise Q7Error(f"'{model}' has other outputs than '{path}'")
    return FloatNetwork(trained, images, memory=memory).logits(as_trained(trained))
