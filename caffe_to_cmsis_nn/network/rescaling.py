# SPDX-License-Identifier: Apache-2.0
"""Channels of a layer's output made larger or smaller, which the weights of the layer that reads them take back.

In float the network stays the same, as what lies between commutes with a positive factor (cross-layer equalization,
Nagel et al. 2019, https://arxiv.org/abs/1906.04721); on the device, each channel can use all levels of a format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.base import Layer, Weights


def compensating_layer(graph: Graph, layers: Sequence[Layer]) -> Layer | None:
    """The layer that can take back factors of the channels that leave `layers`, which follow each other; or None.

    Nothing else may read what leaves any of them, and what follows the first must commute with factors.
    """
    first, *others = layers
    able = first.sums_windows and all(layer.homogeneous for layer in others)
    names = {layer.name for layer in layers}
    readers = [layer for layer in graph.layers if names.intersection(layer.inputs)]
    *inner, last = readers or [first]
    if not able or inner != others or names.intersection(graph.outputs) or not last.sums_windows:
        return None
    return last


def scaled(layer: Layer, weights: Weights, factors: np.ndarray) -> Weights:
    """The weights with which each output channel (C,) of a layer is so many times as large."""
    w, b = weights
    return layer.with_gain(w, factors).astype(np.float32), (b * factors).astype(np.float32)


def rescaled(graph: Graph, layer: Layer, compensating_layer: Layer, factors: np.ndarray) -> Graph:
    """The same network, with the output channels (C,) of a layer multiplied; the taker's weights are divided."""
    taken, bias = graph.weights[compensating_layer.name]
    # O of each group, its C, and the windows' places or, of an inner product, the image's.
    groups = getattr(compensating_layer, "group", 1)
    by_channel = taken.reshape(groups, len(taken) // groups, -1)
    per_group = factors.reshape(len(by_channel), 1, -1)
    back = np.repeat(1 / per_group, by_channel.shape[2] // per_group.shape[2], axis=2)
    both = {
        layer.name: scaled(layer, graph.weights[layer.name], factors),
        compensating_layer.name: ((by_channel * back).reshape(taken.shape).astype(np.float32), bias),
    }
    return replace(graph, weights={**graph.weights, **both})
