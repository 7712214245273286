# SPDX-License-Identifier: Apache-2.0
"""The network as an ordered list of typed layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from caffe_to_cmsis_nn.ops.affine import Affine
from caffe_to_cmsis_nn.ops.base import Layer, Weights
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat


@dataclass(frozen=True, eq=False)
class Graph:
    """Layers in topological order, the Input first, and float weights by layer name.

    A classifier has one output, the logits. Other networks have outputs of any shapes, and are judged without labels.
    """

    name: str
    layers: tuple[Layer, ...]
    weights: Mapping[str, Weights]
    accuracy: str
    tops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bottoms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[Affine, ...]] = field(default_factory=dict)  # layers folded into each layer's weights
    outputs: tuple[str, ...] = ()  # layers in network order; defaults to the last layer
    classifier: bool = True
    top_k: tuple[int, ...] = (1,)  # of the accuracies to compute, ascending from 1
    scores: frozenset[str] = frozenset()  # outputs before a Softmax that was left out

    def __post_init__(self) -> None:
        if not self.outputs:
            object.__setattr__(self, "outputs", (self.layers[-1].name,))

    @property
    def input(self) -> Input:
        assert isinstance(self.layers[0], Input)
        return self.layers[0]

    @property
    def output_layers(self) -> tuple[Layer, ...]:
        by_name = {layer.name: layer for layer in self.layers}
        return tuple(by_name[name] for name in self.outputs)

    @property
    def result_size(self) -> int:
        """The number of elements in all outputs, for one image; a classifier's number of classes."""
        return sum(layer.out_size for layer in self.output_layers)

    def join(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N, result_size) the network's outputs side by side, from outputs (N, ...) by layer."""
        own = [values[name].reshape(len(values[name]), -1) for name in self.outputs]
        return own[0] if len(own) == 1 else np.concatenate(own, axis=1)

    def split(self, results: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs (N, ...) by layer, from (N, result_size): the inverse of `join`."""
        layers = self.output_layers
        parts = np.split(results, np.cumsum([layer.out_size for layer in layers])[:-1], axis=1)
        return {layer.name: part.reshape(-1, *layer.out_shape) for layer, part in zip(layers, parts)}

    def live(self, position: int) -> tuple[Layer, ...]:
        """The layers before `position` with outputs that are read at or after it, or are outputs of the network."""
        wanted = {name for layer in self.layers[position:] for name in layer.inputs}
        wanted.update(self.outputs)
        return tuple(layer for layer in self.layers[:position] if layer.name in wanted)

    def sweep_order(self) -> list[Layer]:
        """The weighted layers in the original tool's order: convolutions in file order, then inner products."""
        weighted = [layer for layer in self.layers if layer.weighted]
        return sorted(weighted, key=lambda layer: len(layer.out_shape) == 1)

    def formats(
        self, w: Mapping[str, QFormat], b: Mapping[str, QFormat | None], y: Mapping[str, QFormat]
    ) -> dict[str, LayerFormats]:
        """Every layer's formats, from those of weights, biases and outputs; other outputs inherit their input's.

        Biases without a format have 32 bits.
        """
        table: dict[str, LayerFormats] = {}
        for layer in self.layers:
            xs = [q for q in (table[name].y for name in layer.inputs) if q]
            own = y[layer.name] if layer.own_format else layer.inherited(xs[0])
            trained = (w[layer.name], b.get(layer.name)) if layer.weighted else (None, None)
            table[layer.name] = LayerFormats(xs[0] if xs else None, trained[0], trained[1], own, tuple(xs[1:]))
        return table


def mark_shared(layers: Iterable[Layer], outputs: Collection[str] = ()) -> tuple[Layer, ...]:
    """Sets `shared_input` of layers with inputs that later layers read, too, or that are outputs of the network."""
    read_later = set(outputs)
    marked = []
    for layer in [*layers][::-1]:
        marked.append(replace(layer, shared_input=not read_later.isdisjoint(layer.inputs)))
        read_later.update(layer.inputs)
    return tuple(marked[::-1])
