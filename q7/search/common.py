# SPDX-License-Identifier: Apache-2.0
"""What the searches for Q-formats have in common: trials, results, and formats that the kernels can carry."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Union

import numpy as np

from q7.errors import Q7Error
from q7.network.graph import Graph
from q7.qformat import MAX_BIAS_LSHIFT, MAX_OUT_RSHIFT, MOST_FRACTION_BITS, LayerFormats, QFormat


class Tensor(Enum):
    """What of a layer a format is for."""

    WEIGHTS = "weights"
    BIAS = "bias"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Score:
    """How formats did: accuracy in percent, mean divergence from the float network (nats), and on how many images."""

    accuracy: float
    divergence: float | None = None  # where it is looked at
    images: int | None = None  # where not all images judge


@dataclass(frozen=True)
class Trial:
    """One format tried, its score, the score on the same images that it is held against, and whether it was kept.

    A format that was kept may be replaced by a later trial of the same tensor.
    """

    layer: str
    tensor: Tensor
    format: QFormat
    score: Score
    reference: Score
    kept: bool

    @property
    def accuracy(self) -> float:
        """Percent."""
        return self.score.accuracy


@dataclass(frozen=True)
class Phase:
    """What a search does from here on, where it tries no more formats."""

    what: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that could be taken: the graph, its weights perhaps adapted, and the formats by layer."""

    graph: Graph
    formats: Mapping[str, LayerFormats]

    def is_same(self, other: Candidate) -> bool:
        return self.graph is other.graph and self.formats == other.formats


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ends with: the candidate it chose, those it looked at by name, and accuracies (percent).

    And the logits (N, classes) of all images that the search has seen, as far as it came by them: those of the chosen
    one on the device, int8, and those of the float network.
    """

    chosen: Candidate
    candidates: Mapping[str, Candidate]
    accuracies: Mapping[str, float]
    on_device: np.ndarray | None = None
    in_float: np.ndarray | None = None


Search = Generator[Union[Trial, Phase], None, Found]
Choices = dict[tuple[str, Tensor], QFormat]


def largest(values: np.ndarray) -> float:
    """max(|min|, |max|), 0 for an empty tensor."""
    return float(np.abs(values).max(initial=0))


def covering(name: str, tensor: Tensor, largest: float) -> QFormat:
    """The finest format for values of at most that magnitude; raises Q7Error that names the tensor."""
    try:
        return QFormat.covering(largest)
    except Q7Error as error:
        raise Q7Error(f"layer '{name}', {tensor.value}: {error}") from error


def tensors(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors that have a format of their own, in network order."""
    return [
        (layer.name, tensor)
        for layer in graph.layers
        for tensor, has in (
            (Tensor.WEIGHTS, layer.weighted),
            (Tensor.BIAS, layer.weighted),
            (Tensor.ACTIVATIONS, layer.own_format),
        )
        if has
    ]


def table(graph: Graph, choices: Mapping[tuple[str, Tensor], QFormat]) -> dict[str, LayerFormats]:
    """The formats of every layer that follow from those chosen, brought to what the kernels can carry."""
    by_tensor: dict[Tensor, dict[str, QFormat]] = {tensor: {} for tensor in Tensor}
    for (name, tensor), q in choices.items():
        by_tensor[tensor][name] = q
    return legal(graph, graph.formats(*(by_tensor[tensor] for tensor in Tensor)))


ROUNDS = 100  # of making formats fit; each moves at least one of them, and few are ever needed


def legal(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, LayerFormats]:
    """The nearest formats whose shifts the kernels can carry; raises Q7Error where there are none.

    An output finer than the accumulator holds nothing more than one on the accumulator's grid, and so does a bias.
    """
    limits = {layer.name: (-MOST_FRACTION_BITS, MOST_FRACTION_BITS) for layer in graph.layers}
    for _ in range(ROUNDS):
        table = _clamped(graph, formats, limits)
        if not _tighten(graph, table, limits):
            return table
    raise Q7Error("no Q-formats fit all layers at once")


def _clamp(q: QFormat, low: int, high: int) -> QFormat:
    return QFormat(min(max(q.fraction_bits, low), high))


def _clamped(
    graph: Graph, formats: Mapping[str, LayerFormats], limits: Mapping[str, tuple[int, int]]
) -> dict[str, LayerFormats]:
    """Formats within their limits and within what their layers can carry, in network order."""
    w: dict[str, QFormat] = {}
    b: dict[str, QFormat | None] = {}
    y: dict[str, QFormat] = {}
    output: dict[str, QFormat] = {}
    for layer in graph.layers:
        own, xs = formats[layer.name], [output[name] for name in layer.inputs]
        low, high = limits[layer.name]
        if layer.weighted:
            assert own.w
            x = xs[0].fraction_bits
            w[layer.name] = _clamp(own.w, low - x, min(MOST_FRACTION_BITS - max(x, 0), high + MAX_OUT_RSHIFT - x))
            accumulator = x + w[layer.name].fraction_bits
            b[layer.name] = _clamp(own.b, accumulator - MAX_BIAS_LSHIFT, accumulator) if own.b else None
            low, high = max(low, accumulator - MAX_OUT_RSHIFT), min(high, accumulator)
        if layer.own_format:
            assert own.y
            kernels_low, kernels_high = layer.output_limits(xs)
            y[layer.name] = _clamp(_clamp(own.y, low, high), kernels_low, kernels_high)
        output[layer.name] = y[layer.name] if layer.own_format else layer.inherited(xs[0])
    return graph.formats(w, b, y)


def _tighten(graph: Graph, table: Mapping[str, LayerFormats], limits: dict[str, tuple[int, int]]) -> bool:
    """Limits the outputs that a later layer cannot take; whether there were any."""
    layers = {layer.name: layer for layer in graph.layers}
    found = False
    for layer in graph.layers:
        for name, x in zip(layer.inputs, table[layer.name].inputs):
            low, high = layer.input_limits(table[layer.name].inputs)
            if not low <= x.fraction_bits <= high:
                root = name
                while not layers[root].own_format:
                    root = layers[root].inputs[0]
                limits[root] = (max(low, limits[root][0]), min(high, limits[root][1]))
                found = True
    return found
