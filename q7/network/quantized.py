# SPDX-License-Identifier: Apache-2.0
"""The network as integers: what the device holds of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from q7.data.readers import Lmdb, Reader
from q7.errors import Q7Error
from q7.kernels.base import AnyKernel, Bounds
from q7.layers.base import Layer
from q7.network.graph import Graph
from q7.qformat import LayerFormats
from q7.target import Target


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer as the device runs it: the kernel, and the integers that it holds (Integers, Pixels or None).

    Its output stays within the bounds, which are those of 8 bits unless other layers have been put into this one.
    """

    kernel: AnyKernel
    integers: Any
    bounds: Bounds = field(default_factory=Bounds)

    def defines(self) -> dict[str, int]:
        """Macros that follow from the quantization, without the layer's prefix."""
        limits = {"ACT_MIN": self.bounds.low, "ACT_MAX": self.bounds.high} if self.kernel.limits else {}
        return {**self.kernel.defines(self.integers), **limits}


def quantize_layer(graph: Graph, layer: Layer, formats: LayerFormats, target: Target) -> IntegerLayer:
    """One layer with its kernel and integers; raises Q7Error that names it where its shifts do not fit."""
    try:
        integers = layer.quantize(graph.weights.get(layer.name), formats)
    except Q7Error as error:
        raise Q7Error(f"layer '{layer.name}': {error}") from error
    return IntegerLayer(layer.kernel_for(target), integers)


def quantize_network(graph: Graph, formats: Mapping[str, LayerFormats], target: Target) -> list[IntegerLayer]:
    """Every layer with its kernel and integers; raises Q7Error as `quantize_layer` does."""
    return [quantize_layer(graph, layer, formats[layer.name], target) for layer in graph.layers]


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network as the device runs it, and where it comes from."""

    graph: Graph  # without float weights
    formats: Mapping[str, LayerFormats]
    layers: tuple[IntegerLayer, ...]
    target: Target
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # "model", "weights": {"name", "sha256"}
    dataset: str = ""  # the test images' path
    crop: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)  # accuracies in percent, images, objective
    reader: Reader = field(default_factory=Lmdb)  # of the dataset
