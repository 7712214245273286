# SPDX-License-Identifier: Apache-2.0
"""What quantization did to each layer: saturation, signal-to-quantization-noise ratio, histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from q7.device import DeviceNetwork, IntegerLayer
from q7.engines import FloatNetwork, plain, spread
from q7.graph import Graph
from q7.qformat import INT8_MAX, INT8_MIN, LayerFormats, QFormat, Target

MOST_IMAGES = 500
MOST_VALUES = 50_000_000  # of all layers' outputs for all images at once
LEVELS_PER_BIN = 4
MOST_BINS = 256


@dataclass(frozen=True, eq=False)
class Histogram:
    """Shares of the float and of the device's values, each adding up to 1, in bins of equal width from `low` on."""

    low: float
    width: float
    trained: np.ndarray
    device: np.ndarray


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """A tensor of the device against the float network's.

    `at_min` and `at_max` are the percentages of values that are -128 or 127 on the device, and a step or more beyond in
    float; `sqnr` is in dB, and None where the signal or the noise is zero.
    """

    at_min: float
    at_max: float
    sqnr: float | None
    smallest: float  # of the float values
    largest: float
    histogram: Histogram


def sqnr(signal: np.ndarray, noisy: np.ndarray) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - q)^2), in dB; None where either sum is zero."""
    signal = signal.ravel().astype(np.float64)
    noise = signal - noisy.ravel()
    power, error = float(signal @ signal), float(noise @ noise)
    return 10 * math.log10(power / error) if power > 0 and error > 0 else None


def _histogram(trained: np.ndarray, integers: np.ndarray, q: QFormat) -> Histogram:
    """Bins of a whole number of the device's levels each, so that its grid makes no stripes."""
    step = 2.0**-q.fraction_bits
    low = min(float(trained.min(initial=0)), INT8_MIN * step)
    high = max(float(trained.max(initial=0)), (INT8_MAX + 1) * step)
    bins = math.ceil((high - low) / (LEVELS_PER_BIN * step))
    levels = float(LEVELS_PER_BIN * max(1, -(-bins // MOST_BINS)))
    first, last = math.floor(low / (levels * step)), math.ceil(high / (levels * step))
    edges = ((first + np.arange(last - first + 1)) * levels - 0.5) * step
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts = [np.histogram(values, edges)[0] for values in (trained, q.dequantize(integers))]
    shares = [count / max(count.sum(), 1) for count in counts]
    return Histogram((first * levels - 0.5) * step, levels * step, shares[0], shares[1])


def compare(trained: np.ndarray, integers: np.ndarray, q: QFormat) -> TensorStatistics:
    """int8 values against the float ones that they stand for."""
    step = 2.0**-q.fraction_bits
    return TensorStatistics(
        100 * float(np.mean((integers == INT8_MIN) & (trained <= (INT8_MIN - 1) * step))),
        100 * float(np.mean((integers == INT8_MAX) & (trained >= (INT8_MAX + 1) * step))),
        sqnr(trained, q.dequantize(integers)),
        float(trained.min(initial=0)),
        float(trained.max(initial=0)),
        _histogram(trained, integers, q),
    )


def sample(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Evenly spread images, as many as are looked at."""
    values = sum(math.prod(layer.out_shape) for layer in graph.layers)
    return images[spread(len(images), min(MOST_IMAGES, max(MOST_VALUES // values, 1)))]


def settled(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, str]:
    """For each layer, the last of the layers that follow it alone, element by element, in the same format.

    A convolution's output below zero does not matter where a ReLU follows: what is behind the ReLU does.
    """
    last = {layer.name: layer.name for layer in graph.layers}
    for layer in reversed(graph.layers):
        if layer.elementwise and formats[layer.name].inputs == (formats[layer.name].y,):
            (source,) = layer.inputs
            if sum(source in other.inputs for other in graph.layers) == 1:
                last[source] = last[layer.name]
    return last


@dataclass(frozen=True, eq=False)
class Statistics:
    """By layer: the outputs (behind the activation that follows a layer alone), and the weights of weighted layers."""

    images: int  # that the outputs are from
    outputs: Mapping[str, TensorStatistics]
    weights: Mapping[str, TensorStatistics]

    def plain(self) -> dict[str, dict[str, float | None]]:
        """What the table shows, by layer, as plain values."""
        return {
            name: {"at_min": own.at_min, "at_max": own.at_max, "sqnr": own.sqnr} for name, own in self.outputs.items()
        }


def collect(
    trained: Graph,
    layers: Sequence[IntegerLayer],
    formats: Mapping[str, LayerFormats],
    images: np.ndarray,
    target: Target,
) -> Statistics:
    """Runs both networks on raw images (N, C, H, W); `trained` has the weights that were trained."""
    in_float = FloatNetwork(trained, images).outputs(plain(trained))
    on_device = DeviceNetwork(trained, images, target).outputs(layers)
    outputs, weights = {}, {}
    last = settled(trained, formats)
    for layer, integer in zip(trained.layers, layers):
        own, behind = formats[layer.name], last[layer.name]
        y = formats[behind].y
        assert y
        outputs[layer.name] = compare(in_float[behind], on_device[behind], y)
        if own.w:
            weights[layer.name] = compare(trained.weights[layer.name][0], integer.integers.weights, own.w)
    return Statistics(len(images), outputs, weights)
