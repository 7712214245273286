# SPDX-License-Identifier: Apache-2.0
"""Networks as ONNX models: what onnxruntime computes of them is what the device and the float network compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.pipeline.job import Job
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import LIBRARIES, Core, Library, Target
from tests import small, tiny
from tests.generated import network, predicted
from tests.support import FULL_SIZE, MODELS
from tests.test_bad_input import sentence

FLOAT_IMAGES = 10_000 if FULL_SIZE else 2000


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """What an exported model gives for raw pixels (N, C, H, W)."""
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(str(path))
    (pixels,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixels", "tensor(uint8)", [*images.shape[1:]])
    parts = [session.run(None, {"pixels": images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    result: np.ndarray = np.concatenate(parts)
    assert logits.name == "logits" and [*logits.shape[1:]] == [*result.shape[1:]]
    return result


def export(pickle: Path, folder: Path, *flags: str) -> Path:
    out = folder / "net.onnx"
    arguments = ["--model", str(pickle), "--out_dir", str(folder / "code"), "--onnx", str(out), "--test_images", "0"]
    assert code_gen.main([*arguments, *flags]) == 0
    return out


@pytest.mark.parametrize("flags", [[], pytest.param(["--api", "s8"], marks=pytest.mark.slow)], ids=" ".join)
def test_all_test_images_on_the_device(lenet_pickle: Path, tmp_path: Path, flags: list[str]) -> None:
    images, labels = lmdb_images.read(MODELS / "mnist_test_lmdb")
    logits = run(export(lenet_pickle, tmp_path, *flags), images)
    quantized = network(lenet_pickle)
    assert logits.dtype == np.int8 and len(logits) == 10000
    np.testing.assert_array_equal(logits, predicted(quantized, images))
    assert quantized.outcome
    assert 100 * np.mean(logits.argmax(axis=1) == labels) == quantized.outcome.known.on_device


@pytest.mark.parametrize("core", Core)
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
def test_kernels_of_all_kinds(library: Library, core: Core, tmp_path: Path) -> None:
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    images = np.random.default_rng(1).integers(0, 256, (100, *small.SHAPE), dtype=np.uint8)
    target = Target(core, library=library)
    path = export(pickle, tmp_path, "--api", library.name, "--core", core.value)
    np.testing.assert_array_equal(run(path, images), predicted(lowering.retarget(network(pickle), target), images))
    names = {node.name for node in onnx.load(str(path)).graph.node}
    assert {"data", "ip2"} < names


def test_test_images_in_float(lenet_job: Job, tmp_path: Path) -> None:
    path, images = tmp_path / "float.onnx", lenet_job.images[:FLOAT_IMAGES]
    trained = FloatNetwork(lenet_job.graph, images)
    path.write_bytes(trained.to_onnx(as_trained(lenet_job.graph)))
    logits, expected = run(path, images), trained.logits(as_trained(lenet_job.graph))
    assert logits.dtype == np.float32 and len(logits) == FLOAT_IMAGES
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


def test_the_flag_of_the_quantizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path)
    assert nn_quantizer.main([*arguments, "--onnx", str(tmp_path / "float.onnx"), "--objective", "caffe"]) == 0
    images, _ = lmdb_images.read(tmp_path / "data_lmdb")
    assert run(tmp_path / "float.onnx", images).shape == (100, 3)
    assert f"'{tmp_path / 'float.onnx'}'" in capsys.readouterr().out
    assert nn_quantizer.main([*arguments, "--onnx", str(tmp_path / "net.pkl")]) == 2
    assert "must name files of their own" in sentence(capsys.readouterr().err, "nn_quantizer")
