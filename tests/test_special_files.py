# SPDX-License-Identifier: Apache-2.0
"""Pipes, devices and endless files, wherever a file is read: refused at once, in one sentence."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.store import record
from tests import tiny
from tests.support import MODELS, shared, write_leveldb

LIST = """
layer {{ name: "data" type: "{kind}" top: "data" top: "label" {param} {{ source: "{source}" batch_size: 1 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 2 }} }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }}
"""
PARAMS = {"ImageData": "image_data_param", "HDF5Data": "hdf5_data_param"}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _endless(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def _quantize(folder: Path, **changed: str) -> int:
    flags = {
        "model": str(MODELS / "lenet_train_test.prototxt"),
        "weights": str(next(MODELS.glob("lenet_iter_*.caffemodel.h5"))),
        "save": str(folder / "out.pkl"),
        **changed,
    }
    return nn_quantizer.main(["-q", *(part for name, value in flags.items() for part in (f"--{name}", value))])


def _list(kind: str, entries: bool) -> Callable[[Path, Path], int]:
    """A list that is `bad`, or that names what is."""

    def run(folder: Path, bad: Path) -> int:
        source = folder / "list.txt" if entries else bad
        (folder / "list.txt").write_text(f"{bad} 0\n" if kind == "ImageData" else f"{bad}\n")
        (folder / "net.prototxt").write_text(LIST.format(kind=kind, param=PARAMS[kind], source=source))
        return _quantize(folder, model=str(folder / "net.prototxt"))

    return run


def _old_pickle(key: str) -> Callable[[Path, Path], int]:
    def run(folder: Path, bad: Path) -> int:
        data = shared("data", "arm_m4")
        attributes = {
            **record.load(data / "cifar10_m4.pkl").attributes,
            "model_file": str(data / "cifar10_m4_train_test.prototxt"),
            "quant_weight_file": str(data / "quantized_cifar10_m4_iter_70000.caffemodel"),
            "mean_file": str(shared("data", "cifar10", "mean.binaryproto")),
            key: str(bad),
        }
        instance = nn_quantizer.Caffe_Quantizer()
        vars(instance).clear()
        vars(instance).update(attributes)
        (folder / "old.pkl").write_bytes(pickle.dumps(instance, 2))
        return code_gen.main(["--model", str(folder / "old.pkl"), "--out_dir", str(folder / "code")])

    return run


def _dataset(folder: Path, bad: Path) -> int:
    content: dict[str, Any] = pickle.loads(tiny.quantize(folder).read_bytes())
    content["network"]["dataset"] = str(bad)
    (folder / "net.pkl").write_bytes(pickle.dumps(content, 4))
    return nn_quantizer.main(["--eval", str(folder / "net.pkl")])


def _leveldb(folder: Path, bad: Path) -> int:
    pytest.importorskip("plyvel", reason="plyvel has no wheel for this Python")
    write_leveldb(folder / "db", np.zeros((5, *tiny.IMAGE), np.uint8), range(5), 3)
    (log,) = (folder / "db").glob("*.log")
    log.unlink()
    log.symlink_to(bad)
    (table,) = (folder / "db").glob("*.ldb")
    table.unlink()
    table.symlink_to(bad)
    return _quantize(folder, lmdb=str(folder / "db"))


READ: dict[str, Callable[[Path, Path], int]] = {
    "model": lambda folder, bad: _quantize(folder, model=str(bad)),
    "weights": lambda folder, bad: _quantize(folder, weights=str(bad)),
    "mean": lambda folder, bad: _quantize(folder, mean=str(bad)),
    "LMDB": lambda folder, bad: _quantize(folder, lmdb=str(bad)),
    "LevelDB's files": _leveldb,
    "list of pictures": _list("ImageData", entries=False),
    "picture of a list": _list("ImageData", entries=True),
    "list of HDF5 files": _list("HDF5Data", entries=False),
    "HDF5 file of a list": _list("HDF5Data", entries=True),
    "pickle": lambda folder, bad: code_gen.main(["--describe", str(bad)]),
    "old pickle's model": _old_pickle("model_file"),
    "old pickle's weights": _old_pickle("quant_weight_file"),
    "old pickle's mean": _old_pickle("mean_file"),
    "pickle's data set": _dataset,
}


@pytest.mark.parametrize(
    ("make", "what"),
    [(make, what) for make in (_fifo, _device, _endless) for what in READ],
)
def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "bad")
    assert READ[what](tmp_path, tmp_path / "bad") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message
    if make is _endless:
        assert (tmp_path / "bad").stat().st_size == 1 << 40
