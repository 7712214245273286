#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quantizes a trained Caffe classifier to 8-bit fixed point and pickles what code_gen.py needs."""

from __future__ import annotations

import argparse
import functools
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import q7
from q7 import command, files
from q7.caffe_io.blobs import to_caffemodel
from q7.codegen import known_answers
from q7.data import lmdb_images
from q7.engines import engine
from q7.engines.accuracy import accuracy_caffe, accuracy_first
from q7.engines.device_network import DeviceNetwork
from q7.engines.float_network import FloatNetwork, as_trained
from q7.errors import Q7Error
from q7.network.quantized import IntegerLayer, QuantizedNetwork, quantize_network
from q7.network.to_caffe import caffe_types, quantized_blobs
from q7.pipeline.job import Job, note, prepare, split
from q7.report import facts, page, statistics, summary
from q7.report.statistics import Statistics
from q7.search import caffe_objective, device_objective, journal, progress
from q7.search.common import Found, Trial
from q7.search.journal import Journal, RememberedJudge, RememberedSimulation
from q7.store import original, record
from q7.store.record import Record
from q7.target import LIBRARIES, Core, Rounding, Target

MODEL = "models/cifar10_m4_train_test.prototxt"
WEIGHTS = "models/cifar10_m4_iter_40000.caffemodel.h5"
SAVE = "models/cifar10_m4.pkl"
WITH_EVAL = {"eval", "weights", "mean", "lmdb", "quiet", "verbose"}  # flags that --eval has a use for


class Caffe_Quantizer:
    """The original's class: a quantized network's facts as attributes, under the original's names.

    `load_quant_params` fills them from a pickle of this tool or of the original.
    """

    def __init__(self) -> None:
        self._network: QuantizedNetwork | None = None

    def load_quant_params(self, model_file_name: str) -> None:
        """Raises Q7Error where the file is no such pickle."""
        loaded = record.load(Path(model_file_name))
        self._network = loaded.network
        self.__dict__.update(loaded.attributes)

    def save_quant_params(self, model_file_name: str) -> None:
        """Replaces the file in one step."""
        attributes = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        record.save(Path(model_file_name), Record(attributes, self._network))


def check_engine(args: argparse.Namespace) -> None:
    """Raises Q7Error where the engine asked for cannot be used."""
    if args.engine == "caffe":
        from q7.engines import pycaffe_network

        pycaffe_network.load(args.gpu)
    else:
        args.providers = engine.providers(args.gpu)


def float_network(job: Job, images: Any, args: argparse.Namespace) -> FloatNetwork:
    """The network as it was trained, on the engine asked for."""
    if args.engine != "caffe":
        return FloatNetwork(job.graph, images, args.providers, args.memory_bytes)
    from q7.engines.pycaffe_network import PycaffeNetwork

    return PycaffeNetwork(job.graph, images, job.prototxt, args.gpu, args.memory_bytes)


def open_journal(job: Job, args: argparse.Namespace) -> Journal:
    """What a run with the same inputs and options that was stopped has found out."""
    arrays = [job.images, job.labels, job.swept, job.graph.input.mean]
    arrays += [array for pair in job.graph.weights.values() for array in pair]
    options: dict[str, Any] = {name: getattr(args, name) for name in ("engine", "gpu", "objective", "tolerance")}
    options.update(target=str(args.target), tool=q7.__version__, layers=list(map(repr, job.graph.layers)))
    opened = Journal(job.journal, journal.key(arrays, options))
    if opened.replaced:
        note(f"'{opened.path}' is of another model, data or options: starting anew")
    elif opened.resumed:
        note(f"going on from '{opened.path}', which holds {opened.resumed} results of a run that was stopped")
    return opened


def find_formats(job: Job, args: argparse.Namespace) -> tuple[Found, list[Trial]]:
    """Runs the search behind a progress bar; returns what it found, and its trials."""
    network = float_network(job, job.pick(job.swept), args)
    labels = job.labels[job.swept]
    if args.objective == "caffe":
        simulation = RememberedSimulation(args.journal, network, labels)
        trials = caffe_objective.caffe_objective(job.graph, simulation, args.tolerance)
        schedule = caffe_objective.schedule(job.graph)
    else:
        make_judge = functools.partial(RememberedJudge, args.journal)
        trials = device_objective.device_objective(job.graph, network, labels, args.target, args.tolerance, make_judge)
        schedule = device_objective.schedule(job.graph)
    return progress.follow(
        trials,
        job.graph,
        schedule,
        computed=lambda: args.journal.computed > 0,
        show=print if args.verbose else None,
        disable=args.quiet or None,
    )


