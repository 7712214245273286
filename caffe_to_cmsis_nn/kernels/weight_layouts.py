# SPDX-License-Identifier: Apache-2.0
"""The orders in which kernels read weights; functions return them flat unless they say otherwise."""

from __future__ import annotations

import numpy as np


def ohwi(weights: np.ndarray) -> np.ndarray:
    """OHWI from OIHW."""
    return weights.transpose(0, 2, 3, 1).ravel()


def exchanged(weights: np.ndarray, groups: int) -> np.ndarray:
    """Swaps (outputs, inputs of a group, KH, KW) and (inputs, outputs of a group, KH, KW); not flat."""
    both = weights.reshape(groups, -1, *weights.shape[1:]).swapaxes(1, 2)
    return both.reshape(-1, *both.shape[2:])


def depthwise(weights: np.ndarray) -> np.ndarray:
    """KH,KW,C from (C, 1, KH, KW)."""
    return weights[:, 0].transpose(1, 2, 0).ravel()


def channels_last(weights: np.ndarray, in_shape: tuple[int, ...]) -> np.ndarray:
    """A matrix (rows, columns) with columns in HWC order instead of Caffe's CHW if the input is an image."""
    rows = len(weights)
    if len(in_shape) == 3:
        weights = weights.reshape(rows, *in_shape).transpose(0, 2, 3, 1)
    return weights.reshape(rows, -1)


def interleaved(matrix: np.ndarray) -> np.ndarray:
    """The weight stream of arm_fully_connected_q7_opt for a row-major (rows, columns) matrix.

    Four rows at a time: 4x4 blocks in the order (0,0)(1,0)(0,2)(1,2) (2,0)(3,0)(2,2)(3,2) (0,1)(1,1)(0,3)(1,3)
    (2,1)(3,1)(2,3)(3,3), then the remaining columns with the four rows interleaved. Remaining rows stay row-major.
    """
    rows, columns = matrix.shape
    whole = columns - columns % 4
    stream = []
    for r in range(0, rows - rows % 4, 4):
        # Axes: row pair, row, block, column pair, column.
        blocks = matrix[r : r + 4, :whole].reshape(2, 2, -1, 2, 2)
        stream.append(blocks.transpose(2, 4, 0, 3, 1).ravel())
        stream.append(matrix[r : r + 4, whole:].T.ravel())
    return np.concatenate([*stream, matrix[rows - rows % 4 :].ravel()])


def _halves(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Packs weights from -8 to 7, two in each int8."""
    packed: np.ndarray = (low.astype(np.uint8) & 15 | high.astype(np.uint8) << 4).view(np.int8)
    return packed.ravel()


def nibbles(weights: np.ndarray) -> np.ndarray:
    """Packs flat 4-bit weights, the first of two in a byte's low half; an odd number is padded with a 0."""
    return _halves(*np.pad(weights, (0, len(weights) % 2)).reshape(-1, 2).T)


def nibbles_of_blocks(weights: np.ndarray) -> np.ndarray:
    """Packs flat blocks of four 4-bit weights: one block in the low halves of four bytes, the next in the high ones."""
    pairs = weights.reshape(-1, 2, 4)
    return _halves(pairs[:, 0], pairs[:, 1])


def nibbles_of_taps(weights: np.ndarray) -> np.ndarray:
    """Packs 4-bit weights (channels / 4, taps, 4): channels 0 and 1 of two taps, then channels 2 and 3, and so on."""
    taps = np.pad(weights, ((0, 0), (0, weights.shape[1] % 2), (0, 0)))
    channels = taps.reshape(len(weights), -1, 2, 2, 2).transpose(0, 1, 3, 2, 4)
    return _halves(channels[..., 0], channels[..., 1])


def blocks(matrix: np.ndarray, rows_at_once: int, evens_first: bool) -> np.ndarray:
    """A matrix in blocks of `rows_at_once` rows and 4 columns, padded with zeros (templates/ops/dot_q7.h).

    The kernel multiplies the bytes at even positions of a block's row with the first two of four inputs. So columns are
    stored in the order 0, 2, 1, 3, unless the inputs already come in that order (`evens_first`).
    """
    rows, columns = matrix.shape
    matrix = np.pad(matrix, ((0, -rows % rows_at_once), (0, -columns % 4)))
    fours = matrix.reshape(-1, rows_at_once, matrix.shape[1] // 4, 4)
    return (fours if evens_first else fours[..., [0, 2, 1, 3]]).transpose(0, 2, 1, 3).ravel()
