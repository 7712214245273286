# SPDX-License-Identifier: Apache-2.0
"""Images for the known-answer test: from the data that a network was quantized with, or a picture."""

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
    """(..., C, H, W) as the network takes them; raises UserError where they are of another shape."""
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
    """The first images (N, C, H, W) of the test data, or all, cropped, with their labels.

    More bytes than `in_memory` may stay in their file. Raises UserError where there are too few, or their shape
    is another.
    """
    if count and (held := network.reader.count(path)) < count:
        raise UserError(f"'{path}' holds {held} images, asked for are {count}")
    return network.reader.open(path, count, partial(_cropped, network, path), in_memory)


def read_positions(network: QuantizedNetwork, path: Path, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """As `open_images`, of the images at these positions alone, counted from 0."""
    images, labels = network.reader.read_at(path, positions)
    return np.ascontiguousarray(_cropped(network, path, images)), labels


def read_picture(network: QuantizedNetwork, path: Path, order: str) -> tuple[np.ndarray, np.ndarray]:
    """A PNG or JPEG as the network's input (1, C, H, W): cut about its centre to the input's shape, then resized.

    `order` says which way the channels of a colour image go, "bgr" or "rgb".
    """
    from PIL import Image, ImageOps

    channels, height, width = network.graph.input.out_shape
    if network.graph.input.features:
        raise UserError("the network takes features, and no pictures")
    if channels not in (1, 3):
        raise UserError(f"a picture has 1 or 3 channels, the network takes {channels}")
    with pictures.opened(path, f"the picture '{path}'") as image:
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
        return pictures.channels_first(fitted, order)[None], np.array([NO_LABEL], np.int32)
