# SPDX-License-Identifier: Apache-2.0
"""What quantization did to each layer: saturation, signal-to-quantization-noise ratio, histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_to_cmsis_nn.data.image_set import evenly_spaced
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, OutputQuality, Quality
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

MOST_IMAGES = 500
MOST_VALUES = 50_000_000  # of all layers' outputs for all images at once
LEVELS_PER_BIN = 4
MOST_BINS = 256
CHUNK = 1 << 16  # values that are compared at once: few enough for the cache


@dataclass(frozen=True, eq=False)
class Histogram:
    """Shares of the float and of the device's values, each adding up to 1, in bins of equal width from `low` on."""

    low: float
    width: float
    trained: np.ndarray
    device: np.ndarray


@dataclass(frozen=True, eq=False)
class TensorStatistics(Quality):
    """A tensor of the device against the float network's.

    Saturated is what is the least or the most on the device (-128 or 127), and a step or more beyond in float.
    """

    smallest: float  # of the float values
    largest: float
    histogram: Histogram


def _decibels(power: float, error: float) -> float | None:
    return round(10 * math.log10(power / error), 6) if power > 0 and error > 0 else None


def _bins(low: float, high: float, q: QFormat) -> tuple[int, int, int]:
    """Index of the first bin, number and width of bins from low to high, all in steps of the device.

    They have a whole number of its levels each, so that its grid makes no stripes; of few levels, one.
    """
    low, high = min(low, q.least), max(high, q.most + 1)
    levels = LEVELS_PER_BIN if q.bits == 8 else 1
    width = levels * max(1, -(-math.ceil((high - low) / levels) // MOST_BINS))
    first = math.floor(low / width)
    return first, math.ceil(high / width) - first, width


def compare(trained: np.ndarray, integers: np.ndarray, q: QFormat) -> TensorStatistics:
    """Integers against the float values that they stand for; the ratio is 10 log10(sum x^2 / sum (x - q)^2)."""
    smallest, largest = float(trained.min(initial=0)), float(trained.max(initial=0))
    low, high = q.scaled(np.array([smallest, largest])).tolist()
    first, count, width = _bins(low, high, q)
    every_level = np.arange(q.least, q.most + 1)
    power = error = 0.0
    at_min = at_max = 0
    in_float, on_device = np.zeros(count), np.zeros(len(every_level))

    def bin_of(values: np.ndarray) -> np.ndarray:
        return np.clip(np.floor((values + 0.5) / width) - first, 0, count - 1).astype(np.intp)

    for i in range(0, trained.size, CHUNK):
        x, levels = q.scaled(trained.ravel()[i : i + CHUNK]), integers.ravel()[i : i + CHUNK]
        noise = x - levels
        # Not as dot products, which several threads add up in another order.
        power, error = power + float(np.square(x).sum()), error + float(np.square(noise).sum())
        at_min += int(np.count_nonzero((levels == q.least) & (x <= q.least - 1)))
        at_max += int(np.count_nonzero((levels == q.most) & (x >= q.most + 1)))
        in_float += np.bincount(bin_of(x), minlength=count)
        on_device += np.bincount(levels.astype(np.intp) - q.least, minlength=len(every_level))
    step, total = 2.0**-q.fraction_bits, max(trained.size, 1)
    shares = in_float / total, np.bincount(bin_of(every_level), on_device, count) / total
    histogram = Histogram((first * width - 0.5) * step, width * step, *shares)
    return TensorStatistics(
        at_min=100 * at_min / total,
        at_max=100 * at_max / total,
        sqnr=_decibels(power, error),
        smallest=smallest,
        largest=largest,
        histogram=histogram,
    )


def output_qualities(
    graph: Graph, formats: Mapping[str, LayerFormats], in_float: np.ndarray, on_device: np.ndarray
) -> dict[str, OutputQuality]:
    """Of each output, from all of them (N, result_size) in float and as the device's integers."""
    qualities = {}
    for (name, trained), integers in zip(graph.split(in_float).items(), graph.split(on_device).values()):
        y = formats[name].y
        assert y
        x, found = trained.astype(np.float64), y.dequantize(integers).astype(np.float64)
        power, error, norms = np.square(x).sum(), np.square(x - found).sum(), np.square(found).sum() ** 0.5
        cosine = round(float((x * found).sum() / (power**0.5 * norms)), 9) if power and norms else None
        qualities[name] = OutputQuality(_decibels(power, error), cosine)
    return qualities


def sample(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Evenly spread images, as many as are looked at."""
    values = sum(layer.out_size for layer in graph.layers)
    return images[evenly_spaced(len(images), min(MOST_IMAGES, max(MOST_VALUES // values, 1)))]


def measured_after(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, str]:
    """For each layer, the last of the layers that follow it alone, element by element, in the same format.

    A convolution's output below zero does not matter where a ReLU follows: what comes after the ReLU does.
    """
    last = {layer.name: layer.name for layer in graph.layers}
    readers = Counter(name for layer in graph.layers for name in {*layer.inputs})
    for layer in reversed(graph.layers):
        if layer.elementwise and formats[layer.name].inputs == (formats[layer.name].y,):
            (source,) = layer.inputs
            if readers[source] == 1:
                last[source] = last[layer.name]
    return last


@dataclass(frozen=True, eq=False)
class Statistics:
    """By layer: the outputs (after the activation that follows a layer alone), and the weights of weighted layers."""

    images: int  # that the outputs are from
    outputs: Mapping[str, TensorStatistics]
    weights: Mapping[str, TensorStatistics]

    def qualities(self) -> dict[str, Quality]:
        """What the table shows, by layer."""
        return {name: Quality(own.at_min, own.at_max, own.sqnr) for name, own in self.outputs.items()}


def collect(
    trained: Graph,
    layers: Sequence[IntegerLayer],
    formats: Mapping[str, LayerFormats],
    images: np.ndarray,
    target: Target,
) -> Statistics:
    """Runs both networks on raw images (N, C, H, W); `trained` has the weights that were trained."""
    in_float = FloatNetwork(trained, images).outputs(as_trained(trained))
    on_device = DeviceNetwork(trained, images, target).outputs(layers)
    outputs, weights = {}, {}
    last = measured_after(trained, formats)
    for layer, integer in zip(trained.layers, layers):
        own, after = formats[layer.name], last[layer.name]
        y = formats[after].y
        assert y
        outputs[layer.name] = compare(in_float[after], on_device[after], y)
        if own.w:
            weights[layer.name] = compare(trained.weights[layer.name][0], integer.integers.weights, own.w)
    return Statistics(len(images), outputs, weights)
