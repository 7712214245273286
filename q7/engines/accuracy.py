# SPDX-License-Identifier: Apache-2.0
"""How images that a network has right are counted."""

from __future__ import annotations

import numpy as np


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) how far each image's true class is above all others; Caffe 1.0's Accuracy layer counts what is above 0."""
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    return logits[rows, labels] - others.max(axis=1)


def accuracy_caffe(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose true class is strictly above all others, as Caffe 1.0's Accuracy layer counts."""
    return 100 * float(np.mean(margins(logits, labels) > 0))


def accuracy_first(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose true class is the first of the largest, as the firmware's argmax has it."""
    return 100 * float(np.mean(logits.argmax(axis=1) == labels))
