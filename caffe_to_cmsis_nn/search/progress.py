# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of a search: a bar on a terminal, or a line for each trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from caffe_to_cmsis_nn.errors import printable
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.search.common import Score, Search, SearchResult, Tensor, Trial

BAR = "{desc} {percentage:3.0f} %|{bar}| {elapsed}"


def _measured(score: Score, short: bool = False) -> str:
    """A score as text; without an accuracy, its divergence is the error of a layer's output."""
    if score.accuracy is None:
        return f"error {score.divergence:.4g}"
    return f"{score.accuracy:.2f} %" + ("" if short or score.divergence is None else f", {score.divergence:.4g} nats")


def line(trial: Trial) -> str:
    """A trial as text: result and reason, number of images, its score and the score to compare with."""
    end = "kept" if trial.kept else "given up" if trial.given_up else "not kept"
    images = f"{trial.score.images or 'all'} images"
    return (
        f"layer {trial.layer}: {trial.tensor.value} {trial.format}: {end}: {trial.reason} "
        f"({images}: {_measured(trial.score)}; before: {_measured(trial.reference)})"
    )


def work(graph: Graph, schedule: Sequence[tuple[str, Tensor]], alone: bool) -> list[float]:
    """The cost of trying a tensor's formats (MACs): its layer runs again, `alone` or with all layers after it.

    Includes an overhead per layer.
    """
    macs = [layer.macs for layer in graph.layers]
    overhead = sum(macs) / len(macs) / 2
    each = [own + overhead for own in macs]
    costs = {layer.name: each[i] if alone else sum(each[i:]) for i, layer in enumerate(graph.layers)}
    return [costs[name] for name, _ in schedule]


class Estimate:
    """Estimates the progress of a search, and the time left.

    The number of trials is not known, but the tensors that may still come are.
    """

    def __init__(
        self, schedule: Sequence[tuple[str, Tensor]], costs: Sequence[float], clock: Callable[[], float]
    ) -> None:
        self.schedule = schedule
        self.costs = costs
        self.clock = clock
        self.position = -1
        self._start: tuple[float, float] | None = None  # time and share of the work at the first computed trial

    def see(self, trial: Trial) -> None:
        """Moves on to the trial's tensor."""
        here = (trial.layer, trial.tensor)
        if self.position < 0 or self.schedule[self.position] != here:
            later = range(self.position + 1, len(self.schedule))
            self.position = next((i for i in later if self.schedule[i] == here), self.position)
        if self._start is None:
            self._start = self.clock(), self.share

    @property
    def share(self) -> float:
        """The share of the work before the current tensor, 0 to 1."""
        return sum(self.costs[: max(self.position, 0)]) / sum(self.costs)

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far, if all remaining tensors are tried; None without a pace yet."""
        if self._start is None or self.share <= self._start[1]:
            return None
        return (self.clock() - self._start[0]) * (1 - self.share) / (self.share - self._start[1])


class Best:
    """The score of the formats kept so far: the one on the most images, or the last layer's error."""

    def __init__(self) -> None:
        self.score: Score | None = None

    def see(self, trial: Trial) -> None:
        score = trial.score if trial.kept else trial.reference
        all_images = float("inf")
        if (
            self.score is None
            or score.accuracy is None
            or (score.images or all_images) >= (self.score.images or all_images)
        ):
            self.score = score


class _Bar:
    """A progress bar for a search, and a line for each trial if `show` is given."""

    def __init__(self, estimate: Estimate, show: Callable[[str], None] | None, disable: bool | None) -> None:
        self._estimate, self._best, self._show = estimate, Best(), show
        disable = disable or (True if sys.stderr is None else None)
        self.bar: Any = tqdm(total=1.0, bar_format=BAR, disable=disable, leave=False, dynamic_ncols=True)

    def announce(self, phase: str) -> None:
        """A phase without trials."""
        self.bar.bar_format, self.bar.n = BAR, self.bar.total
        self.bar.set_description_str(phase)

    def add(self, trial: Trial) -> None:
        self._estimate.see(trial)
        self._best.see(trial)
        if self._show:
            with tqdm.external_write_mode():
                self._show(line(trial))
        if not self.bar.disable:
            self._update(trial)

    def _update(self, trial: Trial) -> None:
        left = self._estimate.seconds_left
        self.bar.n = self._estimate.share
        self.bar.bar_format = BAR if left is None else f"{BAR}, up to {tqdm.format_interval(left)} of search left"
        assert self._best.score
        tried = printable(f"{trial.layer} {trial.tensor.value} {trial.format}")
        self.bar.set_description_str(f"{tried}, best {_measured(self._best.score, short=True)}", refresh=False)
        self.bar.refresh()


def follow(
    search: Search,
    schedule: Sequence[tuple[str, Tensor]],
    costs: Sequence[float],
    show: Callable[[str], None] | None = None,
    disable: bool | None = None,
) -> tuple[SearchResult, list[Trial]]:
    """Runs a search under a progress bar; returns its result and its trials.

    `schedule` holds the tensors in search order, some of which may be skipped, and `costs` their costs (`work`).
    `show` gets each trial as a line. `disable` hides the bar; None hides it if stderr is not a terminal.
    """
    trials: list[Trial] = []
    progress = _Bar(Estimate(schedule, costs, time.monotonic), show, disable)
    with progress.bar:
        while True:
            try:
                step = next(search)
            except StopIteration as stop:
                return stop.value, trials
            if isinstance(step, str):
                progress.announce(step)
            else:
                trials.append(step)
                progress.add(step)
