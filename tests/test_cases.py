# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of layers: parsed and given its kernels, or declined by the parser and by the script."""

from __future__ import annotations

from pathlib import Path

import pytest

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.target import LIBRARIES, Core, Target
from tests import cases
from tests.cases import ACCEPTED, DECLINED, Accepted, Declined
from tests.support import prototxt, write_dataset
from tests.test_graph import random_weights


def parse(folder: Path, case: Accepted | Declined) -> Graph:
    text = prototxt(folder, case.layers + cases.ip("num_output: 3", bottom="x", name="ip"), "ip")
    network = read_prototxt(text)
    return parse_network(network, "accuracy", data_source(network), case.shape)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_accepted(tmp_path: Path, case: Accepted) -> None:
    network = parse(tmp_path, case)
    network = fold_affine(attach_weights(network, random_weights(network)))
    found = [layer for layer in network.layers if layer.name == "x"]
    kernels = [layer.kernel_for(Target(library=library)).name for library in LIBRARIES.values() for layer in found]
    assert kernels == ([case.q7, case.s8] if case.q7 else [])


def depthwise(channels: int, multiplier: int = 1) -> Accepted:
    sizes = f"num_output: {channels * multiplier} group: {channels} kernel_size: 3"
    return Accepted(f"{channels}x{multiplier}", cases.conv(sizes), shape=(channels, 8, 8))


@pytest.mark.parametrize(
    ("case", "others", "mve"),
    [
        (Accepted("one group", cases.conv("num_output: 3 kernel_size: 3")), *["arm_convolve_wrapper_s4"] * 2),
        (Accepted("groups", cases.conv("num_output: 4 group: 2 kernel_size: 3")), *["arm_convolve_wrapper_s8"] * 2),
        (depthwise(4), "arm_depthwise_conv_wrapper_s4", "arm_depthwise_conv_s4"),
        (depthwise(3), "arm_depthwise_conv_wrapper_s4", "arm_depthwise_conv_wrapper_s8"),
        (depthwise(4, 3), "arm_depthwise_conv_wrapper_s4", "arm_depthwise_conv_s4"),
        (depthwise(3, 2), *["arm_depthwise_conv_wrapper_s8"] * 2),
        (Accepted("inner product", cases.ip("num_output: 3")), *["arm_fully_connected_s4"] * 2),
    ],
    ids=lambda value: value.name if isinstance(value, Accepted) else "",
)
def test_kernels_for_weights_of_4_bits(tmp_path: Path, case: Accepted, others: str, mve: str) -> None:
    """Those of 8 bits where no other takes the layer."""
    layer = next(layer for layer in parse(tmp_path, case).layers if layer.name == "x")
    for core, expected in ((Core.DSP, others), (Core.PLAIN, others), (Core.MVE, mve)):
        assert layer.kernel_for(Target(core, library=LIBRARIES["s8"]), 4).name == expected


@pytest.mark.parametrize("case", DECLINED, ids=lambda case: case.name)
def test_declined(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Declined) -> None:
    with pytest.raises(UserError) as caught:
        parse(tmp_path, case)
    assert case.message in str(caught.value)
    write_dataset(tmp_path, case.shape, 2, 3)
    (tmp_path / "weights").touch()
    arguments = ["--model", tmp_path / "net.prototxt", "--weights", tmp_path / "weights", "--save", tmp_path / "n.pkl"]
    assert nn_quantizer.main([*map(str, arguments)]) == 2
    assert capsys.readouterr().err == f"nn_quantizer: {caught.value}\n"
    assert not (tmp_path / "n.pkl").exists()
