# SPDX-License-Identifier: Apache-2.0
"""Runs the network of a pickle again, on the images that it was quantized with or on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import choices, files
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.image_set import pick
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.accuracy import accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork
from caffe_to_cmsis_nn.errors import UserError, print_lines
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.pipeline.job import memory_bytes, split, warn
from caffe_to_cmsis_nn.report import statistics, summary
from caffe_to_cmsis_nn.store import original


@np.errstate(over="ignore", invalid="ignore")
def evaluate(
    path: Path, lmdb: str | None, memory: float, quiet: bool, weights: str | None = None, mean: str | None = None
) -> None:
    """Prints what is in a pickle, and how many images its network has right on the device; raises UserError.

    `memory` is in GB; `weights` and `mean` are for the original's pickles.
    """
    size = memory_bytes(memory)
    network = original.open_network(path, warn, weights, mean)
    outcome = network.outcome
    data = files.find(lmdb or network.dataset, path.parent, f"the test {network.reader.kind}")
    images, labels = test_images.open_images(
        network, data, outcome.images_read if outcome else None, size / engine.MEMORY_SHARES
    )
    _, reported = split(len(images), *((outcome.holdout, outcome.seed) if outcome else (0, 0)))
    logits = DeviceNetwork(network.graph, pick(images, reported), network.target, size).logits(network.layers)
    if not quiet:
        print_lines(*summary.describe(network))
    counted = summary.counted(len(reported), bool(outcome and outcome.holdout))
    about = f"{counted} of '{data}', {network.target}"
    if not network.graph.classifier:
        in_float = _in_float(network, path, pick(images, reported), size)
        qualities = statistics.output_qualities(network.graph, network.formats, in_float, logits)
        print_lines(*summary.outputs(qualities), f"SQNR now: {summary.worst(qualities)} ({about})")
        return
    for k in network.graph.top_k[1:]:
        print_lines(f"{summary.of_first(k)} now: device {accuracy_first(logits, labels[reported], k):.2f} %")
    accuracy = accuracy_first(logits, labels[reported])
    print_lines(f"Accuracy now: device {accuracy:.2f} % ({about})")


def _in_float(network: QuantizedNetwork, path: Path, images: Any, memory: int) -> np.ndarray:
    """The float network's outputs, from the prototxt and the weights that the pickle names; `memory` is in bytes.

    Raises UserError where they are not there any more.
    """
    model, weights = (
        files.find(network.sources[what].name, path.parent, f"the {what} that the outputs are held against")
        for what in ("model", "weights")
    )
    prototxt, graph = read_prototxt(model), network.graph
    source = replace(data_source(prototxt), mean_file="", mean_values=(), scale=network.scale, crop=0)
    blobs = [layer.blob for layer in graph.output_layers]
    trained = parse_network(prototxt, choices.ACCURACY, source, graph.input.out_shape, network.target, blobs)
    data = replace(trained.input, mean=graph.input.mean)
    trained = replace(trained, layers=(data, *trained.layers[1:]))
    trained = simplify(attach_weights(trained, read_weights(weights)))
    if trained.outputs != graph.outputs:
        raise UserError(f"'{model}' has other outputs than '{path}'")
    return FloatNetwork(trained, images, memory=memory).trained_logits()
