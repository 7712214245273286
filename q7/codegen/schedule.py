# SPDX-License-Identifier: Apache-2.0
"""The rows that are in memory while stages run row by row, in the order in which the generated loop computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from q7.codegen.stages import ALIGNMENT, Stage, aligned


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


class Schedule:
    """The rows in memory at each step, for runs that begin with the same stage.

    What a stage does depends on those before it alone, so that one schedule tells about all runs that end earlier.
    """

    def __init__(self, stages: Sequence[Stage], members: range, source: int) -> None:
        self.stages, self.members, self.source = stages, members, source
        self._columns = {index: column for column, index in enumerate(members)}
        self._columns[source] = len(members)
        self._own = [stages[i] for i in (*members, source)]
        self._readers = [
            [(self._columns[i], r) for i in members for r in stages[i].readings if r.source == index]
            for index in (*members, source)
        ]
        self.above, self.below = np.zeros((2, len(self._own)), int)
        for column, readers in enumerate(self._readers):
            for reader, r in readers:
                stage = self._own[reader]
                if r is stage.readings[0] and stage.form and not stage.form.checks_rows:
                    self.above[column] = max(self.above[column], r.pad if r.pad > 1 else 0)
                    self.below[column] = max(
                        self.below[column], r.first(stage.rows - 1) + r.window - self._own[column].rows
                    )
        self.above[-1] = 0  # the source lies at the arena's end as it is
        self._simulate()

    def _simulate(self) -> None:
        """Fills, for each step, the column that computes a row, and the rows of each column in memory."""
        count = len(self.members)
        rows = [stage.rows for stage in self._own]
        total = [r + int(b) for r, b in zip(rows, self.below)]
        first, end = [-int(a) for a in self.above], [0] * (count + 1)
        end[count] = total[count]
        summed = [0] * (count + 1)
        finished = [0] * count
        steps: list[int] = []
        changes: list[tuple[int, int, int]] = []  # step, column, rows
        sources = [[self._columns[r.source] for r in stage.readings] for stage in self._own[:count]]
        distinct = [[*dict.fromkeys(found)] for found in sources]

        def wanted(reader: int, column: int, stride: int, pad: int) -> int:
            if end[reader] >= rows[reader]:
                return end[column]
            return summed[reader] if self._own[reader].sums else end[reader] * stride - pad

        readers = [[(reader, r.stride, r.pad) for reader, r in found] for found in self._readers]
        awaited = [
            [(self._columns[r.source], r.stride, r.ahead) for r in stage.readings] for stage in self._own[:count]
        ]
        pending = list(range(count))
        while pending:
            moved = False
            for column in pending:
                row = end[column]
                if row >= rows[column]:  # a row of zeros
                    end[column] += 1
                    changes.append((len(steps), column, 1))
                    steps.append(-1)
                    moved = True
                    continue
                if self._own[column].sums:
                    (source,) = distinct[column]
                    if end[source] <= summed[column]:
                        continue
                    if not summed[column]:
                        changes.append((len(steps), column, 1))
                    summed[column] += 1
                    end[column] = int(summed[column] == rows[source])
                elif any(end[s] < min(row * stride + ahead, total[s]) for s, stride, ahead in awaited[column]):
                    continue
                else:
                    end[column] += 1
                    changes.append((len(steps), column, 1))
                if end[column] == rows[column]:
                    finished[column] = len(steps)
                steps.append(column)
                moved = True
                for s in distinct[column]:
                    least = min(wanted(reader, s, stride, pad) for reader, stride, pad in readers[s])
                    dropped = min(least, end[s]) - first[s]
                    if dropped > 0:
                        first[s] += dropped
                        changes.append((len(steps), s, -dropped))
            pending = [column for column in pending if end[column] < total[column]]
            assert moved or not pending, "a stage waits for rows that never come"
        self.finished = np.array(finished)
        self._steps = np.array(steps)
        held = np.zeros((len(steps) + 1, count + 1), int)
        held[0] = [*self.above[:count], total[count]]
        for step, column, change in changes:
            held[step, column] += change
        self.held = held.cumsum(axis=0)[:-1]

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Of the runs that end with each member: how many members, the bytes alive at most, and without the output.

        A run whose members have rows that nobody reads takes 0 bytes: its loop would end before they are computed.
        """
        count = len(self.members)
        sizes = np.array([stage.held_bytes for stage in self._own])
        sizes[-1] = self._own[-1].row_bytes
        alive = self.held * sizes
        odd = (sizes % ALIGNMENT).any()
        scratch = [stage.scratch_bytes + (ALIGNMENT - 1) * odd * (stage.scratch_bytes > 0) for stage in self._own]
        own_scratch = np.where(self._steps >= 0, np.array(scratch)[self._steps], 0)
        inner = alive[:, -1:] + np.cumsum(alive[:, :count], axis=1) - alive[:, :count]
        found = []
        for k in range(count):
            steps = self._steps[: self.finished[k] + 1]
            in_run = inner[: len(steps), k] + np.where(steps <= k, own_scratch[: len(steps)], 0)
            made = np.cumsum(steps == k) * sizes[k] if not self._own[k].sums else alive[: len(steps), k]
            complete = self.finished[k] >= self.finished[: k + 1].max()
            found.append((k + 1, int((in_run + made).max()) if complete else 0, int(in_run.max())))
        return found

    def run(self, count: int, size: int) -> Run:
        """The run of so many members, which takes so many bytes."""
        columns = [*range(count), len(self.members)]
        most = self.held[: self.finished[count - 1] + 1, columns].max(axis=0)
        most[count - 1] = self._own[count - 1].rows
        windows = [Window((*self.members, self.source)[c], int(self.above[c]), int(self.below[c])) for c in columns]
        windows[count - 1] = Window(windows[count - 1].stage)
        return Run(tuple(self.members[:count]), self.source, tuple(windows), aligned(size), tuple(map(int, most)))
