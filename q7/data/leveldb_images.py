# SPDX-License-Identifier: Apache-2.0
"""Images and labels in LevelDBs of Datums, which Caffe's Data layer reads by default. The only importer of plyvel."""

from __future__ import annotations

import bisect
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from q7 import files
from q7.data.image_set import PLAIN, Decoder, has_features, parse_datum, place_of
from q7.errors import Q7Error

TABLES = (".ldb", ".sst")  # files that LevelDB never changes
LARGEST = 1 << 30  # bytes of any other: Caffe has 256 MB written to the log before it makes a table of them


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The database. LevelDB writes to its folder even where it only reads: it gets one with links to the tables."""
    try:
        import plyvel
    except ImportError as error:
        raise Q7Error(f"'{path}' is a LevelDB: pip install plyvel, or convert it into an LMDB") from error
    if not (path / "CURRENT").is_file():
        raise Q7Error(f"'{path}' is not a LevelDB: it has no file CURRENT")
    with tempfile.TemporaryDirectory() as name, files.reading(f"the LevelDB '{path}'"):
        for file in filter(Path.is_file, path.iterdir()):  # a pipe would have LevelDB wait
            if file.suffix in TABLES:
                (Path(name) / file.name).symlink_to(file.resolve())
            elif file.name != "LOCK":
                files.copy(file, Path(name) / file.name, LARGEST)
        try:
            with plyvel.DB(name, create_if_missing=False) as database:
                yield database
        except plyvel.Error as error:
            raise ValueError(str(error)) from error


def _datums(path: Path, database: Any) -> Iterator[tuple[Any, str]]:
    """Datums in the order of their keys, and where each lies."""
    for key, value in database:
        where = place_of(path, key)
        yield parse_datum(value, where), where


def count(path: Path) -> int:
    """Images in the database."""
    with _opened(path) as database, database.iterator(include_value=False) as keys:
        return sum(1 for _ in keys)


def holds_features(path: Path) -> bool:
    """Whether the first Datum has float_data that is no pixels."""
    with _opened(path) as database:
        for datum, _ in _datums(path, database):
            return has_features(datum)
    return False


def read(path: Path, wanted: Sequence[int], decode: Decoder = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, C, H, W) at those of the wanted positions (ascending) that there are, and their labels (N,).

    uint8, or float32 where they are features. Raises Q7Error where the database is missing, damaged or empty, or its
    images differ in shape.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    with _opened(path) as database:
        for position, (datum, where) in enumerate(_datums(path, database)):
            if len(images) == len(wanted) or position > wanted[-1]:
                break
            place = bisect.bisect_left(wanted, position)
            if place == len(wanted) or wanted[place] != position:
                continue
            images.append(decode(datum, where))
            labels.append(datum.label)
            decode.check_shape(images[-1], images[0].shape, where)
    if not images:
        raise Q7Error(f"the LevelDB '{path}' holds no images")
    return np.stack(images), np.array(labels, np.int32)
