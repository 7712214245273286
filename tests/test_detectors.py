# SPDX-License-Identifier: Apache-2.0
"""Detectors that others trained, with several outputs: from their files to programs on this computer and on boards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nn_quantizer
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.network.quantized import Outcome
from tests.generated import generate, make, network, on_host, predicted, stored_images
from tests.support import FULL_SIZE, shared, tool

IMAGES = 40
HOST_IMAGES = IMAGES if FULL_SIZE else 5


def detector(folder: Path, name: str, pictures: np.ndarray, *flags: str) -> Path:
    """The pickle of a network of the development data, quantized with pictures (N, C, H, W)."""
    for file in shared("data", "breadth").glob(f"{name}.*"):
        shutil.copy(file, folder)
    lmdb_images.write(folder / "pictures", pictures, np.zeros(len(pictures), int))
    files = {"model": f"{name}.prototxt", "weights": f"{name}.caffemodel", "save": "net.pkl", "lmdb": "pictures"}
    named = [word for flag, file in files.items() for word in (f"--{flag}", str(folder / file))]
    assert nn_quantizer.main([*named, "--scale", "0.0078125", "-q", *flags]) == 0
    return folder / "net.pkl"


def outcome(pickle: Path) -> Outcome:
    found = network(pickle).outcome
    assert found and not found.accuracy
    return found


def programs_give_every_output(pickle: Path, folder: Path) -> None:
    """On this computer all values of all images, and on an emulated Cortex-M4 the checksums of some."""
    quantized = network(pickle)
    images = stored_images(quantized, pickle, HOST_IMAGES)
    host = generate(pickle, folder / "host", "--target", "host", "--kernels", "own", "--ram", "least")
    tool("c++", "g++")
    assert "PASS" in make(host, "run", "CXXFLAGS=-O1")
    expected = known_answers.device_order(quantized.graph, predicted(quantized, images))
    np.testing.assert_array_equal(on_host(host, images), expected)
    tool("arm-none-eabi-g++")
    tool("qemu-system-arm")
    for kernels in ("cmsis", "own")[: 2 if FULL_SIZE else 1]:
        flags = ("--target", "mps2", "--test_images", "3", "--kernels", kernels)
        text = make(generate(pickle, folder / kernels, *flags), "run", "CORE=cortex-m4")
        assert "PASS: every layer as predicted for 3 of 3 images" in text


BRANCHES = ("232", "246", "278", "292", "318", "332", "350", "362")  # scores and boxes at four sizes


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The face detector for pictures of 160x120, a fourth of what its prototxt says."""
    folder = tmp_path_factory.mktemp("faces")
    small = lmdb_images.read(shared("data", "cifar10", "cifar10_test_lmdb"), range(IMAGES))[0]
    pictures = [
        Image.fromarray(image.transpose(1, 2, 0)).resize((160, 120), Image.Resampling.BILINEAR) for image in small
    ]
    outputs = [word for name in BRANCHES for word in ("--output", name)]
    stacked = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    return detector(folder, "slim_320", stacked, "--mean", "127", *outputs)


@pytest.mark.slow
def test_the_face_detectors_outputs_come_close(faces: Path) -> None:
    """Scores within 25 dB; boxes are small numbers at the end of 30 layers with one format for all channels of each."""
    found, shapes = outcome(faces), [layer.out_shape for layer in network(faces).graph.output_layers]
    assert shapes[::2] == [(6, 15, 20), (4, 8, 10), (4, 4, 5), (6, 2, 3)]
    assert shapes[1::2] == [(2 * scores, *size) for scores, *size in shapes[::2]]
    for i, name in enumerate(BRANCHES):
        own = found.outputs[name]
        assert own.sqnr and own.cosine and own.sqnr > (12 if i % 2 else 25) and own.cosine > 0.97
    assert min(own.sqnr for own in found.layers.values() if own.sqnr) > 8


@pytest.mark.slow
def test_the_face_detectors_programs_give_every_output(faces: Path, tmp_path: Path) -> None:
    programs_give_every_output(faces, tmp_path)


# --- MTCNN's first two networks ---------------------------------------------------------------------------------------

SIDES = {"mtcnn_12net": 12, "mtcnn_24net": 24}
ENDS = {"mtcnn_12net": ("conv4-1", "conv4-2"), "mtcnn_24net": ("conv5-1", "conv5-2")}  # scores before Softmax, boxes


def crops(side: int) -> np.ndarray:
    """(N, C, side, side) at random places of pictures."""
    pictures = lmdb_images.read(shared("data", "cifar10", "cifar10_test_lmdb"), range(10 * IMAGES))[0]
    corners = np.random.default_rng(0).integers(0, 33 - side, (len(pictures), 2))
    return np.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(pictures, corners)])


@pytest.fixture(scope="module", params=[*SIDES])
def candidates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for random crops of pictures."""
    outputs = [word for name in ENDS[request.param] for word in ("--output", name)]
    folder, pictures = tmp_path_factory.mktemp(request.param), crops(SIDES[request.param])
    return detector(folder, request.param, pictures, "--mean", "127.5", *outputs)


def test_scores_and_boxes_come_close(candidates: Path) -> None:
    found = outcome(candidates)
    assert all(own.sqnr and own.sqnr > 20 and own.cosine and own.cosine > 0.995 for own in found.outputs.values())
    assert all(own.sqnr and own.sqnr > 18 for own in found.layers.values())


def test_programs_give_scores_and_boxes(candidates: Path, tmp_path: Path) -> None:
    programs_give_every_output(candidates, tmp_path)


@pytest.mark.parametrize("name", SIDES)
def test_the_softmax_is_computed_where_nobody_leaves_it_out(name: str, tmp_path: Path) -> None:
    pickle = detector(tmp_path, name, crops(SIDES[name])[:IMAGES], "--mean", "127.5")
    quantized = network(pickle)
    assert "Softmax" in [layer.caffe_type for layer in quantized.graph.output_layers]
    assert all(own.sqnr and own.sqnr > 20 for own in outcome(pickle).outputs.values())
    assert "PASS" in make(generate(pickle, tmp_path / "host", "--target", "host"), "run")
