#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generates C++ that runs a quantized network with CMSIS-NN, from the pickle of nn_quantizer.py."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

import q7
from q7.codegen import boards, known_answers, rows
from q7.errors import finish
from q7.flags import CORES, KERNELS, Parser, add_choice
from q7.pipeline import generate
from q7.target import LIBRARIES, Core

MODEL = "models/cifar10_m4.pkl"
OUT_DIR = "code/m4"
WITH_DESCRIBE = {
    "describe",
    "api",
    "core",
    "weights",
    "mean",
    "target",
    "weights_in",
    "no_inplace_pooling",
    "softmax",
    "ram",
}


def positions(text: str) -> list[int]:
    """Whole numbers of 0 or more, with commas between them."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def ram(text: str) -> int | str:
    """Bytes, or the name of a plan."""
    if text in (rows.FAST, rows.LEAST):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not {rows.FAST}, {rows.LEAST} or a number of bytes")
    return int(text)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model", default=MODEL, help="pickle of nn_quantizer.py, or of the original tool")
    parser.add_argument("--out_dir", default=OUT_DIR, help="folder to write to, created if missing")
    add_choice(parser, "--api", LIBRARIES, KERNELS, "; if not given, the pickle's")
    add_choice(parser, "--core", (core.value for core in Core), CORES, "; if not given, the pickle's")
    parser.add_argument("--profile", action="store_true", help="emit code that times each layer")
    add_choice(parser, "--target", boards.TARGETS, "board or project that the code is for")
    parser.add_argument(
        "--no_inplace_pooling",
        action="store_true",
        help="give pooling its own output memory, since the library does not promise that it works in place",
    )
    parser.add_argument(
        "--ram",
        type=ram,
        default=rows.FAST,
        metavar="{fast,least,BYTES}",
        help="memory for layers' outputs: fast: one call for each layer; least: row by row wherever that takes less; "
        "or the fastest code that takes so many bytes",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="end in arm_softmax_q7: how sure the network is, in 128ths"
    )
    add_choice(parser, "--weights_in", ("flash", "ram"), "ram: faster where flash is slow; copied at start-up")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--test_images",
        type=int,
        help="images of the test LMDB to run and check at start-up; "
        f"{generate.TEST_IMAGES} if not given and the LMDB is found",
    )
    images.add_argument(
        "--images", type=positions, help="positions of the images to check in the test LMDB, from 0: 17,203"
    )
    images.add_argument("--image", help="a picture (PNG, JPEG) to run and check instead, cut and resized to fit")
    order = "order of the channels of --image: that of the images that the network was trained with"
    add_choice(parser, "--channel_order", known_answers.CHANNEL_ORDERS, order)
    parser.add_argument("--dump", metavar="DIR", help="write what every layer computes for the test images, as .npy")
    parser.add_argument("--describe", metavar="PICKLE", help="generate nothing: print what is in a pickle")
    parser.add_argument("--weights", help="quantized caffemodel of an old pickle, in place of the one that it names")
    parser.add_argument("--mean", help="mean.binaryproto of an old pickle, in place of the one that it names")
    parser.add_argument("--version", action="version", version=q7.__version__)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> Any:
    """The flags, with --describe's pickle as --model."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    parser.allow_only(args, "describe", WITH_DESCRIBE)
    args.model = args.describe or args.model
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(generate.Options)}
    given["library"] = LIBRARIES[args.api] if args.api else None
    given["core"] = Core(args.core) if args.core else None
    given["code"] = boards.Options(args.target, args.profile, args.weights_in == "ram")
    run = generate.describe if args.describe else generate.generate
    return finish("code_gen", lambda: run(generate.Options(**given)))


if __name__ == "__main__":
    sys.exit(main())
