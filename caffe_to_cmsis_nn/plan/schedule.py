# SPDX-License-Identifier: Apache-2.0
"""Simulates the generated loop of a row group, to find the rows in memory at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from caffe_to_cmsis_nn.plan.memory import ALIGNMENT, aligned
from caffe_to_cmsis_nn.plan.stages import Stage


@dataclass(frozen=True)
class RowBuffer:
    """A stage in a row group, and the rows of zeros above and below it for kernels that do not check rows."""

    stage: int
    above: int = 0
    below: int = 0


@dataclass(frozen=True)
class RowGroup:
    """Stages that run row by row; row buffers in the order of `stages`, then the one of what the group reads."""

    stages: tuple[int, ...]
    source: int
    row_buffers: tuple[RowBuffer, ...]
    bytes: int  # most that are alive at once, source included
    slack: int  # bytes to align scratch memory if rows are not aligned
    most_rows: tuple[int, ...]  # most that each row buffer holds at once


class Schedule:
    """The rows in memory at each step, for groups that begin with the same stage.

    A stage only depends on those before it, so one schedule covers all groups that end earlier.
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
        self.above, self.below = self._zeros()
        self._first, self._end = [-a for a in self.above], [0] * len(self._own)
        self._total = [stage.rows + b for stage, b in zip(self._own, self.below)]
        self._end[-1] = self._total[-1]
        self._summed = [0] * len(self._own)
        self._finished = [0] * len(members)  # the step that computes each member's last row
        self._steps: list[int] = []  # the column that each step computes, or -1 for a row of zeros
        self._changes: list[tuple[int, int, int]] = []  # of the rows in memory: step, column, number of rows
        self._go()
        self._held = self._in_memory()

    def _zeros(self) -> tuple[list[int], list[int]]:
        """The rows of zeros above and below each column."""
        above, below = [0] * len(self._own), [0] * len(self._own)
        for column, readers in enumerate(self._readers):
            for reader, r in readers:
                stage = self._own[reader]
                if r is stage.readings[0] and stage.form and not stage.form.checks_rows:
                    overlap = r.first(stage.rows - 1) + r.window - self._own[column].rows
                    above[column] = max(above[column], r.pad if r.pad > 1 else 0)
                    below[column] = max(below[column], overlap)
        return above, below

    def _go(self) -> None:
        """Runs the loop: in turn, each member computes its next row if its inputs are there."""
        pending = list(range(len(self.members)))
        while pending:
            moved = [self._step(column) for column in pending]
            pending = [column for column in pending if self._end[column] < self._total[column]]
            assert any(moved) or not pending, "a stage waits for rows that never come"

    def _step(self, column: int) -> bool:
        """Computes a column's next row, if possible; returns whether it did."""
        stage, row = self._own[column], self._end[column]
        if row >= stage.rows:
            self._end[column] += 1
            self._changes.append((len(self._steps), column, 1))
            self._steps.append(-1)
            return True
        if stage.sums:
            source = self._columns[stage.readings[0].source]
            if self._end[source] <= self._summed[column]:
                return False
            self._summed[column] += 1
            self._end[column] = int(self._summed[column] == self._own[source].rows)
        else:
            for r in stage.readings:
                source = self._columns[r.source]
                if self._end[source] < min(r.awaited(row), self._total[source]):
                    return False
            self._end[column] += 1
        if self._summed[column] <= 1:  # sums are allocated once
            self._changes.append((len(self._steps), column, 1))
        if self._end[column] == stage.rows:
            self._finished[column] = len(self._steps)
        self._steps.append(column)
        for source in {self._columns[r.source] for r in stage.readings}:
            self._drop(source)
        return True

    def _drop(self, column: int) -> None:
        """Frees the rows that no reader needs any more."""
        least = self._end[column]
        for reader, r in self._readers[column]:
            if self._end[reader] < self._own[reader].rows:
                wanted = self._summed[reader] if self._own[reader].sums else r.first(self._end[reader])
                least = min(least, wanted)
        if least > self._first[column]:
            self._changes.append((len(self._steps), column, self._first[column] - least))
            self._first[column] = least

    def _in_memory(self) -> np.ndarray:
        """(steps, columns) the number of rows in memory during each step."""
        held = np.zeros((len(self._steps) + 1, len(self._own)), int)
        held[0] = [*self.above[:-1], self.above[-1] + self._total[-1]]
        steps, columns, rows = zip(*self._changes)
        np.add.at(held, (steps, columns), rows)
        rows_held: np.ndarray = held.cumsum(axis=0)[:-1]
        return rows_held

    @cached_property
    def _sizes(self) -> np.ndarray:
        """(columns,) the bytes of a row."""
        return np.array([*(stage.held_bytes for stage in self._own[:-1]), self._own[-1].row_bytes])

    @property
    def slack(self) -> int:
        """The most bytes by which scratch memory moves to be aligned after rows of any length."""
        return ALIGNMENT - 1 if (self._sizes % ALIGNMENT).any() else 0

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """For the group that ends with each member: number of members, most bytes alive, and most without the output.

        The bytes are 0 if a member has rows that no stage reads: the loop would end before it computes them.
        """
        count = len(self.members)
        sizes = self._sizes
        alive = self._held * sizes
        scratch = [stage.scratch_bytes + self.slack * (stage.scratch_bytes > 0) for stage in self._own]
        steps, finished = np.array(self._steps), np.array(self._finished)
        own_scratch = np.where(steps >= 0, np.array(scratch)[steps], 0)
        inner = alive[:, -1:] + np.cumsum(alive[:, :count], axis=1) - alive[:, :count]
        found = []
        for k in range(count):
            seen = slice(0, finished[k] + 1)
            in_group = inner[seen, k] + np.where(steps[seen] <= k, own_scratch[seen], 0)
            made = alive[seen, k] if self._own[k].sums else np.cumsum(steps[seen] == k) * sizes[k]
            complete = finished[k] >= finished[: k + 1].max()
            found.append((k + 1, int((in_group + made).max()) if complete else 0, int(in_group.max())))
        return found

    def group(self, count: int, size: int) -> RowGroup:
        """The group of the first `count` members, which takes `size` bytes."""
        columns = [*range(count), len(self.members)]
        most = self._held[: self._finished[count - 1] + 1, columns].max(axis=0)
        most[count - 1] = self._own[count - 1].rows
        row_buffers = [RowBuffer((*self.members, self.source)[c], self.above[c], self.below[c]) for c in columns]
        row_buffers[count - 1] = RowBuffer(row_buffers[count - 1].stage)
        return RowGroup(
            stages=tuple(self.members[:count]),
            source=self.source,
            row_buffers=tuple(row_buffers),
            bytes=aligned(size),
            slack=self.slack,
            most_rows=tuple(map(int, most)),
        )
