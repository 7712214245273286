# SPDX-License-Identifier: Apache-2.0
"""Proof that a plan's layers never lose what they still need: every byte of the arena is followed through one image.

Each byte carries the tag of what was written there last. Layers that run whole, and each row of a row group, must find
all of their inputs untouched. Rows slide as in templates/common/rows_q7.h, whose functions have the same names here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan.memory import ALIGNMENT
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.plan.schedule import RowGroup
from caffe_to_cmsis_nn.plan.stages import Reading, Stage


class Broken(UserError):
    """A plan that would give wrong results; a defect of this tool."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(
            f"layer '{layer}': the memory plan {reason}, so the code would compute something else. This is a defect of "
            "this tool: please report it with the prototxt and the command; --ram fast may work"
        )


class _Arena:
    """Bytes with a tag each, which says what was written there last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tags = np.zeros(size, np.int32)
        self._known: dict[Hashable, int] = {}

    def _tag(self, what: Hashable) -> int:
        return self._known.setdefault(what, len(self._known) + 1)

    def write(self, layer: str, start: int, size: int, what: Hashable) -> None:
        """Raises Broken outside of the arena."""
        if start < 0 or start + size > self.size:
            raise Broken(layer, f"writes the bytes {start} to {start + size} of an arena of {self.size}")
        self._tags[start : start + size] = self._tag(what)

    def check(self, layer: str, start: int, size: int, what: Hashable) -> None:
        """Raises Broken where something else was written since."""
        held = self._tags[max(start, 0) : start + size]
        if len(held) < size or (held != self._tag(what)).any():
            raise Broken(layer, f"overwrites {what} before it is read")

    def move(self, to: int, start: int, size: int) -> None:
        self._tags[to : to + size] = self._tags[start : start + size].copy()


class _Rows:
    """The rows first ... end - 1 of an image, `bytes` each, from the address `data` on: rows_t."""

    def __init__(self, data: int, size: int, first: int, end: int) -> None:
        self.data, self.bytes, self.first, self.end = data, size, first, end

    @property
    def size(self) -> int:
        return (self.end - self.first) * self.bytes

    def at(self, row: int) -> int:
        return self.data + (row - self.first) * self.bytes

    def drop(self, row: float) -> None:
        if row > self.first:
            count = int(min(row, self.end)) - self.first
            self.data += count * self.bytes
            self.first += count


class _SlidingRows:
    """Images in the order of their addresses, the last of which does not move: rows_arena_t."""

    def __init__(self, arena: _Arena, images: Sequence[_Rows]) -> None:
        self.arena, self.images, self.last = arena, images, len(images) - 1

    def _top(self, image: int) -> int:
        while image >= 0 and self.images[image].size == 0:
            image -= 1
        return 0 if image < 0 else self.images[image].data + self.images[image].size

    def _lift(self, image: int, limit: int, move: bool) -> int:
        """The bytes to move, or -1."""
        k, cost = image, 0
        while k < self.last and (self.images[k].size == 0 or self.images[k].data < limit):
            cost += self.images[k].size
            limit += self.images[k].size
            k += 1
        if self.images[k].data < limit:
            return -1
        while move and k > image:
            k -= 1
            limit -= self.images[k].size
            self._move(self.images[k], limit)
        return cost

    def _sink(self, image: int, limit: int, move: bool) -> int:
        """The bytes to move, or -1."""
        k, cost = image, 0
        while k >= 0 and (self.images[k].size == 0 or self.images[k].data + self.images[k].size > limit):
            cost += self.images[k].size
            limit -= self.images[k].size
            k -= 1
        if k < 0 and limit < 0:
            return -1
        while move and k < image:
            k += 1
            self._move(self.images[k], limit)
            limit += self.images[k].size
        return cost

    def _move(self, rows: _Rows, to: int) -> None:
        self.arena.move(to, rows.data, rows.size)
        rows.data = to

    def _room(self, image: int, size: int) -> int:
        top = self._top(image)
        up = self._lift(image + 1, top + size, False)
        following = next(k for k in range(image + 1, self.last + 1) if k == self.last or self.images[k].size)
        down = self._sink(image, self.images[following].data - size, False)
        if up >= 0 and (down < 0 or up <= down):
            self._lift(image + 1, top + size, True)
        else:
            if down < 0:  # neither is enough alone
                above = sum(self.images[k].size for k in range(image + 1, self.last))
                self._lift(image + 1, self.images[self.last].data - above, True)
            self._sink(image, self.images[following].data - size, True)
        return self._top(image)

    def add(self, image: int) -> None:
        rows = self.images[image]
        room = self._room(image, rows.bytes)
        if rows.end == rows.first:
            rows.data = room
        rows.end += 1

    def scratch(self, size: int, slack: int) -> int:
        room = self._room(self.last - 1, size + slack)
        return room + -room % ALIGNMENT


class _Group:
    """A row group that is run as templates/common/_row_group.c.jinja runs it, without its arithmetic."""

    def __init__(self, plan: RowPlan, group: RowGroup, arena: _Arena, names: Sequence[str]) -> None:
        self.stages, self.group, self.arena, self.names = plan.stages, group, arena, names
        count = len(group.stages)
        self.above = {b.stage: b.above for b in group.row_buffers}
        self.below = {b.stage: b.below for b in group.row_buffers}
        source, zeros = self.stages[group.source], group.row_buffers[-1]
        rows = zeros.above + source.rows + zeros.below
        images = [_Rows(0, self.stages[s].held_bytes, -self.above[s], -self.above[s]) for s in reversed(group.stages)]
        start = arena.size - rows * source.row_bytes
        images.append(_Rows(start, source.row_bytes, -zeros.above, source.rows + zeros.below))
        self.rows = _SlidingRows(arena, images)
        self.image = {s: count - 1 - k for k, s in enumerate(group.stages)}
        self.image[group.source] = count
        self.summed = dict.fromkeys((s for s in group.stages if self.stages[s].sums), 0)

    def _of(self, stage: int) -> _Rows:
        return self.rows.images[self.image[stage]]

    def run(self) -> None:
        source, held = self.group.source, self._of(self.group.source)
        for row in range(held.first, held.end):
            self.arena.write(self.names[source], held.at(row), held.bytes, (source, row))
        for s in self.group.stages:
            while self._of(s).end < 0:
                self._add(s, self._of(s).end)
        output = self.group.stages[-1]
        while self._of(output).end < self.stages[output].rows or self._sums_are_missing(output):
            if sum(self._step(s) for s in self.group.stages) == 0:
                raise Broken(self.names[output], "waits for rows that never come")
        self._check_rows(output, 0, self.stages[output].rows)
        if self._of(output).at(0) != 0:
            raise Broken(
                self.names[output], f"leaves the output at byte {self._of(output).at(0)} of the arena, not at 0"
            )

    def _sums_are_missing(self, s: int) -> bool:
        return s in self.summed and self.summed[s] < self.stages[self.stages[s].readings[0].source].rows

    def _add(self, s: int, row: int) -> None:
        self.rows.add(self.image[s])
        self.arena.write(self.names[s], self._of(s).at(row), self._of(s).bytes, (s, row))

    def _step(self, s: int) -> bool:
        """Whether the stage computed a row."""
        stage, rows = self.stages[s], self._of(s)
        if s in self.summed:
            source = stage.readings[0].source
            if not (self._sums_are_missing(s) and self._of(source).end > self.summed[s]):
                return False
            if self.summed[s] == 0:
                self._add(s, 0)
            self._check_rows(source, self.summed[s], self.summed[s] + 1)
            self.summed[s] += 1
        elif rows.end < stage.rows:
            row = rows.end
            totals = {r: self.stages[r.source].rows + self.below[r.source] for r in stage.readings}
            if any(self._of(r.source).end < min(r.awaited(row), total) for r, total in totals.items()):
                return False
            self._compute(s, stage, row)
        elif rows.end < stage.rows + self.below[s]:
            self._add(s, rows.end)
            return True
        else:
            return False
        for source in {r.source for r in stage.readings}:
            self._of(source).drop(min(self._wanted(s, r) for s, r in self._readers(source)))
        return True

    def _compute(self, s: int, stage: Stage, row: int) -> None:
        """Scratch memory and the row itself are written while the inputs are read."""
        self._add(s, row)
        if stage.scratch_bytes:
            scratch = self.rows.scratch(stage.scratch_bytes, self.group.slack)
            self.arena.write(self.names[s], scratch, stage.scratch_bytes, "scratch memory")
        for r in stage.readings:
            first = max(r.first(row), -self.above[r.source])
            last = min(r.first(row) + r.window, self.stages[r.source].rows + self.below[r.source])
            self._check_rows(r.source, first, last)
        if stage.scratch_bytes:
            self.arena.check(self.names[s], scratch, stage.scratch_bytes, "scratch memory")
        self._check_rows(s, row, row + 1)

    def _readers(self, source: int) -> list[tuple[int, Reading]]:
        return [(s, r) for s in self.group.stages for r in self.stages[s].readings if r.source == source]

    def _wanted(self, s: int, r: Reading) -> float:
        if s in self.summed:
            return self.summed[s]
        return r.first(self._of(s).end) if self._of(s).end < self.stages[s].rows else math.inf

    def _check_rows(self, s: int, first: int, end: int) -> None:
        rows = self._of(s)
        if first < rows.first or end > rows.end:
            raise Broken(self.names[s], f"drops the rows {first} to {end} before they are read")
        for row in range(first, end):
            self.arena.check(self.names[s], rows.at(row), rows.bytes, (s, row))


def _run_whole(network: QuantizedNetwork, plan: RowPlan, layers: Sequence[int], arena: _Arena) -> None:
    """One call for each layer."""
    memory = plan.memory
    for i in layers:
        layer = network.graph.layers[i]
        output, scratch = memory.outputs[layer.name], memory.scratch.get(layer.name)
        if scratch:
            arena.write(layer.name, scratch.offset, scratch.size, "scratch memory")
        sources = [(name, memory.outputs[name].offset, math.prod(s)) for name, s in zip(layer.inputs, layer.in_shapes)]
        for name, offset, size in sources:
            arena.check(layer.name, offset, size, name)
        arena.write(layer.name, output.offset, layer.out_size, layer.name)
        for name, offset, size in sources:
            if memory.in_place.get(layer.name) != name:
                arena.check(layer.name, offset, size, name)
        if scratch:
            arena.check(layer.name, scratch.offset, scratch.size, "scratch memory")


def prove(network: QuantizedNetwork, plan: RowPlan) -> None:
    """Raises Broken where the generated code would overwrite something that it still needs."""
    graph, memory = network.graph, plan.memory
    names = [graph.layers[stage.layers[-1]].name for stage in plan.stages]
    arena = _Arena(memory.arena_bytes)
    at_start = ""  # what the last row group has left at the arena's start
    for section in plan.sections:
        if section.group:
            source = names[section.group.source]
            offset = 0 if at_start == source else memory.outputs[source].offset
            arena.check(source, offset, plan.stages[section.group.source].row_bytes, source)
            _Group(plan, section.group, arena, names).run()
            at_start = names[section.group.stages[-1]]
            size = plan.stages[section.group.stages[-1]].rows * plan.stages[section.group.stages[-1]].row_bytes
            arena.write(at_start, 0, size, at_start)
        else:
            layers = sorted(i for s in section.stages for i in plan.stages[s].layers)
            _run_whole(network, plan, layers, arena)
    for layer in graph.output_layers:
        offset = 0 if layer.name == at_start else memory.outputs[layer.name].offset
        arena.check(layer.name, offset, layer.out_size, layer.name)
