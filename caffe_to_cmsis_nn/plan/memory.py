# SPDX-License-Identifier: Apache-2.0
"""Where each layer's output and scratch memory lie in one arena, from when they are alive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.target import Target

ALIGNMENT = 4  # bytes; scratch memory is used as q15_t


@dataclass
class Buffer:
    """A stretch of the arena: bytes, the first and the last layer (index) that uses it, and its offset in bytes."""

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
    """Buffers by the time they come alive, and the arena that holds them (bytes)."""

    buffers: tuple[Buffer, ...]
    outputs: dict[str, Buffer]  # by layer
    scratch: dict[str, Buffer]  # by layer, where its kernel needs any
    in_place: dict[str, str]  # by layer that works in place, the layer whose output it takes the memory of
    least_bytes: int = 0  # of the arena, beside these buffers

    @property
    def arena_bytes(self) -> int:
        return max(self.least_bytes, *(buffer.end for buffer in self.buffers))


def aligned(size: int) -> int:
    """Bytes, rounded up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _place(groups: Sequence[Sequence[Buffer]], at_start: str) -> None:
    """Each group at the lowest offset where none of its buffers meets another one alive with it, the largest first.

    The group of the buffer `at_start` comes before all others.
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


def plan(
    graph: Graph,
    layers: Sequence[IntegerLayer],
    target: Target,
    promised_only: bool = False,
    part: range | None = None,
) -> MemoryPlan:
    """Gives each layer's output and scratch a place; the output of a layer that works in place starts at its input.

    No layer works in place of an input that another one reads later, nor of one that is an output: these stay.

    With `promised_only`, those layers alone that the kernel library promises to work in place. Of a `part` of the
    layers, the one tensor that comes from before it lies at the arena's start.
    """
    part = part or range(len(graph.layers))
    outputs: dict[str, Buffer] = {}
    scratch: dict[str, Buffer] = {}
    groups: dict[str, list[Buffer]] = {}
    taken: dict[str, str] = {}
    last_reader = {name: index for index in part for name in graph.layers[index].inputs}
    before = ""
    for index in part:
        layer, integer = graph.layers[index], layers[index]
        for name, shape in zip(layer.inputs, layer.in_shapes):
            if name not in outputs:
                before = name
                outputs[name] = Buffer(name, 0, index, index)
                groups[name] = [outputs[name]]
            source = outputs[name]
            source.last = index
            source.size = max(source.size, aligned(math.prod(shape) + integer.kernel.overread))
        output = outputs[layer.name] = Buffer(layer.name, aligned(math.prod(layer.out_shape)), index, index)
        over = [name for name in layer.inputs if last_reader[name] == index and name not in graph.outputs]
        if over and integer.kernel.in_place(layer, promised_only):
            taken[layer.name] = over[0]
            groups[layer.name] = groups[over[0]]
            groups[layer.name].append(output)
        else:
            groups[layer.name] = [output]
        size = integer.kernel.scratch_bytes(layer, target)
        if size:
            scratch[layer.name] = Buffer(f"{layer.name} scratch", aligned(size), index, index)
            groups[f"{layer.name} scratch"] = [scratch[layer.name]]
    for name in (graph.layers[part[-1]].name, *(name for name in graph.outputs if name in outputs)):
        outputs[name].last = part.stop
    unique = list({id(group): group for group in groups.values()}.values())
    _place(unique, before)
    return MemoryPlan(
        tuple(sorted((b for group in unique for b in group), key=lambda b: b.first)), outputs, scratch, taken
    )


def join(plans: Sequence[MemoryPlan], least_bytes: int) -> MemoryPlan:
    """Plans of parts of a network that follow each other, in one arena of at least so many bytes."""
    outputs: dict[str, Buffer] = {}
    scratch: dict[str, Buffer] = {}
    in_place: dict[str, str] = {}
    for part in plans:
        outputs.update(part.outputs)
        scratch.update(part.scratch)
        in_place.update(part.in_place)
    buffers = tuple(buffer for part in plans for buffer in part.buffers)
    return MemoryPlan(buffers, outputs, scratch, in_place, aligned(least_bytes))
