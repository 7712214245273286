# SPDX-License-Identifier: Apache-2.0
"""How images are shared out among cores, and how many are run at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from q7.engines import engine
from q7.engines.engine import Run, Values
from q7.engines.float_network import FloatNetwork, as_trained
from q7.layers.activations import ReLU
from q7.layers.base import Layer
from q7.layers.input import Input
from q7.layers.windowed import MaxPooling
from q7.network.graph import Graph


class Watched(FloatNetwork):
    """Notes how many images are run at once, and in which threads."""

    def runner(self, first: int, last: int, settings: Sequence[Any], *layers: Sequence[Layer]) -> Run:
        run = super().runner(first, last, settings, *layers)
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
    network.workers = workers
    return network


@pytest.mark.parametrize(
    ("extent", "count", "workers", "seen"),
    [
        (4, 100, 2, [25] * 4),
        (4, 60, 2, [25, 25, 10]),
        (4, 30, 5, [6] * 5),  # each core has its share of few images
        (4, 3, 5, [1] * 3),
        (512, 14, 2, [4, 4, 4, 2]),  # 2 MB go in and 2 MB come out; 32 MB for all cores
        (512, 14, 4, [2] * 7),
        (1024, 3, 8, [1] * 3),
    ],
)
def test_batches(extent: int, count: int, workers: int, seen: list[int]) -> None:
    network = _network(extent, count, workers)
    logits = network.logits(as_trained(network.graph))
    assert sorted(network.seen, reverse=True) == seen
    np.testing.assert_array_equal(logits, network.images.max(axis=(2, 3)))


def test_batches_are_smaller_where_ranges_keep_every_output_alive() -> None:
    network = _network(512, 14, 2)
    _, ranges = network.survey(as_trained(network.graph))
    assert sorted(network.seen) == [2, 3, 3, 3, 3]
    assert ranges["data"].tolist() == [network.images.min(), network.images.max()]


def test_one_worker_is_the_thread_that_asks() -> None:
    """Caffe has been told there, and for that thread alone, whether to compute on the GPU."""
    network = _network(4, 100, 1)
    network.logits(as_trained(network.graph))
    assert network.threads == {threading.get_ident()}
    network = _network(4, 100, 2)
    network.logits(as_trained(network.graph))
    assert threading.get_ident() not in network.threads


def test_networks_on_a_gpu_have_large_batches_and_one_worker() -> None:
    network = FloatNetwork(_network(4, 1, 1).graph, np.zeros((1, 2, 4, 4), np.uint8), (engine.GPU, *engine.CPU))
    assert (network.batch, network.workers) == (engine.LARGE_BATCH, 1)
