# SPDX-License-Identifier: Apache-2.0
"""Inputs that are no pictures: speakers by the sound of a vowel, from HDF5 or an LMDB to the board's program."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import lmdb
import numpy as np
import onnxruntime
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.ops.input import Features
from caffe_to_cmsis_nn.store import record
from tests import tiny
from tests.generated import STRICT, generate, make, network, on_host, predicted
from tests.support import ROOT, once, run, tool

VOWELS = ROOT / "tests" / "data" / "vowels"


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """(N, 12, 1, 32), as they are in the HDF5 file."""
    with h5py.File(VOWELS / "test.h5") as file:
        return np.asarray(file["data"])


def quantize(folder: Path, *flags: str) -> Path:
    """The pickle of the trained network, from files in a folder."""
    names = {"model": "vowels.prototxt", "weights": "vowels.caffemodel", "save": "net.pkl"}
    given = [word for flag, name in names.items() for word in (f"--{flag}", str(folder / name))]
    assert nn_quantizer.main([*given, "-q", *flags]) == 0
    return folder / "net.pkl"


def _quantize_vowels(folder: Path) -> None:
    for file in VOWELS.iterdir():
        shutil.copy(file, folder)
    quantize(folder, "--report", str(folder / "report.html"), "--onnx", str(folder / "float.onnx"))


@pytest.fixture(scope="module")
def pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "vowels", _quantize_vowels) / "net.pkl"


def given(quantized: QuantizedNetwork, features: np.ndarray) -> np.ndarray:
    """(N, H, W, C) int8 what the device gets."""
    channels, *extents = quantized.graph.input.out_shape
    return known_answers.device_input(quantized, features).reshape(len(features), *extents, channels)


def test_the_device_is_as_good_as_the_float_network(pickle: Path) -> None:
    quantized = network(pickle)
    assert quantized.outcome and quantized.outcome.images == 185
    assert quantized.outcome.known.in_float > 96 and quantized.outcome.known.loss <= 0.6
    assert isinstance(quantized.graph.input, Features)
    assert "<img" not in (pickle.parent / "report.html").read_text()


def test_formats_by_the_original_procedure(pickle: Path, tmp_path: Path) -> None:
    shutil.copytree(pickle.parent, tmp_path, dirs_exist_ok=True)
    outcome = network(quantize(tmp_path, "--objective", "caffe")).outcome
    assert outcome and outcome.known.loss <= 1.1


def test_onnx_takes_features(pickle: Path, features: np.ndarray, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(pickle.parent / "float.onnx", providers=["CPUExecutionProvider"])
    generate(pickle, tmp_path / "code", "--target", "host", "--onnx", str(tmp_path / "device.onnx"))
    (logits,) = session.run(None, {"features": features})
    (integers,) = onnxruntime.InferenceSession(tmp_path / "device.onnx").run(None, {"features": features})
    np.testing.assert_array_equal(integers, predicted(network(pickle), features))
    assert (logits.argmax(axis=1) == integers.argmax(axis=1)).mean() > 0.98


@pytest.mark.parametrize("kernels", [("--api", "q7"), ("--api", "s8"), ("--kernels", "own", "--ram", "least")])
def test_programs_compute_what_is_predicted(
    kernels: tuple[str, ...], pickle: Path, features: np.ndarray, tmp_path: Path
) -> None:
    quantized = network(pickle)
    host = generate(pickle, tmp_path / "host", "--target", "host", *kernels)
    assert "PASS" in make(host, "run")
    channels_first = np.moveaxis(given(quantized, features), -1, 1)
    np.testing.assert_array_equal(on_host(host, channels_first), predicted(quantized, features))
    tool("arm-none-eabi-g++")
    tool("qemu-system-arm")
    board = generate(pickle, tmp_path / "board", "--target", "mps2", "--test_images", "10", *kernels)
    assert "PASS: every layer as predicted for 10 of 10 images" in make(board, "run")


PROGRAM = """#include <stdio.h>
#include "network.h"
int main(void)
{
    static float features[NN_INPUT_BYTES];
    static int8_t input[NN_INPUT_BYTES];
    FILE *const from = fopen("in.bin", "rb"), *const to = fopen("out.bin", "wb");
    while (fread(features, sizeof(float), NN_INPUT_BYTES, from) == NN_INPUT_BYTES) {
        nn_quantize(features, input);
        fwrite(input, 1, NN_INPUT_BYTES, to);
    }
    return fclose(from) | fclose(to);
}
"""


def test_floats_become_integers_as_in_the_device_model(pickle: Path, features: np.ndarray, tmp_path: Path) -> None:
    """At halfway points, next to them, and beyond what the format holds, too."""
    quantized = network(pickle)
    y = quantized.formats[quantized.graph.input.name].y
    assert y
    halves = ((np.arange(-150, 150) + 0.5) * 2.0**-y.fraction_bits).astype(np.float32)
    odd = np.concatenate([np.nextafter(halves, np.float32(way)) for way in (-1e9, 1e9)] + [halves])
    odd = np.concatenate([odd, np.array([1e30, -1e30, 0, -0.0, 1e-40], np.float32)])
    values = np.concatenate([features[:20], np.resize(odd, (3, *features.shape[1:]))])
    folder = generate(pickle, tmp_path, "--target", "host")
    (folder / "quantize.c").write_text(PROGRAM)
    done = run(tool("gcc", "cc"), "-O2", *STRICT, folder / "quantize.c", "-o", folder / "quantize")
    assert done.returncode == 0, done.stderr
    np.ascontiguousarray(np.moveaxis(values, 1, -1)).tofile(folder / "in.bin")
    assert run("./quantize", cwd=folder).returncode == 0
    found = np.fromfile(folder / "out.bin", np.int8).reshape(len(values), *values.shape[2:], -1)
    np.testing.assert_array_equal(found, given(quantized, values))


def test_an_lmdb_of_floats(pickle: Path, features: np.ndarray, tmp_path: Path) -> None:
    """With Caffe's transformation; the network is the one for HDF5 files of its results."""
    with h5py.File(VOWELS / "test.h5") as file:
        labels = np.asarray(file["label"]).astype(int)
    (tmp_path / "data_lmdb").mkdir()
    database = lmdb.open(str(tmp_path / "data_lmdb"), map_size=1 << 26)
    with database, database.begin(write=True) as transaction:
        for i, (values, label) in enumerate(zip(features * 4 + 1, labels.tolist())):
            datum = pb.Datum(channels=12, height=1, width=32, label=label, float_data=values.ravel().tolist())
            transaction.put(b"%08d" % i, datum.SerializeToString())
    shutil.copy(VOWELS / "vowels.caffemodel", tmp_path)
    text = (VOWELS / "vowels.prototxt").read_text().replace("HDF5Data", "Data")
    text = text.replace('hdf5_data_param { source: "test.txt"', 'data_param { source: "data_lmdb" backend: LMDB')
    end = "batch_size: 37 }"
    assert end in text
    (tmp_path / "vowels.prototxt").write_text(text.replace(end, end + " transform_param { mean_value: 1 scale: 0.25 }"))
    quantized = network(quantize(tmp_path))
    np.testing.assert_array_equal(predicted(quantized, features * 4 + 1), predicted(network(pickle), features))
    assert "PASS" in make(generate(tmp_path / "net.pkl", tmp_path / "host", "--target", "host"), "run")
    stored, _ = quantized.reader.open(tmp_path / "data_lmdb", None, lambda image: image, in_memory=100)
    assert not isinstance(stored, np.ndarray)
    np.testing.assert_array_equal(stored[3:5], features[3:5] * 4 + 1)


