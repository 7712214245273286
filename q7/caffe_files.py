# SPDX-License-Identifier: Apache-2.0
"""Caffe's files: prototxt, caffemodel, HDF5 weights and images, mean. The only importer of h5py."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from google.protobuf import text_format

from q7 import caffe_pb2 as pb
from q7 import files
from q7.errors import Q7Error

Blobs = dict[str, list[np.ndarray]]

# Names of the layer types that V1's enumeration spells otherwise than by capitalized words (Caffe's upgrade_proto.cpp).
_V1_NAMES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "IM2COL": "Im2col",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}


@dataclass
class Prototxt:
    """The TEST-phase network of a prototxt, its layers in the current form.

    `unknown` maps a layer's index to the message about a field that the schema does not have.
    """

    path: Path
    name: str = ""
    layers: list[Any] = field(default_factory=list)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    unknown: dict[int, str] = field(default_factory=dict)


# --- prototxt ---------------------------------------------------------------------------------------------------------

# Comments and strings first, so that braces in them do not count.
_BRACE = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]""")
_LAYER = re.compile(r"\blayers?\s*(:\s*)?$")


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _split_layers(text: str) -> tuple[str, list[str]]:
    """The text with its layer blocks blanked, and each block alone; line numbers stay right in all of them."""
    text = _BRACE.sub(lambda match: _blank(match.group()) if match.group()[0] == "#" else match.group(), text)
    spans: list[tuple[int, int]] = []
    depth, start, last = 0, -1, 0
    for match in _BRACE.finditer(text):
        if match.group() in "{<":
            header = _LAYER.search(text, last, match.start()) if depth == 0 else None
            start = header.start() if header else start
            depth += 1
        elif match.group() in "}>":
            depth -= 1
            if depth == 0 and start >= 0:
                spans.append((start, match.end()))
                start = -1
        last = match.end()
    if start >= 0:
        spans.append((start, len(text)))
    blocks = ["\n" * text.count("\n", 0, begin) + text[begin:end] for begin, end in spans]
    for begin, end in spans:
        text = text[:begin] + _blank(text[begin:end]) + text[end:]
    return text, blocks


def _parse(path: Path, text: str) -> tuple[Any, str]:
    """Parses text into a NetParameter; a field that the schema lacks is skipped and returned as a message."""
    try:
        return text_format.Parse(text, pb.NetParameter()), ""
    except text_format.ParseError as error:
        unknown = str(error)
    with files.reading(f"the network definition '{path}'"):
        # A type that is no name of the V1 enumeration, or plain bad syntax, fails here once more.
        return text_format.Parse(text, pb.NetParameter(), allow_unknown_field=True), unknown


def _parse_layers(path: Path, text: str) -> tuple[Any, list[tuple[Any, str]]]:
    """The NetParameter, and its layers in the current form, each with the message about a field that is unknown."""
    whole, unknown = _parse(path, text)
    if not unknown:
        return whole, [(layer, "") for layer in [*whole.layer, *map(_upgrade, whole.layers)]]
    rest, blocks = _split_layers(text)
    head, unknown = _parse(path, rest)
    if unknown or head.layer or head.layers:
        raise Q7Error(f"'{path}' has a field that this tool does not know: {unknown or 'in a list of layers'}")
    parsed = [_parse(path, block) for block in blocks]
    return head, [(layer, unknown) for net, unknown in parsed for layer in [*net.layer, *map(_upgrade, net.layers)]]


def _upgrade(old: Any) -> Any:
    """A V1LayerParameter in the current form (Caffe's UpgradeV1LayerParameter); learning rates are left behind."""
    kind = pb.V1LayerParameter.LayerType.Name(old.type)
    new = pb.LayerParameter(name=old.name, type=_V1_NAMES.get(kind, kind.title().replace("_", "")))
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name in ("bottom", "top", "include", "exclude", "blobs"):
            getattr(new, name).extend(value)
        elif name.endswith("_param"):
            getattr(new, name).CopyFrom(value)
    return new


