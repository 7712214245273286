# SPDX-License-Identifier: Apache-2.0
"""Sets of images, in memory or in their file, and how some of them are picked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.data import pictures
from caffe_to_cmsis_nn.data.lmdb_file import LmdbFile
from caffe_to_cmsis_nn.errors import UserError


def check_size(size: int, where: str) -> None:
    """Raises UserError where a Datum is larger than any image, before it is read."""
    if size > files.LARGEST:
        raise UserError(f"{where}: a Datum of {size} bytes, allowed are {files.LARGEST}")


def parse_datum(value: bytes, where: str) -> Any:
    """Caffe's Datum message; raises UserError that says where it lies."""
    check_size(len(value), where)
    with files.reading(f"{where}: its Datum"):
        return pb.Datum.FromString(value)


def are_pixels(values: np.ndarray) -> bool:
    """Whether all are whole numbers from 0 to 255."""
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())


def place_of(path: Path, key: bytes) -> str:
    """Where a Datum lies, for messages."""
    return f"'{path}', key '{key[:40].decode('ascii', 'backslashreplace')}'"


def has_features(datum: Any) -> bool:
    """Whether a Datum has float_data with values that are not pixels."""
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
ReadAgain = Callable[[Sequence[int]], Iterable[np.ndarray]]  # images (C, H, W), cropped, at positions


def whole(image: np.ndarray) -> np.ndarray:
    """Crops nothing."""
    return image


class StoredImages:
    """Images (N, C, H, W) uint8, or float32 features, too many for the memory: an index reads some of them again."""

    def __init__(self, read: ReadAgain, shape: tuple[int, ...], which: np.ndarray) -> None:
        """`read` gives the images (C, H, W) at positions, cropped to `shape`; `which` are those of this set."""
        self._read, self._which = read, which
        self.shape = (len(which), *shape)

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, which: Any) -> np.ndarray:
        found = [*self._read(self._which[which].tolist())]
        if any(image.shape != self.shape[1:] for image in found):
            raise UserError("the images were changed while they were read: run again when nothing writes to them")
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), np.uint8)

    def pick(self, which: np.ndarray) -> StoredImages:
        """Some of the images, which stay where they are."""
        return StoredImages(self._read, self.shape[1:], self._which[which])


class Gathering:
    """Images that come one after the other, cropped: kept unless they take more bytes than `in_memory`."""

    def __init__(self, crop: Crop, in_memory: float, decode: Decoder = PLAIN) -> None:
        self._crop, self._in_memory, self.decode = crop, in_memory, decode
        self._kept: list[np.ndarray] | None = []
        self._first: tuple[int, ...] = ()  # its shape before the crop
        self._cropped: tuple[int, ...] = ()
        self.count = 0

    def add(self, image: np.ndarray, where: str) -> None:
        """Raises UserError, which begins with `where`, unless it has the shape of the first one."""
        cropped = self._crop(image)
        self._first, self._cropped = self._first or image.shape, self._cropped or cropped.shape
        self.decode.check_shape(image, self._first, where)
        self.count += 1
        if self._kept is not None and self.count * cropped.nbytes <= self._in_memory:
            self._kept.append(cropped if cropped.base is None else cropped.copy())
        else:
            self._kept = None

    def images(self, read: ReadAgain) -> Images:
        """All, in memory, or read again where they are needed."""
        if self._kept is not None:
            return np.stack(self._kept)
        return StoredImages(read, self._cropped, np.arange(self.count))


class Datums:
    """Datums in a file, each at an offset and of a size in bytes: images that are decoded again where needed."""

    def __init__(self, file: BinaryIO, where: str, places: np.ndarray, crop: Crop, decode: Decoder) -> None:
        """`places` (N, 2) holds offsets and sizes."""
        self._file, self._where, self._places, self._crop, self._decode = file, where, places, crop, decode
        self._lock = threading.Lock()  # for threads: the file has one position

    def __call__(self, positions: Sequence[int]) -> list[np.ndarray]:
        images = []
        for offset, size in self._places[positions].tolist():
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(size)
            images.append(self._crop(self._decode(parse_datum(data, self._where), self._where)))
        return images


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
    """Indices of evenly spaced images among `count`, at most `most` of them."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def crop_centre(images: np.ndarray, size: int) -> np.ndarray:
    """(..., size, size) out of (..., height, width), as Caffe's data_transformer.cpp does at TEST; 0 crops nothing."""
    if not size:
        return images
    top, left = ((extent - size) // 2 for extent in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
