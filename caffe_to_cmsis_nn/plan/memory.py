# SPDX-License-Identifier: Apache-2.0
"""Places each layer's output and scratch memory in one arena; buffers share memory if they are not alive together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.target import Target

ALIGNMENT = 4  # bytes; kernels use scratch memory as q15_t


@dataclass
class Buffer:
    """A range of the arena: size and offset in bytes, and the first and last layer (indices) that use it."""

    name: str
    size: int
    first: int
    last: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class MemoryPlan:
    """The buffers of a network, in the order in which they come alive."""

    buffers: tuple[Buffer, ...]
    outputs: dict[str, Buffer]  # by layer
    scratch: dict[str, Buffer]  # by layer, for kernels that need it
    in_place: dict[str, str]  # by layer that works in place: the layer whose output it overwrites
    least_bytes: int = 0  # size of the arena at least, whatever the buffers

    @property
    def arena_bytes(self) -> int:
        return max(self.least_bytes, *(buffer.end for buffer in self.buffers))


def aligned(size: int) -> int:
    """A number of bytes, rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _place(groups: Sequence[Sequence[Buffer]], at_start: str) -> None:
    """Places groups at the lowest free offset, the largest first, but the group of the buffer `at_start` before all.

    An offset is free if no buffer of the group overlaps another one that is alive at the same time.
    """

    def order(group: Sequence[Buffer]) -> tuple[bool, int, int, str]:
        return group[0].name != at_start, -max(b.size for b in group), group[0].first, group[0].name

    placed: list[Buffer] = []
    for group in sorted(groups, key=order):
        offset = 0
        while True:
            clashes = [
                other.end
                for buffer in group
                for other in placed
                if buffer.first <= other.last
                and other.first <= buffer.last
                and offset < other.end
                and other.offset < offset + buffer.size
            ]
            if not clashes:
                break
            offset = min(clashes)
        for buffer in group:
            buffer.offset = offset
        placed.extend(group)


class _Buffers:
    """The buffers of part of a network, and the layers during which each is alive.

    Buffers in a group share an offset: a layer that works in place joins its input's group.
    """

    def __init__(self, graph: Graph, part: range) -> None:
        self.outputs: dict[str, Buffer] = {}
        self.scratch: dict[str, Buffer] = {}
        self.in_place: dict[str, str] = {}
        self.from_before = ""  # the tensor that the part reads and does not compute
        self._graph, self._part = graph, part
        self._groups: list[list[Buffer]] = []
        self._group_of: dict[str, list[Buffer]] = {}  # by layer
        self._last_reader = {name: index for index in part for name in graph.layers[index].inputs}

    def read_inputs(self, index: int, overread: int) -> None:
        """Keeps a layer's inputs alive, with `overread` bytes after each."""
        layer = self._graph.layers[index]
        for name, shape in zip(layer.inputs, layer.in_shapes):
            if name not in self.outputs:
                self.from_before = name
                self._add_output(name, 0, index)
            source = self.outputs[name]
            source.last = index
            source.size = max(source.size, aligned(math.prod(shape) + overread))

    def add_output(self, index: int, in_place: bool) -> None:
        """A layer's output; `in_place` if the kernel may overwrite an input that is not read again."""
        layer = self._graph.layers[index]
        free = [n for n in layer.inputs if self._last_reader[n] == index and n not in self._graph.outputs]
        if in_place and free:
            self.in_place[layer.name] = free[0]
        self._add_output(layer.name, math.prod(layer.out_shape), index, self.in_place.get(layer.name))

    def _add_output(self, name: str, size: int, index: int, host: str | None = None) -> None:
        buffer = self.outputs[name] = Buffer(name, aligned(size), index, index)
        if host is None:
            self._group_of[name] = [buffer]
            self._groups.append(self._group_of[name])
        else:
            self._group_of[name] = self._group_of[host]
            self._group_of[name].append(buffer)

    def add_scratch(self, index: int, size: int) -> None:
        name = self._graph.layers[index].name
        self.scratch[name] = Buffer(f"{name} scratch", aligned(size), index, index)
        self._groups.append([self.scratch[name]])

    def place(self) -> MemoryPlan:
        """Gives each buffer its offset; the part's last tensor and the network's outputs stay alive to the end."""
        graph, outputs = self._graph, self.outputs
        for name in (graph.layers[self._part[-1]].name, *(name for name in graph.outputs if name in outputs)):
            outputs[name].last = self._part.stop
        _place(self._groups, self.from_before)
        buffers = sorted((buffer for group in self._groups for buffer in group), key=lambda b: b.first)
        return MemoryPlan(tuple(buffers), outputs, self.scratch, self.in_place)


def plan(
    graph: Graph,
    layers: Sequence[IntegerLayer],
    target: Target,
    promised_only: bool = False,
    part: range | None = None,
) -> MemoryPlan:
    """Places each layer's output and scratch memory; the output of a layer that works in place starts at its input.

    No layer overwrites an output of the network, or an input that a later layer reads. With `promised_only`, only
    kernels that the library documents as in-place work in place. If only a `part` of the layers is planned, the tensor
    that it reads from before lies at the arena's start.
    """
    part = part or range(len(graph.layers))
    buffers = _Buffers(graph, part)
    for index in part:
        layer, kernel = graph.layers[index], layers[index].kernel
        buffers.read_inputs(index, kernel.overread)
        buffers.add_output(index, kernel.in_place(layer, promised_only))
        scratch_bytes = kernel.scratch_bytes(layer, target)
        if scratch_bytes:
            buffers.add_scratch(index, scratch_bytes)
    return buffers.place()


def join(plans: Sequence[MemoryPlan], least_bytes: int) -> MemoryPlan:
    """Joins the plans of consecutive parts of a network in one arena of at least `least_bytes`."""
    outputs: dict[str, Buffer] = {}
    scratch: dict[str, Buffer] = {}
    in_place: dict[str, str] = {}
    for part in plans:
        outputs.update(part.outputs)
        scratch.update(part.scratch)
        in_place.update(part.in_place)
    buffers = tuple(buffer for part in plans for buffer in part.buffers)
    return MemoryPlan(buffers, outputs, scratch, in_place, aligned(least_bytes))
