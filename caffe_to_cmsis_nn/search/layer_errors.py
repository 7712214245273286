# SPDX-License-Identifier: Apache-2.0
"""Searches formats layer by layer: judges a format by the output of its own layer.

Judging by the logits would run all later layers for each trial, so its time would grow with the square of the depth.
Instead, each layer is searched once, in network order. The device's inputs of the layer, with all earlier formats
fixed, run through the layer in the formats to try. The squared error of its output against the float network's decides
(layer-wise reconstruction, as in AdaRound, Nagel et al. 2020, https://arxiv.org/abs/2004.10568). Output channels are
judged separately: if the next layer can compensate, each channel gets the factor with the smallest error
(`caffe_to_cmsis_nn.network.rescaling`). Labels are not used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.data.image_set import evenly_spaced, pick
from caffe_to_cmsis_nn.engines.batches import Values
from caffe_to_cmsis_nn.engines.engine import Network
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, quantize_layer
from caffe_to_cmsis_nn.network.rescaling import compensating_layer, rescaled, scaled
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.search import common
from caffe_to_cmsis_nn.search.common import Candidate, Choices, Score, Tensor, Trial
from caffe_to_cmsis_nn.target import Target

IMAGES = 400
MOST_BYTES = 1 << 28  # of outputs that are alive; limits the number of images
CLEARLY = 0.995  # an improvement must reduce the squared error below this share
FACTORS = (-1, -0.5, 0.5, 1, 1.5, 2), (-0.5, -0.25, 0.25, 0.5)  # log2 of channels' factors to try, for each round
STEPS = (1,), (1, -1)  # fraction bits to add, for each round; the first formats cover all values, so none is coarser
Table = Mapping[str, LayerFormats]


def images_used(graph: Graph) -> int:
    """The number of images to judge by; independent of the memory option, so that results are, too."""
    alive = max(sum(layer.out_size for layer in graph.live(stop)) for stop in range(1, len(graph.layers) + 1))
    return max(1, min(IMAGES, MOST_BYTES // (alive * (np.dtype(np.float32).itemsize + 1))))


def sections(graph: Graph) -> Iterator[tuple[int, tuple[Layer, ...]]]:
    """Splits a graph into sections: a layer with its own format, and the layers right after it that inherit it.

    Yields the index of the first layer, and the layers.
    """
    start = 0
    while start < len(graph.layers):
        stop = start + 1
        while stop < len(graph.layers) and _takes_over(graph.layers[stop], graph.layers[stop - 1]):
            stop += 1
        yield start, graph.layers[start:stop]
        start = stop


def _takes_over(layer: Layer, before: Layer) -> bool:
    return not layer.own_format and layer.inputs == (before.name,)


class LayerErrors:
    """Computes the errors of sections' outputs on the device, one section after the other."""

    def __init__(self, graph: Graph, images: Any, target: Target) -> None:
        """Picks `images_used` of the images (N, C, H, W)."""
        images = pick(images, evenly_spaced(len(images), images_used(graph)))
        self.graph = graph  # with the channel factors of finished sections
        self.images = len(images)
        self._target = target
        self._networks: tuple[Network, Network] = FloatNetwork(graph, images), DeviceNetwork(graph, images, target)
        self._alive = tuple(network.start() for network in self._networks)
        self._trained = as_trained(graph)

    def enter(self, first: int, layers: Sequence[Layer]) -> None:
        """Starts the section that begins with layer `first`."""
        self._first, self._layers = first, layers
        self.compensating_layer = compensating_layer(self.graph, layers)
        self.channels = layers[0].out_shape[0] if self.compensating_layer else 1  # to judge separately
        end = layers[-1]
        self._float = self._run(0, self._trained[: len(layers)], end)
        self._wanted = self._float[end.name].reshape(self.images, self.channels, -1)
        self._power = float(np.square(self._wanted, dtype=np.float64).mean()) or 1.0

    def errors(self, formats: Table, factors: np.ndarray) -> np.ndarray:
        """(C,) the squared errors of the section's output channels, relative to the whole output's mean square.

        `factors` (C,) scale the channels; errors are those after dividing by them.
        """
        end = self._layers[-1]
        y = formats[end.name].y
        assert y
        steps = (2.0**-y.fraction_bits / factors).astype(np.float32)[:, None]
        sums = np.empty((self.images, self.channels))

        def compare(some: slice, outputs: Sequence[np.ndarray]) -> None:
            (integers,) = outputs
            off = integers.reshape(len(integers), self.channels, -1) * steps
            off -= self._wanted[some]
            sums[some] = np.square(off, dtype=np.float64).sum(axis=2)

        self._networks[1].run(self._first, self._alive[1], self._integers(formats, factors), [end], compare)
        return sums.mean(axis=0) / (end.out_size // self.channels * self._power)

    def leave(self, formats: Table, factors: np.ndarray) -> None:
        """Finishes the section with these formats and factors."""
        on_device = self._run(1, self._integers(formats, factors), self._layers[-1])
        if self.compensating_layer and (factors != 1).any():
            self.graph = rescaled(self.graph, self._layers[0], self.compensating_layer, factors)
        names = {layer.name for layer in self.graph.live(self._first + len(self._layers))}
        both = self._float, on_device
        self._alive = tuple({name: values for name, values in each.items() if name in names} for each in both)

    def _integers(self, formats: Table, factors: np.ndarray) -> list[IntegerLayer]:
        weights = {layer.name: self.graph.weights.get(layer.name) for layer in self._layers}
        first = self._layers[0]
        own = weights[first.name]
        if self.compensating_layer and own:
            weights[first.name] = scaled(first, own, factors)
        return [quantize_layer(layer, weights[layer.name], formats[layer.name], self._target) for layer in self._layers]

    def _run(self, which: int, settings: Sequence[Any], end: Layer) -> Values:
        """The section's last output, and all outputs that are live after it."""
        network, stop = self._networks[which], self._first + len(settings)
        wanted = {layer.name: layer for layer in (*self.graph.live(stop), end)}
        room = {name: np.empty((self.images, *layer.out_shape), network.stored) for name, layer in wanted.items()}
        return network.advance(self._first, self._alive[which], settings, room)


class _Sweep:
    """The search and its formats so far."""

    def __init__(self, errors: LayerErrors, choices: Choices) -> None:
        self.errors, self._choices = errors, dict(choices)
        self.formats = common.table(errors.graph, choices)

    def section(self, first: int, layers: Sequence[Layer]) -> Generator[Trial, None, None]:
        """Finds the formats of the section that begins with layer `first`, and its channels' factors."""
        self._settled = self.errors.graph.layers[:first]
        self.errors.enter(first, layers)
        self._factors = np.ones(self.errors.channels)
        self._by_channel = self.errors.errors(self.formats, self._factors)
        keys = [(layers[0].name, tensor) for tensor in Tensor if (layers[0].name, tensor) in self._choices]
        for factors, steps in zip(FACTORS, STEPS):  # two rounds, since the best format of a tensor depends on others
            before = dict(self._choices), self._factors
            for key in keys:
                yield from self._tensor(key, steps)
            if self.errors.compensating_layer:
                self._scale_channels([2.0**power for power in factors])
            if before[0] == self._choices and before[1] is self._factors:
                break
        self.errors.leave(self.formats, self._factors)
        if self.errors.compensating_layer:
            self._cover(self.errors.compensating_layer)

    @property
    def _error(self) -> float:
        """The mean error, rounded to 6 digits, as in all records."""
        return float(f"{self._by_channel.mean():.6g}")

    def _tensor(self, key: tuple[str, Tensor], steps: Sequence[int]) -> Generator[Trial, None, None]:
        start = self._choices[key]
        for step in steps:
            while (yield from self._step(key, step)):
                pass
            if self._choices[key] != start:
                break

    def _with(self, key: tuple[str, Tensor], q: QFormat) -> dict[str, LayerFormats]:
        """The formats with `q` for a tensor; the current ones if that would change finished layers."""
        tried = common.table(self.errors.graph, {**self._choices, key: q})
        moved = any(tried[layer.name] != self.formats[layer.name] for layer in self._settled)
        return self.formats if moved else tried

    def _step(self, key: tuple[str, Tensor], step: int) -> Generator[Trial, None, bool]:
        """Tries a format with `step` more fraction bits; returns whether it is kept."""
        q = self._choices[key].finer(step)
        tried = self._with(key, q)
        if tried == self.formats:
            return False
        before, by_channel = self._error, self._by_channel
        self._by_channel = self.errors.errors(tried, self._factors)
        found = self._error
        kept = found < CLEARLY * before
        name, tensor = key
        scores = [Score(None, error, self.errors.images) for error in (found, before)]
        change = f"{abs(found - before) / (before or 1.0):.1%} {'higher' if found > before else 'lower'}"
        reason = f"squared error of its output {change}"
        yield Trial(layer=name, tensor=tensor, format=q, score=scores[0], reference=scores[1], kept=kept, reason=reason)
        if kept:
            self.formats, self._choices[key] = tried, q
        else:
            self._by_channel = by_channel
        return kept

    def _scale_channels(self, candidates: Sequence[float]) -> None:
        """Gives each channel the factor with the smallest error; channels do not affect each other."""
        factors, errors = self._factors, self._by_channel
        for factor in candidates:
            tried = self.errors.errors(self.formats, factor * self._factors)
            better = tried < CLEARLY * errors
            factors = np.where(better, factor * self._factors, factors)
            errors = np.where(better, tried, errors)
        if (factors != self._factors).any():
            self._factors, self._by_channel = factors, errors

    def _cover(self, layer: Layer) -> None:
        """Resets the compensating layer's weights to the finest format that covers them."""
        key = layer.name, Tensor.WEIGHTS
        q = common.covering(*key, common.largest(self.errors.graph.weights[layer.name][0]))
        tried = self._with(key, q)
        if tried != self.formats:
            self.formats, self._choices[key] = tried, q


def layer_by_layer(errors: LayerErrors, choices: Choices) -> Generator[Trial, None, Candidate]:
    """Makes one format of a layer finer (later also coarser) at a time, while the layer's output clearly improves.

    `choices` are the initial formats. Takes about as long as the float network on 10,000 images, at any depth.
    """
    sweep = _Sweep(errors, choices)
    for first, layers in sections(errors.graph):
        yield from sweep.section(first, layers)
    return Candidate(errors.graph, sweep.formats)
