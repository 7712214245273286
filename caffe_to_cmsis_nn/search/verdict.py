# SPDX-License-Identifier: Apache-2.0
"""Compares candidates by their results on images, and decides when more images would not change the outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import Measured
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.search.common import Score

CLEAR_STANDARD_ERRORS = 1.0  # of a mean difference of divergences, beyond which one is clearly smaller
FINAL_DEVIATIONS = 2.0  # of a lead (`mcnemar`), beyond which a candidate is clearly better
CHANCE_DEVIATIONS = 2.0  # that unseen images may add by chance (Lan, Simon and Halperin 1982)
V = TypeVar("V")


def judge_in_stages(stages: Iterable[V], enough: Callable[[V], bool]) -> V:
    """Adds up the verdicts on stages of images, until they are `enough` or there are no more stages."""
    for verdict in itertools.accumulate(stages):
        if enough(verdict):
            break
    return verdict


def mcnemar(right: np.ndarray, others: np.ndarray) -> tuple[int, float]:
    """The lead in right images over the other, among those that both have seen, and its standard deviation.

    The variance is the number of images that only one of them has right, as in McNemar's test (1947).
    """
    count = min(len(right), len(others))
    right, others = right[:count], others[:count]
    return int(np.sum(right)) - int(np.sum(others)), math.sqrt(np.count_nonzero(right != others))


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which images are right (empty without labels), and each image's divergence from the float network."""

    right: np.ndarray
    divergences: np.ndarray

    @property
    def images(self) -> int:
        return len(self.divergences)

    @property
    def accuracy(self) -> float | None:
        """In percent, or None without labels."""
        return 100 * float(self.right.mean()) if len(self.right) else None

    @property
    def _divergence(self) -> float:
        """The mean, rounded to 6 digits, since versions of numpy differ in the last bits."""
        return float(f"{self.divergences.mean():.6g}")

    @property
    def score(self) -> Score:
        return Score(self.accuracy, self._divergence, self.images)

    def measured(self, candidate: str) -> Measured:
        return Measured(candidate, self.images, self.accuracy, self._divergence)

    def beats(self, other: Verdict, tolerance: float, deviations: float) -> bool:
        """Whether it has more images right, beyond noise and tolerance (percent); else whether it is clearly closer.

        The noise is `deviations` standard deviations of the lead (`mcnemar`). If neither is clear, any lead counts.
        """
        lead, deviation = mcnemar(self.right, other.right)
        if abs(lead) > max(deviations * deviation, tolerance / 100 * len(self.right)):
            return lead > 0
        return other.does_worse(self) or (lead > 0 and not self.does_worse(other))

    def does_worse(self, other: Verdict, standard_errors: float = CLEAR_STANDARD_ERRORS) -> bool:
        """Whether the mean divergence is larger by more than `standard_errors` of the differences.

        Compares the images that both have seen.
        """
        count = min(len(self.divergences), len(other.divergences))
        worse = self.divergences[:count] - other.divergences[:count]
        return float(worse.mean()) > standard_errors * float(worse.std()) / math.sqrt(count)

    def cannot_beat(self, other: Verdict) -> bool:
        """Whether it is clearly worse so far, and unlikely to end clearly closer or with more images right.

        The other one has seen all images. The estimate for the unseen ones is the conditional power (Lan, Simon and
        Halperin 1982), if both differ there only by chance.
        """
        seen = self.images / other.images
        chance = CHANCE_DEVIATIONS * math.sqrt(1 - seen)
        lead, deviation = mcnemar(self.right, other.right)
        more = math.sqrt(seen) * lead / max(deviation, 1)
        further = max(CLEAR_STANDARD_ERRORS, (chance - CLEAR_STANDARD_ERRORS) / math.sqrt(seen))
        return more + chance < FINAL_DEVIATIONS and self.does_worse(other, further)

    def first(self, count: int) -> Verdict:
        """The verdict on the first `count` images."""
        return Verdict(self.right[:count], self.divergences[:count])

    def __add__(self, other: Verdict) -> Verdict:
        """The verdict on the images of both."""
        return Verdict(*map(np.concatenate, ((self.right, other.right), (self.divergences, other.divergences))))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax over the second axis."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _per_image(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).sum(axis=1)


class Expected:
    """The expected results: labels, and the float network's outputs (N, result_size).

    For logits, the divergence is the Kullback-Leibler divergence from the float network's softmax, in nats. For other
    outputs, it is the squared error relative to the mean square. Several outputs add up.
    """

    def __init__(self, graph: Graph, labels: np.ndarray, results: np.ndarray) -> None:
        self.graph, self.labels = graph, labels
        self._logits = set(graph.outputs) if graph.classifier else graph.scores
        self._expected: dict[str, np.ndarray] = {}
        self._power: dict[str, float] = {}
        for name, values in graph.split(results.astype(np.float64)).items():
            self._expected[name] = _log_softmax(values) if name in self._logits else values
            self._power[name] = float(np.square(values).sum()) / len(values) or 1.0

    def judge(self, results: np.ndarray, formats: Mapping[str, LayerFormats]) -> Verdict:
        """Judges the device's outputs (N, result_size) int8, in their layers' formats."""
        divergences = np.zeros(len(results))
        for name, integers in self.graph.split(results).items():
            y, expected = formats[name].y, self._expected[name]
            assert y
            found = np.ldexp(integers.astype(np.float64), -y.fraction_bits)
            if name in self._logits:
                places = math.prod(expected.shape[2:])
                divergences += _per_image(np.exp(expected) * (expected - _log_softmax(found))) / places
            else:
                divergences += _per_image(np.square(expected - found)) / self._power[name]
        right = results.argmax(axis=1) == self.labels if self.graph.classifier else np.empty(0, bool)
        return Verdict(right, divergences)
