# SPDX-License-Identifier: Apache-2.0
"""Interp from DeepLab and later branches of Caffe: bilinear resizing (interp_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.moves import LARGEST_OUTPUT, Part
from caffe_to_cmsis_nn.ops.windowed import spatial
from caffe_to_cmsis_nn.target import Target

PARTS = 2048  # denominator of interpolation weights; 8 bits times two weights fit into 32 bits
MOST_CELLS = 1 << 14  # along each axis; positions in 2048ths then fit into 32 bits


class Cropped(Part):
    """First crops the image if pad_beg and pad_end are negative."""

    caffe_type = "Interp"
    variant = "crop"


@dataclass(frozen=True, eq=False)
class Interp(Layer):
    """Bilinear interpolation with aligned corners."""

    caffe_type = "Interp"

    size: tuple[int, ...] = (1, 1)  # height, width

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.interp_param
        spatial(in_shapes[0])
        shrink, zoom = param.HasField("shrink_factor"), param.HasField("zoom_factor")
        if param.height and param.width and shrink == zoom:
            return {"size": (param.height, param.width)}
        if not (shrink or zoom) or min(param.shrink_factor, param.zoom_factor) < 1:
            raise UnsupportedLayer("it needs height and width, or a zoom_factor or shrink_factor of at least 1")
        smaller = ((extent - 1) // param.shrink_factor + 1 for extent in in_shapes[0][1:])
        return {"size": tuple(extent + (extent - 1) * (param.zoom_factor - 1) for extent in smaller)}

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Sequence[Layer]:
        """The layer, after a crop if the padding is negative."""
        begin, end = (-pad for pad in (message.interp_param.pad_beg, message.interp_param.pad_end))
        if begin == end == 0:
            return [cls.parse(message, inputs, in_shapes)]
        spatial(in_shapes[0])
        channels, height, width = in_shapes[0]
        if min(begin, end) < 0 or begin + end >= min(height, width):
            raise UnsupportedLayer(f"pad_beg {-begin} and pad_end {-end}, allowed are 0 and values that crop the image")
        sizes = (channels, height - begin - end, width - begin - end)
        name = f"{message.name}/cropped"
        part = Cropped(name, inputs, name, in_shapes, begins=(0, begin, begin), sizes=sizes)
        return [part, cls.parse(message, (name,), (part.out_shape,))]

    def check(self) -> None:
        spatial(self.in_shape)
        if len(self.size) != 2 or not all(0 < extent <= MOST_CELLS for extent in (*self.size, *self.in_shape[1:])):
            raise UnsupportedLayer(
                f"an output of {'x'.join(map(str, self.size))} cells, allowed are up to {MOST_CELLS} a side"
            )
        if self.out_size > LARGEST_OUTPUT:
            raise UnsupportedLayer(f"an output of {self.out_size} elements, allowed are {LARGEST_OUTPUT}")

    @property
    def out_shape(self) -> Shape:
        return self.in_shape[0], *self.size

    @property
    def macs(self) -> int:
        return 6 * math.prod(self.out_shape)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        rows, columns = (interpolation_matrix(*sizes).astype(np.float32) for sizes in zip(self.in_shape[1:], self.size))
        return g.add("MatMul", g.add("MatMul", rows, xs[0]), columns.T)


def interpolation_matrix(size: int, out_size: int, parts: int = 0) -> np.ndarray:
    """Interpolation weights (out_size, size), float64; each row has at most two, which add up to 1.

    With `parts`, weights are integers, rounded half up, and add up to `parts`. The first and last cells of input and
    output are aligned (DeepLab's interp_layer.cpp).
    """
    steps = max(out_size - 1, 1)
    cells, way = np.divmod(np.arange(out_size) * (size - 1) if out_size > 1 else np.zeros(1, np.int64), steps)
    next_one = (way * parts + steps // 2) // steps if parts else way / steps
    found, rows = np.zeros((out_size, size)), np.arange(out_size)
    found[rows, cells] = (parts or 1) - next_one
    found[rows, np.minimum(cells + 1, size - 1)] += next_one
    return found


class OwnInterp(OwnLoop[Interp, object]):
    """Bilinear interpolation with weights in 2048ths; rounds once, half up."""

    header = "interp_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Interp, integers: object, target: Target) -> str:
        total = g.cast(xs[0], np.float64)
        (_, height, width), (_, out_height, out_width) = layer.in_shape, layer.out_shape
        total = g.add("MatMul", interpolation_matrix(height, out_height, PARTS), total)
        total = g.add("MatMul", total, interpolation_matrix(width, out_width, PARTS).T)
        total = g.add("Add", g.add("Mul", total, np.array(PARTS**-2.0)), np.array(0.5))
        return g.cast(g.add("Floor", total), np.float32)

    def calls(self, layer: Interp, c: CNames) -> list[Statement]:
        channels, *size = map(str, layer.in_shape)
        return [Call(self.name, (c.input, *size, channels, *map(str, layer.out_shape[1:]), c.output))]


computed_by(Interp, OwnInterp("interpolate_q7"))


CLASSES = (Cropped, Interp)
CHOICES = {"Interp": Interp}
