# SPDX-License-Identifier: Apache-2.0
"""Chooses which layers run row by row, to save RAM.

A network is cut where a single tensor is alive. Between two cuts, its layers run either whole, with one call each, or
as a row group: in turn, each layer computes its next row as soon as its input rows are there, and rows that no layer
still needs are freed. No row is computed twice. The row buffers slide through one arena (templates/common/rows_q7.h),
so a row group takes exactly as many bytes as are alive at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import memory
from caffe_to_cmsis_nn.plan.memory import MemoryPlan
from caffe_to_cmsis_nn.plan.schedule import RowGroup, Schedule
from caffe_to_cmsis_nn.plan.stages import Stage, find_stages


@dataclass(frozen=True)
class Section:
    """The stages between two cuts, as a row group, or whole if `group` is None."""

    stages: tuple[int, ...]
    group: RowGroup | None = None


# --- choice of sections -----------------------------------------------------------------------------------------------


def _cuts(stages: Sequence[Stage]) -> list[int]:
    """The positions where a network can be cut: later stages only read the stage right before the cut.

    Outputs of the network stay alive to the end.
    """
    last_reader = list(range(len(stages)))
    for i, stage in enumerate(stages):
        for reading in stage.readings:
            last_reader[reading.source] = i
    last_reader = [len(stages) if stage.output else last for stage, last in zip(stages, last_reader)]
    cuts, alive_until = [0], 0
    for i in range(1, len(stages)):
        if alive_until < i:
            cuts.append(i)
        alive_until = max(alive_until, last_reader[i - 1])
    return [*cuts, len(stages)]


FEW_CUTS = 4  # that the first schedule spans
MOST_CUTS = 40  # between sections: the time for a plan depends on their number


def _few(cuts: Sequence[int], stages: Sequence[Stage]) -> list[int]:
    """Drops cuts until at most MOST_CUTS are left: first those at large tensors, close to other cuts."""
    kept = [*cuts]
    while len(kept) > MOST_CUTS:
        sizes = [math.inf, *(stages[cut - 1].rows * stages[cut - 1].row_bytes for cut in kept[1:-1]), math.inf]
        inner = range(1, len(kept) - 1)
        large = [i for i in inner if sizes[i] >= max(s for s in sizes[i - 1 : i + 2] if s < math.inf)] or inner
        del kept[min(large, key=lambda i: kept[i + 1] - kept[i - 1])]
    return kept


class Planner:
    """Divides a network into sections, for the least memory or the fewest single rows within a memory budget."""

    def __init__(self, network: QuantizedNetwork, promised_only: bool = False) -> None:
        self.network, self.promised_only = network, promised_only
        self.stages = find_stages(network, promised_only)
        self.cuts = _few(_cuts(self.stages), self.stages)
        self._known: dict[range, Schedule] = {}

    def layers(self, stages: Sequence[int]) -> range:
        """The layers (indices) of the stages between two cuts, which are consecutive."""
        found = sorted(layer for i in stages for layer in self.stages[i].layers)
        return range(found[0], found[-1] + 1)

    def whole_bytes(self, stages: Sequence[int]) -> int:
        """The arena's bytes if the stages run whole."""
        part = self.layers(stages)
        network = self.network
        return memory.plan(network.graph, network.layers, network.target, self.promised_only, part).arena_bytes

    def memory(self, sections: Sequence[Section]) -> MemoryPlan:
        """The memory plan of the sections that run whole, in an arena that is large enough for all row groups."""
        network, plans = self.network, []
        for section in sections:
            if not section.group:
                part = self.layers(section.stages)
                plans.append(memory.plan(network.graph, network.layers, network.target, self.promised_only, part))
        least = max((section.group.bytes for section in sections if section.group), default=0)
        found = memory.join(plans, least)
        following = sections[1:2]
        if following and following[0].group and following[0].group.source == 0:  # place the input where the group reads
            stage, size = self.stages[0], network.graph.input.out_size
            offset = found.arena_bytes - following[0].group.row_buffers[-1].below * stage.row_bytes - size
            for layer in stage.layers:
                buffer = found.outputs[network.graph.layers[layer].name]
                buffer.size, buffer.offset = size, offset
        return found

    def row_groups(self, start: int, most: float = math.inf) -> Iterator[tuple[int, RowGroup]]:
        """The row groups from a cut that take at most `most` bytes, each with the index of the cut where it ends."""
        first, source = self.cuts[start], max(self.cuts[start] - 1, 0)
        if self.stages[first].form is None or self.stages[source].rows == 1:
            return
        stops = {cut - first: i for i, cut in enumerate(self.cuts) if cut > first}
        length = 0
        for schedule in self._schedules(start):
            for count, size, inner in schedule.groups:
                if count > length and count in stops and 0 < size <= most:
                    yield stops[count], schedule.group(count, size)
                if inner > most:  # longer groups only take more
                    return
            length = len(schedule.members)

    def _schedules(self, start: int) -> Iterator[Schedule]:
        """Schedules of increasing length, since most groups exceed the memory before the network's end."""
        first, source = self.cuts[start], max(self.cuts[start] - 1, 0)
        last = len(self.stages) - 1
        alone = (
            i for i in range(first, last + 1) if self.stages[i].form is None or (self.stages[i].output and i < last)
        )
        end = next(alone, last + 1)
        end = next((i + 1 for i in range(first, end) if self.stages[i].sums), end)
        stops = [cut for cut in self.cuts[start + 1 :] if cut <= end]
        number = FEW_CUTS
        while stops:
            members = range(first, stops[min(number, len(stops)) - 1])
            if members not in self._known:
                self._known[members] = Schedule(self.stages, members, source)
            yield self._known[members]
            if number >= len(stops):
                return
            number *= 2

    def least(self) -> int:
        """The smallest arena of any division into sections, in bytes."""
        count = len(self.cuts)
        whole = [self.whole_bytes(range(self.cuts[i], self.cuts[i + 1])) for i in range(count - 1)]
        best = [0.0, *[math.inf] * (count - 1)]
        bound = max(whole)
        for start in range(count - 1):
            best[start + 1] = min(best[start + 1], max(best[start], whole[start]))
            for stop, group in self.row_groups(start, bound):
                best[stop] = min(best[stop], max(best[start], group.bytes))
        return int(best[-1])

    def cheapest(self, budget: int) -> list[Section]:
        """Sections of at most `budget` bytes each, with the fewest rows in row groups."""
        count = len(self.cuts)
        best: list[tuple[float, int, RowGroup | None]] = [(0, 0, None), *[(math.inf, 0, None)] * (count - 1)]
        for start in range(count - 1):
            cost = best[start][0]
            if math.isinf(cost):
                continue
            if cost < best[start + 1][0] and self.whole_bytes(range(*self.cuts[start : start + 2])) <= budget:
                best[start + 1] = (cost, start, None)
            for stop, group in self.row_groups(start, budget):
                rows = sum(self.stages[i].rows for i in group.stages)
                if cost + rows < best[stop][0]:
                    best[stop] = (cost + rows, start, group)
        return self._sections(best)

    def plan(self, sections: Sequence[Section]) -> RowPlan:
        """The sections with their memory; merges neighbours that run whole, which then share memory better."""
        joined: list[Section] = []
        for section in sections:
            whole = joined and not (section.group or joined[-1].group)
            joined.append(Section((*joined.pop().stages, *section.stages)) if whole else section)
        return RowPlan(tuple(self.stages), tuple(joined), self.memory(joined))

    def _sections(self, best: Sequence[tuple[float, int, RowGroup | None]]) -> list[Section]:
        """Follows the best choices back from the end."""
        found: list[Section] = []
        stop = len(self.cuts) - 1
        while stop:
            _, start, group = best[stop]
            stages = tuple(range(self.cuts[start], self.cuts[stop]))
            found.append(Section(stages, group))
            stop = start
        return found[::-1]


