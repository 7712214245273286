# SPDX-License-Identifier: Apache-2.0
"""How formats did on images, which of two did better, and when that is clear before all images have been looked at."""

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

CLEAR_STANDARD_ERRORS = 1.0  # of a mean difference of divergences, beyond which one is clearly the closer
FINAL_DEVIATIONS = 2.0  # of a lead (`mcnemar`), beyond which a candidate is clearly the better: they are few
CHANCE_DEVIATIONS = 2.0  # that the images not seen yet may bring by chance (Lan, Simon and Halperin 1982)
V = TypeVar("V")


def judge_in_stages(stages: Iterable[V], enough: Callable[[V], bool]) -> V:
    """The verdict on stages of images, added up in their order until it is enough or all have been looked at."""
    for verdict in itertools.accumulate(stages):
        if enough(verdict):
            break
    return verdict


def mcnemar(right: np.ndarray, others: np.ndarray) -> tuple[int, float]:
    """How many more images one has right than the other, of those that both have seen, and its standard deviation.

    That is the root of the number of images that only one has right: the variance behind McNemar's test (1947).
    """
    count = min(len(right), len(others))
    right, others = right[:count], others[:count]
    return int(np.sum(right)) - int(np.sum(others)), math.sqrt(np.count_nonzero(right != others))


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which images are right, none where that is not known, and the divergences of all from the float network."""

    right: np.ndarray
    divergences: np.ndarray

    @property
    def images(self) -> int:
        return len(self.divergences)

    @property
    def accuracy(self) -> float | None:
        """Percent."""
        return 100 * float(self.right.mean()) if len(self.right) else None

    @property
    def _divergence(self) -> float:
        """The mean to 6 digits: so records are the same with all versions of numpy, which differ in the last bits."""
        return float(f"{self.divergences.mean():.6g}")

    @property
    def score(self) -> Score:
        return Score(self.accuracy, self._divergence, self.images)

    def measured(self, candidate: str) -> Measured:
        return Measured(candidate, self.images, self.accuracy, self._divergence)

    def beats(self, other: Verdict, tolerance: float, deviations: float) -> bool:
        """More images right, by more than counting noise and the tolerance (percent); else clearly closer logits.

        The noise is so many standard deviations (`mcnemar`). Where neither is clear, more images right, by however few.
        """
        lead, deviation = mcnemar(self.right, other.right)
        if abs(lead) > max(deviations * deviation, tolerance / 100 * len(self.right)):
            return lead > 0
        return other.does_worse(self) or (lead > 0 and not self.does_worse(other))

    def does_worse(self, other: Verdict, standard_errors: float = CLEAR_STANDARD_ERRORS) -> bool:
        """Whether the mean divergence is larger by more than so many standard errors of the differences.

        Where the two have seen different numbers of images, those that both have seen are compared.
        """
        count = min(len(self.divergences), len(other.divergences))
        worse = self.divergences[:count] - other.divergences[:count]
        return float(worse.mean()) > standard_errors * float(worse.std()) / math.sqrt(count)

    def cannot_beat(self, other: Verdict) -> bool:
        """Clearly further off so far, and not likely to end clearly closer than the other or with more images right.

        The other has seen all. How the rest may turn out is the conditional power (Lan, Simon and Halperin 1982) where
        the two differ on it by chance alone. What may still end unclear is not a reason to go on.
        """
        seen = self.images / other.images
        chance = CHANCE_DEVIATIONS * math.sqrt(1 - seen)
        lead, deviation = mcnemar(self.right, other.right)
        more = math.sqrt(seen) * lead / max(deviation, 1)
        further = max(CLEAR_STANDARD_ERRORS, (chance - CLEAR_STANDARD_ERRORS) / math.sqrt(seen))
        return more + chance < FINAL_DEVIATIONS and self.does_worse(other, further)

    def first(self, count: int) -> Verdict:
        """On the first images alone."""
        return Verdict(self.right[:count], self.divergences[:count])

    def __add__(self, other: Verdict) -> Verdict:
        """On the images of both."""
        return Verdict(*map(np.concatenate, ((self.right, other.right), (self.divergences, other.divergences))))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the second axis."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _per_image(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).sum(axis=1)


class Expected:
    """What images should give: their labels, and the float network's outputs (N, result_size).

    The divergence of a classifier is Kullback and Leibler's, in nats, from the float network's softmax. Of outputs that
    are no logits it is the squared error, relative to the mean square; and of several outputs, the sum.
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
        """The device's outputs (N, result_size) int8, in their layers' formats."""
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
