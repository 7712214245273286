#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory against size: data sets of many images, and networks of many layers.

Run from the project's root: python -m tests.benchmarks.load [--images N ...] [--layers N ...] [--shape C,H,W]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.data import lmdb_images
from tests.support import prototxt

CLASSES = 10
DEPTH = 2  # layers with weights of the network that the data sets are for
IMAGES = 200  # that the deep networks are for


def images(count: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Random images, of which a thousand come again and again."""
    some = np.random.default_rng(0).integers(0, 256, (1000, *shape), dtype=np.uint8)
    return (some[i % len(some)] for i in range(count))


def write_network(folder: Path, shape: tuple[int, int, int], depth: int) -> list[str]:
    """A chain of 3x3 convolutions, each with a ReLU, and an inner product; returns nn_quantizer's arguments."""
    rng = np.random.default_rng(1)
    layers, blobs, types, bottom, channels = [], {}, {}, "data", shape[0]
    for i in range(depth - 1):
        name, outputs = f"conv{i}", 4
        layers.append(
            f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
            f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 }} }}\n"
            f'layer {{ name: "relu{i}" type: "ReLU" bottom: "{name}" top: "{name}" }}'
        )
        blobs[name] = [rng.normal(0, (2 / 9 / channels) ** 0.5, (outputs, channels, 3, 3)), np.zeros(outputs)]
        types[name], bottom, channels = "Convolution", name, outputs
    layers.append(
        f'layer {{ name: "ip" type: "InnerProduct" bottom: "{bottom}" top: "ip" '
        f"inner_product_param {{ num_output: {CLASSES} }} }}"
    )
    blobs["ip"] = [rng.normal(0, 0.05, (CLASSES, channels * shape[1] * shape[2])), np.zeros(CLASSES)]
    types["ip"] = "InnerProduct"
    write_weights(folder / "net.caffemodel", "net", blobs, types)
    model = prototxt(folder, "\n".join(layers), "ip", "mean_value: 127 scale: 0.0078125", batch=100)
    return ["--model", str(model), "--weights", str(folder / "net.caffemodel"), "--save", str(folder / "net.pkl")]


def peak() -> float:
    """MB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(count: int, shape: tuple[int, int, int], depth: int, more: Sequence[str]) -> None:
    """Prints a row: seconds and peak memory of writing the data set, reading it, the quantizer and the generator."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = [f"{count}", "x".join(map(str, shape)), f"{depth}"]
        arguments = [*write_network(folder, shape, depth), *more]
        for what in ("write", "read", "quantize", "generate"):
            ours, childs = multiprocessing.Pipe(duplex=False)
            child = multiprocessing.get_context("spawn").Process(
                target=_step, args=(childs, what, folder, count, shape, arguments)
            )
            child.start()
            childs.close()
            seconds, megabytes = ours.recv()
            child.join()
            row += [f"{seconds:.1f}", f"{megabytes:.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)


def _step(
    pipe: Connection,
    what: str,
    folder: Path,
    count: int,
    shape: tuple[int, int, int],
    arguments: Sequence[str],
) -> None:
    """One step in a process of its own: peak memory does not go down again."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        if what == "write":
            lmdb_images.write(folder / "data_lmdb", images(count, shape), (i % CLASSES for i in range(count)))
        elif what == "read":
            lmdb_images.read(folder / "data_lmdb")
        elif what == "quantize":
            assert nn_quantizer.main([*arguments]) == 0
        else:
            assert code_gen.main(["--model", str(folder / "net.pkl"), "--out_dir", str(folder / "code")]) == 0
    pipe.send((time.perf_counter() - start, peak()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 50, 200], help="layers with weights")
    parser.add_argument("--shape", default="1,28,28", help="CHW of the images")
    parser.add_argument("quantizer", nargs="*", help="flags for nn_quantizer.py, after --")
    args = parser.parse_args()
    channels, height, width = map(int, args.shape.split(","))
    steps = ("write", "read", "quantize", "generate")
    print(f"| images | shape | layers | {' | '.join(f'{step}: s | MB' for step in steps)} |")
    print("|" + "---|" * (3 + 2 * len(steps)))
    for count in args.images:
        measure(count, (channels, height, width), DEPTH, args.quantizer)
    for depth in args.layers:
        measure(IMAGES, (channels, height, width), depth, args.quantizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
