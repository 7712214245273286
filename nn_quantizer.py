#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quantizes a trained Caffe classifier to 8-bit fixed point and pickles what code_gen.py needs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import q7
from q7.codegen import known_answers
from q7.engines import engine
from q7.errors import Q7Error, finish
from q7.flags import CORES, KERNELS, Parser, add_choice
from q7.network.quantized import QuantizedNetwork
from q7.pipeline import evaluate, job, quantize
from q7.store import record
from q7.store.record import Record
from q7.target import LIBRARIES, Core, Rounding, Target

MODEL = "models/cifar10_m4_train_test.prototxt"
WEIGHTS = "models/cifar10_m4_iter_40000.caffemodel.h5"
SAVE = "models/cifar10_m4.pkl"
WITH_EVAL = {"eval", "weights", "mean", "lmdb", "memory", "quiet", "verbose"}  # flags that --eval has a use for


class Caffe_Quantizer:
    """The original's class: a quantized network's facts as attributes, under the original's names.

    `load_quant_params` fills them from a pickle of this tool or of the original.
    """

    def __init__(self) -> None:
        self._network: QuantizedNetwork | None = None

    def load_quant_params(self, model_file_name: str) -> None:
        """Raises Q7Error where the file is not such a pickle."""
        loaded = record.load(Path(model_file_name))
        self._network = loaded.network
        self.__dict__.update(loaded.attributes)

    def save_quant_params(self, model_file_name: str) -> None:
        """Replaces the file in one step."""
        attributes = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        record.save(Path(model_file_name), Record(attributes, self._network))


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--model", default=MODEL, help="network definition (.prototxt) that names the test LMDB")
    parser.add_argument("--weights", default=WEIGHTS, help="trained weights, .caffemodel.h5 or .caffemodel")
    parser.add_argument("--save", default=SAVE, help="pickle to write for code_gen.py")
    parser.add_argument("--accuracy", default="accuracy", help="Accuracy layer (or its top blob) to optimise")
    parser.add_argument("--iterations", type=int, help="number of test batches; if not given, all images once")
    parser.add_argument("--tolerance", type=float, default=0.001, help="accuracy tolerance in percentage points")
    parser.add_argument(
        "--memory",
        type=float,
        default=engine.MEMORY / 2**30,
        help="GB for images and layers' outputs; what does not fit is read or computed again",
    )
    parser.add_argument("--gpu", action="store_true", help="run the sweeps on a GPU")
    engines = ("auto", "onnxruntime", "caffe")
    add_choice(parser, "--engine", engines, "what runs the float network; auto: onnxruntime")
    add_choice(parser, "--objective", ("device", "caffe"), "whose accuracy the sweeps look at")
    parser.add_argument(
        "--holdout", type=float, default=0.0, help="fraction of the images to keep from the search and to report on"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice of held-out images")
    add_choice(parser, "--core", (core.value for core in Core), CORES)
    add_choice(parser, "--api", LIBRARIES, KERNELS)
    roundings = (rounding.value for rounding in Rounding)
    add_choice(parser, "--rounding", roundings, "truncate: for kernels built with ARM_NN_TRUNCATE")
    replaced = parser.add_argument_group("replacing what the prototxt says")
    replaced.add_argument("--lmdb", help="test images and labels")
    replaced.add_argument("--mean", help="mean image (.binaryproto), one value, or one for each channel: 104,117,123")
    replaced.add_argument("--scale", type=float, help="factor for the pixels, after the mean is subtracted")
    replaced.add_argument("--crop", type=int, help="cut this many rows and columns out of the centre of each image")
    told = parser.add_argument_group("output")
    amount = told.add_mutually_exclusive_group()
    amount.add_argument("-v", "--verbose", action="store_true", help="print every trial")
    amount.add_argument("-q", "--quiet", action="store_true", help="print the result only")
    told.add_argument("--report", metavar="HTML", help="write a page (HTML) with everything that was found")
    told.add_argument("--json", help="write the same as JSON; docs/report.schema.json describes it")
    order = "order of the images' channels, for the pictures in --report"
    add_choice(told, "--channel_order", known_answers.CHANNEL_ORDERS, order)
    told.add_argument(
        "--eval", metavar="PICKLE", help="quantize nothing: print what is in a pickle, and run its network"
    )
    parser.add_argument("--version", action="version", version=q7.__version__)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> Any:
    """The options of a run of the quantizer, or the evaluation itself, to be called, where that is asked for."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    parser.allow_only(args, "eval", WITH_EVAL)
    if args.eval:
        weights = None if args.weights == WEIGHTS else args.weights  # an old pickle names its own
        return partial(evaluate.evaluate, Path(args.eval), args.lmdb, args.memory, args.quiet, weights, args.mean)
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(job.Options)}
    given["command"] = shlex.join(["python", "nn_quantizer.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        given["target"] = Target.named(args.core, args.rounding, args.api)
    except Q7Error as error:
        parser.error(str(error))
    return job.Options(**given)


def main(arguments: list[str] | None = None) -> int:
    asked = parse_arguments(arguments)
    work = partial(quantize.quantize, asked) if isinstance(asked, job.Options) else asked
    return finish("nn_quantizer", work, "interrupted: nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
