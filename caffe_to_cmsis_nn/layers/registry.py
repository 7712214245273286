# SPDX-License-Identifier: Apache-2.0
"""Caffe's layer types that are computed, and the class of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.layers import (
    activations,
    affine,
    along_axis,
    functions,
    interp,
    lrn,
    merges,
    moves,
    normalize,
    windowed,
)
from caffe_to_cmsis_nn.layers.base import Layer, Shape
from caffe_to_cmsis_nn.layers.input import Features, Input
from caffe_to_cmsis_nn.layers.passthrough import PowersSoftmax

CLASSES: tuple[type[Layer], ...] = (
    windowed.Convolution,
    windowed.DilatedConvolution,
    windowed.Deconvolution,
    windowed.InnerProduct,
    windowed.MaxPooling,
    windowed.AveragePooling,
    windowed.GlobalAveragePooling,
    lrn.Across,
    lrn.Within,
    *normalize.CLASSES,
    activations.ReLU,
    activations.LeakyReLU,
    activations.PReLU,
    *functions.CLASSES,
    activations.ReLU6,
    activations.Clip,
    activations.Sigmoid,
    activations.TanH,
    affine.BatchNorm,
    affine.Scale,
    affine.Bias,
    merges.Sum,
    merges.WeightedSum,
    merges.Maximum,
    merges.Product,
    merges.ScaleByInput,
    merges.BiasByInput,
    merges.Concat,
    *moves.CLASSES,
    *interp.CLASSES,
    *along_axis.CLASSES,
)
_COMPUTED: tuple[type[Layer], ...] = (Input, Features, *CLASSES, PowersSoftmax)
ALL_KERNELS: tuple[AnyKernel, ...] = tuple(kernel for cls in _COMPUTED for kernel in cls.kernels)
LAYERS: dict[str, type[Layer] | Callable[[Any, tuple[Shape, ...]], type[Layer]]] = {  # or what chooses the class
    **{cls.caffe_type: cls for cls in CLASSES},
    **dict.fromkeys(("Convolution", *windowed.DEPTHWISE), windowed.convolution),
    "Pooling": windowed.pooling,
    "Bias": affine.bias,
    "Eltwise": merges.eltwise,
    "Interp": interp.Interp,
    "LRN": lrn.lrn,
    "Normalize": normalize.UnitLength,
    "Reduction": along_axis.reduction,
    "ReLU": activations.relu,
    "Scale": affine.scale,
}


def layer_class(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class for a LayerParameter of one of LAYERS; raises UnsupportedLayer where none computes it."""
    entry = LAYERS[message.type]
    return entry if isinstance(entry, type) else entry(message, in_shapes)
