# SPDX-License-Identifier: Apache-2.0
"""The sweep for deep networks, which judges each format by its own layer's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from q7.engines import engine
from q7.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from q7.layers.activations import ReLU
from q7.layers.merges import Sum
from q7.layers.windowed import Convolution, InnerProduct
from q7.network.graph import Graph
from q7.network.quantized import quantize_network
from q7.pipeline.job import Job
from q7.qformat import LayerFormats, QFormat
from q7.search import common, layer_errors
from q7.search.common import Tensor, Trial
from q7.search.device_objective import device_objective, schedule
from q7.search.layer_errors import layer_by_layer, sections
from q7.target import Target
from tests.support import run_through
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


def sweep(graph: Graph, middle: int = 4) -> tuple[list[Trial], dict[str, LayerFormats]]:
    choices = {key: QFormat(middle) for key in common.tensors(graph)}
    return run_through(layer_by_layer(graph, FloatNetwork(graph, images()), Target(), choices))


def error(graph: Graph, formats: Mapping[str, LayerFormats], name: str) -> float:
    """Of a layer's output after all layers before it, by whole passes."""
    wanted = FloatNetwork(graph, images()).outputs(as_trained(graph))[name].astype(np.float64)
    found = DeviceNetwork(graph, images(), Target()).outputs(quantize_network(graph, formats, Target()))[name]
    y = formats[name].y
    assert y
    off = np.ldexp(found.astype(np.float64), -y.fraction_bits) - wanted
    return float(np.square(off).mean() / np.square(wanted).mean())


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
    trials, formats = sweep(graph)
    names = list(dict.fromkeys(trial.layer for trial in trials))
    assert names == ["data", "conv", "again", "sum", "ip"]
    ends = {layers[0].name: layers[-1].name for _, layers in sections(graph)}
    for name in names:
        own = [trial for trial in trials if trial.layer == name]
        last = own[-1].score if own[-1].kept else own[-1].reference
        assert last.divergence == pytest.approx(error(graph, formats, ends[name]), rel=1e-5)
        for trial in own:
            assert trial.score.divergence is not None and trial.reference.divergence is not None
            assert trial.kept == (trial.score.divergence < 0.995 * trial.reference.divergence)
    assert any(trial.kept for trial in trials) and not all(trial.kept for trial in trials)
    assert {trial.tensor for trial in trials} == {*Tensor}


def test_no_single_step_is_better() -> None:
    """Of the last layer, whatever its tensors have been moved to."""
    graph = residual()
    choices = {key: QFormat(4) for key in common.tensors(graph)}
    trials, formats = sweep(graph)
    choices.update({(trial.layer, trial.tensor): trial.format for trial in trials if trial.kept})
    assert common.table(graph, choices) == formats
    reached = error(graph, formats, "ip")
    for tensor in Tensor:
        for step in (1, -1):
            tried = common.table(graph, {**choices, ("ip", tensor): choices["ip", tensor].finer(step)})
            assert error(graph, tried, "ip") >= 0.995 * reached * (1 - 1e-5)


def test_a_trained_network_comes_as_close_as_with_trials_against_its_logits(
    lenet_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> tuple[list[Trial], common.Found]:
        network = FloatNetwork(lenet_job.graph, lenet_job.images)
        steps, found = run_through(device_objective(lenet_job.graph, network, lenet_job.labels, Target(), 0.001))
        return [step for step in steps if isinstance(step, Trial)], found

    _, by_logits = find()
    monkeypatch.setattr(layer_errors, "DEEP", 3)
    trials, by_layers = find()
    visited = dict.fromkeys((trial.layer, trial.tensor) for trial in trials)
    assert [*visited] == [key for key in schedule(lenet_job.graph) if key in visited]
    first, second = (
        next(one for one in found.measured if one.candidate == "weights adapted") for found in (by_logits, by_layers)
    )
    assert first.accuracy is not None and second.accuracy is not None
    assert first.divergence is not None and second.divergence is not None
    assert abs(second.accuracy - first.accuracy) <= 0.05
    assert second.divergence < 1.2 * first.divergence


def test_the_same_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(residual())
    monkeypatch.setattr(engine, "BATCH", 7)
    monkeypatch.setattr(engine, "cores", lambda: 5)
    assert sweep(residual()) == first


@pytest.mark.parametrize(("most_bytes", "expected"), [(1 << 28, 500), (5 * 1024 * 40, 40), (1, 1)])
def test_fewer_images_where_they_are_large(monkeypatch: pytest.MonkeyPatch, most_bytes: int, expected: int) -> None:
    """Two outputs of 512 are alive at once, as float32 and as int8."""
    monkeypatch.setattr(layer_errors, "MOST_BYTES", most_bytes)
    assert layer_errors._images(residual()) == expected


def test_how_many_layers_are_deep() -> None:
    shape = (4,)
    layers = [InnerProduct(f"ip{i}", (f"ip{i - 1}",), f"ip{i}", (shape,), num_output=4) for i in range(1, 34)]
    graph = _graph()
    assert not layer_errors.is_deep(replace(graph, layers=(graph.layers[0], *layers[:32])))
    assert layer_errors.is_deep(replace(graph, layers=(graph.layers[0], *layers)))