def test_denormal_features(tmp_path: Path) -> None:
    """Their factor would be 8.9e+43f in network.h, which no float holds."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "tiny.h5", "w") as file:
        file["data"] = rng.uniform(-1e-42, 1e-42, (40, 3, 6, 6)).astype(np.float32)
        file["label"] = rng.integers(0, 3, 40)
    (tmp_path / "tiny.txt").write_text("tiny.h5\n")
    arguments = tiny.write(tmp_path)
    text = (tmp_path / "net.prototxt").read_text().replace('type: "Data"', 'type: "HDF5Data"')
    text = text.replace("transform_param { mean_value: 120 }", "").replace("data_param {", "hdf5_data_param {")
    text = text.replace(" backend: LMDB", "").replace("data_lmdb", str(tmp_path / "tiny.txt"))
    (tmp_path / "net.prototxt").write_text(text)
    assert nn_quantizer.main([*arguments, "-q"]) == 0
    code = generate(tmp_path / "net.pkl", tmp_path / "code", "--test_images", "0")
    factors = [float(number) for number in re.findall(r"(\d[-+.0-9e]*)f\b", (code / "network.h").read_text())]
    assert factors
    assert np.isfinite(np.array(factors, np.float32)).all()


def test_vectors_of_features(tmp_path: Path, features: np.ndarray) -> None:
    """(N, features), as HDF5Data gives a perceptron."""
    flat = features.reshape(len(features), -1)[:, ::24]
    with h5py.File(tmp_path / "test.h5", "w") as file:
        file.update({"data": flat, "label": np.arange(len(flat)) % 3})
        weights = np.random.default_rng(0).normal(0, 1, (3, flat.shape[1])).astype(np.float32)
    (tmp_path / "test.txt").write_text("test.h5\n")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.update({"data/ip/0": weights, "data/ip/1": np.zeros(3, np.float32)})
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "data" type: "HDF5Data" top: "data" top: "label" '
        'hdf5_data_param { source: "test.txt" batch_size: 5 } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }\n'
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }\n'
    )
    files = {"model": "net.prototxt", "weights": "weights.h5", "save": "net.pkl"}
    words = [word for flag, name in files.items() for word in (f"--{flag}", str(tmp_path / name))]
    assert nn_quantizer.main([*words, "-q"]) == 0
    loaded = record.load(tmp_path / "net.pkl").network
    assert loaded
    wide = flat[:, :, None, None]
    logits = DeviceNetwork(loaded.graph, wide, loaded.target).logits(loaded.layers)
    assert (logits.argmax(axis=1) == (flat @ weights.T).argmax(axis=1)).mean() > 0.95


def test_refusals(pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import code_gen

    flags = ["--model", str(pickle), "--out_dir", str(tmp_path / "code"), "--image", str(VOWELS / "test.h5")]
    assert code_gen.main(flags) == 2
    assert "the network takes features, not pictures" in capsys.readouterr().err
    shutil.copytree(pickle.parent, tmp_path, dirs_exist_ok=True)
    with h5py.File(tmp_path / "test.h5", "r+") as file:
        file["data"][7, 3, 0, 1] = np.inf
    words = ("--model", "vowels.prototxt", "--weights", "vowels.caffemodel", "--save", "net.pkl")
    paths = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    assert nn_quantizer.main(paths) == 2
    assert "data set 'data' has values that are not finite" in capsys.readouterr().err
    assert nn_quantizer.main([*paths, "--scale", "0.5"]) == 2
    assert "that are not (pixel - mean) * scale of 8-bit pixels" in capsys.readouterr().err
