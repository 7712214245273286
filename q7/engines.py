# SPDX-License-Identifier: Apache-2.0
"""Runs networks over a set of images, layer range by layer range, on onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from q7.errors import Q7Error
from q7.graph import Graph
from q7.layers import Layer
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX, INT8_MIN, QFormat

BATCH = 100  # images at once: enough to fill the cores, and few enough for the caches
MEMORY = 1 << 31  # bytes of layers' outputs that a search may keep in all
SHARES = 4  # networks whose outputs are kept at the same time, at most
CPU = ("CPUExecutionProvider",)
GPU = "CUDAExecutionProvider"
Values = dict[str, np.ndarray]


def providers(gpu: bool) -> Sequence[str]:
    """onnxruntime's names of what runs the network; raises Q7Error where a GPU is asked for and cannot be used."""
    if not gpu:
        return CPU
    if GPU not in onnxruntime.get_available_providers():
        raise Q7Error("--gpu needs onnxruntime with CUDA: pip install onnxruntime-gpu, and a CUDA driver")
    return (GPU, *CPU)


class Network:
    """A network and its images (N, C, H, W) uint8; each layer behaves as its setting says.

    Evaluations that share their first settings share their first layers. Each goes on from outputs that were kept of
    an earlier one, and keeps those that enter the layer behind the first whose setting changed, where the next one is
    likely to differ, unless they are larger than a share of `memory` (bytes).
    """

    stored: ClassVar[Any]  # how layers' outputs are kept between evaluations

    def __init__(self, graph: Graph, images: np.ndarray, providers: Sequence[str] = CPU, memory: int = MEMORY) -> None:
        self.graph = graph
        self.images = images
        self.providers = providers
        self.memory = memory
        self._settings: Sequence[Hashable] = ()
        self._logits: np.ndarray = np.empty(0)
        self._kept = self._ahead = (0, self.start())  # what enters layers with that index and behind, before and now
        self._slabs = [np.empty(0, self.stored)] * 2  # what the two lie in

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: Any) -> str:
        """Adds one layer to a graph; values are float32."""
        raise NotImplementedError

    def runner(
        self, first: int, last: int, settings: Sequence[Any], outputs: Sequence[Layer], ranges: bool
    ) -> Callable[[Values], Sequence[np.ndarray]]:
        """What runs layers first to last - 1 on a batch: takes the outputs live at `first`, gives those of `outputs`.

        With `ranges` it gives, for each of `outputs`, the smallest and then the largest value.
        """
        g, names = OnnxGraph(), {}
        for layer in self.graph.live(first):
            names[layer.name] = g.cast(g.input(layer.name, self.stored, layer.out_shape), np.float32)
        for layer, setting in zip(self.graph.layers[first:last], settings[first:last]):
            xs = [names[name] for name in layer.inputs]
            if not xs:
                xs = [g.cast(g.input(layer.name, np.uint8, layer.out_shape), np.float32)]
            names[layer.name] = self.build(g, layer, xs, setting)
        for layer in outputs:
            if ranges:
                for op in ("ReduceMin", "ReduceMax"):
                    g.output(g.add(op, names[layer.name], keepdims=0))
            else:
                g.output(g.cast(names[layer.name], self.stored))
        session = g.session(self.providers)
        return lambda batch: session.run(None, {f"in_{name}": values for name, values in batch.items()})

    def advance(
        self,
        first: int,
        last: int,
        inputs: Values,
        settings: Sequence[Any],
        ranges: bool = False,
        every: bool = False,
        also: Values | None = None,
    ) -> Values:
        """Layers first to last - 1: from the outputs live at `first` to those live at `last`, or `every` one's.

        `also` has arrays to fill with other layers' outputs.

        With `ranges`, instead the smallest and the largest value of each of these layers' outputs.
        """
        outputs = list(self.graph.layers[first:last] if ranges or every else self.graph.live(last))
        results = dict(also or {})
        outputs += [layer for layer in self.graph.layers if layer.name in results and layer not in outputs]
        run = self.runner(first, last, settings, outputs, ranges)
        count = len(self.images)
        if ranges:
            batches = np.array([run(_cut(inputs, i)) for i in range(0, count, BATCH)])
            for n, layer in enumerate(outputs):
                results[layer.name] = np.array([batches[:, 2 * n].min(), batches[:, 2 * n + 1].max()])
            return results
        for layer in outputs:
            results.setdefault(layer.name, np.empty((count, *layer.out_shape), self.stored))
        for i in range(0, count, BATCH):
            for layer, values in zip(outputs, run(_cut(inputs, i))):
                results[layer.name][i : i + BATCH] = values
        return results

    def start(self) -> Values:
        """What `advance` takes at the first layer."""
        return {self.graph.input.name: self.images}

    def _to_keep(self, changed: int) -> tuple[int, Values] | None:
        """Where the next evaluation is likely to differ, and arrays for what enters there; None where too large.

        They lie in memory that was used before: to get fresh memory takes longer than to compute what goes in.
        """
        layers = self.graph.layers
        position = next((i for i in range(changed + 1, len(layers)) if layers[i].weighted or layers[i].own_format), 0)
        live = self.graph.live(position)
        sizes = [len(self.images) * math.prod(layer.out_shape) for layer in live]
        if not position or sum(sizes) * self._slabs[1].itemsize > self.memory // SHARES:
            return None
        if self._kept[0] == 0:  # both are free: the smallest that is large enough
            self._slabs.sort(key=lambda slab: (len(slab) < sum(sizes), len(slab)), reverse=True)
        if len(self._slabs[1]) < sum(sizes):
            self._slabs[1] = np.empty(0)  # freed before
            self._slabs[1] = np.empty(sum(sizes), self.stored)
        parts = np.split(self._slabs[1], np.cumsum(sizes))
        return position, {layer.name: part.reshape(-1, *layer.out_shape) for layer, part in zip(live, parts)}

    def logits(self, settings: Sequence[Hashable]) -> np.ndarray:
        """The output layer's values, (N, classes), in the type that this network stores."""
        settings = tuple(settings)
        if settings == self._settings:
            return self._logits
        changed = next((i for i, (a, b) in enumerate(zip(settings, self._settings)) if a != b), 0)
        if changed >= self._ahead[0] > self._kept[0]:
            self._kept, self._slabs = self._ahead, self._slabs[::-1]
        if changed < self._kept[0]:
            self._kept = (0, self.start())
        position, inputs = self._kept
        ahead = self._to_keep(changed)
        outputs = self.advance(position, len(settings), inputs, settings, also=ahead[1] if ahead else None)
        self._ahead = ahead or self._kept
        self._settings = settings
        self._logits = outputs[self.graph.output.name].reshape(len(self.images), -1)
        return self._logits

    def outputs(self, settings: Sequence[Hashable]) -> Values:
        """Every layer's output by name, (N, C, H, W) or (N, features), in the type that this network stores."""
        return self.advance(0, len(settings), self.start(), settings, every=True)

    def ranges(self, settings: Sequence[Hashable]) -> Mapping[str, np.ndarray]:
        """(smallest, largest) value of every layer's output over all images."""
        return self.advance(0, len(settings), self.start(), settings, ranges=True)


