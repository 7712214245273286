# SPDX-License-Identifier: Apache-2.0
"""Figures of the README and of docs/benchmarks.md are those that the commands beside them print today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import code_gen
import nn_quantizer
from tests.support import MODELS, ROOT, shared

README = (ROOT / "README.md").read_text()
FIGURES = (ROOT / "docs" / "benchmarks.md").read_text()


def _rows(header: str) -> dict[str, list[str]]:
    """The cells of the table below a line, by the first of each row."""
    lines = FIGURES[FIGURES.index(header) :].split("\n")[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_figures_of_lenet(lenet_pickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = (lenet_pickle.parent / "printed.txt").read_text().splitlines()[-1]
    assert last in README  # as the first example's last line
    check_figures("LeNet", last, lenet_pickle, capsys)


@pytest.mark.slow
def test_figures_of_arms_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(MODELS.glob("cifar10_m4_iter_*.caffemodel.h5"))
    arguments = ["--model", str(MODELS / "cifar10_m4_train_test.prototxt"), "--weights", str(weights), "-q"]
    data = shared("data", "cifar10")
    arguments += ["--lmdb", str(data / "cifar10_test_lmdb"), "--mean", str(data / "mean.binaryproto")]
    assert nn_quantizer.main([*arguments, "--save", str(tmp_path / "net.pkl")]) == 0
    check_figures("m4", capsys.readouterr().out.strip(), tmp_path / "net.pkl", capsys)


def check_figures(name: str, last: str, pickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracies, memory and MACs of a network that comes with the project, quantized with `last` as the last line."""
    accuracies, totals = re.findall(r"(\d+\.\d+) %", last), []
    capsys.readouterr()
    for ram in ("fast", "least"):
        assert code_gen.main(["--describe", str(pickle), "--ram", ram]) == 0
        total = re.search(r"Total: (\d+) MACs, flash (\d+) bytes of constants, RAM (\d+)", capsys.readouterr().out)
        assert total
        totals.append([f"{int(number):,}" for number in total.groups()])
    (macs, flash, most), (_, _, least) = totals
    assert _rows("| network | float % | device % | RAM (bytes)")[name] == [*accuracies, most, least, flash, macs]
    in_float, _, ours, *_ = _rows("| network | float % | original's formats %")[name]
    assert [in_float, ours] == accuracies
