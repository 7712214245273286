# SPDX-License-Identifier: Apache-2.0
"""The network as integers: what the device holds of each layer."""

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

    def constant_bytes(self, layer: Layer) -> int:
        """Of its arrays."""
        names = CNames(prefix="", inputs=("",), output="", scratch="", weights="", bias="")
        return sum(array.bytes for array in self.kernel.arrays(layer, self.integers, names))


def quantize_layer(layer: Layer, weights: Weights | None, formats: LayerFormats, target: Target) -> IntegerLayer:
    """One layer with its kernel and integers; raises UserError that names it where its shifts do not fit."""
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
    """A file that a network was made of: its name, and the hexadecimal SHA-256 of the bytes that were read."""

    name: str
    sha256: str


Decibels = Optional[float]


@dataclass(frozen=True)
class Quality:
    """What quantization did to a layer's output.

    Percentages of the values that saturated at -128 and at 127, and the signal-to-quantization-noise ratio, None where
    the signal or the noise is zero.
    """

    at_min: float
    at_max: float
    sqnr: Decibels


@dataclass(frozen=True)
class Accuracy:
    """Percent of the images that the float network and the device have right: the class is among the first top_k."""

    in_float: float
    on_device: float
    top_k: int = 1

    @property
    def loss(self) -> float:
        """Percentage points."""
        return self.in_float - self.on_device


@dataclass(frozen=True)
class OutputQuality:
    """How close an output on the device is to the float network's.

    The signal-to-quantization-noise ratio, and the cosine of the angle between the two over all images; None where a
    part of it is zero.
    """

    sqnr: Decibels
    cosine: Optional[float]  # noqa: UP045


@dataclass(frozen=True)
class Measured:
    """A network that the search came by: on how many images, how many of them are right, and how far it is from float.

    `accuracy` is in percent, where it is known, `divergence` the mean over the images, where it was looked at.
    """

    candidate: str
    images: int
    accuracy: Optional[float]  # noqa: UP045
    divergence: Optional[float] = None  # noqa: UP045
    chosen: bool = False


def held_out(images: int, holdout: float) -> int:
    """How many of the images a fraction of them is."""
    return round(images * holdout)


@dataclass(frozen=True)
class Outcome:
    """What the run found that quantized a network."""

    objective: str
    weight_bits: str  # "8", "4" or "mixed", as asked for
    images_read: int
    holdout: float  # the fraction of them that was kept from the search and that `accuracy` is from; 0: all for both
    seed: int
    accuracy: Optional[Accuracy]  # noqa: UP045
    other_accuracies: tuple[Accuracy, ...]  # of more classes than the first
    outputs: Mapping[str, OutputQuality]  # by layer, of a network that is no classifier
    search: tuple[Measured, ...]
    layers: Mapping[str, Quality]

    @property
    def known(self) -> Accuracy:
        """The accuracy of a classifier."""
        assert self.accuracy
        return self.accuracy

    @property
    def images(self) -> int:
        """That `accuracy` is from."""
        return held_out(self.images_read, self.holdout) if self.holdout else self.images_read


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network as the device runs it, and where it comes from."""

    graph: Graph  # without float weights
    formats: Mapping[str, LayerFormats]
    layers: tuple[IntegerLayer, ...]
    target: Target
    sources: Mapping[str, SourceFile] = field(default_factory=dict)  # by what they are: "model", "weights"
    dataset: str = ""  # the test images' path
    crop: int = 0
    outcome: Outcome | None = None  # None for the original's pickles
    reader: Reader = field(default_factory=Lmdb)  # of the dataset
    scale: float = 1.0  # of the pixels, as the network was trained
