# SPDX-License-Identifier: Apache-2.0
"""A run of the quantizer before its long work: its options, everything that it reads, checked, and its outputs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import choices, errors, files
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt, is_prototxt, read_prototxt
from caffe_to_cmsis_nn.data import class_names, lmdb_images
from caffe_to_cmsis_nn.data.image_set import pick
from caffe_to_cmsis_nn.data.source import DataSource, data_source, override
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, check_types, find_outputs, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import SourceFile, held_out
from caffe_to_cmsis_nn.target import Target

warn = functools.partial(errors.warn, "nn_quantizer")


FEW_IMAGES = 100  # each of fewer images is more than a percentage point


def memory_bytes(gigabytes: float) -> int:
    """Raises UserError where that is not a size."""
    if not gigabytes > 0:
        raise UserError(f"--memory {gigabytes} must be above 0")
    return int(min(gigabytes, 1 << 20) * 2**30)


@dataclass(frozen=True)
class Options:
    """What a run of the quantizer was asked for; None stands for what the prototxt says, or for nothing."""

    model: str
    weights: str
    save: str
    accuracy: str  # the Accuracy layer, or its top
    output: Sequence[str] | None  # blobs
    iterations: int | None
    tolerance: float  # percentage points
    memory: float  # GB
    gpu: bool
    engine: str  # "auto", "onnxruntime" or "caffe"
    objective: str  # "device" or "caffe"
    weight_bits: str  # "8", "4" or "mixed"
    loss: float | None  # percentage points, of mixed bits
    holdout: float
    seed: int
    target: Target
    lmdb: str | None
    mean: str | None
    scale: float | None
    crop: int | None
    resize: tuple[int, ...] | None
    verbose: bool
    quiet: bool
    report: str | None
    json: str | None
    onnx: str | None
    channel_order: str
    classes: str | None  # a file of names
    command: str  # as a person types it, for the report
    full_command: str  # with all defaults

    def check(self) -> None:
        """Raises UserError where a number makes no sense."""
        if self.iterations is not None and self.iterations < 1:
            raise UserError(f"--iterations {self.iterations} must be at least 1")
        memory_bytes(self.memory)
        if not self.tolerance >= 0:
            raise UserError(f"--tolerance {self.tolerance} must be 0 or more")
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout {self.holdout} must be 0 or more and below 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} must be 0 or more")
        self._check_weight_bits()

    def _check_weight_bits(self) -> None:
        asked = f"--weight_bits {self.weight_bits}"
        if self.weight_bits != choices.WEIGHTS_8 and self.objective != "device":
            raise UserError(f"{asked} needs --objective device: the original's procedure is for weights of 8 bits")
        if self.loss is not None:
            if self.weight_bits != choices.WEIGHTS_MIXED:
                raise UserError(f"--loss is for --weight_bits {choices.WEIGHTS_MIXED}, not for {asked}")
            if not self.loss >= 0:
                raise UserError(f"--loss {self.loss} must be 0 or more")


@dataclass(frozen=True, eq=False)
class Job:
    """Everything read and checked, before any long work."""

    prototxt: Prototxt
    graph: Graph
    source: DataSource
    files: Mapping[str, SourceFile]  # that were read: "model", "weights", "mean"
    lmdb: Path  # or another file that the source reads
    version: object  # of the LMDB, before it was read
    images: Any  # (N, C, H, W) uint8, cropped: an array, or StoredImages
    labels: np.ndarray
    swept: np.ndarray  # indices of the images that the search sees
    reported: np.ndarray  # indices of those that the printed accuracies are from
    save: Path
    quantized: Path  # the caffemodel with quantized weights
    class_names: tuple[str, ...]  # numbers if no names are given; empty if the network is not a classifier

    def pick(self, which: np.ndarray) -> Any:
        """Some of the images; no copy of them where it is all, or where they stay in their file."""
        return self.images if len(which) == len(self.images) else pick(self.images, which)


def _check_kinds(model: Path, weights: Path) -> None:
    """Raises UserError where weights are given as the network, or a network as the weights."""
    binary, text = b"\0" in files.beginning(model), is_prototxt(files.beginning(weights))
    if binary and text:
        raise UserError(f"--model '{model}' is a binary file and --weights '{weights}' a prototxt: they are swapped")
    if binary:
        raise UserError(f"--model '{model}' is a binary file: it takes the prototxt, and --weights the trained weights")
    if text:
        raise UserError(f"--weights '{weights}' is a prototxt: it takes the trained weights, and --model the prototxt")


def prepare(options: Options) -> Job:
    """Reads and checks the inputs, and that the outputs can be written; raises UserError."""
    options.check()
    model, weights = Path(options.model), Path(options.weights)
    _check_kinds(model, weights)
    read: dict[str, SourceFile] = {}
    prototxt, digest = files.read_hashed(model, read_prototxt)
    read["model"] = SourceFile(options.model, digest)
    said = data_source(prototxt)
    source = override(said, options.lmdb, options.mean, options.scale, options.crop, options.resize)
    check_types(prototxt, find_outputs(prototxt, options.accuracy, source, options.output or ()))
    lmdb = source.find_images()
    source = replace(source, reader=source.reader.probe(lmdb))
    _warn_of_source(said, options)
    version = lmdb_images.version(lmdb)
    network = _read_network(prototxt, source, lmdb, options, read)

    names = tuple(map(str, range(network.result_size)))
    if options.classes:
        names = class_names.read(Path(options.classes), network.result_size)
    inputs = [Path(file.name) for file in read.values()] + ([Path(options.classes)] if options.classes else [])
    quantized = _outputs(options, itertools.chain(inputs, source.reader.files(lmdb)))
    images, labels = _open_images(source, lmdb, network, options)
    network = _judged(network, labels, lmdb, options, bool(source.label))
    if network.classifier and len(images) < FEW_IMAGES:
        warn(f"{len(images)} test images: with fewer than {FEW_IMAGES}, accuracies are mostly chance")
    swept, reported = split(len(images), options.holdout, options.seed)
    return Job(
        prototxt=prototxt,
        graph=network,
        source=source,
        files=read,
        lmdb=lmdb,
        version=version,
        images=images,
        labels=labels,
        swept=swept,
        reported=reported,
        save=Path(options.save),
        quantized=quantized,
        class_names=names if network.classifier else (),
    )


def _read_network(
    prototxt: Prototxt, source: DataSource, lmdb: Path, options: Options, read: dict[str, SourceFile]
) -> Graph:
    """The network with its weights and mean, simplified; adds these files to those `read`."""
    image_shape = source.reader.read(lmdb, limit=1)[0].shape[1:]
    asked = options.accuracy, source, image_shape, options.target, options.output or ()
    parse = functools.partial(parse_network, prototxt, *asked)
    if source.mean_file:
        mean = source.find_mean()
        network, digest = files.read_hashed(mean, lambda _: parse())
        read["mean"] = SourceFile(str(mean), digest)
    else:
        network = parse()
    if source.shape not in ((), network.input.out_shape):
        asked_for = f"'{options.model}' asks for images of shape {source.shape}"
        warn(f"{asked_for}: the network is made for {network.input.out_shape}")
    blobs, digest = files.read_hashed(Path(options.weights), read_weights)
    read["weights"] = SourceFile(options.weights, digest)
    return simplify(attach_weights(network, blobs, lmdb))


def _warn_of_source(said: DataSource, options: Options) -> None:
    if not said.images and options.mean is None:
        warn(f"'{options.model}' names no mean, and 0 is taken: give --mean if the network was trained with one")
    if said.mirrored:
        warn(f"'{options.model}' mirrors test images by chance: they are read as they are")


def _open_images(source: DataSource, lmdb: Path, network: Graph, options: Options) -> tuple[Any, np.ndarray]:
    """The images that the options ask for, cropped, and their labels."""
    limit = None if options.iterations is None else options.iterations * source.batch_size
    in_memory = memory_bytes(options.memory) / engine.MEMORY_SHARES
    images, labels = source.reader.open(lmdb, limit, source.crop_image, in_memory)
    if images.shape[1:] != network.input.out_shape:
        raise UserError(f"'{lmdb}' was changed while it was read: its images had another shape before")
    if limit is not None and len(images) < limit:
        warn(f"{options.iterations} batches of {source.batch_size} asked for, but '{lmdb}' holds {len(images)} images")
    return images, labels


def _judged(network: Graph, labels: np.ndarray, lmdb: Path, options: Options, labelled: bool) -> Graph:
    """The network as it can be judged: a classifier by labels, which a deploy prototxt (not `labelled`) may be without.

    Raises UserError if labels are not class numbers, or options ask for accuracies that are not known.
    """
    (*_, output), classes = network.output_layers, network.result_size
    least, most = int(labels.min()), int(labels.max())
    some = network.scores or len(labels) == 1 or least < most  # where images have no labels, all are 0
    if network.classifier and not (0 <= least <= most < classes and (labelled or some)):
        if labelled:
            raise UserError(
                f"'{lmdb}' has labels from {least} to {most}, but layer '{output.name}' has {classes} outputs"
            )
        network = replace(network, classifier=False)
    if network.classifier:
        return network
    if options.classes:
        raise UserError("--classes is for classifiers, and there is no Accuracy layer: leave it out")
    if options.objective != "device":
        raise UserError(
            f"--objective {options.objective} needs accuracies, and there is no Accuracy layer: leave it out"
        )
    if options.weight_bits == choices.WEIGHTS_MIXED:
        raise UserError(
            f"--weight_bits {choices.WEIGHTS_MIXED} needs accuracies, and there is no Accuracy layer: 4 or 8 do"
        )
    warn(f"no Accuracy layer: {', '.join(network.outputs)} are judged by how close they come to the float network's")
    return network


def _outputs(options: Options, inputs: Iterable[Path]) -> Path:
    """Where the quantized weights go; raises UserError where an output cannot be written."""
    save = Path(options.save)
    # Under the pickle's name, so that the weights of another pickle stay what they are.
    quantized = save.with_name(f"quantized_{save.name[:-4] if save.name.endswith('.pkl') else save.name}.caffemodel")
    outputs = [save, quantized, *(Path(name) for name in (options.report, options.json, options.onnx) if name)]
    for path in outputs:
        if not files.writable(path):
            raise UserError(f"cannot write '{path}'")
    files.refuse_overwriting(outputs, inputs)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"--save, --report, --json and --onnx must name files of their own, other than '{quantized}'")
    return quantized


def split(count: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to search with and of those to report on: all for both, or a random part held out."""
    if not holdout:
        return np.arange(count), np.arange(count)
    held = held_out(count, holdout)
    if not 0 < held < count:
        raise UserError(f"--holdout {holdout} of {count} images leaves none to search with or to report on")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
