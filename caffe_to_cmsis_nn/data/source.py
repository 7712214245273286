# SPDX-License-Identifier: Apache-2.0
"""What a prototxt says about the images: where they are, and how they are transformed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import read_mean
from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt
from caffe_to_cmsis_nn.data.image_set import crop_centre
from caffe_to_cmsis_nn.data.readers import Hdf5List, ImageList, LevelDb, Lmdb, Reader
from caffe_to_cmsis_nn.errors import UserError


@dataclass(frozen=True, eq=False)
class DataSource:
    """What the TEST phase's data layer says: where the images are, batch size, and how they are transformed."""

    layer: str
    top: str
    label: str  # the blob; none in a deploy prototxt
    folder: Path  # the prototxt's, where relative paths are looked for second
    images: str  # the path of what the reader reads
    batch_size: int
    mean_file: str = ""
    mean_values: tuple[float, ...] = ()
    scale: float = 1.0
    crop: int = 0
    shape: tuple[int, ...] = ()  # CHW that the prototxt asks for, where it does
    reader: Reader = field(default_factory=Lmdb)
    mirrored: bool = False  # by chance, as the prototxt says; not here

    def find_images(self) -> Path:
        if not self.images:
            raise UserError(f"layer '{self.layer}' names no data: give the test images with --lmdb")
        maker = "; models/get_cifar10.py makes it" if "cifar10" in self.images else ""
        return files.find(self.images, self.folder, f"layer '{self.layer}': the {self.reader.kind}", maker)

    def find_mean(self) -> Path:
        return files.find(self.mean_file, self.folder, f"layer '{self.layer}': the mean file")

    def crop_image(self, images: np.ndarray) -> np.ndarray:
        """Cuts the centre out of (..., height, width) arrays, where there is a crop_size."""
        height, width = images.shape[-2:]
        if self.crop > min(height, width):
            raise UserError(f"layer '{self.layer}': crop_size {self.crop} is larger than the image, {height}x{width}")
        return crop_centre(images, self.crop)

    def mean(self, image_shape: tuple[int, ...]) -> np.ndarray:
        """CHW or (C, 1, 1)."""
        if not self.mean_file:
            values = self.mean_values or (0.0,)
            if len(values) not in (1, image_shape[0]):
                raise UserError(f"layer '{self.layer}': {len(values)} mean values for {image_shape[0]} channels")
            return np.broadcast_to(np.array(values, np.float32)[:, None, None], (image_shape[0], 1, 1)).copy()
        mean = read_mean(self.find_mean())
        if mean.shape != image_shape:
            raise UserError(f"layer '{self.layer}': the mean has shape {mean.shape}, the images have {image_shape}")
        return np.ascontiguousarray(self.crop_image(mean))


def _check_scale(layer: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"layer '{layer}': scale {scale:g} must be positive")


def _from_data(prototxt: Prototxt, message: Any) -> DataSource:
    where, param = f"layer '{message.name}'", message.data_param
    if param.force_encoded_color:
        raise UserError(f"{where}: force_encoded_color is not supported: the device gets the pixels as they are")
    reader = Lmdb() if param.backend == param.LMDB else LevelDb()
    return _from_source(prototxt, message, param, param.rand_skip, reader)


def _from_image_data(prototxt: Prototxt, message: Any) -> DataSource:
    """In the list's order, also where it says shuffle."""
    param = message.image_data_param
    if bool(param.new_height) != bool(param.new_width):
        raise UserError(f"layer '{message.name}': new_height and new_width go together")
    reader = ImageList(param.new_height, param.new_width, param.root_folder, param.is_color)
    return _from_source(prototxt, message, param, param.rand_skip, reader)


def _from_hdf5_data(prototxt: Prototxt, message: Any) -> DataSource:
    """The data sets have the names of the tops; in the list's order, also where it says shuffle."""
    if message.HasField("transform_param"):
        raise UserError(f"layer '{message.name}': Caffe's HDF5Data takes no transform_param")
    return _from_source(prototxt, message, message.hdf5_data_param, 0, Hdf5List(*message.top[:2]))


