# SPDX-License-Identifier: Apache-2.0
"""A run of the quantizer before its long work: everything that it reads, checked, and where its outputs go."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q7 import command, files
from q7.caffe_io.blobs import read_weights
from q7.caffe_io.prototxt import Prototxt, read_prototxt
from q7.data import lmdb_images
from q7.data.image_set import pick
from q7.data.source import DataSource, data_source, override
from q7.engines import engine
from q7.errors import Q7Error
from q7.network.folding import simplify
from q7.network.from_caffe import attach_weights, find_output, parse_network
from q7.network.graph import Graph


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
    journal: Path  # of what the search has found out
    quantized: Path  # the caffemodel with quantized weights

    def pick(self, which: np.ndarray) -> Any:
        """Some of the images; no copy of them where it is all, or where they stay in their file."""
        return self.images if len(which) == len(self.images) else pick(self.images, which)


def note(text: str) -> None:
    command.note("nn_quantizer", text)


def check_options(args: argparse.Namespace) -> None:
    """Raises Q7Error where a number makes no sense."""
    if args.iterations is not None and args.iterations < 1:
        raise Q7Error(f"--iterations {args.iterations} must be at least 1")
    if not args.memory > 0:
        raise Q7Error(f"--memory {args.memory} must be above 0")
    if not args.tolerance >= 0:
        raise Q7Error(f"--tolerance {args.tolerance} must be 0 or more")
    if not 0 <= args.holdout < 1:
        raise Q7Error(f"--holdout {args.holdout} must be 0 or more and below 1")


def prepare(args: argparse.Namespace) -> Job:
    """Reads and checks the inputs, and that the outputs can be written; raises Q7Error."""
    model, weights, save = Path(args.model), Path(args.weights), Path(args.save)
    check_options(args)
    prototxt = read_prototxt(model)
    source = override(data_source(prototxt), args.lmdb, args.mean, args.scale, args.crop)
    find_output(prototxt, args.accuracy, source)
    lmdb = source.find_images()
    version = lmdb_images.version(lmdb)
    image_shape = source.reader.read(lmdb, limit=1)[0].shape[1:]
    network = parse_network(prototxt, args.accuracy, source, image_shape, args.target)
    network = simplify(attach_weights(network, read_weights(weights)))

    quantized = weights.with_name(f"quantized_{weights.name[:-3] if weights.name.endswith('.h5') else weights.name}")
    if not files.writable(quantized):
        quantized = save.with_name(quantized.name)
        note(f"'{weights.parent}' cannot be written: the quantized weights go to '{quantized}'")
    journal = save.with_name(f"{save.name}.journal")
    inputs = [model, weights, *([source.find_mean()] if source.mean_file else []), *source.reader.files(lmdb)]
    outputs = [save, quantized, *(Path(name) for name in (args.report, args.json) if name)]
    for path in outputs:
        if not files.writable(path):
            raise Q7Error(f"cannot write '{path}'")
    files.refuse_overwriting([*outputs, journal], inputs)
    if save.resolve() == quantized.resolve():
        raise Q7Error(f"--save '{save}' is where the quantized weights go")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise Q7Error("--save, --report and --json must name files of their own")

    limit = None if args.iterations is None else args.iterations * source.batch_size
    images, labels = source.reader.open(lmdb, limit, source.crop_image, args.memory_bytes / engine.MEMORY_SHARES)
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
    return Job(prototxt, network, source, lmdb, version, images, labels, swept, reported, save, journal, quantized)


def split(count: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to search with and of those to report on: all for both, or a random part held out."""
    if not holdout:
        return np.arange(count), np.arange(count)
    held = round(count * holdout)
    if not 0 < held < count:
        raise Q7Error(f"--holdout {holdout} of {count} images leaves none to search with or to report on")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
