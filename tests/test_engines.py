# SPDX-License-Identifier: Apache-2.0
"""How images are shared out among cores, how many are run at once, and what trials go on from."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.batches import BatchRunner, Run, Values
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Grid, Simulation, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.activations import ReLU
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.concat import Concat
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.ops.pooling import MaxPooling
from caffe_to_cmsis_nn.qformat import QFormat
from tests.support import FULL_SIZE


class Watched(FloatNetwork):
    """Notes how many images are run at once, and in which threads."""

    def runner(self, first: int, settings: Sequence[Any], *layers: Sequence[Layer]) -> Run:
        run = super().runner(first, settings, *layers)
        self.seen: list[int] = []
        self.threads: set[int] = set()

        def note(batch: Values) -> Sequence[np.ndarray]:
            self.seen += map(len, batch.values())
            self.threads.add(threading.get_ident())
            return run(batch)

        return note


def _network(extent: int, count: int, workers: int) -> Watched:
    """ReLU and global max pooling over 2 channels."""
    shape = (2, extent, extent)
    layers = (
        Input("data", (), "data", (shape,)),
        ReLU("relu", ("data",), "data", (shape,)),
        MaxPooling("pool", ("relu",), "pool", (shape,), window=(extent, extent)),
    )
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    network = Watched(Graph("net", layers, {}, "accuracy"), images)
    network.batches.workers = workers
    return network


@pytest.mark.parametrize(
    ("extent", "count", "workers", "seen"),
    [
        (4, 100, 2, [25] * 4),
        (4, 60, 2, [25, 25, 10]),
        (4, 30, 5, [25, 5]),
        (512, 5, 2, [2, 2, 1]),  # 2 MB go in and 2 MB come out, of 8 for each batch
        (512, 5, 4, [2, 2, 1]),
        (1024, 3, 8, [1] * 3),
    ],
)
def test_batches(extent: int, count: int, workers: int, seen: list[int]) -> None:
    network = _network(extent, count, workers)
    logits = network.logits(as_trained(network.graph))
    assert sorted(network.seen, reverse=True) == seen
    np.testing.assert_array_equal(logits, network.images.max(axis=(2, 3)))


def test_ranges_are_seen_in_the_same_batches() -> None:
    """So that the logits are the same, too: nothing is kept alive for the ranges."""
    network = _network(256, 14, 2)
    logits = network.logits(as_trained(network.graph))
    assert sorted(network.seen) == [6, 8]
    surveyed, ranges = network.survey(as_trained(network.graph))
    assert sorted(network.seen) == [6, 8]
    np.testing.assert_array_equal(surveyed, logits)
    assert ranges["data"].tolist() == [network.images.min(), network.images.max()]


def test_one_worker_is_the_thread_that_asks() -> None:
    """Caffe has been told there, and for that thread alone, whether to compute on the GPU."""
    network = _network(4, 100, 1)
    network.logits(as_trained(network.graph))
    assert network.threads == {threading.get_ident()}
    network = _network(4, 100, 2)
    network.logits(as_trained(network.graph))
    assert threading.get_ident() not in network.threads


class Interrupted(FloatNetwork):
    """Stops where it is told to, when all outputs have been written."""

    stops = False

    def advance(self, *arguments: Any) -> Values:
        results = super().advance(*arguments)
        if self.stops:
            raise KeyboardInterrupt
        return results


def _deep_network(memory: int, outputs: tuple[str, ...]) -> Interrupted:
    """Three convolutions with ReLUs, the last of which reads the first one's output, too; 30 images."""
    shape, rng = (2, 6, 6), np.random.default_rng(0)
    layers: list[Layer] = [Input("data", (), "data", (shape,))]
    for i, (x, in_shape) in enumerate((("data", shape), ("relu0", shape), ("both", (4, 6, 6)))):
        if x == "both":
            layers.append(Concat("both", ("relu1", "relu0"), "both", (shape, shape)))
        layers.append(Convolution(f"conv{i}", (x,), f"conv{i}", (in_shape,), num_output=2))
        layers.append(ReLU(f"relu{i}", (f"conv{i}",), f"conv{i}", (shape,)))
    weights = {
        layer.name: (rng.normal(size=(2, layer.in_shapes[0][0], 1, 1)).astype(np.float32), np.ones(2, np.float32))
        for layer in layers
        if layer.weighted
    }
    images = rng.integers(0, 256, (30, *shape), dtype=np.uint8)
    graph = Graph("net", tuple(layers), weights, "accuracy", outputs=outputs)
    return Interrupted(graph, images, memory=memory)


TRIALS = 150 if FULL_SIZE else 60
SLAB = 30 * 2 * 6 * 6 * 4  # bytes of one layer's outputs


@pytest.mark.parametrize(
    ("memory", "goes_on", "outputs"),
    [
        *((memory, memory > 0, ("relu2",)) for memory in (0, 4 * SLAB, 1 << 30)),
        *((memory, memory > 0, ("relu2", "conv0", "relu1")) for memory in (0, 12 * SLAB, 1 << 30)),
    ],
)
def test_trials_go_on_from_what_still_holds(memory: int, goes_on: bool, outputs: tuple[str, ...]) -> None:
    """In any order, with parts of the images and with trials that are stopped: as from the first layer on."""
    rng = random.Random(1)
    whole = _deep_network(memory, outputs)
    networks = [whole, whole.part(whole.images[:10]), whole.part(whole.images[10:])]
    tried, later_starts = [as_trained(whole.graph)], 0
    for _ in range(TRIALS):
        settings = list(rng.choice(tried[-3:]))
        tried.append(settings)
        grids = rng.choices([None, Grid(QFormat(1)), Grid(QFormat(-3)), Grid(QFormat(-5))], k=3)
        settings[rng.randrange(len(settings))] = Simulation(*grids)
        expected = FloatNetwork(whole.graph, whole.images).logits(settings)
        for network, wanted in zip(networks, (expected, expected[:10], expected[10:])):
            if rng.random() < 0.2:
                continue
            network.stops = rng.random() < 0.2
            with contextlib.suppress(KeyboardInterrupt):
                np.testing.assert_array_equal(network.trial_logits(settings), wanted)
            (kept, inputs), (later, filled) = network._trials._kept, network._trials._later
            later_starts += kept > 0
            assert kept <= later
            for position, values in ((kept, inputs), (later, filled)):
                assert not position or sum(map(np.size, values.values())) * 4 <= network.memory // engine.MEMORY_SHARES
            assert kept == later or not any(map(np.shares_memory, inputs.values(), filled.values()))
    assert (later_starts > TRIALS / 3) is goes_on


def test_networks_on_a_gpu_have_large_batches_and_one_worker() -> None:
    network = FloatNetwork(_network(4, 1, 1).graph, np.zeros((1, 2, 4, 4), np.uint8), (engine.GPU, *engine.CPU))
    assert network.batches == BatchRunner(engine.LARGE_BATCH, 1)