@dataclass(frozen=True)
class RowPlan:
    """The sections of a network, and the memory of those that run whole.

    The output of a row group lies at the arena's start; its source lies at the arena's end.
    """

    stages: tuple[Stage, ...]
    sections: tuple[Section, ...]
    memory: MemoryPlan
    least_bytes: int = 0  # arena of a plan with `--ram least`

    def lower(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """The network with kernels for rows in row groups, and their windows trimmed."""
        layers, integers = list(network.graph.layers), list(network.layers)
        for group in self.row_groups:
            for stage in (self.stages[i] for i in group.stages):
                first = stage.layers[0]
                assert stage.form and stage.layer
                layers[first] = stage.layer
                integers[first] = replace(integers[first], kernel=stage.form.kernel, integers=stage.integers)
        return replace(network, graph=replace(network.graph, layers=tuple(layers)), layers=tuple(integers))

    @property
    def row_groups(self) -> tuple[RowGroup, ...]:
        return tuple(section.group for section in self.sections if section.group)


def arena_bytes(plan: RowPlan) -> int:
    """The bytes of the arena for all sections."""
    return plan.memory.arena_bytes


def plan(network: QuantizedNetwork, promised_only: bool = False, ram: int | str = choices.RAM_FAST) -> RowPlan:
    """A plan for `ram`: one call per layer (fast), the fewest bytes (least), or the fastest within a number of bytes.

    Raises UserError that names the fewest bytes if the number is too small. For `promised_only`, see `memory.plan`.
    """
    planner = Planner(network, promised_only)
    whole = planner.plan([Section(tuple(range(len(planner.stages))))])
    # Merging neighbours that run whole can leave gaps, so the result may exceed the planner's minimum.
    least = min(planner.plan(planner.cheapest(planner.least())), whole, key=arena_bytes)
    if ram == choices.RAM_FAST or (isinstance(ram, int) and arena_bytes(whole) <= ram):
        found = whole
    elif isinstance(ram, int):
        if ram < arena_bytes(least):
            raise UserError(f"--ram {ram}: this network's layers need at least {arena_bytes(least)} bytes")
        found = planner.plan(planner.cheapest(ram))
        found = found if arena_bytes(found) <= ram else least
    else:
        found = least
    return replace(found, least_bytes=arena_bytes(least))
