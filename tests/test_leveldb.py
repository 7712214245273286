# SPDX-License-Identifier: Apache-2.0
"""Test images in LevelDBs, which Caffe's Data layer reads where no backend is named."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.data import leveldb_images
from caffe_to_cmsis_nn.data.readers import LevelDb
from caffe_to_cmsis_nn.errors import UserError
from tests import tiny
from tests.generated import generate, make, network
from tests.support import FULL_SIZE, shared, write_leveldb

pytest.importorskip("plyvel", reason="plyvel has no wheel for this Python")
COUNT, TABLE = 40, 21


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (COUNT, *tiny.IMAGE), dtype=np.uint8), rng.integers(0, 3, COUNT)


def test_images_and_labels(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    write_leveldb(tmp_path / "db", *images, TABLE)
    before, reader = content(tmp_path / "db"), LevelDb()
    assert (reader.count(tmp_path / "db"), reader.probe(tmp_path / "db")) == (COUNT, reader)
    for found, expected in zip(reader.read(tmp_path / "db"), images):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(reader.read_at(tmp_path / "db", [7, 2, 30]), images):
        np.testing.assert_array_equal(found, expected[[7, 2, 30]])
    assert len(reader.read(tmp_path / "db", 3)[0]) == 3
    assert content(tmp_path / "db") == before, "nothing is written into a data set"


def test_a_table_of_a_compaction_that_was_stopped(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    """It is neither read nor written to, though its number is the next that LevelDB gives."""
    write_leveldb(tmp_path / "db", *images, TABLE)
    for number in range(6, 12):
        (tmp_path / "db" / f"{number:06}.ldb").write_bytes(b"unfinished")
    before = content(tmp_path / "db")
    np.testing.assert_array_equal(LevelDb().read(tmp_path / "db")[0], images[0])
    assert content(tmp_path / "db") == before


def test_floats_are_features(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    write_leveldb(tmp_path / "db", images[0] / 8 - 3, images[1], TABLE)
    reader = LevelDb().probe(tmp_path / "db")
    assert reader.features
    np.testing.assert_array_equal(reader.read(tmp_path / "db")[0], np.float32(images[0] / 8 - 3))


def test_from_the_prototxt_to_the_program(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    """Whether the prototxt says so by leaving the backend out, or --lmdb names such a folder."""
    arguments = tiny.write(tmp_path)
    assert nn_quantizer.main([*arguments, "-q"]) == 0
    expected = network(tmp_path / "net.pkl")
    assert expected.outcome
    text = (tmp_path / "net.prototxt").read_text()
    assert "backend: LMDB" in text
    stored, labels = expected.reader.read(tmp_path / "data_lmdb")
    write_leveldb(tmp_path / "db", stored, labels, TABLE)
    assert nn_quantizer.main([*arguments, "-q", "--lmdb", str(tmp_path / "db")]) == 0
    named = network(tmp_path / "net.pkl")
    (tmp_path / "net.prototxt").write_text(text.replace("backend: LMDB", "").replace("data_lmdb", "db"))
    assert nn_quantizer.main([*arguments, "-q"]) == 0
    for found in (named, network(tmp_path / "net.pkl")):
        assert found.outcome and found.outcome.accuracy == expected.outcome.accuracy
        assert found.reader == LevelDb()
    code = generate(tmp_path / "net.pkl", tmp_path / "code", "--target", "host", "--test_images", "5")
    assert "5 of 5 images" in make(code, "run")


def test_damage_is_never_read_as_other_images(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    """Single bits flipped, and files cut off: in a table, in the log, and in the manifest, also between its records."""
    write_leveldb(tmp_path / "db", *images, TABLE)
    expected, rng = LevelDb().read(tmp_path / "db"), np.random.default_rng(0)
    for file in sorted(path for path in (tmp_path / "db").iterdir() if path.stat().st_size and path.name != "LOG"):
        sound = file.read_bytes()
        places = rng.integers(0, len(sound), 200 if FULL_SIZE else 6).tolist()
        cut = [sound[:at] for at in (*places, *([50] if file.name.startswith("MANIFEST") else []))]
        flipped = [sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :] for at in places]
        for damaged in cut + flipped:
            file.write_bytes(damaged)
            before = content(tmp_path / "db")
            try:
                found = LevelDb().read(tmp_path / "db")
            except UserError:
                assert content(tmp_path / "db") == before, "LevelDB writes to a folder of its own"
            else:
                np.testing.assert_array_equal(found[0], expected[0])
                np.testing.assert_array_equal(found[1], expected[1])
        file.write_bytes(sound)
    np.testing.assert_array_equal(LevelDb().read(tmp_path / "db")[0], expected[0])


def test_a_log_that_was_cut_off() -> None:
    with pytest.raises(UserError, match=r"damaged or of another kind: '000004.log' is cut off or damaged at byte 888"):
        LevelDb().read(shared("cases", "attack", "leveldb_truncated_log"))


def test_no_file_is_copied_that_lies_about_its_size(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    write_leveldb(tmp_path / "db", *images, TABLE)
    (log,) = (tmp_path / "db").glob("*.log")
    for name in ("notes.txt", "000009.log", "CURRENT"):
        lying = tmp_path / "db" / name
        before = lying.read_bytes() if lying.exists() else None
        with lying.open("ab") as file:
            file.truncate(1 << 29)
        if name == "notes.txt":
            assert len(LevelDb().read(tmp_path / "db")[0]) == COUNT
        else:
            with pytest.raises(UserError, match=r"'000009.log' is cut off or damaged at byte 0|has 536870912 bytes"):
                LevelDb().read(tmp_path / "db")
        lying.unlink() if before is None else lying.write_bytes(before)
    log.unlink()
    with pytest.raises(UserError, match=r"its log 000004.log is missing, which has its last images"):
        LevelDb().read(tmp_path / "db")


def test_refusals(tmp_path: Path, images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"'.*none' is not a LevelDB: it has no file CURRENT"):
        leveldb_images.count(tmp_path / "none")
    write_leveldb(tmp_path / "db", *images, TABLE)
    (table,) = (tmp_path / "db").glob("*.ldb")
    sound = table.read_bytes()
    table.write_bytes(sound[:100])
    with pytest.raises(UserError, match=r"the LevelDB '.*db' is truncated, damaged or of another kind: IO error: "):
        LevelDb().read(tmp_path / "db")
    table.write_bytes(sound)
    with monkeypatch.context() as patch:
        patch.setattr(leveldb_images, "PROGRAM", "import os; os.write(2, b'no memory'); os.abort()")
        with pytest.raises(UserError, match=r"the LevelDB '.*db' is truncated, damaged or of another kind: no memory"):
            LevelDb().read(tmp_path / "db")
    write_leveldb(tmp_path / "empty", images[0][:0], images[1][:0], TABLE)
    with pytest.raises(UserError, match="holds no images"):
        LevelDb().read(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(UserError, match="is a LevelDB: pip install plyvel, or convert it"):
        LevelDb().count(tmp_path / "db")
