# SPDX-License-Identifier: Apache-2.0
"""Which layers run row by row, so that of each tensor in between only the rows that are still needed are in memory.

A network is cut where one tensor alone is alive. Between two cuts its layers run whole, one call each, or as a run: in
turn, each makes its next row as soon as the rows are there that it reads, and rows that no layer needs any more give
their memory to others. No row is computed twice. Windows of rows slide through one arena (templates/common/rows_q7.h),
so that a run takes as many bytes as are alive at once, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from q7.codegen import memory
from q7.codegen.memory import MemoryPlan
from q7.errors import Q7Error
from q7.kernels.by_rows import RowForm, row_form
from q7.layers.base import Layer
from q7.layers.windowed import Convolution
from q7.network.quantized import QuantizedNetwork

ALIGNMENT = 4  # bytes, of scratch memory and of the arena


def aligned(size: int) -> int:
    """Bytes, rounded up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Reading:
    """A stage's row r reads the rows r * stride - pad ... + window - 1 of the stage `source`.

    It waits until the row r * stride + ahead - 1 is there, or the last one.
    """

    source: int
    window: int
    stride: int
    pad: int
    ahead: int

    def first(self, row: int) -> int:
        return row * self.stride - self.pad

    def awaited(self, row: int) -> int:
        """The end of the rows that must be there."""
        return row * self.stride + self.ahead


@dataclass(frozen=True)
class Stage:
    """A tensor, and the layers (indices) that make its rows: the first computes a row, the others work in its place."""

    layers: tuple[int, ...]
    rows: int
    row_bytes: int
    readings: tuple[Reading, ...]  # of the first layer, then of additions that work in place
    scratch_bytes: int = 0
    form: RowForm | None = None  # of the first layer; None where the tensor can only be made whole
    layer: Layer | None = None  # the first, and what it holds, as it is computed by rows
    integers: Any = None

    @property
    def sums(self) -> bool:
        return self.form is not None and self.form.sums

    @property
    def held_bytes(self) -> int:
        """Of a row in memory: sums have 32 bits."""
        return 4 * self.row_bytes if self.sums else self.row_bytes


@dataclass(frozen=True)
class Window:
    """The rows of a stage in a run: how many rows of zeros lie above and below, for kernels that do not check rows."""

    stage: int
    above: int = 0
    below: int = 0


@dataclass(frozen=True)
class Run:
    """Stages that run row by row; windows in the order of `stages`, the one of what the run reads at the end."""

    stages: tuple[int, ...]
    source: int
    windows: tuple[Window, ...]
    bytes: int  # that are alive at most, the source included
    most_rows: tuple[int, ...]  # that each window holds at most


@dataclass(frozen=True)
class Section:
    """Layers between two cuts: as a run, or whole."""

    stages: tuple[int, ...]
    run: Run | None = None


# --- from layers to stages --------------------------------------------------------------------------------------------


def _shape(layer: Layer) -> tuple[int, int]:
    """Rows, and bytes of each; a vector is one row."""
    shape = layer.out_shape
    return (shape[1], shape[0] * shape[2]) if len(shape) == 3 else (1, shape[0])


def _geometry(layer: Any) -> tuple[int, int, int]:
    """Window, stride and padding in rows."""
    return (layer.window[0], layer.stride[0], layer.pad[0]) if hasattr(layer, "window") else (1, 1, 0)


@dataclass(frozen=True, eq=False)
class _Trimmed(Convolution):
    """A convolution without the rows of its window that have no weights; its output is what it was."""

    full_shape: tuple[int, ...] = ()

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.full_shape


def _trim(layer: Layer, integers: Any) -> tuple[Layer, Any]:
    """Without the first and last rows of the window where all weights are zero, the first as far as they are padded.

    Some converters make such rows of a padding that differs above and below.
    """
    if not isinstance(layer, Convolution):
        return layer, integers
    used = np.flatnonzero(integers.weights.any(axis=(0, 1, 3)))
    if not used.size:
        return layer, integers
    top, end = min(int(used[0]), layer.pad[0]), int(used[-1]) + 1
    if (top, end) == (0, layer.window[0]):
        return layer, integers
    known = {field.name: getattr(layer, field.name) for field in fields(Convolution)}
    known.update(window=(end - top, layer.window[1]), pad=(layer.pad[0] - top, layer.pad[1]))
    return _Trimmed(**known, full_shape=layer.out_shape), replace(integers, weights=integers.weights[:, :, top:end])