def _cut(inputs: Values, start: int) -> Values:
    return {name: values[start : start + BATCH] for name, values in inputs.items()}


@dataclass(frozen=True)
class Grid:
    """Float values on a Q-format's grid; `clip` to what 8 bits hold."""

    format: QFormat
    clip: bool = True

    def round(self, values: np.ndarray) -> np.ndarray:
        """Half to even."""
        scaled = np.rint(self.format.scaled(values))
        scaled = np.clip(scaled, INT8_MIN, INT8_MAX) if self.clip else scaled
        return np.ldexp(scaled, -self.format.fraction_bits).astype(np.float32)

    def floor(self, g: OnnxGraph, x: str) -> str:
        """Toward minus infinity, in a graph."""
        x = g.add("Floor", g.scale(x, 2.0**self.format.fraction_bits))
        x = g.clip(x, INT8_MIN, INT8_MAX) if self.clip else x
        return g.scale(x, 2.0**-self.format.fraction_bits)


@dataclass(frozen=True)
class Simulation:
    """A layer's setting in the float network: which of its tensors are put on a grid."""

    w: Grid | None = None
    b: Grid | None = None
    y: Grid | None = None


def plain(graph: Graph) -> list[Simulation]:
    """Settings of the float network as it was trained."""
    return [Simulation()] * len(graph.layers)


class FloatNetwork(Network):
    """The network as Caffe computes it, with any tensor put on a grid: the original's simulation of 8 bits."""

    stored = np.float32

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: Simulation) -> str:
        weights = self.graph.weights.get(layer.name)
        if weights:
            w, b = weights
            weights = (setting.w.round(w) if setting.w else w, setting.b.round(b) if setting.b else b)
        y = layer.build_float(g, xs, weights)
        return setting.y.floor(g, y) if setting.y else y


def spread(count: int, most: int) -> np.ndarray:
    """Indices of at most so many of `count` images, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def accuracy_caffe(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose true class is strictly above all others, as Caffe 1.0's Accuracy layer counts."""
    rows = np.arange(len(labels))
    true = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = np.finfo(logits.dtype).min if logits.dtype.kind == "f" else np.iinfo(logits.dtype).min
    return 100 * float(np.mean(true > others.max(axis=1)))


def accuracy_first(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose true class is the first of the largest, as the firmware's argmax has it."""
    return 100 * float(np.mean(logits.argmax(axis=1) == labels))
