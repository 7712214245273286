# SPDX-License-Identifier: Apache-2.0
"""Runs the test images on a board whose program was generated with --serve, and compares every logit."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.board import client, protocol
from caffe_to_cmsis_nn.data.image_set import Images
from caffe_to_cmsis_nn.emit import c_text
from caffe_to_cmsis_nn.engines import engine, known_answers
from caffe_to_cmsis_nn.engines.accuracy import accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.errors import UserError, print_lines
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.pipeline.job import memory_bytes, warn
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.store import original

BAUD = 115200


def _open(url: str) -> client.Port:
    """A serial port, or what pyserial takes for one (socket://HOST:PORT, rfc2217://HOST:PORT)."""
    import serial

    try:
        port: client.Port = serial.serial_for_url(url, baudrate=BAUD, timeout=0.01, write_timeout=client.GIVE_UP)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open the board's port '{url}': {error}") from error
    return port


def _as_on_board(network: QuantizedNetwork, facts: protocol.Facts) -> QuantizedNetwork:
    """The pickle's network for the target that the board's program was generated for."""
    network = lowering.fuse(lowering.retarget(network, facts.target))
    return (
        lowering.add_softmax(network)
        if facts.softmax and not network.graph.output_layers[-1].probabilities
        else network
    )


def _difference(board: client.Board, network: QuantizedNetwork, number: int, image: np.ndarray, pixels: bytes) -> str:
    """What is wrong with an image (C, H, W): the first layer whose checksum differs from the prediction."""
    expected = known_answers.compute(network, image[None], np.zeros(1, np.int32)).checksums[0]
    found = np.frombuffer(board.run(number | protocol.CHECKED, pixels, b"C", 4 * len(expected)), "<u4")
    (differing,) = np.nonzero(found != expected)
    if not differing.size:
        return f"image {number} differed once, but matched when rerun"
    name = [*c_text.identifiers(layer.name for layer in network.graph.layers).values()][differing[0]]
    return f"image {number}: layer {name} is the first that differs from the prediction"


def _print_times(board: client.Board, network: QuantizedNetwork, number: int, pixels: bytes) -> None:
    layers = network.graph.layers
    ticks = np.frombuffer(board.run(number, pixels, b"T", 4 * len(layers)), "<u4")
    for layer, time_of_layer in zip(layers, ticks.tolist()):
        print_lines(f"{layer.name:24} {time_of_layer:>12}")


def evaluate(path: Path, url: str, count: int | None, lmdb: str | None, memory: float, quiet: bool, **old: Any) -> None:
    """Prints the accuracy on the board, and whether its logits are those that were predicted.

    `count` images are run, or all; raises UserError where the board cannot be reached, has another network, or computes
    something else.
    """
    network = original.open_network(path, warn, **old)
    size = memory_bytes(memory)
    board = client.Board(lambda: _open(url), warn)
    try:
        facts = board.identify()
        network = _as_on_board(network, facts)
        if board.expected != protocol.fingerprint(network):
            raise UserError(f"the board runs another network than '{path}' ({facts.target})")
        if facts != protocol.Facts.of(network, facts.times):
            raise UserError(f"the board's sizes are not those of its network: generate its program from '{path}' again")
        data = files.find(lmdb or network.dataset, path.parent, f"the test {network.reader.kind}")
        images, labels = test_images.open_images(network, data, count, size / engine.MEMORY_SHARES)
        predicted = DeviceNetwork(network.graph, images, network.target, size).logits(network.layers)
        predicted = known_answers.device_order(network.graph, predicted)
        _run(board, network, images, np.asarray(labels), predicted, facts, quiet)
    finally:
        board.close()


def _run(
    board: client.Board,
    network: QuantizedNetwork,
    images: Images,
    labels: np.ndarray,
    predicted: np.ndarray,
    facts: protocol.Facts,
    quiet: bool,
) -> None:
    def image_at(i: int) -> tuple[np.ndarray, bytes]:
        """An image (C, H, W) as it is stored, and as the board takes it."""
        (image,) = images[i : i + 1]
        return image, known_answers.device_input(network, image[None]).tobytes()

    logits = np.empty_like(predicted, dtype=np.int8)
    differs: str | None = None
    began = time.monotonic()
    for i in tqdm(range(len(images)), "board", unit="images", disable=quiet or not sys.stderr.isatty()):
        try:
            image, pixels = image_at(i)
            logits[i] = np.frombuffer(board.run(i, pixels, b"L", facts.classes), np.int8)
        except UserError as error:
            raise UserError(f"{error}; {i} of {len(images)} images were done") from error
        if differs is None and (logits[i] != predicted[i]).any():
            differs = _difference(board, network, i, image, pixels)
    seconds = time.monotonic() - began
    if facts.times and not quiet:
        _print_times(board, network, len(images), pixels)
    right = (logits == predicted).all(axis=1).sum()
    repeated = f", {board.repeated} requests repeated" if board.repeated else ""
    known = f"{len(images)} images, {facts.target}"
    if network.graph.classifier:
        expected = accuracy_first(predicted, labels)
        known = f"Accuracy on the board: {accuracy_first(logits, labels):.2f} % ({known}), predicted {expected:.2f} %"
    print_lines(
        f"{known}; {right} images with every {'logit' if network.graph.classifier else 'value'} as predicted, "
        f"{len(images) / seconds:.1f} images per second{repeated}"
    )
    if differs:
        raise UserError(differs)
