# SPDX-License-Identifier: Apache-2.0
"""The float network, optionally with quantized tensors, and the integer network, both on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.engines.engine import Network
from caffe_to_cmsis_nn.kernels.base import Bounds
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, QFormat
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True)
class Grid:
    """Rounds float values to a Q-format; with `clip`, to the range of 8 bits."""

    format: QFormat
    clip: bool = True

    def round(self, values: np.ndarray) -> np.ndarray:
        """Rounds half to even."""
        scaled = np.rint(self.format.scaled(values))
        scaled = np.clip(scaled, INT8_MIN, INT8_MAX) if self.clip else scaled
        return self.format.dequantize(scaled)

    def floor(self, g: OnnxGraph, x: str) -> str:
        """Rounds toward minus infinity, in a graph."""
        x = g.add("Floor", g.scale(x, 2.0**self.format.fraction_bits))
        x = g.clip(x, INT8_MIN, INT8_MAX) if self.clip else x
        return g.scale(x, 2.0**-self.format.fraction_bits)


@dataclass(frozen=True)
class Simulation:
    """A layer's setting in the float network: the grids for weights, bias and output."""

    w: Grid | None = None
    b: Grid | None = None
    y: Grid | None = None


def as_trained(graph: Graph) -> list[Simulation]:
    """The settings for the float network as trained."""
    return [Simulation()] * len(graph.layers)


class FloatNetwork(Network):
    """The network as Caffe computes it, with some tensors on grids: the original tool's simulation of 8 bits."""

    stored, exact = np.float32, False

    def trained_logits(self) -> np.ndarray:
        """Those of the network as it was trained; raises NotFinite for any layer where the values are not finite."""
        return self.survey(as_trained(self.graph), {layer.name for layer in self.graph.layers if layer.own_format})[0]

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: Simulation) -> str:
        weights = self.graph.weights.get(layer.name)
        if weights:
            w, b = weights
            weights = (setting.w.round(w) if setting.w else w, setting.b.round(b) if setting.b else b)
        y = layer.build_float(g, xs, weights)
        return setting.y.floor(g, y) if setting.y else y


class DeviceNetwork(Network):
    """The integer network, bit for bit as on the device."""

    stored, exact = np.int8, True

    def __init__(self, graph: Graph, images: Any, target: Target, memory: int = choices.MEMORY) -> None:
        super().__init__(graph, images, memory=memory)
        self.target = target

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: IntegerLayer) -> str:
        y = setting.kernel.build(g, xs, layer, setting.integers, self.target)
        return y if setting.bounds == Bounds() else g.clip(y, setting.bounds.low, setting.bounds.high)
