# SPDX-License-Identifier: Apache-2.0
"""What kernels and constraints may ask of a layer, so that mypy checks each of them against each type of layer."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

from caffe_to_cmsis_nn.kernels.layout import Steps
from caffe_to_cmsis_nn.onnx_windows import Windows


class LayerView(Protocol):
    """Any layer; shapes are (channels, height, width) or (features,)."""

    @property
    def name(self) -> str: ...

    @property
    def caffe_type(self) -> str: ...

    @property
    def in_shapes(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Of the first input."""

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    @property
    def square(self) -> bool:
        """Whether heights equal widths, of images and windows."""

    @property
    def shared_input(self) -> bool:
        """Whether another layer reads an input of this one later."""


class WindowedView(LayerView, Windows, Protocol):
    """A layer that looks at its input through windows."""


class ConvolutionView(WindowedView, Protocol):
    @property
    def group(self) -> int: ...


class LrnView(LayerView, Protocol):
    @property
    def local_size(self) -> int:
        """How many channels, or cells along each axis, are added up."""


class LengthView(LayerView, Protocol):
    @property
    def across_spatial(self) -> bool:
        """Whether all squares of an image are added up, and not only those of a pixel."""

    @property
    def cells(self) -> int:
        """How many are added up."""


class WindowedLrnView(LrnView, WindowedView, Protocol):
    """Which adds up cells of an image."""


class AverageView(WindowedView, Protocol):
    @property
    def covers_image(self) -> bool:
        """Whether its one window is the whole image."""

    def divisors(self) -> np.ndarray:
        """(height, width) cells that each window's sum is divided by."""


class SumView(LayerView, Protocol):
    @property
    def negative(self) -> tuple[bool, ...]:
        """Which inputs are subtracted."""


class AxisView(LayerView, Protocol):
    """A layer that goes along one axis of its input."""

    @property
    def axis(self) -> int:
        """Without the batch's, from 0 on."""


class LargestView(AxisView, Protocol):
    """Which looks for the largest elements."""

    @property
    def top_k(self) -> int:
        """How many."""

    @property
    def out_max_val(self) -> bool:
        """Whether their values are asked for, and not their places."""


class MoveView(LayerView, Protocol):
    """A layer whose outputs are elements of its input."""

    @property
    def sources(self) -> np.ndarray:
        """Which element each is, both counted in Caffe's order."""

    @property
    def steps(self) -> Steps:
        """The same in the device's memory."""


# A kernel or a constraint takes layers and integers; it serves those that are more than it asks for.
L = TypeVar("L", bound=LayerView)
I = TypeVar("I")  # noqa: E741
L_contra = TypeVar("L_contra", bound=LayerView, contravariant=True)
I_contra = TypeVar("I_contra", contravariant=True)
