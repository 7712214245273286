# SPDX-License-Identifier: Apache-2.0
"""Picture files as pixels; those of data sets as OpenCV decodes and resizes them for Caffe."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.errors import UserError

LARGEST_IMAGE = 1 << 24  # pixels of an image of a data set
LARGEST_PICTURE = 1 << 25  # of a photograph
GREY = ("1", "L")
COLOURS = ("RGB", "P")  # Pillow's modes


@contextlib.contextmanager
def opened(
    source: Path | bytes,
    where: str,
    formats: tuple[str, ...] | None = None,
    modes: tuple[str, ...] | None = None,
    alpha: bool = True,
    most: int = LARGEST_PICTURE,
) -> Iterator[Any]:
    """Pillow's image of a file or of its bytes, not decoded yet, in one of some formats and modes and of a size.

    Raises UserError, which begins with `where`, where it is not, or where what the caller does with it fails.
    """
    from PIL import Image

    with files.reading(where), contextlib.ExitStack() as stack:
        file = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(files.opened(source))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow's, about damage that it makes good, and about sizes
        image = stack.enter_context(Image.open(file, formats=formats))
        if image.width * image.height > most:
            raise UserError(f"{where}: an image of {image.width}x{image.height} pixels is too large")
        if (modes and image.mode not in modes) or (not alpha and "transparency" in image.info):
            allowed = "8-bit grey and colours" + ("" if alpha else " without alpha")
            raise UserError(f"{where}: an image of mode {image.mode}, allowed are {allowed}")
        yield image


def channels_first(image: Any, order: str) -> np.ndarray:
    """(C, H, W) uint8 of an image of mode L or RGB, whose colours go in the order "bgr" or "rgb"."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels[None]
    return np.ascontiguousarray((pixels[..., ::-1] if order == "bgr" else pixels).transpose(2, 0, 1))


def decode(data: bytes, where: str) -> np.ndarray:
    """A JPEG or PNG as uint8 CHW; colours come in the order blue, green, red, as OpenCV gives them to Caffe."""
    modes = (*GREY, *COLOURS, "CMYK", "YCbCr")
    with opened(
        data, f"{where}: the encoded image", ("BMP", "JPEG", "PNG"), modes, alpha=False, most=LARGEST_IMAGE
    ) as image:
        return channels_first(image.convert("L" if image.mode in GREY else "RGB"), "bgr")


LUMA = np.array([4899, 9617, 1868])  # of red, green and blue, in 2**-14: OpenCV's
BLOCK = 1 << 18  # pixels that are computed at once, in 32 or 64 bits each


def _in_blocks(rows: Callable[[int, int], np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """The uint8 image (H, W, C) of which `rows` gives those from one to before another."""
    image, step = np.empty(shape, np.uint8), max(1, BLOCK // shape[1])
    for first in range(0, shape[0], step):
        image[first : first + step] = rows(first, min(first + step, shape[0]))
    return image


def read(path: Path, color: bool) -> np.ndarray:
    """A picture file as uint8 (H, W, C): blue, green, red, or grey, upright, without alpha, as OpenCV reads it."""
    from PIL import ImageOps

    modes = (*GREY, *COLOURS, "LA", "RGBA")
    with opened(path, f"the image '{path}'", ("BMP", "JPEG", "PNG", "PPM"), modes, most=LARGEST_IMAGE) as image:
        if not color:
            image.draft("L", image.size)  # a JPEG's brightness, not that of its decoded colours
        upright = ImageOps.exif_transpose(image)
        if not color and upright.mode == "L":
            return np.asarray(upright)[..., None]
        pixels = np.asarray(upright.convert("RGB"))
        if color:
            return pixels[..., ::-1]
        return _in_blocks(
            lambda first, end: ((pixels[first:end] @ LUMA + (1 << 13)) >> 14)[..., None], (*pixels.shape[:2], 1)
        )


def _neighbours(extent: int, size: int, at_edges: bool) -> tuple[np.ndarray, ...]:
    """Of each of `size` cells: the two of `extent` that it is made of, and their weights in 2048ths.

    `at_edges` says that what lies at an edge is made of one cell.
    """
    centre = ((np.arange(size) + 0.5) * (extent / size) - 0.5).astype(np.float32)
    first = np.floor(centre).astype(int)
    part = centre - first.astype(np.float32)
    if at_edges:
        part[(first < 0) | (first >= extent - 1)] = 0
    weights = (np.rint(w * np.float32(2048)).astype(np.int64) for w in (1 - part, part))
    return np.clip(first, 0, extent - 1), np.clip(first + 1, 0, extent - 1), *weights


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) uint8 as OpenCV's cv::resize with INTER_LINEAR has it, to the last bit (compared with 4.8).

    Two neighbours along each axis, whatever the factor; a factor of exactly 2 takes the mean of 2x2 pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    shape = height, width, image.shape[2]
    if image.shape[:2] == (2 * height, 2 * width):

        def mean(first: int, end: int) -> np.ndarray:
            cells = image[2 * first : 2 * end].reshape(end - first, 2, width, 2, -1)
            return (cells.sum(axis=(1, 3), dtype=np.int64) + 2) >> 2

        return _in_blocks(mean, shape)
    left, right, *across = _neighbours(image.shape[1], width, at_edges=True)
    top, bottom, *down = _neighbours(image.shape[0], height, at_edges=False)
    (to_left, to_right), (to_top, to_bottom) = (w[:, None] for w in across), (w[:, None, None] for w in down)

    def weighted(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return ((image[rows][:, left] * to_left + image[rows][:, right] * to_right) >> 4) * weights >> 16

    def interpolated(first: int, end: int) -> np.ndarray:
        some = slice(first, end)
        return (weighted(top[some], to_top[some]) + weighted(bottom[some], to_bottom[some]) + 2) >> 2

    return _in_blocks(interpolated, shape)
