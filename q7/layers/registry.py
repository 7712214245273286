# SPDX-License-Identifier: Apache-2.0
"""Caffe's layer types that are computed, and the class of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from q7.layers.activations import Clip, LeakyReLU, ReLU, ReLU6, Sigmoid, TanH, relu
from q7.layers.affine import BatchNorm, Bias, Scale
from q7.layers.base import Layer, Shape
from q7.layers.merges import Concat, Maximum, Sum, eltwise
from q7.layers.passthrough import Softmax
from q7.layers.windowed import (
    AveragePooling,
    Convolution,
    GlobalAveragePooling,
    InnerProduct,
    MaxPooling,
    pooling,
)

CLASSES: tuple[type[Layer], ...] = (
    Convolution,
    InnerProduct,
    MaxPooling,
    AveragePooling,
    GlobalAveragePooling,
    ReLU,
    LeakyReLU,
    ReLU6,
    Clip,
    Sigmoid,
    TanH,
    BatchNorm,
    Scale,
    Bias,
    Sum,
    Maximum,
    Concat,
    Softmax,
)
Choice = Callable[[Any, tuple[Shape, ...]], type[Layer]]  # of a LayerParameter's class; raises Declined
LAYERS: dict[str, type[Layer] | Choice] = {
    **{cls.caffe_type: cls for cls in CLASSES},
    "Pooling": pooling,
    "Eltwise": eltwise,
    "ReLU": relu,
}


def layer_class(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class for a LayerParameter of one of LAYERS; raises Declined where none computes it."""
    entry = LAYERS[message.type]
    return entry if isinstance(entry, type) else entry(message, in_shapes)
