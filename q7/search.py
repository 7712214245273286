# SPDX-License-Identifier: Apache-2.0
"""What the searches for Q-formats have in common: trials, results, and formats that the kernels can carry."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from q7.graph import Graph
from q7.qformat import MAX_BIAS_LSHIFT, MAX_OUT_RSHIFT, LayerFormats, QFormat


class Tensor(Enum):
    """What of a layer a format is for."""

    WEIGHTS = "weights"
    BIAS = "bias"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Trial:
    """One format tried, and its accuracy in percent."""

    layer: str
    tensor: Tensor
    format: QFormat
    accuracy: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that could be taken: the graph, its weights perhaps adapted, and the formats by layer."""

    graph: Graph
    formats: Mapping[str, LayerFormats]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ends with: the candidate it chose, those it looked at by name, and accuracies (percent)."""

    chosen: Candidate
    candidates: Mapping[str, Candidate]
    accuracies: Mapping[str, float]


Search = Generator[Trial, None, Found]
Choices = dict[tuple[str, Tensor], QFormat]


def largest(values: np.ndarray) -> float:
    """max(|min|, |max|), 0 for an empty tensor."""
    return float(np.abs(values).max(initial=0))


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


def legal(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, LayerFormats]:
    """The nearest formats whose shifts the kernels can carry.

    An output finer than the accumulator holds nothing more than one on the accumulator's grid, and so does a bias.
    """
    w: dict[str, QFormat] = {}
    b: dict[str, QFormat] = {}
    y: dict[str, QFormat] = {}
    output: dict[str, QFormat] = {}
    for layer in graph.layers:
        own = formats[layer.name]
        assert own.y
        output[layer.name] = own.y if layer.own_format else output[layer.inputs[0]]
        if layer.weighted:
            assert own.w and own.b
            accumulator = output[layer.inputs[0]].fraction_bits + own.w.fraction_bits
            w[layer.name] = own.w
            b[layer.name] = QFormat(min(max(own.b.fraction_bits, accumulator - MAX_BIAS_LSHIFT), accumulator))
            output[layer.name] = QFormat(min(max(own.y.fraction_bits, accumulator - MAX_OUT_RSHIFT), accumulator))
        if layer.own_format:
            y[layer.name] = output[layer.name]
    return graph.formats(w, b, y)
