# SPDX-License-Identifier: Apache-2.0
"""The sweep against the device: what beats what, the order of trials, adapted weights, and degenerate networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.ops.activations import ReLU
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.ops.pooling import AveragePooling
from caffe_to_cmsis_nn.pipeline.job import Job, split
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.search import common, weight_fitting
from caffe_to_cmsis_nn.search.device_objective import _Finals, _finer_logits, device_objective
from caffe_to_cmsis_nn.search.verdict import Expected, Verdict
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.target import Rounding, Target
from tests.support import prototxt, run_through, write_dataset


def _verdict(right: str, divergence: float) -> Verdict:
    return Verdict(np.array([c == "1" for c in right]), np.full(len(right), divergence))


@pytest.mark.parametrize(
    ("new", "old", "tolerance", "beats"),
    [
        (_verdict("1" * 90 + "0" * 10, 9), _verdict("1" * 80 + "0" * 20, 1), 0, True),  # 10 more: beyond sqrt(10)
        (_verdict("1" * 80 + "0" * 20, 1), _verdict("1" * 90 + "0" * 10, 9), 0, False),
        (_verdict("1" * 90 + "0" * 10, 9), _verdict("1" * 80 + "0" * 20, 1), 10, False),  # 10 more: as many as 10 %
        (_verdict("1" * 81 + "0" * 19, 9), _verdict("1" * 80 + "0" * 20, 1), 0, False),  # 1 more: noise
        (_verdict("1" * 80 + "0" * 20, 1), _verdict("1" * 81 + "0" * 19, 9), 0, True),
        (_verdict("1" * 81 + "0" * 19, 1), _verdict("1" * 80 + "0" * 20, 1), 0, True),  # nothing else to go by
        (_verdict("10", 1), _verdict("10", 1), 0, False),  # a tie keeps what there is
    ],
)
def test_what_beats_what(new: Verdict, old: Verdict, tolerance: float, beats: bool) -> None:
    assert new.beats(old, tolerance, deviations=1.0) is beats


def _graph(seed: int = 0) -> Graph:
    """Data, convolution, ReLU, average pooling, inner product."""
    shape = (3, 8, 8)
    layers = (
        Input("data", (), "data", (shape,), mean=np.full((3, 1, 1), 128, np.float32), scale=2.0**-7),
        Convolution("conv", ("data",), "conv", (shape,), window=(3, 3), pad=(1, 1), num_output=8),
        ReLU("relu", ("conv",), "conv", ((8, 8, 8),)),
        AveragePooling("pool", ("relu",), "pool", ((8, 8, 8),), window=(2, 2), stride=(2, 2)),
        InnerProduct("ip", ("pool",), "ip", ((8, 4, 4),), num_output=5),
    )
    rng = np.random.default_rng(seed)
    weights = {
        "conv": (rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32), rng.normal(0, 0.2, 8).astype(np.float32)),
        "ip": (rng.normal(0, 0.2, (5, 128)).astype(np.float32), rng.normal(0, 0.5, 5).astype(np.float32)),
    }
    return Graph("net", layers, weights, "accuracy")


def _further(distance: float, images: int = 10_000) -> tuple[Verdict, Verdict]:
    """Two of the same accuracy, the first's mean divergence so many standard errors larger on the first 1000."""
    noise = np.random.default_rng(0).normal(0, 0.01, images)
    noise[:1000] += distance * noise[:1000].std() / math.sqrt(1000) - noise[:1000].mean()
    right = np.ones(images, bool)
    return Verdict(right, 1 + noise), Verdict(right.copy(), np.ones(images))


@pytest.mark.parametrize(
    ("distance", "images", "given_up"),
    [
        (2.7, 10_000, False),  # -1 standard error at the end is within two deviations of chance:
        (2.9, 10_000, True),  # (2 * sqrt(0.9) - 1) / sqrt(0.1) = 2.84
        (0.9, 1100, False),  # with most of the images seen, what is not clear yet goes on
        (1.1, 1100, True),
    ],
)
def test_candidates_are_given_up_that_will_not_get_closer(distance: float, images: int, given_up: bool) -> None:
    verdict, best = _further(distance, images)
    assert verdict.first(1000).cannot_beat(best) is given_up


