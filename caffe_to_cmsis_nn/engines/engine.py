# SPDX-License-Identifier: Apache-2.0
"""A network over a set of images: runs layer ranges on onnxruntime, and trials that share their first layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx
import onnxruntime

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.engines.batches import BATCH, LARGE_BATCH, BatchRunner, Run, Use, Values, cores
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer

MEMORY_SHARES = 4  # equal parts of it: images and weight fitting take one each
CPU = ("CPUExecutionProvider",)
GPU = "CUDAExecutionProvider"
Layers = Sequence[Layer]
Settings = Sequence[Any]  # how each layer behaves, in network order; hashable
N = TypeVar("N", bound="Network")


class NotFinite(UserError):
    """A layer's output for one image (its index) holds NaN or infinity."""

    def __init__(self, layer: Layer, image: int) -> None:
        super().__init__(
            f"layer '{layer.name}' ({layer.caffe_type}): its output for image {image} (counted from 0) is NaN or "
            "infinite, and has no Q-format: change the layer's parameters, or leave that image out"
        )
        self.layer, self.image = layer, image

    def among(self, indices: np.ndarray) -> NotFinite:
        """The same where the images were those at these indices of others."""
        return NotFinite(self.layer, int(indices[self.image]))


def providers(gpu: bool) -> Sequence[str]:
    """onnxruntime's execution providers; raises UserError if a GPU is requested but not usable."""
    if not gpu:
        return CPU
    if GPU not in onnxruntime.get_available_providers():
        raise UserError("--gpu needs onnxruntime with CUDA: pip install onnxruntime-gpu, and a CUDA driver")
    return (GPU, *CPU)


