# SPDX-License-Identifier: Apache-2.0
"""Reads a network from Caffe's files; reports all unsupported layers at once, with reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt
from caffe_to_cmsis_nn.data.source import DataSource
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.graph import Graph, mark_shared
from caffe_to_cmsis_nn.network.layer_parser import LayerParser, Problems, not_supported
from caffe_to_cmsis_nn.ops.base import Layer, Shape, Weights
from caffe_to_cmsis_nn.ops.input import Features, Input
from caffe_to_cmsis_nn.target import Target


def find_accuracy(prototxt: Prototxt, name: str) -> Any:
    """The Accuracy layer named `name`, or with a top of that name; raises UserError that lists the existing ones.

    If none has the default name, and all read the same blobs, it is the one with the smallest top_k.
    """
    layers = {i: layer for i, layer in enumerate(prototxt.layers) if layer.type == "Accuracy"}
    named = [i for i, layer in layers.items() if name == layer.name or name in layer.top]
    if not named and name == choices.ACCURACY and len({tuple(layer.bottom) for layer in layers.values()}) == 1:
        named = [min(layers, key=lambda i: layers[i].accuracy_param.top_k)]
    for index in named[:1]:
        prototxt.check_known(index)
        if not _counts(layers[index]):
            raise UserError(
                f"accuracy layer '{layers[index].name}': it must have axis 1, no ignore_label and 2 bottoms, and a "
                "top_k of 1 or more"
            )
        return layers[index]
    known = ", ".join(f"'{layer.name}'" for layer in layers.values()) or "none"
    raise UserError(f"'{prototxt.path}' has no accuracy layer '{name}' in the TEST phase; it has: {known}")


def _counts(layer: Any) -> bool:
    """Whether it is an Accuracy layer with supported parameters."""
    param = layer.accuracy_param
    kind = layer.type, param.axis, param.HasField("ignore_label"), len(layer.bottom)
    return kind == ("Accuracy", 1, False, 2) and param.top_k >= 1


@dataclass(frozen=True)
class Outputs:
    """The output blobs of a network, and the Accuracy layer that reads them, if any: its name, tops and bottoms.

    `named` is whether --output names them, `labelled` whether an Accuracy layer reads them, `classes` whether they may
    be logits. `top_k` are the parameters of all Accuracy layers with the same bottoms.
    """

    blobs: tuple[str, ...]
    name: str
    tops: tuple[str, ...] = ()
    bottoms: tuple[str, ...] = ()
    named: bool = False
    labelled: bool = False
    classes: bool = False
    top_k: tuple[int, ...] = (1,)


def _unread(prototxt: Prototxt) -> tuple[str, ...]:
    """The blobs that no layer reads, in file order; losses and Accuracy layers do not count as readers."""
    unread: dict[str, None] = {}
    for layer in prototxt.layers:
        if layer.bottom and layer.type != "Accuracy" and not layer.type.endswith("Loss"):
            for blob in layer.bottom:
                unread.pop(blob, None)
            unread.update(dict.fromkeys(layer.top))
    if not unread:
        raise UserError(f"'{prototxt.path}' has no layer after its input")
    return tuple(unread)


def find_outputs(prototxt: Prototxt, accuracy: str, source: DataSource, names: Sequence[str] = ()) -> Outputs:
    """The named blobs, or what the Accuracy layer reads, or without one, all blobs that no layer reads.

    Raises UserError if there is no such blob or Accuracy layer.
    """
    written = {blob for layer in prototxt.layers if layer.bottom for blob in layer.top}
    unknown = [name for name in names if name not in written]
    if unknown:
        raise UserError(
            f"--output {unknown[0]}: '{prototxt.path}' has no layer that writes this blob; blobs that no layer reads: "
            f"{', '.join(_unread(prototxt))}"
        )
    if not any(layer.type == "Accuracy" for layer in prototxt.layers):
        blobs = tuple(dict.fromkeys(names)) or _unread(prototxt)
        losses = {layer.type for layer in prototxt.layers if layer.type.endswith("Loss") and blobs[0] in layer.bottom}
        return Outputs(
            blobs, accuracy, bottoms=blobs, named=bool(names), classes=not names and losses <= {"SoftmaxWithLoss"}
        )
    layer = find_accuracy(prototxt, accuracy)
    if layer.bottom[1] != source.label:
        raise UserError(f"accuracy layer '{layer.name}' reads '{layer.bottom[1]}', which is not the data layer's label")
    if names and [*names] != [layer.bottom[0]]:
        return Outputs(tuple(dict.fromkeys(names)), accuracy, bottoms=tuple(names), named=True)
    alike = (one for one in prototxt.layers if _counts(one) and [*one.bottom] == [*layer.bottom])
    top_k = {1, *(one.accuracy_param.top_k for one in alike)}
    return Outputs(
        (layer.bottom[0],),
        layer.name,
        tuple(layer.top),
        tuple(layer.bottom),
        labelled=True,
        classes=True,
        top_k=tuple(sorted(top_k)),
    )


DSP_TARGET = Target()


def _ancestors(layers: Sequence[Any], blobs: Sequence[str]) -> list[int]:
    """The indices of the layers that blobs depend on, in file order."""
    wanted, found = {*blobs}, []
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if wanted.intersection(layer.top):
            wanted.difference_update(layer.top)
            wanted.update(layer.bottom)
            found.append(index)
    return found[::-1]


def check_types(prototxt: Prototxt, outputs: Outputs) -> None:
    """Raises UserError that lists the layers that are not supported, whatever the images."""
    problems = Problems()
    for index in _ancestors(prototxt.layers, outputs.blobs):
        if reason := not_supported(prototxt, index):
            problems.add(prototxt.layers[index].name, prototxt.layers[index].type, reason)
    if problems.found:
        raise UserError(str(problems))


def input_layer(source: DataSource, image_shape: Shape, mean: np.ndarray) -> Input:
    """The input layer for images of a CHW shape; raises UserError if the shape or the mean does not fit."""
    if not (source.reader.features or (mean.min() >= -0.5 and mean.max() <= 255.5)):
        raise UserError(f"layer '{source.layer}': the mean must lie within a pixel's range, 0 to 255")
    shape = source.crop_image(np.broadcast_to(np.uint8(0), image_shape)).shape
    kind = Features if source.reader.features else Input
    if source.shape and source.shape[0] != shape[0]:
        raise UserError(f"layer '{source.layer}': the images have shape {shape}, the prototxt asks for {source.shape}")
    return kind(source.layer, (), source.top, (shape,), mean=mean, scale=source.scale)


def _parse_layers(prototxt: Prototxt, outputs: Outputs, source: DataSource, data: Input, target: Target) -> LayerParser:
    """The layers that the outputs depend on; raises UserError that lists all unsupported ones."""
    parser, problems = LayerParser.of(data, source.label), Problems()
    for index in _ancestors(prototxt.layers, outputs.blobs):
        message = prototxt.layers[index]
        if not (message.name == source.layer and source.top in message.top):
            parser.take(message, not_supported(prototxt, index), problems)
    missing = [blob for blob in outputs.blobs if blob not in parser.written]
    if missing:
        raise UserError(f"'{prototxt.path}' has no layer that writes '{missing[0]}'")
    parser.look_for_kernels(target, problems)
    if source.shape not in ((), data.out_shape):
        fixed = [layer.name for layer in parser.layers if layer.flattens]
        if fixed:
            problems.add(
                source.layer,
                "Input",
                f"the images have shape {data.out_shape}, the prototxt asks for {source.shape}; the weights of layer "
                f"'{fixed[0]}' are for this size alone",
            )
    if problems.found:
        raise UserError(str(problems))
    return parser


def parse_network(
    prototxt: Prototxt,
    accuracy: str,
    source: DataSource,
    image_shape: Shape,
    target: Target = DSP_TARGET,
    output_names: Sequence[str] = (),
) -> Graph:
    """The layers between the data and the outputs (`find_outputs`), without weights; `image_shape` is CHW.

    Raises UserError that lists all layers that are not supported, or have no kernel on the target.
    """
    outputs = find_outputs(prototxt, accuracy, source, output_names)
    # The mean file may be missing; problems of the prototxt are reported before that.
    data = input_layer(source, image_shape, np.zeros((1, 1, 1), np.float32))
    parser = _parse_layers(prototxt, outputs, source, data, target)
    ends = [*dict.fromkeys(parser.written[blob] for blob in outputs.blobs)]
    layers = [input_layer(source, image_shape, source.mean(image_shape)), *parser.layers[1:]]
    left_out = [layer for layer in ends if layer.keeps_order and len(ends) == 1]
    names = [layer.inputs[0] if layer in left_out else layer.name for layer in ends]
    names = _weighted(layers, names, outputs)
    layers = _leading_to(layers, names)
    shape = layers[-1].out_shape
    vector = len(names) == 1 and math.prod(shape[1:]) == 1
    if outputs.labelled and not vector:
        raise UserError(f"'{outputs.blobs[0]}' has shape {shape}, allowed is one value for each class")
    return Graph(
        name=prototxt.name,
        layers=mark_shared(layers, names),
        weights={},
        accuracy=outputs.name,
        tops={**parser.tops, outputs.name: outputs.tops},
        bottoms={**parser.bottoms, outputs.name: outputs.bottoms},
        outputs=tuple(names),
        classifier=vector and outputs.classes,
        scores=frozenset(layer.inputs[0] for layer in left_out),
        top_k=tuple(k for k in outputs.top_k if k == 1 or k < math.prod(shape)),
    )


def _weighted(layers: Sequence[Layer], names: Sequence[str], outputs: Outputs) -> list[str]:
    """The output layers that depend on a weighted layer; raises UserError if a requested one does not."""
    led: set[str] = set()
    for layer in layers:
        if layer.weighted or not led.isdisjoint(layer.inputs):
            led.add(layer.name)
    found = [name for name in names if name in led]
    if len(found) < len(names) and (outputs.labelled or outputs.named or not found):
        reads = f"accuracy layer '{outputs.name}' reads" if outputs.labelled else "the network's output is"
        blob = next(blob for blob, name in zip(outputs.blobs, names) if name not in led)
        raise UserError(f"{reads} '{blob}', which depends on no weighted layer")
    return found


def _leading_to(layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """The layers that the named ones depend on, and the input."""
    wanted = {*names, layers[0].name}
    for layer in reversed(layers):
        if layer.name in wanted:
            wanted.update(layer.inputs)
    return [layer for layer in layers if layer.name in wanted]


def _fits(blob: np.ndarray, shape: Shape) -> bool:
    """Whether shapes are equal, apart from leading ones of Caffe's old four-axis blobs."""
    return blob.shape == shape or (blob.ndim == 4 and blob.shape == (1,) * (4 - len(shape)) + shape)


