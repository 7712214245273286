# SPDX-License-Identifier: Apache-2.0
"""Factors of channels that the next layer's weights take back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.rescaling import compensating_layer, rescaled
from caffe_to_cmsis_nn.ops.activations import Clip, LeakyReLU, ReLU
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.ops.moves import Flatten
from caffe_to_cmsis_nn.ops.pooling import AveragePooling, MaxPooling
from caffe_to_cmsis_nn.search.layer_errors import sections

SHAPE = (6, 8, 8)
HALF = (6, 4, 4)


def network(*between: Layer, last: Layer) -> Graph:
    """A convolution with 6 outputs, what is between, and another layer with weights."""
    rng = np.random.default_rng(0)
    first = Convolution("conv", ("data",), "conv", ((3, 8, 8),), window=(3, 3), pad=(1, 1), num_output=6)
    layers = (Input("data", (), "data", ((3, 8, 8),), mean=np.full((3, 1, 1), 128, np.float32)), first, *between, last)
    weights = {
        layer.name: tuple(rng.normal(0, 0.3, shape).astype(np.float32) for shape in layer.weight_shapes())
        for layer in (first, last)
    }
    return Graph("net", layers, weights, "accuracy")  # type: ignore[arg-type]


def section(graph: Graph) -> tuple[Layer, ...]:
    return next(layers for _, layers in sections(graph) if layers[0].name == "conv")


def convolution(group: int, shape: tuple[int, int, int] = HALF, source: str = "pool") -> Convolution:
    return Convolution("last", (source,), "last", (shape,), window=(3, 3), num_output=12, group=group)


RELU = ReLU("relu", ("conv",), "conv", (SHAPE,))
LEAKY = LeakyReLU("relu", ("conv",), "conv", (SHAPE,), negative_slope=0.25)
MAX = MaxPooling("pool", ("relu",), "pool", (SHAPE,), window=(2, 2), stride=(2, 2))
AVERAGE = AveragePooling("pool", ("relu",), "pool", (SHAPE,), window=(2, 2), stride=(2, 2))
FLAT = Flatten("flat", ("pool",), "flat", (HALF,), shape=(96,))


@pytest.mark.parametrize(
    "graph",
    [
        network(RELU, MAX, last=convolution(1)),
        network(RELU, AVERAGE, last=convolution(2)),
        network(LEAKY, MAX, last=convolution(6)),
        network(last=convolution(3, SHAPE, "conv")),
        network(LEAKY, AVERAGE, last=InnerProduct("last", ("pool",), "last", (HALF,), num_output=5)),
        network(RELU, MAX, FLAT, last=InnerProduct("last", ("flat",), "last", ((96,),), num_output=5)),
    ],
)
def test_the_same_network_in_float(graph: Graph) -> None:
    """Powers of two change nothing at all; the outputs in between are the factors' times as large."""
    layers = section(graph)
    reader = compensating_layer(graph, layers)
    assert reader is graph.layers[-1]
    factors = 2.0 ** np.array([0, 3, -2, 5, 1, -7])
    images = np.random.default_rng(1).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    other = rescaled(graph, layers[0], reader, factors)
    before, after = (FloatNetwork(one, images).outputs(as_trained(one)) for one in (graph, other))
    np.testing.assert_array_equal(after["last"], before["last"])
    end = layers[-1].name
    scaled = before[end].reshape(20, 6, -1) * factors[:, None]
    np.testing.assert_array_equal(after[end].reshape(20, 6, -1), scaled)


def other_reader() -> Graph:
    graph = network(RELU, MAX, last=convolution(1))
    beside = InnerProduct("beside", ("relu",), "beside", (SHAPE,), num_output=2)
    return replace(graph, layers=(*graph.layers, beside), outputs=("last", "beside"))


@pytest.mark.parametrize(
    "graph",
    [
        network(Clip("relu", ("conv",), "conv", (SHAPE,)), MAX, last=convolution(1)),
        replace(network(RELU, MAX, last=convolution(1)), outputs=("relu", "last")),
        other_reader(),
        network(last=RELU),
    ],
    ids=["a bound", "an output", "another reader", "no reader"],
)
def test_what_cannot_take_factors_back(graph: Graph) -> None:
    assert compensating_layer(graph, section(graph)) is None


def test_an_input_has_no_factors() -> None:
    graph = network(RELU, MAX, last=convolution(1))
    assert compensating_layer(graph, graph.layers[:1]) is None
