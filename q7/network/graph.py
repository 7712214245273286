# SPDX-License-Identifier: Apache-2.0
"""The network as an ordered list of typed layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from q7.layers.affine import Affine
from q7.layers.base import Layer, Weights
from q7.layers.input import Input
from q7.qformat import LayerFormats, QFormat


@dataclass(frozen=True, eq=False)
class Graph:
    """Layers in an order in which each comes after its inputs, the Input first; float weights by layer name."""

    name: str
    layers: tuple[Layer, ...]
    weights: Mapping[str, Weights]
    accuracy: str
    tops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bottoms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[Affine, ...]] = field(default_factory=dict)  # into which layer's weights

    @property
    def input(self) -> Input:
        assert isinstance(self.layers[0], Input)
        return self.layers[0]

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def classes(self) -> int:
        return self.output.out_size

    def live(self, position: int) -> tuple[Layer, ...]:
        """The layers before `position` whose outputs are read at or after it; at the end, the output layer."""
        if position >= len(self.layers):
            return (self.output,)
        wanted = {name for layer in self.layers[position:] for name in layer.inputs}
        return tuple(layer for layer in self.layers[:position] if layer.name in wanted)

    def sweep_order(self) -> list[Layer]:
        """Weighted layers as the original orders them: convolutions in file order, then inner products."""
        weighted = [layer for layer in self.layers if layer.weighted]
        return sorted(weighted, key=lambda layer: len(layer.out_shape) == 1)

    def formats(
        self, w: Mapping[str, QFormat], b: Mapping[str, QFormat | None], y: Mapping[str, QFormat]
    ) -> dict[str, LayerFormats]:
        """The formats of every layer, where outputs without a format of their own inherit their input's.

        Biases without a format are held in 32 bits.
        """
        table: dict[str, LayerFormats] = {}
        for layer in self.layers:
            xs = [q for q in (table[name].y for name in layer.inputs) if q]
            own = y[layer.name] if layer.own_format else layer.inherited(xs[0])
            trained = (w[layer.name], b.get(layer.name)) if layer.weighted else (None, None)
            table[layer.name] = LayerFormats(xs[0] if xs else None, trained[0], trained[1], own, tuple(xs[1:]))
        return table


def mark_shared(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that know whether others read their inputs after them."""
    read_later: set[str] = set()
    marked = []
    for layer in [*layers][::-1]:
        marked.append(replace(layer, shared_input=not read_later.isdisjoint(layer.inputs)))
        read_later.update(layer.inputs)
    return tuple(marked[::-1])
