# SPDX-License-Identifier: Apache-2.0
"""How images are shared out among cores, how many are run at once, and what trials go on from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.batches import BatchRunner, Run, Values
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.activations import ReLU
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.ops.pooling import MaxPooling


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


def test_networks_on_a_gpu_have_large_batches_and_one_worker() -> None:
    network = FloatNetwork(_network(4, 1, 1).graph, np.zeros((1, 2, 4, 4), np.uint8), (engine.GPU, *engine.CPU))
    assert network.batches == BatchRunner(engine.LARGE_BATCH, 1)
