# SPDX-License-Identifier: Apache-2.0
"""Base classes of layers and kernels with sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import I_contra, WindowedView
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer

W_contra = TypeVar("W_contra", bound=WindowedView, contravariant=True)


def along_axes(what: str, values: Sequence[int]) -> tuple[int, int] | None:
    """(height, width) of a repeated field."""
    if len(values) > 2:
        raise UnsupportedLayer(f"{what} has {len(values)} spatial axes, allowed are 2")
    return (values[0], values[-1]) if values else None


def height_and_width(what: str, values: Sequence[int], param: Any, prefix: str, default: int | None) -> tuple[int, int]:
    """(height, width) of a repeated or single field, or of its _h and _w forms (Caffe's base_conv_layer.cpp)."""
    pair = along_axes(what, values)
    if param.HasField(f"{prefix}_h") or param.HasField(f"{prefix}_w"):
        return getattr(param, f"{prefix}_h"), getattr(param, f"{prefix}_w")
    if pair:
        return pair
    if default is None:
        raise UnsupportedLayer(f"{what} is missing")
    return default, default


def window_defines(layer: WindowedView) -> dict[str, int]:
    """The macros for a layer's windows, without its prefix."""
    pairs = {
        "IN_DIM": layer.in_shape[1:],
        "KER_DIM": layer.window,
        "PAD": layer.pad,
        "STRIDE": layer.stride,
        "OUT_DIM": layer.out_shape[1:],
    }
    if layer.square:
        return {what: pair[0] for what, pair in pairs.items()}
    return {f"{what}_{axis}": pair[i] for what, pair in pairs.items() for axis, i in (("X", 1), ("Y", 0))}


@dataclass(frozen=True, eq=False)
class Windowed(Layer):
    """A layer with sliding windows; pairs are (height, width)."""

    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation = (1, 1)  # a field in dilated layers

    @property
    def square(self) -> bool:
        sizes = (self.in_shape[1:], self.out_shape[1:], self.window, self.stride, self.pad, self.dilation)
        return all(height == width for height, width in sizes)

    def check(self) -> None:
        if min(*self.window, *self.stride) < 1:
            raise UnsupportedLayer(f"kernel {self.window} and stride {self.stride} must be at least 1")
        if min(self.out_shape) < 1:
            raise UnsupportedLayer(f"its output would be empty: input {self.in_shape}, kernel {self.window}")

    def describe(self) -> str:
        return f"{super().describe()}, kernel {self.window[0]}x{self.window[1]}, stride {self.stride[0]}"


def spatial(in_shape: Shape) -> None:
    """Raises UnsupportedLayer if a layer's input is not an image (CHW)."""
    if len(in_shape) != 3:
        raise UnsupportedLayer(f"its input has shape {in_shape}, allowed is (channels, height, width)")


class WindowLoop(OwnLoop[W_contra, I_contra]):
    """A kernel for windows of any shape, stride and padding; it does not modify its input."""

    computes_rows = True

    def calls(self, layer: W_contra, c: CNames) -> list[Statement]:
        window = c.variable("out_window")
        sizes = tuple(size for pair in c.extents for size in pair)
        return [
            Declaration("const window_t", window, sizes),
            Call(self.name, (c.input, f"&{window}", *self._arguments(layer, c), c.output)),
        ]

    def _arguments(self, layer: W_contra, c: CNames) -> list[str]:
        return [c.macro("IN_CH")]
