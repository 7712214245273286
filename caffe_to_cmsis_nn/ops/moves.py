# SPDX-License-Identifier: Apache-2.0
"""Layers that only move elements: each output element equals an input element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.layout import device_order
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.along_axis import axis_of
from caffe_to_cmsis_nn.ops.base import LARGEST_OUTPUT, Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.target import Target

if TYPE_CHECKING:
    from typing_extensions import Self


MOST_AXES = 32  # of a blob, with the batch axis: Caffe's limit
MOST_LOOPS = 5  # of move_q7


@dataclass(frozen=True)
class MoveLoops:
    """Nested loops over positions of elements in memory: count and stride of each, the outermost first."""

    start: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def find(cls, positions: np.ndarray) -> MoveLoops:
        """The fewest loops that visit these positions in order; more than MOST_LOOPS if there are too many."""
        start, counts, strides = int(positions[0]), [], []
        while len(positions) > 1:
            stride = int(positions[1] - positions[0])
            uneven = np.flatnonzero(np.diff(positions) != stride)
            count = math.gcd(len(positions), *(int(i) + 1 for i in uneven))
            if count == 1:
                return cls(start, (1,) * (MOST_LOOPS + 1), (0,) * (MOST_LOOPS + 1))
            counts.append(count)
            strides.append(stride)
            positions = positions[::count]
        return cls(start, tuple(counts[::-1]), tuple(strides[::-1]))

    @property
    def nothing(self) -> bool:
        """Whether all elements stay in place."""
        return self.start == 0 and len(self.counts) <= 1 and self.strides in ((), (1,))


class Move(Layer):
    """A layer that moves elements; the output has the input's format."""

    any_rank = True

    def moved(self, x: np.ndarray) -> np.ndarray:
        """The output for a blob in Caffe's order, without batch axis."""
        raise NotImplementedError

    @property
    def sources(self) -> np.ndarray:
        """For each output element, the index of the input element that it equals, both in Caffe's order; not kept."""
        return self.moved(np.arange(math.prod(self.in_shape), dtype=np.int32).reshape(self.in_shape))

    @cached_property
    def loops(self) -> MoveLoops:
        """The loops over the input that produce the output, both in the order of the device's memory."""
        numbers = np.arange(math.prod(self.in_shape), dtype=np.int32)
        places = np.empty_like(numbers)
        places[device_order(numbers.reshape(self.in_shape))] = numbers
        return MoveLoops.find(places[device_order(self.sources)])

    @cached_property
    def _out_shape(self) -> Shape:
        return self.moved(np.broadcast_to(np.int8(0), self.in_shape)).shape

    @property
    def out_shape(self) -> Shape:
        return self._out_shape

    def joined(self, first: Layer) -> Layer | None:
        """Both moves in one, with this layer's name."""
        if not isinstance(first, Move):
            return None
        return _Joined(self.name, first.inputs, self.blob, first.in_shapes, parts=(first, self))

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return gathered(g, xs[0], self)


@dataclass(frozen=True, eq=False)
class Part(Move):
    """A range along each axis."""

    begins: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def check(self) -> None:
        if len(self.begins) != len(self.in_shape) or len(self.sizes) != len(self.in_shape):
            raise UnsupportedLayer(f"it has {len(self.in_shape)} axes")
        for axis, (begin, size, extent) in enumerate(zip(self.begins, self.sizes, self.in_shape), 1):
            if size < 1 or begin + size > extent:
                raise UnsupportedLayer(f"the places {begin} to {begin + size} of axis {axis}, which has {extent}")

    def moved(self, x: np.ndarray) -> np.ndarray:
        return x[tuple(slice(begin, begin + size) for begin, size in zip(self.begins, self.sizes))]


