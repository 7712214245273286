#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the default search costs for residual networks of some depths.

Weights and images are random, since it is the time that is measured; a pass is the float network's over all images.

Run from the project's root: python -m tests.benchmarks.depth [--depths N ...] [--images N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import deque
from multiprocessing.connection import Connection

import numpy as np

from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.search.device_objective import device_objective
from caffe_to_cmsis_nn.target import Target
from tests.benchmarks.load import peak
from tests.public_networks import cifar_resnet, graph

CLASSES = 10


def _network(depth: int) -> Graph:
    """With He's initial weights, and normalisation that changes nothing."""
    network, rng = graph(cifar_resnet(depth)), np.random.default_rng(depth)
    blobs = {}
    for layer in network.layers:
        shapes = layer.weight_shapes()
        if layer.caffe_type == "BatchNorm":
            blobs[layer.name] = [np.zeros(shapes[0]), np.ones(shapes[1]), np.ones(1)]
        elif shapes and not layer.weighted:
            blobs[layer.name] = [np.ones(shapes[0]), *map(np.zeros, shapes[1:])]
        elif shapes:
            blobs[layer.name] = [
                rng.normal(0, (2 / np.prod(shapes[0][1:])) ** 0.5, shapes[0]),
                *map(np.zeros, shapes[1:]),
            ]
    return simplify(attach_weights(network, {name: [b.astype(np.float32) for b in own] for name, own in blobs.items()}))


def _measure(pipe: Connection, depth: int, count: int) -> None:
    """In a process of its own: peak memory does not go down again."""
    network, rng = _network(depth), np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *network.input.out_shape), dtype=np.uint8)
    reference, labels = FloatNetwork(network, images), rng.integers(0, CLASSES, count).astype(np.int32)
    start = time.perf_counter()
    reference.logits(as_trained(network))
    middle = time.perf_counter()
    deque(device_objective(network, reference, labels, Target(), 0.001), maxlen=0)
    pipe.send((middle - start, time.perf_counter() - middle, peak()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110])
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    print("| depth | one pass (s) | search (s) | passes | memory (MB) |\n|---|---|---|---|---|")
    for depth in args.depths:
        ours, childs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("spawn").Process(target=_measure, args=(childs, depth, args.images))
        child.start()
        childs.close()
        one, search, megabytes = ours.recv()
        child.join()
        print(f"| {depth} | {one:.1f} | {search:.1f} | {search / one:.1f} | {megabytes:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
