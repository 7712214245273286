# SPDX-License-Identifier: Apache-2.0
"""What a person gets wrong at the command line: exit code 2, one sentence on stderr, and no file begun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.pipeline import quantize
from caffe_to_cmsis_nn.search import device_objective
from tests import tiny
from tests.support import ROOT, write_dataset
from tests.test_fuzz import OLD_PICKLE


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys: pytest.CaptureFixture[str], folder: Path, main: Callable[[list[str]], int], *arguments: str) -> str:
    """Runs a script that must fail; returns what it says."""
    capsys.readouterr()
    before = tree(folder)
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse's way to refuse a flag
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert tree(folder) == before
    return err


def sentence(text: str, script: str) -> str:
    """The one line on stderr."""
    (line,) = text.splitlines()
    assert line.startswith(f"{script}: ")
    return line


Damage = Callable[[Path], None]


def write(name: str, content: bytes) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def cut(name: str, share: float) -> Damage:
    """Keeps the first part of a file."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return apply


def replace(old: str, new: str) -> Damage:
    """Changes the prototxt."""

    def apply(folder: Path) -> None:
        text = (folder / "net.prototxt").read_text()
        assert old in text
        (folder / "net.prototxt").write_text(text.replace(old, new))

    return apply


def remove(name: str) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def weights(**changed: list[np.ndarray] | None) -> Damage:
    """Writes weights of which some are others, or left out."""

    def apply(folder: Path) -> None:
        blobs = {name: blob for name, blob in {**tiny.blobs(), **changed}.items() if blob is not None}
        write_weights(folder / "net.caffemodel.h5", "net", blobs, tiny.TYPES)

    return apply


def data(shape: tuple[int, ...], label: int) -> Damage:
    return lambda folder: lmdb_images.write(folder / "data_lmdb", [np.zeros(shape, np.uint8)], [label])


def deploy(folder: Path) -> None:
    """Has the prototxt name a shape in place of the data."""
    shape = " ".join(f"input_dim: {extent}" for extent in (1, *tiny.IMAGE))
    (folder / "net.prototxt").write_text(f'name: "net" input: "data" {shape}\n{tiny.LAYERS}')


def nothing(folder: Path) -> None:
    """Leaves the files as they are."""


