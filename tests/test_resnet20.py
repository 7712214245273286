# SPDX-License-Identifier: Apache-2.0
"""A residual network with batch normalisation that others trained: float accuracy, and the generated program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import DataSource, data_source, override
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Simulation
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, SourceFile, quantize_network
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common
from caffe_to_cmsis_nn.search.common import Tensor
from caffe_to_cmsis_nn.target import Target
from tests import small
from tests.generated import generate, make, on_host, predicted
from tests.support import FULL_SIZE, shared, tool

IMAGES = 300
RUN = IMAGES if FULL_SIZE else 10  # by the program


@pytest.fixture(scope="module")
def resnet20() -> tuple[Graph, DataSource, np.ndarray, np.ndarray]:
    """The network, its data source, and all test images with their labels."""
    folder = shared("data", "resnet20")
    prototxt = read_prototxt(folder / "res20_cifar_train_test.prototxt")
    mean = shared("data", "cifar10", "mean.binaryproto")
    lmdb = shared("data", "cifar10", "cifar10_test_lmdb")
    source = override(data_source(prototxt), str(lmdb), str(mean), None, None)
    images, labels = lmdb_images.read(lmdb)
    network = parse_network(prototxt, "Accuracy1", source, images.shape[1:])
    blobs = read_weights(folder / "cifar10_res20_iter_64000.caffemodel")
    return simplify(attach_weights(network, blobs)), source, images, labels


@pytest.mark.slow
def test_float_accuracy_is_caffes(resnet20: tuple[Graph, DataSource, np.ndarray, np.ndarray]) -> None:
    network, _, images, labels = resnet20
    logits = FloatNetwork(network, images).logits([Simulation()] * len(network.layers))
    assert accuracy_caffe(logits, labels) == pytest.approx(79.71, abs=0.05)


def test_the_program_computes_what_the_model_predicts(
    resnet20: tuple[Graph, DataSource, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """In formats that cover what some images need, which cost no accuracy here."""
    for names in (("make",), ("cc", "gcc"), ("c++", "g++")):
        tool(*names)
    network, source, images, labels = resnet20
    images, labels = images[:IMAGES], labels[:IMAGES]
    ranges = FloatNetwork(network, images).survey([Simulation()] * len(network.layers))[1]
    choices = {}
    for name, tensor in common.tensors(network):
        values = ranges[name] if tensor is Tensor.ACTIVATIONS else network.weights[name][tensor is Tensor.BIAS]
        choices[name, tensor] = QFormat.covering(common.largest(values))
    formats = common.table(network, choices)
    layers = tuple(quantize_network(network, formats, Target()))
    sources = {"model": SourceFile("resnet20.prototxt", "0" * 64)}
    quantized = QuantizedNetwork(network, formats, layers, Target(), sources, str(source.find_images()))
    expected = predicted(quantized, images)
    assert accuracy_first(expected, labels) > 79
    folder = generate(small.save(quantized, tmp_path / "net.pkl"), tmp_path / "code", "--target", "host")
    assert "PASS" in make(folder, "run")
    np.testing.assert_array_equal(on_host(folder, images[:RUN]), expected[:RUN])
