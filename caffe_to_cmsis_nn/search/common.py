# SPDX-License-Identifier: Apache-2.0
"""Common parts of the searches for Q-formats: trials, results, and formats within the kernels' limits."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Union

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import Measured
from caffe_to_cmsis_nn.qformat import MAX_BIAS_LSHIFT, MAX_OUT_RSHIFT, MOST_FRACTION_BITS, LayerFormats, QFormat


class Tensor(Enum):
    """The tensor of a layer that a format belongs to."""

    WEIGHTS = "weights"
    BIAS = "bias"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Score:
    """How well formats do: accuracy in percent, mean divergence from the float network, and number of images.

    Without an accuracy, the divergence is the error of a layer's output (`layer_errors`).
    """

    accuracy: float | None
    divergence: float | None = None  # None if not computed
    images: int | None = None  # None for all images

    @property
    def percent(self) -> float:
        """The accuracy of a classifier."""
        assert self.accuracy is not None
        return self.accuracy


@dataclass(frozen=True)
class Trial:
    """A format that was tried: its score, the score on the same images to compare with, and whether it was kept.

    A later trial of the same tensor may replace a kept format. `flash` holds the bytes of constants with this format
    and before, for searches that save flash. `reason` says why it was kept or not. `given_up` is whether it was
    rejected before it ran on all images.
    """

    layer: str
    tensor: Tensor
    format: QFormat
    score: Score
    reference: Score
    kept: bool
    flash: tuple[int, int] | None = None
    reason: str = ""
    given_up: bool = False


@dataclass(frozen=True, eq=False)
class Candidate:
    """A possible result: the graph, perhaps with adapted weights, and the formats by layer."""

    graph: Graph
    formats: Mapping[str, LayerFormats]
    adapted_from: Graph | None = None

    @property
    def trained(self) -> Graph:
        """The float network that the device's outputs approximate."""
        return self.adapted_from or self.graph

    def is_same(self, other: Candidate) -> bool:
        return self.graph is other.graph and self.formats == other.formats


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The chosen candidate, and all measurements in their order.

    If the search computed them, also the logits (N, classes) of all its images: int8 on the device, and in float.
    """

    chosen: Candidate
    measured: tuple[Measured, ...]
    on_device: np.ndarray | None = None
    in_float: np.ndarray | None = None


Search = Generator[Union[Trial, str], None, SearchResult]  # a str announces a phase without trials
Choices = dict[tuple[str, Tensor], QFormat]


def largest(values: np.ndarray) -> float:
    """max(|min|, |max|), 0 for an empty tensor."""
    return float(np.abs(values).max(initial=0))


def covering(name: str, tensor: Tensor, largest: float) -> QFormat:
    """The finest format that covers values up to `largest`; raises UserError that names the tensor."""
    try:
        return QFormat.covering(largest)
    except UserError as error:
        raise UserError(f"layer '{name}', {tensor.value}: {error}") from error


def tensors(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors with their own format, in network order."""
    return [
        (layer.name, tensor)
        for layer in graph.layers
        for tensor in Tensor
        if (layer.own_format if tensor is Tensor.ACTIVATIONS else layer.weighted)
    ]


def format_sources(graph: Graph) -> dict[str, str]:
    """For each layer, the layer that determines the format of its output."""
    source: dict[str, str] = {}
    for layer in graph.layers:
        source[layer.name] = layer.name if layer.own_format else source[layer.inputs[0]]
    return source


def table(graph: Graph, choices: Mapping[tuple[str, Tensor], QFormat]) -> dict[str, LayerFormats]:
    """Every layer's formats, from the chosen ones, clamped to the kernels' limits."""
    by_tensor = ({name: q for (name, t), q in choices.items() if t is tensor} for tensor in Tensor)
    return clamp_to_kernel_limits(graph, graph.formats(*by_tensor))


MOST_ROUNDS = 100  # of bounds propagation; each narrows an output's limits, and few are needed in practice


def clamp_to_kernel_limits(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, LayerFormats]:
    """The nearest formats with shifts within the kernels' limits; raises UserError if there are none.

    The kernels compute ((bias << bias_lshift) + rounding + sum of x * w) >> out_rshift (arm_convolve_HWC_q7_basic.c
    and its siblings in CMSIS 5.3.0 to 5.9.0), with shifts in uint16_t that they do not check. In fraction bits n:

        0 <= n_x + n_w - n_b <= MAX_BIAS_LSHIFT    and    0 <= n_x + n_w - n_y <= MAX_OUT_RSHIFT

    An output or bias finer than the accumulator (n_x + n_w) would hold no more information. Layers may have further
    limits. Bounds propagation meets them all: it clamps formats in network order, and if a layer cannot take an input,
    it narrows the limits of the output that this input comes from.
    """
    limits = {layer.name: (-MOST_FRACTION_BITS, MOST_FRACTION_BITS) for layer in graph.layers}
    for _ in range(MOST_ROUNDS):
        table = _clamp_forward(graph, formats, limits)
        if not _narrow_backward(graph, table, limits):
            return table
    raise UserError("no Q-formats fit all layers at once")


def carried_bias(q: QFormat, accumulator: QFormat) -> QFormat:
    """The nearest format of a bias that the kernels can shift to the accumulator's format."""
    return q.within(accumulator.fraction_bits - MAX_BIAS_LSHIFT, accumulator.fraction_bits)


def _clamp_forward(
    graph: Graph, formats: Mapping[str, LayerFormats], limits: Mapping[str, tuple[int, int]]
) -> dict[str, LayerFormats]:
    """Clamps formats in network order, to outputs' limits (fraction bits) and to the layers' own limits."""
    w: dict[str, QFormat] = {}
    b: dict[str, QFormat | None] = {}
    y: dict[str, QFormat] = {}
    output: dict[str, QFormat] = {}
    for layer in graph.layers:
        own, xs = formats[layer.name], [output[name] for name in layer.inputs]
        low, high = limits[layer.name]
        if layer.weighted:
            assert own.w
            n_x = xs[0].fraction_bits
            # Keeps an output within its limits at most MAX_OUT_RSHIFT coarser than the accumulator.
            most = min(MOST_FRACTION_BITS - max(n_x, 0), high + MAX_OUT_RSHIFT - n_x)
            w[layer.name] = own.w.within(low - n_x, most)
            accumulator = QFormat(n_x + w[layer.name].fraction_bits)
            b[layer.name] = carried_bias(own.b, accumulator) if own.b else None
            low, high = max(low, accumulator.fraction_bits - MAX_OUT_RSHIFT), min(high, accumulator.fraction_bits)
        if layer.own_format:
            assert own.y
            y[layer.name] = own.y.within(low, high).within(*layer.output_limits(xs))
        output[layer.name] = y[layer.name] if layer.own_format else layer.inherited(xs[0])
    return graph.formats(w, b, y)


def _narrow_backward(graph: Graph, table: Mapping[str, LayerFormats], limits: dict[str, tuple[int, int]]) -> bool:
    """Narrows the limits of outputs that a later layer cannot take; returns whether there were any."""
    source, narrowed = format_sources(graph), False
    for layer in graph.layers:
        for name, x in zip(layer.inputs, table[layer.name].inputs):
            low, high = layer.input_limits(table[layer.name].inputs)
            if not low <= x.fraction_bits <= high:
                own_low, own_high = limits[source[name]]
                limits[source[name]] = max(low, own_low), min(high, own_high)
                narrowed = True
    return narrowed
