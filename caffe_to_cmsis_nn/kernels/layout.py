# SPDX-License-Identifier: Apache-2.0
"""How blobs lie in the device's memory: those of three axes, CHW in Caffe, as HWC, all others in Caffe's order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_LOOPS = 5  # of move_q7


def device_order(values: np.ndarray) -> np.ndarray:
    """The elements (shape of a blob) as they follow each other in memory."""
    return (values.transpose(1, 2, 0) if values.ndim == 3 else values).ravel()


def lines(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Where the elements along an axis lie: in how many stretches, how many in each, and how far from each other."""
    order = (1, 2, 0) if len(shape) == 3 else range(len(shape))
    sizes, place = [shape[i] for i in order], [*order].index(axis)
    return math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :])


@dataclass(frozen=True)
class Steps:
    """Loops over the positions of elements in memory, the outermost first: how often, and how far each time."""

    start: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def find(cls, positions: np.ndarray) -> Steps:
        """The fewest loops that give these positions, each as long as it can be; there may be too many."""
        start, counts, strides = int(positions[0]), [], []
        while len(positions) > 1:
            stride = int(positions[1] - positions[0])
            uneven = np.flatnonzero(np.diff(positions) != stride)
            count = math.gcd(len(positions), *(int(i) + 1 for i in uneven))
            if count == 1:
                return cls(start, (1,) * (MOST_LOOPS + 1), (0,) * (MOST_LOOPS + 1))
            counts.append(count)
            strides.append(stride)
            positions = positions[::count]
        return cls(start, tuple(counts[::-1]), tuple(strides[::-1]))

    @property
    def nothing(self) -> bool:
        """Whether each element stays where it is."""
        return self.start == 0 and len(self.counts) <= 1 and self.strides in ((), (1,))
