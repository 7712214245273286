# SPDX-License-Identifier: Apache-2.0
"""The sweeps: which Q-format each tensor gets, found by trying formats against the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from q7.engines import FloatNetwork, Grid, Simulation, accuracy_caffe
from q7.graph import Graph
from q7.qformat import MAX_BIAS_LSHIFT, MAX_OUT_RSHIFT, LayerFormats, QFormat

STEPS = 3  # how far below the range's format the original looks


class Tensor(Enum):
    """What of a layer a format is for."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    BIAS = "bias"


Grids = dict[tuple[str, Tensor], Grid]


@dataclass(frozen=True)
class Trial:
    """One format tried, and its accuracy in percent."""

    layer: str
    tensor: Tensor
    format: QFormat
    accuracy: float


@dataclass(frozen=True)
class Found:
    """What a search ends with: formats by layer, and the accuracies on its way (percent)."""

    formats: Mapping[str, LayerFormats]
    accuracies: Mapping[str, float]


Search = Generator[Trial, None, Found]


def largest(values: np.ndarray) -> float:
    """max(|min|, |max|), 0 for an empty tensor."""
    return float(np.abs(values).max(initial=0))


class CaffeSimulation:
    """Accuracy of the float network with tensors on grids, as Caffe counts it."""

    def __init__(self, network: FloatNetwork, labels: np.ndarray) -> None:
        self.network = network
        self.labels = labels

    def _settings(self, grids: Mapping[tuple[str, Tensor], Grid]) -> list[Simulation]:
        return [
            Simulation(*(grids.get((layer.name, t)) for t in (Tensor.WEIGHTS, Tensor.BIAS, Tensor.ACTIVATIONS)))
            for layer in self.network.graph.layers
        ]

    def accuracy(self, grids: Mapping[tuple[str, Tensor], Grid]) -> float:
        """Percent of images that are right."""
        return accuracy_caffe(self.network.logits(self._settings(grids)), self.labels)

    def largest(self, grids: Mapping[tuple[str, Tensor], Grid]) -> dict[str, float]:
        """max(|min|, |max|) of each layer's blob when the whole network has run: behind its in-place layers."""
        ranges = self.network.ranges(self._settings(grids))
        last_writer = {layer.blob: layer.name for layer in self.network.graph.layers}
        return {layer.name: largest(ranges[last_writer[layer.blob]]) for layer in self.network.graph.layers}


def caffe_objective(
    graph: Graph,
    accuracy: Callable[[Grids], float],
    largest_activations: Callable[[Grids], Mapping[str, float]],
    tolerance: float,
) -> Search:
    """The original's procedure: weights, activations, biases; each tensor is tried on top of those chosen before it.

    `tolerance` is in percentage points.
    """
    grids: Grids = {}

    def sweep(layer: str, tensor: Tensor, start: QFormat, target: float) -> Generator[Trial, None, QFormat]:
        """Tries m, m - 1, ... at most 3 steps down, while the last accuracy stays short of target - tolerance.

        The first trial does not clip, later ones and what is chosen do. The first format of the best accuracy wins.
        """
        best, best_accuracy = start, -1.0
        for step in range(STEPS + 1):
            tried = QFormat(start.fraction_bits + step)
            reached = accuracy({**grids, (layer, tensor): Grid(tried, clip=step > 0)})
            yield Trial(layer, tensor, tried, reached)
            if reached > best_accuracy:
                best, best_accuracy = tried, reached
            if not target - reached > tolerance:
                break
        grids[layer, tensor] = Grid(best)
        return best

    accuracies = {"float": accuracy(grids)}
    for layer in graph.sweep_order():
        start = QFormat.covering(largest(graph.weights[layer.name][0]))
        yield from sweep(layer.name, Tensor.WEIGHTS, start, accuracies["float"])

    accuracies["quantized weights"] = target = accuracy(grids)
    ranges = largest_activations(grids)
    output: dict[str, QFormat] = {}  # of every layer, chosen or inherited
    for layer in graph.layers:
        if layer.own_format:
            start = QFormat.covering(ranges[layer.name])
            output[layer.name] = yield from sweep(layer.name, Tensor.ACTIVATIONS, start, target)
        else:
            output[layer.name] = output[layer.inputs[0]]
            if layer.floors:
                grids[layer.name, Tensor.ACTIVATIONS] = Grid(output[layer.name])

    accuracies["quantized weights and activations"] = target = accuracy(grids)
    for layer in graph.sweep_order():
        weights = grids[layer.name, Tensor.WEIGHTS].format
        accumulator = QFormat(weights.fraction_bits + output[layer.inputs[0]].fraction_bits)
        start = QFormat.covering(largest(graph.weights[layer.name][1]))
        if start < accumulator:
            yield from sweep(layer.name, Tensor.BIAS, start, target)
        else:  # a finer bias would be lost in the accumulator
            grids[layer.name, Tensor.BIAS] = Grid(accumulator)
            yield Trial(layer.name, Tensor.BIAS, accumulator, accuracy(grids))

    accuracies["quantized weights, activations and biases"] = accuracy(grids)
    table: dict[Tensor, dict[str, QFormat]] = {tensor: {} for tensor in Tensor}
    for (name, tensor), grid in grids.items():
        table[tensor][name] = grid.format
    formats = graph.formats(table[Tensor.WEIGHTS], table[Tensor.BIAS], table[Tensor.ACTIVATIONS])
    return Found(legal(graph, formats), accuracies)


def sweeps(graph: Graph) -> int:
    """How many tensors a search looks at."""
    return sum(2 * layer.weighted + layer.own_format for layer in graph.layers)


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
