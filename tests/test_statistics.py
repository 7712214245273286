# SPDX-License-Identifier: Apache-2.0
"""Saturation, signal-to-noise ratio and histograms against numbers worked out by hand, and on a quantized network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.activations import ReLU, Sigmoid
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.report import statistics
from tests import small
from tests.generated import stored_images


def _sqnr(trained: np.ndarray, integers: np.ndarray, fraction_bits: int = 0) -> float | None:
    return statistics.compare(trained, integers.astype(np.int8), QFormat(fraction_bits)).sqnr


def test_sqnr() -> None:
    """A uniform error of a step's width over 8 bits of signal: 6.02 dB a bit; 3, 4 against 3, 3: 25 / 1."""
    assert _sqnr(np.array([3.0, 4.0]), np.array([3, 3])) == pytest.approx(10 * math.log10(25))
    ramp = np.linspace(-127.5, 127.4, 1000001) / 128
    assert _sqnr(ramp, np.rint(ramp * 128), 7) == pytest.approx(6.02 * 8, abs=0.1)


@pytest.mark.parametrize(("signal", "noisy"), [([0.0, 0.0], [0, 1]), ([1.0, 2.0], [1, 2])])
def test_no_signal_and_no_noise_have_no_ratio(signal: list[float], noisy: list[int]) -> None:
    assert _sqnr(np.array(signal), np.array(noisy)) is None


def test_saturated_is_what_float_has_beyond() -> None:
    """In Q3.4: 8 and more is beyond 127/16, below -8.0625 beyond -128/16; 127 that float has, too, does not count."""
    trained = np.array([9.0, 8.0, 7.97, 7.9375, 0.0, -8.0, -8.05, -8.0625, -9.0, 1.0])
    integers = np.array([127, 127, 127, 127, 0, -128, -128, -128, -128, 16], np.int8)
    found = statistics.compare(trained, integers, QFormat(4))
    assert (found.at_min, found.at_max) == (20.0, 20.0)
    assert (found.smallest, found.largest) == (-9.0, 9.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 0.01, 1, 7.9, 30, 1e5, 1e30])
def test_histograms_hold_every_value(scale: float) -> None:
    trained = np.random.default_rng(0).normal(0, scale, 10000).astype(np.float32)
    q = QFormat(4)
    histogram = statistics.compare(trained, q.quantize(trained), q).histogram
    assert histogram.trained.sum() == pytest.approx(1) and histogram.device.sum() == pytest.approx(1)
    assert len(histogram.trained) == len(histogram.device) <= statistics.MOST_BINS + 2
    assert histogram.low <= min(trained.min(), -8)
    assert histogram.low + histogram.width * len(histogram.trained) >= max(trained.max(), 127 / 16)
    if scale == 1:  # each bin has whole steps, so that rounding moves few values to another one
        assert np.abs(histogram.trained - histogram.device).sum() < 0.25


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    trained, integers = rng.normal(0, 80, 1000), rng.integers(-128, 128, 1000).astype(np.int8)
    trained[:30], integers[:30] = 200, 127
    trained[500:530], integers[500:530] = -200, -128
    whole = statistics.compare(trained, integers, QFormat(0))
    monkeypatch.setattr(statistics, "CHUNK", 7)
    parts = statistics.compare(trained, integers, QFormat(0))
    assert (parts.at_min, parts.at_max) == (whole.at_min, whole.at_max)
    assert whole.at_min >= 3 and whole.at_max >= 3
    assert parts.sqnr == pytest.approx(whole.sqnr)
    np.testing.assert_array_equal(parts.histogram.trained, whole.histogram.trained)
    np.testing.assert_array_equal(parts.histogram.device, whole.histogram.device)


def _chain(*layers: object) -> Graph:
    return Graph("net", layers, {}, "accuracy")  # type: ignore[arg-type]


def test_a_layer_is_measured_after_the_activation_that_follows_it_alone() -> None:
    shape = (4, 4, 4)
    data = Input("data", (), "data", (shape,))
    conv = Convolution("conv", ("data",), "conv", (shape,), num_output=4)
    relu = ReLU("relu", ("conv",), "conv", (shape,))
    again = ReLU("again", ("relu",), "conv", (shape,))
    q, other = QFormat(4), QFormat(7)
    same = {name: LayerFormats(q, y=q) for name in ("data", "conv", "relu", "again", "second")}
    assert statistics.measured_after(_chain(data, conv, relu, again), same)["conv"] == "again"
    second = Convolution("second", ("conv",), "second", (shape,), num_output=4)
    assert statistics.measured_after(_chain(data, conv, relu, second), same)["conv"] == "conv"
    sigmoid = Sigmoid("relu", ("conv",), "conv", (shape,))
    assert (
        statistics.measured_after(_chain(data, conv, sigmoid), {**same, "relu": LayerFormats(q, y=other)})["conv"]
        == "conv"
    )


def test_a_quantized_network(tmp_path: Path) -> None:
    """The float network has the trained weights; weights on their grid have half a step of error at the most."""
    network = small.quantized(tmp_path)
    images = stored_images(network, tmp_path / "x.pkl", small.IMAGES)
    found = statistics.collect(network.graph, network.layers, network.formats, images, network.target)
    assert list(found.outputs) == [layer.name for layer in network.graph.layers]
    assert list(found.weights) == [layer.name for layer in network.graph.layers if layer.weighted]
    assert found.images == small.IMAGES
    for name, tensor in found.outputs.items():
        assert tensor.sqnr is not None and 5 < tensor.sqnr < 70, name
        assert tensor.at_min == 0 and tensor.at_max < 1, name
    for tensor in found.weights.values():
        assert tensor.sqnr is None or tensor.sqnr > 30


def test_few_images_of_large_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _chain(Input("data", (), "data", ((3, 10, 10),)))
    images = np.arange(50, dtype=np.uint8)[:, None, None, None]
    assert len(statistics.sample(graph, images)) == 50
    monkeypatch.setattr(statistics, "MOST_VALUES", 300 * 7)
    picked = statistics.sample(graph, images).ravel()
    assert len(picked) == 7 and (picked[0], picked[-1]) == (0, 49)
