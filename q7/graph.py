# SPDX-License-Identifier: Apache-2.0
"""The network as an ordered list of typed layers, read from Caffe's files and simplified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from q7.affine import Affine
from q7.caffe_files import Blobs, Prototxt
from q7.dataset import DataSource, find_output
from q7.errors import Q7Error
from q7.layers import IDENTITIES, LAYERS, Declined, Input, Layer, Shape, Weights
from q7.qformat import LayerFormats, QFormat, Target

DSP_TARGET = Target()


@dataclass(frozen=True, eq=False)
class Graph:
    """Layers in an order in which each comes after its inputs, the Input first; float weights by layer name."""

    name: str
    layers: tuple[Layer, ...]
    weights: Mapping[str, Weights]
    accuracy: str
    tops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bottoms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[Affine, ...]] = field(default_factory=dict)  # into which layer's weights

    @property
    def input(self) -> Input:
        assert isinstance(self.layers[0], Input)
        return self.layers[0]

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def classes(self) -> int:
        return self.output.out_size

    def live(self, position: int) -> tuple[Layer, ...]:
        """The layers before `position` whose outputs are read at or behind it; at the end, the output layer."""
        if position >= len(self.layers):
            return (self.output,)
        wanted = {name for layer in self.layers[position:] for name in layer.inputs}
        return tuple(layer for layer in self.layers[:position] if layer.name in wanted)

    def live_size(self, position: int) -> int:
        """Elements of the outputs that are live there, for one image."""
        return sum(layer.out_size for layer in self.live(position))

    def sweep_order(self) -> list[Layer]:
        """Weighted layers as the original orders them: convolutions in file order, then inner products."""
        weighted = [layer for layer in self.layers if layer.weighted]
        return sorted(weighted, key=lambda layer: len(layer.out_shape) == 1)

    def formats(
        self, w: Mapping[str, QFormat], b: Mapping[str, QFormat | None], y: Mapping[str, QFormat]
    ) -> dict[str, LayerFormats]:
        """The formats of every layer, where outputs without a format of their own inherit their input's.

        Biases without a format are held in 32 bits.
        """
        table: dict[str, LayerFormats] = {}
        for layer in self.layers:
            xs = [q for q in (table[name].y for name in layer.inputs) if q]
            own = y[layer.name] if layer.own_format else layer.inherited(xs[0])
            trained = (w[layer.name], b.get(layer.name)) if layer.weighted else (None, None)
            table[layer.name] = LayerFormats(xs[0] if xs else None, trained[0], trained[1], own, tuple(xs[1:]))
        return table


def _ancestors(layers: Sequence[Any], blob: str) -> list[int]:
    """Indices of the layers that a blob's final value depends on, in file order."""
    wanted, found = {blob}, []
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
    flat: set[str] = field(default_factory=set)  # blobs that are images in Caffe's flat order

    def read(self, message: Any) -> Layer | None:
        """The layer, or None where it changes nothing; raises Declined."""
        missing = [blob for blob in message.bottom if blob not in self.written]
        if missing or not message.bottom or not message.top:
            raise Declined(f"no layer writes its input '{', '.join(missing)}'")
        if any(layer.name == message.name for layer in self.layers):
            raise Declined("a layer of the same name comes before it")
        inputs = tuple(self.written[blob] for blob in message.bottom)
        flat = any(blob in self.flat for blob in message.bottom)
        self.flat.difference_update(message.top)
        if message.type in IDENTITIES:
            if IDENTITIES[message.type](message, inputs[0].out_shape) or flat:
                self.flat.update(message.top)
            self.written.update(dict.fromkeys(message.top, inputs[0]))
            return None
        cls = LAYERS[message.type]
        if len(inputs) > cls.most_inputs:
            raise Declined(f"it has {len(inputs)} inputs, allowed is {cls.most_inputs}")
        if flat and not (cls.flattens or cls.elementwise):
            raise Declined("it reads a flattened image, whose order on the device is another: height, width, channels")
        layer = cls.parse(message, tuple(i.name for i in inputs), tuple(i.out_shape for i in inputs))
        self.layers.append(layer)
        self.written[layer.blob] = layer
        if flat and layer.elementwise:
            self.flat.add(layer.blob)
        return layer

    def stand_in(self, message: Any) -> None:
        """Takes a declined layer for one that changes nothing: most of those that are unknown keep the shape."""
        source = next((self.written[blob] for blob in message.bottom if blob in self.written), self.layers[0])
        self.written.update(dict.fromkeys(message.top, source))


