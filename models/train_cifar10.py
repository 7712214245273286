#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the m4 or m7 network on the CIFAR-10 training set, and writes its weights to the folder of this script.

The test set is never read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training import train

from caffe_to_cmsis_nn.caffe_io.blobs import read_mean
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.errors import finish

HERE = Path(__file__).resolve().parent


def run(args: argparse.Namespace) -> None:
    images, labels = lmdb_images.read(args.train_lmdb)
    train(
        HERE / f"cifar10_{args.network}_train_test.prototxt",
        images,
        labels,
        read_mean(args.mean),
        epochs=args.epochs,
        rate=0.05,
        shift=3,
        flip=True,
        bfloat16=args.bfloat16,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("network", choices=["m4", "m7"])
    parser.add_argument("--train_lmdb", type=Path, default=HERE / "cifar10_train_lmdb")
    parser.add_argument("--mean", type=Path, default=HERE / "mean.binaryproto")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute products in bfloat16; faster on processors that support it"
    )
    args = parser.parse_args()
    return finish("train_cifar10", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
