# SPDX-License-Identifier: Apache-2.0
"""The scripts that make datasets: CIFAR-10 in each of its forms, and pictures of one's own."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import struct
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_to_cmsis_nn.caffe_io.blobs import read_mean
from caffe_to_cmsis_nn.data import lmdb_images
from tests.support import MODELS, run

sys.path.insert(0, str(MODELS))

import get_cifar10
import make_lmdb

PER_BATCH = 12
BATCHES = [*get_cifar10.BATCHES["train"], *get_cifar10.BATCHES["test"]]
Batch = tuple[np.ndarray, list[int]]  # images (N, 3072), labels


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (PER_BATCH, 3072), np.uint8), [int(i) for i in rng.integers(0, 10, PER_BATCH)])
        for name in BATCHES
    }


def binary(batch: Batch) -> bytes:
    """As in the binary version."""
    images, labels = batch
    return np.column_stack([np.array(labels, np.uint8), images]).tobytes()


def python3(batch: Batch, protocol: int) -> bytes:
    """As somebody's Python 3 would store the Python version anew."""
    return pickle.dumps({"data": batch[0], "labels": batch[1], "batch_label": "a batch"}, protocol)


def python2(batch: Batch) -> bytes:
    """As the real Python version is stored: by Python 2, whose strings are bytes."""
    images, labels = batch
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pixels = b"T" + struct.pack("<i", images.size) + images.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01K" + bytes([len(images)]) + b"M\x00\x0c\x86" + dtype + b"\x89" + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def archive(path: Path, members: dict[str, bytes]) -> Path:
    """A tar.gz with these files, and what else lies in the real ones."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"batches.meta": b"", "readme.html": b"<html>", **members}.items():
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def binary_archive(path: Path, batches: dict[str, Batch]) -> Path:
    return archive(path, {f"{name}.bin": binary(batch) for name, batch in batches.items()})


def content(images: np.ndarray, labels: np.ndarray | list[int]) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))


def check(out: Path, batches: dict[str, Batch]) -> None:
    """The two LMDBs and the mean hold these images, and not in the order of the source."""
    for split, names in get_cifar10.BATCHES.items():
        images, labels = lmdb_images.read(out / f"cifar10_{split}_lmdb")
        expected = np.concatenate([batches[name][0] for name in names])
        assert images.shape[1:] == (3, 32, 32)
        assert content(images, labels) == content(expected, [i for name in names for i in batches[name][1]])
        assert (images.reshape(expected.shape) != expected).any()
    images = np.concatenate([batches[name][0] for name in get_cifar10.BATCHES["train"]])
    mean = read_mean(out / "mean.binaryproto")
    np.testing.assert_array_equal(mean, images.mean(0).reshape(3, 32, 32).astype(np.float32))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which get_cifar10 refuses these arguments."""
    assert get_cifar10.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("get_cifar10: ")
    assert error.count("\n") == 1
    return error