class _Stages:
    """Stages in an order in which each comes after those that it reads."""

    def __init__(self, network: QuantizedNetwork, promised_only: bool) -> None:
        self.network, self.promised_only = network, promised_only
        self.layers = network.graph.layers
        self.index = {layer.name: i for i, layer in enumerate(self.layers)}
        self.readers = {name: [layer for layer in self.layers if name in layer.inputs] for name in self.index}
        self.stages: dict[int, Stage] = {}  # by the layer that makes the tensor; readings name such layers
        self.owner: dict[str, int] = {}  # of each layer's output
        for i, layer in enumerate(self.layers):
            self._add(i, layer)

    def _add(self, i: int, layer: Layer) -> None:
        kernel = self.network.layers[i].kernel
        in_place = bool(layer.inputs) and layer.elementwise and kernel.in_place(layer, self.promised_only)
        host = self._host(layer) if in_place else None
        if host is not None:
            stage = self.stages.pop(host)
            names = dict.fromkeys(name for name in layer.inputs if self.owner[name] != host)
            others = tuple(self._reading(name, 1, 1, 0) for name in names)
            self.stages[host] = replace(stage, layers=(*stage.layers, i), readings=(*stage.readings, *others))
            self.owner[layer.name] = host
            return
        rows, row_bytes = _shape(layer)
        target = self.network.target
        form = row_form(kernel, layer, target) if rows > 1 or len(layer.in_shape) == 3 else None
        integers = self.network.layers[i].integers
        if form:
            layer, integers = _trim(layer, integers)
        window, stride, pad = _geometry(layer)
        self.stages[i] = Stage(
            (i,),
            rows,
            row_bytes,
            tuple(self._reading(name, window, stride, pad) for name in layer.inputs),
            aligned((form.kernel if form else kernel).scratch_bytes(layer, target)),
            form,
            layer,
            integers,
        )
        self.owner[layer.name] = i

    def _reading(self, name: str, window: int, stride: int, pad: int) -> Reading:
        return Reading(self.owner[name], window, stride, pad, window - pad)

    def _host(self, layer: Layer) -> int | None:
        """The stage in whose rows the layer works: of inputs that it alone reads, the one that looks furthest ahead.

        An addition is then made as soon as that row is there.
        """
        alone = [self.owner[name] for name in layer.inputs if len(self.readers[name]) == 1]
        if len(layer.inputs) > 1:
            made = [host for host in alone if self.stages[host].readings and not self.stages[host].sums]
            return max(made, key=lambda host: (self.stages[host].readings[0].ahead, host), default=None)
        return alone[0] if alone else None

    def ordered(self) -> list[Stage]:
        """With readings of indices into the list, and readers of one tensor that wait for each other."""
        order: list[int] = []

        def visit(key: int) -> None:
            if key not in order:
                for reading in self.stages[key].readings:
                    visit(reading.source)
                order.append(key)

        for key in sorted(self.stages, key=lambda key: self.stages[key].layers[-1]):
            visit(key)
        place = {key: i for i, key in enumerate(order)}
        stages = [self.stages[key] for key in order]
        # Layers that read one tensor at one pace go on together: what the quicker one makes would only have to wait.
        ahead: dict[tuple[int, int, int], int] = {}
        for stage in stages:
            for r in stage.readings:
                group = (r.source, r.stride, stage.rows)
                ahead[group] = max(ahead.get(group, 0), r.ahead)
        return [
            replace(
                stage,
                readings=tuple(
                    replace(r, source=place[r.source], ahead=ahead[r.source, r.stride, stage.rows])
                    for r in stage.readings
                ),
            )
            for stage in stages
        ]


