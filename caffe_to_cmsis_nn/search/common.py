# SPDX-License-Identifier: Apache-2.0
"""What the searches for Q-formats have in common: trials, results, and formats that the kernels can carry."""

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
    """What of a layer a format is for."""

    WEIGHTS = "weights"
    BIAS = "bias"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Score:
    """How formats did: accuracy in percent where it was looked at, mean divergence from the float network, and on how
    many images. Without an accuracy, the divergence is the error of a layer's output (`layer_errors`)."""

    accuracy: float | None
    divergence: float | None = None  # where it is looked at
    images: int | None = None  # where not all images judge

    @property
    def percent(self) -> float:
        """The accuracy of a classifier."""
        assert self.accuracy is not None
        return self.accuracy


@dataclass(frozen=True)
class Trial:
    """One format tried, its score, the score on the same images that it is held against, and whether it was kept.

    A format that was kept may be replaced by a later trial of the same tensor. `flash` are the bytes of constants, with
    it and with what it is held against, where the trial is about these. `reason` says why it was kept or not, and
    `given_up` whether it has not seen all the images that it might have seen.
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
    """A network that could be taken: the graph, its weights perhaps adapted, and the formats by layer."""

    graph: Graph
    formats: Mapping[str, LayerFormats]
    adapted_from: Graph | None = None

    @property
    def trained(self) -> Graph:
        """The network in float: each of its outputs is what the device's stands for."""
        return self.adapted_from or self.graph

    def is_same(self, other: Candidate) -> bool:
        return self.graph is other.graph and self.formats == other.formats


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search ends with: the candidate it chose, and what it has measured, in this order.

    And the logits (N, classes) of all images that the search has seen, as far as it came by them: those of the chosen
    one on the device, int8, and those of the float network.
    """

    chosen: Candidate
    measured: tuple[Measured, ...]
    on_device: np.ndarray | None = None
    in_float: np.ndarray | None = None


Search = Generator[Union[Trial, str], None, SearchResult]  # a str says what it does where it tries no more formats
Choices = dict[tuple[str, Tensor], QFormat]


def largest(values: np.ndarray) -> float:
    """max(|min|, |max|), 0 for an empty tensor."""
    return float(np.abs(values).max(initial=0))


def covering(name: str, tensor: Tensor, largest: float) -> QFormat:
    """The finest format for values of at most that magnitude; raises UserError that names the tensor."""
    try:
        return QFormat.covering(largest)
    except UserError as error:
        raise UserError(f"layer '{name}', {tensor.value}: {error}") from error


def tensors(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors that have a format of their own, in network order."""
    return [
        (layer.name, tensor)
        for layer in graph.layers
        for tensor in Tensor
        if (layer.own_format if tensor is Tensor.ACTIVATIONS else layer.weighted)
    ]


def format_sources(graph: Graph) -> dict[str, str]:
    """For each layer, the one whose chosen format decides that of its output."""
    source: dict[str, str] = {}
    for layer in graph.layers:
        source[layer.name] = layer.name if layer.own_format else source[layer.inputs[0]]
    return source


def table(graph: Graph, choices: Mapping[tuple[str, Tensor], QFormat]) -> dict[str, LayerFormats]:
    """The formats of every layer that follow from those chosen, brought to what the kernels can carry."""
    by_tensor = ({name: q for (name, t), q in choices.items() if t is tensor} for tensor in Tensor)
    return clamp_to_kernel_limits(graph, graph.formats(*by_tensor))


MOST_ROUNDS = 100  # of bounds propagation: each narrows at least one output's limits, and few are ever needed


def clamp_to_kernel_limits(graph: Graph, formats: Mapping[str, LayerFormats]) -> dict[str, LayerFormats]:
    """The nearest formats whose shifts the kernels can carry; raises UserError where there are none.

    The kernels compute ((bias << bias_lshift) + rounding + sum of x * w) >> out_rshift (arm_convolve_HWC_q7_basic.c
    and its siblings in CMSIS 5.3.0 to 5.9.0), with shifts in uint16_t that they do not check. In fraction bits n:

        0 <= n_x + n_w - n_b <= MAX_BIAS_LSHIFT    and    0 <= n_x + n_w - n_y <= MAX_OUT_RSHIFT

    An output finer than the accumulator (n_x + n_w) holds nothing more than one on its grid, and so does a bias.
    Layers have limits of their own besides. All are met by bounds propagation: formats are clamped in network order,
    and where a layer cannot take an input, the limits of the output that it comes from are narrowed.
    """
    limits = {layer.name: (-MOST_FRACTION_BITS, MOST_FRACTION_BITS) for layer in graph.layers}
    for _ in range(MOST_ROUNDS):
        table = _clamp_forward(graph, formats, limits)
        if not _narrow_backward(graph, table, limits):
            return table
    raise UserError("no Q-formats fit all layers at once")


def carried_bias(q: QFormat, accumulator: QFormat) -> QFormat:
    """The nearest format of a bias that the kernels can shift to the accumulator's."""
    return q.within(accumulator.fraction_bits - MAX_BIAS_LSHIFT, accumulator.fraction_bits)


def _clamp_forward(
    graph: Graph, formats: Mapping[str, LayerFormats], limits: Mapping[str, tuple[int, int]]
) -> dict[str, LayerFormats]:
    """In network order, formats within their outputs' limits (fraction bits) and within what layers can carry."""
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
            # So that an output within its limits is at most MAX_OUT_RSHIFT coarser than the accumulator.
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
    """Narrows the limits of outputs that a later layer cannot take; whether there were any."""
    source, narrowed = format_sources(graph), False
    for layer in graph.layers:
        for name, x in zip(layer.inputs, table[layer.name].inputs):
            low, high = layer.input_limits(table[layer.name].inputs)
            if not low <= x.fraction_bits <= high:
                own_low, own_high = limits[source[name]]
                limits[source[name]] = max(low, own_low), min(high, own_high)
                narrowed = True
    return narrowed
