# SPDX-License-Identifier: Apache-2.0
"""The sweep for deep networks: a format is judged by what its own layer gives, and by nothing after it.

A trial against the logits runs all layers after its own, so that such a sweep grows with the square of the depth. Here
each layer is gone through once, in network order: what enters it on the device, from layers whose formats are settled,
goes through the layer in the formats tried, and the squared error of its output against the float network's decides
(layer-wise reconstruction, as in AdaRound, Nagel et al. 2020, https://arxiv.org/abs/2004.10568). No labels are looked
at.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from q7.data.image_set import pick, spread
from q7.engines.batches import Values
from q7.engines.engine import Network
from q7.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from q7.layers.base import Layer
from q7.network.graph import Graph
from q7.network.quantized import quantize_layer
from q7.qformat import LayerFormats
from q7.search import common
from q7.search.common import Choices, Score, Tensor, Trial
from q7.target import Target

DEEP = 32  # layers with weights, beyond which logits judge too slowly: their sweep took 45 float passes for 56 layers
IMAGES = 500
MOST_BYTES = 1 << 28  # of outputs that are alive: fewer images where these are large
ROUNDS = 2  # over a layer's tensors, since the best format of one depends on those of the others
CLEARLY = 0.995  # of the squared error, which a format must come below


def is_deep(graph: Graph) -> bool:
    """Whether formats are to be judged layer by layer."""
    return sum(layer.weighted for layer in graph.layers) > DEEP


def _images(graph: Graph) -> int:
    """How many judge, whatever the memory: the formats must not depend on it."""
    alive = max(sum(layer.out_size for layer in graph.live(stop)) for stop in range(1, len(graph.layers) + 1))
    return max(1, min(IMAGES, MOST_BYTES // (alive * (np.dtype(np.float32).itemsize + 1))))


def sections(graph: Graph) -> Iterator[tuple[int, tuple[Layer, ...]]]:
    """Each layer with a format of its own, and those right after it that take it over: their indices begin with it."""
    start = 0
    while start < len(graph.layers):
        stop = start + 1
        while stop < len(graph.layers) and _takes_over(graph.layers[stop], graph.layers[stop - 1]):
            stop += 1
        yield start, graph.layers[start:stop]
        start = stop


def _takes_over(layer: Layer, before: Layer) -> bool:
    return not layer.own_format and layer.inputs == (before.name,)


class _Pair:
    """The float network's and the device's outputs that are alive before a section."""

    def __init__(self, graph: Graph, images: Any, target: Target) -> None:
        self._graph, self._target = graph, target
        self._networks: tuple[Network, Network] = FloatNetwork(graph, images), DeviceNetwork(graph, images, target)
        self._alive = tuple(network.start() for network in self._networks)
        self._trained = as_trained(graph)

    def enter(self, first: int, layers: Sequence[Layer]) -> None:
        """Goes on to the section that begins with layer `first`."""
        self._first, self._layers = first, layers
        self._float = self._run(0, self._trained[: len(layers)])
        wanted = self._float[layers[-1].name].astype(np.float64)
        self._wanted, self._power = wanted, float(np.square(wanted).mean()) or 1.0

    def error(self, formats: Mapping[str, LayerFormats]) -> float:
        """The squared error of the section's output, relative to its mean square, to 6 digits as all records."""
        settings = [
            quantize_layer(layer, self._graph.weights.get(layer.name), formats[layer.name], self._target)
            for layer in self._layers
        ]
        self._device = self._run(1, settings)
        end = self._layers[-1].name
        y = formats[end].y
        assert y
        off = np.ldexp(self._device[end].astype(np.float64), -y.fraction_bits) - self._wanted
        return float(f"{np.square(off).mean() / self._power:.6g}")

    def keep(self) -> None:
        """Settles on the formats that `error` was asked about last."""
        self._kept = self._device

    def leave(self) -> None:
        """Goes on behind the section, in the formats kept."""
        names = {layer.name for layer in self._graph.live(self._first + len(self._layers))}
        both = self._float, self._kept
        self._alive = tuple({name: values for name, values in each.items() if name in names} for each in both)

    def _run(self, which: int, settings: Sequence[Any]) -> Values:
        network, stop = self._networks[which], self._first + len(settings)
        wanted = {layer.name: layer for layer in (*self._graph.live(stop), self._layers[-1])}
        room = {
            name: np.empty((len(network.images), *layer.out_shape), network.stored) for name, layer in wanted.items()
        }
        return network.advance(self._first, self._alive[which], settings, room)


class _Sweep:
    """The formats so far."""

    def __init__(self, graph: Graph, images: Any, target: Target, choices: Choices) -> None:
        self._graph, self._images, self._choices = graph, len(images), dict(choices)
        self._pair = _Pair(graph, images, target)
        self.formats = common.table(graph, choices)

    def section(self, first: int, layers: Sequence[Layer]) -> Generator[Trial, None, None]:
        """Finds the formats of the section that begins with layer `first`."""
        self._settled = self._graph.layers[:first]
        self._pair.enter(first, layers)
        self._error = self._pair.error(self.formats)
        self._pair.keep()
        keys = [(layers[0].name, tensor) for tensor in Tensor]
        for _ in range(ROUNDS):
            before = dict(self._choices)
            for key in filter(self._choices.__contains__, keys):
                yield from self._tensor(key)
            if self._choices == before:
                break
        self._pair.leave()

    def _tensor(self, key: tuple[str, Tensor]) -> Generator[Trial, None, None]:
        start = self._choices[key]
        for step in (1, -1):
            while (yield from self._step(key, step)):
                pass
            if self._choices[key] != start:
                break

    def _step(self, key: tuple[str, Tensor], step: int) -> Generator[Trial, None, bool]:
        """Tries a format that is so many bits finer; says whether it is kept."""
        q = self._choices[key].finer(step)
        tried = common.table(self._graph, {**self._choices, key: q})
        if tried == self.formats or any(tried[layer.name] != self.formats[layer.name] for layer in self._settled):
            return False  # the kernels cannot carry it
        before, found = self._error, self._pair.error(tried)
        kept = found < CLEARLY * before
        name, tensor = key
        scores = [Score(None, error, self._images) for error in (found, before)]
        yield Trial(name, tensor, q, scores[0], scores[1], kept, reason=_reason(found, before))
        if kept:
            self._pair.keep()
            self._error, self.formats, self._choices[key] = found, tried, q
        return kept


def layer_by_layer(
    graph: Graph, reference: FloatNetwork, target: Target, choices: Choices
) -> Generator[Trial, None, dict[str, LayerFormats]]:
    """Moves one format of a layer at a time, finer or else coarser, for as long as its output gets clearly closer.

    `choices` are the formats to start from. Costs about as much as one pass of the float network over 10,000 images,
    at any depth.
    """
    images = pick(reference.images, spread(len(reference.images), _images(graph)))
    sweep = _Sweep(graph, images, target, choices)
    for first, layers in sections(graph):
        yield from sweep.section(first, layers)
    return sweep.formats


def _reason(found: float, before: float) -> str:
    change = (found - before) / (before or 1.0)
    return f"squared error of the layer's output {abs(change):.1%} {'higher' if change > 0 else 'lower'}"
