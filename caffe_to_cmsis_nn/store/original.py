# SPDX-License-Identifier: Apache-2.0
"""Compatibility with the original tool: networks from its pickles, and the attributes that users' scripts read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import pictures
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels.base import Integers
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, SourceFile, quantize_network
from caffe_to_cmsis_nn.qformat import MOST_FRACTION_BITS, QFormat
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.target import Target


def _formats(attributes: Mapping[str, Any], key: str) -> dict[str, QFormat]:
    bits = attributes[key]
    if not all(type(n) is int and abs(n) <= MOST_FRACTION_BITS for n in bits.values()):
        raise UserError(f"the pickle's {key} are not numbers of bits")
    return {name: QFormat(n) for name, n in bits.items()}


def rebuild(
    attributes: Mapping[str, Any], folder: Path, target: Target, weights: str | None = None, mean: str | None = None
) -> QuantizedNetwork:
    """Rebuilds the network of an old pickle, with weights from the quantized caffemodel that it names.

    Searches files as named, then in the pickle's `folder`; `weights` and `mean` replace the names. Raises UserError if
    files are missing, or do not match.
    """
    with files.reading("the old pickle"):
        model = files.find(attributes["model_file"], folder, "the network definition")
        weight_file = files.find(weights or attributes["quant_weight_file"], folder, "the quantized weights file")
        prototxt, model_digest = files.read_hashed(model, read_prototxt)
        source = replace(data_source(prototxt), folder=folder)
        if math.frexp(source.scale)[0] != 0.5:
            raise UserError(f"'{model}' has scale {source.scale:g}: for old pickles, only powers of two are supported")
        if source.mean_file or mean:
            source = replace(source, mean_file=mean or attributes["mean_file"], mean_values=())
        shape = tuple(int(extent) for extent in attributes["layer_shape"][attributes["data_layer"]][1:])
        if min(shape) < 1 or math.prod(shape) > pictures.LARGEST_IMAGE:
            raise UserError(f"the pickle's image shape {shape} is not supported")
        network = parse_network(prototxt, attributes["accuracy_layer"], source, shape, target)
        blobs, weights_digest = files.read_hashed(weight_file, read_weights)
        network = fold_affine(attach_weights(network, blobs))
        formats = network.formats(*(_formats(attributes, f"{key}_dec_bits") for key in ("wt", "bias", "act")))
        layers = quantize_network(network, formats, target)
    return QuantizedNetwork(
        graph=network,
        formats=formats,
        layers=tuple(layers),
        target=target,
        sources={
            "model": SourceFile(model.name, model_digest),
            "weights": SourceFile(weight_file.name, weights_digest),
        },
        dataset=source.images,
        crop=source.crop,
        reader=source.reader,
    )


def open_network(
    path: Path, note: Callable[[str], None], weights: str | None = None, mean: str | None = None
) -> QuantizedNetwork:
    """The network of a pickle; an old pickle's is rebuilt from the files that it names, or from those given.

    Calls `note` with a sentence for each source file that has changed since.
    """
    loaded = record.load(path)
    if loaded.network is None:
        return rebuild(loaded.attributes, path.parent, Target(), weights, mean)
    if weights or mean:
        raise UserError(f"--weights and --mean are for pickles of the original tool; '{path}' contains its weights")
    for sentence in replaced_sources(loaded.network, path.parent):
        note(sentence)
    return loaded.network


def replaced_sources(network: QuantizedNetwork, folder: Path) -> list[str]:
    """A sentence for each source file of a pickle that has changed since; skips missing files.

    Searches files as named, then in the pickle's `folder`.
    """
    found = []
    for what, source in network.sources.items():
        with contextlib.suppress(UserError, OSError):
            path = files.find(source.name, folder, what)
            if files.sha256(path) != source.sha256:
                found.append(f"'{path}' ({what}) has been replaced since: its sha256 is not the one in the pickle")
    return found


def _names(network: QuantizedNetwork) -> dict[str, Any]:
    """The names of files and layers."""
    graph, sources = network.graph, network.sources
    weighted = [layer for layer in graph.layers if layer.weighted]
    end = [*_chosen(graph), graph.accuracy]
    order = [*(layer.name for layer in graph.layers), graph.accuracy]
    return {
        "model_file": sources["model"].name,
        "weight_file": sources["weights"].name,
        "quant_weight_file": sources["quantized weights"].name,
        "conv_layer": [layer.name for layer in weighted if len(layer.out_shape) == 3],
        "ip_layer": [layer.name for layer in weighted if len(layer.out_shape) == 1],
        "start_layer": ["", *(order[order.index(name) + 1] for name in end[:-1])],
        "end_layer": end,
        "layer": order,
    }


def _chosen(graph: Graph) -> list[str]:
    """The layers with outputs that the original tool rounds to a format."""
    return [layer.name for layer in graph.layers if layer.own_format or layer.simulates_rounding]


def _fields(graph: Graph, integers: Mapping[str, Integers], batch: int) -> dict[str, Any]:
    """The parameters of layers, by layer; shapes are NCHW."""
    layers = {layer.name: layer for layer in graph.layers}
    windowed: dict[str, Any] = {name: layer for name, layer in layers.items() if hasattr(layer, "window")}
    return {
        "layer_shape": {**{n: (batch, *layer.out_shape) for n, layer in layers.items()}, graph.accuracy: ()},
        "layer_wt_shape": {name: i.weights.shape for name, i in integers.items()},
        "top_blob": {k: list(v) for k, v in graph.tops.items()},
        "bottom_blob": {k: list(v) for k, v in graph.bottoms.items()},
        "layer_type": {**{n: layer.caffe_type.lower() for n, layer in layers.items()}, graph.accuracy: "accuracy"},
        "kernel_size": {n: layer.window[0] for n, layer in windowed.items()},
        "stride": {n: layer.stride[0] for n, layer in windowed.items()},
        "pad": {n: layer.pad[0] for n, layer in windowed.items()},
        "group": {n: layer.group for n, layer in layers.items() if hasattr(layer, "group")},
        "pool_type": {n: int(layer.variant != "MAX") for n, layer in layers.items() if layer.caffe_type == "Pooling"},
        "lrn_type": {},
        "lrn_size": {},
        "lrn_alpha": {},
        "lrn_beta": {},
        "num_ops": {n: layer.macs for n, layer in layers.items()},
        "num_wts": {n: int(i.weights.size) for n, i in integers.items()},
    }


def _bits(network: QuantizedNetwork, integers: Mapping[str, Integers]) -> dict[str, Any]:
    """The formats, and the shifts of the q7 kernels, by layer."""
    graph, formats = network.graph, network.formats

    def bits(what: str, table: Mapping[str, Any]) -> dict[str, dict[str, int]]:
        kinds = {"int": "integer_bits", "dec": "fraction_bits"}
        return {f"{what}_{kind}_bits": {n: getattr(q, b) for n, q in table.items()} for kind, b in kinds.items()}

    return {
        **bits("wt", {name: formats[name].w for name in integers}),
        **bits("bias", {name: formats[name].bias_grid for name in integers}),
        **bits("act", {**{name: formats[name].y for name in _chosen(graph)}, graph.accuracy: QFormat(7)}),
        "bias_lshift": {n: i.shifts.bias_lshift for n, i in integers.items()},
        "act_rshift": {n: i.shifts.out_rshift for n, i in integers.items()},
    }


def attributes(network: QuantizedNetwork, batch: int, iterations: int, gpu: bool) -> dict[str, Any]:
    """The attributes of the original's Caffe_Quantizer for a network, under the original's names."""
    graph, sources = network.graph, network.sources
    integers = {layer.name: own.integers for layer, own in zip(graph.layers, network.layers) if layer.weighted}
    data = graph.input
    mean = [float(v) for v in data.mean.ravel()] if data.mean.shape[1:] == (1, 1) and data.mean.any() else []
    return {
        **_names(network),
        **_fields(graph, integers, batch),
        **_bits(network, integers),
        "data_layer": data.name,
        "mean_file": sources["mean"].name if "mean" in sources else "",
        "mean_val": mean,
        "label_layer": graph.tops[data.name][1] if len(graph.tops[data.name]) > 1 else "",
        "accuracy_layer": graph.accuracy,
        "iterations": iterations,
        "gpu": gpu,
    }
