# SPDX-License-Identifier: Apache-2.0
"""Reads a network from Caffe's files; lists every layer that cannot be taken, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from q7.caffe_io.blobs import Blobs
from q7.caffe_io.prototxt import Prototxt
from q7.data.source import DataSource
from q7.errors import Q7Error
from q7.layers.base import Declined, Layer, Shape, Weights
from q7.layers.input import Input
from q7.layers.moves import Reshape
from q7.layers.passthrough import IDENTITIES
from q7.layers.registry import LAYERS, layer_class
from q7.network.graph import Graph, mark_shared
from q7.target import Target

ACCURACY = "accuracy"  # the Accuracy layer's name, where no other is given


def find_accuracy(prototxt: Prototxt, name: str) -> Any:
    """The Accuracy layer that `name` or its top blob names; raises Q7Error that lists those that exist.

    Where none has the name that is looked for by default, all may read the same: it is the one with the least top_k.
    """
    layers = {i: layer for i, layer in enumerate(prototxt.layers) if layer.type == "Accuracy"}
    named = [i for i, layer in layers.items() if name == layer.name or name in layer.top]
    if not named and name == ACCURACY and len({tuple(layer.bottom) for layer in layers.values()}) == 1:
        named = [min(layers, key=lambda i: layers[i].accuracy_param.top_k)]
    for index in named[:1]:
        prototxt.check_known(index)
        if not _counts(layers[index]):
            raise Q7Error(
                f"accuracy layer '{layers[index].name}': it must have axis 1, no ignore_label and 2 bottoms, and a "
                "top_k of 1 or more"
            )
        return layers[index]
    known = ", ".join(f"'{layer.name}'" for layer in layers.values()) or "none"
    raise Q7Error(f"'{prototxt.path}' has no accuracy layer '{name}' in the TEST phase; it has: {known}")


def _counts(layer: Any) -> bool:
    """Whether it is an Accuracy layer of a kind that is known."""
    param = layer.accuracy_param
    kind = layer.type, param.axis, param.HasField("ignore_label"), len(layer.bottom)
    return kind == ("Accuracy", 1, False, 2) and param.top_k >= 1


@dataclass(frozen=True)
class Outputs:
    """The blobs that a network gives, and the Accuracy layer that reads it, if any: its name, tops and bottoms.

    `named` says whether a person has named them, `labelled` whether an Accuracy layer reads them, and `classes` whether
    they may be logits. `top_k` are those of all Accuracy layers that read the same.
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
    """Blobs whose final value no layer reads, in file order; what losses and accuracies read counts as unread."""
    unread: dict[str, None] = {}
    for layer in prototxt.layers:
        if layer.bottom and layer.type != "Accuracy" and not layer.type.endswith("Loss"):
            for blob in layer.bottom:
                unread.pop(blob, None)
            unread.update(dict.fromkeys(layer.top))
    if not unread:
        raise Q7Error(f"'{prototxt.path}' has no layer after its input")
    return tuple(unread)


def find_outputs(prototxt: Prototxt, accuracy: str, source: DataSource, names: Sequence[str] = ()) -> Outputs:
    """The blobs that are named; else what the Accuracy layer reads; and where there is none, all that nobody reads.

    Raises Q7Error where there is no such blob or Accuracy layer.
    """
    written = {blob for layer in prototxt.layers if layer.bottom for blob in layer.top}
    unknown = [name for name in names if name not in written]
    if unknown:
        raise Q7Error(
            f"--output {unknown[0]}: '{prototxt.path}' has no layer that writes this blob; of those that it writes, "
            f"nobody reads {', '.join(_unread(prototxt))}"
        )
    if not any(layer.type == "Accuracy" for layer in prototxt.layers):
        blobs = tuple(dict.fromkeys(names)) or _unread(prototxt)
        losses = {layer.type for layer in prototxt.layers if layer.type.endswith("Loss") and blobs[0] in layer.bottom}
        return Outputs(
            blobs, accuracy, bottoms=blobs, named=bool(names), classes=not names and losses <= {"SoftmaxWithLoss"}
        )
    layer = find_accuracy(prototxt, accuracy)
    if layer.bottom[1] != source.label:
        raise Q7Error(f"accuracy layer '{layer.name}' reads '{layer.bottom[1]}', which is not the data layer's label")
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
    """Indices of the layers that blobs' final values depend on, in file order."""
    wanted, found = {*blobs}, []
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if wanted.intersection(layer.top):
            wanted.difference_update(layer.top)
            wanted.update(layer.bottom)
            found.append(index)
    return found[::-1]


