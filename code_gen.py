#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generates C++ that runs a quantized network with CMSIS-NN, from the pickle of nn_quantizer.py."""

from __future__ import annotations

from caffe_to_cmsis_nn import start

if start.is_run("code_gen"):
    start.die_quietly()

import argparse
import sys
from dataclasses import fields
from typing import Any

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.errors import finish
from caffe_to_cmsis_nn.flags import CORES, Parser, add_choice, add_library
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.pipeline import generate
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.target import KERNEL_LIBRARIES, Core

MODEL = "models/cifar10_m4.pkl"
OUT_DIR = "code/m4"
WITH_DESCRIBE = {
    "describe",
    "api",
    "core",
    "kernels",
    "weights",
    "mean",
    "target",
    "weights_in",
    "no_inplace_pooling",
    "softmax",
    "ram",
    "name",
}


def positions(text: str) -> list[int]:
    """Parses non-negative integers separated by commas; raises ValueError."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def ram(text: str) -> int | str:
    """Parses a number of bytes, or the name of a plan; raises ArgumentTypeError."""
    if text in (rows.FAST, rows.LEAST):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not {rows.FAST}, {rows.LEAST} or a number of bytes")
    return int(text)


def _add_files(parser: Parser) -> None:
    paths = parser.add_argument_group("files")
    paths.add_argument(
        "--model", metavar="FILE", default=MODEL, help="pickle of nn_quantizer.py, or of the original tool"
    )
    paths.add_argument("--out_dir", metavar="DIR", default=OUT_DIR, help="folder to write to, created if missing")
    paths.add_argument("--weights", metavar="FILE", help="of an old pickle, in place of the caffemodel that it names")
    paths.add_argument("--mean", metavar="FILE", help="of an old pickle, in place of the mean file that it names")


def _add_device(parser: Parser) -> None:
    device = parser.add_argument_group("what the code is for")
    add_choice(device, "--target", projects.PROJECTS, "board or project")
    add_library(device, "; the pickle's if left out")
    add_choice(device, "--core", (core.value for core in Core), CORES, "; the pickle's if left out")


def _add_code(parser: Parser) -> None:
    code = parser.add_argument_group("the network's code")
    code.add_argument(
        "--ram",
        type=ram,
        default=rows.FAST,
        metavar="{fast,least,BYTES}",
        help="memory for layers' outputs: fast: one call for each layer; least: row by row wherever that takes less; "
        "or the fastest code that takes so many bytes",
    )
    code.add_argument(
        "--no_inplace_pooling",
        action="store_true",
        help="give pooling its own output memory, since the library does not promise that it works in place",
    )
    code.add_argument(
        "--name",
        metavar="NAME",
        default="",
        help="what the network's files, functions and macros begin with, so that a program can hold several",
    )
    add_choice(code, "--weights_in", ("flash", "ram"), "ram: faster where flash is slow; copied at start-up")
    code.add_argument(
        "--softmax", action="store_true", help="end in arm_softmax_q7: scores from 0 to 127, not probabilities"
    )
    code.add_argument(
        "--serve", action="store_true", help="have the program run images that nn_quantizer.py --eval --board sends"
    )
    code.add_argument("--classes", metavar="FILE", help="the classes' names that the program prints, one on each line")
    code.add_argument("--profile", action="store_true", help="emit code that times each layer")


def _add_test(parser: Parser) -> None:
    test = parser.add_argument_group("known-answer test")
    images = test.add_mutually_exclusive_group()
    images.add_argument(
        "--test_images",
        metavar="N",
        type=int,
        help="images of the test data to run and check at start-up; "
        f"{generate.TEST_IMAGES} if left out and the data are found",
    )
    images.add_argument(
        "--images", metavar="N,N,...", type=positions, help="images at these positions instead, from 0: 17,203"
    )
    images.add_argument("--image", metavar="FILE", help="a picture (PNG, JPEG) instead, cut and resized to fit")
    order = "order of the channels of --image: that of the images that the network was trained with"
    add_choice(test, "--channel_order", test_images.CHANNEL_ORDERS, order)
    test.add_argument("--dump", metavar="DIR", help="write what every layer computes for these images, as .npy")


def _add_output(parser: Parser) -> None:
    also = parser.add_argument_group("output options")
    also.add_argument(
        "--onnx", metavar="FILE", help="write the integer network as ONNX, to look at and to run anywhere"
    )


def _add_other_modes(parser: Parser) -> None:
    instead = parser.add_argument_group("in place of all that")
    instead.add_argument("--describe", metavar="PICKLE", help="print what is in a pickle")
    instead.add_argument("--version", action="version", version=caffe_to_cmsis_nn.__version__)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    _add_files(parser)
    _add_device(parser)
    _add_code(parser)
    _add_test(parser)
    _add_output(parser)
    _add_other_modes(parser)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> Any:
    """Parses the flags; the pickle of --describe becomes --model."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    parser.allow_only(args, "describe", WITH_DESCRIBE)
    args.model = args.describe or args.model
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(generate.Options)}
    given["library"] = KERNEL_LIBRARIES[args.library] if args.library else None
    given["core"] = Core(args.core) if args.core else None
    run = generate.describe if args.describe else generate.generate

    def work() -> None:
        code = projects.CodeOptions(args.target, args.profile, args.weights_in == "ram", args.name, args.serve)
        run(generate.Options(**{**given, "code": code}))

    return finish("code_gen", work)


if __name__ == "__main__":
    sys.exit(main())
