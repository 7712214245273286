# SPDX-License-Identifier: Apache-2.0
"""Images for the known-answer test: from the test data, or from a picture file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.data import pictures
from caffe_to_cmsis_nn.data.image_set import crop_centre
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork

NO_LABEL = -1


def _cropped(network: QuantizedNetwork, path: Path, images: np.ndarray) -> np.ndarray:
    """Crops images (..., C, H, W) to the network's input; raises UserError for other shapes."""
    if network.crop <= min(images.shape[-2:]):
        images = crop_centre(images, network.crop)
    if images.shape[-3:] != network.graph.input.out_shape:
        raise UserError(
            f"'{path}' has images of shape {images.shape[-3:]}, the network takes {network.graph.input.out_shape}"
        )
    return images


def open_images(
    network: QuantizedNetwork, path: Path, count: int | None = None, in_memory: float = math.inf
) -> tuple[Any, np.ndarray]:
    """The first `count` images (N, C, H, W) of the test data, or all, cropped, with their labels (N,).

    If they exceed `in_memory` bytes, images may stay in their file. Raises UserError if there are too few, or for a
    wrong shape.
    """
    if count and (held := network.reader.count(path)) < count:
        raise UserError(f"'{path}' holds {held} images, fewer than the requested {count}")
    return network.reader.open(path, count, partial(_cropped, network, path), in_memory)


def read_positions(network: QuantizedNetwork, path: Path, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """As `open_images`, for the images at these positions, counted from 0."""
    images, labels = network.reader.read_at(path, positions)
    return np.ascontiguousarray(_cropped(network, path, images)), labels


def read_picture(network: QuantizedNetwork, path: Path, order: str) -> tuple[np.ndarray, np.ndarray]:
    """A PNG or JPEG as the network's input (1, C, H, W): cropped around its centre to the aspect ratio, then resized.

    `order` is the order of colour channels, "bgr" or "rgb".
    """
    from PIL import Image, ImageOps

    channels, height, width = network.graph.input.out_shape
    if network.graph.input.features:
        raise UserError("the network takes features, not pictures")
    if channels not in (1, 3):
        raise UserError(f"a picture has 1 or 3 channels, the network takes {channels}")
    with pictures.opened(path, f"the picture '{path}'") as image:
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
        return pictures.channels_first(fitted, order)[None], np.array([NO_LABEL], np.int32)
