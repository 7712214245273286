# SPDX-License-Identifier: Apache-2.0
"""What becomes of a quantized network before code is generated: kernels of the library asked for, and layers fused."""

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
    """The same integers with other kernels; raises UserError where they cannot take a layer.

    Where the library's kernels truncated and now round, half a step is taken from each bias.
    """
    truncated = network.target.rounding is Rounding.TRUNCATE and target.rounding is Rounding.NEAREST
    layers, held_layers = [], []
    for layer, held in zip(network.graph.layers, network.layers):
        integers = held.integers
        if layer.weighted and 8 * integers.bias.itemsize > target.library.bias_bits:
            raise UserError(
                f"layer '{layer.name}' has a bias of 32 bits, which the {target.library} kernels cannot take: "
                f"quantize it with --library q7, then it serves all"
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
    """What a kernel that rounds half up needs to round down."""
    shifts = integers.shifts
    bias = (integers.bias.astype(np.int32) << shifts.bias_lshift) - Rounding.NEAREST.term(shifts.out_rshift)
    return replace(integers, bias=bias, shifts=Shifts(0, shifts.out_rshift))


def _read_once(graph: Graph, name: str) -> bool:
    return name not in graph.outputs and sum(name in layer.inputs for layer in graph.layers) == 1


def fuse(network: QuantizedNetwork) -> QuantizedNetwork:
    """The network with fewer layers; no result changes."""
    return _join_moves(_limit(network))


def _limit(network: QuantizedNetwork) -> QuantizedNetwork:
    """Has kernels limit their outputs themselves, in place of a ReLU, ReLU6 or Clip that alone reads them.

    It may read a maximum of them: that of limited numbers is the limited maximum.
    No result changes: a kernel saturates to its limits where it would saturate to 8 bits.
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
    """One move in place of two, where the second alone reads the first; none where elements come back to their places.

    Detectors' Permute and Flatten, for one, give the order that an image has on the device anyway.
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
    """A classifier with a Softmax after its output; raises UserError for another network."""
    graph = network.graph
    if not graph.classifier:
        raise UserError("--softmax is for classifiers, which have an Accuracy layer or end in Softmax")
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
