# SPDX-License-Identifier: Apache-2.0
"""Where test images come from: what Caffe's Data, ImageData and HDF5Data layers read, as 8-bit pixels."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import count_hdf5_images, read_hdf5_images
from caffe_to_cmsis_nn.data import leveldb_images, lmdb_images, pictures
from caffe_to_cmsis_nn.data.image_set import Crop, Decoder, Gathering, Images, are_pixels, whole
from caffe_to_cmsis_nn.data.lmdb_images import ALL
from caffe_to_cmsis_nn.errors import UserError


@dataclass(frozen=True)
class Reader:
    """Reads (N, C, H, W) uint8 images, or float32 features, and (N,) int32 labels, at most `limit` of them."""

    caffe_type: ClassVar[str]
    kind: ClassVar[str]  # of what `path` names
    features = False  # whether the data are no pixels

    def probe(self, path: Path) -> Reader:
        """The reader that knows whether the data are pixels."""
        return self

    def resized(self, height: int, width: int) -> Reader:
        """The reader that resizes pictures."""
        raise UserError(f"--resize is for pictures in an LMDB, a LevelDB or files, and not for a {self.kind}")

    def files(self, path: Path) -> Iterable[Path]:
        """All that a reading of `path` may read."""
        raise NotImplementedError

    def count(self, path: Path) -> int:
        """How many images there are, without reading them."""
        raise NotImplementedError

    def _read(self, path: Path, wanted: Sequence[int], crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        """The images at those of the wanted positions (ascending, from 0) that there are, cropped, and their labels.

        Those of more bytes than `in_memory` are read again where they are needed.
        """
        raise NotImplementedError

    def read(self, path: Path, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Raises UserError where the images are missing, damaged or not 8-bit pixels of one shape."""
        images, labels = self._read(path, ALL[:limit], whole, math.inf)
        return images[:], labels

    def read_at(self, path: Path, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """As `read`, of the images at these positions, counted from 0; no others are read."""
        count = self.count(path)
        if max(positions) >= count:
            raise UserError(f"'{path}' has no image at position {max(positions)}: it holds positions 0 to {count - 1}")
        wanted = sorted({*positions})
        images, labels = self._read(path, wanted, whole, math.inf)
        rows = np.searchsorted(wanted, positions)
        return images[rows], labels[rows]

    def open(self, path: Path, limit: int | None, crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        """As `read`, with the images cropped; those of more bytes than `in_memory` stay in their file."""
        return self._read(path, ALL[:limit], crop, in_memory)


@dataclass(frozen=True)
class PictureReader(Reader):
    """Pictures, which it can resize as OpenCV's INTER_LINEAR does it."""

    height: int = 0  # 0: as they are
    width: int = 0

    def resized(self, height: int, width: int) -> Reader:
        return replace(self, height=height, width=width)

    def check_size(self, path: Path) -> None:
        """Raises UserError where the pictures would get too large."""
        if self.height * self.width > pictures.LARGEST_IMAGE:
            raise UserError(f"'{path}': height {self.height} and width {self.width} to resize to are too large")


@dataclass(frozen=True)
class Database(PictureReader):
    """Datums: 8-bit pixels, or float_data with values that are not pixels."""

    features: bool = False

    def decoder(self, path: Path) -> Decoder:
        self.check_size(path)
        return Decoder(self.features, self.height, self.width)


@dataclass(frozen=True)
class Lmdb(Database):
    """8-bit pixels of an LMDB, or its float_data; Caffe's transform_param makes (x - mean) * scale of them."""

    caffe_type = "Data"
    kind = "LMDB"

    def probe(self, path: Path) -> Reader:
        return replace(self, features=lmdb_images.holds_features(path))

    def files(self, path: Path) -> list[Path]:
        return [path, *(path / name for name in ("data.mdb", "lock.mdb"))]

    def count(self, path: Path) -> int:
        return lmdb_images.count(path)

    def _read(self, path: Path, wanted: Sequence[int], crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        return lmdb_images.read(path, wanted, crop, in_memory, self.decoder(path))


@dataclass(frozen=True)
class LevelDb(Database):
    """The same of a LevelDB, Caffe's default, with the package plyvel."""

    caffe_type = "Data (LevelDB)"
    kind = "LevelDB"

    def probe(self, path: Path) -> Reader:
        return replace(self, features=leveldb_images.holds_features(path))

    def files(self, path: Path) -> list[Path]:
        return [path, *(path.iterdir() if path.is_dir() else ())]

    def count(self, path: Path) -> int:
        return leveldb_images.count(path)

    def _read(self, path: Path, wanted: Sequence[int], crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        return leveldb_images.read(path, wanted, crop, in_memory, self.decoder(path))


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers."""
    with files.reading(f"{what} '{path}'"):
        text = files.read(path).decode("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


@dataclass(frozen=True)
class ImageList(PictureReader):
    """Pictures whose paths and labels a text file lists, decoded and resized as OpenCV does it for Caffe."""

    caffe_type = "ImageData"
    kind = "list of images"

    root_folder: str = ""
    color: bool = True

    def _entries(self, path: Path) -> Iterator[tuple[str, int]]:
        """Paths as the list names them, and labels."""
        for number, line in _lines(path, "the list of images"):
            name, _, label = line.rpartition(" ")
            if not (name and label.isdecimal() and len(label) < 10):
                raise UserError(f"'{path}', line {number}: '{line[:100]}' is not a path, a space and a label")
            yield name.strip(), int(label)

    def _find(self, name: str, path: Path) -> Path:
        return files.find(self.root_folder + name, path.parent, f"'{path}': the image")

    def files(self, path: Path) -> Iterable[Path]:
        yield path
        for name in {name: None for name, _ in self._entries(path)}:
            yield self._find(name, path)

    def count(self, path: Path) -> int:
        return sum(1 for _ in self._entries(path))

    def _read(self, path: Path, wanted: Sequence[int], crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        self.check_size(path)
        chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
        listed = enumerate(itertools.islice(self._entries(path), wanted[-1] + 1))
        entries = [entry for i, entry in listed if i in chosen]
        gathering = Gathering(crop, in_memory)
        for name, _ in entries:
            file = self._find(name, path)
            gathering.add(self._decode(file), f"'{file}'")
        if not entries:
            raise UserError(f"the list of images '{path}' is empty")

        def read_again(positions: Sequence[int]) -> Iterator[np.ndarray]:
            return (crop(self._decode(self._find(entries[i][0], path))) for i in positions)

        return gathering.images(read_again), np.array([label for _, label in entries], np.int32)

    def _decode(self, file: Path) -> np.ndarray:
        pixels = pictures.read(file, self.color)
        if self.height and self.width:
            pixels = pictures.resize(pixels, self.height, self.width)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


WHOLE = 0.01  # how far from a whole number a pixel may be, which covers float32's rounding many times


BLOCK, BLOCK_BYTES = 1000, 1 << 24  # rows of an HDF5 file that are read together, at most


@dataclass(frozen=True)
class Hdf5List(Reader):
    """Data sets of HDF5 files that a text file lists: features, or (pixel - mean) * scale, for which it gets pixels.

    What was done to pixels is for --mean and --scale to say: HDF5Data has no transform_param.
    """

    caffe_type = "HDF5Data"
    kind = "list of HDF5 files"

    data: str = "data"
    label: str = "label"
    mean: tuple[float, ...] = ()  # one value, or one for each channel
    scale: float = 1.0
    features: bool = False

    def probe(self, path: Path) -> Reader:
        """Where nobody says what was done to pixels, whatever is no pixel itself makes the data features."""
        if self.mean or self.scale != 1:
            return self
        blocks = (self._blocks(file, range(count)) for file, count in self._files(path))
        return replace(
            self, features=not all(are_pixels(values) for values, _ in itertools.chain.from_iterable(blocks))
        )

    def _blocks(self, file: Path, rows: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels at rows of a file, a part at a time: the first alone, to learn its size."""
        size = 1
        while rows:
            now, rows = rows[:size], rows[size:]
            some = slice(now[0], now[-1] + 1) if isinstance(now, range) else [*now]
            values, labels = read_hdf5_images(file, self.data, self.label, some)
            size = max(1, min(BLOCK, BLOCK_BYTES * len(values) // values.nbytes))
            yield values, labels

    def _find(self, line: str, path: Path) -> Path:
        return files.find(line, path.parent, f"'{path}': the file")

    def files(self, path: Path) -> list[Path]:
        return [path, *(self._find(line, path) for _, line in _lines(path, "the list of HDF5 files"))]

    def _files(self, path: Path) -> Iterator[tuple[Path, int]]:
        """The files with their numbers of images."""
        for _, line in _lines(path, "the list of HDF5 files"):
            file = self._find(line, path)
            yield file, count_hdf5_images(file, self.data)

    def count(self, path: Path) -> int:
        return sum(count for _, count in self._files(path))

    def _read(self, path: Path, wanted: Sequence[int], crop: Crop, in_memory: float) -> tuple[Images, np.ndarray]:
        gathering, labels = Gathering(crop, in_memory, Decoder(features=True)), list[np.ndarray]()
        rows = list[tuple[Path, int]]()  # where each image lies
        first = 0
        for file, count in self._files(path):
            begin, end = bisect.bisect_left(wanted, first), bisect.bisect_left(wanted, first + count)
            inside = range(end - begin) if isinstance(wanted, range) else [place - first for place in wanted[begin:end]]
            rows += [(file, row) for row in inside]
            for values, truth in self._blocks(file, inside):
                for image in self._pixels(values, file):
                    gathering.add(image, f"'{file}'")
                labels.append(truth)
            first += count
            if first > wanted[-1]:
                break
        if not rows:
            raise UserError(f"the list of HDF5 files '{path}' leads to no images")

        def read_again(positions: Sequence[int]) -> Iterator[np.ndarray]:
            for file, row in (rows[i] for i in positions):
                values, _ = read_hdf5_images(file, self.data, self.label, slice(row, row + 1))
                yield crop(self._pixels(values, file)[0])

        return gathering.images(read_again), np.concatenate(labels)

    def _pixels(self, values: np.ndarray, file: Path) -> np.ndarray:
        if self.features:
            if not np.isfinite(values).all():
                raise UserError(f"'{file}': data set '{self.data}' has values that are not finite")
            return values
        mean = np.array(self.mean or (0.0,))[:, None, None]
        if len(mean) not in (1, values.shape[1]):
            raise UserError(f"{len(mean)} mean values for {values.shape[1]} channels of '{file}'")
        with np.errstate(all="ignore"):  # what is not finite is refused as any other that is no pixel
            pixels = values / self.scale + mean
        nearest = np.rint(pixels).clip(0, 255)
        if not (np.abs(pixels - nearest) < WHOLE).all():
            raise UserError(
                f"'{file}': data set '{self.data}' has values from {values.min():g} to {values.max():g} that are not "
                f"(pixel - mean) * scale of 8-bit pixels, which the device reads: say with --mean and --scale what was "
                f"done to them (now: mean {','.join(f'{v:g}' for v in mean.ravel())}, scale {self.scale:g})"
            )
        return nearest.astype(np.uint8)


READERS: dict[str, type[Reader]] = {cls.caffe_type: cls for cls in (Lmdb, LevelDb, ImageList, Hdf5List)}
