# SPDX-License-Identifier: Apache-2.0
"""Runs networks over a set of images, layer range by layer range, on onnxruntime.

Each core runs batches of its own: to split the work within every layer instead has the cores wait for each other.
"""

from __future__ import annotations

import copy
import math
import os
from collections import deque
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnxruntime

from q7.errors import Q7Error
from q7.layers.base import Layer
from q7.network.graph import Graph
from q7.onnx_graph import OnnxGraph

BATCH = 25  # images that a core runs at once: few enough for its cache
LARGE_BATCH = 100  # images at once where cores do not share the work
AT_ONCE = 1 << 25  # bytes of layers' outputs that are alive in the batches of all cores
MEMORY = 1 << 31  # bytes of layers' outputs that a search may keep in all
SHARES = 4  # networks whose outputs are kept at the same time, at most
CPU = ("CPUExecutionProvider",)
GPU = "CUDAExecutionProvider"
Values = dict[str, np.ndarray]
N = TypeVar("N", bound="Network")


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def providers(gpu: bool) -> Sequence[str]:
    """onnxruntime's names of what runs the network; raises Q7Error where a GPU is asked for and cannot be used."""
    if not gpu:
        return CPU
    if GPU not in onnxruntime.get_available_providers():
        raise Q7Error("--gpu needs onnxruntime with CUDA: pip install onnxruntime-gpu, and a CUDA driver")
    return (GPU, *CPU)


def _first_change(before: Sequence[Hashable], now: Sequence[Hashable]) -> int:
    """Index of the first layer whose setting is another, 0 where nothing was before."""
    return next((i for i, (a, b) in enumerate(zip(now, before)) if a != b), 0)


Run = Callable[[Values], Sequence[np.ndarray]]
Use = Callable[[slice, Sequence[np.ndarray]], None]  # takes which images, and what a run gave for them


class _Recent:
    """What was last, for whichever part of the images."""

    def __init__(self) -> None:
        self._settings: Sequence[Hashable] = ()
        self._changed = 0
        self._runner: tuple[Hashable, Run | None] = None, None

    def runner(self, key: Hashable, make: Callable[[], Run]) -> Run:
        """The last one, if it has this key."""
        if key != self._runner[0] or not self._runner[1]:
            self._runner = key, make()
        assert self._runner[1]
        return self._runner[1]

    def change(self, settings: Sequence[Hashable]) -> int:
        """Where the trial under way differs from the one before it."""
        if settings != self._settings:
            self._changed = _first_change(self._settings, settings)
            self._settings = settings
        return self._changed


