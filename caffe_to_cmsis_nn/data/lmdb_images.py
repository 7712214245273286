# SPDX-License-Identifier: Apache-2.0
"""Images and labels in LMDBs of Datums, as Caffe's Data layer reads them. The only importer of lmdb."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.data.image_set import (
    PLAIN,
    Crop,
    Datums,
    Decoder,
    Gathering,
    StoredImages,
    has_features,
    parse_datum,
    place_of,
    unchanged,
    whole,
)
from caffe_to_cmsis_nn.data.lmdb_file import LmdbFile
from caffe_to_cmsis_nn.errors import UserError

ALL = range(sys.maxsize)  # positions


def _read_images(
    path: Path, database: LmdbFile, wanted: Sequence[int], gathering: Gathering
) -> tuple[np.ndarray, np.ndarray]:
    """Has images gathered; their labels, and each one's (offset, size) in the file."""
    wanted = wanted[: bisect.bisect_left(wanted, database.entries)]
    count, chosen = len(wanted), wanted if isinstance(wanted, range) else frozenset(wanted)
    labels, places = np.empty(count, np.int32), np.empty((count, 2), np.int64)
    for key, offset, value in itertools.islice(database.at(chosen), count):
        where = place_of(path, key)
        datum = parse_datum(value, where)
        labels[gathering.count], places[gathering.count] = datum.label, (offset, len(value))
        gathering.add(gathering.decode(datum, where), where)
    if gathering.count != count:
        raise ValueError(f"it says that it has {database.entries} entries")
    if not count:
        raise UserError(f"the LMDB '{path}' holds no images")
    return labels, places


def _data_file(path: Path) -> Path:
    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():
        raise UserError(f"'{path}' is not an LMDB: it has no data.mdb")
    return data


def version(path: Path) -> object:
    """What differs once a database has been written to, or replaced; None where it cannot be read."""
    try:
        with files.opened(_data_file(path), math.inf) as file:
            return os.fstat(file.fileno()).st_ino, LmdbFile(file).version()
    except (OSError, ValueError, struct.error, UserError):
        return None


def read(
    path: Path,
    wanted: Sequence[int] = ALL,
    crop: Crop = whole,
    in_memory: float = math.inf,
    decode: Decoder = PLAIN,
) -> tuple[Any, np.ndarray]:
    """The images at those of the wanted positions (ascending) that there are, cropped, and their labels.

    Images are (N, C, H, W) uint8, or float32 where they are features, in key order, StoredImages where they take more
    bytes than `in_memory`; labels are (N,) int32. Raises UserError where the database is missing, damaged, empty or
    changed meanwhile, or its images differ in shape.
    """
    with files.reading(f"the LMDB '{path}'"), contextlib.ExitStack() as stack:
        file = stack.enter_context(files.opened(_data_file(path), math.inf))
        database = LmdbFile(file)
        gathering = Gathering(crop, in_memory, decode)
        with unchanged(path, database):
            labels, places = _read_images(path, database, wanted, gathering)
        again = Datums(file, f"'{path}'", places, crop, decode)

        def read_again(positions: Sequence[int]) -> list[np.ndarray]:
            with database.lock, unchanged(path, database):
                return again(positions)

        images = gathering.images(read_again)
        if isinstance(images, StoredImages):
            stack.pop_all()  # the file stays open
        return images, labels


def holds_features(path: Path) -> bool:
    """Whether the first Datum has float_data with values that are not pixels."""
    with files.reading(f"the LMDB '{path}'"), files.opened(_data_file(path), math.inf) as file:
        for _, _, value in itertools.islice(LmdbFile(file).at(range(1)), 1):
            return has_features(parse_datum(value, f"'{path}'"))
    return False


def count(path: Path) -> int:
    """Images in the database, none of which is read; raises UserError where it is missing or damaged."""
    with files.reading(f"the LMDB '{path}'"), files.opened(_data_file(path), math.inf) as file:
        return LmdbFile(file).entries


def write(path: Path, images: Iterable[np.ndarray], labels: Iterable[int]) -> None:
    """Writes uint8 CHW images and labels as Datums under keys that keep their order, as Caffe's tools do.

    The folder is replaced only when all of it is written; it holds data.mdb alone.
    """
    try:
        with files.replacing(path / "data.mdb") as (temporary,):
            database = lmdb.open(str(temporary), map_size=1 << 40, subdir=False, lock=False)
            with database, database.begin(write=True) as transaction:
                for i, (image, label) in enumerate(zip(images, labels)):
                    channels, height, width = image.shape
                    datum = pb.Datum(channels=channels, height=height, width=width, data=image.tobytes())
                    datum.label = int(label)
                    transaction.put(b"%08d" % i, datum.SerializeToString(), append=True)
    except lmdb.Error as error:
        raise UserError(f"cannot write the LMDB '{path}': {error}") from error
