# SPDX-License-Identifier: Apache-2.0
"""The quantized network: each layer's kernel and integers, and the results of quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from caffe_to_cmsis_nn.data.readers import Lmdb, Reader
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels.base import AnyKernel, Bounds
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.base import Layer, Weights
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer as the device runs it: the kernel, and its integer parameters (Integers, Pixels, ... or None).

    The kernel clamps its output to the bounds, which are those of 8 bits unless an activation was fused.
    """

    kernel: AnyKernel
    integers: Any
    bounds: Bounds = field(default_factory=Bounds)

    def defines(self) -> dict[str, int]:
        """The macros that depend on the formats, without the layer's prefix."""
        limits = {"ACT_MIN": self.bounds.low, "ACT_MAX": self.bounds.high} if self.kernel.limits else {}
        return {**self.kernel.defines(self.integers), **limits}

    def constant_bytes(self, layer: Layer) -> int:
        """The bytes of the layer's constant arrays."""
        names = CNames(prefix="", inputs=("",), output="", scratch="", weights="", bias="")
        return sum(array.bytes for array in self.kernel.arrays(layer, self.integers, names))


def quantize_layer(layer: Layer, weights: Weights | None, formats: LayerFormats, target: Target) -> IntegerLayer:
    """One layer with its kernel and integers; raises UserError that names the layer if its shifts do not fit."""
    try:
        layer.check_formats(formats)
        integers = layer.quantize(weights, formats)
    except UserError as error:
        raise UserError(f"layer '{layer.name}': {error}") from error
    return IntegerLayer(layer.kernel_for(target, formats.weight_bits), integers)


def quantize_network(graph: Graph, formats: Mapping[str, LayerFormats], target: Target) -> list[IntegerLayer]:
    """Every layer with its kernel and integers; raises UserError as `quantize_layer` does."""
    return [quantize_layer(layer, graph.weights.get(layer.name), formats[layer.name], target) for layer in graph.layers]


@dataclass(frozen=True)
class SourceFile:
    """A file that a network was read from: its name, and the hexadecimal SHA-256 of its bytes."""

    name: str
    sha256: str


Decibels = Optional[float]


@dataclass(frozen=True)
class Quality:
    """The effect of quantization on a layer's output.

    Percentages of values that saturated at -128 and at 127, and the signal-to-quantization-noise ratio (dB), None if
    signal or noise is zero.
    """

    at_min: float
    at_max: float
    sqnr: Decibels


@dataclass(frozen=True)
class Accuracy:
    """Top-k accuracies of the float network and the device, in percent."""

    in_float: float
    on_device: float
    top_k: int = 1

    @property
    def loss(self) -> float:
        """Percentage points."""
        return self.in_float - self.on_device


@dataclass(frozen=True)
class OutputQuality:
    """The distance of a device output from the float network's.

    The signal-to-quantization-noise ratio (dB), and the cosine of the angle between both over all images; None if
    undefined.
    """

    sqnr: Decibels
    cosine: Optional[float]  # noqa: UP045


@dataclass(frozen=True)
class Measured:
    """A candidate of the search, and how it did on a number of images.

    `accuracy` is in percent, None without labels; `divergence` from the float network is the mean over the images, None
    if not computed.
    """

    candidate: str
    images: int
    accuracy: Optional[float]  # noqa: UP045
    divergence: Optional[float] = None  # noqa: UP045
    chosen: bool = False


def held_out(images: int, holdout: float) -> int:
    """The number of held-out images for a fraction."""
    return round(images * holdout)


@dataclass(frozen=True)
class Outcome:
    """The results of a run of the quantizer."""

    objective: str
    weight_bits: str  # the option: "8", "4" or "mixed"
    images_read: int
    holdout: float  # fraction of the images kept from the search, for `accuracy`; 0: all images for both
    seed: int
    accuracy: Optional[Accuracy]  # noqa: UP045
    other_accuracies: tuple[Accuracy, ...]  # with top_k > 1
    outputs: Mapping[str, OutputQuality]  # by layer; empty for a classifier
    search: tuple[Measured, ...]
    layers: Mapping[str, Quality]

    @property
    def known(self) -> Accuracy:
        """The accuracy of a classifier."""
        assert self.accuracy
        return self.accuracy

    @property
    def images(self) -> int:
        """The number of images that `accuracy` was computed on."""
        return held_out(self.images_read, self.holdout) if self.holdout else self.images_read


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network as the device runs it, and its origin."""

    graph: Graph  # without float weights
    formats: Mapping[str, LayerFormats]
    layers: tuple[IntegerLayer, ...]
    target: Target
    sources: Mapping[str, SourceFile] = field(default_factory=dict)  # by kind: "model", "weights", ...
    dataset: str = ""  # the test images' path
    crop: int = 0
    outcome: Outcome | None = None  # None for the original's pickles
    reader: Reader = field(default_factory=Lmdb)  # of the dataset
    scale: float = 1.0  # of the pixels, before folding
