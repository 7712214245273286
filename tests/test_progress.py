# SPDX-License-Identifier: Apache-2.0
"""The time left, the best accuracy so far, and what is printed while a search works."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nn_quantizer
from caffe_to_cmsis_nn.pipeline.job import prepare
from caffe_to_cmsis_nn.pipeline.quantize import find_formats, open_journal
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import caffe_objective, common, progress
from caffe_to_cmsis_nn.search.common import Score, Search, SearchResult, Tensor, Trial
from caffe_to_cmsis_nn.search.progress import Best, Estimate
from tests import tiny
from tests.test_search_device import _graph

SCHEDULE = common.tensors(_graph()) * 2  # as of a search that looks at everything twice
COSTS = [1.0] * len(SCHEDULE)


def trial(layer: str, tensor: Tensor, accuracy: float = 50, kept: bool = False, images: int | None = None) -> Trial:
    return Trial(layer, tensor, QFormat(3), Score(accuracy, None, images), Score(40, None, images), kept)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_schedules() -> None:
    """In network order; the original's by kind."""
    first = [(name, t.value) for name, t in common.tensors(_graph())]
    assert first == [
        ("data", "activations"),
        ("conv", "weights"),
        ("conv", "bias"),
        ("conv", "activations"),
        ("ip", "weights"),
        ("ip", "bias"),
        ("ip", "activations"),
    ]
    assert [t.value for _, t in caffe_objective.schedule(_graph())] == ["weights"] * 2 + ["activations"] * 3 + [
        "bias"
    ] * 2


def test_time_left_is_the_pace_so_far_over_what_can_still_come() -> None:
    clock = Clock()
    estimate = Estimate(SCHEDULE, COSTS, clock)
    estimate.see(trial(*SCHEDULE[0]), computed=True)
    assert estimate.share == 0 and estimate.seconds_left is None
    clock.now += 10
    for i in range(6):
        estimate.see(trial(*SCHEDULE[i]), computed=True)
        estimate.see(trial(*SCHEDULE[i]), computed=True)
    assert estimate.share == pytest.approx(5 / 14)
    assert estimate.seconds_left == pytest.approx(10 / 5 * 9)


def test_tensors_that_are_not_looked_at_again_are_passed_over() -> None:
    estimate = Estimate(SCHEDULE, COSTS, Clock())
    for key in (SCHEDULE[0], SCHEDULE[6], SCHEDULE[9]):
        estimate.see(trial(*key), computed=True)
    assert estimate.position == 9
    estimate.see(trial("nobody", Tensor.WEIGHTS), computed=True)
    assert estimate.position == 9


def test_what_comes_out_of_a_journal_tells_no_pace() -> None:
    clock = Clock()
    estimate = Estimate(SCHEDULE, COSTS, clock)
    for key in SCHEDULE[:8]:
        estimate.see(trial(*key), computed=False)
    assert estimate.seconds_left is None
    estimate.see(trial(*SCHEDULE[8]), computed=True)
    clock.now += 3
    estimate.see(trial(*SCHEDULE[9]), computed=True)
    assert estimate.seconds_left == pytest.approx(3 * 5)


def test_what_trials_cost() -> None:
    """8 * 27 * 64 and 5 * 128 MACs, with half the mean of the five layers for each layer: alone, or with all after."""
    conv, ip = 8 * 27 * 64, 5 * 128
    overhead = (conv + ip) / 5 / 2
    keys = [("conv", Tensor.WEIGHTS), ("ip", Tensor.WEIGHTS)]
    assert progress.work(_graph(), keys, alone=True) == [conv + overhead, ip + overhead]
    assert progress.work(_graph(), keys, alone=False) == pytest.approx([conv + ip + 4 * overhead, ip + overhead])


def test_without_accuracies_the_last_error_is_the_best() -> None:
    best, other = Best(), Score(None, 0.25, 1000)
    for images, error, kept in ((1000, 0.5, True), (300, 0.125, True), (300, 0.5, False)):
        best.see(Trial("conv", Tensor.WEIGHTS, QFormat(3), Score(None, error, images), other, kept))
    assert best.score is other


def test_the_best_is_of_the_formats_kept_on_the_most_images() -> None:
    best = Best()
    seen = []
    for step in (
        trial("conv", Tensor.WEIGHTS, 90, images=250),
        trial("conv", Tensor.WEIGHTS, 55, images=2000, kept=True),
        trial("conv", Tensor.WEIGHTS, 99, images=250, kept=True),
        trial("conv", Tensor.WEIGHTS, 60, images=2000, kept=False),
    ):
        best.see(step)
        assert best.score
        seen.append(best.score.accuracy)
    assert seen == [40, 55, 55, 40]


def _search() -> Search:
    steps: Iterator[Trial | str] = iter(
        [trial("data", Tensor.ACTIVATIONS, kept=True), trial("conv", Tensor.WEIGHTS), "adapting the weights"]
    )
    yield from steps
    return SearchResult(None, ())  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_says_what_is_tried_the_best_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    found, trials = progress.follow(_search(), SCHEDULE, COSTS, lambda: True)
    assert len(trials) == 2 and found.measured == ()
    frames = terminal.getvalue().split("\r")
    assert any("conv weights Q4.3, best " in frame and "of search left" in frame for frame in frames)
    assert any("adapting the weights" in frame for frame in frames)


def test_no_bar_where_stderr_is_no_terminal_or_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, disable in ((io.StringIO(), None), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress.follow(_search(), SCHEDULE, COSTS, lambda: True, disable=disable)
        assert stream.getvalue() == ""


@pytest.mark.parametrize("objective", ["device", "caffe"])
def test_the_trials_follow_the_schedule(objective: str, tmp_path: Path) -> None:
    options = nn_quantizer.parse_arguments([*tiny.write(tmp_path), "--objective", objective])
    job = prepare(options)
    answers = open_journal(job, options)
    later = iter(common.tensors(job.graph) if objective == "device" else caffe_objective.schedule(job.graph))
    _, trials = find_formats(job, options, answers)
    changes = dict.fromkeys((t.layer, t.tensor) for t in trials)  # as they come for the first time
    assert len(trials) >= len(changes) > 3
    assert all(key in later for key in changes)  # each after the one before


def test_verbose_prints_every_trial_and_quiet_the_result_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny.write(tmp_path)
    assert nn_quantizer.main([*arguments, "-v"]) == 0
    out, err = capsys.readouterr()
    trials = [line for line in out.splitlines() if re.match(r"layer .* images: error .*; before: error ", line)]
    assert trials[0].startswith("layer data: activations Q")
    assert len(trials) > 5 and err == ""
    assert nn_quantizer.main([*arguments, "-q"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and out.startswith("Accuracy: float ") and err == ""
