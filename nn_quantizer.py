#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quantizes a trained Caffe network to 8-bit fixed point and pickles what code_gen.py needs."""

from __future__ import annotations

from caffe_to_cmsis_nn import start

if start.is_run("nn_quantizer"):
    start.die_quietly()

import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.errors import UserError, finish
from caffe_to_cmsis_nn.flags import CORES, Parser, Size, add_choice, add_library, is_verbose
from caffe_to_cmsis_nn.target import LIBRARIES, Q7, Core, Rounding, Target

if TYPE_CHECKING:
    from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork

MODEL = "models/cifar10_m4_train_test.prototxt"
WEIGHTS = "models/cifar10_m4_iter_40000.caffemodel.h5"
SAVE = "models/cifar10_m4.pkl"
WITH_EVAL = {
    "eval",
    "weights",
    "mean",
    "lmdb",
    "memory",
    "quiet",
    "verbose",
    "board",
    "board_images",
}  # flags that can be combined with --eval


class Caffe_Quantizer:
    """The original tool's class: the properties of a quantized network as attributes, with the original names.

    `load_quant_params` sets them from a pickle of this tool or the original one.
    """

    def __init__(self) -> None:
        self._network: QuantizedNetwork | None = None

    def load_quant_params(self, model_file_name: str) -> None:
        """Loads a pickle; raises UserError if the file is not a pickle of this tool or the original one."""
        from caffe_to_cmsis_nn.store import record

        loaded = record.load(Path(model_file_name))
        self._network = loaded.network
        self.__dict__.update(loaded.attributes)

    def save_quant_params(self, model_file_name: str) -> None:
        """Writes a pickle, atomically."""
        from caffe_to_cmsis_nn.store import record

        attributes = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        record.save(Path(model_file_name), record.Record(attributes, self._network))


def _add_files(parser: Parser) -> None:
    paths = parser.add_argument_group("files")
    paths.add_argument(
        "--model", metavar="FILE", default=MODEL, help="network definition (.prototxt) with the test images"
    )
    paths.add_argument(
        "--weights", metavar="FILE", default=WEIGHTS, help="trained weights (.caffemodel or .caffemodel.h5)"
    )
    paths.add_argument("--save", metavar="FILE", default=SAVE, help="pickle to write for code_gen.py")


def _add_target(parser: Parser) -> None:
    device = parser.add_argument_group("target")
    add_library(device)
    add_choice(device, "--core", (core.value for core in Core), CORES)
    roundings = (rounding.value for rounding in Rounding)
    add_choice(device, "--rounding", roundings, "truncate: for q7 kernels built with ARM_NN_TRUNCATE")


def _add_search(parser: Parser) -> None:
    search = parser.add_argument_group("search")
    add_choice(
        search,
        "--objective",
        ("device", "caffe"),
        "device: evaluate formats with the integer network; caffe: the original tool's procedure",
    )
    add_choice(
        search,
        "--weight_bits",
        choices.WEIGHT_BITS,
        "4: in all supported layers; mixed: where 4 bits cost the least accuracy",
    )
    loss = "accuracy that --weight_bits mixed may lose, in percentage points (default: {})"
    search.add_argument("--loss", metavar="POINTS", type=float, help=loss.format(choices.LOSS))
    search.add_argument(
        "--accuracy", metavar="NAME", default=choices.ACCURACY, help="name of the Accuracy layer or its top blob"
    )
    search.add_argument(
        "--output",
        metavar="BLOB",
        action="append",
        help="blob to output; repeatable (default: the Accuracy layer's input or, without one, all blobs that no layer "
        "reads)",
    )
    search.add_argument("--iterations", metavar="N", type=int, help="number of test batches (default: all images once)")
    search.add_argument(
        "--tolerance", metavar="POINTS", type=float, default=0.001, help="accuracy tolerance in percentage points"
    )
    search.add_argument(
        "--holdout",
        metavar="FRACTION",
        type=float,
        default=0.0,
        help="fraction of the images to exclude from the search and report separately",
    )
    search.add_argument("--seed", metavar="N", type=int, default=0, help="random seed for --holdout")


