# SPDX-License-Identifier: Apache-2.0
"""Accuracies, as Caffe and as the firmware count them."""

from __future__ import annotations

import numpy as np


def margins(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> np.ndarray:
    """(N,) the margin of each image's true class over the others, without the top_k - 1 largest of them.

    Caffe 1.0's Accuracy layer counts images with a margin above 0.
    """
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    return logits[rows, labels] - np.partition(others, -top_k, axis=1)[:, -top_k]


def accuracy_caffe(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> float:
    """The top-k accuracy in percent as Caffe 1.0's Accuracy layer counts it: ties are wrong."""
    return 100 * float(np.mean(margins(logits, labels, top_k) > 0))


def accuracy_first(logits: np.ndarray, labels: np.ndarray, top_k: int = 1) -> float:
    """The top-k accuracy in percent as the firmware's argmax counts it: of equal classes, the first comes first."""
    first = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :top_k]
    return 100 * float(np.mean((first == labels[:, None]).any(axis=1)))