class Network:
    """A network and its images (N, C, H, W) uint8; a setting per layer determines how the layer is computed.

    `memory` (bytes) limits what is kept between trials.
    """

    stored: ClassVar[Any]  # the type of layer outputs between runs
    exact: ClassVar[
        bool
    ]  # integer arithmetic; else layers are not fused, so values do not depend on where a run starts

    def __init__(self, graph: Graph, images: Any, providers: Sequence[str] = CPU, memory: int = choices.MEMORY) -> None:
        self.graph = graph
        self.images = images
        self.providers = providers
        self.memory = memory
        self.batches = BatchRunner(LARGE_BATCH, 1) if GPU in providers else BatchRunner(BATCH, cores())
        self._runners: dict[tuple[Any, ...], Run] = {}  # only the latest

    def part(self: N, images: Any) -> N:
        """The same network over some of its images, with a proportional part of the memory."""
        part = copy.copy(self)
        part.images = images
        part.memory = self.memory * len(images) // len(self.images)
        return part

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: Any) -> str:
        """Adds one layer to a graph; values are float32."""
        raise NotImplementedError

    def to_onnx(self, settings: Settings) -> bytes:
        """An ONNX model of the whole network, checked by ONNX's checker.

        The input is `pixels` (N, C, H, W) uint8, or float `features`. A classifier's output is `logits` (N, classes) in
        the type `stored`; other networks' outputs have their layers' names and shapes. Nodes are named after layers.
        """
        g = OnnxGraph()
        data = self.graph.input
        what = g.input("features" if data.features else "pixels", data.stored, data.out_shape)
        names, _ = self._add_layers(g, 0, settings, {data.name: g.cast(what, np.float32)})
        for layer in self.graph.layers:
            g.label(names[layer.name], layer.name)
        outputs = self.graph.output_layers
        results = [g.cast(names[layer.name], self.stored) for layer in outputs]
        if self.graph.classifier:
            g.result(g.add("Flatten", *results), "logits", self.stored, [self.graph.result_size])
        else:
            for layer, result in zip(outputs, results):
                g.result(result, layer.name, self.stored, layer.out_shape)
        model = g.model(
            self.graph.name or "network",
            producer_name="caffe-to-cmsis-nn",
            producer_version=caffe_to_cmsis_nn.__version__,
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _add_layers(
        self, g: OnnxGraph, first: int, settings: Settings, known: Mapping[str, str], watched: Layers = ()
    ) -> tuple[dict[str, str], list[str]]:
        """Adds layers from index `first` on; returns the values of all outputs, and the watched values.

        `known` has the values of earlier layers; for the input layer, the pixels. Watched values are added right after
        their layers, so that onnxruntime can free the outputs.
        """
        names, seen = dict(known), []
        for layer, setting in zip(self.graph.layers[first:], settings):
            xs = [names[name] for name in layer.inputs] or [names[layer.name]]
            names[layer.name] = self.build(g, layer, xs, setting)
            if layer in watched:
                seen += self.watch(g, layer, names[layer.name])
        return names, seen

    def watch(self, g: OnnxGraph, layer: Layer, value: str) -> list[str]:
        """What is seen of an output that is watched: its smallest and its largest value.

        Both are NaN where one value is NaN or infinite: onnxruntime's minimum and maximum pass over NaN.
        """
        nothing = g.add("ReduceSum", g.add("Mul", value, np.array(0, np.float32)), keepdims=0)
        return [g.add("Add", g.add(op, value, keepdims=0), nothing) for op in ("ReduceMin", "ReduceMax")]

    def runner(self, first: int, settings: Settings, outputs: Layers, watched: Layers = ()) -> Run:
        """A function that runs one layer per setting, from index `first` on.

        It takes the live outputs at `first`, and returns those of `outputs`, followed by the watched values (`watch`).
        """
        g = OnnxGraph()
        known = {
            layer.name: g.cast(g.input(f"in_{layer.name}", self.stored, layer.out_shape), np.float32)
            for layer in self.graph.live(first)
        }
        if first == 0:
            data = self.graph.input
            known[data.name] = g.cast(g.input(f"in_{data.name}", data.stored, data.out_shape), np.float32)
        names, seen = self._add_layers(g, first, settings, known, watched)
        for value in [*(g.cast(names[layer.name], self.stored) for layer in outputs), *seen]:
            g.output(value)
        session = g.session(self.providers, fused=self.exact)
        return lambda batch: session.run(None, {f"in_{name}": values for name, values in batch.items()})

    def run(
        self, first: int, inputs: Values, settings: Settings, outputs: Layers, use: Use, watched: Layers = ()
    ) -> None:
        """Runs layers in batches, and calls `use` with the results of each, from several threads; keeps nothing."""
        key = first, tuple(settings), tuple(outputs), tuple(watched)
        if key not in self._runners:  # consecutive parts of the images share a runner
            self._runners.clear()
            self._runners[key] = self.runner(*key)
        layers = self.graph.layers[first : first + len(settings)]
        at_work = max(layer.out_size + sum(math.prod(shape) for shape in layer.in_shapes) for layer in layers)
        alive = sum(layer.out_size for layer in outputs)
        self.batches.run(self._runners[key], inputs, len(self.images), 4 * max(at_work, alive), use)

    def start(self) -> Values:
        """The inputs for `advance` at the first layer."""
        return {self.graph.input.name: self.images}

    def _room(self, layers: Layers) -> Values:
        return {layer.name: np.empty((len(self.images), *layer.out_shape), self.stored) for layer in layers}

    def advance(self, first: int, inputs: Values, settings: Settings, filled: Values | None = None) -> Values:
        """Runs one layer per setting, from the live outputs at `first` to those live at the end, or in `filled`."""
        results = self._room(self.graph.live(first + len(settings))) if filled is None else filled
        outputs = [layer for layer in self.graph.layers if layer.name in results]

        def store(some: slice, found: Sequence[np.ndarray]) -> None:
            for layer, values in zip(outputs, found):
                results[layer.name][some] = values

        self.run(first, inputs, settings, outputs, store)
        return results

    def outputs(self, settings: Settings) -> Values:
        """Every layer's output by name, (N, C, H, W) or (N, features), in the type that this network stores."""
        return self.advance(0, self.start(), settings, self._room(self.graph.layers))

    def logits(self, settings: Settings) -> np.ndarray:
        """The network's outputs (`Graph.join`), (N, classes) of a classifier, in the type that this network stores."""
        return self.logits_from(0, self.start(), settings)

    def logits_from(self, first: int, inputs: Values, settings: Settings) -> np.ndarray:
        """`logits` from layer `first` on, with its inputs."""
        made = [layer for layer in self.graph.output_layers if first == 0 or layer.name not in inputs]
        outputs = self.advance(first, inputs, settings, self._room(made))
        return self.graph.join({**inputs, **outputs})

    def survey(self, settings: Settings, names: Container[str] | None = None) -> tuple[np.ndarray, Values]:
        """Logits, and the (minimum, maximum) over all images of each layer's output, or of those named.

        Raises NotFinite for the first of these layers with an output that is not finite.
        """
        layers = [layer for layer in self.graph.layers if names is None or layer.name in names]
        logits = np.empty((len(self.images), self.graph.result_size), self.stored)
        outputs, ends, strange = self.graph.output_layers, list[Sequence[np.ndarray]](), list[slice]()

        def see(some: slice, found: Sequence[np.ndarray]) -> None:
            logits[some] = self.graph.join(dict(zip(self.graph.outputs, found)))
            ends.append(found[len(outputs) :])
            if not np.isfinite(ends[-1]).all():
                strange.append(some)

        self.run(0, self.start(), settings, outputs, see, layers)
        for some in sorted(strange, key=lambda one: one.start):
            values = self.part(self.images[some]).outputs(settings)
            for layer in layers:
                finite = np.isfinite(values[layer.name]).reshape(len(values[layer.name]), -1).all(axis=1)
                if not finite.all():
                    raise NotFinite(layer, some.start + int(np.argmin(finite)))
        low, high = np.array(ends)[:, ::2].min(axis=0), np.array(ends)[:, 1::2].max(axis=0)
        return logits, {layer.name: np.array(pair) for layer, *pair in zip(layers, low, high)}
