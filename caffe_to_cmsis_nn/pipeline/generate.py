# SPDX-License-Identifier: Apache-2.0
"""Generates a code directory from a pickle, with test images whose answers are known."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from caffe_to_cmsis_nn import choices, errors, files
from caffe_to_cmsis_nn.data import class_names
from caffe_to_cmsis_nn.emit import c_text, projects, render
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.engines.known_answers import KnownAnswers
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.errors import UserError, print_lines
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import cost, lowering, proof, rows
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.report import summary
from caffe_to_cmsis_nn.store import original
from caffe_to_cmsis_nn.target import OWN, Q7, Core, Library, Target

warn = functools.partial(errors.warn, "code_gen")


@dataclass(frozen=True)
class Options:
    """What code_gen.py was asked for; None stands for what the pickle says, or for nothing."""

    model: str
    out_dir: str
    library: Library | None
    core: Core | None
    code: projects.CodeOptions
    ram: int | str  # bytes, or what rows.plan calls a plan
    no_inplace_pooling: bool  # but where the library promises it
    softmax: bool
    test_images: int | None
    images: Sequence[int] | None  # positions in the LMDB, from 0
    image: str | None  # a picture
    classes: str | None  # a file of names
    channel_order: str
    dump: str | None
    onnx: str | None
    weights: str | None  # of the original's pickles
    mean: str | None


def _target(options: Options, quantized: Target) -> Target:
    """What the code is for, where it was `quantized` for another target, or the same."""
    core, rounding = options.core or quantized.core, quantized.rounding
    if options.library is OWN:
        if quantized.library is not Q7:
            raise UserError(
                f"--library own computes what q7 kernels do, and the network is for {quantized.library} kernels"
            )
        return Target(core, rounding, OWN)
    supporting = projects.PROJECTS[options.code.project].libraries
    library = options.library or (quantized.library if quantized.library in supporting else supporting[0])
    if library not in supporting:
        raise UserError(
            f"--target {options.code.project} works with --library {supporting[0]} or {OWN}, not with {library}"
        )
    return Target(core, rounding if rounding in library.roundings else library.roundings[0], library)


def _lower(options: Options) -> tuple[QuantizedNetwork, RowPlan]:
    """The pickle's network for the kernel library and the core that are asked for."""
    network = original.open_network(Path(options.model), warn, options.weights, options.mean)
    target = _target(options, network.target)
    network = lowering.fuse(lowering.retarget(network, target))
    if options.softmax:
        network = lowering.add_softmax(network)
    plan = rows.plan(network, options.no_inplace_pooling, options.ram)
    proof.prove(network, plan)
    return network, plan


def _find_dataset(network: QuantizedNetwork, options: Options) -> Path:
    """The test images that the network was quantized with."""
    return files.find(network.dataset, Path(options.model).parent, f"the test {network.reader.kind}")


def _read_files(network: QuantizedNetwork, options: Options) -> list[Path]:
    """What the run reads, and what the network was made of, as far as it is there: no output may overwrite it."""
    given = (options.model, options.weights, options.mean, options.image, options.classes)
    paths = [Path(name) for name in given if name]
    for source in network.sources.values():
        paths += [Path(source.name), Path(options.model).parent / source.name]
    with contextlib.suppress(UserError):
        paths += network.reader.files(_find_dataset(network, options))
    return paths


def _find_answers(network: QuantizedNetwork, options: Options) -> KnownAnswers | None:
    """The test images that were asked for; without being asked, one image of the LMDB where that is at hand."""
    if options.image:
        images = test_images.read_picture(network, Path(options.image), options.channel_order)
        size = "x".join(map(str, network.graph.input.out_shape[:0:-1]))
        order = options.channel_order
        print_lines(f"Test image: '{options.image}', cut about its centre, resized to {size}, channels {order}")
        return known_answers.compute(network, *images)
    if options.images:
        path = _find_dataset(network, options)
        images = test_images.read_positions(network, path, options.images)
        return known_answers.compute(network, *images, options.images)
    count = choices.TEST_IMAGES if options.test_images is None else options.test_images
    if count == 0:
        return None
    try:
        path = _find_dataset(network, options)
        images = test_images.open_images(network, path, count)
    except UserError as error:
        if options.test_images is not None:
            raise
        warn(f"no known-answer test: {error}")
        return None
    return known_answers.compute(network, *images)


def _dump(network: QuantizedNetwork, answers: KnownAnswers | None, folder: Path, read: Sequence[Path]) -> None:
    """Writes every layer's output, and prints the checksums that the firmware must print."""
    if answers is None:
        raise UserError("--dump needs images: give --test_images, --images or --image")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder")
    identifiers = c_text.identifiers(layer.name for layer in network.graph.layers)
    print_lines(*known_answers.checksum_lines(answers, identifiers))
    print_lines(f"Wrote {', '.join(known_answers.dump(answers, identifiers, folder, read))} to '{folder}'")


def describe(options: Options) -> None:
    """Prints what is in a pickle, and what its network costs on the device; raises UserError."""
    network, plan = _lower(options)
    print_lines(*summary.describe(network), "", *cost.table(network, plan, options.code.weights_in_ram))


def generate(options: Options) -> None:
    """Writes the code directory, and prints what the network costs on the device; raises UserError."""
    if options.test_images is not None and options.test_images < 0:
        raise UserError(f"--test_images {options.test_images} must be 0 or more")
    network, plan = _lower(options)
    code = options.code
    if options.classes:
        if not network.graph.classifier:
            raise UserError("--classes is for classifiers, which have an Accuracy layer or end in Softmax")
        code = replace(code, class_names=class_names.read(Path(options.classes), network.graph.result_size))
    answers = _find_answers(network, options)
    total = cost.totals(network, plan, code.weights_in_ram)
    projects.check_memory(code.project, network.target.core, total, answers.bytes if answers else 0)
    read = _read_files(network, options)
    contents = render.render(network, plan, code, answers)
    if options.onnx and Path(options.onnx).resolve() in {(Path(options.out_dir) / name).resolve() for name in contents}:
        raise UserError(f"--onnx '{options.onnx}' is a file of the generated code: give it another name")
    if options.dump:
        _dump(network, answers, Path(options.dump), read)
    if options.onnx:
        none: np.ndarray = np.empty((0, *network.graph.input.out_shape), network.graph.input.stored)
        model = DeviceNetwork(network.graph, none, network.target).to_onnx(network.layers)
        files.write_all({Path(options.onnx): model}, read)
        print_lines(f"Wrote '{options.onnx}'")
    render.write(Path(options.out_dir), contents, read)
    print_lines(*cost.table(network, plan, options.code.weights_in_ram))
    print_lines(f"Wrote {', '.join(contents)} to '{options.out_dir}'")
