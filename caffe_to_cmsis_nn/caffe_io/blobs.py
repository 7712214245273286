# SPDX-License-Identifier: Apache-2.0
"""Reads and writes Caffe's binary files: caffemodel, HDF5 weights and images, mean. Only this module imports h5py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.errors import UserError

Blobs = dict[str, list[np.ndarray]]
LONGEST_NAME = 1000  # characters of a layer's name


def _array(blob: Any, where: str) -> np.ndarray:
    """A BlobProto as float32, in its `shape` or the old (num, channels, height, width); a scalar may have neither."""
    values = np.array(blob.double_data if blob.double_data else blob.data, np.float32)
    old = ("num", "channels", "height", "width")
    shape = tuple(blob.shape.dim)
    if not blob.HasField("shape") and (values.size != 1 or any(map(blob.HasField, old))):
        shape = tuple(getattr(blob, name) for name in old)
    if min(shape, default=1) < 0 or math.prod(shape) != values.size:
        hint = "" if values.size else ": has NVCaffe written it without store_blobs_in_old_format in its solver?"
        raise UserError(f"{where}: a blob of shape {shape} holds {values.size} values{hint}")
    return values.reshape(shape)


def _read_caffemodel(path: Path) -> Blobs:
    network = pb.NetParameter.FromString(files.read(path))
    layers = [*network.layers, *network.layer]
    for layer in layers:
        if type(layer.name) is not str:  # bytes, if not UTF-8
            raise ValueError("the name of a layer is not UTF-8")
        if len(layer.name) > LONGEST_NAME:
            raise ValueError(f"the name of a layer has {len(layer.name)} characters, allowed are {LONGEST_NAME}")
    return {
        layer.name: [_array(blob, f"'{path}', layer '{layer.name}'") for blob in layer.blobs]
        for layer in layers
        if layer.blobs
    }


COMPRESSION = 100  # most times that data sets may exceed their file's size; trained weights compress far less


def _read_hdf5(path: Path) -> Blobs:
    """Reads blobs from data sets /data/LAYER/i, as Caffe writes them (Net::ToHDF5)."""
    found: dict[str, dict[int, np.ndarray]] = {}
    left = COMPRESSION * path.stat().st_size

    def visit(name: str, item: Any) -> None:
        nonlocal left
        layer, _, index = name.rpartition("/")
        if isinstance(item, h5py.Dataset) and index.isdigit():
            if item.dtype.kind not in "fiu":
                raise ValueError(f"data set '{name}' holds {item.dtype} instead of numbers")
            if item.external or item.is_virtual:
                raise ValueError(f"data set '{name}' is stored in other files")
            left -= item.nbytes
            if left < 0:
                raise ValueError(f"data set '{name}' claims to have {item.nbytes} bytes")
            found.setdefault(layer, {})[int(index)] = np.asarray(item[()], np.float32)

    with h5py.File(path, "r") as file:
        if not isinstance(file.get("data", getlink=True), h5py.HardLink) or not isinstance(file["data"], h5py.Group):
            raise UserError(f"the weights file '{path}' has no group 'data': Caffe did not write it")
        file["data"].visititems(visit)
    return {layer: [blobs[i] for i in sorted(blobs)] for layer, blobs in found.items()}


def _open_images(path: Path) -> h5py.File:
    with files.opened(path, most=math.inf):  # refuses pipes and devices
        return h5py.File(path, "r")


def _dataset(file: h5py.File, path: Path, name: str) -> Any:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise UserError(f"the HDF5 file '{path}' has no data set '{name}'; it has: {', '.join(file)}")
    item = file[name]
    if item.dtype.kind not in "fiu" or item.external or item.is_virtual or not item.shape:
        raise ValueError(f"data set '{name}' is not an array of numbers in this file")
    if item.nbytes > COMPRESSION * path.stat().st_size:
        raise ValueError(f"data set '{name}' claims to have {item.nbytes} bytes")
    return item


def count_hdf5_images(path: Path, data: str) -> int:
    """The number of rows in a data set, without reading them."""
    with files.reading(f"the HDF5 file '{path}'"), _open_images(path) as file:
        return len(_dataset(file, path, data))


def read_hdf5_images(path: Path, data: str, label: str, rows: slice | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two data sets of an HDF5 file: images (N, C, H, W) as float32 and labels (N,) as int32.

    Raises UserError for other shapes, and for labels that are not classes.
    """
    # Values beyond float32 become infinite, and are rejected later.
    with files.reading(f"the HDF5 file '{path}'"), _open_images(path) as file, np.errstate(over="ignore"):
        sets = [_dataset(file, path, name) for name in (data, label)]
        count, shape = len(sets[0]), sets[1].shape
        images, labels = (np.asarray(one[rows], np.float32) for one in sets)
    if images.ndim == 2:  # vectors
        images = images[:, :, None, None]
    if images.ndim != 4 or min(images.shape[1:]) < 1:
        raise UserError(
            f"'{path}': data set '{data}' has shape {images.shape}, allowed are (images, channels, height, width) and "
            "(vectors, features)"
        )
    sound = count == math.prod(shape) and (labels == np.rint(labels)).all() and np.abs(labels).max(initial=0) <= 1e6
    if not sound or len(images) != labels.size:
        raise UserError(f"'{path}': data set '{label}' of shape {shape} is not one class for each of {count} images")
    return images, labels.ravel().astype(np.int32)


