# SPDX-License-Identifier: Apache-2.0
"""How images that a network has right are counted."""

from __future__ import annotations

import numpy as np


def margins(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> np.ndarray:
    """(N,) how far each image's true class is above all others but the top_k - 1 largest.

    Caffe 1.0's Accuracy layer counts what is above 0.
    """
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    return logits[rows, labels] - np.partition(others, -top_k, axis=1)[:, -top_k]


def accuracy_caffe(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> float:
    """Percent of images whose true class is strictly above all others, as Caffe 1.0's Accuracy layer counts.

    Or above all but top_k - 1.
    """
    return 100 * float(np.mean(margins(logits, labels, top_k) > 0))


def accuracy_first(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> float:
    """Percent of images whose true class is the first of the largest, as the firmware's argmax has it.

    Or among the first top_k of them.
    """
    first = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :top_k]
    return 100 * float(np.mean((first == labels[:, None]).any(axis=1)))
