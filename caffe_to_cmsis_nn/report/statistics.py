# SPDX-License-Identifier: Apache-2.0
"""The effect of quantization on each layer: saturation, signal-to-quantization-noise ratio, histograms."""

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
MOST_VALUES = 50_000_000  # in all layers' outputs for all images
LEVELS_PER_BIN = 4
MOST_BINS = 256
CHUNK = 1 << 16  # values to compare at once; few enough for the cache


@dataclass(frozen=True, eq=False)
class Histogram:
    """Shares of the float and device values, each adding up to 1, in bins of equal width from `low` on."""

    low: float
    width: float
    trained: np.ndarray
    device: np.ndarray


@dataclass(frozen=True, eq=False)
class TensorStatistics(Quality):
    """A tensor on the device compared with the float network's.

    A value counts as saturated if it is -128 or 127 on the device, and at least one step beyond that in float.
    """

    smallest: float  # of the float values
    largest: float
    histogram: Histogram


def _decibels(power: float, error: float) -> float | None:
    return round(10 * math.log10(power / error), 6) if power > 0 and error > 0 else None


def _bins(low: float, high: float, q: QFormat) -> tuple[int, int, int]:
    """The index of the first bin, and number and width of bins from low to high, all in steps of the format.

    Each bin covers the same number of levels (one for 4-bit formats), so that the grid does not cause stripes.
    """
    low, high = min(low, q.least), max(high, q.most + 1)
    levels = LEVELS_PER_BIN if q.bits == 8 else 1
    width = levels * max(1, -(-math.ceil((high - low) / levels) // MOST_BINS))
    first = math.floor(low / width)
    return first, math.ceil(high / width) - first, width


def compare(trained: np.ndarray, integers: np.ndarray, q: QFormat) -> TensorStatistics:
    """Compares integers with the float values that they approximate; the SQNR is 10 log10(sum x^2 / sum (x - q)^2)."""
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
        # Not dot products, since several threads add these up in varying order.
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
    """The quality of each output, from the results (N, result_size) in float and as the device's integers."""
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
    """Evenly spaced images for statistics, limited by memory."""
    values = sum(layer.out_size for layer in graph.layers)
    return images[evenly_spaced(len(images), min(MOST_IMAGES, max(MOST_VALUES // values, 1)))]


def measured_after(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, str]:
    """For each layer, the layer to measure its output after: the last elementwise one that follows in the same format.

    For example, negative outputs of a convolution do not matter if a ReLU follows, so they are measured after it.
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
    """By layer: statistics of outputs (see `measured_after`), and of weights."""

    images: int  # used for outputs
    outputs: Mapping[str, TensorStatistics]
    weights: Mapping[str, TensorStatistics]

    def qualities(self) -> dict[str, Quality]:
        """The part that the printed table shows, by layer."""
        return {name: Quality(own.at_min, own.at_max, own.sqnr) for name, own in self.outputs.items()}


def collect(
    trained: Graph,
    layers: Sequence[IntegerLayer],
    formats: Mapping[str, LayerFormats],
    images: np.ndarray,
    target: Target,
) -> Statistics:
    """Runs both networks on raw images (N, C, H, W); `trained` has the trained weights."""
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
