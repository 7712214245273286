# SPDX-License-Identifier: Apache-2.0
"""Protocols for the layers that kernels and constraints take, so that mypy checks each kernel against its layers."""

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
        """The shape of the first input."""

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""

    @property
    def square(self) -> bool:
        """Whether images and windows are square."""

    @property
    def shared_input(self) -> bool:
        """Whether a later layer reads an input of this one, too."""


class WindowedView(LayerView, Windows, Protocol):
    """A layer with sliding windows."""


class ConvolutionView(WindowedView, Protocol):
    @property
    def group(self) -> int: ...


# Contravariant: a kernel for a general kind of layer also serves more specific kinds.
L = TypeVar("L", bound=LayerView)
I = TypeVar("I")  # noqa: E741
L_contra = TypeVar("L_contra", bound=LayerView, contravariant=True)
I_contra = TypeVar("I_contra", contravariant=True)
