# SPDX-License-Identifier: Apache-2.0
"""The original's sweeps: formats are tried against the accuracy of a float simulation, as Caffe counts it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

import numpy as np

from q7.engines import FloatNetwork, Grid, Simulation, accuracy_caffe
from q7.graph import Graph
from q7.qformat import QFormat
from q7.search import Candidate, Found, Score, Search, Tensor, Trial, covering, largest, table

STEPS = 3  # how far below the range's format the original looks

Grids = dict[tuple[str, Tensor], Grid]


class CaffeSimulation:
    """Accuracy of the float network with tensors on grids, as Caffe counts it."""

    def __init__(self, network: FloatNetwork, labels: np.ndarray) -> None:
        self.network = network
        self.labels = labels

    def _settings(self, grids: Mapping[tuple[str, Tensor], Grid]) -> list[Simulation]:
        return [Simulation(*(grids.get((layer.name, t)) for t in Tensor)) for layer in self.network.graph.layers]

    def accuracy(self, grids: Mapping[tuple[str, Tensor], Grid]) -> float:
        """Percent of images that are right."""
        return accuracy_caffe(self.network.logits(self._settings(grids)), self.labels)

    def largest(self, grids: Mapping[tuple[str, Tensor], Grid]) -> dict[str, float]:
        """max(|min|, |max|) of each layer's blob when the whole network has run: behind its in-place layers."""
        ranges = self.network.ranges(self._settings(grids))
        last_writer = {layer.blob: layer.name for layer in self.network.graph.layers}
        return {layer.name: largest(ranges[last_writer[layer.blob]]) for layer in self.network.graph.layers}


def schedule(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors in the order in which `caffe_objective` looks at them."""
    weighted = [layer.name for layer in graph.sweep_order()]
    return [
        *((name, Tensor.WEIGHTS) for name in weighted),
        *((layer.name, Tensor.ACTIVATIONS) for layer in graph.layers if layer.own_format),
        *((name, Tensor.BIAS) for name in weighted),
    ]


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
            trained = graph.weights[layer][tensor is Tensor.BIAS] if tensor is not Tensor.ACTIVATIONS else None
            # To clip what fits changes nothing; it is the same grid then, and not computed again.
            fits = trained is not None and np.array_equal(Grid(tried).round(trained), Grid(tried, False).round(trained))
            reached = accuracy({**grids, (layer, tensor): Grid(tried, clip=step > 0 or fits)})
            better = reached > best_accuracy
            yield Trial(layer, tensor, tried, Score(reached), Score(target), better)
            if better:
                best, best_accuracy = tried, reached
            if not target - reached > tolerance:
                break
        grids[layer, tensor] = Grid(best)
        return best

    accuracies = {"float": accuracy(grids)}
    for layer in graph.sweep_order():
        start = covering(layer.name, Tensor.WEIGHTS, largest(graph.weights[layer.name][0]))
        yield from sweep(layer.name, Tensor.WEIGHTS, start, accuracies["float"])

    accuracies["quantized weights"] = target = accuracy(grids)
    ranges = largest_activations(grids)
    output: dict[str, QFormat] = {}  # of every layer, chosen or inherited
    for layer in graph.layers:
        if layer.own_format:
            start = covering(layer.name, Tensor.ACTIVATIONS, ranges[layer.name])
            output[layer.name] = yield from sweep(layer.name, Tensor.ACTIVATIONS, start, target)
        else:
            output[layer.name] = layer.inherited(output[layer.inputs[0]])
            if layer.floors:
                grids[layer.name, Tensor.ACTIVATIONS] = Grid(output[layer.name])

    accuracies["quantized weights and activations"] = target = accuracy(grids)
    for layer in graph.sweep_order():
        weights = grids[layer.name, Tensor.WEIGHTS].format
        accumulator = QFormat(weights.fraction_bits + output[layer.inputs[0]].fraction_bits)
        start = covering(layer.name, Tensor.BIAS, largest(graph.weights[layer.name][1]))
        if start < accumulator:
            yield from sweep(layer.name, Tensor.BIAS, start, target)
        else:  # a finer bias would be lost in the accumulator
            grids[layer.name, Tensor.BIAS] = Grid(accumulator)
            yield Trial(layer.name, Tensor.BIAS, accumulator, Score(accuracy(grids)), Score(target), kept=True)

    accuracies["quantized weights, activations and biases"] = accuracy(grids)
    chosen = Candidate(graph, table(graph, {key: grid.format for key, grid in grids.items()}))
    return Found(chosen, {"original's sweeps": chosen}, accuracies)
