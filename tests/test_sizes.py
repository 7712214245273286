# SPDX-License-Identifier: Apache-2.0
"""Time and memory grow with the input as they must, and no faster."""

from __future__ import annotations

import math
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from PIL import Image

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.data import image_set, lmdb_images, pictures
from caffe_to_cmsis_nn.data.image_set import StoredImages
from caffe_to_cmsis_nn.data.readers import Hdf5List, ImageList, LevelDb, Reader
from caffe_to_cmsis_nn.emit.c_text import identifiers
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.report import plots
from tests.support import ROOT, run, write_leveldb


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Of memory that Python and numpy take meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def test_names_that_become_one_identifier() -> None:
    names = ["data", *("!" * i for i in range(1, 5001)), "layer_7"]
    start = time.process_time()
    found = identifiers(names)
    assert time.process_time() - start < 1
    assert len({*found.values()}) == len(names)
    assert (found["!" * 5000], found["layer_7"]) == ("layer_5000", "layer_7_2")


def test_resizing_and_greying_take_the_pictures_and_little_more(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    for height, width in ((3000, 2000), (250, 350), (1000, 1400)):
        with at_most(height * width * 3 / 1e6 + 30):
            pictures.resize(image, height, width)
    Image.fromarray(np.broadcast_to(image[:1], (3000, 700, 3))).save(tmp_path / "a.png")
    with at_most(3000 * 700 * 4 / 1e6 + 30):
        pictures.read(tmp_path / "a.png", color=False)


def test_blocks_of_rows_make_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block is a row, and where the last one is shorter."""
    image = np.random.default_rng(1).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    for shape in ((17, 90), (15, 20), (61, 13)):
        expected = pictures.resize(image[:, :40], *shape)
        for block in (1, 7 * shape[1]):
            monkeypatch.setattr(pictures, "BLOCK", block)
            np.testing.assert_array_equal(pictures.resize(image[:, :40], *shape), expected)


def test_a_confusion_matrix_of_many_classes() -> None:
    """Classes share cells; every image is still in one."""
    from matplotlib.figure import Figure

    pairs = [{"float": i, "device": i - i % 2, "count": 3} for i in range(5000)]
    ax = Figure().add_subplot()
    with at_most(60):
        plots._confusion(ax, pairs, "float", "float", [*map(str, range(5000))])
    shown = ax.images[0].get_array()
    assert shown is not None
    assert (shown.shape, shown.sum()) == ((500, 500), 15000)
    assert [*ax.images[0].get_extent()] == [-0.5, 4999.5, 4999.5, -0.5]


# --- data sets beyond the memory --------------------------------------------------------------------------------------

MANY, SIDE = 120, 400  # pictures of 480 kB each
LIMIT = 0.005  # GB, which is much less


def _picture_list(folder: Path) -> tuple[Reader, Path]:
    """Lines that name one picture."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / "a.png")
    (folder / "list.txt").write_text("a.png 1\n" * MANY)
    return ImageList(), folder / "list.txt"


def _leveldb(folder: Path) -> tuple[Reader, Path]:
    pytest.importorskip("plyvel", reason="plyvel has no wheel for this Python")
    images = np.random.default_rng(0).integers(0, 256, (MANY, 3, SIDE, SIDE), dtype=np.uint8)
    write_leveldb(folder / "db", images, np.ones(MANY, int), None)
    return LevelDb(), folder / "db"


def _hdf5(folder: Path) -> tuple[Reader, Path]:
    (folder / "list.txt").write_text("a.h5\n")
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).integers(0, 256, (MANY, 3, SIDE, SIDE), dtype=np.uint8)
        file["label"] = np.ones(MANY)
    return Hdf5List(), folder / "list.txt"


READ = """
import resource, sys
from pathlib import Path
from caffe_to_cmsis_nn.data.readers import Hdf5List, ImageList, LevelDb
import h5py, numpy as np
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images, labels = {reader}.open(Path(sys.argv[1]), None, lambda image: image, {memory})
np.save(sys.argv[2], images[{count} - 2 :])
print(images.shape, labels.sum(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("write", [_picture_list, _leveldb, _hdf5])
def test_data_sets_keep_within_the_memory(write: Callable[[Path], tuple[Reader, Path]], tmp_path: Path) -> None:
    reader, path = write(tmp_path)
    program = READ.format(reader=reader, memory=LIMIT * 2**30, count=MANY)
    done = run(sys.executable, "-c", program, path, tmp_path / "last.npy", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *shape, labels, kilobytes = done.stdout.split()
    assert (" ".join(shape), labels) == (f"({MANY}, 3, {SIDE}, {SIDE})", str(MANY))
    assert int(kilobytes) < 40 << 10, "all images have 57 MB"
    np.testing.assert_array_equal(np.load(tmp_path / "last.npy"), reader.read_at(path, [MANY - 2, MANY - 1])[0])
    small, _ = reader.open(path, 2, lambda image: image[:, :5, :5], math.inf)
    assert isinstance(small, np.ndarray)
    stored, _ = reader.open(path, 3, lambda image: image[:, :5, :5], 1)
    assert isinstance(stored, StoredImages)
    np.testing.assert_array_equal(stored[[1, 0]], small[[1, 0]])
    np.testing.assert_array_equal(stored.pick(np.array([2, 1]))[1:], small[1:])
    assert stored[:0].shape == (0, 3, 5, 5)


def test_a_huge_datum_is_not_read(tmp_path: Path) -> None:
    """An LMDB whose node says that its value, in a hole of the file, has 900 MB."""
    lmdb_images.write(tmp_path / "db", [np.zeros((3, 60, 60), np.uint8)], [1])
    data = tmp_path / "db" / "data.mdb"
    content = bytearray(data.read_bytes())
    leaf = next(at for at in range(8192, len(content), 4096) if content[at + 10] == 2)
    node = leaf + int.from_bytes(content[leaf + 16 : leaf + 18], "little")
    content[node : node + 4] = (900_000_000).to_bytes(4, "little")
    data.write_bytes(content)
    os.truncate(data, 1 << 30)
    with pytest.raises(UserError, match="it has a value of 900000000 bytes, allowed are 67108864"):
        lmdb_images.read(tmp_path / "db")
    with pytest.raises(UserError, match="a Datum of 67108865 bytes, allowed are 67108864"):
        image_set.parse_datum(bytes((1 << 26) + 1), "here")


def test_long_lists_are_read_in_seconds(tmp_path: Path) -> None:
    """A million lines took 100 s."""
    count = 50_000
    (tmp_path / "list.txt").write_text("".join(f"a{i}.png 1\n" for i in range(count)))
    (tmp_path / "a7.png").write_bytes(b"")
    with mock.patch("os.path.exists", lambda _: True):
        began = time.process_time()
        assert sum(1 for _ in ImageList().files(tmp_path / "list.txt")) == count + 1
        assert time.process_time() - began < 1.5
    files.refuse_overwriting([tmp_path / "none"], (tmp_path / "a" for _ in range(10**9)))  # where nothing is there yet
    with pytest.raises(UserError, match=r"a7.png': it is also an input"):
        files.refuse_overwriting([tmp_path / "a7.png"], [tmp_path / "list.txt", tmp_path / "a7.png"])
