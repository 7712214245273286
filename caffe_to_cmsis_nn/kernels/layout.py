# SPDX-License-Identifier: Apache-2.0
"""The layout of blobs in the device's memory: three axes (CHW in Caffe) as HWC, all others in Caffe's order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def device_order(values: np.ndarray) -> np.ndarray:
    """The elements of a blob, flat, in the order of the device's memory."""
    return (values.transpose(1, 2, 0) if values.ndim == 3 else values).ravel()


def lines(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Where the elements along an axis lie in memory: number of stretches, elements in each, distance between them."""
    order = (1, 2, 0) if len(shape) == 3 else range(len(shape))
    sizes, place = [shape[i] for i in order], [*order].index(axis)
    return math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :])
