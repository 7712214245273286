# SPDX-License-Identifier: Apache-2.0
"""Converts a prototxt's layers one by one, and collects the unsupported ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt
from caffe_to_cmsis_nn.data.source import SOURCES
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.ops.base import LARGEST_NETWORK, Layer, Shape, UnsupportedLayer
from caffe_to_cmsis_nn.ops.identities import IDENTITIES
from caffe_to_cmsis_nn.ops.moves import Move, Reshape
from caffe_to_cmsis_nn.ops.registry import LAYERS, layer_class
from caffe_to_cmsis_nn.target import Target

MOST_NAMES = 3  # of layers in a message


@dataclass
class Problems:
    """The unsupported layers, grouped by type and reason."""

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, name: str, kind: str, reason: str) -> None:
        self.found.setdefault((kind, reason), []).append(name)

    def __str__(self) -> str:
        return "; ".join(f"{self._layers(names)} ({kind}): {reason}" for (kind, reason), names in self.found.items())

    @staticmethod
    def _layers(names: Sequence[str]) -> str:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        named = ", ".join(f"'{name}'" for name in names[:MOST_NAMES])
        return f"layer{'s' * (len(names) > 1)} {named}{more}"


def not_supported(prototxt: Prototxt, index: int) -> str:
    """Why a layer is not supported, whatever its input; empty if it may be."""
    kind = prototxt.layers[index].type
    if kind not in LAYERS and kind not in IDENTITIES and kind not in SOURCES:
        return "this type is not supported"
    unknown = prototxt.unknown.get(index, "")
    return f"it has a field that this tool does not know: {unknown}" if unknown else ""


def _without_kernel(layer: Layer, target: Target) -> str:
    """Why no kernel supports a layer; empty if one does."""
    try:
        layer.kernel_for(target)
    except UserError as error:
        return str(error).split(": ", 1)[1]
    return ""


@dataclass
class LayerParser:
    """The layers read so far, in file order, and the last writer of each blob."""

    layers: list[Layer]
    written: dict[str, Layer]
    tops: dict[str, tuple[str, ...]]
    bottoms: dict[str, tuple[str, ...]]
    # Blobs that Caffe flattens, with the move that does it. The move is added only for layers that need it: inner
    # products read the image as it is.
    flat: dict[str, Layer] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)  # blobs after an unsupported layer, with guessed shapes
    elements: int = 0  # of all layer outputs except the input

    @classmethod
    def of(cls, data: Layer, label: str) -> LayerParser:
        """A parser after the data layer, which may also write labels."""
        tops = (data.blob, label) if label else (data.blob,)
        return cls([data], {data.blob: data}, {data.name: tops}, {data.name: ()})

    def take(self, message: Any, declined: str, problems: Problems) -> None:
        """Reads a layer, unless it is `declined`; on errors, continues in order to report all layers at once."""
        try:
            if declined or message.type in SOURCES:
                raise UnsupportedLayer(declined or "a second input, allowed is one")
            self.read(message)
        except UnsupportedLayer as reason:
            if declined or not self.guesses(message):
                problems.add(message.name, message.type, str(reason))
            self.stand_in(message)
        else:
            if self.guesses(message):
                self.guessed.update(message.top)

    def look_for_kernels(self, target: Target, problems: Problems) -> None:
        """Adds the layers that no kernel supports to `problems`."""
        for layer in self.layers:
            if layer.blob not in self.guessed and (why := _without_kernel(layer, target)):
                problems.add(layer.name, layer.caffe_type, why)

    def read(self, message: Any) -> None:
        """Adds the layers of a message, if any; raises UnsupportedLayer."""
        missing = [blob for blob in message.bottom if blob not in self.written]
        for blob in missing:
            if source := next((name for name, tops in self.tops.items() if blob in tops), ""):
                raise UnsupportedLayer(f"its input '{blob}' is not the first top of layer '{source}': not supported")
        if missing or not message.bottom or not message.top:
            raise UnsupportedLayer(f"no layer writes its input '{', '.join(missing)}'")
        if message.type in IDENTITIES:
            self._same(message)
            return
        cls = layer_class(message, self._in_shapes(message))
        if len(message.bottom) > cls.most_inputs:
            raise UnsupportedLayer(f"it has {len(message.bottom)} inputs, allowed is {cls.most_inputs}")
        flat = [self.flat.get(blob) for blob in message.bottom]
        stays_flat = cls.elementwise and None not in flat
        if not (cls.flattens or stays_flat):
            self._flatten(message.bottom)
        inputs, in_shapes = tuple(self.written[blob].name for blob in message.bottom), self._in_shapes(message)
        layers = cls.parse_all(message, inputs, in_shapes)
        for top in message.top:
            self.flat.pop(top, None)
        if len(layers) == 1 and isinstance(layers[0], Move) and self._changes_nothing(layers[0]):
            self._same(message)
            if layers[0].out_shape != layers[0].in_shape and math.prod(layers[0].in_shape[1:]) > 1:
                self.flat[message.top[0]] = layers[0]
            return
        for layer in layers:
            bottoms = message.bottom if layer.inputs == inputs else layer.inputs
            self._add(layer, bottoms, message.top if len(layers) == 1 else (layer.blob,))
        if stays_flat and flat[0]:
            self.flat[layers[0].blob] = replace(flat[0], inputs=(layers[0].name,))

    def _in_shapes(self, message: Any) -> tuple[Shape, ...]:
        return tuple(self.written[blob].out_shape for blob in message.bottom)

    @staticmethod
    def _changes_nothing(layer: Move) -> bool:
        """Whether elements stay in place, or a Reshape makes an image a vector, which its readers can handle."""
        if len(layer.out_shape) == 1 and len(layer.in_shape) == 3:
            return isinstance(layer, Reshape)
        return layer.out_shape == layer.in_shape and layer.loops.nothing

    def _same(self, message: Any) -> None:
        """Skips a layer that changes nothing."""
        blob = message.bottom[0]
        for top in message.top:
            self.written[top] = self.written[blob]
            flat = self.flat.get(blob)
            self.flat.pop(top, None)
            if flat:
                self.flat[top] = flat

    def _flatten(self, blobs: Sequence[str]) -> None:
        """Adds moves to Caffe's order for a layer that needs it."""
        for blob in dict.fromkeys(blobs):
            if blob in self.flat:
                move = replace(self.flat.pop(blob), inputs=(self.written[blob].name,), blob=blob)
                if any(layer.name == move.name for layer in self.layers):
                    move = replace(move, name=f"{move.name}/{blob}")
                self._add(move, [move.blob], (blob,))

    def _add(self, layer: Layer, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if any(layer.name == known.name for known in self.layers):
            raise UnsupportedLayer("a layer of the same name comes before it")
        total = self.elements + layer.out_size
        if total > LARGEST_NETWORK:
            raise UnsupportedLayer(f"outputs of {total} elements up to here, allowed are {LARGEST_NETWORK} in all")
        self.elements = total
        self.layers.append(layer)
        self.written[layer.blob] = layer
        self.tops[layer.name], self.bottoms[layer.name] = tuple(tops), tuple(bottoms)

    def stand_in(self, message: Any) -> None:
        """Treats an unsupported layer as one that changes nothing, since most unknown layers keep the shape."""
        source = next((self.written[blob] for blob in message.bottom if blob in self.written), self.layers[0])
        self.written.update(dict.fromkeys(message.top, source))
        self.guessed.update(message.top)

    def guesses(self, message: Any) -> bool:
        """Whether the shapes of a layer's inputs are guesses."""
        return not self.guessed.isdisjoint(message.bottom)