def find_stages(network: QuantizedNetwork, promised_only: bool = False) -> list[Stage]:
    """The tensors of a network that take memory of their own, in an order in which they can be made."""
    return _Stages(network, promised_only).ordered()


# --- what a run takes -------------------------------------------------------------------------------------------------


def _windows(stages: Sequence[Stage], members: Sequence[int], source: int) -> tuple[Window, ...]:
    """Of the members, and of the source at the end."""
    windows = []
    for index in [*(i for i in members if i != source), source]:
        above = below = 0
        for reader in (stages[i] for i in members):
            for r in reader.readings[:1]:
                if r.source == index and reader.form and not reader.form.checks_rows:
                    above = max(above, r.pad if r.pad > 1 else 0)
                    below = max(below, r.first(reader.rows - 1) + r.window - stages[index].rows)
        windows.append(Window(index, above if index != source else 0, below))
    return tuple(windows)


class _Simulation:
    """The rows that are in memory while a run goes on, as the generated loop has them."""

    def __init__(self, stages: Sequence[Stage], members: Sequence[int], source: int) -> None:
        self.stages, self.members, self.source = stages, members, source
        self.windows = {w.stage: w for w in _windows(stages, members, source)}
        self.first = {i: -w.above for i, w in self.windows.items()}
        self.end = dict.fromkeys(self.windows, 0)
        self.summed = dict.fromkeys(members, 0)
        self.readings: dict[int, list[tuple[int, Reading]]] = {i: [] for i in self.windows}
        for i in members:
            for reading in stages[i].readings:
                self.readings[reading.source].append((i, reading))
        self.most = dict.fromkeys(self.windows, 0)
        self.peak = self.inner_peak = 0  # bytes; the latter without the output, so that it grows with the run
        odd = any(stages[i].held_bytes % ALIGNMENT for i in self.windows)
        self.slack = ALIGNMENT - 1 if odd else 0  # to align scratch memory
        if source not in members:
            self.end[source] = stages[source].rows + self.windows[source].below
        # The source lies whole at the arena's end from the start.
        self.source_end = stages[source].rows + self.windows[source].below

    def _bytes(self, i: int) -> int:
        if i == self.source:
            return (self.source_end - self.first[i]) * self.stages[i].row_bytes
        rows = self.end[i] - self.first[i]
        return max(rows, int(self.summed.get(i, 0) > 0)) * self.stages[i].held_bytes

    def _note(self, scratch: int = 0) -> None:
        alive = sum(map(self._bytes, self.windows)) + (scratch + self.slack if scratch else 0)
        self.peak = max(self.peak, alive)
        self.inner_peak = max(self.inner_peak, alive - self._bytes(self.members[-1]))
        for i in self.windows:
            self.most[i] = max(self.most[i], self.end[i] - self.first[i])

    def _due(self, i: int) -> bool:
        stage, row = self.stages[i], self.end[i]
        if stage.sums:
            return self.end[stage.readings[0].source] > self.summed[i]
        return all(
            self.end[r.source] >= min(r.awaited(row), self.stages[r.source].rows + self.windows[r.source].below)
            for r in stage.readings
        )

    def _drop(self, i: int) -> None:
        """Rows that no reader needs any more."""
        wanted = [self._wanted(reader, reading) for reader, reading in self.readings[i]]
        self.first[i] = max(self.first[i], min(*wanted, self.end[i]))

    def _wanted(self, reader: int, reading: Reading) -> int:
        stage = self.stages[reader]
        if self.end[reader] >= stage.rows:
            return self.end[reading.source]
        return self.summed[reader] if stage.sums else reading.first(self.end[reader])

    def _step(self, i: int) -> bool:
        stage, window = self.stages[i], self.windows[i]
        if self.end[i] >= stage.rows:
            if self.end[i] < stage.rows + window.below:
                self.end[i] += 1
                if i != self.source:
                    self._note()
                return True
            return False
        if not self._due(i):
            return False
        if stage.sums:
            self.summed[i] += 1
            self.end[i] = int(self.summed[i] == self.stages[stage.readings[0].source].rows)
        else:
            self.end[i] += 1
        self._note(stage.scratch_bytes)
        for source in {r.source for r in stage.readings}:
            self._drop(source)
        return True

    def result(self) -> Run:
        windows = tuple(self.windows.values())
        most = tuple(self.most[w.stage] for w in windows)
        return Run(tuple(self.members), self.source, windows, aligned(self.peak), most)

    def run(self, most: float = math.inf) -> bool:
        """To the end, or until more bytes than `most` are alive; whether it is at its end, with all rows computed."""
        self._note()
        output = self.members[-1]
        while self.end[output] < self.stages[output].rows:
            moved = [self._step(i) for i in self.members]
            assert any(moved), "a stage waits for rows that never come"
            if self.peak > most:
                return False
        # Rows that nobody reads would be left out, and their layer's checksum with them.
        return all(self.end[i] >= self.stages[i].rows for i in self.members)