class Network:
    """A network and its images (N, C, H, W) uint8; each layer behaves as its setting says.

    Trials that share their first settings share their first layers. Each goes on from outputs that were kept of an
    earlier one, and keeps those that enter a layer where the next one is likely to differ, unless they are larger than
    a share of `memory` (bytes).
    """

    stored: ClassVar[Any]  # how layers' outputs are kept between evaluations

    def __init__(self, graph: Graph, images: np.ndarray, providers: Sequence[str] = CPU, memory: int = MEMORY) -> None:
        self.graph = graph
        self.providers = providers
        self.batch, self.workers = (LARGE_BATCH, 1) if GPU in providers else (BATCH, threads())
        self._recent = _Recent()
        self._begin(images, memory)

    def _begin(self, images: Any, memory: int) -> None:
        """Nothing is kept yet."""
        self.images = images
        self.memory = memory
        self._settings: Sequence[Hashable] = ()
        self._logits: np.ndarray = np.empty(0)
        self._kept = self._ahead = (0, self.start())  # what enters layers with that index and behind, before and now
        self._slabs = [np.empty(0, self.stored)] * 2  # what the two lie in

    def over(self: N, images: Any) -> N:
        """The same network over some of its images, with their part of the memory; nothing is kept yet.

        The parts of a network take it that trials come to one part after the other.
        """
        part = copy.copy(self)
        part._begin(images, self.memory * len(images) // len(self.images))
        return part

    def know(self, settings: Sequence[Hashable], logits: np.ndarray) -> None:
        """What a trial would give that is likely to be the one before the next."""
        self._settings, self._logits = tuple(settings), logits

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: Any) -> str:
        """Adds one layer to a graph; values are float32."""
        raise NotImplementedError

    def runner(
        self, first: int, last: int, settings: Sequence[Any], outputs: Sequence[Layer], watched: Sequence[Layer] = ()
    ) -> Run:
        """What runs layers first to last - 1 on a batch: takes the outputs live at `first`, gives those of `outputs`.

        And then, for each of `watched`, the smallest and the largest value of its output.
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
            g.output(g.cast(names[layer.name], self.stored))
        for layer in watched:
            for op in ("ReduceMin", "ReduceMax"):
                g.output(g.add(op, names[layer.name], keepdims=0))
        session = g.session(self.providers)
        return lambda batch: session.run(None, {f"in_{name}": values for name, values in batch.items()})

    def _shared_runner(
        self, first: int, last: int, settings: Sequence[Any], outputs: Sequence[Layer], watched: Sequence[Layer] = ()
    ) -> Run:
        """The last one, if it was the same: parts of the images come one after the other."""
        names = tuple(tuple(layer.name for layer in layers) for layers in (outputs, watched))
        key = (first, last, tuple(settings[first:last]), names)
        return self._recent.runner(key, lambda: self.runner(first, last, settings, outputs, watched))

    def advance(
        self,
        first: int,
        last: int,
        inputs: Values,
        settings: Sequence[Any],
        every: bool = False,
        also: Values | None = None,
    ) -> Values:
        """Layers first to last - 1: from the outputs live at `first` to those live at `last`, or `every` one's.

        `also` has arrays to fill with other layers' outputs.
        """
        outputs = list(self.graph.layers[first:last] if every else self.graph.live(last))
        results = dict(also or {})
        outputs += [layer for layer in self.graph.layers if layer.name in results and layer not in outputs]
        for layer in outputs:
            results.setdefault(layer.name, np.empty((len(self.images), *layer.out_shape), self.stored))

        def store(some: slice, found: Sequence[np.ndarray]) -> None:
            for layer, values in zip(outputs, found):
                results[layer.name][some] = values

        self._run(first, last, inputs, settings, outputs, store)
        return results

    def _batch_size(self, layers: Sequence[Layer], alive: Sequence[Layer]) -> int:
        """Images at once: few where the outputs that these layers need, or those that stay alive, are large."""
        at_work = max(layer.out_size + sum(math.prod(shape) for shape in layer.in_shapes) for layer in layers)
        largest = 4 * max(at_work, sum(layer.out_size for layer in alive))
        share = -(-len(self.images) // self.workers)
        return max(1, min(self.batch, share, AT_ONCE // self.workers // largest))

    def _run(
        self,
        first: int,
        last: int,
        inputs: Values,
        settings: Sequence[Any],
        outputs: Sequence[Layer],
        use: Use,
        watched: Sequence[Layer] = (),
    ) -> None:
        """Has `use` take what the runner gives, a batch at a time in each worker's thread."""
        run = self._shared_runner(first, last, settings, outputs, watched)
        layers = self.graph.layers[first:last]
        # Where ranges are asked for, onnxruntime keeps every output alive.
        count = self._batch_size(layers, layers if watched else outputs)

        def work(start: int) -> None:
            some = slice(start, start + count)
            use(some, run({name: values[some] for name, values in inputs.items()}))

        starts = range(0, len(self.images), count)
        if self.workers == 1:  # in this thread, which Caffe has been told to compute on the GPU in
            for start in starts:
                work(start)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            deque(pool.map(work, starts), maxlen=0)

    def show(self, settings: Sequence[Any], layers: Sequence[Layer], use: Use) -> None:
        """Has `use` take the outputs of some layers, a batch at a time and from several threads; none are kept."""
        self._run(0, len(settings), self.start(), settings, layers, use)

    def start(self) -> Values:
        """What `advance` takes at the first layer."""
        return {self.graph.input.name: self.images}

    def _to_keep(self, changed: int) -> tuple[int, Values] | None:
        """Where the next trial is likely to differ, and arrays for what enters there; None where too large.

        That is the next layer, or once more this one, if it took other layers to come here.

        They lie in memory that was used before: to get fresh memory takes longer than to compute what goes in.
        """
        layers = self.graph.layers
        on_the_way = any(layer.weighted for layer in layers[self._kept[0] : changed])
        later = range(changed if on_the_way else changed + 1, len(layers))
        position = next((i for i in later if layers[i].weighted or layers[i].own_format), 0)
        live = self.graph.live(position)
        sizes = [len(self.images) * layer.out_size for layer in live]
        if not position or sum(sizes) * self._slabs[1].itemsize > self.memory // SHARES:
            return None
        if self._kept[0] == 0:  # both are free: the smallest that is large enough
            self._slabs.sort(key=lambda slab: (len(slab) < sum(sizes), len(slab)), reverse=True)
        if len(self._slabs[1]) < sum(sizes):
            self._slabs[1] = np.empty(0)  # freed before
            self._slabs[1] = np.empty(sum(sizes), self.stored)
        parts = np.split(self._slabs[1], np.cumsum(sizes))
        return position, {layer.name: part.reshape(-1, *layer.out_shape) for layer, part in zip(live, parts)}

    def logits(self, settings: Sequence[Any]) -> np.ndarray:
        """The output layer's values, (N, classes), in the type that this network stores."""
        return self._flat(self.advance(0, len(settings), self.start(), settings))

    def _flat(self, outputs: Values) -> np.ndarray:
        return outputs[self.graph.output.name].reshape(len(self.images), -1)

    def trial_logits(self, settings: Sequence[Hashable]) -> np.ndarray:
        """The same, going on from what was kept of earlier trials, and keeping what enters a later layer."""
        settings = tuple(settings)
        if settings == self._settings:
            return self._logits
        changed = _first_change(self._settings, settings)
        if changed >= self._ahead[0] > self._kept[0]:
            self._kept, self._slabs = self._ahead, self._slabs[::-1]
        if changed < self._kept[0]:
            self._kept = (0, self.start())
        position, inputs = self._kept
        ahead = self._to_keep(max(changed, self._recent.change(settings)))
        outputs = self.advance(position, len(settings), inputs, settings, also=ahead[1] if ahead else None)
        self._ahead = ahead or self._kept
        self._settings = settings
        self._logits = self._flat(outputs)
        return self._logits

    def outputs(self, settings: Sequence[Hashable]) -> Values:
        """Every layer's output by name, (N, C, H, W) or (N, features), in the type that this network stores."""
        return self.advance(0, len(settings), self.start(), settings, every=True)

    def survey(
        self, settings: Sequence[Any], names: Container[str] | None = None
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Logits, and (smallest, largest) value over all images of the outputs of every layer, or of those named."""
        layers = [layer for layer in self.graph.layers if names is None or layer.name in names]
        logits = np.empty((len(self.images), self.graph.classes), self.stored)
        ends = []

        def see(some: slice, found: Sequence[np.ndarray]) -> None:
            logits[some] = found[0].reshape(len(found[0]), -1)
            ends.append(found[1:])

        self._run(0, len(settings), self.start(), settings, [self.graph.output], see, layers)
        low, high = np.array(ends)[:, ::2].min(axis=0), np.array(ends)[:, 1::2].max(axis=0)
        return logits, {layer.name: np.array(pair) for layer, *pair in zip(layers, low, high)}
