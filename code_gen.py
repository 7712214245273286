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
from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.errors import finish
from caffe_to_cmsis_nn.flags import CORES, Parser, add_choice, add_library, is_verbose
from caffe_to_cmsis_nn.target import KERNEL_LIBRARIES, Core

MODEL = "models/cifar10_m4.pkl"
OUT_DIR = "code/m4"
WITH_DESCRIBE = {
    "verbose",
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
    if text in (choices.RAM_FAST, choices.RAM_LEAST):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"'{text}' is not {choices.RAM_FAST}, {choices.RAM_LEAST} or a number of bytes"
        )
    return int(text)


def _add_files(parser: Parser) -> None:
    paths = parser.add_argument_group("files")
    paths.add_argument(
        "--model", metavar="FILE", default=MODEL, help="pickle of nn_quantizer.py, or of the original tool"
    )
    paths.add_argument("--out_dir", metavar="DIR", default=OUT_DIR, help="folder to write to, created if missing")
    paths.add_argument(
        "--weights", metavar="FILE", help="caffemodel to use instead of the one that an original-tool pickle names"
    )
    paths.add_argument(
        "--mean", metavar="FILE", help="mean file to use instead of the one that an original-tool pickle names"
    )


def _add_target(parser: Parser) -> None:
    device = parser.add_argument_group("target")
    add_choice(device, "--target", projects.PROJECTS, "board or build system")
    add_library(device, " (default: the pickle's)")
    add_choice(device, "--core", (core.value for core in Core), CORES, " (default: the pickle's)")


def _add_code(parser: Parser) -> None:
    code = parser.add_argument_group("generated code")
    code.add_argument(
        "--ram",
        type=ram,
        default=choices.RAM_FAST,
        metavar="{fast,least,BYTES}",
        help="memory for layer outputs: fast: one call per layer; least: row by row wherever that takes less; or the "
        "fastest code that fits into BYTES",
    )
    code.add_argument(
        "--no_inplace_pooling",
        action="store_true",
        help="give pooling a separate output buffer (the library does not guarantee in-place pooling)",
    )
    code.add_argument(
        "--name",
        metavar="NAME",
        default="",
        help="prefix of the network's files, functions and macros, to combine several networks in a program",
    )
    add_choice(code, "--weights_in", ("flash", "ram"), "ram: copy weights to RAM at start-up, for slow flash")
    code.add_argument(
        "--softmax", action="store_true", help="append arm_softmax_q7: scores from 0 to 127, not probabilities"
    )
    code.add_argument(
        "--serve", action="store_true", help="the program runs images sent by nn_quantizer.py --eval --board"
    )
    code.add_argument("--classes", metavar="FILE", help="file with class names for the program to print, one per line")
    code.add_argument("--profile", action="store_true", help="generate code that times each layer")


def _add_test(parser: Parser) -> None:
    test = parser.add_argument_group("known-answer test")
    images = test.add_mutually_exclusive_group()
    images.add_argument(
        "--test_images",
        metavar="N",
        type=int,
        help="number of test images to run and check at start-up "
        f"(default: {choices.TEST_IMAGES} if the data are found)",
    )
    images.add_argument(
        "--images", metavar="N,N,...", type=positions, help="use the images at these positions instead, from 0: 17,203"
    )
    images.add_argument("--image", metavar="FILE", help="use a picture (PNG, JPEG) instead, cropped and resized to fit")
    order = "channel order of the training images, for --image"
    add_choice(test, "--channel_order", choices.CHANNEL_ORDERS, order)
    test.add_argument("--dump", metavar="DIR", help="write every layer's output for these images as .npy")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    for add in (_add_files, _add_target, _add_code, _add_test):
        add(parser)
    also = parser.add_argument_group("output options")
    also.add_argument("--onnx", metavar="FILE", help="write the integer network as an ONNX model")
    also.add_argument("-v", "--verbose", action="store_true", help="print where an unexpected error happened")
    instead = parser.add_argument_group("other modes")
    instead.add_argument("--describe", metavar="PICKLE", help="print the content of a pickle")
    instead.add_argument("--version", action="version", version=caffe_to_cmsis_nn.__version__)
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
    from caffe_to_cmsis_nn.pipeline import generate  # takes a second

    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(generate.Options)}
    given["library"] = KERNEL_LIBRARIES[args.library] if args.library else None
    given["core"] = Core(args.core) if args.core else None
    run = generate.describe if args.describe else generate.generate

    def work() -> None:
        code = projects.CodeOptions(args.target, args.profile, args.weights_in == "ram", args.name, args.serve)
        run(generate.Options(**{**given, "code": code}))

    return finish("code_gen", work, verbose=is_verbose(arguments))


if __name__ == "__main__":
    sys.exit(main())