# --- which sections ---------------------------------------------------------------------------------------------------


def _cuts(stages: Sequence[Stage]) -> list[int]:
    """Positions between which sections lie: where no stage reads another one than the last before them."""
    last_reader = list(range(len(stages)))
    for i, stage in enumerate(stages):
        for reading in stage.readings:
            last_reader[reading.source] = i
    cuts, alive_until = [0], 0
    for i in range(1, len(stages)):
        if alive_until < i:  # nothing before the last stage is read later
            cuts.append(i)
        alive_until = max(alive_until, last_reader[i - 1])
    return [*cuts, len(stages)]


class Planner:
    """Sections of a network that take the least memory, or the fewest rows for a number of bytes."""

    def __init__(self, network: QuantizedNetwork, promised_only: bool = False) -> None:
        self.network, self.promised_only = network, promised_only
        self.stages = find_stages(network, promised_only)
        self.cuts = _cuts(self.stages)

    def layers(self, stages: Sequence[int]) -> range:
        """Of the network: those between two cuts follow each other."""
        found = sorted(layer for i in stages for layer in self.stages[i].layers)
        return range(found[0], found[-1] + 1)

    def whole_bytes(self, stages: Sequence[int]) -> int:
        """The arena of layers that run whole."""
        part = self.layers(stages)
        network = self.network
        return memory.plan(network.graph, network.layers, network.target, self.promised_only, part).arena_bytes

    def memory(self, sections: Sequence[Section]) -> MemoryPlan:
        """Of the sections that run whole, in an arena that the runs fit into, too."""
        network, plans = self.network, []
        for section in sections:
            if not section.run:
                part = self.layers(section.stages)
                plans.append(memory.plan(network.graph, network.layers, network.target, self.promised_only, part))
        least = max((section.run.bytes for section in sections if section.run), default=0)
        found = memory.join(plans, least)
        following = sections[1:2]
        if following and following[0].run and following[0].run.source == 0:  # it lies where the run reads it
            stage, size = self.stages[0], network.graph.input.out_size
            offset = found.arena_bytes - following[0].run.windows[-1].below * stage.row_bytes - size
            for layer in stage.layers:
                buffer = found.outputs[network.graph.layers[layer].name]
                buffer.size, buffer.offset = size, offset
        return found

    def runs(
        self, start: int, most: float = math.inf, limits: Callable[[int], float] = lambda stop: math.inf
    ) -> Iterator[tuple[int, Run]]:
        """The runs that begin at a cut, with the index of the cut where they end, which may limit their bytes.

        Longer ones are not looked at once `most` bytes are not enough even without the output.
        """
        first = self.cuts[start]
        for stop in range(start + 1, len(self.cuts)):
            members = range(first, self.cuts[stop])
            if any(self.stages[i].form is None for i in members):
                return
            source = max(first - 1, 0)
            if members == range(1) or self.stages[source].rows == 1:
                continue
            simulation = _Simulation(self.stages, members, source)
            if simulation.run(limits(stop)):
                yield stop, simulation.result()
            elif simulation.inner_peak > most:
                return
            if self.stages[members[-1]].sums:
                return

    def least(self) -> int:
        """The fewest bytes that any sections take."""
        count = len(self.cuts)
        whole = [self.whole_bytes(range(self.cuts[i], self.cuts[i + 1])) for i in range(count - 1)]
        best = [0.0, *[math.inf] * (count - 1)]
        bound = max(whole)
        for start in range(count - 1):
            best[start + 1] = min(best[start + 1], max(best[start], whole[start]))
            for stop, run in self.runs(start, bound, lambda stop: best[stop] - 1):
                best[stop] = min(best[stop], max(best[start], run.bytes))
        return int(best[-1])

    def cheapest(self, budget: int) -> list[Section]:
        """Sections of which none takes more than `budget` bytes, with the fewest rows that are computed alone."""
        count = len(self.cuts)
        best: list[tuple[float, int, Run | None]] = [(0, 0, None), *[(math.inf, 0, None)] * (count - 1)]
        for start in range(count - 1):
            cost = best[start][0]
            if math.isinf(cost):
                continue
            if cost < best[start + 1][0] and self.whole_bytes(range(*self.cuts[start : start + 2])) <= budget:
                best[start + 1] = (cost, start, None)
            for stop, run in self.runs(start, budget, lambda stop: budget):
                rows = sum(self.stages[i].rows for i in run.stages)
                if cost + rows < best[stop][0]:
                    best[stop] = (cost + rows, start, run)
        return self._sections(best)

    def plan(self, sections: Sequence[Section], least_bytes: int = 0) -> RowPlan:
        """The sections with the memory that they take; neighbours that run whole share it better as one."""
        joined: list[Section] = []
        for section in sections:
            whole = joined and not (section.run or joined[-1].run)
            joined.append(Section((*joined.pop().stages, *section.stages)) if whole else section)
        return RowPlan(tuple(self.stages), tuple(joined), self.memory(joined), least_bytes)

    def _sections(self, best: Sequence[tuple[float, int, Run | None]]) -> list[Section]:
        """Back from the end."""
        found: list[Section] = []
        stop = len(self.cuts) - 1
        while stop:
            _, start, run = best[stop]
            stages = tuple(range(self.cuts[start], self.cuts[stop]))
            found.append(Section(stages, run))
            stop = start
        return found[::-1]


