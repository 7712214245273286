#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns a user's own pictures into the LMDB and the mean file that a Caffe prototxt names, without Caffe."""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from q7 import caffe_files
from q7.errors import Q7Error

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


def list_folders(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """(picture, label) pairs and class names of a folder with one folder for each class, in alphabetical order."""
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in SUFFIXES
    ], classes


def list_csv(path: Path) -> list[tuple[Path, int]]:
    """(picture, label) pairs of the lines `path,label`; paths are relative to the file."""
    pairs = []
    with open(path, newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row:
                continue
            if len(row) != 2 or not row[1].strip().isdigit():
                raise Q7Error(f"'{path}', line {number}: '{','.join(row)}' is not 'path,label'")
            pairs.append((path.parent / row[0].strip(), int(row[1])))
    return pairs


def read_picture(path: Path, size: tuple[int, int] | None, gray: bool, order: str) -> np.ndarray:
    """A picture as uint8 CHW, resized to `size` (height, width) where given."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("L" if gray else "RGB")
            if size is not None and size != (image.height, image.width):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except OSError as error:
        raise Q7Error(f"cannot read the picture '{path}': {error}") from error
    if gray:
        return pixels[None]
    return np.ascontiguousarray((pixels[:, :, ::-1] if order == "bgr" else pixels).transpose(2, 0, 1))


def convert(
    pairs: list[tuple[Path, int]],
    out: Path,
    mean: Path | None,
    size: tuple[int, int] | None = None,
    gray: bool = False,
    order: str = "rgb",
    seed: int = 0,
) -> None:
    """Shuffles the pairs once, writes them as an LMDB to `out`, and their mean image to `mean` where given."""
    if not pairs:
        raise Q7Error(f"no pictures found ({', '.join(sorted(SUFFIXES))})")
    pairs = random.Random(seed).sample(pairs, len(pairs))
    total: np.ndarray | None = None

    def pictures() -> Iterator[np.ndarray]:
        nonlocal total
        for path, _ in pairs:
            pixels = read_picture(path, size, gray, order)
            if total is None:
                total = np.zeros(pixels.shape, np.float64)
            if pixels.shape != total.shape:
                raise Q7Error(f"'{path}' has shape {pixels.shape}, the first picture {total.shape}: give --size")
            total += pixels
            yield pixels

    caffe_files.write_lmdb(out, pictures(), (label for _, label in pairs))
    if mean is not None and total is not None:
        caffe_files.write_mean(mean, total / len(pairs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder with one folder for each class, or a CSV of path,label")
    parser.add_argument("out", type=Path, help="the LMDB folder to write")
    parser.add_argument("--mean", type=Path, help="mean.binaryproto to write (of training pictures only)")
    parser.add_argument("--size", help="HEIGHTxWIDTH to resize to, for example 32x32")
    parser.add_argument("--gray", action="store_true", help="one channel")
    parser.add_argument("--order", choices=["rgb", "bgr"], default="bgr", help="channel order; Caffe's own tools: bgr")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle")
    args = parser.parse_args()
    try:
        size = None
        if args.size:
            height, _, width = args.size.lower().partition("x")
            if not (height.isdigit() and width.isdigit()):
                raise Q7Error(f"--size '{args.size}' is not HEIGHTxWIDTH")
            size = (int(height), int(width))
        if args.source.is_dir():
            pairs, classes = list_folders(args.source)
            for label, name in enumerate(classes):
                print(f"{label} {name}")
        elif args.source.is_file():
            pairs = list_csv(args.source)
        else:
            raise Q7Error(f"'{args.source}' is neither a folder nor a CSV file")
        convert(pairs, args.out, args.mean, size, args.gray, args.order, args.seed)
        print(f"{len(pairs)} pictures in '{args.out}'")
    except Q7Error as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