def _move_transform(layer: Any) -> None:
    """Moves scale, mean_file, crop_size and mirror of an old data_param to transform_param, as Caffe does."""
    for name in ("data_param", "image_data_param"):
        if layer.HasField(name):
            param = getattr(layer, name)
            for key in ("scale", "mean_file", "crop_size", "mirror"):
                if param.HasField(key):
                    setattr(layer.transform_param, key, getattr(param, key))


def _included(layer: Any, stages: set[str]) -> bool:
    """Whether Caffe builds the layer in the TEST phase at level 0 (Net::StateMeetsRule of Caffe's net.cpp)."""

    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == pb.TEST)
            and (not rule.HasField("min_level") or rule.min_level <= 0)
            and (not rule.HasField("max_level") or rule.max_level >= 0)
            and set(rule.stage) <= stages
            and not set(rule.not_stage) & stages
        )

    if layer.include:
        return any(meets(rule) for rule in layer.include)
    return not any(meets(rule) for rule in layer.exclude)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Q7Error(f"cannot read {what} '{path}': {error.strerror}") from error


def read_prototxt(path: Path) -> Prototxt:
    """The layers that Caffe would build in the TEST phase, old `layers {}` blocks brought to the current form.

    Raises Q7Error where the file is missing or no network definition.
    """
    # Comments may be in any encoding.
    text = _read(path, "the network definition").decode("utf-8-sig", "surrogateescape")
    with files.reading(f"the network definition '{path}'"):
        head, layers = _parse_layers(path, text)
    network = Prototxt(path, head.name)
    shapes = [list(shape.dim) for shape in head.input_shape] or [
        list(head.input_dim[i : i + 4]) for i in range(0, len(head.input_dim), 4)
    ]
    network.inputs = dict(zip(head.input, shapes))
    for layer, unknown in layers:
        if not _included(layer, set(head.state.stage)):
            continue
        _move_transform(layer)
        if unknown:
            network.unknown[len(network.layers)] = unknown
        network.layers.append(layer)
    if not network.layers:
        raise Q7Error(f"'{path}' has no layers in the TEST phase")
    return network


# --- weights and means ------------------------------------------------------------------------------------------------


def _array(blob: Any, where: str) -> np.ndarray:
    """A BlobProto as float32, in its `shape` or its old (num, channels, height, width)."""
    values = np.array(blob.double_data if blob.double_data else blob.data, np.float32)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    count = 1
    for extent in shape:
        count *= extent
    if min(shape, default=1) < 0 or count != values.size:
        raise Q7Error(f"{where}: a blob of shape {shape} holds {values.size} values")
    return values.reshape(shape)


def _message(path: Path, message: Any, what: str) -> Any:
    content = _read(path, what)
    with files.reading(f"{what} '{path}'"):
        message.ParseFromString(content)
    return message


def _read_caffemodel(path: Path) -> Blobs:
    network = _message(path, pb.NetParameter(), "the weights file")
    with files.reading(f"the weights file '{path}'"):
        return {
            layer.name: [_array(blob, f"'{path}', layer '{layer.name}'") for blob in layer.blobs]
            for layer in [*network.layers, *network.layer]
            if layer.blobs
        }


COMPRESSION = 100  # how many times the data sets may be larger than their file: far more than trained weights shrink


def _read_hdf5(path: Path) -> Blobs:
    """Caffe writes blob i of a layer to the data set /data/LAYER/i (Net::ToHDF5)."""
    found: dict[str, dict[int, np.ndarray]] = {}
    left = COMPRESSION * path.stat().st_size

    def visit(name: str, item: Any) -> None:
        nonlocal left
        layer, _, index = name.rpartition("/")
        if isinstance(item, h5py.Dataset) and index.isdigit():
            if item.dtype.kind not in "fiu":
                raise ValueError(f"data set '{name}' holds no numbers but {item.dtype}")
            if item.external or item.is_virtual:
                raise ValueError(f"data set '{name}' lies in other files")
            left -= item.nbytes
            if left < 0:
                raise ValueError(f"data set '{name}' says that it has {item.nbytes} bytes")
            found.setdefault(layer, {})[int(index)] = np.asarray(item[()], np.float32)

    with files.reading(f"the weights file '{path}'"), h5py.File(path, "r") as file:
        if not isinstance(file.get("data", getlink=True), h5py.HardLink) or not isinstance(file["data"], h5py.Group):
            raise Q7Error(f"the weights file '{path}' has no group 'data': Caffe did not write it")
        file["data"].visititems(visit)
    return {layer: [blobs[i] for i in sorted(blobs)] for layer, blobs in found.items()}


