# SPDX-License-Identifier: Apache-2.0
"""How blobs lie in the device's memory: those of three axes, CHW in Caffe, as HWC, all others in Caffe's order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def device_order(values: np.ndarray) -> np.ndarray:
    """The elements (shape of a blob) as they follow each other in memory."""
    return (values.transpose(1, 2, 0) if values.ndim == 3 else values).ravel()


def lines(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Where the elements along an axis lie: in how many stretches, how many in each, and how far from each other."""
    order = (1, 2, 0) if len(shape) == 3 else range(len(shape))
    sizes, place = [shape[i] for i in order], [*order].index(axis)
    return math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :])