@dataclass(frozen=True)
class RowPlan:
    """Which layers run whole and which row by row, and the memory of those that run whole.

    The output of a run lies at the arena's start; what a run reads at its end.
    """

    stages: tuple[Stage, ...]
    sections: tuple[Section, ...]
    memory: MemoryPlan
    least_bytes: int  # that any plan takes

    def lower(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """The network with the kernels that compute rows, and without weights that those can do without."""
        layers, integers = list(network.graph.layers), list(network.layers)
        for run in self.runs:
            for stage in (self.stages[i] for i in run.stages):
                first = stage.layers[0]
                assert stage.form and stage.layer
                layers[first] = stage.layer
                integers[first] = replace(integers[first], kernel=stage.form.kernel, integers=stage.integers)
        return replace(network, graph=replace(network.graph, layers=tuple(layers)), layers=tuple(integers))

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(section.run for section in self.sections if section.run)


FAST, LEAST = "fast", "least"


def plan(network: QuantizedNetwork, promised_only: bool = False, ram: int | str = FAST) -> RowPlan:
    """One call for each layer (fast), the fewest bytes (least), or the fastest plan that takes so many bytes.

    Raises Q7Error that names the fewest bytes where that is more than the number given.
    """
    planner = Planner(network, promised_only)
    every, least = tuple(range(len(planner.stages))), planner.least()
    if ram == FAST or (isinstance(ram, int) and planner.whole_bytes(every) <= ram):
        sections = [Section(every)]
    elif isinstance(ram, int) and ram < least:
        raise Q7Error(f"--ram {ram}: this network's layers take {least} bytes at least")
    else:
        sections = planner.cheapest(ram if isinstance(ram, int) else least)
    return planner.plan(sections, least)
