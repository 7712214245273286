# SPDX-License-Identifier: Apache-2.0
"""The sweep against the device, which judges each format, and each channel, by its own layer's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from caffe_to_cmsis_nn.engines import engine
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.ops.activations import ReLU
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.eltwise import Sum
from caffe_to_cmsis_nn.pipeline.job import Job
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.search import common, layer_errors
from caffe_to_cmsis_nn.search.common import Candidate, Tensor, Trial
from caffe_to_cmsis_nn.search.device_objective import device_objective
from caffe_to_cmsis_nn.search.layer_errors import LayerErrors, layer_by_layer, sections
from caffe_to_cmsis_nn.target import Target
from tests.support import FULL_SIZE, run_through
from tests.test_search_device import _graph

SHAPE = (8, 8, 8)


def residual() -> Graph:
    """Two convolutions, with the first one's output added to the second's, and what the others have around them."""
    start, rng = _graph(), np.random.default_rng(7)
    again = Convolution("again", ("relu",), "again", (SHAPE,), window=(3, 3), pad=(1, 1), num_output=8)
    added = Sum("sum", ("relu", "again"), "sum", (SHAPE, SHAPE), negative=(False, False))
    last = ReLU("last", ("sum",), "sum", (SHAPE,))
    pool, ip = (replace(layer, inputs=(name,)) for layer, name in zip(start.layers[3:], ("last", "pool")))
    weights = {"again": (rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32), rng.normal(0, 0.2, 8).astype(np.float32))}
    return replace(
        start, layers=(*start.layers[:3], again, added, last, pool, ip), weights={**start.weights, **weights}
    )


def images(count: int = 200) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def sweep(graph: Graph, middle: int = 4) -> tuple[list[Trial], Candidate]:
    choices = {key: QFormat(middle) for key in common.tensors(graph)}
    return run_through(layer_by_layer(LayerErrors(graph, images(), Target()), choices))


def on_device(found: Candidate, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's output, in real numbers."""
    network = DeviceNetwork(found.graph, pictures, Target())
    outputs = network.outputs(quantize_network(found.graph, found.formats, Target()))
    return {name: np.ldexp(values.astype(float), -bits(found.formats, name)) for name, values in outputs.items()}


def bits(formats: Mapping[str, LayerFormats], name: str) -> int:
    y = formats[name].y
    assert y
    return y.fraction_bits


def error(found: Candidate, name: str, pictures: np.ndarray) -> float:
    """Of a layer's output after all layers before it, by whole passes."""
    wanted = FloatNetwork(found.graph, pictures).outputs(as_trained(found.graph))[name].astype(float)
    y = on_device(found, pictures)[name]
    return float(np.square(y - wanted).mean() / np.square(wanted).mean())


def test_sections() -> None:
    """A layer with a format of its own, and what follows it alone and takes the format over."""
    found = [(first, [layer.name for layer in layers]) for first, layers in sections(residual())]
    assert found == [
        (0, ["data"]),
        (1, ["conv", "relu"]),
        (3, ["again"]),
        (4, ["sum", "last", "pool"]),
        (7, ["ip"]),
    ]


def test_trials_say_what_whole_passes_would() -> None:
    """In network order; what was kept is clearly better, and its error is that of the network with all formats."""
    graph = residual()
    trials, found = sweep(graph)
    assert found.graph is graph  # none of its outputs goes into one layer of weights alone
    names = list(dict.fromkeys(trial.layer for trial in trials))
    assert names == ["data", "conv", "again", "sum", "ip"]
    ends = {layers[0].name: layers[-1].name for _, layers in sections(graph)}
    for name in names:
        own = [trial for trial in trials if trial.layer == name]
        last = own[-1].score if own[-1].kept else own[-1].reference
        assert last.divergence == pytest.approx(error(found, ends[name], images()), rel=1e-5)
        for trial in own:
            assert trial.score.divergence is not None and trial.reference.divergence is not None
            assert trial.kept == (trial.score.divergence < 0.995 * trial.reference.divergence)
    assert any(trial.kept for trial in trials) and not all(trial.kept for trial in trials)
    assert {trial.tensor for trial in trials} == {*Tensor}


