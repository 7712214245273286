#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generates C++ that runs a quantized network with CMSIS-NN, from the pickle of nn_quantizer.py."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import q7
from q7 import command, files
from q7.codegen import boards, c_text, cost, emit, known_answers, lowering, memory
from q7.codegen.boards import Options
from q7.codegen.known_answers import KnownAnswers
from q7.errors import Q7Error
from q7.network.quantized import QuantizedNetwork
from q7.report import summary
from q7.store import original
from q7.target import LIBRARIES, Core, Target

MODEL = "models/cifar10_m4.pkl"
OUT_DIR = "code/m4"
TEST_IMAGES = 1
WITH_DESCRIBE = {"describe", "api", "core", "weights", "mean", "target", "weights_in", "no_inplace_pooling", "softmax"}


def lower(network: QuantizedNetwork, args: argparse.Namespace) -> QuantizedNetwork:
    """The network for the kernel library and the core that are asked for."""
    core = Core(args.core) if args.core else network.target.core
    library = LIBRARIES[args.api] if args.api else network.target.library
    rounding = network.target.rounding if network.target.rounding in library.roundings else library.roundings[0]
    return lowering.fuse(lowering.retarget(network, Target(core, rounding, library)))


def find_dataset(network: QuantizedNetwork, args: argparse.Namespace) -> Path:
    """The test images that the network was quantized with."""
    return files.find(network.dataset, Path(args.model).parent, f"the test {network.reader.kind}")


def read_files(network: QuantizedNetwork, args: argparse.Namespace) -> list[Path]:
    """What the run reads, and what the network was made of, as far as it is there: no output may overwrite it."""
    paths = [Path(name) for name in (args.model, args.weights, args.mean, args.image) if name]
    for source in network.sources.values():
        paths += [Path(source["name"]), Path(args.model).parent / source["name"]]
    with contextlib.suppress(Q7Error):
        paths += network.reader.files(find_dataset(network, args))
    return paths


def find_answers(network: QuantizedNetwork, args: argparse.Namespace) -> KnownAnswers | None:
    """The test images that were asked for; without being asked, one image of the LMDB where that is at hand."""
    if args.image:
        images = known_answers.read_picture(network, Path(args.image), args.channel_order)
        size = "x".join(map(str, network.graph.input.out_shape[:0:-1]))
        print(f"Test image: '{args.image}', cut about its centre, resized to {size}, channels {args.channel_order}")
        return known_answers.compute(network, *images)
    if args.images:
        path = find_dataset(network, args)
        return known_answers.compute(network, *known_answers.read_positions(network, path, args.images))
    count = TEST_IMAGES if args.test_images is None else args.test_images
    if count == 0:
        return None
    try:
        path = find_dataset(network, args)
        images = known_answers.read_images(network, path, count)
    except Q7Error as error:
        if args.test_images is not None:
            raise
        command.note("code_gen", f"no known-answer test: {error}")
        return None
    return known_answers.compute(network, *images)


def dump(network: QuantizedNetwork, answers: KnownAnswers | None, folder: Path, read: Sequence[Path]) -> None:
    """Writes every layer's output, and prints the checksums that the firmware must print."""
    if answers is None:
        raise Q7Error("--dump needs images: give --test_images, --images or --image")
    if folder.exists() and not folder.is_dir():
        raise Q7Error(f"'{folder}' is not a folder")
    identifiers = c_text.identifiers(layer.name for layer in network.graph.layers)
    print("\n".join(known_answers.checksum_lines(answers, identifiers)))
    print(f"Wrote {', '.join(known_answers.dump(answers, identifiers, folder, read))} to '{folder}'")


def positions(text: str) -> list[int]:
    """Whole numbers of 0 or more, with commas between them."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def run(args: argparse.Namespace) -> None:
    if args.test_images is not None and args.test_images < 0:
        raise Q7Error(f"--test_images {args.test_images} must be 0 or more")
    options = Options(args.target, args.profile, args.weights_in == "ram")
    network = lower(original.open_network(Path(args.model), args.weights, args.mean), args)
    if args.softmax:
        network = lowering.add_softmax(network)
    plan = memory.plan(network.graph, network.layers, network.target, promised_only=args.no_inplace_pooling)
    if args.describe:
        print("\n".join([*summary.describe(network), "", *cost.table(network, plan, options)]))
        return
    answers = find_answers(network, args)
    read = read_files(network, args)
    if args.dump:
        dump(network, answers, Path(args.dump), read)
    contents = emit.render(network, plan, options, answers)
    emit.write(Path(args.out_dir), contents, read)
    print("\n".join(cost.table(network, plan, options)))
    print(f"Wrote {', '.join(contents)} to '{args.out_dir}'")


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="pickle of nn_quantizer.py, or of the original tool")
    parser.add_argument("--out_dir", default=OUT_DIR, help="folder to write, created where missing")
    parser.add_argument(
        "--api",
        choices=LIBRARIES,
        help="kernel library: q7 up to CMSIS 5.9.0, s8 in CMSIS-NN 4 to 7; if not given, the pickle's",
    )
    parser.add_argument(
        "--core",
        choices=[c.value for c in Core],
        help="dsp: M4, M7, M33; plain: M0, M3; mve: M55; if not given, the pickle's",
    )
    parser.add_argument("--profile", action="store_true", help="emit code that times each layer")
    parser.add_argument("--target", choices=boards.TARGETS, default=boards.TARGETS[0], help="what the code is for")
    parser.add_argument(
        "--no-inplace-pooling",
        action="store_true",
        help="give pooling its own output memory, since the library does not promise that it works in place",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="end in arm_softmax_q7: 128ths that tell how sure the network is"
    )
    parser.add_argument(
        "--weights_in",
        choices=["flash", "ram"],
        default="flash",
        help="ram: faster where flash is slow, copied at start",
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--test_images",
        type=int,
        help=f"images of the test LMDB to run and check at start-up; {TEST_IMAGES} if not given and the LMDB is found",
    )
    images.add_argument("--images", type=positions, help="positions of such images in the test LMDB, from 0: 17,203")
    images.add_argument("--image", help="a picture (PNG, JPEG) to run and check instead, cut and resized to fit")
    parser.add_argument(
        "--channel_order",
        choices=known_answers.CHANNEL_ORDERS,
        default=known_answers.CHANNEL_ORDERS[0],
        help="how the channels of --image go: as in the images that the network was trained with",
    )
    parser.add_argument("--dump", metavar="DIR", help="write what every layer computes for the test images, as .npy")
    parser.add_argument("--describe", metavar="PICKLE", help="generate nothing: print what is in a pickle")
    parser.add_argument("--weights", help="quantized caffemodel of an old pickle, in place of the one that it names")
    parser.add_argument("--mean", help="mean.binaryproto of an old pickle, in place of the one that it names")
    parser.add_argument("--version", action="version", version=q7.__version__)
    args = parser.parse_args(arguments)
    if args.describe:
        command.allow_only(parser, args, "describe", WITH_DESCRIBE)
        args.model = args.describe
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return command.finish("code_gen", lambda: run(args), lambda: "interrupted")


if __name__ == "__main__":
    sys.exit(main())
