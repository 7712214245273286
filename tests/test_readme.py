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


@pytest.mark.parametrize(
    ("name", "model"), [("LeNet", "lenet"), pytest.param("m4", "cifar10_m4", marks=pytest.mark.slow)]
)
def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, model: str) -> None:
    """Accuracies, memory and MACs of the networks that come with the project."""
    weights = next(MODELS.glob(f"{model}_iter_*.caffemodel.h5"))
    arguments = ["--model", str(MODELS / f"{model}_train_test.prototxt"), "--weights", str(weights), "-q"]
    if name != "LeNet":
        data = shared("data", "cifar10")
        arguments += ["--lmdb", str(data / "cifar10_test_lmdb"), "--mean", str(data / "mean.binaryproto")]
    pickle = str(tmp_path / "net.pkl")
    assert nn_quantizer.main([*arguments, "--save", pickle]) == 0
    last = capsys.readouterr().out.strip()
    if name == "LeNet":
        assert last in README  # as the first example's last line
    accuracies = re.findall(r"(\d+\.\d+) %", last)
    totals = []
    for ram in ("fast", "least"):
        assert code_gen.main(["--describe", pickle, "--ram", ram]) == 0
        total = re.search(r"Total: (\d+) MACs, flash (\d+) bytes of constants, RAM (\d+)", capsys.readouterr().out)
        assert total
        totals.append([f"{int(number):,}" for number in total.groups()])
    (macs, flash, most), (_, _, least) = totals
    assert _rows("| network | float % | device % | RAM (bytes)")[name] == [*accuracies, most, least, flash, macs]
    in_float, _, ours, *_ = _rows("| network | float % | original's formats %")[name]
    assert [in_float, ours] == accuracies
