#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains LeNet on MNIST, and writes its weights and the test LMDB to the folder of this script."""

from __future__ import annotations

import argparse
import gzip
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from training import train

from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.errors import UserError, finish

HERE = Path(__file__).resolve().parent


def read_idx(folder: Path, name: str) -> np.ndarray:
    """One of MNIST's ubyte files, plain or gzipped: a big-endian header, then uint8 values in row-major order."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read MNIST's '{name}' or '{name}.gz' in '{folder}': {error}") from None
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def run(args: argparse.Namespace) -> None:
    images = read_idx(args.data, "t10k-images-idx3-ubyte")[:, None]
    labels = read_idx(args.data, "t10k-labels-idx1-ubyte")
    lmdb_images.write(HERE / "mnist_test_lmdb", images, labels)
    train(
        HERE / "lenet_train_test.prototxt",
        read_idx(args.data, "train-images-idx3-ubyte")[:, None].copy(),
        read_idx(args.data, "train-labels-idx1-ubyte").astype(np.int32),
        None,
        epochs=args.epochs,
        rate=0.03,
        shift=2,
        flip=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four ubyte files")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    return finish("train_lenet", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
