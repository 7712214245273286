# SPDX-License-Identifier: Apache-2.0
"""Caffe's layer types: those that are computed, and those that change nothing on the device."""

from __future__ import annotations

from q7.layers.activations import Clip, ReLU, ReLU6, Sigmoid, TanH
from q7.layers.affine import BatchNorm, Bias, Scale
from q7.layers.base import Layer
from q7.layers.merges import Concat, Eltwise
from q7.layers.passthrough import Softmax
from q7.layers.windowed import Convolution, InnerProduct, Pooling

LAYERS: dict[str, type[Layer]] = {
    cls.caffe_type: cls
    for cls in (
        Convolution,
        InnerProduct,
        Pooling,
        ReLU,
        ReLU6,
        Clip,
        Sigmoid,
        TanH,
        BatchNorm,
        Scale,
        Bias,
        Eltwise,
        Concat,
        Softmax,
    )
}
