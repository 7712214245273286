# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: scales output channels of a layer, and compensates in the next layer's weights.

The float network stays the same, since the layers between commute with positive factors (Nagel et al. 2019,
https://arxiv.org/abs/1906.04721). On the device, each channel can use the full range of its format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.base import Layer, Weights


def compensating_layer(graph: Graph, layers: Sequence[Layer]) -> Layer | None:
    """The only reader of consecutive `layers` that can compensate factors of their output channels, or None.

    No other layer may read any of their outputs, and all but the first must commute with positive factors.
    """
    first, *others = layers
    can_scale = first.sums_windows and all(layer.homogeneous for layer in others)
    names = {layer.name for layer in layers}
    readers = [layer for layer in graph.layers if names.intersection(layer.inputs)]
    *inner, last = readers or [first]
    if not can_scale or inner != others or names.intersection(graph.outputs) or not last.sums_windows:
        return None
    return last


def scaled(layer: Layer, weights: Weights, factors: np.ndarray) -> Weights:
    """Weights that scale a layer's output channels by `factors` (C,)."""
    w, b = weights
    return layer.with_gain(w, factors).astype(np.float32), (b * factors).astype(np.float32)


def rescaled(graph: Graph, layer: Layer, compensating_layer: Layer, factors: np.ndarray) -> Graph:
    """The same network with a layer's output channels scaled by `factors` (C,), and the next weights divided."""
    taken, bias = graph.weights[compensating_layer.name]
    # Axes: group, outputs of a group, channels of a group and their window (for an inner product, the image).
    groups = getattr(compensating_layer, "group", 1)
    by_channel = taken.reshape(groups, len(taken) // groups, -1)
    per_group = factors.reshape(len(by_channel), 1, -1)
    back = np.repeat(1 / per_group, by_channel.shape[2] // per_group.shape[2], axis=2)
    both = {
        layer.name: scaled(layer, graph.weights[layer.name], factors),
        compensating_layer.name: ((by_channel * back).reshape(taken.shape).astype(np.float32), bias),
    }
    return replace(graph, weights={**graph.weights, **both})