def read_weights(path: Path) -> Blobs:
    """The trained blobs of each layer by name, float32, from HDF5 (detected by its signature) or a binary caffemodel.

    Convolution weights are OIHW, inner product weights (rows, columns). Raises UserError for damaged files.
    """
    with files.reading(f"the weights file '{path}'"):
        with files.opened(path) as file:
            signature = file.read(8)
        return _read_hdf5(path) if signature == b"\x89HDF\r\n\x1a\n" else _read_caffemodel(path)


def to_caffemodel(name: str, weights: Blobs, types: dict[str, str]) -> bytes:
    """Blobs as a binary caffemodel, which also contains each layer's Caffe type."""
    network = pb.NetParameter(name=name)
    for layer, blobs in weights.items():
        message = network.layer.add(name=layer, type=types[layer])
        for blob in blobs:
            entry = message.blobs.add(data=blob.ravel().astype(np.float32).tolist())
            entry.shape.dim.extend(blob.shape)
    return bytes(network.SerializeToString(deterministic=True))


def write_weights(path: Path, name: str, weights: Blobs, types: dict[str, str]) -> None:
    """Writes blobs as Caffe does: HDF5 if the name ends in .h5, else a binary caffemodel."""
    if path.suffix != ".h5":
        files.write(path, to_caffemodel(name, weights, types))
        return
    with files.replacing(path) as (temporary,), h5py.File(temporary, "w") as file:
        for layer, blobs in weights.items():
            for i, blob in enumerate(blobs):
                file.create_dataset(f"data/{layer}/{i}", data=blob.astype(np.float32), track_times=False)


def read_mean(path: Path) -> np.ndarray:
    """The mean image of a .binaryproto, float32 CHW; raises UserError for other contents."""
    with files.reading(f"the mean file '{path}'"):
        mean = _array(pb.BlobProto.FromString(files.read(path)), f"the mean file '{path}'")
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or not np.isfinite(mean).all():
        raise UserError(
            f"the mean file '{path}' does not hold a finite image (channels, height, width); its shape is {mean.shape}"
        )
    return mean


def write_mean(path: Path, mean: np.ndarray) -> None:
    """Writes a CHW mean image as Caffe's compute_image_mean does."""
    channels, height, width = mean.shape
    blob = pb.BlobProto(num=1, channels=channels, height=height, width=width, data=mean.ravel().astype(np.float32))
    files.write(path, blob.SerializeToString(deterministic=True))
