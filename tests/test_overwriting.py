# SPDX-License-Identifier: Apache-2.0
"""No output may be an input, by whatever path or link: it ends in one sentence, and every file stays as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import code_gen
import nn_quantizer
from tests import tiny
from tests.support import MODELS
from tests.test_bad_input import sentence

sys.path.insert(0, str(MODELS))

import make_lmdb

LMDB_LAYER = 'data_param { source: "data_lmdb" batch_size: 10 backend: LMDB }'


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def use_list(folder: Path, kind: str, param: str) -> None:
    """Has the tiny network read its images from list.txt."""
    text = (folder / "net.prototxt").read_text()
    text = text.replace('type: "Data"', f'type: "{kind}"').replace(LMDB_LAYER, param)
    text = text.replace("transform_param { mean_value: 120 }", "") if kind == "HDF5Data" else text
    (folder / "net.prototxt").write_text(text)


def write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(folder / f"i{i}.png")
    (folder / "list.txt").write_text("".join(f"i{i}.png {i}\n" for i in range(3)))
    use_list(folder, "ImageData", 'image_data_param { source: "list.txt" batch_size: 3 }')


def write_hdf5(folder: Path) -> None:
    with h5py.File(folder / "images.h5", "w") as file:
        file["data"] = np.zeros((3, *tiny.IMAGE), np.float32)
        file["label"] = np.arange(3)
    (folder / "list.txt").write_text("images.h5\n")
    use_list(folder, "HDF5Data", 'hdf5_data_param { source: "list.txt" batch_size: 3 }')


def link(folder: Path) -> None:
    (folder / "link.html").symlink_to("data_lmdb/data.mdb")


def hard_link(folder: Path) -> None:
    os.link(folder / "data_lmdb" / "data.mdb", folder / "hard.html")


def nothing(folder: Path) -> None:
    """Leaves the files as they are."""


QUANTIZER = {
    "the network": (nothing, "--save", "net.prototxt"),
    "the weights": (nothing, "--json", "net.caffemodel.h5"),
    "the data set": (nothing, "--report", "data_lmdb/data.mdb"),
    "the data set, pickled to": (nothing, "--save", "data_lmdb/data.mdb"),
    "by a detour": (nothing, "--json", "data_lmdb/../data_lmdb/./data.mdb"),
    "through a link": (link, "--report", "link.html"),
    "under another name": (hard_link, "--report", "hard.html"),
    "a list of pictures": (write_pictures, "--save", "list.txt"),
    "a picture": (write_pictures, "--save", "i0.png"),
    "a list of HDF5 files": (write_hdf5, "--save", "list.txt"),
    "an HDF5 file": (write_hdf5, "--report", "images.h5"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", QUANTIZER)
def test_nn_quantizer(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments = tiny.write(tmp_path)
    prepare, flag, path = QUANTIZER[name]
    prepare(tmp_path)
    before = contents(tmp_path)
    assert nn_quantizer.main([*arguments, flag, path]) == 2
    assert "it is also an input" in sentence(capsys.readouterr().err, "nn_quantizer")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("prepare", [write_pictures, write_hdf5])
def test_the_same_data_sets_are_fine_otherwise(tmp_path: Path, prepare: object) -> None:
    arguments = tiny.write(tmp_path)
    assert callable(prepare)
    prepare(tmp_path)
    assert nn_quantizer.main(arguments) == 0


def test_code_gen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = tiny.quantize(tmp_path)
    (tmp_path / "code").mkdir()
    pickle.rename(tmp_path / "code" / "main.cpp")
    before = contents(tmp_path)
    assert code_gen.main(["--model", "code/main.cpp", "--out_dir", "code", "--test_images", "0"]) == 2
    assert "cannot write 'code/main.cpp': it is also an input" in sentence(capsys.readouterr().err, "code_gen")
    assert contents(tmp_path) == before


def test_code_gen_dump_over_the_list_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path)
    write_pictures(tmp_path)
    (tmp_path / "list.txt").rename(tmp_path / "checksums.txt")
    text = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(text.replace("list.txt", "checksums.txt"))
    assert nn_quantizer.main(arguments) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert code_gen.main(["--model", "net.pkl", "--out_dir", "code", "--dump", "."]) == 2
    assert "cannot write 'checksums.txt': it is also an input" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_make_lmdb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder = tmp_path / "pictures" / "class"
    write_folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(write_folder / "a.png")
    before = contents(tmp_path)
    assert make_lmdb.main(["pictures", "out_lmdb", "--mean", "pictures/class/a.png"]) == 2
    assert "it is also an input" in sentence(capsys.readouterr().err, "make_lmdb")
    assert contents(tmp_path) == before
