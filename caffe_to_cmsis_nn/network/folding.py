# SPDX-License-Identifier: Apache-2.0
"""Folds layers and scales into the weights of other layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.affine import Affine
from caffe_to_cmsis_nn.ops.base import Layer, Weights


def without(graph: Graph, folded: Layer, producer: Layer) -> Graph:
    """Removes a layer; its readers read `producer` instead, which writes the removed layer's blob."""

    def instead(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(producer.name if name == folded.name else name for name in names)

    layers: list[Layer] = []
    for layer in graph.layers:
        if layer is producer:
            layers.append(replace(layer, blob=folded.blob))
        elif layer is not folded:
            layers.append(replace(layer, inputs=instead(layer.inputs)))
    return replace(graph, layers=tuple(layers), outputs=instead(graph.outputs))


class _Folded:
    """The layers so far after folding, and their float64 weights."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.layers: dict[str, Layer] = {}
        self.weights = dict(graph.weights)
        self.folded: dict[str, tuple[Affine, ...]] = {}
        self.instead: dict[str, str] = {}  # by folded layer: the layer that it was folded into

    def add(self, graph_layer: Layer) -> None:
        layer = replace(graph_layer, inputs=tuple(self.instead.get(name, name) for name in graph_layer.inputs))
        self.layers[layer.name] = layer
        if isinstance(layer, Affine) and self._alone(graph_layer):
            self._fold(self.layers[layer.inputs[0]], layer)

    def _fold(self, source: Layer, layer: Affine) -> None:
        """Merges two layers if possible."""
        if source.weighted:
            (w, b), (gain, offset) = self.weights[source.name], self.weights[layer.name]
            self._into(source, layer, (source.with_gain(w, gain), b * gain + offset))
        elif isinstance(source, Affine):
            (first, start), (gain, offset) = self.weights[source.name], self.weights[layer.name]
            both = first * gain, start * gain + offset
            if layer.holds(*both):
                self._replace(source, layer, both)
            elif source.holds(*both):
                self._into(source, layer, both)

    def _alone(self, layer: Layer) -> bool:
        """Whether no other layer reads this layer's input."""
        (source,) = layer.inputs
        return source not in self._graph.outputs and sum(source in one.inputs for one in self._graph.layers) == 1

    def _into(self, source: Layer, layer: Affine, weights: Weights) -> None:
        """Folds a layer into the one before it, which then writes its blob."""
        self.instead[layer.name] = source.name
        self.layers[source.name] = replace(source, blob=layer.blob)
        del self.layers[layer.name], self.weights[layer.name]
        self.weights[source.name] = weights
        self.folded[source.name] = (*self.folded.get(source.name, ()), layer)

    def _replace(self, source: Affine, layer: Affine, weights: Weights) -> None:
        """Folds a layer into the one after it."""
        del self.layers[source.name], self.weights[source.name]
        self.layers[layer.name] = replace(layer, inputs=source.inputs)
        self.weights[layer.name] = weights
        self.folded[layer.name] = (*self.folded.pop(source.name, ()), source)


def fold_affine(graph: Graph) -> Graph:
    """Folds BatchNorm, Scale and Bias into the convolution or inner product before them, in float64.

    If there is none, or others read its output, consecutive ones are merged. Raises UserError for NaN or infinity.
    """
    found = _Folded(graph)
    for layer in graph.layers:
        found.add(layer)
    single = {name: (w.astype(np.float32), b.astype(np.float32)) for name, (w, b) in found.weights.items()}
    for name, (w, b) in single.items():
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            last = found.folded.get(name, ())[-1:]
            after = f", after {last[0].caffe_type} was folded into it" if last else ""
            raise UserError(f"layer '{name}': NaN or infinity{after}")
    outputs = tuple(found.instead.get(name, name) for name in graph.outputs)
    layers = tuple(found.layers.values())
    return replace(graph, layers=layers, weights=single, folded=found.folded, outputs=outputs)


def fold_input_scale(graph: Graph) -> Graph:
    """Reduces the input's scale to a power of two, and folds the rest into the weights of the layers that read it.

    Raises UserError if a layer without weights reads it.
    """
    mantissa, exponent = math.frexp(graph.input.scale)
    if mantissa == 0.5 or graph.input.features:
        return graph
    # The power of two nearest on a logarithmic scale.
    exponent = exponent if mantissa >= math.sqrt(0.5) else exponent - 1
    rest = graph.input.scale / 2.0**exponent
    weights = dict(graph.weights)
    for layer in graph.layers:
        if graph.input.name in layer.inputs:
            if not (layer.weighted or isinstance(layer, Affine)):
                raise UserError(
                    f"layer '{layer.name}' reads the data with scale {graph.input.scale:g}, which is not a power of "
                    "two: only weights can absorb it, and this layer has none"
                )
            w, b = weights[layer.name]
            weights[layer.name] = ((w * rest).astype(np.float32), b)
    data = replace(graph.input, scale=2.0**exponent)
    return replace(graph, layers=(data, *graph.layers[1:]), weights=weights)


def simplify(graph: Graph) -> Graph:
    """Runs all folding passes; raises UserError if one is not possible."""
    return fold_input_scale(fold_affine(graph))
