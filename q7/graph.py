# SPDX-License-Identifier: Apache-2.0
"""The network as an ordered list of typed layers, read from Caffe's files and simplified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from q7 import caffe_files, files
from q7.affine import Affine
from q7.caffe_files import Blobs, Prototxt
from q7.errors import Q7Error
from q7.layers import IDENTITIES, LAYERS, Declined, Input, Layer, Shape, Weights
from q7.qformat import LayerFormats, QFormat


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
        return math.prod(self.output.out_shape)

    def live(self, position: int) -> tuple[Layer, ...]:
        """The layers before `position` whose outputs are read at or behind it; at the end, the output layer."""
        if position >= len(self.layers):
            return (self.output,)
        wanted = {name for layer in self.layers[position:] for name in layer.inputs}
        return tuple(layer for layer in self.layers[:position] if layer.name in wanted)

    def sweep_order(self) -> list[Layer]:
        """Weighted layers as the original orders them: convolutions in file order, then inner products."""
        weighted = [layer for layer in self.layers if layer.weighted]
        return sorted(weighted, key=lambda layer: len(layer.out_shape) == 1)

    def formats(
        self, w: Mapping[str, QFormat], b: Mapping[str, QFormat], y: Mapping[str, QFormat]
    ) -> dict[str, LayerFormats]:
        """The formats of every layer, where outputs without a format of their own inherit their input's."""
        table: dict[str, LayerFormats] = {}
        for layer in self.layers:
            xs = [q for q in (table[name].y for name in layer.inputs) if q]
            own = y[layer.name] if layer.own_format else layer.inherited(xs[0])
            trained = (w[layer.name], b[layer.name]) if layer.weighted else (None, None)
            table[layer.name] = LayerFormats(xs[0] if xs else None, trained[0], trained[1], own, tuple(xs[1:]))
        return table