class Slice(Part):
    """Splits the input along an axis, one part per top."""

    caffe_type = "Slice"

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> list[Self]:
        """One layer per top, named NAME/TOP if there are several."""
        param, shape, tops = message.slice_param, in_shapes[0], [*message.top]
        axis = axis_of(param, shape, "slice_dim" if param.HasField("slice_dim") else "axis")
        points = [*param.slice_point]
        if not points:
            if shape[axis] % len(tops):
                raise UnsupportedLayer(f"{len(tops)} tops of the same size, but axis {axis + 1} has {shape[axis]}")
            points = [shape[axis] // len(tops) * i for i in range(1, len(tops))]
        ends = [0, *points, shape[axis]]
        if len(ends) != len(tops) + 1 or sorted({*ends}) != ends:
            raise UnsupportedLayer(f"slice_point {points}, allowed are {len(tops) - 1} ascending below {shape[axis]}")
        layers = []
        for top, begin, end in zip(tops, ends, ends[1:]):
            begins, sizes = [0] * len(shape), [*shape]
            begins[axis], sizes[axis] = begin, end - begin
            name = message.name if len(tops) == 1 else f"{message.name}/{top}"
            layers.append(cls(name, inputs, top, in_shapes, begins=tuple(begins), sizes=tuple(sizes)))
        return layers


class Crop(Part):
    """Crops the first input to the second one's size, from an axis on; the device only reads the first."""

    caffe_type = "Crop"
    most_inputs = 2

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> list[Self]:
        if len(in_shapes) != 2 or len({*map(len, in_shapes)}) > 1:
            raise UnsupportedLayer(
                f"its inputs have shapes {', '.join(map(str, in_shapes))}, it needs two with as many axes"
            )
        param, (shape, wanted) = message.crop_param, in_shapes
        axis, offsets = axis_of(param, shape), [*param.offset] or [0]
        if len(offsets) not in (1, len(shape) - axis):
            raise UnsupportedLayer(f"{len(offsets)} offsets, allowed are 1 or {len(shape) - axis}")
        offsets = [0] * axis + (offsets * (len(shape) - axis) if len(offsets) == 1 else offsets)
        sizes = (*shape[:axis], *wanted[axis:])
        layer = cls(message.name, inputs[:1], message.top[0], (shape,), begins=tuple(offsets), sizes=sizes)
        layer.check()
        return [layer]


@dataclass(frozen=True, eq=False)
class Permute(Move):
    """Permutes the axes; the batch axis stays first."""

    caffe_type = "Permute"

    order: tuple[int, ...] = ()  # without the batch axis, from 0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        given = [*message.permute_param.order]
        order = given + [axis for axis in range(len(in_shapes[0]) + 1) if axis not in given]
        if order[0] != 0:
            raise UnsupportedLayer(f"order {order}, which moves the batch's axis")
        return {"order": tuple(axis - 1 for axis in order[1:])}

    def check(self) -> None:
        if sorted(self.order) != [*range(len(self.in_shape))]:
            raise UnsupportedLayer(
                f"order {[0, *(axis + 1 for axis in self.order)]}, its input has {len(self.in_shape)} axes"
            )

    def moved(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(self.order)


@dataclass(frozen=True, eq=False)
class Reshape(Move):
    """Changes the shape; elements keep Caffe's order."""

    caffe_type = "Reshape"

    shape: tuple[int, ...] = ()

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """As in reshape_layer.cpp: size 0 copies the old axis, -1 is inferred."""
        param, old = message.reshape_param, (0, *in_shapes[0])  # 0: the batch, of any size
        start = param.axis if param.axis >= 0 else param.axis + len(old) + 1
        end = len(old) if param.num_axes == -1 else start + param.num_axes
        if not 0 <= start <= end <= len(old):
            raise UnsupportedLayer(f"axis {param.axis} and num_axes {param.num_axes}, its input has {len(old)} axes")
        wanted = [*param.shape.dim]
        if (
            any(dim == 0 and start + i >= len(old) for i, dim in enumerate(wanted))
            or wanted.count(-1) > 1
            or min(wanted, default=0) < -1
        ):
            raise UnsupportedLayer(f"shape {wanted} for an input of {len(old)} axes")
        dims = [*old[:start], *(old[start + i] if dim == 0 else dim for i, dim in enumerate(wanted)), *old[end:]]
        size = math.prod(old[1:])
        if dims and dims[0] == -1 and -1 not in dims[1:] and math.prod(dims[1:]) == size:
            dims[0] = 0  # the batch size
        if not dims or dims[0] != 0:
            raise UnsupportedLayer(f"shape {wanted}, which does not keep the batch's axis: allowed are 0 or -1 for it")
        known = math.prod(dim for dim in dims[1:] if dim != -1)
        if known < 1 or size % known:
            raise UnsupportedLayer(f"shape {wanted} for the shape {in_shapes[0]}")
        return {"shape": tuple(size // known if dim == -1 else dim for dim in dims[1:]) or (size,)}

    def check(self) -> None:
        if len(self.shape) >= MOST_AXES:
            raise UnsupportedLayer(f"a shape of {len(self.shape) + 1} axes, allowed are {MOST_AXES}")
        if math.prod(self.shape) != math.prod(self.in_shape) or not self.shape:
            raise UnsupportedLayer(f"shape {self.shape} for the shape {self.in_shape}")

    def moved(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.shape)


class Flatten(Reshape):
    """Merges neighbouring axes, in Caffe's order."""

    caffe_type = "Flatten"
    homogeneous = True

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param, shape = message.flatten_param, in_shapes[0]
        start, end = axis_of(param, shape), axis_of(param, shape, "end_axis")
        if start > end:
            raise UnsupportedLayer(f"axis {param.axis} and end_axis {param.end_axis}")
        return {"shape": (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])}


@dataclass(frozen=True, eq=False)
class ShuffleChannel(Move):
    """Interleaves the channels of groups: the first of each group, then the second of each, and so on (ShuffleNet)."""

    caffe_type = "ShuffleChannel"

    group: int = 1

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"group": message.shuffle_channel_param.group}

    def check(self) -> None:
        if self.group < 1 or self.in_shape[0] % self.group:
            raise UnsupportedLayer(f"group {self.group} does not divide {self.in_shape[0]} channels")

    def moved(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.group, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _repeated(layer: Layer, times: int, what: str) -> None:
    if times < 1 or math.prod(layer.in_shape) * times > LARGEST_OUTPUT:
        raise UnsupportedLayer(f"{what}: allowed is at least 1, and an output of at most {LARGEST_OUTPUT} elements")


@dataclass(frozen=True, eq=False)
class Upsample(Move):
    """Repeats each pixel `scale` times along both axes."""

    caffe_type = "Upsample"

    scale: int = 2

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"scale": message.upsample_param.scale}

    def check(self) -> None:
        if len(self.in_shape) != 3:
            raise UnsupportedLayer(f"its input has shape {self.in_shape}, it needs an image")
        _repeated(self, self.scale * abs(self.scale), f"scale {self.scale}")

    def moved(self, x: np.ndarray) -> np.ndarray:
        return x.repeat(self.scale, 1).repeat(self.scale, 2)


@dataclass(frozen=True, eq=False)
class Tile(Move):
    """Repeats the input `tiles` times along an axis."""

    caffe_type = "Tile"

    axis: int = 0
    tiles: int = 1

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.tile_param
        return {"axis": axis_of(param, in_shapes[0]), "tiles": param.tiles}

    def check(self) -> None:
        if self.axis >= len(self.in_shape):
            raise UnsupportedLayer(f"axis {self.axis + 1}, its input has {len(self.in_shape)} without the batch's")
        _repeated(self, self.tiles, f"tiles {self.tiles}")

    def moved(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x] * self.tiles, self.axis)


@dataclass(frozen=True, eq=False)
class _Joined(Move):
    """Consecutive moves as one."""

    caffe_type = "moves"

    parts: tuple[Move, ...] = ()

    def moved(self, x: np.ndarray) -> np.ndarray:
        for part in self.parts:
            x = part.moved(x)
        return x


class OwnMove(OwnLoop[Move, object]):
    """Copies elements in nested loops: reordered, selected or repeated."""

    header = "moves_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Move, integers: object, target: Target) -> str:
        return gathered(g, xs[0], layer)

    def in_place(self, layer: Move, promised_only: bool) -> bool:
        return layer.loops.nothing

    def calls(self, layer: Move, c: CNames) -> list[Statement]:
        """No copy if the output overwrites the input, which is only allowed if nothing moves."""
        if c.in_place:
            return [Call("(void)", (c.input,))]
        name, loops = c.variable("out_move"), layer.loops
        missing = MOST_LOOPS - len(loops.counts)
        counts = (*["1"] * missing, *map(str, loops.counts))
        strides = (*["0"] * missing, *map(str, loops.strides))
        return [
            Declaration("const move_t", name, (str(loops.start), counts, strides)),
            Call(self.name, (c.input, f"&{name}", c.output)),
        ]


def gathered(g: OnnxGraph, x: str, layer: Move) -> str:
    """The layer's output for a blob in Caffe's order."""
    flat = g.add("Gather", g.add("Flatten", x), layer.sources.ravel(), axis=1)
    return g.add("Reshape", flat, np.array([-1, *layer.out_shape]))


def even_steps(layer: Move, target: Target) -> bool:
    """at most 5 nested loops over evenly spaced elements in the device's memory"""
    return len(layer.loops.counts) <= 5


computed_by(Move, OwnMove("move_q7", (even_steps,)))


CLASSES = (Slice, Crop, Permute, Reshape, Flatten, ShuffleChannel, Upsample, Tile)
