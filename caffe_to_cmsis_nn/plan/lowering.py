# SPDX-License-Identifier: Apache-2.0
"""Lowers a quantized network for code generation: chooses kernels of the target's library, and fuses layers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels.base import Integers
from caffe_to_cmsis_nn.network.folding import without
from caffe_to_cmsis_nn.network.graph import Graph, mark_shared
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, QuantizedNetwork
from caffe_to_cmsis_nn.ops.softmax import PowersSoftmax
from caffe_to_cmsis_nn.qformat import LayerFormats, Shifts
from caffe_to_cmsis_nn.target import Rounding, Target


def retarget(network: QuantizedNetwork, target: Target) -> QuantizedNetwork:
    """The same network with the kernels of another target; raises UserError if they do not support a layer.

    If the old kernels truncate and the new ones round, half a step is subtracted from each bias.
    """
    truncated = network.target.rounding is Rounding.TRUNCATE and target.rounding is Rounding.NEAREST
    layers, held_layers = [], []
    for layer, held in zip(network.graph.layers, network.layers):
        integers = held.integers
        if layer.weighted and 8 * integers.bias.itemsize > target.library.bias_bits:
            raise UserError(
                f"layer '{layer.name}' has a 32-bit bias, which the {target.library} kernels do not support: "
                f"quantize the network with --library q7, which works for all libraries"
            )
        if layer.weighted and truncated:
            integers = _truncating(integers)
        kernel = layer.kernel_for(target, network.formats[layer.name].weight_bits)
        if kernel.trims:
            layer, integers = layer.trimmed(integers)  # noqa: PLW2901
        layers.append(layer)
        held_layers.append(IntegerLayer(kernel, integers))
    graph = replace(network.graph, layers=tuple(layers))
    return replace(network, graph=graph, target=target, layers=tuple(held_layers))


def _truncating(integers: Integers) -> Integers:
    """Integers with which a kernel that rounds half up truncates."""
    shifts = integers.shifts
    bias = (integers.bias.astype(np.int32) << shifts.bias_lshift) - Rounding.NEAREST.term(shifts.out_rshift)
    return replace(integers, bias=bias, shifts=Shifts(0, shifts.out_rshift))


def _read_once(graph: Graph, name: str) -> bool:
    return name not in graph.outputs and sum(name in layer.inputs for layer in graph.layers) == 1


def fuse(network: QuantizedNetwork) -> QuantizedNetwork:
    """Fuses layers; results do not change."""
    return _join_moves(_limit(network))


def _limit(network: QuantizedNetwork) -> QuantizedNetwork:
    """Fuses a ReLU, ReLU6 or Clip into the kernel before it, which then clamps its output, if nothing else reads it.

    A max pooling may stand between them, since clamping and maximum commute. Results do not change: the kernel clamps
    to the new limits instead of saturating to 8 bits.
    """
    graph = network.graph
    lowered = dict(zip((layer.name for layer in graph.layers), network.layers))
    for name, held in zip([*lowered], network.layers):
        bounds = held.kernel.bounds(held.integers)
        if bounds is None:
            continue
        by_name = {layer.name: layer for layer in graph.layers}
        source = by_name[name].inputs[0]
        while lowered[source].kernel.selects and _read_once(graph, source):
            source = by_name[source].inputs[0]
        if lowered[source].kernel.limits and _read_once(graph, source):
            lowered[source] = replace(lowered[source], bounds=lowered[source].bounds.within(bounds))
            graph = without(graph, by_name[name], by_name[by_name[name].inputs[0]])
    return replace(network, graph=graph, layers=tuple(lowered[layer.name] for layer in graph.layers))


def _join_moves(network: QuantizedNetwork) -> QuantizedNetwork:
    """Fuses a move into a second one that alone reads it; moves that cancel out cost nothing.

    For example, Permute and Flatten in detectors yield the order that an image has on the device anyway.
    """
    graph = network.graph
    lowered = dict(zip((layer.name for layer in graph.layers), network.layers))
    for name in [*lowered]:
        by_name = {layer.name: layer for layer in graph.layers}
        second, first = by_name[name], by_name.get(next(iter(by_name[name].inputs), ""))
        both = second.joined(first) if first and _read_once(graph, first.name) else None
        if both and lowered[name].kernel.objection(both, network.target) is None:
            layers = tuple(both if one is second else one for one in graph.layers if one is not first)
            graph = replace(graph, layers=mark_shared(layers, graph.outputs))
    return replace(network, graph=graph, layers=tuple(lowered[layer.name] for layer in graph.layers))


def add_softmax(network: QuantizedNetwork) -> QuantizedNetwork:
    """Adds a Softmax after a classifier's output; raises UserError for other networks."""
    graph = network.graph
    if not graph.classifier:
        raise UserError("--softmax needs a classifier, which has an Accuracy layer or ends in Softmax")
    (output,) = graph.output_layers
    names = {layer.name for layer in graph.layers}
    name = next(n for n in itertools.chain(["softmax"], map("softmax_{}".format, itertools.count(2))) if n not in names)
    softmax = PowersSoftmax(name, (output.name,), name, (output.out_shape,))
    x = network.formats[output.name].y
    assert x
    return replace(
        network,
        graph=replace(graph, layers=(*graph.layers, softmax), outputs=(name,)),
        formats={**network.formats, name: LayerFormats(x, y=softmax.inherited(x))},
        layers=(*network.layers, IntegerLayer(softmax.kernel_for(network.target), None)),
    )
