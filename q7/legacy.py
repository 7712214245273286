# SPDX-License-Identifier: Apache-2.0
"""Rebuilds a network from an old pickle: the original stored formats only, and named its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from q7 import caffe_files, dataset, device, files, graph, passes, pictures, record
from q7.errors import Q7Error
from q7.qformat import MOST_FRACTION_BITS, QFormat, Target
from q7.record import QuantizedNetwork


def _formats(attributes: Mapping[str, Any], key: str) -> dict[str, QFormat]:
    bits = attributes[key]
    if not all(type(n) is int and abs(n) <= MOST_FRACTION_BITS for n in bits.values()):
        raise Q7Error(f"the pickle's {key} are no numbers of bits")
    return {name: QFormat(n) for name, n in bits.items()}


def rebuild(
    attributes: Mapping[str, Any], folder: Path, target: Target, weights: str | None = None, mean: str | None = None
) -> QuantizedNetwork:
    """The network of an old pickle's attributes, its weights from the quantized caffemodel that it names.

    Files are looked for as named and then in `folder`, the pickle's; `weights` and `mean` replace the names.
    """
    with files.reading("the old pickle"):
        model = files.find(attributes["model_file"], folder, "the network definition")
        weight_file = files.find(weights or attributes["quant_weight_file"], folder, "the quantized weights file")
        prototxt = caffe_files.read_prototxt(model)
        source = replace(dataset.data_source(prototxt), folder=folder)
        if math.frexp(source.scale)[0] != 0.5:
            raise Q7Error(
                f"'{model}' has scale {source.scale:g}: of old pickles' networks, powers of two are supported"
            )
        if source.mean_file or mean:
            source = replace(source, mean_file=mean or attributes["mean_file"], mean_values=())
        shape = tuple(int(extent) for extent in attributes["layer_shape"][attributes["data_layer"]][1:])
        if min(shape) < 1 or math.prod(shape) > pictures.LARGEST_IMAGE:
            raise Q7Error(f"the pickle's images of shape {shape} are no images")
        network = graph.parse(prototxt, attributes["accuracy_layer"], source, shape, target)
        network = passes.fold_affine(graph.attach_weights(network, caffe_files.read_weights(weight_file)))
        formats = network.formats(*(_formats(attributes, f"{key}_dec_bits") for key in ("wt", "bias", "act")))
        layers = device.quantize(network, formats, target)
    return QuantizedNetwork(
        network,
        formats,
        tuple(layers),
        target,
        {
            "model": {"name": model.name, "sha256": files.sha256(model)},
            "weights": {"name": weight_file.name, "sha256": files.sha256(weight_file)},
        },
        source.images,
        source.crop,
        reader=source.reader,
    )


def open_network(path: Path, weights: str | None = None, mean: str | None = None) -> QuantizedNetwork:
    """The network of a pickle; an old pickle's is rebuilt from the files that it names, or from those given."""
    loaded = record.load(path)
    if loaded.network is None:
        return rebuild(loaded.attributes, path.parent, Target(), weights, mean)
    if weights or mean:
        raise Q7Error(f"--weights and --mean are for pickles of the original tool; '{path}' holds its weights")
    return loaded.network
