# SPDX-License-Identifier: Apache-2.0
"""All operators; each module has an operator's layers and this tool's kernels for them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Union

from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.ops import (
    activations,
    affine,
    argmax,
    axpy,
    concat,
    convolution,
    deconvolution,
    eltwise,
    functions,
    inner_product,
    interp,
    lrn,
    moves,
    normalize,
    pooling,
    prelu,
    reduction,
    softmax,
)
from caffe_to_cmsis_nn.ops.base import Layer, Shape
from caffe_to_cmsis_nn.ops.input import Features, Input

# Each module lists its layers in CLASSES. CHOICES maps Caffe types with several classes to a function that picks one.
OPERATORS: tuple[ModuleType, ...] = (
    convolution,
    deconvolution,
    inner_product,
    pooling,
    lrn,
    normalize,
    activations,
    prelu,
    functions,
    affine,
    eltwise,
    axpy,
    concat,
    moves,
    interp,
    softmax,
    argmax,
    reduction,
)

Choice = Union[type[Layer], Callable[[Any, tuple[Shape, ...]], type[Layer]]]

CLASSES: tuple[type[Layer], ...] = tuple(cls for operator in OPERATORS for cls in operator.CLASSES)
LAYERS: dict[str, Choice] = {cls.caffe_type: cls for cls in CLASSES}
for _operator in OPERATORS:
    LAYERS.update(getattr(_operator, "CHOICES", {}))
_COMPUTED: tuple[type[Layer], ...] = (Input, Features, *CLASSES, softmax.PowersSoftmax)
ALL_KERNELS: tuple[AnyKernel, ...] = tuple(kernel for cls in _COMPUTED for kernel in cls.kernels)


def layer_class(message: Any, in_shapes: tuple[Shape, ...]) -> type[Layer]:
    """The class for a LayerParameter with a type in LAYERS; raises UnsupportedLayer."""
    choice = LAYERS[message.type]
    return choice if isinstance(choice, type) else choice(message, in_shapes)