def crop_centre(images: np.ndarray, size: int) -> np.ndarray:
    """(..., size, size) out of (..., height, width), as Caffe's data_transformer.cpp does at TEST; 0 crops nothing."""
    if not size:
        return images
    top, left = ((extent - size) // 2 for extent in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


@dataclass(frozen=True, eq=False)
class DataSource:
    """What the TEST phase's data layer says: where the images are, batch size, and how they are transformed."""

    layer: str
    top: str
    label: str
    folder: Path  # the prototxt's, where relative paths are looked for second
    lmdb: str
    batch_size: int
    mean_file: str = ""
    mean_values: tuple[float, ...] = ()
    scale: float = 1.0
    crop: int = 0

    def find_lmdb(self) -> Path:
        return files.find(self.lmdb, self.folder, f"layer '{self.layer}': the LMDB")

    def find_mean(self) -> Path:
        return files.find(self.mean_file, self.folder, f"layer '{self.layer}': the mean file")

    def crop_image(self, images: np.ndarray) -> np.ndarray:
        """Cuts the centre out of (..., height, width) arrays, where there is a crop_size."""
        height, width = images.shape[-2:]
        if self.crop > min(height, width):
            raise Q7Error(f"layer '{self.layer}': crop_size {self.crop} is larger than the image, {height}x{width}")
        return crop_centre(images, self.crop)

    def _mean(self, image_shape: Shape) -> np.ndarray:
        """CHW or (C, 1, 1)."""
        if not self.mean_file:
            values = self.mean_values or (0.0,)
            if len(values) not in (1, image_shape[0]):
                raise Q7Error(f"layer '{self.layer}': {len(values)} mean values for {image_shape[0]} channels")
            return np.broadcast_to(np.array(values, np.float32)[:, None, None], (image_shape[0], 1, 1)).copy()
        mean = caffe_files.read_mean(self.find_mean())
        if mean.shape != image_shape:
            raise Q7Error(f"layer '{self.layer}': the mean has shape {mean.shape}, the images have {image_shape}")
        return np.ascontiguousarray(self.crop_image(mean))

    def input(self, image_shape: Shape) -> Input:
        """The input layer for CHW images of a shape; raises Q7Error where the mean does not fit them."""
        mean = self._mean(image_shape)
        if not (mean.min() >= -0.5 and mean.max() <= 255.5):
            raise Q7Error(f"layer '{self.layer}': the mean must lie within a pixel's range, 0 to 255")
        shape = self.crop_image(np.broadcast_to(np.uint8(0), image_shape)).shape
        return Input(self.layer, (), self.top, (shape,), mean=mean, scale=self.scale)


def _check_known(prototxt: Prototxt, index: int) -> None:
    if index in prototxt.unknown:
        name, field = prototxt.layers[index].name, prototxt.unknown[index]
        raise Q7Error(f"layer '{name}' has a field that this tool does not know: {field}")


def find_accuracy(prototxt: Prototxt, name: str) -> Any:
    """The Accuracy layer that `name` or its top blob names; raises Q7Error that lists those that exist."""
    layers = {i: layer for i, layer in enumerate(prototxt.layers) if layer.type == "Accuracy"}
    for index, layer in layers.items():
        if name == layer.name or name in layer.top:
            _check_known(prototxt, index)
            param = layer.accuracy_param
            if (param.top_k, param.axis, param.HasField("ignore_label"), len(layer.bottom)) != (1, 1, False, 2):
                raise Q7Error(
                    f"accuracy layer '{layer.name}': it must have top_k 1, axis 1, no ignore_label and 2 bottoms"
                )
            return layer
    known = ", ".join(f"'{layer.name}'" for layer in layers.values()) or "none"
    raise Q7Error(f"'{prototxt.path}' has no accuracy layer '{name}' in the TEST phase; it has: {known}")


def data_source(prototxt: Prototxt) -> DataSource:
    """What the TEST phase's data layer says; raises Q7Error where it asks for what cannot be done."""
    index = next((i for i, message in enumerate(prototxt.layers) if message.type == "Data"), None)
    if index is None:
        raise Q7Error(f"'{prototxt.path}' has no layer of type Data in the TEST phase")
    _check_known(prototxt, index)
    message = prototxt.layers[index]
    where = f"layer '{message.name}'"
    transform, param = message.transform_param, message.data_param
    if transform.mirror or param.rand_skip:
        raise Q7Error(f"{where}: mirror and rand_skip are random, and refused in the TEST phase")
    if transform.force_color or transform.force_gray or param.force_encoded_color:
        raise Q7Error(f"{where}: force_color and force_gray are not supported: the device gets the pixels as they are")
    if not (math.isfinite(transform.scale) and transform.scale > 0):
        raise Q7Error(f"{where}: scale {transform.scale:g} must be positive")
    if transform.mean_file and transform.mean_value:
        raise Q7Error(f"{where}: mean_file and mean_value exclude each other")
    if param.backend != param.LMDB:
        raise Q7Error(f"{where}: backend LEVELDB, allowed is LMDB")
    if param.batch_size < 1 or not message.top:
        raise Q7Error(f"{where}: batch_size {param.batch_size} and {len(message.top)} tops must be at least 1")
    return DataSource(
        layer=message.name,
        top=message.top[0],
        label=message.top[1] if len(message.top) > 1 else "",
        folder=prototxt.path.parent,
        lmdb=param.source,
        batch_size=param.batch_size,
        mean_file=transform.mean_file,
        mean_values=tuple(transform.mean_value),
        scale=transform.scale,
        crop=transform.crop_size,
    )


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


def parse(prototxt: Prototxt, accuracy: str, source: DataSource, image_shape: Shape) -> Graph:
    """The layers between the data and the accuracy layer, without weights yet.

    Raises Q7Error that lists every layer that cannot be taken.
    """
    target = find_accuracy(prototxt, accuracy)
    if target.bottom[1] != source.label:
        raise Q7Error(f"accuracy layer '{target.name}' reads '{target.bottom[1]}', which is not the data layer's label")
    input_layer = source.input(image_shape)
    parser = _Parser([input_layer], {source.top: input_layer})
    tops, bottoms, problems = {source.layer: (source.top, source.label)}, {source.layer: ()}, []
    for index in _ancestors(prototxt.layers, target.bottom[0]):
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
            parser.written.update(dict.fromkeys(message.top, input_layer))  # go on, to report all layers at once
            continue
        if layer:
            tops[layer.name], bottoms[layer.name] = tuple(message.top), tuple(message.bottom)
    problems += [f"layer '{layer.name}' ({layer.caffe_type}): {why}" for layer, why in _misplaced(parser.layers)]
    if problems:
        raise Q7Error("; ".join(problems))
    layers = parser.layers
    if layers[-1].last_only:
        layers = layers[:-1]
    if not any(layer.weighted for layer in layers):
        raise Q7Error(f"accuracy layer '{target.name}' reads '{target.bottom[0]}', which no weighted layer leads to")
    tops[target.name], bottoms[target.name] = tuple(target.top), tuple(target.bottom)
    return Graph(prototxt.name, mark_shared(layers), {}, target.name, tops, bottoms)


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
            assert own.w and own.b
            w, b = graph.weights[layer.name]
            pair = (own.w.dequantize(own.w.quantize(w)), own.b.dequantize(own.b.quantize(b)))
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