@pytest.mark.parametrize(("gained", "lost", "given_up"), [(5, 5, True), (11, 10, True), (20, 10, False)])
def test_candidates_are_given_up_that_will_not_have_more_images_right(gained: int, lost: int, given_up: bool) -> None:
    """10,000 images, 1000 seen: sqrt(0.1) * (20 - 10) / sqrt(30) + 2 * sqrt(0.9) = 2.5 deviations, (11 - 10): 1.97."""
    far, best = _further(20)
    far.right[:gained], best.right[:gained] = True, False
    far.right[gained : gained + lost] = False
    assert far.first(1000).cannot_beat(best) is given_up


def test_candidates_are_judged_on_what_is_new_to_them_first() -> None:
    known = np.arange(0, 5000, 2)
    finals = _Finals(np.zeros((5000, 1, 1, 1)), np.zeros(5000), np.zeros((5000, 2)), Target(), known)
    assert [len(stage) for stage in finals._stages] == [1000, 1000, 2000, 1000]
    assert not set(known) & {*finals._stages[0], *finals._stages[1]}
    assert sorted(np.concatenate(finals._stages)) == [*range(5000)]
    assert all((np.diff(stage) > 0).all() for stage in finals._stages)


@pytest.mark.slow
def test_candidates_given_up_early_would_not_have_been_chosen(lenet_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a trained network: the same choice as where all images judge every candidate."""
    job = lenet_job

    def find() -> common.SearchResult:
        network = FloatNetwork(job.graph, job.images)
        return run_through(device_objective(job.graph, network, job.labels, Target(), 0.001))[1]

    quick = find()
    monkeypatch.setattr(Verdict, "cannot_beat", lambda self, other: False)
    thorough = find()
    names = ["float", "weights adapted", "formats searched", "formats from ranges"]
    assert [one.candidate for one in thorough.measured] == names
    assert {one.images for one in thorough.measured} == {10000} < {one.images for one in quick.measured}
    assert {one for one in quick.measured if one.images == 10000} < {*thorough.measured}
    assert [one.candidate for one in quick.measured if one.chosen and one.images == 10000] == ["weights adapted"]
    assert_same(quick.chosen, thorough.chosen)
    np.testing.assert_array_equal(quick.on_device, thorough.on_device)


def assert_same(first: common.Candidate, second: common.Candidate) -> None:
    """The same formats and weights."""
    assert first.formats == second.formats
    for name, (w, b) in first.graph.weights.items():
        np.testing.assert_array_equal(w, second.graph.weights[name][0])
        np.testing.assert_array_equal(b, second.graph.weights[name][1])


def _search(graph: Graph, count: int = 300) -> common.SearchResult:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 5, count)
    return run_through(device_objective(graph, FloatNetwork(graph, images), labels, Target(), 0.0))[1]


@pytest.mark.parametrize("count", [300, 3500])
def test_logits_are_the_chosen_ones_on_all_images(count: int) -> None:
    """Those of the images that the weights were fitted to, all or not, come from the fit."""
    found = _search(_graph(), count)
    images = np.random.default_rng(5).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    network = DeviceNetwork(found.chosen.graph, images, Target())
    integers = quantize_network(found.chosen.graph, found.chosen.formats, Target())
    np.testing.assert_array_equal(found.on_device, network.logits(integers))


def test_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other numbers of images are run at once, on other numbers of cores."""
    first = _search(_graph())
    monkeypatch.setattr(engine, "BATCH", 7)
    monkeypatch.setattr(engine, "cores", lambda: 5)
    second = _search(_graph())
    assert first.measured == second.measured
    np.testing.assert_array_equal(first.on_device, second.on_device)
    assert_same(first.chosen, second.chosen)


def test_the_fit_holds_what_the_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the largest output, 8x8x8, as int8; and of 8 places of 8 channels and of 5 outputs, float32.

    All images at once with all trained outputs, with those of one layer after the other, and some images at a time.
    """
    graph, seen, found = _graph(), [], []
    assert weight_fitting.bytes_on_device(graph) == 2 * 512
    sizes = 4 * 8 * 8, 4 * 5
    advance, run_trained = DeviceNetwork.advance, weight_fitting._Part._run_trained

    def watched(network: DeviceNetwork, *arguments: Any) -> Any:
        seen.append(len(network.images))
        return advance(network, *arguments)

    def passed(part: Any, layers: Sequence[Layer]) -> Any:
        windows.append(layers)
        return run_trained(part, layers)

    monkeypatch.setattr(DeviceNetwork, "advance", watched)
    monkeypatch.setattr(weight_fitting._Part, "_run_trained", passed)
    monkeypatch.setattr(weight_fitting, "KEPT", 1.0)
    images = np.random.default_rng(5).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    formats = common.table(graph, {key: QFormat(4) for key in common.tensors(graph)})
    whole = 300 * (1024 + sum(sizes))
    for memory, most, passes in (
        (1 << 30, 300, 1),
        (whole, 300, 1),
        (whole - 1, 300, 2),
        (2 * 1024 * 137, 137, 3),
        (2 * 1024, 1, 300 * len(sizes)),
    ):
        windows: list[Sequence[Layer]] = []
        seen.clear()
        found.append(weight_fitting.Fit(graph, images, Target(), memory).refine(formats))
        assert max(seen) == most and len(windows) == passes
        assert_same(found[-1], found[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sums_of_the_fit_are_exact(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """X'X and X'Y against Python's integers, where they are as large as they can be, and the last one is odd."""
    x, y = [-128] * 4095 + [127], [weight_fitting.LARGEST_OUTPUT] * 4094 + [1, 3]
    layer = InnerProduct("ip", ("data",), "ip", ((1, 1, 1),), num_output=1)
    formats = LayerFormats(QFormat(0), QFormat(0), None, QFormat(-weight_fitting.FINER_BITS))
    wanted = np.array([1e30] * 4094 + [1, 3], np.float32).reshape(-1, 1, 1)
    samples = np.array(x, np.int8).reshape(-1, 1, 1, 1), np.zeros((4096, 1), int), wanted
    monkeypatch.setattr(weight_fitting._Part, "samples", lambda *_: samples)
    part = object.__new__(weight_fitting._Part)
    with threadpool_limits(threads, user_api="blas"):
        power, products = weight_fitting._add_up([part], [], layer, np.zeros((1, 1, 2)), formats)
    assert (power * 4096).tolist() == [[[sum(v * v for v in x), sum(x)], [sum(x), 4096]]]
    assert (products * 4096).tolist() == [[[sum(a * b for a, b in zip(x, y))], [sum(y)]]]


@pytest.mark.parametrize("mode", Rounding)
def test_adapted_weights_come_closer_to_the_float_network(mode: Rounding) -> None:
    """Logits on images that the fit did not see, against rounding to nearest; half the error at the most."""
    graph, target = _graph(), Target(rounding=mode)
    images = np.random.default_rng(3).integers(0, 256, (1200, 3, 8, 8), dtype=np.uint8)
    formats = common.table(graph, {key: QFormat(4) for key in common.tensors(graph)})
    adapted = weight_fitting.Fit(graph, images[:800], target).refine(formats)
    expected = FloatNetwork(graph, images[800:]).logits(as_trained(graph))

    def error(network: Graph, table: Mapping[str, LayerFormats]) -> float:
        integers = quantize_network(network, table, target)
        logits = DeviceNetwork(network, images[800:], target).logits(integers)
        return float(np.mean((np.ldexp(logits.astype(float), -4) - expected) ** 2))

    assert error(adapted.graph, adapted.formats) < 0.5 * error(graph, formats)
    for name, (w, b) in adapted.graph.weights.items():
        for values, q in ((w, adapted.formats[name].w), (b, adapted.formats[name].b)):
            assert q
            np.testing.assert_array_equal(q.dequantize(q.quantize(values)), values)


def test_a_network_without_layers_that_can_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with too many inputs to an output keep their weights, rounded to nearest."""
    monkeypatch.setattr(weight_fitting, "MOST_INPUTS", 63)
    layers = (
        _graph().input,
        Convolution("conv", ("data",), "conv", ((3, 8, 8),), window=(8, 8), num_output=6, group=3),
    )
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.3, (6, 1, 8, 8)).astype(np.float32), rng.normal(0, 0.2, 6).astype(np.float32)
    network = Graph("net", layers, {"conv": weights}, "accuracy")
    found = _search(network)
    images = np.zeros((10, 3, 8, 8), np.uint8)
    adapted = weight_fitting.Fit(network, images, Target()).refine(found.chosen.formats)
    assert adapted.is_same(found.chosen) and found.chosen.graph is network
    np.testing.assert_array_equal(found.chosen.graph.weights["conv"][0], weights[0])
    assert found.on_device is not None and len(np.unique(found.on_device)) > 10


NET = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1" inner_product_param { num_output: %d } }
"""


@pytest.mark.parametrize("objective", ["device", "caffe"])
@pytest.mark.parametrize(
    ("name", "factors", "images", "classes"),
    [
        ("zero weights", (0, 1, 1, 1), 30, 3),
        ("zero biases", (1, 0, 1, 0), 30, 3),
        ("all zero", (0, 0, 0, 0), 30, 3),
        ("constant activation", (0, 1, 0, 1), 30, 3),
        ("tiny weights", (1e-30, 1, 1, 1), 30, 3),
        ("huge weights", (1e30, 1, 1, 1), 30, 3),
        ("tiny everything", (1e-30, 1e-30, 1e-30, 1e-30), 30, 3),
        ("huge biases", (1, 1e30, 1, 1e30), 30, 3),
        ("one class", (1, 1, 1, 1), 30, 1),
        ("one image", (1, 1, 1, 1), 1, 3),
    ],
)
def test_degenerate_networks(
    tmp_path: Path, objective: str, name: str, factors: tuple[float, ...], images: int, classes: int
) -> None:
    rng = np.random.default_rng(1)
    write_dataset(tmp_path, (3, 6, 6), images, classes)
    shapes = [(4, 3, 3, 3), (4,), (classes, 144), (classes,)]
    w1, b1, w2, b2 = (rng.normal(0, 0.3, shape) * factor for shape, factor in zip(shapes, factors))
    types = {"conv1": "Convolution", "ip1": "InnerProduct"}
    write_weights(tmp_path / "n.caffemodel", "net", {"conv1": [w1, b1], "ip1": [w2, b2]}, types)
    model = prototxt(tmp_path, NET % classes, "ip1", "mean_value: 120")
    arguments = ["--model", str(model), "--weights", str(tmp_path / "n.caffemodel"), "--objective", objective]
    assert nn_quantizer.main([*arguments, "--save", str(tmp_path / "n.pkl")]) == 0
    network = record.load(tmp_path / "n.pkl").network
    assert network is not None and network.outcome
    if images == 30 and classes == 1:
        assert network.outcome.known.on_device == 100.0


def test_held_out_images_are_not_searched() -> None:
    swept, reported = split(1000, 0.3, seed=7)
    assert (len(swept), len(reported)) == (700, 300)
    assert not set(swept) & set(reported)
    assert not np.array_equal(reported, split(1000, 0.3, seed=8)[1])
    everything, same = split(10, 0.0, seed=7)
    assert everything.tolist() == same.tolist() == list(range(10))


class RoundedLogits:
    """In place of a fit: logits that are the float network's, on the formats' grid."""

    def __init__(self, logits: np.ndarray) -> None:
        self.graph, self.logits = _graph(), logits

    def results(self, formats: Mapping[str, LayerFormats]) -> np.ndarray:
        y = formats["ip"].y
        assert y
        return y.quantize(self.logits)


def finer_logits(logits: np.ndarray) -> QFormat | None:
    """Their format, where the search begins with steps of a quarter."""
    formats = common.table(_graph(), {key: QFormat(5) for key in common.tensors(_graph())})
    formats = common.clamp_to_kernel_limits(_graph(), {**formats, "ip": replace(formats["ip"], y=QFormat(2))})
    expected = Expected(_graph(), logits.argmax(axis=1), logits)
    found = _finer_logits(RoundedLogits(logits), formats, expected)  # type: ignore[arg-type]
    assert {**found, "ip": formats["ip"]} == formats
    return found["ip"].y


@pytest.mark.parametrize(("largest", "fraction_bits"), [(7.5, 4), (3.5, 5), (31, 2)])
def test_logits_are_as_fine_as_the_largest_allow(largest: float, fraction_bits: int) -> None:
    """The two largest of each image are the same distance apart, and must not saturate."""
    logits = np.random.default_rng(0).uniform(-3, 3, (500, 5)).astype(np.float32)
    logits[:, 0], logits[:, 1] = largest, largest - 0.3
    assert finer_logits(logits) == QFormat(fraction_bits)


@pytest.mark.parametrize(("largest", "fraction_bits"), [(15, 3), (7.9, 4)])
def test_ties_are_not_parted_where_scores_get_clearly_worse(largest: float, fraction_bits: int) -> None:
    """200 images have ties up to steps of an eighth; 300 others have one large logit."""
    logits = np.random.default_rng(0).uniform(0, 0.5, (500, 5)).astype(np.float32)
    logits[:200, 1:3] = 1.0, 1.04
    logits[200:, 0] = largest
    assert finer_logits(logits) == QFormat(fraction_bits)
