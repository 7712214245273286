# SPDX-License-Identifier: Apache-2.0
"""Convolutions without the first and last rows and columns of their windows in which all weights are zero.

Some converters make them of a padding that differs on both sides. Kernels that take any window need not multiply them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.layers.base import Layer
from caffe_to_cmsis_nn.layers.windowed import Convolution


@dataclass(frozen=True, eq=False)
class _Trimmed(Convolution):
    """Its output is what it was."""

    full_shape: tuple[int, ...] = ()

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.full_shape


def _used(nonzero: np.ndarray, pad: int) -> slice:
    """What is left of an axis of the window; at its begin, only padding can be left out."""
    used = np.flatnonzero(nonzero)
    return slice(min(int(used[0]), pad), int(used[-1]) + 1) if used.size else slice(0, len(nonzero))


def trimmed(layer: Layer, integers: Any, rows: bool = True, columns: bool = True) -> tuple[Layer, Any]:
    """The layer and what it holds without zeros above and below, left and right; the same where there are none."""
    if type(layer) is not Convolution:  # a dilated one has cells between those of its windows
        return layer, integers
    weights = integers.weights
    every = slice(None)
    used_rows = _used(weights.any(axis=(0, 1, 3)), layer.pad[0]) if rows else every
    used_columns = _used(weights.any(axis=(0, 1, 2)), layer.pad[1]) if columns else every
    weights = weights[:, :, used_rows, used_columns]
    if weights.shape[2:] == layer.window:
        return layer, integers
    known = {field.name: getattr(layer, field.name) for field in fields(Convolution)}
    pad = layer.pad[0] - (used_rows.start or 0), layer.pad[1] - (used_columns.start or 0)
    known.update(window=weights.shape[2:], pad=pad)
    return _Trimmed(**known, full_shape=layer.out_shape), replace(integers, weights=weights)
