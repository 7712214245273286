# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped goes on where it was, on the same inputs alone, and whatever is left of its journal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.engines.networks import FloatNetwork
from caffe_to_cmsis_nn.pipeline.job import prepare
from caffe_to_cmsis_nn.pipeline.quantize import open_journal
from caffe_to_cmsis_nn.search import caffe_objective, journal, weight_fitting
from caffe_to_cmsis_nn.search.journal import Journal, RememberedErrors, RememberedSimulation
from caffe_to_cmsis_nn.search.layer_errors import LayerErrors
from caffe_to_cmsis_nn.search.verdict import Verdict
from caffe_to_cmsis_nn.store import record
from tests import children, tiny

OBJECTIVES = {"device": (LayerErrors, "errors"), "caffe": (caffe_objective.ScreenedSimulation, "judge")}


def ask(opened: Journal, question: Any, answer: Any) -> Any:
    return opened.remember(question, lambda: answer, lambda value: value, lambda value: value)


def test_answers_outlive_the_run(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal", "key")
    assert not first.path.exists()
    assert [ask(first, q, a) for q, a in (("a", 1), (["b", 2], [0.1, "x"]))] == [1, [0.1, "x"]]
    second = Journal(tmp_path / "journal", "key")
    assert (second.resumed, second.computed, second.replaced) == (2, 0, False)
    assert ask(second, ["b", 2], "computed again") == [0.1, "x"]
    assert ask(second, "c", 3) == 3
    assert (second.kept, second.computed) == (3, 1)
    second.remove()
    assert not second.path.exists()


def test_another_key_starts_anew_and_replaces_the_file_with_its_first_answer(tmp_path: Path) -> None:
    old = Journal(tmp_path / "journal", "key")
    ask(old, "a", 1)
    before = old.path.read_bytes()
    new = Journal(old.path, "other key")
    assert new.replaced and new.resumed == 0
    assert old.path.read_bytes() == before
    assert ask(new, "a", 2) == 2
    assert Journal(old.path, "other key").resumed == 1
    old.remove()
    assert Journal(old.path, "other key").resumed == 1  # it is not the old run's to remove


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_ignored(tmp_path: Path, cut: int) -> None:
    opened = Journal(tmp_path / "journal", "key")
    ask(opened, "a", 1)
    ask(opened, "b", 2)
    opened.path.write_bytes(opened.path.read_bytes()[:-cut])
    again = Journal(opened.path, "key")
    assert again.resumed == 1
    assert ask(again, "b", 3) == 3
    assert Journal(opened.path, "key").resumed == 2


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff\xfe", b"[", b"[" * 100_000, b"1", b"null", b"[1, 2, 3]", b'"ab"', b"{}", b'["__import__(1)", 1]'],
)
def test_damaged_lines_are_ignored(tmp_path: Path, line: bytes) -> None:
    opened = Journal(tmp_path / "journal", "key")
    ask(opened, "a", 1)
    with open(opened.path, "ab") as file:
        file.write(b"\n" + line)
    again = Journal(opened.path, "key")
    assert ask(again, "a", 2) == 1
    assert ask(again, "b", 3) == 3


def test_a_damaged_answer_is_computed_again(tmp_path: Path) -> None:
    opened = Journal(tmp_path / "journal", "key")
    ask(opened, "a", "no verdict")
    again = Journal(opened.path, "key")
    assert again.remember("a", lambda: 5, str, lambda value: value[1]["right"]) == 5


def test_verdicts_come_back_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    for count, labels in ((9, 0), (1, 1), (8, 8), (250, 250), (2001, 2001)):
        verdict = Verdict(rng.random(labels) < 0.5, rng.normal(size=count))
        back = journal._verdict(journal._plain(verdict))
        np.testing.assert_array_equal(back.right, verdict.right)
        np.testing.assert_array_equal(back.divergences, verdict.divergences)
        assert back.score == verdict.score
    with pytest.raises(ValueError, match="another number"):
        journal._verdict([9, *journal._plain(verdict)[1:]])


def test_the_key_tells_everything_apart() -> None:
    image = np.arange(12, dtype=np.uint8)
    keys = [
        journal.key([image, image], {"a": 1}),
        journal.key([image, image], {"a": 2}),
        journal.key([image, image + 1], {"a": 1}),
        journal.key([image], {"a": 1}),
        journal.key([image.reshape(3, 4), image], {"a": 1}),
        journal.key([image.astype(np.int8), image], {"a": 1}),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == journal.key([image.copy(), image], {"a": 1})


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ctrl_c_loses_nothing(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of the search; the second run computes only what is left and writes the same pickle."""
    arguments = [*tiny.write(tmp_path), "--objective", objective]
    cls, method = OBJECTIVES[objective]
    compute = getattr(cls, method)
    calls: list[None] = []

    def counted(self: Any, *values: Any) -> Any:
        calls.append(None)
        if len(calls) == stop_at:
            raise Stopped
        return compute(self, *values)

    monkeypatch.setattr(cls, method, counted)
    stop_at = 0
    assert nn_quantizer.main(arguments) == 0
    expected, all_calls = (tmp_path / "net.pkl").read_bytes(), len(calls)
    (tmp_path / "net.pkl").unlink()

    calls.clear()
    stop_at = all_calls // 2
    capsys.readouterr()
    assert nn_quantizer.main(arguments) == 130
    left = tmp_path / "net.pkl.journal"
    assert capsys.readouterr().err.splitlines() == [
        f"nn_quantizer: interrupted: the same command goes on from the {Journal(left, key_of(left)).resumed} results "
        f"in '{left}'"
    ]
    assert not (tmp_path / "net.pkl").exists()

    calls.clear()
    stop_at = 0
    assert nn_quantizer.main(arguments) == 0
    assert "going on from" in capsys.readouterr().err
    assert len(calls) <= all_calls - all_calls // 2 + 1
    assert (tmp_path / "net.pkl").read_bytes() == expected
    assert not left.exists()


def key_of(path: Path) -> str:
    return path.read_bytes().split(b"\n")[0].decode().split('"key": "')[1].rstrip('"}')


@pytest.mark.parametrize(
    ("option", "anew"),
    [
        (["--api", "s8", "--weight_bits", "4"], True),
        (["--core", "plain"], True),
        (["--tolerance", "0.5"], True),
        (["--report", "x.html"], False),
    ],
)
def test_other_options_start_anew_and_say_so(
    option: list[str],
    anew: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = tiny.write(tmp_path)
    refine = weight_fitting.Fit.refine

    def stop(*values: Any) -> Any:
        raise Stopped

    monkeypatch.setattr(weight_fitting.Fit, "refine", stop)
    assert nn_quantizer.main(arguments) == 130
    monkeypatch.setattr(weight_fitting.Fit, "refine", refine)
    capsys.readouterr()
    assert nn_quantizer.main([*arguments, *option]) == 0
    err = capsys.readouterr().err
    assert ("of another model, data or options: starting over" in err) is anew
    assert ("going on from" in err) is not anew


def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """The process is killed when its journal has grown to some length; the next run ends as if nothing had happened."""
    arguments = tiny.write(tmp_path)
    assert nn_quantizer.main(arguments) == 0
    expected = (tmp_path / "net.pkl").read_bytes()
    left = tmp_path / "net.pkl.journal"
    for size in (1, 3000, 9000):
        (tmp_path / "net.pkl").unlink()
        child, wait = children.start(tmp_path, "nn_quantizer", arguments)
        while child.is_alive() and not (left.exists() and left.stat().st_size >= size):
            time.sleep(0.001)
        child.kill()
        wait()
        assert nn_quantizer.main(arguments) == 0
        assert (tmp_path / "net.pkl").read_bytes() == expected
        assert not left.exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_full_disk_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    arguments = tiny.write(tmp_path)
    with open("/dev/full", "ab", buffering=0) as full:
        monkeypatch.setattr(journal, "open", lambda *_, **__: full, raising=False)
        assert nn_quantizer.main(arguments) == 2
    assert "cannot write" in capsys.readouterr().err


def test_both_searches_take_the_journal(tmp_path: Path) -> None:
    """What the scripts hand to the searches are the classes that the searches use by themselves."""
    options = nn_quantizer.parse_arguments(tiny.write(tmp_path))
    job = prepare(options)
    opened = open_journal(job, options)
    network = FloatNetwork(job.graph, job.images)
    remembered = RememberedSimulation(opened, network, job.labels)
    computed = caffe_objective.ScreenedSimulation(network, job.labels)
    np.testing.assert_array_equal(remembered.start({}), computed.start({}))
    np.testing.assert_array_equal(remembered.judge({}).right, computed.judge({}).right)
    assert remembered.largest({}) == computed.largest({})
    assert RememberedSimulation(Journal(opened.path, opened.key), network, job.labels).largest(
        {}
    ) == remembered.largest({})
    assert issubclass(RememberedErrors, LayerErrors)
    assert record.FORMAT.encode() in opened.path.read_bytes()
