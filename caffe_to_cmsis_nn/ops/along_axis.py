# SPDX-License-Identifier: Apache-2.0
"""Base classes of layers and kernels that work along one axis of a blob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.kernels.contract import I_contra
from caffe_to_cmsis_nn.kernels.layout import lines
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer


def axis_of(param: Any, shape: Shape, name: str = "axis") -> int:
    """The axis, not counting the batch axis, for a Caffe field; negative values count from the end."""
    axis: int = getattr(param, name)
    found = axis - 1 if axis >= 0 else axis + len(shape)
    if not 0 <= found < len(shape):
        raise UnsupportedLayer(f"{name} {axis}, allowed are 1 to {len(shape)}")
    return found


@dataclass(frozen=True, eq=False)
class AlongAxis(Layer):
    any_rank = True

    axis: int = 0  # not counting the batch axis

    def check(self) -> None:
        if self.axis >= len(self.in_shape):
            raise UnsupportedLayer(f"axis {self.axis + 1}, its input has shape {self.in_shape}")


A_contra = TypeVar("A_contra", bound=AlongAxis, contravariant=True)


class AxisLoop(OwnLoop[A_contra, I_contra]):
    def _lines(self, layer: A_contra, c: CNames) -> tuple[str, str, str]:
        """C expressions for `lines` of the input; along channels, PIXELS may replace the number of stretches."""
        stretches, count, distance = map(str, lines(layer.in_shape, layer.axis))
        return c.replaced.get("PIXELS", stretches) if layer.axis == 0 else stretches, count, distance


MOST_REDUCED = 1 << 17  # elements; sums of their squares fit into 32 bits
