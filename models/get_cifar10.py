#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Creates cifar10_train_lmdb, cifar10_test_lmdb and the mean of the training images, without Caffe.

The images are uint8 CHW in the order red, green, blue, as in Caffe's convert_cifar_data. They are shuffled once with a
fixed seed, so the first images of a dataset are a random sample.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import lzma
import os
import pickle
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pictures import list_folders, read_pictures, shuffled, write
from tqdm import tqdm

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.errors import UserError, finish, print_lines

HERE = Path(__file__).resolve().parent
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 1 << 26  # twice the size of a real batch
SEED = 0

Examples = tuple[np.ndarray, np.ndarray]  # images (N, 3, 32, 32) uint8, labels (N,)


# --- download ---------------------------------------------------------------------------------------------------------


def _fetch(url: str, part: Path) -> None:
    """Appends the missing part of the file at `url` to `part`; restarts if the server does not support ranges."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            have = have if answer.status == 206 else 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm(desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while block := answer.read(1 << 16):
                    bar.update(file.write(block))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise UserError(f"cannot download '{url}': {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download '{url}' (the next run resumes): {error}") from None
    if part.stat().st_size < total:
        raise UserError(f"the download of '{url}' stopped after {part.stat().st_size} of {total} bytes: run again")


def download(url: str, path: Path, md5: str) -> None:
    """Downloads `url` to `path` through a .part file, from which a later run resumes; raises UserError if it fails."""
    part = path.with_name(f"{path.name}.part")
    with files.locked(path.parent):
        _fetch(url, part)
        found = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            part.unlink()
            raise UserError(f"the download of '{url}' has md5 {found} instead of {md5} and was deleted")
        os.replace(part, path)


# --- archives ---------------------------------------------------------------------------------------------------------


class _Inert:
    """Replaces numpy's array and dtype in a pickle: stores its arguments and state, and runs no code."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode(text: str, _: str) -> bytes:
    """The function by which Python 3 pickles bytes in protocol 2."""
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Loads only data: a pickle can call whatever find_class returns, so find_class returns only inert functions."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UserError(f"it refers to '{module}.{name}', which is not allowed in a batch of CIFAR-10")
        return _STAND_INS[module, name]


def _parse_python(data: bytes) -> Examples:
    """A batch of the Python version: a pickled dictionary with an array `data` and a list `labels`."""
    try:
        loaded = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
        _, shape, dtype, fortran, pixels = batch["data"].state
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise UserError("its pixels are not uint8")
        images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
        return images, np.fromiter(batch["labels"], np.int64)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(f"not a pickled batch of CIFAR-10 ({type(error).__name__})") from None


def _parse_binary(data: bytes) -> Examples:
    """A batch of the binary version: for each image, one byte for the label, then the pixels."""
    if len(data) % (1 + PIXELS):
        raise UserError(f"its {len(data)} bytes are not a whole number of {1 + PIXELS}-byte images")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _parse(name: str, data: bytes) -> Examples:
    try:
        images, labels = _parse_binary(data) if name.endswith(".bin") else _parse_python(data)
        if not len(labels) or images.shape != (len(labels), PIXELS) or labels.shape != (len(labels),):
            raise UserError(f"images of shape {images.shape} and labels of shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(CLASSES):
            raise UserError(f"labels from {labels.min()} to {labels.max()}, not 0 to {len(CLASSES) - 1}")
    except UserError as error:
        raise UserError(f"batch '{name}': {error}") from None
    return images.reshape(-1, *SHAPE), labels


def read_archive(path: Path) -> dict[str, Examples]:
    """The training and test images of cifar-10-binary.tar.gz or cifar-10-python.tar.gz, detected by content.

    Raises UserError if the archive is neither, or damaged. Code named in a pickle is not run.
    """
    wanted = {name for names in BATCHES.values() for name in names}
    found = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name.removesuffix(".bin") not in wanted or not member.isreg():
                    continue
                if member.size > MAX_BATCH_BYTES:
                    raise UserError(f"'{path}', batch '{name}': {member.size} bytes are more than {MAX_BATCH_BYTES}")
                stream = archive.extractfile(member)
                found[name.removesuffix(".bin")] = _parse(name, stream.read() if stream else b"")
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"the archive '{path}' cannot be read: {error}") from None
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(f"'{path}' is not a complete CIFAR-10 archive: {', '.join(missing)} missing")
    return {
        split: (np.concatenate([found[n][0] for n in names]), np.concatenate([found[n][1] for n in names]))
        for split, names in BATCHES.items()
    }


# --- class folders ----------------------------------------------------------------------------------------------------


def _read_split(folder: Path) -> Examples:
    pairs, classes = list_folders(folder)
    if classes != CLASSES:
        raise UserError(f"the folders in '{folder}' are {', '.join(classes)}, not {', '.join(CLASSES)}")
    images = np.stack(list(read_pictures([path for path, _ in pairs])))
    if images.shape[1:] != SHAPE:
        raise UserError(f"the pictures in '{folder}' have shape {images.shape[1:]}, not {SHAPE}")
    return images, np.array([label for _, label in pairs])


def read_folders(folder: Path) -> dict[str, Examples]:
    """The training and test images in FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or one of the two."""
    splits = {split: _read_split(folder / split) for split in BATCHES if (folder / split).is_dir()}
    if not splits:
        raise UserError(f"'{folder}' has no folder 'train' or 'test'")
    return splits


# --- script -----------------------------------------------------------------------------------------------------------


def read(args: argparse.Namespace) -> dict[str, Examples]:
    """The images from the source given in the arguments; by default, downloads them."""
    if args.images:
        return read_folders(args.images)
    if args.archive:
        return read_archive(args.archive)
    archive = args.out / PurePosixPath(URL).name
    if not archive.exists():
        download(URL, archive, MD5)
    return read_archive(archive)


def run(args: argparse.Namespace) -> None:
    for split, (images, labels) in read(args).items():
        order = shuffled(range(len(labels)), SEED)
        out = args.out / f"cifar10_{split}_lmdb"
        mean = args.out / "mean.binaryproto" if split == "train" else None
        write(out, (images[i] for i in order), [int(labels[i]) for i in order], mean)
        print_lines(f"{len(labels)} images in '{out}'" + (f", their mean in '{mean}'" if mean else ""))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="local cifar-10-binary.tar.gz or cifar-10-python.tar.gz")
    source.add_argument("--images", type=Path, help="folder with train/CLASS/* and test/CLASS/* (PNG or JPEG)")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder to write to (default: the folder of this script)"
    )
    args = parser.parse_args(arguments)
    return finish("get_cifar10", lambda: run(args), "interrupted; a download resumes with the next run")


if __name__ == "__main__":
    sys.exit(main())
