# SPDX-License-Identifier: Apache-2.0
"""Quantizes a network: read and check, search, build, write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import choices, files
from caffe_to_cmsis_nn.caffe_io.blobs import to_caffemodel
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.engine import NotFinite
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.errors import print_lines
from caffe_to_cmsis_nn.network.quantized import (
    Accuracy,
    IntegerLayer,
    Outcome,
    QuantizedNetwork,
    SourceFile,
    quantize_network,
)
from caffe_to_cmsis_nn.network.to_caffe import caffe_types, quantized_blobs
from caffe_to_cmsis_nn.pipeline.job import Job, Options, memory_bytes, prepare, warn
from caffe_to_cmsis_nn.report import facts, page, statistics, summary
from caffe_to_cmsis_nn.search import caffe_objective, common, device_objective, progress
from caffe_to_cmsis_nn.search.common import SearchResult, Trial
from caffe_to_cmsis_nn.store import original, record
from caffe_to_cmsis_nn.store.record import Record

SOURCES = ("model", "weights", "quantized weights", "mean")  # in the order in which they are told


def check_engine(options: Options) -> None:
    """Raises UserError where the engine asked for cannot be used."""
    if options.engine == "caffe":
        from caffe_to_cmsis_nn.engines import pycaffe_network

        pycaffe_network.load(options.gpu)
    else:
        engine.providers(options.gpu)


def float_network(job: Job, images: Any, options: Options) -> FloatNetwork:
    """The network as it was trained, on the engine asked for."""
    memory = memory_bytes(options.memory)
    if options.engine != "caffe":
        return FloatNetwork(job.graph, images, engine.providers(options.gpu), memory)
    from caffe_to_cmsis_nn.engines.pycaffe_network import PycaffeNetwork

    return PycaffeNetwork(job.graph, images, job.prototxt, options.gpu, memory)


def find_formats(job: Job, options: Options) -> tuple[SearchResult, list[Trial]]:
    """Runs the search below a progress bar; returns what it found, and its trials."""
    network = float_network(job, job.pick(job.swept), options)
    labels, tolerance = job.labels[job.swept], options.tolerance
    if options.objective == "caffe":
        simulation = caffe_objective.ScreenedSimulation(network, labels)
        trials = caffe_objective.caffe_objective(job.graph, simulation, tolerance)
        schedule = caffe_objective.schedule(job.graph)
    else:
        trials = device_objective.device_objective(
            job.graph,
            network,
            labels,
            options.target,
            tolerance,
            bits=options.weight_bits,
            loss=choices.LOSS if options.loss is None else options.loss,
        )
        schedule = common.tensors(job.graph)
    try:
        return progress.follow(
            trials,
            schedule,
            progress.work(job.graph, schedule, alone=options.objective == "device"),
            show=print_lines if options.verbose else None,
            disable=options.quiet or None,
        )
    except NotFinite as error:
        raise error.among(job.swept) from None


def logits_in_float(job: Job, options: Options) -> np.ndarray:
    """Of the images that are reported on; raises UserError where some are not finite."""
    try:
        return float_network(job, job.pick(job.reported), options).trained_logits()
    except NotFinite as error:
        raise error.among(job.reported) from None


def final_logits(
    job: Job, found: SearchResult, layers: Sequence[IntegerLayer], options: Options, held_out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """In float and on the device, of the images that are reported on; what the search knows is not computed again."""
    on_device, in_float = (None, held_out) if options.holdout else (found.on_device, found.in_float)
    if on_device is None:
        on_device = DeviceNetwork(found.chosen.graph, job.pick(job.reported), options.target).logits(layers)
    return logits_in_float(job, options) if in_float is None else in_float, on_device


def _outcome(
    job: Job,
    found: SearchResult,
    options: Options,
    measured: statistics.Statistics,
    in_float: np.ndarray,
    on_device: np.ndarray,
) -> Outcome:
    """Accuracies of a classifier, or the quality of other outputs, of the logits of the images reported on."""
    chosen, labels = found.chosen.graph, job.labels[job.reported]
    accuracies, outputs = [], {}
    if chosen.classifier:
        accuracies = [
            Accuracy(accuracy_caffe(in_float, labels, k), accuracy_first(on_device, labels, k), k) for k in chosen.top_k
        ]
    else:
        outputs = statistics.output_qualities(chosen, found.chosen.formats, in_float, on_device)
    return Outcome(
        objective=options.objective,
        weight_bits=options.weight_bits,
        images_read=len(job.images),
        holdout=options.holdout,
        seed=options.seed,
        accuracy=accuracies[0] if accuracies else None,
        other_accuracies=tuple(accuracies[1:]),
        outputs=outputs,
        search=found.measured,
        layers=measured.qualities(),
    )


def build(
    job: Job, found: SearchResult, trials: Sequence[Trial], options: Options, held_out: np.ndarray | None
) -> tuple[facts.QuantizerRun, bytes]:
    """The chosen network with all that is known about it, and the caffemodel with its weights.

    `held_out` are the float network's logits for images that are held out.
    """
    chosen, formats = found.chosen.graph, found.chosen.formats
    layers = tuple(quantize_network(chosen, formats, options.target))
    images = job.pick(job.reported)
    in_float, on_device = final_logits(job, found, layers, options, held_out)
    sample = statistics.sample(chosen, images)
    measured = statistics.collect(found.chosen.trained, layers, formats, sample, options.target)
    if lmdb_images.version(job.lmdb) != job.version:
        warn(f"'{job.lmdb}' was changed during the run: the accuracies are those of the images as they were read")
    weights = to_caffemodel(chosen.name, quantized_blobs(chosen, formats), caffe_types(chosen))
    sources = {**job.files, "quantized weights": SourceFile(str(job.quantized), hashlib.sha256(weights).hexdigest())}
    network = QuantizedNetwork(
        graph=chosen,
        formats=formats,
        layers=layers,
        target=options.target,
        sources={what: sources[what] for what in SOURCES if what in sources},
        dataset=str(job.lmdb),
        crop=job.source.crop,
        outcome=_outcome(job, found, options, measured, in_float, on_device),
        reader=job.source.reader,
        scale=job.source.scale,
    )
    run = facts.QuantizerRun(
        command=options.command,
        full_command=options.full_command,
        network=network,
        class_names=job.class_names,
        trials=trials,
        statistics=measured,
        positions=job.reported,
        images=images,
        labels=job.labels[job.reported],
        in_float=in_float,
        on_device=on_device,
    )
    return run, weights


@np.errstate(over="ignore", invalid="ignore")  # what overflows has no Q-format, which is said
def quantize(options: Options) -> None:
    """Writes the pickle and the quantized weights, and prints what was found.

    Raises UserError where an input is wrong or an output cannot be written.
    """
    check_engine(options)
    job = prepare(options)
    # Images that are held out are looked at before the search: what they show would come after it.
    held_out = logits_in_float(job, options) if options.holdout else None
    found, trials = find_formats(job, options)
    run, weights = build(job, found, trials, options, held_out)
    iterations = -(-len(job.images) // job.source.batch_size)
    attributes = original.attributes(run.network, job.source.batch_size, iterations, options.gpu)
    outputs = {job.quantized: weights, job.save: record.dump(Record(attributes, run.network))}
    if options.report or options.json:
        outputs.update(page.render(run, options.report, options.json, options.channel_order))
    if options.onnx:
        outputs[Path(options.onnx)] = FloatNetwork(job.graph, job.images[:0]).to_onnx(as_trained(job.graph))
    files.write_all(outputs)

    *details, last = summary.recorded(run.network)
    if not options.quiet:
        print_lines(*summary.table(run.network), *details)
        if options.holdout:
            print_lines(f"Searched with {len(job.swept)} images")
        print_lines("Saved " + ", ".join(f"'{path}'" for path in outputs))
    print_lines(last)
