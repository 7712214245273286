# SPDX-License-Identifier: Apache-2.0
"""Test images with their expected results, with which the firmware checks itself."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork


@dataclass(frozen=True, eq=False)
class KnownAnswers:
    """N images with labels, positions in the test data, and expected logits, layer outputs and checksums.

    A checksum is the CRC-32 of an output's bytes in the device's order (HWC).
    """

    positions: np.ndarray  # (N,) int32
    pixels: np.ndarray  # (N, H, W, C) uint8, or int8 features
    labels: np.ndarray  # (N,), test_images.NO_LABEL if unknown
    logits: np.ndarray  # (N, classes) int8; (N, 0) if the network is not a classifier
    outputs: dict[str, np.ndarray]  # by layer: (N, H, W, C) or (N, features) int8, in the device's order
    checksums: np.ndarray  # (N, layers) uint32

    @property
    def bytes(self) -> int:
        """The bytes that the device stores."""
        return sum(array.nbytes for array in (self.positions, self.pixels, self.labels, self.logits, self.checksums))


def device_order(graph: Graph, results: np.ndarray) -> np.ndarray:
    """The network's outputs (N, result_size) in the order of the device's memory."""
    return graph.join({name: _channels_last(values) for name, values in graph.split(results).items()})


def _channels_last(values: np.ndarray) -> np.ndarray:
    """(N, H, W, C) from (N, C, H, W); other shapes stay."""
    return np.ascontiguousarray(np.moveaxis(values, 1, -1)) if values.ndim == 4 else values


def compute(
    network: QuantizedNetwork, images: np.ndarray, labels: np.ndarray, positions: Sequence[int] | None = None
) -> KnownAnswers:
    """The device model's results for raw pixels (N, C, H, W) uint8; positions default to 0, 1, ..."""
    outputs = {
        name: _channels_last(values)
        for name, values in DeviceNetwork(network.graph, images, network.target).outputs(network.layers).items()
    }
    checksums = [[zlib.crc32(y.tobytes()) for y in ys] for ys in outputs.values()]
    logits = network.graph.join(outputs)[:, : network.graph.result_size * network.graph.classifier]
    where = np.array(range(len(images)) if positions is None else positions, np.int32)
    pixels = outputs[network.graph.input.name] if network.graph.input.features else _channels_last(images)
    return KnownAnswers(
        positions=where,
        pixels=pixels,
        labels=labels,
        logits=logits,
        outputs=outputs,
        checksums=np.array(checksums, np.uint32).T,
    )


def device_input(network: QuantizedNetwork, images: np.ndarray) -> np.ndarray:
    """(N, bytes) the device's input for images, in the order of its memory."""
    if network.graph.input.features:
        first = replace(network.graph, layers=network.graph.layers[:1], outputs=())
        ((_, images),) = DeviceNetwork(first, images, network.target).outputs(network.layers[:1]).items()
    return _channels_last(images).reshape(len(images), -1)


def checksum_lines(answers: KnownAnswers, identifiers: Mapping[str, str]) -> list[str]:
    """The lines that firmware built with NN_PRINT_CHECKSUMS prints, with C identifiers for layers."""
    return [
        f"image {i}: layer {identifiers[name]}: checksum {checksum:08x}"
        for i, row in zip(answers.positions.tolist(), answers.checksums.tolist())
        for name, checksum in zip(answers.outputs, row)
    ]


def dump(answers: KnownAnswers, identifiers: Mapping[str, str], folder: Path, read: Iterable[Path] = ()) -> list[str]:
    """Writes pixels and layer outputs as .npy files, and checksums; returns the files' names.

    Raises UserError if a file would overwrite one of the input files `read`.
    """
    arrays = {"pixels": answers.pixels, "labels": answers.labels}
    arrays.update({f"{i:02}_{identifiers[name]}": values for i, (name, values) in enumerate(answers.outputs.items())})
    contents = {"checksums.txt": ("\n".join(checksum_lines(answers, identifiers)) + "\n").encode()}
    for name, values in arrays.items():
        file = io.BytesIO()
        np.save(file, values)
        contents[f"{name}.npy"] = file.getvalue()
    files.write_all({folder / name: content for name, content in contents.items()}, read)
    return list(contents)
