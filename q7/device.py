# SPDX-License-Identifier: Apache-2.0
"""The integer network, bit for bit as the device computes it, from the raw 8-bit pixel to the last logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from q7.engines import MEMORY, Network
from q7.errors import Q7Error
from q7.graph import Graph
from q7.kernel import Bounds
from q7.kernels import Kernel
from q7.layers import Layer
from q7.onnx_graph import OnnxGraph
from q7.qformat import LayerFormats, Target


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer as the device runs it: the kernel, and the integers that it holds (Integers, Pixels or None).

    Its output stays within the bounds, which are those of 8 bits unless other layers have been put into this one.
    """

    kernel: Kernel
    integers: Any
    bounds: Bounds = field(default_factory=Bounds)

    def defines(self) -> dict[str, int]:
        """Macros that follow from the quantization, without the layer's prefix."""
        limits = {"ACT_MIN": self.bounds.low, "ACT_MAX": self.bounds.high} if self.kernel.limits else {}
        return {**self.kernel.defines(self.integers), **limits}


class DeviceNetwork(Network):
    """Runs integer layers on images; values are the int8 that the device's memory would hold."""

    stored = np.int8

    def __init__(self, graph: Graph, images: np.ndarray, target: Target, memory: int = MEMORY) -> None:
        super().__init__(graph, images, memory=memory)
        self.target = target

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: IntegerLayer) -> str:
        y = setting.kernel.build(g, xs, layer, setting.integers, self.target)
        return y if setting.bounds == Bounds() else g.clip(y, setting.bounds.low, setting.bounds.high)


def quantize_layer(graph: Graph, layer: Layer, formats: LayerFormats, target: Target) -> IntegerLayer:
    """One layer with its kernel and integers; raises Q7Error that names it where its shifts do not fit."""
    try:
        integers = layer.quantize(graph.weights.get(layer.name), formats)
    except Q7Error as error:
        raise Q7Error(f"layer '{layer.name}': {error}") from error
    return IntegerLayer(layer.kernel_for(target), integers)


def quantize(graph: Graph, formats: Mapping[str, LayerFormats], target: Target) -> list[IntegerLayer]:
    """Every layer with its kernel and integers; raises Q7Error as `quantize_layer` does."""
    return [quantize_layer(graph, layer, formats[layer.name], target) for layer in graph.layers]