def test_no_single_step_is_better() -> None:
    """Of the last layer, whatever its tensors have been moved to."""
    graph = residual()
    choices = {key: QFormat(4) for key in common.tensors(graph)}
    trials, found = sweep(graph)
    choices.update({(trial.layer, trial.tensor): trial.format for trial in trials if trial.kept})
    assert common.table(graph, choices) == found.formats
    reached = error(found, "ip", images())
    for tensor in Tensor:
        for step in (1, -1):
            tried = common.table(graph, {**choices, ("ip", tensor): choices["ip", tensor].finer(step)})
            assert error(Candidate(graph, tried), "ip", images()) >= 0.995 * reached * (1 - 1e-5)


def uneven() -> Graph:
    """The chain, whose convolution's channels have ranges from 1 to 2**7 and are taken back by the inner product."""
    graph, gains = _graph(), 2.0 ** np.arange(8)
    w, b = graph.weights["conv"]
    weights = (w * gains[:, None, None, None] / 16).astype(np.float32), (b * gains / 16).astype(np.float32)
    taken = (graph.weights["ip"][0].reshape(5, 8, 16) * 16 / gains[:, None]).reshape(5, 128).astype(np.float32)
    return replace(graph, weights={"conv": weights, "ip": (taken, graph.weights["ip"][1])})


def test_small_channels_are_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network in float; on the device, a quarter of the logits' error or less, where ranges are 128 apart."""
    graph, others = uneven(), images(400)[200:]
    wanted = FloatNetwork(graph, others).logits(as_trained(graph))
    _, with_factors = sweep(graph)
    monkeypatch.setattr(layer_errors, "FACTORS", ((), ()))
    _, without = sweep(graph)
    assert without.graph is graph
    np.testing.assert_allclose(
        FloatNetwork(with_factors.graph, others).logits(as_trained(with_factors.graph)), wanted, rtol=1e-4, atol=1e-5
    )
    first, second = (np.square(on_device(found, others)["ip"] - wanted).mean() for found in (with_factors, without))
    assert first < second / 4
    factors = with_factors.graph.weights["conv"][1] / graph.weights["conv"][1]
    assert (factors[:4] >= 4).all() and factors.max() <= 4 * 2**0.5 * (1 + 1e-6)  # at most, of the two rounds


def test_a_trained_network_comes_close(lenet_job: Job) -> None:
    count = 10_000 if FULL_SIZE else 2000
    network = FloatNetwork(lenet_job.graph, lenet_job.images[:count])
    steps, found = run_through(device_objective(lenet_job.graph, network, lenet_job.labels[:count], Target(), 0.001))
    trials = [step for step in steps if isinstance(step, Trial)]
    visited = dict.fromkeys((trial.layer, trial.tensor) for trial in trials)
    assert [*visited] == [key for key in common.tensors(lenet_job.graph) if key in visited]
    measured = {one.candidate: one for one in found.measured if one.images == count}
    adapted, in_float = measured["weights adapted"], measured["float"]
    assert adapted.accuracy is not None and in_float.accuracy is not None and adapted.divergence is not None
    assert abs(adapted.accuracy - in_float.accuracy) <= 0.05
    assert adapted.divergence < 5e-5


@pytest.mark.parametrize("graph", [residual(), uneven()])
def test_the_same_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    trials, first = sweep(graph)
    monkeypatch.setattr(engine, "BATCH", 7)
    monkeypatch.setattr(engine, "cores", lambda: 5)
    again, second = sweep(graph)
    assert (trials, first.formats) == (again, second.formats)
    for name, (w, b) in first.graph.weights.items():
        np.testing.assert_array_equal(w, second.graph.weights[name][0])
        np.testing.assert_array_equal(b, second.graph.weights[name][1])


@pytest.mark.parametrize(("most_bytes", "expected"), [(1 << 28, 400), (5 * 1024 * 40, 40), (1, 1)])
def test_fewer_images_where_they_are_large(monkeypatch: pytest.MonkeyPatch, most_bytes: int, expected: int) -> None:
    """Two outputs of 512 are alive at once, as float32 and as int8."""
    monkeypatch.setattr(layer_errors, "MOST_BYTES", most_bytes)
    assert layer_errors.images_used(residual()) == expected