@dataclass
class _Parser:
    """What is known while layers are read in file order: the layers, and which of them wrote each blob last."""

    layers: list[Layer]
    written: dict[str, Layer]
    tops: dict[str, tuple[str, ...]]
    bottoms: dict[str, tuple[str, ...]]
    # Images in Caffe's flat order, and what would bring them into it. Inner products need not have it: they take the
    # image as it is.
    flat: dict[str, Layer] = field(default_factory=dict)

    def read(self, message: Any) -> None:
        """Adds the layers that a message stands for, if any; raises Declined."""
        missing = [blob for blob in message.bottom if blob not in self.written]
        if missing or not message.bottom or not message.top:
            raise Declined(f"no layer writes its input '{', '.join(missing)}'")
        if message.type in IDENTITIES:
            self._same(message)
            return
        cls = layer_class(message, self._in_shapes(message))
        if len(message.bottom) > cls.most_inputs:
            raise Declined(f"it has {len(message.bottom)} inputs, allowed is {cls.most_inputs}")
        flat = [self.flat.get(blob) for blob in message.bottom]
        stays_flat = cls.elementwise and None not in flat
        if not (cls.flattens or stays_flat):
            self._flatten(message.bottom)
        inputs, in_shapes = tuple(self.written[blob].name for blob in message.bottom), self._in_shapes(message)
        layers = cls.parse_all(message, inputs, in_shapes)
        for top in message.top:
            self.flat.pop(top, None)
        if isinstance(layers[0], Reshape) and self._flattens(layers[0]):
            self._same(message)
            if math.prod(layers[0].in_shape[1:]) > 1:
                self.flat[message.top[0]] = layers[0]
            return
        for layer in layers:
            self._add(layer, message.bottom, message.top if len(layers) == 1 else (layer.blob,))
        if stays_flat and flat[0]:
            self.flat[layers[0].blob] = replace(flat[0], inputs=(layers[0].name,))

    def _in_shapes(self, message: Any) -> tuple[Shape, ...]:
        return tuple(self.written[blob].out_shape for blob in message.bottom)

    @staticmethod
    def _flattens(layer: Layer) -> bool:
        """Whether it makes a vector of what is one in the device's memory, or of an image for inner products."""
        return layer.out_shape == layer.in_shape or (len(layer.out_shape) == 1 and len(layer.in_shape) == 3)

    def _same(self, message: Any) -> None:
        """A layer that changes nothing."""
        blob = message.bottom[0]
        for top in message.top:
            self.written[top] = self.written[blob]
            flat = self.flat.get(blob)
            self.flat.pop(top, None)
            if flat:
                self.flat[top] = flat

    def _flatten(self, blobs: Sequence[str]) -> None:
        """Brings images into Caffe's order for a layer that must have it."""
        for blob in dict.fromkeys(blobs):
            if blob in self.flat:
                move = replace(self.flat.pop(blob), inputs=(self.written[blob].name,), blob=blob)
                if any(layer.name == move.name for layer in self.layers):
                    move = replace(move, name=f"{move.name}/{blob}")
                self._add(move, [move.blob], (blob,))

    def _add(self, layer: Layer, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if any(layer.name == known.name for known in self.layers):
            raise Declined("a layer of the same name comes before it")
        self.layers.append(layer)
        self.written[layer.blob] = layer
        self.tops[layer.name], self.bottoms[layer.name] = tuple(tops), tuple(bottoms)

    def stand_in(self, message: Any) -> None:
        """Takes a declined layer for one that changes nothing: most of those that are unknown keep the shape."""
        source = next((self.written[blob] for blob in message.bottom if blob in self.written), self.layers[0])
        self.written.update(dict.fromkeys(message.top, source))


def input_layer(source: DataSource, image_shape: Shape) -> Input:
    """The input layer for CHW images of a shape; raises Q7Error where the mean does not fit them."""
    mean = source.mean(image_shape)
    if not (mean.min() >= -0.5 and mean.max() <= 255.5):
        raise Q7Error(f"layer '{source.layer}': the mean must lie within a pixel's range, 0 to 255")
    shape = source.crop_image(np.broadcast_to(np.uint8(0), image_shape)).shape
    if source.shape and source.shape[0] != shape[0]:
        raise Q7Error(f"layer '{source.layer}': the images have shape {shape}, the prototxt asks for {source.shape}")
    return Input(source.layer, (), source.top, (shape,), mean=mean, scale=source.scale)


def parse_network(
    prototxt: Prototxt,
    accuracy: str,
    source: DataSource,
    image_shape: Shape,
    target: Target = DSP_TARGET,
    output_names: Sequence[str] = (),
) -> Graph:
    """The layers between the data and the outputs (`find_outputs`), without weights yet.

    Raises Q7Error that lists every layer that cannot be taken, or that no kernel can compute on the target.
    """
    outputs = find_outputs(prototxt, accuracy, source, output_names)
    data = input_layer(source, image_shape)
    tops: dict[str, tuple[str, ...]] = {source.layer: (source.top, source.label) if source.label else (source.top,)}
    bottoms: dict[str, tuple[str, ...]] = {source.layer: ()}
    parser = _Parser([data], {source.top: data}, tops, bottoms)
    problems: list[str] = []
    for index in _ancestors(prototxt.layers, outputs.blobs):
        message = prototxt.layers[index]
        if message.name == source.layer and source.top in message.top:
            continue
        try:
            if message.type not in LAYERS and message.type not in IDENTITIES:
                raise Declined("this type is not supported")
            if index in prototxt.unknown:
                raise Declined(f"it has a field that this tool does not know: {prototxt.unknown[index]}")
            parser.read(message)
        except Declined as reason:
            problems.append(f"layer '{message.name}' ({message.type}): {reason}")
            parser.stand_in(message)  # go on, to report all layers at once
    missing = [blob for blob in outputs.blobs if blob not in parser.written]
    if missing:
        raise Q7Error("; ".join([f"'{prototxt.path}' has no layer that writes '{missing[0]}'", *problems]))
    ends = [*dict.fromkeys(parser.written[blob] for blob in outputs.blobs)]
    problems += _without_kernel(parser.layers, target)
    if source.shape not in ((), data.out_shape):
        fixed = [layer.name for layer in parser.layers if layer.flattens]
        if fixed:
            problems.append(
                f"layer '{source.layer}': the images have shape {data.out_shape}, the prototxt asks for "
                f"{source.shape}; the weights of layer '{fixed[0]}' are for this size alone"
            )
    if problems:
        raise Q7Error("; ".join(problems))
    layers = parser.layers
    left_out = [layer for layer in ends if layer.keeps_order and len(ends) == 1]
    scores = frozenset(layer.inputs[0] for layer in left_out)
    names = [layer.inputs[0] if layer in left_out else layer.name for layer in ends]
    names = _weighted(layers, names, outputs)
    layers = _leading_to(layers, names)
    shape = layers[-1].out_shape
    vector = len(names) == 1 and math.prod(shape[1:]) == 1
    if outputs.labelled and not vector:
        raise Q7Error(f"'{outputs.blobs[0]}' has shape {shape}, allowed is one value for each class")
    tops[outputs.name], bottoms[outputs.name] = outputs.tops, outputs.bottoms
    return Graph(
        prototxt.name,
        mark_shared(layers, names),
        {},
        outputs.name,
        tops,
        bottoms,
        outputs=tuple(names),
        classifier=vector and outputs.classes,
        scores=scores,
        top_k=tuple(k for k in outputs.top_k if k == 1 or k < math.prod(shape)),
    )


def _weighted(layers: Sequence[Layer], names: Sequence[str], outputs: Outputs) -> list[str]:
    """The output layers that a weighted layer leads to; raises Q7Error where one that was asked for is none of them."""
    led: set[str] = set()
    for layer in layers:
        if layer.weighted or not led.isdisjoint(layer.inputs):
            led.add(layer.name)
    found = [name for name in names if name in led]
    if len(found) < len(names) and (outputs.labelled or outputs.named or not found):
        reads = f"accuracy layer '{outputs.name}' reads" if outputs.labelled else "the network's output is"
        blob = next(blob for blob, name in zip(outputs.blobs, names) if name not in led)
        raise Q7Error(f"{reads} '{blob}', which no weighted layer leads to")
    return found


def _leading_to(layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """The layers that some of them depend on, and the input."""
    wanted = {*names, layers[0].name}
    for layer in reversed(layers):
        if layer.name in wanted:
            wanted.update(layer.inputs)
    return [layer for layer in layers if layer.name in wanted]


def _without_kernel(layers: Sequence[Layer], target: Target) -> Iterator[str]:
    for layer in layers:
        try:
            layer.kernel_for(target)
        except Q7Error as error:
            yield str(error)


def _fits(blob: np.ndarray, shape: Shape) -> bool:
    """Equal shapes, or equal up to leading ones of the four old axes."""
    return blob.shape == shape or (blob.ndim == 4 and blob.shape == (1,) * (4 - len(shape)) + shape)


def _misshapen(graph: Graph, layer: Layer, found: Sequence[np.ndarray], data: Path | None) -> str:
    """Why a layer's blobs do not fit."""
    image = graph.input.out_shape
    wanted = layer.weight_shapes()
    if graph.input.name in layer.inputs and found and found[0].ndim == len(wanted[0]) == 4:
        trained, asked = found[0].shape, wanted[0]
        channels = image[0] * trained[1] // asked[1]  # of all groups
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
    """Gives layers their trained weights.

    Raises Q7Error where blobs are missing, misshapen (for the images in `data`) or not finite.
    """
    weights: dict[str, Weights] = {}
    for layer in graph.layers:
        shapes = layer.weight_shapes()
        if not shapes:
            continue
        found = blobs.get(layer.name)
        if found is None:
            raise Q7Error(f"layer '{layer.name}' has no weights in the weights file; it has: {', '.join(blobs)}")
        if len(found) != len(shapes) or not all(map(_fits, found, shapes)):
            raise Q7Error(_misshapen(graph, layer, found, data))
        if not all(np.isfinite(blob).all() for blob in found):
            raise Q7Error(f"layer '{layer.name}': its weights hold NaN or infinity")
        weights[layer.name] = layer.load([blob.reshape(shape) for blob, shape in zip(found, shapes)])
    return replace(graph, weights=weights)