def sources(job: Job, weights: bytes, args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Names and hashes of the files that the network is made of; `weights` are the quantized ones."""
    found = {
        "model": {"name": args.model, "sha256": files.sha256(Path(args.model))},
        "weights": {"name": args.weights, "sha256": files.sha256(Path(args.weights))},
        "quantized weights": {"name": str(job.quantized), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    if job.source.mean_file:
        mean = job.source.find_mean()
        found["mean"] = {"name": str(mean), "sha256": files.sha256(mean)}
    return found


def final_logits(job: Job, found: Found, layers: Sequence[IntegerLayer], args: argparse.Namespace) -> facts.Logits:
    """Of the images that are reported on; what the search knows of them is not computed again."""
    images = job.pick(job.reported)
    on_device, in_float = (None, None) if args.holdout else (found.on_device, found.in_float)
    if on_device is None:
        on_device = DeviceNetwork(found.chosen.graph, images, args.target).logits(layers)
    if in_float is None:
        in_float = float_network(job, images, args).logits(as_trained(job.graph))
    return facts.Logits(on_device, in_float)


def build(job: Job, found: Found, args: argparse.Namespace) -> tuple[QuantizedNetwork, bytes, Statistics, facts.Logits]:
    """The chosen network with all that is known about it, and the caffemodel with its weights."""
    chosen, formats = found.chosen.graph, found.chosen.formats
    layers = tuple(quantize_network(chosen, formats, args.target))
    labels, logits = job.labels[job.reported], final_logits(job, found, layers, args)
    accuracy = {
        "float": accuracy_caffe(logits.in_float, labels),
        "device": accuracy_first(logits.on_device, labels),
    }
    images = statistics.sample(chosen, job.pick(job.reported))
    measured = statistics.collect(job.graph, layers, formats, images, args.target)
    if lmdb_images.version(job.lmdb) != job.version:
        note(f"'{job.lmdb}' was changed during the run: the accuracies are those of the images as they were read")
    weights = to_caffemodel(chosen.name, quantized_blobs(chosen, formats), caffe_types(chosen))
    facts = {
        "objective": args.objective,
        "images": len(job.reported),
        "images read": len(job.images),
        "held out": bool(args.holdout),
        "holdout": args.holdout,
        "seed": args.seed,
        "accuracy": accuracy,
        "search": found.accuracies,
        "layers": measured.plain(),
    }
    origin = sources(job, weights, args)
    network = QuantizedNetwork(
        chosen, formats, layers, args.target, origin, str(job.lmdb), job.source.crop, facts, job.source.reader
    )
    return network, weights, measured, logits


def run(args: argparse.Namespace) -> None:
    job = prepare(args)
    args.journal = open_journal(job, args)
    try:
        found, trials = find_formats(job, args)
    except Q7Error:  # it would come again
        args.journal.remove()
        raise
    network, weights, measured, logits = build(job, found, args)
    iterations = -(-len(job.images) // job.source.batch_size)
    attributes = original.attributes(network, job.source.batch_size, iterations, args.gpu)
    outputs = {job.quantized: weights, job.save: record.dump(Record(attributes, network))}
    if args.report or args.json:
        images, labels = job.pick(job.reported), job.labels[job.reported]
        told = facts.Run(args.command, network, trials, measured, job.reported, images, labels, logits)
        outputs.update(page.render(told, args.report, args.json, args.channel_order))
    files.write_all(outputs)
    args.journal.remove()

    *details, last = summary.recorded(network)
    if not args.quiet:
        print("\n".join([*summary.table(network), *details]))
        if args.holdout:
            print(f"Searched with {len(job.swept)} images")
        print("Saved " + ", ".join(f"'{path}'" for path in outputs))
    print(last)


def evaluate(args: argparse.Namespace) -> None:
    """Prints what is in a pickle, and how many images its network has right on the device."""
    path = Path(args.eval)
    network = original.open_network(path, args.weights, args.mean)
    facts = network.summary
    lmdb = files.find(args.lmdb or network.dataset, path.parent, f"the test {network.reader.kind}")
    with files.reading("the pickle's summary"):
        images, labels = known_answers.read_images(network, lmdb, facts.get("images read"))
        _, reported = split(len(images), facts.get("holdout", 0), facts.get("seed", 0))
    logits = DeviceNetwork(network.graph, images[reported], network.target).logits(network.layers)
    accuracy = accuracy_first(logits, labels[reported])
    if not args.quiet:
        print("\n".join(summary.describe(network)))
    counted = summary.counted(len(reported), facts.get("held out", False))
    print(f"Accuracy now: device {accuracy:.2f} % ({counted} of '{lmdb}', {network.target})")


def parse_arguments(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="network definition (.prototxt) that names the test LMDB")
    parser.add_argument("--weights", default=WEIGHTS, help="trained weights, .caffemodel.h5 or .caffemodel")
    parser.add_argument("--save", default=SAVE, help="pickle to write for code_gen.py")
    parser.add_argument("--accuracy", default="accuracy", help="Accuracy layer (or its top blob) to optimise")
    parser.add_argument("--iterations", type=int, help="number of test batches (default: all images once)")
    parser.add_argument("--tolerance", type=float, default=0.001, help="accuracy tolerance in percentage points")
    parser.add_argument(
        "--memory",
        type=float,
        default=engine.MEMORY / 2**30,
        help="GB for images and layers' outputs; what does not fit is read or computed again",
    )
    parser.add_argument("--gpu", action="store_true", help="run the sweeps on a GPU")
    parser.add_argument(
        "--engine",
        choices=["auto", "onnxruntime", "caffe"],
        default="auto",
        help="what runs the float network; auto: onnxruntime",
    )
    parser.add_argument("--objective", choices=["device", "caffe"], default="device", help="what the sweeps look at")
    parser.add_argument(
        "--holdout", type=float, default=0.0, help="fraction of the images to keep from the search and to report on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random choice of held-out images")
    parser.add_argument(
        "--core", choices=[c.value for c in Core], default="dsp", help="dsp: M4, M7, M33; plain: M0, M3; mve: M55"
    )
    parser.add_argument(
        "--api",
        choices=LIBRARIES,
        default="q7",
        help="kernel library: q7 up to CMSIS 5.9.0, s8 in CMSIS-NN 4 to 7",
    )
    parser.add_argument(
        "--rounding",
        choices=[r.value for r in Rounding],
        default="nearest",
        help="truncate: for kernels built with ARM_NN_TRUNCATE",
    )
    replaced = parser.add_argument_group("in place of what the prototxt says")
    replaced.add_argument("--lmdb", help="test images and labels")
    replaced.add_argument("--mean", help="mean image (.binaryproto), or one value or one for each channel: 104,117,123")
    replaced.add_argument("--scale", type=float, help="what pixels are multiplied with once the mean is subtracted")
    replaced.add_argument("--crop", type=int, help="cut this many rows and columns out of the centre of each image")
    told = parser.add_argument_group("what is told")
    amount = told.add_mutually_exclusive_group()
    amount.add_argument("-v", "--verbose", action="store_true", help="print every trial")
    amount.add_argument("-q", "--quiet", action="store_true", help="print the result alone")
    told.add_argument("--report", metavar="HTML", help="write a page with all that was found")
    told.add_argument("--json", help="write the same for machines, as docs/report.schema.json describes it")
    told.add_argument(
        "--channel_order",
        choices=known_answers.CHANNEL_ORDERS,
        default=known_answers.CHANNEL_ORDERS[0],
        help="how the channels of the images go, for the pictures in --report",
    )
    told.add_argument(
        "--eval", metavar="PICKLE", help="quantize nothing: print what is in a pickle, and run its network"
    )
    parser.add_argument("--version", action="version", version=q7.__version__)
    args = parser.parse_args(arguments)
    command.allow_only(parser, args, "eval", WITH_EVAL)
    if args.eval and args.weights == WEIGHTS:
        args.weights = None  # an old pickle names its own
    args.memory_bytes = int(min(args.memory, 1 << 20) * 2**30) if args.memory > 0 else 0  # also where it is no number
    if args.api == "s8" and args.rounding == "truncate":
        parser.error("--rounding truncate is for --api q7: the s8 kernels round to nearest")
    args.target = Target(Core(args.core), Rounding(args.rounding), LIBRARIES[args.api])
    args.command = shlex.join(["python", "nn_quantizer.py", *(sys.argv[1:] if arguments is None else arguments)])
    args.journal = None
    return args


def work(args: argparse.Namespace) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows has no Q-format, which is said
        if args.eval:
            evaluate(args)
        else:
            check_engine(args)
            run(args)


def interrupted(args: argparse.Namespace) -> str:
    kept = args.journal.kept if args.journal else 0
    where = f"the same command goes on from the {kept} results in '{args.journal.path}'" if kept else ""
    return f"interrupted: {where or 'nothing was kept'}"


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        return command.finish("nn_quantizer", lambda: work(args), lambda: interrupted(args))
    finally:
        if args.journal:
            args.journal.close()


if __name__ == "__main__":
    sys.exit(main())
