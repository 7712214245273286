# SPDX-License-Identifier: Apache-2.0
"""Quantizes a network: read and check, search, build, write."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn import choices, files
from caffe_to_cmsis_nn.caffe_io.blobs import to_caffemodel
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.engine import NotFinite
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.errors import UserError, print_lines
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
from caffe_to_cmsis_nn.search import caffe_objective, common, device_objective, journal, progress
from caffe_to_cmsis_nn.search.common import SearchResult, Trial
from caffe_to_cmsis_nn.search.journal import Journal, RememberedErrors, RememberedNarrowing, RememberedSimulation
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


def open_journal(job: Job, options: Options) -> Journal:
    """What a run with the same inputs and options that was stopped has found out."""
    arrays = [job.images, job.labels, job.swept, job.graph.input.mean]
    arrays += [array for pair in job.graph.weights.values() for array in pair]
    decisive: dict[str, Any] = {name: getattr(options, name) for name in ("engine", "gpu", "objective", "tolerance")}
    decisive.update(weight_bits=options.weight_bits, loss=options.loss, outputs=job.graph.outputs)
    decisive.update(target=str(options.target), layers=list(map(repr, job.graph.layers)))
    decisive.update(tool=caffe_to_cmsis_nn.__version__)
    opened = Journal(job.journal, journal.key(arrays, decisive))
    if opened.replaced:
        warn(f"'{opened.path}' is of another model, data or options: starting over")
    elif opened.resumed:
        warn(f"going on from '{opened.path}', which holds {opened.resumed} results of a run that was stopped")
    return opened


def find_formats(job: Job, options: Options, answers: Journal) -> tuple[SearchResult, list[Trial]]:
    """Runs the search below a progress bar; returns what it found, and its trials."""
    network = float_network(job, job.pick(job.swept), options)
    labels, tolerance = job.labels[job.swept], options.tolerance
    if options.objective == "caffe":
        simulation = RememberedSimulation(answers, network, labels)
        trials = caffe_objective.caffe_objective(job.graph, simulation, tolerance)
        schedule = caffe_objective.schedule(job.graph)
    else:
        trials = device_objective.device_objective(
            job.graph,
            network,
            labels,
            options.target,
            tolerance,
            functools.partial(RememberedErrors, answers),
            options.weight_bits,
            choices.LOSS if options.loss is None else options.loss,
            functools.partial(RememberedNarrowing, answers),
        )
        schedule = common.tensors(job.graph)
    try:
        return progress.follow(
            trials,
            schedule,
            progress.work(job.graph, schedule, alone=options.objective == "device"),
            computed=lambda: answers.computed > 0,
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


def build(
    job: Job, found: SearchResult, trials: Sequence[Trial], options: Options, held_out: np.ndarray | None
) -> tuple[facts.QuantizerRun, bytes]:
    """The chosen network with all that is known about it, and the caffemodel with its weights.

    `held_out` are the float network's logits for images that are held out.
    """
    chosen, formats = found.chosen.graph, found.chosen.formats
    layers = tuple(quantize_network(chosen, formats, options.target))
    images, labels = job.pick(job.reported), job.labels[job.reported]
    in_float, on_device = final_logits(job, found, layers, options, held_out)
    accuracies, outputs = [], {}
    if chosen.classifier:
        accuracies = [
            Accuracy(accuracy_caffe(in_float, labels, k), accuracy_first(on_device, labels, k), k) for k in chosen.top_k
        ]
    else:
        outputs = statistics.output_qualities(chosen, formats, in_float, on_device)
    trained, sample = found.chosen.trained, statistics.sample(chosen, images)
    measured = statistics.collect(trained, layers, formats, sample, options.target)
    if lmdb_images.version(job.lmdb) != job.version:
        warn(f"'{job.lmdb}' was changed during the run: the accuracies are those of the images as they were read")
    weights = to_caffemodel(chosen.name, quantized_blobs(chosen, formats), caffe_types(chosen))
    written = SourceFile(str(job.quantized), hashlib.sha256(weights).hexdigest())
    sources = {**job.files, "quantized weights": written}
    asked = options.objective, options.weight_bits, len(job.images), options.holdout, options.seed
    accuracy, others = (accuracies[0], tuple(accuracies[1:])) if accuracies else (None, ())
    outcome = Outcome(*asked, accuracy, others, outputs, found.measured, measured.qualities())
    network = QuantizedNetwork(
        graph=chosen,
        formats=formats,
        layers=layers,
        target=options.target,
        sources={what: sources[what] for what in SOURCES if what in sources},
        dataset=str(job.lmdb),
        crop=job.source.crop,
        outcome=outcome,
        reader=job.source.reader,
        scale=job.source.scale,
    )
    commands, classes = (options.command, options.full_command), job.class_names
    run = facts.QuantizerRun(
        *commands, network, classes, trials, measured, job.reported, images, labels, in_float, on_device
    )
    return run, weights


def _search_and_write(job: Job, options: Options, answers: Journal) -> None:
    try:
        # Images that are held out are looked at before the search: what they show would come after it.
        held_out = logits_in_float(job, options) if options.holdout else None
        found, trials = find_formats(job, options, answers)
    except UserError:  # it would come again
        answers.remove()
        raise
    run, weights = build(job, found, trials, options, held_out)
    iterations = -(-len(job.images) // job.source.batch_size)
    attributes = original.attributes(run.network, job.source.batch_size, iterations, options.gpu)
    outputs = {job.quantized: weights, job.save: record.dump(Record(attributes, run.network))}
    if options.report or options.json:
        outputs.update(page.render(run, options.report, options.json, options.channel_order))
    if options.onnx:
        outputs[Path(options.onnx)] = FloatNetwork(job.graph, job.images[:0]).to_onnx(as_trained(job.graph))
    files.write_all(outputs)
    answers.remove()

    *details, last = summary.recorded(run.network)
    if not options.quiet:
        print_lines(*summary.table(run.network), *details)
        if options.holdout:
            print_lines(f"Searched with {len(job.swept)} images")
        print_lines("Saved " + ", ".join(f"'{path}'" for path in outputs))
    print_lines(last)


@np.errstate(over="ignore", invalid="ignore")  # what overflows has no Q-format, which is said
def quantize(options: Options) -> None:
    """Writes the pickle and the quantized weights, and prints what was found.

    Raises UserError where an input is wrong or an output cannot be written. KeyboardInterrupt says what is kept.
    """
    check_engine(options)
    job = prepare(options)
    answers = open_journal(job, options)
    try:
        _search_and_write(job, options, answers)
    except KeyboardInterrupt:
        if not answers.kept:
            raise
        kept = f"the same command goes on from the {answers.kept} results in '{answers.path}'"
        raise KeyboardInterrupt(f"interrupted: {kept}") from None
    finally:
        answers.close()