def _add_engine(parser: Parser) -> None:
    means = parser.add_argument_group("float engine")
    add_choice(means, "--engine", ("auto", "onnxruntime", "caffe"), "auto: onnxruntime")
    means.add_argument("--gpu", action="store_true", help="run the float network on a GPU")
    means.add_argument(
        "--memory",
        metavar="GB",
        type=float,
        default=choices.MEMORY / 2**30,
        help="memory for images and layer outputs; data that does not fit is read or computed again",
    )


def _add_overrides(parser: Parser) -> None:
    replaced = parser.add_argument_group("overrides of the prototxt")
    replaced.add_argument("--lmdb", metavar="DIR", help="test images and labels")
    replaced.add_argument("--mean", help="mean image (.binaryproto), one value, or one value per channel: 104,117,123")
    replaced.add_argument(
        "--scale", metavar="FACTOR", type=float, help="factor applied to pixels after mean subtraction"
    )
    replaced.add_argument(
        "--resize",
        metavar="HxW",
        type=Size.parse,
        help="height and width to resize pictures to, before the crop",
    )
    replaced.add_argument("--crop", metavar="N", type=int, help="size of the centre crop")


def _add_output(parser: Parser) -> None:
    output = parser.add_argument_group("output options")
    amount = output.add_mutually_exclusive_group()
    verbose = "print every trial and why it was kept or not, and where an unexpected error happened"
    amount.add_argument("-v", "--verbose", action="store_true", help=verbose)
    amount.add_argument("-q", "--quiet", action="store_true", help="print only the result")
    output.add_argument("--report", metavar="HTML", help="write an HTML report")
    output.add_argument(
        "--json", metavar="FILE", help="write the report's data as JSON (schema: docs/report.schema.json)"
    )
    output.add_argument("--onnx", metavar="FILE", help="write the float network as an ONNX model")
    output.add_argument("--classes", metavar="FILE", help="file with class names for --report, one per line")
    order = "channel order of the images, for the pictures in --report"
    add_choice(output, "--channel_order", choices.CHANNEL_ORDERS, order)


def _add_modes(parser: Parser) -> None:
    instead = parser.add_argument_group("other modes")
    instead.add_argument("--eval", metavar="PICKLE", help="evaluate an existing pickle")
    instead.add_argument(
        "--board",
        metavar="PORT",
        help="with --eval: run the images on a board with code generated with --serve; PORT is a serial port, "
        "socket://HOST:PORT or rfc2217://HOST:PORT",
    )
    instead.add_argument("--board_images", metavar="N", type=int, help="run only the first N images on the board")
    instead.add_argument("--version", action="version", version=caffe_to_cmsis_nn.__version__)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    for add in (_add_files, _add_target, _add_search, _add_engine, _add_overrides, _add_output, _add_modes):
        add(parser)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> Any:
    """The options of a run of the quantizer, or with --eval, a function that evaluates the pickle."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.board and not args.eval:
        parser.error("--board needs --eval: the pickle of the network on the board")
    if args.board_images is not None and (not args.board or args.board_images < 1):
        parser.error("--board_images needs --board, and is 1 or more")
    parser.allow_only(args, "eval", WITH_EVAL)
    from caffe_to_cmsis_nn.pipeline import board, evaluate, job  # takes a second

    if args.eval:
        weights = None if args.weights == WEIGHTS else args.weights  # by default, those that an old pickle names
        if args.board:
            asked = (args.board, args.board_images, args.lmdb, args.memory, args.quiet)
            return partial(board.evaluate, Path(args.eval), *asked, weights=weights, mean=args.mean)
        return partial(evaluate.evaluate, Path(args.eval), args.lmdb, args.memory, args.quiet, weights, args.mean)
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(job.Options)}
    script = ["python", "nn_quantizer.py"]
    given["command"] = shlex.join([*script, *(sys.argv[1:] if arguments is None else arguments)])
    given["full_command"] = shlex.join([*script, *parser.spell_out(args)])
    try:
        given["target"] = Target.named(args.core, args.rounding, LIBRARIES.get(args.library, Q7).name)
    except UserError as error:
        parser.error(str(error))
    return job.Options(**given)


def main(arguments: list[str] | None = None) -> int:
    asked = parse_arguments(arguments)
    from caffe_to_cmsis_nn.pipeline import job, quantize

    work = partial(quantize.quantize, asked) if isinstance(asked, job.Options) else asked
    return finish("nn_quantizer", work, "interrupted: nothing was saved", is_verbose(arguments))


if __name__ == "__main__":
    sys.exit(main())
