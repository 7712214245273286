# SPDX-License-Identifier: Apache-2.0
"""Layers and loops that go along one axis of a blob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.kernels.contract import I_contra
from caffe_to_cmsis_nn.kernels.layout import lines
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer


def axis_of(param: Any, shape: Shape, name: str = "axis") -> int:
    """The axis of a blob without the batch's, from Caffe's number, which counts from the end where it is negative."""
    axis: int = getattr(param, name)
    found = axis - 1 if axis >= 0 else axis + len(shape)
    if not 0 <= found < len(shape):
        raise UnsupportedLayer(f"{name} {axis}, allowed are 1 to {len(shape)}")
    return found


@dataclass(frozen=True, eq=False)
class AlongAxis(Layer):
    any_rank = True

    axis: int = 0  # without the batch's

    def check(self) -> None:
        if self.axis >= len(self.in_shape):
            raise UnsupportedLayer(f"axis {self.axis + 1}, its input has shape {self.in_shape}")


A_contra = TypeVar("A_contra", bound=AlongAxis, contravariant=True)


class AxisLoop(OwnLoop[A_contra, I_contra]):
    def _lines(self, layer: A_contra, c: CNames) -> tuple[str, str, str]:
        """C's loops over the input; of channels, which a row holds all of, `PIXELS` says how many stretches."""
        stretches, count, distance = map(str, lines(layer.in_shape, layer.axis))
        return c.replaced.get("PIXELS", stretches) if layer.axis == 0 else stretches, count, distance


MOST_REDUCED = 1 << 17  # elements, so that sums of squares stay within 32 bits