# --- archives ---------------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, Callable[[Batch], bytes]]] = {
    "binary": (".bin", binary),
    "python 2": ("", python2),
    "python 3, protocol 2": ("", functools.partial(python3, protocol=2)),
    "python 3, protocol 4": ("", functools.partial(python3, protocol=4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_archive(form: str, batches: dict[str, Batch], tmp_path: Path) -> None:
    suffix, dump = FORMS[form]
    path = archive(tmp_path / "a.tar.gz", {f"{name}{suffix}": dump(batch) for name, batch in batches.items()})
    assert get_cifar10.main(["--archive", str(path), "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out", batches)
    expected = ["cifar10_test_lmdb/data.mdb", "cifar10_train_lmdb/data.mdb", "mean.binaryproto"]
    assert files_in(tmp_path / "out") == expected


def test_same_bytes_twice(batches: dict[str, Batch], tmp_path: Path) -> None:
    path = binary_archive(tmp_path / "a.tar.gz", batches)
    for out in ("one", "two"):
        assert get_cifar10.main(["--archive", str(path), "--out", str(tmp_path / out)]) == 0
    for name in files_in(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def hostile(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function as it is read."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


BAD_PICKLES = {
    "names os.system": (hostile("os", "system", "touch {}"), "'os.system'"),
    "names posix.system": (hostile("posix", "system", "touch {}"), "'posix.system'"),
    "names eval": (hostile("builtins", "eval", "open('{}','w')"), "'builtins.eval'"),
    "reaches through a known module": (hostile("numpy", "os.system", "touch {}"), "'numpy.os.system'"),
    "no dictionary": (pickle.dumps([1, 2]), "not a pickled batch"),
    "damaged": (b"\x80\x02}(U", "not a pickled batch"),
    "no array": (pickle.dumps({"data": b"", "labels": []}), "not a pickled batch"),
    "floats": (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, 4), "not uint8"),
    "too few labels": (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 4), "labels of shape (1,)"),
    "label 10": (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 4), "labels from 10 to 10"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickle(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, message = BAD_PICKLES[case]
    path = archive(tmp_path / "a.tar.gz", {"data_batch_1": data.replace(b"{}", bytes(tmp_path / "harm"))})
    error = refused(capsys, "--archive", path, "--out", tmp_path / "out")
    assert "batch 'data_batch_1'" in error
    assert message in error
    assert files_in(tmp_path) == ["a.tar.gz"]


def test_hostile_pickle_would_do_harm(tmp_path: Path) -> None:
    """The attack that is refused above is a real one."""
    pickle.loads(hostile("os", "system", f"touch {tmp_path / 'harm'}"))
    assert (tmp_path / "harm").exists()


def test_members_outside(batches: dict[str, Batch], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written where a member's name points, and links are not followed."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        outside = tarfile.TarInfo("../../outside")
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        for member in (outside, link):
            tar.addfile(member)
    assert "data_batch_1, data_batch_2" in refused(capsys, "--archive", path, "--out", tmp_path / "deep" / "out")
    assert files_in(tmp_path) == ["a.tar.gz"]


def test_bad_archive(batches: dict[str, Batch], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = binary_archive(tmp_path / "whole.tar.gz", batches).read_bytes()
    ragged = {f"{name}.bin": binary(batch)[:-1] for name, batch in batches.items()}
    few = {name: batch for name, batch in batches.items() if name != "data_batch_3"}
    cases = {
        tmp_path / "cut.tar.gz": (whole[: len(whole) // 2], "cannot be read"),
        tmp_path / "text.tar.gz": (b"no archive", "cannot be read"),
        archive(tmp_path / "ragged.tar.gz", ragged): (None, "not a whole number of 3073-byte images"),
        binary_archive(tmp_path / "few.tar.gz", few): (None, "data_batch_3 missing"),
    }
    for path, (data, message) in cases.items():
        if data is not None:
            path.write_bytes(data)
        assert message in refused(capsys, "--archive", path, "--out", tmp_path / "out")
    assert "No such file" in refused(capsys, "--archive", tmp_path / "none.tar.gz", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- download ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Gives out `data`; `ranges` lists the Range headers that came."""

    data = b""
    keeps_back = 0  # bytes at the end that it promises and does not send
    knows_ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        data = self.server.data
        start = int(wanted[len("bytes=") : -1]) if wanted and self.server.knows_ranges else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : len(data) - self.server.keeps_back])

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def server(batches: dict[str, Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that get_cifar10 takes for the official one."""
    with Server() as server:
        server.data = binary_archive(tmp_path / "source.tar.gz", batches).read_bytes()
        monkeypatch.setattr(get_cifar10, "URL", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        monkeypatch.setattr(get_cifar10, "MD5", hashlib.md5(server.data).hexdigest())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download(server: Server, batches: dict[str, Batch], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # the second run finds the archive
        assert get_cifar10.main(["--out", str(out)]) == 0
        check(out, batches)
    assert server.ranges == [None]
    assert (out / "cifar.tar.gz").read_bytes() == server.data
    assert not (out / "cifar.tar.gz.part").exists()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_download_resumes(
    server: Server, knows_ranges: bool, batches: dict[str, Batch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    server.keeps_back = 1000
    have = len(server.data) - server.keeps_back
    assert f"stopped after {have} of {len(server.data)} bytes" in refused(capsys, "--out", out)
    assert files_in(out) == ["cifar.tar.gz.part"]
    server.keeps_back, server.knows_ranges = 0, knows_ranges
    assert get_cifar10.main(["--out", str(out)]) == 0
    check(out, batches)
    assert server.ranges == [None, f"bytes={have}-"]


def test_download_that_was_complete(server: Server, batches: dict[str, Batch], tmp_path: Path) -> None:
    (tmp_path / "cifar.tar.gz.part").write_bytes(server.data)
    assert get_cifar10.main(["--out", str(tmp_path)]) == 0
    check(tmp_path, batches)


def test_download_of_something_else(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.data = server.data[:-1] + b"?"
    assert "has md5" in refused(capsys, "--out", tmp_path / "out")
    assert files_in(tmp_path / "out") == []


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        monkeypatch.setattr(get_cifar10, "URL", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
    assert "cannot download" in refused(capsys, "--out", tmp_path)
    assert files_in(tmp_path) == []


# --- pictures ---------------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, batch: Batch, classes: list[str]) -> None:
    """The images as PNG files in class folders."""
    for name in classes:
        (folder / name).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(*batch)):
        pixels = image.reshape(3, 32, 32).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / classes[label] / f"{i}.png")


def test_images(batches: dict[str, Batch], tmp_path: Path) -> None:
    names = get_cifar10.BATCHES["train"]
    train = (np.concatenate([batches[n][0] for n in names]), [label for n in names for label in batches[n][1]])
    write_pictures(tmp_path / "train", train, get_cifar10.CLASSES)
    write_pictures(tmp_path / "test", batches["test_batch"], get_cifar10.CLASSES)
    assert get_cifar10.main(["--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out", batches)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["cifar10_train_lmdb/data.mdb", "mean.binaryproto"]),
        ("test", ["cifar10_test_lmdb/data.mdb"]),
    ],
)
def test_images_of_one_split(split: str, expected: list[str], batches: dict[str, Batch], tmp_path: Path) -> None:
    write_pictures(tmp_path / split, batches["test_batch"], get_cifar10.CLASSES)
    assert get_cifar10.main(["--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert files_in(tmp_path / "out") == expected


def test_bad_images(batches: dict[str, Batch], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "no folder 'train' or 'test'" in refused(capsys, "--images", tmp_path, "--out", out)
    write_pictures(tmp_path / "few" / "train", (np.zeros((1, 3072), np.uint8), [0]), ["airplane"])
    assert "are airplane, not airplane, automobile" in refused(capsys, "--images", tmp_path / "few", "--out", out)
    write_pictures(tmp_path / "train", batches["test_batch"], get_cifar10.CLASSES)
    Image.new("RGB", (40, 32)).save(tmp_path / "train" / "truck" / "wide.png")
    assert "wide.png' has shape (3, 32, 40)" in refused(capsys, "--images", tmp_path, "--out", out)
    (tmp_path / "train" / "truck" / "wide.png").write_bytes(b"no picture")
    assert "wide.png' is truncated, damaged" in refused(capsys, "--images", tmp_path, "--out", out)
    assert not out.exists()


COLOURS = {"a_blue": (10, 20, 200), "b_red": (180, 40, 60)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two class folders with three pictures of one colour each, 6 high and 8 wide, and files that are not pictures."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 6), colour).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "notes.txt").write_text("no picture")
        (tmp_path / name / "._0.png").write_text("no picture")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_make_lmdb_of_folders(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blue comes first, and the mean is that of all pictures."""
    assert make_lmdb.main([str(pictures), str(pictures / "lmdb"), "--mean", str(pictures / "mean")]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["0 a_blue", "1 b_red"]
    images, labels = lmdb_images.read(pictures / "lmdb")
    assert images.shape == (6, 3, 6, 8)
    assert sorted(labels) == [0, 0, 0, 1, 1, 1]
    for image, label in zip(images, labels):
        assert tuple(image[:, 0, 0]) == list(COLOURS.values())[label][::-1]
    assert read_mean(pictures / "mean")[:, 0, 0] == pytest.approx([130, 30, 95])


def test_make_lmdb_of_csv(pictures: Path) -> None:
    """A relative and an absolute path, an empty line, and pictures of different sizes."""
    Image.new("RGB", (5, 5), (1, 2, 3)).save(pictures / "small.png")
    (pictures / "list.csv").write_text(f"small.png,7\n\n{pictures / 'b_red' / '0.png'}, 2\n")
    arguments = [str(pictures / "list.csv"), str(pictures / "lmdb"), "--size", "4x10", "--order", "rgb"]
    assert make_lmdb.main(arguments) == 0
    images, labels = lmdb_images.read(pictures / "lmdb")
    assert images.shape == (2, 3, 4, 10)
    assert {int(label): tuple(image[:, 0, 0]) for image, label in zip(images, labels)} == {
        7: (1, 2, 3),
        2: COLOURS["b_red"],
    }


def test_make_lmdb_gray(pictures: Path) -> None:
    assert make_lmdb.main([str(pictures), str(pictures / "lmdb"), "--gray", "--size", "28x28"]) == 0
    images, labels = lmdb_images.read(pictures / "lmdb")
    assert images.shape == (6, 1, 28, 28)
    luma = [int(np.asarray(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0]) for colour in COLOURS.values()]
    assert all((image == luma[label]).all() for image, label in zip(images, labels))


def test_make_lmdb_seed(pictures: Path) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert make_lmdb.main([str(pictures), str(pictures / "out" / out), "--seed", seed]) == 0
    a, b, c = (lmdb_images.read(pictures / "out" / out)[1].tolist() for out in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_blue/0.png\n", "line 1: 'a_blue/0.png' is not 'path,label'"),
        ("a_blue/0.png,1\nb_red/0.png,red\n", "line 2"),
        ("none.png,1\n", "cannot read the picture"),
        ("a_blue/notes.txt,1\n", "notes.txt' is truncated, damaged or of another kind"),
        ("a_blue/0.png,1\nsmall.png,1\n", "has shape"),
        ("", "names no pictures"),
        ("\udcff,1\n", "is not a CSV"),
    ],
)
def test_make_lmdb_refuses(text: str, message: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5, 5)).save(pictures / "small.png")
    (pictures / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert make_lmdb.main([str(pictures / "list.csv"), str(pictures / "out" / "lmdb")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert files_in(pictures / "out") == []


def test_scripts_from_another_folder(pictures: Path) -> None:
    done = run(sys.executable, MODELS / "make_lmdb.py", "a_none", "lmdb", cwd=pictures)
    assert (done.returncode, done.stderr) == (2, "make_lmdb: 'a_none' is neither a folder nor a CSV file\n")
    done = run(sys.executable, MODELS / "make_lmdb.py", ".", "lmdb", "--size", "0x4", cwd=pictures)
    assert done.returncode == 2
    assert "'0x4' is not HEIGHTxWIDTH" in done.stderr
    done = run(sys.executable, MODELS / "get_cifar10.py", "--images", "none", cwd=pictures)
    assert (done.returncode, done.stderr) == (2, "get_cifar10: 'none' has no folder 'train' or 'test'\n")
