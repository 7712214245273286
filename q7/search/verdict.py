# SPDX-License-Identifier: Apache-2.0
"""How formats did on images, and which of two did better."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from q7.qformat import QFormat
from q7.search.common import Score

CLEARLY = 1.0  # standard errors of a difference of divergences
FINAL_DEVIATIONS = 2.0  # candidates are few
HOPE = 2.0  # standard deviations that chance may still bring


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which images are right, and their Kullback-Leibler divergences (nats) from the float network's softmax."""

    right: np.ndarray
    divergences: np.ndarray

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * float(self.right.mean())

    @property
    def score(self) -> Score:
        return Score(self.accuracy, float(self.divergences.mean()), len(self.right))

    def beats(self, other: Verdict, tolerance: float, deviations: float) -> bool:
        """More images right, by more than counting noise and the tolerance (percent); else clearly closer logits.

        A difference has a standard deviation of the root of the number of images that only one of the two has right
        (the variance behind McNemar's test); the noise is `deviations` of them. Where neither is clear, more images
        right, by however few.
        """
        gained, lost = self.gained_and_lost(other)
        noise = max(deviations * math.sqrt(gained + lost), tolerance / 100 * len(self.right))
        if abs(gained - lost) > noise:
            return gained > lost
        if other.does_worse(self):
            return True
        return gained > lost and not self.does_worse(other)

    def does_worse(self, other: Verdict, deviations: float = CLEARLY) -> bool:
        """Whether the mean divergence is larger by more than so many standard errors of the differences.

        Where the two have seen different numbers of images, those that both have seen are compared.
        """
        count = min(len(self.divergences), len(other.divergences))
        worse = self.divergences[:count] - other.divergences[:count]
        return float(worse.mean()) > deviations * float(worse.std()) / math.sqrt(count)

    def cannot_beat(self, other: Verdict) -> bool:
        """Clearly further off so far, and not likely to end clearly closer than the other or with more images right.

        The other has seen all. How the rest may turn out is the conditional power (Lan, Simon and Halperin 1982) where
        the two differ on it by chance alone. What may still end unclear is no reason to go on.
        """
        seen = len(self.right) / len(other.right)
        chance = HOPE * math.sqrt(1 - seen)
        gained, lost = self.gained_and_lost(other)
        more = math.sqrt(seen) * (gained - lost) / math.sqrt(max(gained + lost, 1))
        further = max(CLEARLY, (chance - CLEARLY) / math.sqrt(seen))
        return more + chance < FINAL_DEVIATIONS and self.does_worse(other, further)

    def gained_and_lost(self, other: Verdict) -> tuple[int, int]:
        """How many images it alone has right, and the other alone, of those that both have seen."""
        count = min(len(self.right), len(other.right))
        own, others = self.right[:count], other.right[:count]
        return int(np.count_nonzero(own & ~others)), int(np.count_nonzero(others & ~own))

    def first(self, count: int) -> Verdict:
        """On the first images alone."""
        return Verdict(self.right[:count], self.divergences[:count])

    def __add__(self, other: Verdict) -> Verdict:
        """On the images of both."""
        return Verdict(*(np.concatenate([getattr(v, f.name) for v in (self, other)]) for f in fields(Verdict)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Expected:
    """What images should give: their labels, and the float network's log softmax; from its logits (N, classes)."""

    def __init__(self, labels: np.ndarray, logits: np.ndarray) -> None:
        self.labels = labels
        self.log_probabilities = _log_softmax(logits.astype(np.float64))

    def judge(self, logits: np.ndarray, y: QFormat) -> Verdict:
        """The device's logits, int8 in the format y."""
        expected = self.log_probabilities
        found = _log_softmax(np.ldexp(logits.astype(np.float64), -y.fraction_bits))
        return Verdict(logits.argmax(axis=1) == self.labels, (np.exp(expected) * (expected - found)).sum(axis=1))