def _misshapen(graph: Graph, layer: Layer, found: Sequence[np.ndarray], data: Path | None) -> str:
    """Why a layer's blobs do not fit."""
    image = graph.input.out_shape
    wanted = layer.weight_shapes()
    if graph.input.name in layer.inputs and found and found[0].ndim == len(wanted[0]) == 4:
        trained, asked = found[0].shape, wanted[0]
        channels = image[0] * trained[1] // asked[1]  # in all groups
        if trained[1] != asked[1] and (trained[0], *trained[2:]) == (asked[0], *asked[2:]):
            return (
                f"the weights of layer '{layer.name}' are for images with {channels} channels, "
                f"those of '{data or 'the data set'}' have {image[0]}"
            )
    seen = " and ".join(str(blob.shape) for blob in found)
    return (
        f"layer '{layer.name}': the weights file has {seen}, the prototxt asks for {' and '.join(map(str, wanted))} "
        f"with images of {'x'.join(map(str, image))}"
    )


def attach_weights(graph: Graph, blobs: Blobs, data: Path | None = None) -> Graph:
    """Adds the trained weights to a graph.

    Raises UserError if blobs are missing, have the wrong shape (for the images in `data`) or are not finite.
    """
    weights: dict[str, Weights] = {}
    for layer in graph.layers:
        shapes = layer.weight_shapes()
        if not shapes:
            continue
        found = blobs.get(layer.name)
        if found is None:
            raise UserError(f"layer '{layer.name}' has no weights in the weights file; it has: {', '.join(blobs)}")
        if len(found) != len(shapes) or not all(map(_fits, found, shapes)):
            raise UserError(_misshapen(graph, layer, found, data))
        if not all(np.isfinite(blob).all() for blob in found):
            raise UserError(f"layer '{layer.name}': its weights hold NaN or infinity")
        weights[layer.name] = layer.load([blob.reshape(shape) for blob, shape in zip(found, shapes)])
    return replace(graph, weights=weights)
