# SPDX-License-Identifier: Apache-2.0
"""--softmax: a kernel behind the logits, in every program; its arithmetic is judged in test_device.py."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.softmax import PowersSoftmax
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import Core, Target
from tests import small
from tests.generated import PORTABLE, generate, make, network, on_host, predicted, printed_logits, stored_images
from tests.support import run, tool

IMAGES = 5
# A layer of the name that the added one would get, and an image of one pixel in place of a vector.
LAYERS = """
layer { name: "softmax" type: "Convolution" bottom: "data" top: "softmax"
  convolution_param { num_output: 6 kernel_size: 9 } }
"""


@pytest.fixture(params=["vector", "pixel"])
def pickle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    quantized = (
        small.quantized(tmp_path)
        if request.param == "vector"
        else small.quantized(tmp_path, Target(), LAYERS, "softmax")
    )
    return small.save(quantized, tmp_path / "small.pkl")


def test_host(pickle: Path, tmp_path: Path) -> None:
    for name in ("make", "cc", "c++"):
        tool(name)
    images = stored_images(network(pickle), pickle, small.IMAGES)
    for flags in ([], ["--no-inplace-pooling"]):
        folder = generate(pickle, tmp_path / "code", "--target", "host", "--softmax", *flags)
        text = make(folder, "run")
        assert "PASS" in text
        assert ", softmax values " in text
        assert "arm_softmax_q7(" in (folder / "main.cpp").read_text()
        expected = predicted(lowering.add_softmax(network(pickle)), images)
        assert expected.min() >= 0
        assert (expected.max(axis=1) > 0).all()
        np.testing.assert_array_equal(on_host(folder, images), expected)


def test_the_largest_stays_the_largest(pickle: Path) -> None:
    images = stored_images(network(pickle), pickle, small.IMAGES)
    logits, values = (predicted(net, images) for net in (network(pickle), lowering.add_softmax(network(pickle))))
    np.testing.assert_array_equal(logits.argmax(axis=1), values.argmax(axis=1))
    assert (logits != values).any()


@pytest.mark.parametrize("core", Core)
def test_board(core: Core, tmp_path: Path) -> None:
    for name in ("make", "arm-none-eabi-g++", "qemu-system-arm"):
        tool(name)
    quantized = small.quantized(tmp_path, Target(core))
    pickle = small.save(quantized, tmp_path / "small.pkl")
    flags = ["--target", "mps2", "--softmax", "--test_images", str(IMAGES)]
    text = make(generate(pickle, tmp_path / "code", *flags), "run")
    assert f"PASS: every layer as predicted for {IMAGES} of {IMAGES} images" in text
    expected = predicted(lowering.add_softmax(quantized), stored_images(quantized, pickle, IMAGES))
    np.testing.assert_array_equal(printed_logits(text.replace("softmax values", "logits")), expected)


def test_without_the_flag_there_is_none(pickle: Path, tmp_path: Path) -> None:
    assert "arm_softmax" not in (generate(pickle, tmp_path / "code") / "main.cpp").read_text()


def test_the_portable_kernel_computes_every_distance_from_the_largest(tmp_path: Path) -> None:
    """As the model does, which is held against Arm's vectors; shifts of 32 bits and more are undefined in C."""
    checked = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-shared", "-fPIC", f"-I{PORTABLE}"]
    done = run(tool("gcc", "cc"), *checked, PORTABLE / "arm_nnfunctions.c", "-o", tmp_path / "kernels.so")
    assert done.returncode == 0, done.stderr
    softmax = ctypes.CDLL(str(tmp_path / "kernels.so")).arm_softmax_q7
    inputs = np.array([(127, 127 - below, 127 - below // 2) for below in range(256)], np.int8)
    layer = PowersSoftmax("softmax", ("x",), "softmax", ((3,),))
    g = OnnxGraph()
    g.output(layer.kernels[0].build(g, [g.input("x", np.float32, (3,))], layer, None, Target()))
    (expected,) = g.session().run(None, {"x": inputs.astype(np.float32)})
    found = np.empty_like(inputs)
    for x, y in zip(inputs, found):
        softmax(ctypes.c_void_p(x.ctypes.data), ctypes.c_uint16(3), ctypes.c_void_p(y.ctypes.data))
    np.testing.assert_array_equal(found, expected)
