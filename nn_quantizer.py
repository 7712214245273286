#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quantizes a trained Caffe classifier to 8-bit fixed point and pickles what code_gen.py needs."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import q7
from q7 import caffe_files, dataset, device, engines, files, graph, passes, record
from q7.caffe_files import Prototxt
from q7.dataset import DataSource
from q7.device import DeviceNetwork, IntegerLayer
from q7.engines import FloatNetwork
from q7.errors import Q7Error
from q7.graph import Graph
from q7.qformat import Api, Core, Rounding, Target
from q7.record import QuantizedNetwork, Record
from q7.search import Found
from q7.search_caffe import CaffeSimulation, caffe_objective
from q7.search_device import device_objective

MODEL = "models/cifar10_m4_train_test.prototxt"
WEIGHTS = "models/cifar10_m4_iter_40000.caffemodel.h5"
SAVE = "models/cifar10_m4.pkl"


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


@dataclass(frozen=True, eq=False)
class Job:
    """Everything read and checked, before any long work."""

    prototxt: Prototxt
    graph: Graph
    source: DataSource
    lmdb: Path  # or another file that the source reads
    version: object  # of the LMDB, before it was read
    images: Any  # (N, C, H, W) uint8, cropped: an array, or StoredImages
    labels: np.ndarray
    swept: np.ndarray  # indices of the images that the search sees
    reported: np.ndarray  # indices of those that the printed accuracies are from
    save: Path
    quantized: Path  # the caffemodel with quantized weights

    def pick(self, which: np.ndarray) -> Any:
        """Some of the images; no copy of them where it is all, or where they stay in their file."""
        if len(which) == len(self.images):
            return self.images
        return self.images[which] if isinstance(self.images, np.ndarray) else self.images.pick(which)


def note(text: str) -> None:
    print(f"nn_quantizer: {text}", file=sys.stderr)


def prepare(args: argparse.Namespace) -> Job:
    """Reads and checks the inputs, and that the outputs can be written; raises Q7Error."""
    model, weights, save = Path(args.model), Path(args.weights), Path(args.save)
    if args.iterations is not None and args.iterations < 1:
        raise Q7Error(f"--iterations {args.iterations} must be at least 1")
    if not args.tolerance >= 0:
        raise Q7Error(f"--tolerance {args.tolerance} must be 0 or more")
    if not 0 <= args.holdout < 1:
        raise Q7Error(f"--holdout {args.holdout} must be 0 or more and below 1")
    prototxt = caffe_files.read_prototxt(model)
    source = dataset.override(dataset.data_source(prototxt), args.lmdb, args.mean, args.scale, args.crop)
    dataset.find_output(prototxt, args.accuracy, source)
    lmdb = source.find_images()
    version = caffe_files.lmdb_version(lmdb)
    image_shape = source.reader.read(lmdb, limit=1)[0].shape[1:]
    network = graph.parse(prototxt, args.accuracy, source, image_shape, args.target)
    network = passes.simplify(graph.attach_weights(network, caffe_files.read_weights(weights)))

    quantized = weights.with_name(f"quantized_{weights.name[:-3] if weights.name.endswith('.h5') else weights.name}")
    if not files.writable(quantized):
        quantized = save.with_name(quantized.name)
        note(f"'{weights.parent}' cannot be written: the quantized weights go to '{quantized}'")
    inputs = [model, weights, *([source.find_mean()] if source.mean_file else [])]
    for path in (save, quantized):
        if not files.writable(path):
            raise Q7Error(f"cannot write '{path}'")
        if path.exists() and any(path.samefile(other) for other in inputs):
            raise Q7Error(f"cannot write '{path}': it is read, too")
    if save.resolve() == quantized.resolve():
        raise Q7Error(f"--save '{save}' is where the quantized weights go")

    limit = None if args.iterations is None else args.iterations * source.batch_size
    images, labels = source.reader.open(lmdb, limit, source.crop_image)
    if images.shape[1:] != network.input.out_shape:
        raise Q7Error(f"'{lmdb}' was changed while it was read: its images had another shape before")
    if limit is not None and len(images) < limit:
        note(f"{args.iterations} batches of {source.batch_size} asked for, but '{lmdb}' holds {len(images)} images")
    if labels.min() < 0 or labels.max() >= network.classes:
        raise Q7Error(
            f"'{lmdb}' has labels from {labels.min()} to {labels.max()}, but layer '{network.output.name}' has "
            f"{network.classes} outputs"
        )
    swept, reported = split(len(images), args.holdout, args.seed)
    return Job(prototxt, network, source, lmdb, version, images, labels, swept, reported, save, quantized)


