# SPDX-License-Identifier: Apache-2.0
"""The original tool's search: judges formats by the accuracy of a float simulation, as Caffe counts it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from caffe_to_cmsis_nn.data.image_set import pick
from caffe_to_cmsis_nn.engines.accuracy import margins
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Grid, Simulation
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import Measured
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search.common import (
    Candidate,
    Score,
    Search,
    SearchResult,
    Tensor,
    Trial,
    covering,
    largest,
    table,
)
from caffe_to_cmsis_nn.search.verdict import judge_in_stages, mcnemar

FINER_BITS = 3  # most additional fraction bits over the format that covers the range: the original tool's limit
MOST_PARTS = 40  # that images are divided into
MIN_PART_IMAGES = 100
UNCHANGED_PARTS = 3  # in a row, after which the rest is assumed to be unchanged, too
GIVE_UP_DEVIATIONS = 3  # standard deviations of the rival's lead (`mcnemar`) beyond which a trial is given up

Grids = Mapping[tuple[str, Tensor], Grid]


@dataclass(frozen=True, eq=False)
class Judged:
    """Which images (N,) are right, and for a trial that was given up, which ones it ran on."""

    right: np.ndarray
    seen: np.ndarray | None = None


class CaffeSimulation:
    """The float network with tensors on grids, judged as Caffe does."""

    in_float: np.ndarray | None = None  # logits (N, classes) without grids, if computed

    def __init__(self, network: FloatNetwork, labels: np.ndarray) -> None:
        self.network = network
        self.labels = labels
        layers = network.graph.layers
        last_writer = {layer.blob: layer.name for layer in layers}
        self._measured = {layer.name: last_writer[layer.blob] for layer in layers if layer.own_format}

    def _settings(self, grids: Grids) -> list[Simulation]:
        return [Simulation(*(grids.get((layer.name, t)) for t in Tensor)) for layer in self.network.graph.layers]

    def _survey(self, grids: Grids) -> tuple[np.ndarray, dict[str, float]]:
        """Logits, and `largest`."""
        logits, ranges = self.network.survey(self._settings(grids), {*self._measured, *self._measured.values()})
        return logits, {name: largest(ranges[last]) for name, last in self._measured.items()}

    def largest(self, grids: Grids) -> dict[str, float]:
        """max(|min|, |max|) of blobs with their own format, by the layer that writes them.

        As in the original tool, blobs are read after the whole network has run, hence after layers that work in place.
        """
        return self._survey(grids)[1]

    def start(self, grids: Grids) -> np.ndarray:
        """(N,) which images are right with the grids that the next trials build on."""
        return self.judge(grids).right

    def judge(self, grids: Grids, rival: Judged | None = None) -> Judged:
        """May give up where the rival is clearly better."""
        return Judged(margins(self.network.logits(self._settings(grids)), self.labels) > 0)


class ScreenedSimulation(CaffeSimulation):
    """A simulation that runs trials on fewer images, since images with a large margin at the start rarely change.

    A trial runs on parts of the images, in the order of their margins at the start, the smallest first. Once a few
    parts in a row are unchanged, it assumes the same for the rest. Trials that are clearly beaten are given up.
    """

    def __init__(self, network: FloatNetwork, labels: np.ndarray) -> None:
        super().__init__(network, labels)
        self._grids: Grids = {}  # at the start
        self._margins: np.ndarray | None = None  # (N,) with these grids
        self._parts: list[tuple[np.ndarray, CaffeSimulation]] = []  # indices of images, and their simulation

    def _begin(self, grids: Grids) -> None:
        if grids != self._grids:
            self._grids, self._margins = dict(grids), None

    def _keep(self, logits: np.ndarray) -> np.ndarray:
        """Keeps the margins at the start, and divides the images into parts by them."""
        self._margins = margins(logits, self.labels)
        if not self._grids:
            self.in_float = logits
        count = max(1, min(MOST_PARTS, len(logits) // MIN_PART_IMAGES))
        self._parts = []
        for part in np.array_split(np.argsort(abs(self._margins), kind="stable"), count):
            network = self.network.part(pick(self.network.images, part))
            self._parts.append((part, CaffeSimulation(network, self.labels[part])))
        return self._margins

    def _at_start(self) -> np.ndarray:
        """(N,) which images are right."""
        if self._margins is not None:
            return self._margins > 0
        settings = self._settings(self._grids)
        if not self._parts:
            return self._keep(self.network.logits(settings)) > 0
        logits = np.empty((len(self.labels), self.network.graph.result_size), np.float32)
        for part, simulation in self._parts:  # some of them have kept what they need
            logits[part] = simulation.network.logits(settings)
        return self._keep(logits) > 0

    def start(self, grids: Grids) -> np.ndarray:
        """(N,) which images are right, from all images."""
        self._begin(grids)
        return self._at_start()

    def largest(self, grids: Grids) -> dict[str, float]:
        """As for the base class; the same pass serves `start`."""
        self._begin(grids)
        logits, found = self._survey(grids)
        self._keep(logits)
        return found

    def judge(self, grids: Grids, rival: Judged | None = None) -> Judged:
        right = self._at_start()
        order = np.concatenate([part for part, _ in self._parts])
        before = [right[part] for part, _ in self._parts]

        def unchanged(now: list[np.ndarray]) -> bool:
            recent = slice(max(0, len(now) - UNCHANGED_PARTS), len(now))
            return [*map(np.array_equal, now[recent], before[recent])] == [True] * UNCHANGED_PARTS

        def beaten(now: list[np.ndarray]) -> bool:
            lead, deviation = mcnemar(rival.right[order], np.concatenate(now)) if rival else (0, 0.0)
            return lead > GIVE_UP_DEVIATIONS * deviation

        now = judge_in_stages(
            ([simulation.judge(grids).right] for _, simulation in self._parts),
            lambda now: unchanged(now) or beaten(now),
        )
        some = order[: sum(map(len, now))]
        right[some] = np.concatenate(now)
        return Judged(right, np.isin(np.arange(len(right)), some) if beaten(now) and not unchanged(now) else None)


def schedule(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors in the order in which `caffe_objective` tries them."""
    weighted = [layer.name for layer in graph.sweep_order()]
    return [
        *((name, Tensor.WEIGHTS) for name in weighted),
        *((layer.name, Tensor.ACTIVATIONS) for layer in graph.layers if layer.own_format),
        *((name, Tensor.BIAS) for name in weighted),
    ]


