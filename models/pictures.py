# SPDX-License-Identifier: Apache-2.0
"""Shared by the dataset scripts: reads picture files, writes an LMDB and a mean file."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import write_mean
from caffe_to_cmsis_nn.data import lmdb_images, pictures
from caffe_to_cmsis_nn.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}

T = TypeVar("T")


def list_folders(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """(picture, label) pairs and class names of a folder with one folder per class, in alphabetical order."""
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    pairs = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in SUFFIXES and file.name[0] != "."
    ]
    if not pairs:
        raise UserError(f"'{folder}' contains no class folders with pictures ({', '.join(sorted(SUFFIXES))})")
    return pairs, classes


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The items in a random order that depends only on the seed."""
    return random.Random(seed).sample(items, len(items))


def _read(path: Path, size: tuple[int, int] | None, gray: bool, order: str) -> np.ndarray:
    from PIL import Image

    with pictures.opened(path, f"the picture '{path}'") as file:
        image = file.convert("L" if gray else "RGB")
        if size is not None and size != (image.height, image.width):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return pictures.channels_first(image, order)


def read_pictures(
    paths: Sequence[Path], size: tuple[int, int] | None = None, gray: bool = False, order: str = "rgb"
) -> Iterator[np.ndarray]:
    """The pictures as uint8 CHW, one by one, resized to `size` (height, width) if given.

    Raises UserError if a picture cannot be read or differs in shape from the first.
    """
    shape = None
    for path in tqdm(paths, unit=" pictures", disable=None):
        pixels = _read(path, size, gray, order)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise UserError(f"'{path}' has shape {pixels.shape}, but the first picture has {shape}")
        yield pixels


def write(
    out: Path,
    images: Iterable[np.ndarray],
    labels: Sequence[int],
    mean: Path | None = None,
    sources: Iterable[Path] = (),
) -> None:
    """Writes CHW images of one shape and their labels as an LMDB to `out`, and their mean to `mean` if given.

    Raises UserError if that would overwrite one of `sources`.
    """
    files.refuse_overwriting([out / "data.mdb", *([mean] if mean else [])], sources)
    total = np.zeros(())

    def summed() -> Iterator[np.ndarray]:
        nonlocal total
        for image in images:
            total = total + image.astype(np.float64)
            yield image

    lmdb_images.write(out, summed(), labels)
    if mean is not None:
        write_mean(mean, total / len(labels))
