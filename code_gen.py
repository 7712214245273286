#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generates C++ that runs a quantized network with CMSIS-NN, from the pickle of nn_quantizer.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import q7
from q7 import emit, legacy, memory, record
from q7.errors import Q7Error
from q7.qformat import Target
from q7.record import QuantizedNetwork

MODEL = "models/cifar10_m4.pkl"
OUT_DIR = "code/m4"


def load(args: argparse.Namespace) -> QuantizedNetwork:
    """The network of the pickle; an old pickle's is rebuilt from the files that it names."""
    path = Path(args.model)
    loaded = record.load(path)
    if loaded.network is None:
        return legacy.rebuild(loaded.attributes, path.parent, Target(), args.weights, args.mean)
    if args.weights or args.mean:
        raise Q7Error(f"--weights and --mean are for pickles of the original tool; '{path}' holds its weights")
    return loaded.network


def run(args: argparse.Namespace) -> None:
    network = load(args)
    plan = memory.plan(network.graph, network.layers, network.target, promised_only=args.no_inplace_pooling)
    contents = emit.render(network, plan, args.target, args.profile)
    emit.write(Path(args.out_dir), contents)
    print("\n".join(emit.table(network, plan)))
    print(f"Wrote {', '.join(contents)} to '{args.out_dir}'")


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="pickle of nn_quantizer.py, or of the original tool")
    parser.add_argument("--out_dir", default=OUT_DIR, help="folder to write, created where missing")
    parser.add_argument("--profile", action="store_true", help="emit code that times each layer")
    parser.add_argument("--target", choices=emit.TARGETS, default=emit.TARGETS[0], help="what the code is for")
    parser.add_argument(
        "--no-inplace-pooling",
        action="store_true",
        help="give pooling its own output memory, since the library does not promise that it works in place",
    )
    parser.add_argument("--weights", help="quantized caffemodel of an old pickle, in place of the one that it names")
    parser.add_argument("--mean", help="mean.binaryproto of an old pickle, in place of the one that it names")
    parser.add_argument("--version", action="version", version=q7.__version__)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        run(args)
    except Q7Error as error:
        print(f"code_gen: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
