# SPDX-License-Identifier: Apache-2.0
"""LMDBs of images: what is read as Caffe reads it, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.errors import UserError


def write_datums(path: Path, *datums: Any) -> Path:
    """An LMDB as Caffe's tools write it."""
    with lmdb.open(str(path), map_size=1 << 26) as database, database.begin(write=True) as transaction:
        for i, datum in enumerate(datums):
            transaction.put(b"%08d" % i, datum if isinstance(datum, bytes) else datum.SerializeToString())
    return path


def raw(channels: int, height: int, width: int, label: int = 0) -> Any:
    data = bytes(i % 256 for i in range(channels * height * width))
    return pb.Datum(channels=channels, height=height, width=width, data=data, label=label)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 3000), (30, 500), (90, 40)])
def test_lmdb_round_trip(tmp_path: Path, size: int, count: int) -> None:
    """Small values lie in leaves, large ones on pages of their own; many of them make branches."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 2, size, size), dtype=np.uint8), rng.integers(0, 10, count)
    lmdb_images.write(tmp_path / "db", images, labels)
    assert os.listdir(tmp_path / "db") == ["data.mdb"]
    found = lmdb_images.read(tmp_path / "db")
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    first = lmdb_images.read(tmp_path / "db", range(1))
    np.testing.assert_array_equal(first[0], images[:1])
    assert (found[0].dtype.name, found[1].dtype.name, first[1].tolist()) == ("uint8", "int32", [labels[0]])


def test_lmdb_that_was_written_in_several_transactions(tmp_path: Path) -> None:
    """Freed pages stay in the file, and either of the two metas may be the newest."""
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 26) as database:
        for i in range(7):
            with database.begin(write=True) as transaction:
                transaction.put(b"%d" % (i % 4), raw(1, 40, 50, i).SerializeToString())
            assert (
                lmdb_images.read(tmp_path / "db")[1].tolist()
                == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4, 1, 2, 3], [4, 5, 2, 3], [4, 5, 6, 3]][i]
            )
    assert lmdb_images.read(tmp_path / "db" / "data.mdb")[1].tolist() == [4, 5, 6, 3]


def test_float_datums(tmp_path: Path) -> None:
    datum = pb.Datum(channels=1, height=1, width=3, float_data=[0, 255, 7])
    assert lmdb_images.read(write_datums(tmp_path / "a", datum))[0].tolist() == [[[[0, 255, 7]]]]
    for values in ([0.5, 1, 1], [-1, 0, 0], [256, 0, 0], [float("nan"), 0, 0]):
        datum = pb.Datum(channels=1, height=1, width=3, float_data=values)
        with pytest.raises(UserError, match="key '00000000': float_data that is no pixel"):
            lmdb_images.read(write_datums(tmp_path / "b", datum))


def encoded(kind: str, mode: str, pixels: np.ndarray) -> Any:
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return pb.Datum(encoded=True, data=content.getvalue(), label=1)


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", 8)])
def test_encoded_colours_are_blue_green_red(tmp_path: Path, kind: str, tolerance: int) -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    pixels[:] = 200, 100, 30  # red, green, blue
    images, labels = lmdb_images.read(write_datums(tmp_path / "db", encoded(kind, "RGB", pixels)))
    assert images.shape == (1, 3, 8, 9)
    np.testing.assert_allclose(images[0, :, 4, 4].astype(int), [30, 100, 200], atol=tolerance)
    assert labels.tolist() == [1]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("P", 3)])
def test_encoded_modes(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = np.full((4, 4, 3), 255, np.uint8)
    images, _ = lmdb_images.read(write_datums(tmp_path / "db", encoded("PNG", mode, pixels)))
    np.testing.assert_array_equal(images, np.full((1, channels, 4, 4), 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_encoded_modes_that_caffe_reads_otherwise(tmp_path: Path, mode: str) -> None:
    pixels = np.full((4, 4), 255, np.uint8)
    seen = f"({mode}|I)"  # older Pillows call I;16 so
    with pytest.raises(UserError, match=f"an image of mode {seen}, allowed are 8-bit grey and colours without alpha"):
        lmdb_images.read(write_datums(tmp_path / "db", encoded("PNG", mode, pixels)))


@pytest.mark.parametrize(
    ("datums", "message"),
    [
        ([raw(1, 2, 3), raw(1, 3, 2)], "key '00000001': image shape (1, 3, 2), but the first has (1, 2, 3)"),
        ([pb.Datum(channels=1, height=2, width=2, data=b"abc")], "3 values for an image of shape (1, 2, 2)"),
        ([pb.Datum(channels=-1, height=-2, width=2, data=b"abcd")], "4 values for an image of shape (-1, -2, 2)"),
        ([pb.Datum(channels=0, height=2, width=2)], "0 values for an image of shape (0, 2, 2)"),
        ([b"\xff\xff"], "key '00000000': its Datum is truncated, damaged or of another kind"),
        ([pb.Datum(encoded=True, data=b"no image")], "the encoded image is truncated, damaged or of another kind"),
        ([pb.Datum(label=1)], "0 values for an image of shape (0, 0, 0)"),
        ([], "holds no images"),
    ],
)
def test_datums_that_are_refused(tmp_path: Path, datums: list[Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        lmdb_images.read(write_datums(tmp_path / "db", *datums))
    assert message in str(caught.value)


def test_keys_come_into_messages_as_one_line(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db")) as database, database.begin(write=True) as transaction:
        transaction.put(b"a\n\x1b[31m\xff", b"")
    with pytest.raises(UserError, match=r"db', key 'a\?\?\[31m\\xff': 0 values"):
        lmdb_images.read(tmp_path / "db")


def test_image_bomb(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("1", (5000, 5000)).save(content, "PNG")
    with pytest.raises(UserError, match="an image of 5000x5000 pixels is too large"):
        lmdb_images.read(write_datums(tmp_path / "db", pb.Datum(encoded=True, data=content.getvalue())))


def test_what_is_no_lmdb(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not an LMDB: it has no data\.mdb"):
        lmdb_images.read(tmp_path)
    with pytest.raises(UserError, match="is not an LMDB"):
        lmdb_images.read(tmp_path / "none")
    for content in (b"", b"hello", bytes(20000)):
        (tmp_path / "data.mdb").write_bytes(content)
        with pytest.raises(UserError, match=r"the LMDB '.*' is truncated, damaged or of another kind"):
            lmdb_images.read(tmp_path)


def test_truncated_lmdb(tmp_path: Path) -> None:
    """The C library would take SIGBUS here, which no handler could turn into a message."""
    lmdb_images.write(tmp_path / "db", np.zeros((50, 3, 20, 20), np.uint8), range(50))
    path = tmp_path / "db" / "data.mdb"
    whole = path.read_bytes()
    for size in range(0, len(whole), 3000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"the LMDB '.*' is truncated, damaged or of another kind"):
            lmdb_images.read(tmp_path / "db")


@pytest.mark.parametrize("lost", [1, 3])
def test_lmdb_that_lost_entries(tmp_path: Path, lost: int) -> None:
    lmdb_images.write(tmp_path / "db", np.zeros((3, 1, 2, 2), np.uint8), range(3))
    path = tmp_path / "db" / "data.mdb"
    content = bytearray(path.read_bytes())
    leaf = next(at for at in range(8192, len(content), 4096) if content[at + 10] == 2)
    content[leaf + 12] -= 2 * lost  # where the offsets of the entries end
    path.write_bytes(content)
    with pytest.raises(UserError, match="another kind: it says that it has 3 entries"):
        lmdb_images.read(tmp_path / "db")


def test_lmdb_whose_pages_lead_back(tmp_path: Path) -> None:
    lmdb_images.write(tmp_path / "db", np.zeros((300, 1, 2, 2), np.uint8), [0] * 300)
    path = tmp_path / "db" / "data.mdb"
    content = bytearray(path.read_bytes())
    root = next(at for at in range(8192, len(content), 4096) if content[at + 10] == 1)
    for offset in range(root + 16, root + int.from_bytes(content[root + 12 : root + 14], "little"), 2):
        node = root + int.from_bytes(content[offset : offset + 2], "little")
        content[node : node + 4] = (root // 4096).to_bytes(4, "little")
    for depth in (2, 60000):
        for meta in (0, 4096):
            content[meta + 94 : meta + 96] = depth.to_bytes(2, "little")
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is of another kind$|lead back to each other$"):
            lmdb_images.read(tmp_path / "db")


def test_lmdb_of_another_kind(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20, max_dbs=1) as database:
        database.open_db(b"named")
    with pytest.raises(UserError, match="page 2 holds no plain values"):
        lmdb_images.read(tmp_path / "db")


def test_a_data_set_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    lmdb_images.write(tmp_path / "db", np.zeros((2, 1, 2, 2), np.uint8), [4, 5])
    with pytest.raises(ValueError, match="not enough values to unpack"):
        lmdb_images.write(tmp_path / "db", [np.zeros((1, 2, 2), np.uint8), np.zeros(3)], [1, 2])
    assert lmdb_images.read(tmp_path / "db")[1].tolist() == [4, 5]
    assert os.listdir(tmp_path / "db") == ["data.mdb"]
