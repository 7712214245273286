# SPDX-License-Identifier: Apache-2.0
"""How a layer's windows lie on its input, as ONNX attributes and as counts of cells."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from caffe_to_cmsis_nn.onnx_graph import OnnxGraph


class Windows(Protocol):
    """Shapes (channels, height, width), and how windows lie on the input; pairs are (height, width)."""

    @property
    def in_shape(self) -> tuple[int, ...]: ...

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    @property
    def window(self) -> tuple[int, int]: ...

    @property
    def stride(self) -> tuple[int, int]: ...

    @property
    def pad(self) -> tuple[int, int]: ...

    @property
    def dilation(self) -> tuple[int, int]:
        """Rows and columns from one cell of a window to the next."""


def dilated_kernel_size(layer: Windows) -> tuple[int, int]:
    """(rows, columns) of the image from a window's first cell to its last."""
    rows, columns = ((k - 1) * d + 1 for k, d in zip(layer.window, layer.dilation))
    return rows, columns


def end_padding(extent: int, out: int, window: int, stride: int, pad: int) -> int:
    """Cells to add after an axis so that its last window is whole, where `pad` were added before it."""
    return max(0, (out - 1) * stride + window - extent - pad)


def _windows(layer: Windows) -> list[tuple[int, ...]]:
    """(extent, output extent, cells from a window's begin to its end, stride, padding before) along y and x."""
    return list(zip(layer.in_shape[1:], layer.out_shape[1:], dilated_kernel_size(layer), layer.stride, layer.pad))


def window_attributes(layer: Windows) -> dict[str, list[int]]:
    """ONNX attributes of a layer's windows; the padding at the end follows from the output."""
    windows = _windows(layer)
    lengths, stride, pad = ([window[i] for window in windows] for i in (2, 3, 4))
    return {"kernel_shape": lengths, "strides": stride, "pads": [*pad, *(end_padding(*window) for window in windows)]}


def convolution_attributes(layer: Windows) -> dict[str, list[int]]:
    """Of windows that may skip cells."""
    return {**window_attributes(layer), "kernel_shape": [*layer.window], "dilations": [*layer.dilation]}


def deconvolution_attributes(layer: Windows) -> dict[str, list[int]]:
    """Of windows of the output, of which the padding is cut off."""
    return {"kernel_shape": [*layer.window], "strides": [*layer.stride], "pads": [*layer.pad] * 2}


def crop(g: OnnxGraph, y: str, layer: Windows) -> str:
    """Drops rows and columns beyond the layer's output, where the windows allow more than it asks for."""
    for axis, window in enumerate(_windows(layer), 2):
        d, o, k, s, p = window
        if (d + p + end_padding(*window) - k) // s + 1 > o:
            y = g.slice(y, axis, 0, o)
    return y


def max_pool(g: OnnxGraph, x: str, layer: Windows) -> str:
    """The maximum of each window's cells in the image."""
    return crop(g, g.max_pool(x, **window_attributes(layer)), layer)


def image_cells(layer: Windows) -> np.ndarray:
    """(rows, columns) cells of the image in each of a layer's windows."""
    rows, columns = (window_cells(*window) for window in _windows(layer))
    return rows[:, None] * columns


def window_cells(extent: int, out: int, window: int, stride: int, pad: int) -> np.ndarray:
    """How many cells of the image each window holds along one axis."""
    start = np.arange(out) * stride - pad
    return np.minimum(start + window, extent) - np.maximum(start, 0)
