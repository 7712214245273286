# SPDX-License-Identifier: Apache-2.0
"""A small network with every kernel that fits together, quantized without a search: for many cheap builds of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Simulation
from caffe_to_cmsis_nn.network import graph
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, SourceFile, quantize_network
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.search.common import clamp_to_kernel_limits
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.store.record import Record
from caffe_to_cmsis_nn.target import Q7, Target
from tests.support import prototxt, write_dataset

SHAPE, CLASSES, IMAGES = (3, 9, 9), 6, 40
DSP = Target()

LAYERS = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "relu/1" type: "ReLU" bottom: "pool1" top: "pool1" }
layer { name: "depthwise" type: "Convolution" bottom: "pool1" top: "depthwise"
  convolution_param { num_output: 8 group: 8 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "1x1" type: "Convolution" bottom: "depthwise" top: "1x1"
  convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "tall" type: "Convolution" bottom: "1x1" top: "tall"
  convolution_param { num_output: 4 kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 } }
layer { name: "fast" type: "Convolution" bottom: "tall" top: "fast" convolution_param { num_output: 6 kernel_size: 2 } }
layer { name: "pool2" type: "Pooling" bottom: "fast" top: "pool2" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" inner_product_param { num_output: 10 } }
layer { name: "relu2" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 6 } }
"""


def _weights(network: graph.Graph) -> Blobs:
    rng = np.random.default_rng(1)
    return {
        layer.name: [
            (rng.integers(-100, 101, shape) / (64 * np.sqrt(np.prod(shape[1:])))).astype(np.float32)
            for shape in layer.weight_shapes()
        ]
        for layer in network.layers
        if layer.weighted
    }


def _formats(network: graph.Graph, images: np.ndarray, weight_bits: int, bias: bool) -> dict[str, LayerFormats]:
    """The finest formats that hold what the float network computes for the images; biases have one or 32 bits."""
    ranges = FloatNetwork(network, images).survey([Simulation()] * len(network.layers))[1]
    y = {name: QFormat.covering(float(np.abs(pair).max())) for name, pair in ranges.items()}
    w = {name: QFormat.covering(float(np.abs(pair[0]).max()), weight_bits) for name, pair in network.weights.items()}
    without_bias = network.formats(w, {}, y)
    if not bias:
        return without_bias
    b = {
        name: min(QFormat.covering(float(np.abs(pair[1]).max())), QFormat(x.fraction_bits + w[name].fraction_bits))
        for name, pair in network.weights.items()
        if (x := without_bias[name].x) is not None
    }
    return network.formats(w, b, y)


def quantized(
    folder: Path,
    target: Target = DSP,
    layers: str = LAYERS,
    top: str = "ip2",
    shape: tuple[int, int, int] = SHAPE,
    weight_bits: int = 8,
) -> QuantizedNetwork:
    """The network for a target, with a test LMDB in the folder; for s8, biases beside weights of 4 bits have 32."""
    write_dataset(folder, shape, IMAGES, CLASSES)
    definition = read_prototxt(prototxt(folder, layers, top, "mean_value: 127"))
    source = data_source(definition)
    images, _ = lmdb_images.read(source.find_images())
    network = parse_network(definition, "accuracy", source, shape)
    network = attach_weights(network, _weights(network))
    found = _formats(network, images, weight_bits, weight_bits == 8 or target.library is Q7)
    formats = clamp_to_kernel_limits(network, found)
    sources = {"model": SourceFile("net.prototxt", "0" * 64)}
    integers = tuple(quantize_network(network, formats, target))
    return QuantizedNetwork(network, formats, integers, target, sources, str(folder / "data_lmdb"))


def with_outputs(network: QuantizedNetwork, *names: str) -> QuantizedNetwork:
    """The same network that gives the outputs of some layers, in place of logits."""
    layers = graph.mark_shared(network.graph.layers, names)
    return replace(network, graph=replace(network.graph, layers=layers, outputs=names, classifier=False))


def retarget(network: QuantizedNetwork, target: Target) -> QuantizedNetwork:
    """The same integers on another core, with another rounding or another kernel library."""
    return lowering.retarget(network, target)


def save(network: QuantizedNetwork, path: Path) -> Path:
    """The pickle that code_gen.py reads."""
    record.save(path, Record({}, network))
    return path
