#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Creates an LMDB and a mean file for a Caffe prototxt from your own pictures, without Caffe."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

from pictures import list_folders, read_pictures, shuffled, write

from caffe_to_cmsis_nn.errors import UserError, finish, print_lines
from caffe_to_cmsis_nn.flags import Size


def list_csv(path: Path) -> list[tuple[Path, int]]:
    """(picture, label) pairs from lines `path,label`; paths are relative to the file."""
    pairs = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) != 2 or not re.fullmatch(r"\s*[0-9]{1,9}\s*", row[1]):
                    raise UserError(f"'{path}', line {number}: '{','.join(row)}' is not 'path,label'")
                pairs.append((path.parent / row[0].strip(), int(row[1])))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not a CSV of 'path,label': {error}") from None
    if not pairs:
        raise UserError(f"'{path}' names no pictures")
    return pairs


def list_pictures(source: Path) -> list[tuple[Path, int]]:
    """(picture, label) pairs from class folders or a CSV; prints the labels of class folders."""
    if source.is_file():
        return list_csv(source)
    if not source.is_dir():
        raise UserError(f"'{source}' is neither a folder nor a CSV file")
    pairs, classes = list_folders(source)
    for label, name in enumerate(classes):
        print_lines(f"{label} {name}")
    return pairs


def run(args: argparse.Namespace) -> None:
    pairs = shuffled(list_pictures(args.source), args.seed)
    images = read_pictures([path for path, _ in pairs], args.size, args.gray, args.order)
    write(args.out, images, [label for _, label in pairs], args.mean, [args.source, *(path for path, _ in pairs)])
    print_lines(f"{len(pairs)} pictures in '{args.out}'")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder with one folder per class, or a CSV with lines path,label")
    parser.add_argument("out", type=Path, help="LMDB folder to write")
    parser.add_argument("--mean", type=Path, help="mean.binaryproto to write (use only for training pictures)")
    parser.add_argument("--size", type=Size.parse, help="HEIGHTxWIDTH to resize to, such as 32x32")
    parser.add_argument("--gray", action="store_true", help="convert to one channel")
    parser.add_argument(
        "--order", choices=["rgb", "bgr"], default="bgr", help="channel order; Caffe's own tools use bgr"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the shuffle")
    args = parser.parse_args(arguments)
    return finish("make_lmdb", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
