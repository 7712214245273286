# SPDX-License-Identifier: Apache-2.0
"""What a person gets wrong at the command line: exit code 2, one sentence on stderr, and no file begun."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.data import lmdb_images
from tests import tiny
from tests.support import write_dataset
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