CONV = tiny.blobs()["conv1"]
WRONG = "is truncated, damaged or of another kind"
QUANTIZER = {
    "no network": (remove("net.prototxt"), [], "cannot read the network definition"),
    "no weights": (remove("net.caffemodel.h5"), [], "cannot read the weights file"),
    "no data set": (remove("data_lmdb"), [], "layer 'data': the LMDB 'data_lmdb' does not exist"),
    "an empty folder as data set": (remove("data_lmdb/data.mdb"), [], "is not an LMDB: it has no data.mdb"),
    "a file as data set": (write("data_lmdb/data.mdb", b"text"), [], WRONG),
    "a truncated data set": (cut("data_lmdb/data.mdb", 0.5), [], WRONG),
    "a label too high": (data(tiny.IMAGE, 3), [], "has labels from 3 to 3, but layer 'ip1' has 3 outputs"),
    "a negative label": (data(tiny.IMAGE, -1), [], "has labels from -1 to -1"),
    "images of another size": (data((3, 9, 9), 0), [], "asks for (3, 50) and (3,) with images of 3x9x9"),
    "other channels": (
        data((1, 6, 6), 0),
        [],
        "the weights of layer 'conv1' are for images with 3 channels, those of 'data_lmdb' have 1",
    ),
    "no CIFAR-10": (
        replace('"data_lmdb"', '"cifar10_test_lmdb"'),
        [],
        "; models/get_cifar10.py makes it",
    ),
    "no text": (write("net.prototxt", b"\xff\xfe"), [], WRONG),
    "half a network": (cut("net.prototxt", 0.5), [], WRONG),
    "weights as network": (
        nothing,
        ["--model", "net.caffemodel.h5"],
        "--model 'net.caffemodel.h5' is a binary file: it takes the prototxt, and --weights the trained weights",
    ),
    "network as weights": (
        nothing,
        ["--weights", "net.prototxt"],
        "--weights 'net.prototxt' is a prototxt: it takes the trained weights, and --model the prototxt",
    ),
    "network and weights swapped": (
        nothing,
        ["--model", "net.caffemodel.h5", "--weights", "net.prototxt"],
        "--model 'net.caffemodel.h5' is a binary file and --weights 'net.prototxt' a prototxt: they are swapped",
    ),
    "an unknown type": (replace('"ReLU"', '"Embed"'), [], "layer 'relu1' (Embed): this type is not supported"),
    "a mistyped field": (replace("stride", "strides"), [], "layer 'pool1' (Pooling): it has a field that this tool"),
    "a missing blob": (replace('bottom: "pool1"', 'bottom: "pool2"'), [], "no layer writes its input 'pool2'"),
    "an accuracy layer without inputs": (replace('bottom: "label"', ""), [], "2 bottoms"),
    "truncated weights": (cut("net.caffemodel.h5", 0.5), [], WRONG),
    "NaN": (weights(conv1=[CONV[0] * np.nan, CONV[1]]), [], "layer 'conv1': its weights hold NaN or infinity"),
    "infinity": (weights(conv1=[CONV[0], CONV[1] + np.inf]), [], "layer 'conv1': its weights hold NaN or infinity"),
    "weights of another shape": (weights(conv1=CONV[:1]), [], "layer 'conv1': the weights file has (2, 3, 3, 3), the"),
    "a layer without weights": (weights(ip1=None), [], "layer 'ip1' has no weights in the weights file; it has: conv1"),
    "an unknown accuracy layer": (
        nothing,
        ["--accuracy", "top5"],
        "no accuracy layer 'top5' in the TEST phase; it has",
    ),
    "the network to save to": (nothing, ["--save", "net.prototxt"], "cannot write 'net.prototxt': it is also an input"),
    "a report where the quantized weights go": (
        nothing,
        ["--report", "quantized_net.caffemodel"],
        "must name files of their own, other than '",
    ),
    "weights where the quantized ones go": (
        lambda folder: shutil.move(folder / "net.caffemodel.h5", folder / "quantized_net.caffemodel"),
        ["--weights", "quantized_net.caffemodel"],
        "quantized_net.caffemodel': it is also an input",
    ),
    "a device to save to": (nothing, ["--save", os.devnull], f"cannot write '{os.devnull}'"),
    "more classes than outputs": (data(tiny.IMAGE, 2**31 - 1), [], "has labels from 2147483647 to 2147483647, but"),
    "a folder to save to": (nothing, ["--save", "data_lmdb"], "cannot write 'data_lmdb'"),
    "a file as folder": (nothing, ["--save", "net.prototxt/net.pkl"], "cannot write 'net.prototxt/net.pkl'"),
    "too few names": (
        write("names.txt", b"horse\nship\n"),
        ["--classes", "names.txt"],
        "--classes 'names.txt' has 2 names, the network has 3 classes",
    ),
    "no names": (nothing, ["--classes", "names.txt"], "cannot read the classes' names 'names.txt'"),
    "no iterations": (nothing, ["--iterations", "0"], "--iterations 0 must be at least 1"),
    "a negative tolerance": (nothing, ["--tolerance", "-1"], "--tolerance -1.0 must be 0 or more"),
    "no tolerance": (nothing, ["--tolerance", "nan"], "--tolerance nan must be 0 or more"),
    "a folder as weights": (nothing, ["--weights", "data_lmdb"], "cannot read the weights file 'data_lmdb'"),
    "an endless name": (replace('"data_lmdb"', f'"{"d" * 5000}"'), [], "layer 'data': the LMDB 'ddd"),
    "a null in a name": (replace('"data_lmdb"', r'"data\000lmdb"'), [], "layer 'data': the LMDB 'data"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", QUANTIZER)
def test_nn_quantizer_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments = tiny.write(tmp_path)
    damage, more, message = QUANTIZER[name]
    damage(tmp_path)
    err = fails(capsys, tmp_path, nn_quantizer.main, *arguments, *more)
    assert message in sentence(err, "nn_quantizer")


def scaled(factor: float) -> Damage:
    return weights(**{name: [np.float32(factor) * blob for blob in pair] for name, pair in tiny.blobs().items()})


def with_one(value: float, blob: int = 0) -> Damage:
    """One weight, or one bias."""
    pair = [np.copy(part) for part in CONV]
    pair[blob].flat[0] = value
    return weights(conv1=pair)


EXTREMES = {
    "all denormal": (scaled(1e-42), ""),
    "all tiny": (scaled(1e-30), ""),
    "all zero": (scaled(0), ""),
    "all large": (scaled(1e15), ""),
    "all huge": (scaled(1e38), "has no Q-format"),
    "one denormal": (with_one(1e-45), ""),
    "one large": (with_one(1e10), ""),
    "one huge": (with_one(1e38), "has no Q-format"),
    "a denormal bias": (with_one(1e-45, blob=1), ""),
    "a huge bias": (with_one(1e36, blob=1), ""),
}


@pytest.mark.parametrize("objective", ["device", "caffe"])
@pytest.mark.parametrize("name", EXTREMES)
def test_weights_at_the_ends_of_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, objective: str
) -> None:
    """They give code, or one sentence; no warnings of libraries."""
    arguments = [*tiny.write(tmp_path), "--objective", objective]
    damage, message = EXTREMES[name]
    damage(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if message:
            err = fails(capsys, tmp_path, nn_quantizer.main, *arguments)
            assert message in sentence(err, "nn_quantizer")
            return
        assert nn_quantizer.main(arguments) == 0
    assert code_gen.main(["--model", "net.pkl", "--out_dir", "code"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "nan" not in out


@pytest.mark.parametrize(
    "flags", [[], ["--objective", "caffe"], ["--holdout", "0.5"], ["--holdout", "0.5", "--seed", "1"]], ids=" ".join
)
def test_nan_for_one_image_is_found_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether that image is in the first batch or not, in the sample or not, held out or not."""
    logarithm = """layer { name: "log" type: "Log" bottom: "data" top: "log" log_param { scale: -1 shift: 200 } }
    layer { name: "positive" type: "ReLU" bottom: "log" top: "positive" }\n"""
    arguments = tiny.write(tmp_path)
    replace(tiny.LAYERS, logarithm + tiny.LAYERS.replace('bottom: "data"', 'bottom: "positive"'))(tmp_path)
    replace("mean_value: 120", "")(tmp_path)
    images = np.full((70, *tiny.IMAGE), 100, np.uint8)
    images[43, 1, 2, 3] = 201
    lmdb_images.write(tmp_path / "data_lmdb", images, np.arange(70) % tiny.CLASSES)
    monkeypatch.setattr(device_objective, "SAMPLE", 20)
    monkeypatch.setattr(device_objective, "layer_by_layer", None)  # the search does not begin
    err = fails(capsys, tmp_path, nn_quantizer.main, *arguments, *flags)
    assert "layer 'log' (Log): its output for image 43 (counted from 0) is NaN or infinite, and has no Q-format" in err
    assert len(err.splitlines()) == 2, "after the note that there are few images"


@pytest.mark.parametrize(
    ("error", "sentence_"),
    [
        (
            RuntimeError("a\nlong story"),
            "unexpected RuntimeError: a long story: this is a fault of the tool: please",
        ),
        (
            KeyError(),
            "unexpected KeyError: this is a fault of the tool: please report it with the command",
        ),
        (
            MemoryError(),
            "the memory does not suffice: give less --memory, or fewer images at once; otherwise, this",
        ),
    ],
    ids=repr,
)
def test_what_is_not_foreseen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    sentence_: str,
) -> None:
    """In the middle of the writing; with -v, its traceback comes first."""
    arguments = tiny.write(tmp_path)
    assert nn_quantizer.main(arguments) == 0
    generating = ["--model", "net.pkl", "--out_dir", "code", "--onnx", "net.onnx"]
    fail = mock.Mock(side_effect=error)
    for module, script, name, main, flags in (
        (quantize.files, "nn_quantizer", "write_all", nn_quantizer.main, [*arguments, "-q"]),
        (render.files, "code_gen", "write_all", code_gen.main, generating),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            before = tree(tmp_path)
            capsys.readouterr()
            assert main(flags) == 2
            line = sentence(capsys.readouterr().err, script)
            assert line.startswith(f"{script}: {sentence_}")
            assert line.endswith("(CONTRIBUTING.md)" if type(error) is MemoryError else "; -v shows where it happened")
            assert tree(tmp_path) == before
            assert main([*(flag for flag in flags if flag != "-q"), "-v"]) == 2
            *traceback, line = [one for one in capsys.readouterr().err.splitlines() if " | " not in one]
            assert line.startswith(f"{script}: {sentence_}")
            assert any("Traceback (most recent call last)" in one for one in traceback)


def test_a_full_standard_error(tmp_path: Path) -> None:
    """The sentence goes to standard output, and the exit code stays."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "code_gen.py"), "--model", "none.pkl"]
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("code_gen: cannot read the pickle 'none.pkl'")


def test_onnx_among_the_generated_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was written, and then replaced by the code."""
    tiny.quantize(tmp_path)
    capsys.readouterr()
    flags = ["--model", "net.pkl", "--out_dir", "code", "--test_images", "0", "--onnx", "code/../code/main.cpp"]
    assert code_gen.main(flags) == 2
    message = sentence(capsys.readouterr().err, "code_gen")
    assert message.endswith("--onnx 'code/../code/main.cpp' is a file of the generated code: give it another name")
    assert not (tmp_path / "code").exists()


def test_truncated_caffemodel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path, ".caffemodel")
    cut("net.caffemodel", 0.5)(tmp_path)
    assert WRONG in sentence(fails(capsys, tmp_path, nn_quantizer.main, *arguments), "nn_quantizer")


FLAGS = [
    ["--weight", "x"],
    ["--iter", "3"],
    ["--iterations", "many"],
    ["--iterations"],
    ["--tolerance", "small"],
    ["--objective", "speed"],
    ["--core", "m4"],
    ["--rounding", "up"],
    ["--gpus"],
    ["stray"],
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_nn_quantizer_refuses_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    err = fails(capsys, tmp_path, nn_quantizer.main, *tiny.write(tmp_path), *flags)
    assert err.startswith("usage: ")
    assert "error: " in err.splitlines()[-1]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    tiny.quantize(folder)
    write_weights(folder / "net.caffemodel", "net", tiny.blobs(), tiny.TYPES)
    (folder / "old.pkl").write_bytes(OLD_PICKLE)
    return folder


@pytest.fixture
def folder(tmp_path: Path, quantized: Path) -> Path:
    shutil.copytree(quantized, tmp_path, dirs_exist_ok=True)
    return tmp_path


OLD = ["--model", "old.pkl"]
GENERATOR = {
    "no pickle": (remove("net.pkl"), [], "cannot read the pickle 'net.pkl': No such file"),
    "a folder": (nothing, ["--model", "data_lmdb"], "cannot read the pickle 'data_lmdb'"),
    "half a pickle": (cut("net.pkl", 0.5), [], WRONG),
    "an empty pickle": (cut("net.pkl", 0), [], WRONG),
    "another file": (nothing, ["--model", "net.caffemodel"], WRONG),
    "a prototxt": (
        nothing,
        ["--model", "net.prototxt"],
        "'net.prototxt' is a prototxt: nn_quantizer.py takes it, and writes the pickle",
    ),
    "a position that is not there": (
        nothing,
        ["--images", "3,99999"],
        "data_lmdb' has no image at position 99999: it holds positions 0 to 99",
    ),
    "a softmax of s8 kernels": (
        nothing,
        ["--api", "s8", "--softmax"],
        "layer 'softmax' (Softmax): no kernel can compute it: there is no s8 kernel, use --library q7",
    ),
    "an attack": (write("net.pkl", b"cos\nsystem\n(S'touch ran'\ntR."), [], "it names os.system, which is not loaded"),
    "a file as output": (nothing, ["--out_dir", "net.prototxt"], "'net.prototxt' is not a folder"),
    "an output below a file": (nothing, ["--out_dir", "net.prototxt/code"], "cannot write 'net.prototxt/code"),
    "weights for a new pickle": (nothing, ["--weights", "net.caffemodel"], "are for pickles of the original tool"),
    "an old pickle without its network": (
        remove("net.prototxt"),
        OLD,
        "the network definition 'net.prototxt' does not",
    ),
    "an old pickle without its weights": (remove("net.caffemodel"), OLD, "the quantized weights file 'net.caffemodel'"),
    "an old pickle with half its weights": (cut("net.caffemodel", 0.5), OLD, WRONG),
    "an old pickle with no such mean": (nothing, [*OLD, "--mean", "none"], "the mean file 'none' does not exist"),
    "an old pickle that lacks formats": (
        write("old.pkl", OLD_PICKLE.replace(b"S'ip1'", b"S'ip9'")),
        OLD,
        "KeyError('ip1')",
    ),
    "an old pickle of an odd scale": (
        replace("mean_value: 120", "scale: 0.3"),
        OLD,
        "'net.prototxt' has scale 0.3: for old pickles, only powers of two are supported",
    ),
    "an old pickle of a huge image": (
        write("old.pkl", OLD_PICKLE.replace(b"I6\nI6", b"I600000\nI600000")),
        OLD,
        "the pickle's image shape (3, 600000, 600000) is not supported",
    ),
    "an old pickle of a negative image": (
        write("old.pkl", OLD_PICKLE.replace(b"I6\nI6", b"I-6\nI6")),
        OLD,
        "is not supported",
    ),
    "an old pickle of a far format": (
        write("old.pkl", OLD_PICKLE.replace(b"I8", b"I800000")),
        OLD,
        "not numbers of bits",
    ),
    "an old pickle of negative shifts": (
        write("old.pkl", OLD_PICKLE.replace(b"I8", b"I-8")),
        OLD,
        "layer 'conv1': the",
    ),
}


@pytest.mark.parametrize("name", GENERATOR)
def test_code_gen_refuses(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    damage, more, message = GENERATOR[name]
    damage(folder)
    err = fails(capsys, folder, code_gen.main, "--model", "net.pkl", "--out_dir", "code", *more)
    assert message in sentence(err, "code_gen")


@pytest.mark.parametrize(
    "flags", [["--out", "x"], ["--prof"], ["--target", "moon"], ["--model"], ["stray"]], ids=" ".join
)
def test_code_gen_refuses_flags(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    err = fails(capsys, folder, code_gen.main, "--model", "net.pkl", "--out_dir", "code", *flags)
    assert err.startswith("usage: ")


def test_old_pickle_of_the_tiny_network_works(folder: Path) -> None:
    assert code_gen.main([*OLD, "--out_dir", "code"]) == 0
    assert (folder / "code" / "main.cpp").exists()


NOTES: dict[str, tuple[Damage, list[str], str]] = {
    "few images": (
        lambda folder: write_dataset(folder, tiny.IMAGE, 99, tiny.CLASSES),
        [],
        "99 test images: with fewer than 100, accuracies are mostly chance",
    ),
    "a deploy prototxt without a mean": (
        deploy,
        ["--lmdb", "data_lmdb"],
        "net.prototxt' names no mean, and 0 is taken: give --mean if the network was trained with one",
    ),
    "a deploy prototxt with a mean": (deploy, ["--lmdb", "data_lmdb", "--mean", "120"], ""),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_may_be_a_mistake_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments = tiny.write(tmp_path)
    damage, more, message = NOTES[name]
    damage(tmp_path)
    assert nn_quantizer.main([*arguments, *more]) == 0
    err = capsys.readouterr().err
    assert message in sentence(err, "nn_quantizer") if message else not err
