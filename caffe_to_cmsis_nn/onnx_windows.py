# SPDX-License-Identifier: Apache-2.0
"""The geometry of a layer's windows, as ONNX attributes and numbers of cells."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from caffe_to_cmsis_nn.onnx_graph import OnnxGraph


class Windows(Protocol):
    """A layer with windows: shapes are (channels, height, width), pairs (height, width)."""

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
        """The distance between cells of a window."""


def dilated_kernel_size(layer: Windows) -> tuple[int, int]:
    """(rows, columns) of the image that a window spans, skipped cells included."""
    rows, columns = ((k - 1) * d + 1 for k, d in zip(layer.window, layer.dilation))
    return rows, columns


def end_padding(extent: int, out: int, window: int, stride: int, pad: int) -> int:
    """The cells to pad at an axis's end so that its last window is complete, with `pad` cells before its start."""
    return max(0, (out - 1) * stride + window - extent - pad)


def _windows(layer: Windows) -> list[tuple[int, ...]]:
    """(extent, output extent, window with dilation, stride, padding before) along y and x."""
    return list(zip(layer.in_shape[1:], layer.out_shape[1:], dilated_kernel_size(layer), layer.stride, layer.pad))


def window_attributes(layer: Windows) -> dict[str, list[int]]:
    """The ONNX attributes of a layer's windows; the padding at the end follows from the output size."""
    windows = _windows(layer)
    lengths, stride, pad = ([window[i] for window in windows] for i in (2, 3, 4))
    return {"kernel_shape": lengths, "strides": stride, "pads": [*pad, *(end_padding(*window) for window in windows)]}


def convolution_attributes(layer: Windows) -> dict[str, list[int]]:
    """The ONNX attributes of a Conv, which may have dilation."""
    return {**window_attributes(layer), "kernel_shape": [*layer.window], "dilations": [*layer.dilation]}


def deconvolution_attributes(layer: Windows) -> dict[str, list[int]]:
    """The ONNX attributes of a ConvTranspose."""
    return {"kernel_shape": [*layer.window], "strides": [*layer.stride], "pads": [*layer.pad] * 2}


def crop(g: OnnxGraph, y: str, layer: Windows) -> str:
    """Drops rows and columns beyond the layer's output size."""
    for axis, window in enumerate(_windows(layer), 2):
        d, o, k, s, p = window
        if (d + p + end_padding(*window) - k) // s + 1 > o:
            y = g.slice(y, axis, 0, o)
    return y


def max_pool(g: OnnxGraph, x: str, layer: Windows) -> str:
    """The maximum over each window's cells within the image."""
    return crop(g, g.max_pool(x, **window_attributes(layer)), layer)


def image_cells(layer: Windows) -> np.ndarray:
    """(rows, columns) the number of image cells in each of a layer's windows."""
    rows, columns = (window_cells(*window) for window in _windows(layer))
    return rows[:, None] * columns


def window_cells(extent: int, out: int, window: int, stride: int, pad: int) -> np.ndarray:
    """The number of image cells in each window along one axis."""
    start = np.arange(out) * stride - pad
    return np.minimum(start + window, extent) - np.maximum(start, 0)