def read_hdf5_images(path: Path, data: str, label: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Two data sets of an HDF5 file: images (N, C, H, W) as float32 and labels (N,) as int32; at most `limit` rows."""

    def rows(file: h5py.File, name: str) -> np.ndarray:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise Q7Error(f"the HDF5 file '{path}' has no data set '{name}'; it has: {', '.join(file)}")
        item = file[name]
        if item.dtype.kind not in "fiu" or item.external or item.is_virtual or not item.shape:
            raise ValueError(f"data set '{name}' is no array of numbers in this file")
        if item.nbytes > COMPRESSION * path.stat().st_size:
            raise ValueError(f"data set '{name}' says that it has {item.nbytes} bytes")
        return np.asarray(item[:limit], np.float32)

    with files.reading(f"the HDF5 file '{path}'"), h5py.File(path, "r") as file:
        images, labels = rows(file, data), rows(file, label)
    if images.ndim != 4 or min(images.shape[1:]) < 1:
        raise Q7Error(
            f"'{path}': data set '{data}' has shape {images.shape}, allowed is (images, channels, height, width)"
        )
    if len(images) != labels.size or not (labels == np.rint(labels)).all() or np.abs(labels).max(initial=0) > 1e6:
        raise Q7Error(
            f"'{path}': data set '{label}' of shape {labels.shape} is not one class for each of {len(images)} images"
        )
    return images, labels.ravel().astype(np.int32)


def read_weights(path: Path) -> Blobs:
    """The trained blobs of each layer by name, float32, from HDF5 (told by its signature) or a binary caffemodel.

    Convolution weights are OIHW, inner product weights (rows, columns). Raises Q7Error for damaged files.
    """
    try:
        with open(path, "rb") as file:
            signature = file.read(8)
    except OSError as error:
        raise Q7Error(f"cannot read the weights file '{path}': {error.strerror}") from error
    return _read_hdf5(path) if signature == b"\x89HDF\r\n\x1a\n" else _read_caffemodel(path)


def caffemodel(name: str, weights: Blobs, types: dict[str, str]) -> bytes:
    """Blobs as a binary caffemodel, which carries each layer's Caffe type, too."""
    network = pb.NetParameter(name=name)
    for layer, blobs in weights.items():
        message = network.layer.add(name=layer, type=types[layer])
        for blob in blobs:
            entry = message.blobs.add(data=blob.ravel().astype(np.float32))
            entry.shape.dim.extend(blob.shape)
    content: bytes = network.SerializeToString(deterministic=True)
    return content


def write_weights(path: Path, name: str, weights: Blobs, types: dict[str, str]) -> None:
    """Writes blobs as Caffe does: HDF5 where the name ends with .h5, else a binary caffemodel."""
    if path.suffix != ".h5":
        files.write(path, caffemodel(name, weights, types))
        return
    with files.replacing(path) as (temporary,), h5py.File(temporary, "w") as file:
        for layer, blobs in weights.items():
            for i, blob in enumerate(blobs):
                file.create_dataset(f"data/{layer}/{i}", data=blob.astype(np.float32), track_times=False)


def read_mean(path: Path) -> np.ndarray:
    """The mean image of a .binaryproto, float32 CHW."""
    with files.reading(f"the mean file '{path}'"):
        mean = _array(_message(path, pb.BlobProto(), "the mean file"), f"the mean file '{path}'")
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or not np.isfinite(mean).all():
        raise Q7Error(f"the mean file '{path}' holds no finite image of shape (channels, height, width): {mean.shape}")
    return mean


def write_mean(path: Path, mean: np.ndarray) -> None:
    """Writes a CHW mean image as Caffe's compute_image_mean does."""
    channels, height, width = mean.shape
    blob = pb.BlobProto(num=1, channels=channels, height=height, width=width, data=mean.ravel().astype(np.float32))
    files.write(path, blob.SerializeToString(deterministic=True))
