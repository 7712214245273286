# SPDX-License-Identifier: Apache-2.0
"""The sweep against the device: every format is judged by the integer network, from raw pixel to logit."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from q7 import device, rounding
from q7.device import DeviceNetwork, IntegerLayer
from q7.engines import FloatNetwork, accuracy_caffe, plain
from q7.graph import Graph
from q7.qformat import LayerFormats, QFormat, Target
from q7.search import Candidate, Choices, Found, Search, Tensor, Trial, largest, table, tensors

PROBE = 250  # images that see every trial, and stop those that do worse
SAMPLE = 2000  # images that judge the other trials; the finalists are judged by all
FIT_SAMPLE = 5000  # images that weights are fitted to
TRIAL_DEVIATIONS = 3.0  # among many trials, chance makes single images look like a gain or a loss
PROBE_DEVIATIONS = 1.0  # a trial that is no better costs eight times as much when it gets through
FINAL_DEVIATIONS = 2.0
PASSES = 3  # over all tensors, since the best format of one depends on those of others


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which images are right, and their Kullback-Leibler divergences (nats) from the float network's softmax."""

    right: np.ndarray
    divergences: np.ndarray

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * float(self.right.mean())

    def beats(self, other: Verdict, tolerance: float, deviations: float) -> bool:
        """More images right, by more than counting noise and the tolerance (percent); else the closer logits.

        A difference has a standard deviation of the root of the number of images that only one of the two has right
        (the variance behind McNemar's test); the noise is `deviations` of them.
        """
        gained = int(np.count_nonzero(self.right & ~other.right))
        lost = int(np.count_nonzero(other.right & ~self.right))
        noise = max(deviations * math.sqrt(gained + lost), tolerance / 100 * len(self.right))
        if abs(gained - lost) > noise:
            return gained > lost
        return float(self.divergences.mean()) < float(other.divergences.mean())

    def does_worse(self, other: Verdict) -> bool:
        """Whether the mean divergence is larger by more than a standard error of the differences, image by image."""
        worse = self.divergences - other.divergences
        return float(worse.mean()) > PROBE_DEVIATIONS * float(worse.std()) / math.sqrt(len(worse))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Judge:
    """Judges formats on a set of images, against the float network's logits for them."""

    def __init__(
        self, graph: Graph, images: np.ndarray, labels: np.ndarray, reference: np.ndarray, target: Target
    ) -> None:
        self.graph = graph
        self.target = target
        self.labels = labels
        self.reference = _log_softmax(reference.astype(np.float64))
        self.network = DeviceNetwork(graph, images, target)
        self._layers: dict[tuple[str, LayerFormats], IntegerLayer] = {}

    def _quantize(self, formats: Mapping[str, LayerFormats]) -> list[IntegerLayer]:
        """Layers whose formats did not change stay the same objects, so that their results are not computed again."""
        layers = []
        for layer in self.graph.layers:
            key = (layer.name, formats[layer.name])
            if key not in self._layers:
                self._layers[key] = device.quantize_layer(self.graph, layer, key[1], self.target)
            layers.append(self._layers[key])
        return layers

    def judge(self, formats: Mapping[str, LayerFormats]) -> Verdict:
        logits = self.network.logits(self._quantize(formats))
        y = formats[self.graph.output.name].y
        assert y
        log_probabilities = _log_softmax(np.ldexp(logits.astype(np.float64), -y.fraction_bits))
        divergences = (np.exp(self.reference) * (self.reference - log_probabilities)).sum(axis=1)
        return Verdict(logits.argmax(axis=1) == self.labels, divergences)


def _spread(count: int, most: int) -> np.ndarray:
    """Indices of at most so many images, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def _start(graph: Graph, images: np.ndarray) -> Choices:
    """Formats that cover every tensor's range, so that nothing is clipped."""
    ranges = FloatNetwork(graph, images).ranges(plain(graph))
    choices: Choices = {}
    for name, tensor in tensors(graph):
        values = ranges[name] if tensor is Tensor.ACTIVATIONS else graph.weights[name][tensor is Tensor.BIAS]
        choices[name, tensor] = QFormat.covering(largest(values))
    return choices


def _descend(
    probe: Judge, judge: Judge, choices: Choices, tolerance: float
) -> Generator[Trial, None, dict[str, LayerFormats]]:
    """Moves one format at a time, to finer or else to coarser steps, for as long as the verdict gets better.

    `probe` has few images, and spares `judge` the trials that do worse on them. Biases are looked at once: their
    error is far below the others', and does not depend on them.
    """
    formats = table(judge.graph, choices)
    best, best_probed = judge.judge(formats), probe.judge(formats)
    for turn in range(PASSES):
        before = formats
        for name, tensor in tensors(judge.graph):
            if turn > 0 and tensor is Tensor.BIAS:
                continue
            for step in (1, -1):
                moved = False
                while True:
                    q = QFormat(choices[name, tensor].fraction_bits + step)
                    tried = table(judge.graph, {**choices, (name, tensor): q})
                    if tried == formats:  # the kernels cannot carry it
                        break
                    probed = probe.judge(tried)
                    if probed.does_worse(best_probed):
                        yield Trial(name, tensor, q, probed.accuracy)
                        break
                    verdict = judge.judge(tried)
                    yield Trial(name, tensor, q, verdict.accuracy)
                    if not (verdict.beats(best, tolerance, TRIAL_DEVIATIONS) and best.does_worse(verdict)):
                        break
                    moved, best, best_probed, formats = True, verdict, probed, tried
                    choices[name, tensor] = q
                if moved:
                    break
        if formats == before:
            break
    return formats


def device_objective(
    graph: Graph, reference: FloatNetwork, labels: np.ndarray, target: Target, tolerance: float
) -> Search:
    """Searches formats on a sample of the images, adapts the weights, and lets all images decide what is taken.

    `tolerance` is in percentage points: smaller differences of accuracy than this do not count.
    """
    images = reference.images
    logits = reference.logits(plain(graph))

    def judge(count: int) -> Judge:
        some = _spread(len(images), count)
        return Judge(graph, images[some], labels[some], logits[some], target)

    choices = _start(graph, images[_spread(len(images), SAMPLE)])
    start = table(graph, choices)
    formats = yield from _descend(judge(PROBE), judge(SAMPLE), choices, tolerance)
    candidates = {
        "formats from ranges": Candidate(graph, start),
        "formats searched": Candidate(graph, formats),
        "weights adapted": Candidate(
            *rounding.refine(graph, formats, images[_spread(len(images), FIT_SAMPLE)], target)
        ),
    }
    accuracies = {"float": accuracy_caffe(logits, labels)}
    best: tuple[Verdict, Candidate] | None = None
    for name, candidate in candidates.items():
        verdict = Judge(candidate.graph, images, labels, logits, target).judge(candidate.formats)
        accuracies[name] = verdict.accuracy
        if best is None or verdict.beats(best[0], tolerance, FINAL_DEVIATIONS):
            best = verdict, candidate
    assert best
    return Found(best[1], candidates, accuracies)