def parse(
    prototxt: Prototxt, accuracy: str, source: DataSource, image_shape: Shape, target: Target = DSP_TARGET
) -> Graph:
    """The layers between the data and the accuracy layer, without weights yet.

    Raises Q7Error that lists every layer that cannot be taken, or that no kernel can compute on the target.
    """
    output = find_output(prototxt, accuracy, source)
    input_layer = source.input(image_shape)
    parser = _Parser([input_layer], {source.top: input_layer})
    tops: dict[str, tuple[str, ...]] = {source.layer: (source.top, source.label) if source.label else (source.top,)}
    bottoms: dict[str, tuple[str, ...]] = {source.layer: ()}
    problems: list[str] = []
    for index in _ancestors(prototxt.layers, output.blob):
        message = prototxt.layers[index]
        if message.name == source.layer and source.top in message.top:
            continue
        try:
            if message.type not in LAYERS and message.type not in IDENTITIES:
                raise Declined("this type is not supported")
            if index in prototxt.unknown:
                raise Declined(f"it has a field that this tool does not know: {prototxt.unknown[index]}")
            layer = parser.read(message)
        except Declined as reason:
            problems.append(f"layer '{message.name}' ({message.type}): {reason}")
            parser.stand_in(message)  # go on, to report all layers at once
            continue
        if layer:
            tops[layer.name], bottoms[layer.name] = tuple(message.top), tuple(message.bottom)
    problems += [f"layer '{layer.name}' ({layer.caffe_type}): {why}" for layer, why in _misplaced(parser.layers)]
    problems += _without_kernel(parser.layers, target)
    if problems:
        raise Q7Error("; ".join(problems))
    layers = parser.layers
    if layers[-1].last_only:
        layers = layers[:-1]
    if not any(layer.weighted for layer in layers):
        raise Q7Error(f"accuracy layer '{output.name}' reads '{output.blob}', which no weighted layer leads to")
    if math.prod(layers[-1].out_shape[1:]) > 1:
        raise Q7Error(f"'{output.blob}' has shape {layers[-1].out_shape}, allowed is one value for each class")
    tops[output.name], bottoms[output.name] = output.tops, output.bottoms
    return Graph(prototxt.name, mark_shared(layers), {}, output.name, tops, bottoms)


def _misplaced(layers: Sequence[Layer]) -> Iterator[tuple[Layer, str]]:
    """Layers that are supported elsewhere only, with the reason."""
    known = {layer.name: layer for layer in layers}
    for layer in layers:
        if layer.folds:
            producer = known[layer.inputs[0]]
            readers = [other.name for other in layers if producer.name in other.inputs]
            if not (producer.weighted or producer.folds):
                yield (
                    layer,
                    f"it can only be folded into a convolution or inner product, but it reads '{producer.name}'",
                )
            elif len(readers) > 1:
                others = ", ".join(f"'{name}'" for name in readers if name != layer.name)
                yield layer, f"it cannot be folded into '{producer.name}', since {others} reads that, too"
        elif layer.last_only and layer is not layers[-1]:
            yield layer, "allowed as the last layer only"


def _without_kernel(layers: Sequence[Layer], target: Target) -> Iterator[str]:
    for layer in layers:
        if not (layer.folds or layer.last_only):
            try:
                layer.kernel_for(target)
            except Q7Error as error:
                yield str(error)


def mark_shared(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that know whether others read their inputs after them."""
    read_later: set[str] = set()
    marked = []
    for layer in [*layers][::-1]:
        marked.append(replace(layer, shared_input=not read_later.isdisjoint(layer.inputs)))
        read_later.update(layer.inputs)
    return tuple(marked[::-1])


def _fits(blob: np.ndarray, shape: Shape) -> bool:
    """Equal shapes, or equal up to leading ones of the four old axes."""
    return blob.shape == shape or (blob.ndim == 4 and blob.shape == (1,) * (4 - len(shape)) + shape)


def attach_weights(graph: Graph, blobs: Blobs) -> Graph:
    """Gives layers their trained weights.

    Raises Q7Error where blobs are missing, misshapen or not finite.
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
            seen = " and ".join(str(blob.shape) for blob in found)
            raise Q7Error(
                f"layer '{layer.name}': the weights file has {seen}, the prototxt asks for "
                f"{' and '.join(map(str, shapes))}"
            )
        if not all(np.isfinite(blob).all() for blob in found):
            raise Q7Error(f"layer '{layer.name}': its weights hold NaN or infinity")
        weights[layer.name] = layer.load([blob.reshape(shape) for blob, shape in zip(found, shapes)])
    return replace(graph, weights=weights)


def quantized_blobs(graph: Graph, formats: Mapping[str, LayerFormats]) -> Blobs:
    """The trained blobs on their Q-formats' grids, float32, in the shapes that the prototxt asks for.

    What was folded into a layer gets blobs that leave its output alone, except that the first of them which can
    carries the bias of a layer that has none of its own. So the unchanged prototxt gives the quantized network.
    """
    blobs: Blobs = {}
    for layer in graph.layers:
        if layer.weighted:
            own = formats[layer.name]
            assert own.w
            w, b = graph.weights[layer.name]
            pair = (own.w.dequantize(own.w.quantize(w)), own.bias_grid.dequantize(own.quantize_bias(b)))
            shapes = layer.weight_shapes()
            blobs[layer.name] = [blob if blob.shape == shape else blob.T for blob, shape in zip(pair, shapes)]
            left = pair[1] if len(shapes) == 1 else np.zeros_like(pair[1])
            for folded in graph.folded.get(layer.name, ()):
                neutral = folded.neutral(left)
                if neutral is None:
                    neutral = folded.neutral(np.zeros_like(left))
                else:
                    left = np.zeros_like(left)
                assert neutral
                blobs[folded.name] = neutral
    return blobs


def caffe_types(graph: Graph) -> dict[str, str]:
    """Caffe's type of each layer by name."""
    folded = [layer for layers in graph.folded.values() for layer in layers]
    return {layer.name: layer.caffe_type for layer in [*graph.layers, *folded]}
