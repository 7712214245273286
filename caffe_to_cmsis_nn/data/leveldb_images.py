# SPDX-License-Identifier: Apache-2.0
"""Images and labels in LevelDBs of Datums, which Caffe's Data layer reads by default. The only user of plyvel."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.data.image_set import PLAIN, Decoder, has_features, parse_datum, place_of
from caffe_to_cmsis_nn.errors import UserError

TABLES = (".ldb", ".sst")  # files that LevelDB never changes
LARGEST = 1 << 30  # bytes of any other: Caffe has 256 MB written to the log before it makes a table of them


# Reads a database in a process of its own, which LevelDB ends where it is given a damaged table.
PROGRAM = """
import struct, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass  # Windows writes no core
import plyvel
try:
    database = plyvel.DB(sys.argv[1], create_if_missing=False)
    keys = ((key, b"") for key in database.iterator(include_value=False))
    for key, value in database if sys.argv[2] == "values" else keys:
        sys.stdout.buffer.write(struct.pack("<QQ", len(key), len(value)) + key + value)
except plyvel.Error as error:
    sys.exit(error.args[0].decode() if isinstance(error.args[0], bytes) else str(error))
"""
SIZES = struct.Struct("<QQ")


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[str]:
    """LevelDB writes to its folder even where it only reads: it gets one with links to the tables."""
    with tempfile.TemporaryDirectory() as name:
        for file in filter(Path.is_file, path.iterdir()):  # a pipe would have LevelDB wait
            if file.suffix in TABLES:
                (Path(name) / file.name).symlink_to(file.resolve())
            elif file.name != "LOCK":
                files.copy(file, Path(name) / file.name, LARGEST)
        yield name


def _entries(path: Path, what: str = "values") -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in the order of the keys; with `what` "keys", values are not read."""
    if not find_spec("plyvel"):
        raise UserError(f"'{path}' is a LevelDB: pip install plyvel, or convert it into an LMDB")
    if not (path / "CURRENT").is_file():
        raise UserError(f"'{path}' is not a LevelDB: it has no file CURRENT")
    with files.reading(f"the LevelDB '{path}'"), _copied(path) as name:
        command = [sys.executable, "-c", PROGRAM, name, what]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout and process.stderr
            try:
                while sizes := process.stdout.read(SIZES.size):
                    key, value = map(process.stdout.read, SIZES.unpack(sizes))
                    yield key, value
                reason = process.stderr.read().decode(errors="replace")
            except BaseException:  # also who reads no further
                process.kill()
                raise
        if process.returncode:
            raise ValueError(reason or "LevelDB cannot read it")


def _datums(path: Path) -> Generator[tuple[Any, str], None, None]:
    """Datums in the order of their keys, and where each lies."""
    for key, value in _entries(path):
        where = place_of(path, key)
        yield parse_datum(value, where), where


def count(path: Path) -> int:
    """Images in the database."""
    return sum(1 for _ in _entries(path, "keys"))


def holds_features(path: Path) -> bool:
    """Whether the first Datum has float_data that is no pixels."""
    with contextlib.closing(_datums(path)) as datums:
        return any(has_features(datum) for datum, _ in itertools.islice(datums, 1))


def read(path: Path, wanted: Sequence[int], decode: Decoder = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, C, H, W) at those of the wanted positions (ascending) that there are, and their labels (N,).

    uint8, or float32 where they are features. Raises UserError where the database is missing, damaged or empty, or its
    images differ in shape.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    with contextlib.closing(_datums(path)) as datums:
        for position, (datum, where) in enumerate(datums):
            if len(images) == len(wanted) or position > wanted[-1]:
                break
            place = bisect.bisect_left(wanted, position)
            if place == len(wanted) or wanted[place] != position:
                continue
            images.append(decode(datum, where))
            labels.append(datum.label)
            decode.check_shape(images[-1], images[0].shape, where)
    if not images:
        raise UserError(f"the LevelDB '{path}' holds no images")
    return np.stack(images), np.array(labels, np.int32)
