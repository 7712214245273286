# SPDX-License-Identifier: Apache-2.0
"""Sets of images, in memory or in their file, and how some of them are picked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.data import pictures
from caffe_to_cmsis_nn.data.lmdb_file import LmdbFile
from caffe_to_cmsis_nn.errors import UserError


def parse_datum(value: bytes, where: str) -> Any:
    """Caffe's Datum message; raises UserError that says where it lies."""
    with files.reading(f"{where}: its Datum"):
        return pb.Datum.FromString(value)


def are_pixels(values: np.ndarray) -> bool:
    """Whether all are whole numbers from 0 to 255."""
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())


def place_of(path: Path, key: bytes) -> str:
    """Where a Datum lies, for messages."""
    return f"'{path}', key '{key[:40].decode('ascii', 'backslashreplace')}'"


def has_features(datum: Any) -> bool:
    """Whether a Datum has float_data that is no pixels."""
    return not (datum.encoded or datum.data) and not are_pixels(np.array(datum.float_data, np.float32))


def datum_values(datum: Any, where: str, features: bool = False) -> np.ndarray:
    """A Datum's image, uint8 CHW, or its features, float32 CHW; raises UserError that says where it lies."""
    if datum.encoded:
        return pictures.decode(datum.data, where)
    shape = (datum.channels, datum.height, datum.width)
    if datum.data:
        values = np.frombuffer(datum.data, np.uint8)
    else:
        values = np.array(datum.float_data, np.float32)
        if features and not np.isfinite(values).all():
            raise UserError(f"{where}: float_data that is not finite")
        if not features:
            if not are_pixels(values):
                raise UserError(f"{where}: float_data that is no pixel, but the first image has pixels, 0 to 255")
            values = values.astype(np.uint8)
    if features:
        values = values.astype(np.float32)
    if min(shape) < 1 or values.size != shape[0] * shape[1] * shape[2]:
        raise UserError(f"{where}: {values.size} values for an image of shape {shape}")
    return values.reshape(shape)


@dataclass(frozen=True)
class Decoder:
    """Makes of a Datum uint8 CHW, resized where the height is not 0, or float32 features."""

    features: bool = False
    height: int = 0
    width: int = 0

    def __call__(self, datum: Any, where: str) -> np.ndarray:
        values = datum_values(datum, where, self.features)
        if not self.height:
            return values
        if self.features:
            raise UserError(f"{where}: --resize is for pictures, and these are features")
        resized = pictures.resize(np.ascontiguousarray(values.transpose(1, 2, 0)), self.height, self.width)
        return np.ascontiguousarray(resized.transpose(2, 0, 1))

    def check_shape(self, values: np.ndarray, first: tuple[int, ...], where: str) -> None:
        """Raises UserError where values have another shape than the first ones."""
        if values.shape != first:
            hint = "" if self.features else ": --resize HEIGHTxWIDTH makes them equal"
            raise UserError(f"{where}: image shape {values.shape}, but the first has {first}{hint}")


PLAIN = Decoder()
Crop = Callable[[np.ndarray], np.ndarray]


class StoredImages:
    """Images (N, C, H, W) uint8, or float32 features, too many for the memory: an index reads some from their LMDB."""

    def __init__(
        self, path: Path, file: BinaryIO, database: LmdbFile, places: np.ndarray, crop: Crop, decode: Decoder = PLAIN
    ) -> None:
        """`places` (N, 2) holds the offset and the size of each value in the file."""
        self._path, self._file, self._database, self._places, self._crop = path, file, database, places, crop
        self._decode = decode
        self.shape = (len(places), *self[:1].shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, which: Any) -> np.ndarray:
        images, where = [], f"'{self._path}'"
        with self._database.lock, unchanged(self._path, self._database):
            for offset, size in self._places[which].tolist():
                self._file.seek(offset)
                datum = parse_datum(self._file.read(size), where)
                images.append(self._crop(self._decode(datum, where)))
        return np.stack(images)

    def pick(self, which: np.ndarray) -> StoredImages:
        """Some of the images, which stay where they are."""
        return StoredImages(self._path, self._file, self._database, self._places[which], self._crop, self._decode)


Images = Union[np.ndarray, StoredImages]


def pick(images: Images, which: np.ndarray) -> Images:
    """Some of the images; no copy of them where they stay in their file."""
    return images.pick(which) if isinstance(images, StoredImages) else images[which]


@contextlib.contextmanager
def unchanged(path: Path, database: LmdbFile) -> Iterator[None]:
    """Raises UserError where another process has written to a database, so that what was read may be torn."""
    try:
        yield
    finally:
        if database.changed:
            raise UserError(f"the LMDB '{path}' was changed while it was read: run again when nothing writes to it")


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Indices of at most so many of `count` images, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def crop_centre(images: np.ndarray, size: int) -> np.ndarray:
    """(..., size, size) out of (..., height, width), as Caffe's data_transformer.cpp does at TEST; 0 crops nothing."""
    if not size:
        return images
    top, left = ((extent - size) // 2 for extent in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
