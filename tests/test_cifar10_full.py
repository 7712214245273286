# SPDX-License-Identifier: Apache-2.0
"""A network with LRN that others trained, from its files to its programs: accuracy in float and on the device."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import data_source, override
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from tests.generated import generate, make, network, on_host, predicted, printed_logits, stored_images
from tests.support import FULL_SIZE, shared, tool

NAME = "cifar10_full"
RUN = 300 if FULL_SIZE else 20  # images, by the program
RIGHT = 6590  # of 10000, as pycaffe 1.0 counts them


def data(*parts: str) -> str:
    return str(shared("data", "cifar10", *parts))


@pytest.mark.slow
def test_float_accuracy_is_caffes_to_the_image() -> None:
    folder = shared("data", "breadth")
    prototxt = read_prototxt(folder / f"{NAME}_train_test.prototxt")
    lmdb = shared("data", "cifar10", "cifar10_test_lmdb")
    source = override(data_source(prototxt), str(lmdb), data("mean.binaryproto"), None, None)
    images, labels = lmdb_images.read(lmdb)
    graph = parse_network(prototxt, "accuracy", source, images.shape[1:])
    graph = attach_weights(graph, read_weights(folder / f"{NAME}_iter_70000.caffemodel.h5"))
    logits = FloatNetwork(graph, images).logits(as_trained(graph))
    assert accuracy_caffe(logits, labels) / 100 * len(images) == pytest.approx(RIGHT, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "api"),
    [("device", "s8"), ("caffe", "q7"), *([("device", "q7")] if FULL_SIZE else [])],
)
def test_from_files_to_programs(objective: str, api: str, tmp_path: Path) -> None:
    """Formats searched on 2,000 images lose at most 0.3 points, with FULL_SIZE=1 on all 10,000 images.

    Programs compute what is predicted.
    """
    for file in shared("data", "breadth").glob(f"{NAME}*"):
        shutil.copy(file, tmp_path)
    model, weights = (str(tmp_path / f"{NAME}_{end}") for end in ("train_test.prototxt", "iter_70000.caffemodel.h5"))
    arguments = ["--model", model, "--weights", weights, "--lmdb", data("cifar10_test_lmdb"), "-q"]
    arguments += ["--mean", data("mean.binaryproto"), "--save", str(tmp_path / "net.pkl"), "--iterations", "20"]
    assert nn_quantizer.main([*arguments, "--objective", objective, "--api", api]) == 0
    quantized = network(tmp_path / "net.pkl")
    assert quantized.outcome and quantized.outcome.known.loss <= 0.3
    images, labels = lmdb_images.read(Path(data("cifar10_test_lmdb")), range(10_000 if FULL_SIZE else RUN))
    logits = DeviceNetwork(quantized.graph, images, quantized.target).logits(quantized.layers)
    assert not FULL_SIZE or accuracy_first(logits, labels) >= RIGHT / 100 - 0.3
    host = generate(tmp_path / "net.pkl", tmp_path / "host", "--target", "host")
    tool("c++", "g++")
    assert "PASS" in make(host, "run", "CFLAGS=-O1", "CXXFLAGS=-O1")
    np.testing.assert_array_equal(on_host(host, images[:RUN]), logits[:RUN])
    tool("arm-none-eabi-g++")
    tool("qemu-system-arm")
    board = generate(tmp_path / "net.pkl", tmp_path / "board", "--target", "mps2", "--images", "0,1,2,3")
    text = make(board, "run", "CORE=cortex-m4")
    assert "PASS" in text
    np.testing.assert_array_equal(
        printed_logits(text), predicted(quantized, stored_images(quantized, tmp_path / "net.pkl", 4))
    )
