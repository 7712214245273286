# SPDX-License-Identifier: Apache-2.0
"""The orders in which kernels read weights; each function gives them flat."""

from __future__ import annotations

import numpy as np


def ohwi(weights: np.ndarray) -> np.ndarray:
    """O,KH,KW,C of OIHW."""
    return weights.transpose(0, 2, 3, 1).ravel()


def exchanged(weights: np.ndarray, groups: int) -> np.ndarray:
    """(inputs, outputs of a group, KH, KW) of (outputs, inputs of a group, KH, KW), and the other way round."""
    both = weights.reshape(groups, -1, *weights.shape[1:]).swapaxes(1, 2)
    return both.reshape(-1, *both.shape[2:])


def depthwise(weights: np.ndarray) -> np.ndarray:
    """KH,KW,C of (C, 1, KH, KW)."""
    return weights[:, 0].transpose(1, 2, 0).ravel()


def channels_last(weights: np.ndarray, in_shape: tuple[int, ...]) -> np.ndarray:
    """(rows, columns): the columns in H,W,C order where an image comes in, which Caffe has in C,H,W order."""
    rows = len(weights)
    if len(in_shape) == 3:
        weights = weights.reshape(rows, *in_shape).transpose(0, 2, 3, 1)
    return weights.reshape(rows, -1)


def interleaved(matrix: np.ndarray) -> np.ndarray:
    """The weight stream of arm_fully_connected_q7_opt for a row-major (rows, columns) matrix.

    Four rows at a time: 4x4 blocks in the order (0,0)(1,0)(0,2)(1,2) (2,0)(3,0)(2,2)(3,2) (0,1)(1,1)(0,3)(1,3)
    (2,1)(3,1)(2,3)(3,3), then left-over columns with the four rows side by side; left-over rows stay row-major.
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
    """Weights -8 to 7, two in each int8, flat."""
    packed: np.ndarray = (low.astype(np.uint8) & 15 | high.astype(np.uint8) << 4).view(np.int8)
    return packed.ravel()


def nibbles(weights: np.ndarray) -> np.ndarray:
    """Flat weights of 4 bits, the first of two in a byte's low half; a 0 goes after an odd number of them."""
    return _halves(*np.pad(weights, (0, len(weights) % 2)).reshape(-1, 2).T)


def nibbles_of_blocks(weights: np.ndarray) -> np.ndarray:
    """Flat blocks of four weights of 4 bits: one block in the low halves of four bytes, the next in the high ones."""
    pairs = weights.reshape(-1, 2, 4)
    return _halves(pairs[:, 0], pairs[:, 1])


def nibbles_of_taps(weights: np.ndarray) -> np.ndarray:
    """(fours of channels, taps, 4) weights of 4 bits: of two taps, channels 0 and 1, and then 2 and 3, by turns."""
    taps = np.pad(weights, ((0, 0), (0, weights.shape[1] % 2), (0, 0)))
    channels = taps.reshape(len(weights), -1, 2, 2, 2).transpose(0, 1, 3, 2, 4)
    return _halves(channels[..., 0], channels[..., 1])


def blocks(matrix: np.ndarray, rows_at_once: int, evens_first: bool) -> np.ndarray:
    """Four of each of so many rows, four more of each, then the next rows; zeros fill up both.

    The bytes at even places of a block's row meet the first two of four inputs: in that order they are kept, unless the
    inputs are in it (`evens_first`). Kernels of ours read them so (templates/ops/dot_q7.h).
    """
    rows, columns = matrix.shape
    matrix = np.pad(matrix, ((0, -rows % rows_at_once), (0, -columns % 4)))
    fours = matrix.reshape(-1, rows_at_once, matrix.shape[1] // 4, 4)
    return (fours if evens_first else fours[..., [0, 2, 1, 3]]).transpose(0, 2, 1, 3).ravel()