def _from_source(prototxt: Prototxt, message: Any, param: Any, rand_skip: int, reader: Reader) -> DataSource:
    """What the layers with a source, batch_size and transform_param have in common."""
    where, transform = f"layer '{message.name}'", message.transform_param
    if rand_skip:
        raise UserError(f"{where}: rand_skip is random, and refused in the TEST phase")
    if transform.force_color or transform.force_gray:
        raise UserError(
            f"{where}: force_color and force_gray are not supported: the device gets the pixels as they are"
        )
    _check_scale(message.name, transform.scale)
    if transform.mean_file and transform.mean_value:
        raise UserError(f"{where}: mean_file and mean_value exclude each other")
    if param.batch_size < 1 or not message.top:
        raise UserError(f"{where}: batch_size {param.batch_size} and {len(message.top)} tops must be at least 1")
    return DataSource(
        layer=message.name,
        top=message.top[0],
        label=message.top[1] if len(message.top) > 1 else "",
        folder=prototxt.path.parent,
        images=param.source,
        batch_size=param.batch_size,
        mean_file=transform.mean_file,
        mean_values=tuple(transform.mean_value),
        scale=transform.scale,
        crop=transform.crop_size,
        reader=reader,
        mirrored=transform.mirror,
    )


def _from_shape(prototxt: Prototxt, name: str, top: str, dims: Sequence[int]) -> DataSource:
    """The input of a deploy prototxt: a shape (N, C, H, W), or none."""
    if len(dims) not in (0, 4) or min(dims, default=1) < 1:
        raise UserError(
            f"layer '{name}': the input has shape {list(dims)}, allowed is (images, channels, height, width)"
        )
    return DataSource(
        layer=name,
        top=top,
        label="",
        folder=prototxt.path.parent,
        images="",
        batch_size=dims[0] if dims else 1,
        shape=tuple(dims[1:]),
    )


def _from_input(prototxt: Prototxt, message: Any) -> DataSource:
    shapes = message.input_param.shape
    if not message.top:
        raise UserError(f"layer '{message.name}' has no top")
    return _from_shape(prototxt, message.name, message.top[0], tuple(shapes[0].dim) if shapes else ())


SOURCES: dict[str, Callable[[Prototxt, Any], DataSource]] = {
    "Data": _from_data,
    "ImageData": _from_image_data,
    "HDF5Data": _from_hdf5_data,
    "Input": _from_input,
}


def data_source(prototxt: Prototxt) -> DataSource:
    """What the TEST phase's data layer or a deploy prototxt's input says; raises UserError where it cannot be done."""
    for name, dims in prototxt.inputs.items():
        return _from_shape(prototxt, name, name, dims)
    index = next((i for i, message in enumerate(prototxt.layers) if message.type in SOURCES), None)
    if index is None:
        others = [f"'{m.name}' ({m.type})" for m in prototxt.layers if not m.bottom]
        found = f"; it begins with {', '.join(others)}" if others else ""
        raise UserError(f"'{prototxt.path}' has no layer of type {', '.join(SOURCES)} in the TEST phase{found}")
    prototxt.check_known(index)
    return SOURCES[prototxt.layers[index].type](prototxt, prototxt.layers[index])


def override(
    source: DataSource,
    lmdb: str | None,
    mean: str | None,
    scale: float | None,
    crop: int | None,
    size: tuple[int, ...] | None = None,
) -> DataSource:
    """What the prototxt says, replaced by what is given.

    `mean` is a file, or values with commas between them; `size` is a height and a width for pictures.
    """
    if mean is not None:
        try:
            source = replace(source, mean_values=tuple(map(float, mean.split(","))), mean_file="")
        except ValueError:
            source = replace(source, mean_values=(), mean_file=mean)
    if scale is not None:
        _check_scale(source.layer, scale)
        source = replace(source, scale=scale)
    if crop is not None:
        if crop < 0:
            raise UserError(f"crop {crop} must be 0 or more")
        source = replace(source, crop=crop)
    if lmdb:
        reader = LevelDb() if (Path(lmdb) / "CURRENT").is_file() else Lmdb()
        source = replace(source, images=lmdb, reader=reader)
    if size:
        source = replace(source, reader=source.reader.resized(*size))
    if isinstance(source.reader, Hdf5List):
        if source.mean_file:
            raise UserError(
                f"layer '{source.layer}': for HDF5Data, --mean takes values, not the file '{source.mean_file}'"
            )
        return replace(source, reader=replace(source.reader, mean=source.mean_values, scale=source.scale))
    return source
