# SPDX-License-Identifier: Apache-2.0
"""What kernels and constraints may ask of a layer, so that mypy checks each of them against each type of layer."""

from __future__ import annotations

from typing import Protocol, TypeVar

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
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""

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


# A kernel or a constraint takes layers and integers; it serves those that are more than it asks for.
L = TypeVar("L", bound=LayerView)
I = TypeVar("I")  # noqa: E741
L_contra = TypeVar("L_contra", bound=LayerView, contravariant=True)
I_contra = TypeVar("I_contra", contravariant=True)
