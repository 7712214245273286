# SPDX-License-Identifier: Apache-2.0
"""Of the networks that people have, more than nine in ten are computed; the others say why not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, quantize_network
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common
from caffe_to_cmsis_nn.target import Target
from tests.public_networks import NETWORKS, declined, graph
from tests.support import FULL_SIZE
from tests.test_graph import random_weights

DECLINED = {
    "MobileNet-SSD with its own layers": "(PriorBox): this type is not supported; layer 'detectionoutput35'",
    "SegNet": "(Upsample): its input 'pooling5b' is not the first top of layer 'pooling5': not supported",
    "Faster R-CNN": "(Python): this type is not supported; layer 'roipooling5' (ROIPooling): this type",
    "LRCN": "(Embed): this type is not supported; layer 'lstm2' (LSTM): this type is not supported",
}
# Multiplications, and weights, of networks for which code is generated.
LARGEST, LARGEST_WEIGHTS = 2e8, 5e6 if FULL_SIZE else 1e6


def no_values(values: np.ndarray) -> str:
    """In place of an array's values, which take long to print, and are compared elsewhere."""
    return "{ 0 }"


def test_nine_in_ten_are_computed() -> None:
    assert len(DECLINED) <= len(NETWORKS) / 10
    assert len(NETWORKS) > 110


@pytest.mark.parametrize("name", NETWORKS)
def test_computed_or_declined_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones get weights, and C that names every kernel."""
    monkeypatch.setattr(render, "c_array", no_values)
    net = NETWORKS[name]()
    if name in DECLINED:
        assert DECLINED[name] in declined(net)
        return
    network = graph(net)
    weights = sum(math.prod(shape) for layer in network.layers for shape in layer.weight_shapes()[:1])
    if sum(layer.macs for layer in network.layers) > LARGEST or weights > LARGEST_WEIGHTS:
        return
    network = simplify(attach_weights(network, random_weights(network)))
    formats = common.table(network, {key: QFormat(4) for key in common.tensors(network)})
    layers = tuple(quantize_network(network, formats, Target()))
    quantized = QuantizedNetwork(network, formats, layers, Target())
    main = render.render(quantized, rows.plan(quantized), CodeOptions("host"))["main.cpp"]
    assert all(integer.kernel.name in main for integer in layers)
