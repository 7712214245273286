# SPDX-License-Identifier: Apache-2.0
"""Layers that change nothing on the device, and the softmax that can be added to a finished network."""

from __future__ import annotations

import math

from caffe_to_cmsis_nn.kernels import registry
from caffe_to_cmsis_nn.layers.base import Layer, Shape, computed_by
from caffe_to_cmsis_nn.qformat import QFormat


@computed_by(registry.POWERS_SOFTMAX)
class PowersSoftmax(Layer):
    """Powers of two in place of exponentials, after the logits of a classifier."""

    caffe_type = "Softmax"
    probabilities = True

    @property
    def out_shape(self) -> Shape:
        return (math.prod(self.in_shape),)

    def inherited(self, x: QFormat) -> QFormat:
        return QFormat(7)


IDENTITIES = {  # Caffe's types, and why they change nothing
    "Dropout": "It scales while training only.",
    "Split": "One blob for several layers, which may also read it without a Split.",
    "Silence": "It reads what nobody else does, and writes nothing.",
}