def _score(right: np.ndarray, seen: np.ndarray | None = None) -> Score:
    """The score on all images, or on those seen."""
    if seen is None:
        return Score(100 * float(right.mean()))
    return Score(100 * float(right[seen].mean()), images=int(np.count_nonzero(seen)))


EVERYTHING = "quantized weights, activations and biases"
FINEST = "the accumulator has no finer steps"


def _reason(better: bool, judged: Judged, best: QFormat | None) -> str:
    """Why a format was kept or not, compared with the best one so far."""
    how = "more" if better else "significantly fewer" if judged.seen is not None else "no more"
    return f"{how} images right than with {best}" if best else "it holds all values"


class _Procedure:
    """The original's procedure, one kind of tensor at a time, and the grids chosen so far."""

    def __init__(self, graph: Graph, simulation: CaffeSimulation, tolerance: float) -> None:
        self._graph, self._simulation, self._tolerance = graph, simulation, tolerance
        self.grids: dict[tuple[str, Tensor], Grid] = {}
        self.measured: list[Measured] = []

    def start(self, name: str) -> np.ndarray:
        """(N,) which images are right with the grids so far: the target of the next trials."""
        right = self._simulation.start(self.grids)
        self.measured.append(Measured(name, len(right), _score(right).accuracy))
        return right

    def _judge(self, layer: str, tensor: Tensor, tried: QFormat, clip: bool, best: Judged | None) -> Judged:
        trained = self._graph.weights[layer][tensor is Tensor.BIAS] if tensor is not Tensor.ACTIVATIONS else None
        # Without values to clip, both grids are the same. Asking for the same one avoids computing it twice.
        fits = trained is not None and np.array_equal(Grid(tried).round(trained), Grid(tried, False).round(trained))
        return self._simulation.judge({**self.grids, (layer, tensor): Grid(tried, clip=clip or fits)}, best)

    def _sweep(self, layer: str, tensor: Tensor, start: QFormat, target: np.ndarray) -> Generator[Trial, None, QFormat]:
        """Tries start, and up to 3 finer formats while the last accuracy is below target - tolerance.

        The first trial does not clip; later ones do, and so does the chosen format. The first format with the best
        accuracy wins.
        """
        best, best_judged = start, None
        for step in range(FINER_BITS + 1):
            tried = QFormat(start.fraction_bits + step)
            judged = self._judge(layer, tensor, tried, step > 0, best_judged)
            reached, to_reach = _score(judged.right, judged.seen), _score(target, judged.seen)
            better = not best_judged or (judged.seen is None and np.sum(judged.right) > np.sum(best_judged.right))
            yield Trial(
                layer=layer,
                tensor=tensor,
                format=tried,
                score=reached,
                reference=to_reach,
                kept=bool(better),
                flash=None,
                reason=_reason(bool(better), judged, best if best_judged else None),
                given_up=judged.seen is not None,
            )
            if better:
                best, best_judged = tried, judged
            if judged.seen is None and not to_reach.percent - reached.percent > self._tolerance:
                break
        self.grids[layer, tensor] = Grid(best)
        return best

    def weights(self, target: np.ndarray) -> Generator[Trial, None, None]:
        for layer in self._graph.sweep_order():
            widest = covering(layer.name, Tensor.WEIGHTS, largest(self._graph.weights[layer.name][0]))
            yield from self._sweep(layer.name, Tensor.WEIGHTS, widest, target)

    def activations(
        self, target: np.ndarray, ranges: Mapping[str, float]
    ) -> Generator[Trial, None, dict[str, QFormat]]:
        """Returns every layer's output format, chosen or inherited."""
        output: dict[str, QFormat] = {}
        for layer in self._graph.layers:
            if layer.own_format:
                widest = covering(layer.name, Tensor.ACTIVATIONS, ranges[layer.name])
                output[layer.name] = yield from self._sweep(layer.name, Tensor.ACTIVATIONS, widest, target)
            else:
                output[layer.name] = layer.inherited(output[layer.inputs[0]])
                if layer.simulates_rounding:
                    self.grids[layer.name, Tensor.ACTIVATIONS] = Grid(output[layer.name])
        return output

    def biases(self, target: np.ndarray, output: Mapping[str, QFormat]) -> Generator[Trial, None, None]:
        for layer in self._graph.sweep_order():
            weights = self.grids[layer.name, Tensor.WEIGHTS].format
            accumulator = QFormat(weights.fraction_bits + output[layer.inputs[0]].fraction_bits)
            widest = covering(layer.name, Tensor.BIAS, largest(self._graph.weights[layer.name][1]))
            if widest < accumulator:
                yield from self._sweep(layer.name, Tensor.BIAS, widest, target)
            else:
                self.grids[layer.name, Tensor.BIAS] = Grid(accumulator)
                reached = _score(self._simulation.judge(self.grids).right)
                yield Trial(layer.name, Tensor.BIAS, accumulator, reached, _score(target), kept=True, reason=FINEST)


def caffe_objective(graph: Graph, simulation: CaffeSimulation, tolerance: float) -> Search:
    """The original tool's search: weights, then activations, then biases, each on top of the formats already chosen.

    `tolerance` is in percentage points.
    """
    procedure = _Procedure(graph, simulation, tolerance)
    target = procedure.start("float")
    yield from procedure.weights(target)
    ranges = simulation.largest(procedure.grids)
    target = procedure.start("quantized weights")
    output = yield from procedure.activations(target, ranges)
    target = procedure.start("quantized weights and activations")
    yield from procedure.biases(target, output)

    right = simulation.judge(procedure.grids).right
    measured = (*procedure.measured, Measured(EVERYTHING, len(right), _score(right).accuracy, chosen=True))
    chosen = Candidate(graph, table(graph, {key: grid.format for key, grid in procedure.grids.items()}))
    return SearchResult(chosen, measured, in_float=simulation.in_float)
