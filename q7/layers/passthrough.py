# SPDX-License-Identifier: Apache-2.0
"""Layers that change nothing on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from q7.kernels import registry
from q7.layers.base import Declined, Layer, Shape, computed_by
from q7.qformat import QFormat


@computed_by(registry.SOFTMAX)
class Softmax(Layer):
    """At the end of a network it does not change which class is the largest."""

    caffe_type = "Softmax"
    last_only = True

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        if message.softmax_param.axis != 1:
            raise Declined(f"axis {message.softmax_param.axis}, allowed is 1")
        return {}

    @property
    def out_shape(self) -> Shape:
        return (math.prod(self.in_shape),)

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)


def _dropout(message: Any, shape: Shape) -> bool:
    """It scales while training only."""
    return False


def _split(message: Any, shape: Shape) -> bool:
    """One blob for several layers, which may also read it without a Split."""
    return False


def _flatten(message: Any, shape: Shape) -> bool:
    """An image for an inner product, which takes it as it is."""
    param = message.flatten_param
    if param.axis != 1 or param.end_axis not in (-1, len(shape)):
        raise Declined(f"axis {param.axis} and end_axis {param.end_axis}, allowed are 1 and -1")
    return math.prod(shape[1:]) > 1


def _reshape(message: Any, shape: Shape) -> bool:
    """As Flatten: to the shape [0, -1]."""
    param = message.reshape_param
    dims = tuple(param.shape.dim)
    if (param.axis, param.num_axes) != (0, -1) or dims not in ((0, -1), (-1, math.prod(shape)), (0, math.prod(shape))):
        raise Declined(f"shape {list(dims)}, allowed is [0, -1]")
    return math.prod(shape[1:]) > 1


def _silence(message: Any, shape: Shape) -> bool:
    """It reads what nobody else does, and writes nothing."""
    return False


# Layers that change nothing on the device; whether the output counts as an image in Caffe's flat order.
IDENTITIES: dict[str, Callable[[Any, Shape], bool]] = {
    "Dropout": _dropout,
    "Split": _split,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Silence": _silence,
}
