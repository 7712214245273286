# SPDX-License-Identifier: Apache-2.0
"""The order in which formats are tried, over made-up accuracies, and the original's choices on Arm's network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.networks import FloatNetwork
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.activations import LeakyReLU, ReLU, Sigmoid
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.ops.pooling import AveragePooling
from caffe_to_cmsis_nn.pipeline.job import Job
from caffe_to_cmsis_nn.qformat import MAX_BIAS_LSHIFT, MAX_OUT_RSHIFT, LayerFormats, QFormat, shifts
from caffe_to_cmsis_nn.search import caffe_objective, common
from caffe_to_cmsis_nn.search.caffe_objective import Grids, Judged
from caffe_to_cmsis_nn.search.common import Search, SearchResult, Tensor, Trial
from caffe_to_cmsis_nn.store import record
from tests.support import run_through


def _graph() -> Graph:
    """Data, convolution, ReLU, average pooling, inner product; ranges 1, 3 (weights) and 0.1, 5 (biases)."""
    shape = (4, 4, 4)
    layers = (
        Input("data", (), "data", (shape,)),
        Convolution("conv", ("data",), "conv", (shape,), num_output=4),
        ReLU("relu", ("conv",), "conv", (shape,)),
        AveragePooling("pool", ("relu",), "pool", (shape,), window=(2, 2), stride=(2, 2)),
        InnerProduct("ip", ("pool",), "ip", ((4, 2, 2),), num_output=3),
    )
    weights = {
        "conv": (np.ones((4, 4, 1, 1), np.float32), np.full(4, 0.1, np.float32)),
        "ip": (np.full((3, 16), -3, np.float32), np.full(3, 5, np.float32)),
    }
    return Graph("net", layers, weights, "accuracy")


RANGES = {"data": 255.0, "conv": 30.0, "relu": 30.0, "pool": 20.0, "ip": 7.0}


def _search(
    accuracy: Callable[[Grids], float], tolerance: float = 0.0, graph: Graph | None = None
) -> tuple[list[Trial], SearchResult]:
    class Simulation(caffe_objective.CaffeSimulation):
        def __init__(self) -> None:
            pass

        def largest(self, grids: Grids) -> dict[str, float]:
            return RANGES

        def judge(self, grids: Grids, rival: Judged | None = None) -> Judged:
            return Judged(np.arange(10_000) < round(100 * accuracy(grids)))

    return collect(caffe_objective.caffe_objective(graph or _graph(), Simulation(), tolerance))


def collect(steps: Search) -> tuple[list[Trial], SearchResult]:
    trials, found = run_through(steps)
    assert all(isinstance(trial, Trial) for trial in trials)
    return trials, found


def _order(trials: list[Trial]) -> list[str]:
    return [f"{trial.layer} {trial.tensor.value} {trial.format}" for trial in trials]


def test_one_trial_each_where_nothing_is_lost() -> None:
    trials, found = _search(lambda grids: 90.0)
    assert _order(trials) == [
        "conv weights Q0.7",
        "ip weights Q2.5",
        "data activations Q8.-1",
        "conv activations Q5.2",
        "ip activations Q3.4",
        "conv bias Q1.6",  # -3.10 would be finer than the accumulator's -1 + 7 fraction bits
        "ip bias Q3.4",
    ]
    assert len(common.tensors(_graph())) == len(trials)
    assert found.chosen.formats["pool"] == LayerFormats(QFormat(2), None, None, QFormat(2))
    assert {one.accuracy for one in found.measured} == {90.0}


def test_three_steps_down_at_most_and_the_first_best_wins() -> None:
    def accuracy(grids: Grids) -> float:
        grid = grids.get(("conv", Tensor.WEIGHTS))
        return 90.0 if grid is None else {7: 80.0, 8: 85.0, 9: 85.0, 10: 84.0}[grid.format.fraction_bits]

    trials, found = _search(accuracy)
    assert _order(trials)[:4] == [f"conv weights Q{m}.{7 - m}" for m in (0, -1, -2, -3)]
    assert found.chosen.formats["conv"].w == QFormat(8)
    assert [one.accuracy for one in found.measured if one.candidate == "quantized weights"] == [85.0]


def test_tolerance_ends_a_sweep() -> None:
    def accuracy(grids: Grids) -> float:
        return 90.0 - 0.05 * len(grids)

    assert len(_search(accuracy, tolerance=0.2)[0]) < len(_search(accuracy, tolerance=0.0)[0])
    assert len(_search(accuracy, tolerance=1.0)[0]) == len(common.tensors(_graph()))


def test_only_the_first_trial_does_not_clip() -> None:
    clips: list[tuple[int, bool]] = []

    def accuracy(grids: Grids) -> float:
        grid = grids.get(("conv", Tensor.WEIGHTS))
        if grid is not None and len(grids) == 1:
            clips.append((grid.format.fraction_bits, grid.clip))
        return 0.0 if grids else 90.0

    _search(accuracy)
    assert clips == [(7, False), (8, True), (9, True), (10, True)]


@pytest.mark.parametrize(("name", "joins"), [("pool", True), ("relu", False), ("leaky", True), ("sigmoid", True)])
def test_a_layer_that_computes_new_values_joins_when_its_turn_comes(name: str, joins: bool) -> None:
    """On the grid that it inherits; a ReLU gives none but those of its input."""
    others: dict[str, type[Layer]] = {"leaky": LeakyReLU, "sigmoid": Sigmoid}
    layer = "relu" if name in others else name
    seen: list[bool] = []

    def accuracy(grids: Grids) -> float:
        if ("conv", Tensor.ACTIVATIONS) in grids:
            seen.append((layer, Tensor.ACTIVATIONS) in grids)
        return 90.0

    graph = _graph()
    changed = others.get(name, ReLU)("relu", ("conv",), "conv", ((4, 4, 4),))
    _search(accuracy, graph=replace(graph, layers=(*graph.layers[:2], changed, *graph.layers[3:])))
    assert seen[0] is False
    assert set(seen[1:]) == {joins}


@pytest.mark.slow
def test_screening_chooses_the_same_and_tells_the_same_accuracies(lenet_job: Job) -> None:
    """On a trained network, against all images for every trial; what was given up was far from being taken."""
    images, labels = lenet_job.images[:4000], lenet_job.labels[:4000]

    def sweep(simulation: type[caffe_objective.CaffeSimulation]) -> tuple[list[Trial], SearchResult]:
        network = FloatNetwork(lenet_job.graph, images)
        return collect(caffe_objective.caffe_objective(lenet_job.graph, simulation(network, labels), 0.001))

    (quick, found), (thorough, expected) = map(
        sweep, (caffe_objective.ScreenedSimulation, caffe_objective.CaffeSimulation)
    )
    assert found.chosen.formats == expected.chosen.formats
    assert found.measured == expected.measured
    assert _order(quick) == _order(thorough)
    for ours, theirs in zip(quick, thorough):
        assert ours.kept == theirs.kept
        if ours.score.images is None:
            assert ours.score.accuracy == pytest.approx(theirs.score.accuracy, abs=0.05)  # two images
        else:
            assert ours.score.percent < ours.reference.percent
            assert theirs.score.percent < theirs.reference.percent - 0.05
    assert any(trial.score.images for trial in quick)


@pytest.mark.parametrize("fraction_bits", [-60, -20, 0, 20, 60])
def test_legal_formats_can_be_carried(fraction_bits: int) -> None:
    graph, q = _graph(), QFormat(fraction_bits)
    table = dict.fromkeys(("data", "conv", "ip"), q)
    for w, b, y in ((q, QFormat(7), QFormat(7)), (QFormat(7), q, QFormat(7)), (QFormat(7), QFormat(7), q)):
        wild = graph.formats(dict.fromkeys(table, w), dict.fromkeys(table, b), dict.fromkeys(table, y))
        clamp_to_kernel_limits = common.clamp_to_kernel_limits(graph, wild)
        for name in ("conv", "ip"):
            carried = shifts(clamp_to_kernel_limits[name])
            assert 0 <= carried.bias_lshift <= MAX_BIAS_LSHIFT
            assert 0 <= carried.out_rshift <= MAX_OUT_RSHIFT


@pytest.mark.parametrize(("asked", "given"), [(3, 4), (4, 4), (7, 7), (8, 7)])
def test_a_format_is_legal_up_to_the_limits_of_the_layer_that_reads_it(asked: int, given: int) -> None:
    """A sigmoid takes 4 to 7 fraction bits."""
    graph = _graph()
    sigmoid = Sigmoid("relu", ("conv",), "conv", ((4, 4, 4),))
    graph = replace(graph, layers=(*graph.layers[:2], sigmoid, *graph.layers[3:]))
    y = {"data": QFormat(0), "conv": QFormat(asked), "ip": QFormat(0)}
    clamp_to_kernel_limits = common.clamp_to_kernel_limits(
        graph, graph.formats(dict.fromkeys(("conv", "ip"), QFormat(7)), {}, y)
    )
    assert clamp_to_kernel_limits["conv"].y == QFormat(given)


def test_a_tie_is_wrong_for_caffe_and_goes_to_the_first_on_the_device() -> None:
    logits = np.array([[5, 5, 1], [5, 5, 1], [1, 2, 3], [-128, -128, -128]], np.int8)
    labels = np.array([0, 1, 2, 0])
    assert accuracy_caffe(logits, labels) == 25.0
    assert accuracy_first(logits, labels) == 75.0


@pytest.mark.slow
def test_the_original_s_formats_on_arm_m4(arm_m4: Path) -> None:
    """With the original's procedure, over all test images."""
    arguments = ["--model", arm_m4 / "cifar10_m4_train_test.prototxt", "--save", arm_m4 / "ours.pkl"]
    arguments += ["--weights", arm_m4 / "cifar10_m4_iter_70000.caffemodel.h5", "--objective", "caffe"]
    assert nn_quantizer.main([str(argument) for argument in arguments]) == 0
    network = record.load(arm_m4 / "ours.pkl").network
    assert network is not None
    table = {
        layer.name: " ".join(str(q) for q in (f.w, f.y, f.b) if q)
        for layer in network.graph.layers
        for f in [network.formats[layer.name]]
        if layer.own_format
    }
    assert table == {
        "data": "Q8.-1",
        "conv1": "Q-1.8 Q10.-3 Q0.7",
        "conv2": "Q-2.9 Q10.-3 Q1.6",
        "conv3": "Q-2.9 Q8.-1 Q1.6",
        "ip1": "Q-4.11 Q4.3 Q2.5",
    }
    assert network.outcome
    assert network.outcome.known.in_float == pytest.approx(76.46)
    *_, last = network.outcome.search
    assert last.chosen and last.accuracy == pytest.approx(75.70)
    assert network.outcome.known.on_device == pytest.approx(76.33)
