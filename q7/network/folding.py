# SPDX-License-Identifier: Apache-2.0
"""What can be computed beforehand is put into the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from q7.errors import Q7Error
from q7.layers.affine import Affine
from q7.layers.base import Layer
from q7.network.graph import Graph


def without(graph: Graph, folded: Layer, producer: Layer) -> Graph:
    """The graph without a layer, whose readers read `producer` instead; that one writes the blob now."""

    def instead(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(producer.name if name == folded.name else name for name in names)

    layers: list[Layer] = []
    for layer in graph.layers:
        if layer is producer:
            layers.append(replace(layer, blob=folded.blob))
        elif layer is not folded:
            layers.append(replace(layer, inputs=instead(layer.inputs)))
    return replace(graph, layers=tuple(layers), outputs=instead(graph.outputs))


def fold_affine(graph: Graph) -> Graph:
    """Puts BatchNorm, Scale and Bias into the convolution or inner product before them, in float64."""
    layers: dict[str, Layer] = {}
    weights = dict(graph.weights)
    folded: dict[str, tuple[Affine, ...]] = {}
    instead: dict[str, str] = {}  # of each folded layer, the one that it went into
    for graph_layer in graph.layers:
        layer = replace(graph_layer, inputs=tuple(instead.get(name, name) for name in graph_layer.inputs))
        if not isinstance(layer, Affine):
            layers[layer.name] = layer
            continue
        (source,) = layer.inputs
        instead[layer.name] = source
        layers[source] = replace(layers[source], blob=layer.blob)
        (w, b), (gain, offset) = weights[source], weights.pop(layer.name)
        weights[source] = (layers[source].with_gain(w, gain), b * gain + offset)
        folded[source] = (*folded.get(source, ()), layer)
    single = {name: (w.astype(np.float32), b.astype(np.float32)) for name, (w, b) in weights.items()}
    for name, (w, b) in single.items():
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise Q7Error(f"layer '{name}': NaN or infinity, after {folded[name][-1].caffe_type} was folded into it")
    outputs = tuple(instead.get(name, name) for name in graph.outputs)
    return replace(graph, layers=tuple(layers.values()), weights=single, folded=folded, outputs=outputs)


def fold_input_scale(graph: Graph) -> Graph:
    """Makes the input's scale a power of two, and puts the rest of it into the weights that read the input.

    Raises Q7Error where anything but a convolution or inner product reads it.
    """
    mantissa, exponent = math.frexp(graph.input.scale)
    if mantissa == 0.5:
        return graph
    # The power of two nearest on a logarithmic scale.
    exponent = exponent if mantissa >= math.sqrt(0.5) else exponent - 1
    rest = graph.input.scale / 2.0**exponent
    weights = dict(graph.weights)
    for layer in graph.layers:
        if graph.input.name in layer.inputs:
            if not layer.weighted:
                raise Q7Error(
                    f"layer '{layer.name}' reads the data, whose scale {graph.input.scale:g} is not a power of two: "
                    "only a convolution or an inner product can take it into its weights"
                )
            w, b = weights[layer.name]
            weights[layer.name] = ((w * rest).astype(np.float32), b)
    data = replace(graph.input, scale=2.0**exponent)
    return replace(graph, layers=(data, *graph.layers[1:]), weights=weights)


def simplify(graph: Graph) -> Graph:
    """All passes; raises Q7Error where one of them cannot be done."""
    return fold_input_scale(fold_affine(graph))
