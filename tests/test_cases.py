# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of layers: parsed and given its kernels, or declined by the parser and by the script."""

from __future__ import annotations

from pathlib import Path

import pytest

import nn_quantizer
from q7.caffe_io.prototxt import read_prototxt
from q7.data.source import data_source
from q7.errors import Q7Error
from q7.network.from_caffe import parse_network
from q7.network.graph import Graph
from q7.target import LIBRARIES, Target
from tests import cases
from tests.cases import ACCEPTED, DECLINED, Accepted, Declined
from tests.support import prototxt, write_dataset


def parse(folder: Path, case: Accepted | Declined) -> Graph:
    text = prototxt(folder, case.layers + cases.ip("num_output: 3", bottom="x", name="ip"), "ip")
    network = read_prototxt(text)
    return parse_network(network, "accuracy", data_source(network), case.shape)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_accepted(tmp_path: Path, case: Accepted) -> None:
    layer = next(layer for layer in parse(tmp_path, case).layers if layer.name == "x")
    kernels = [layer.kernel_for(Target(library=library)).name for library in LIBRARIES.values() if not layer.folds]
    assert kernels == ([case.q7, case.s8] if case.q7 else [])


@pytest.mark.parametrize("case", DECLINED, ids=lambda case: case.name)
def test_declined(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Declined) -> None:
    with pytest.raises(Q7Error) as caught:
        parse(tmp_path, case)
    assert case.message in str(caught.value)
    write_dataset(tmp_path, case.shape, 2, 3)
    (tmp_path / "weights").touch()
    arguments = ["--model", tmp_path / "net.prototxt", "--weights", tmp_path / "weights", "--save", tmp_path / "n.pkl"]
    assert nn_quantizer.main([*map(str, arguments)]) == 2
    assert capsys.readouterr().err == f"nn_quantizer: {caught.value}\n"
    assert not (tmp_path / "n.pkl").exists()