def split(count: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to search with and of those to report on: all for both, or a random part held out."""
    if not holdout:
        return np.arange(count), np.arange(count)
    held = round(count * holdout)
    if not 0 < held < count:
        raise Q7Error(f"--holdout {holdout} of {count} images leaves none to search with or to report on")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def check_engine(args: argparse.Namespace) -> None:
    """Raises Q7Error where the engine asked for cannot be used."""
    if args.engine == "caffe":
        from q7 import pycaffe_engine

        pycaffe_engine.load(args.gpu)
    else:
        args.providers = engines.providers(args.gpu)


def float_network(job: Job, images: Any, args: argparse.Namespace) -> FloatNetwork:
    """The network as it was trained, on the engine asked for."""
    if args.engine != "caffe":
        return FloatNetwork(job.graph, images, args.providers)
    from q7.pycaffe_engine import PycaffeNetwork

    return PycaffeNetwork(job.graph, images, job.prototxt, args.gpu)


def find_formats(job: Job, args: argparse.Namespace) -> Found:
    """Runs the search behind a progress bar."""
    network = float_network(job, job.pick(job.swept), args)
    labels = job.labels[job.swept]
    if args.objective == "caffe":
        simulation = CaffeSimulation(network, labels)
        trials = caffe_objective(job.graph, simulation.accuracy, simulation.largest, args.tolerance)
    else:
        trials = device_objective(job.graph, network, labels, args.target, args.tolerance)
    with tqdm(unit="trial", disable=None, leave=False) as bar:
        while True:
            try:
                trial = next(trials)
            except StopIteration as stop:
                return stop.value
            bar.update()
            bar.set_postfix_str(f"{trial.layer} {trial.tensor.value} {trial.format}: {trial.accuracy:.2f} %")


def summary(network: QuantizedNetwork) -> list[str]:
    """The formats with their scaling factors (a value is the integer divided by it) and the shifts, line by line."""
    header = ("layer", "weights", "factor", "activations", "factor", "bias", "factor", "bias_lshift", "act_rshift")
    rows: list[tuple[str, ...]] = [header]
    for layer, integer in zip(network.graph.layers, network.layers):
        formats = network.formats[layer.name]
        if not (layer.own_format or layer.floors):
            continue
        row = [layer.name]
        for q in (formats.w, formats.y, formats.b):
            row += [str(q), f"{2.0**q.fraction_bits:g}"] if q else ["", ""]
        shifts = integer.integers.shifts if layer.weighted else None
        row += [str(shifts.bias_lshift), str(shifts.out_rshift)] if shifts else ["", ""]
        rows.append(tuple(row))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def accuracies(job: Job, found: Found, layers: list[IntegerLayer], args: argparse.Namespace) -> tuple[float, float]:
    """Percent of the reported images that the float network and the device have right."""
    images, labels = job.pick(job.reported), job.labels[job.reported]
    on_device = DeviceNetwork(found.chosen.graph, images, args.target).logits(layers)
    in_float = found.accuracies["float"]
    if args.holdout:
        in_float = engines.accuracy_caffe(float_network(job, images, args).logits(engines.plain(job.graph)), labels)
    return in_float, engines.accuracy_first(on_device, labels)


def run(args: argparse.Namespace) -> None:
    job = prepare(args)
    found = find_formats(job, args)
    chosen, formats = found.chosen.graph, found.chosen.formats
    layers = device.quantize(chosen, formats, args.target)
    in_float, on_device = accuracies(job, found, layers, args)

    if caffe_files.lmdb_version(job.lmdb) != job.version:
        note(f"'{job.lmdb}' was changed during the run: the accuracies are those of the images as they were read")
    weights = caffe_files.caffemodel(chosen.name, graph.quantized_blobs(chosen, formats), graph.caffe_types(chosen))
    sources = {
        "model": {"name": args.model, "sha256": files.sha256(Path(args.model))},
        "weights": {"name": args.weights, "sha256": files.sha256(Path(args.weights))},
        "quantized weights": {"name": str(job.quantized), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    if job.source.mean_file:
        mean = job.source.find_mean()
        sources["mean"] = {"name": str(mean), "sha256": files.sha256(mean)}
    facts = {
        "objective": args.objective,
        "images": len(job.reported),
        "held out": bool(args.holdout),
        "accuracy": {"float": in_float, "device": on_device},
        "search": found.accuracies,
    }
    network = QuantizedNetwork(
        chosen, formats, tuple(layers), args.target, sources, str(job.lmdb), job.source.crop, facts, job.source.reader
    )
    iterations = -(-len(job.images) // job.source.batch_size)
    attributes = record.attributes(network, job.source.batch_size, iterations, args.gpu)
    files.write_all({job.quantized: weights, job.save: record.dump(Record(attributes, network))})

    print("\n".join(summary(network)))
    for what, accuracy in found.accuracies.items():
        print(f"Accuracy, {what}: {accuracy:.2f} %" + (f" ({len(job.swept)} images searched)" if args.holdout else ""))
    print(f"Saved '{job.save}' and '{job.quantized}'")
    held = "held-out " if args.holdout else ""
    print(
        f"Accuracy: float {in_float:.2f} %, device {on_device:.2f} % ({len(job.reported)} {held}images, {args.target})"
    )


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
        choices=[a.value for a in Api],
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
    parser.add_argument("--version", action="version", version=q7.__version__)
    args = parser.parse_args(arguments)
    if args.api == "s8" and args.rounding == "truncate":
        parser.error("--rounding truncate is for --api q7: the s8 kernels round to nearest")
    args.target = Target(Core(args.core), Rounding(args.rounding), Api(args.api))
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        check_engine(args)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows has no Q-format, which is said
            run(args)
        print(end="", flush=True)
    except Q7Error as error:
        note(str(error))
        return 2
    except OSError as error:  # a full disk, or a pipe that nobody reads
        sys.stdout = None
        note(f"cannot write to standard output: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        note("interrupted: nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
