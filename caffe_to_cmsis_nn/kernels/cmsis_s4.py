# SPDX-License-Identifier: Apache-2.0
"""The s4 kernels of CMSIS-NN 5 to 7: same results as cmsis_s8, with 4-bit weights, two in a byte.

Scratch sizes are those of the library's *_get_buffer_size, the largest of the three releases.
"""

from __future__ import annotations

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_s8, weight_layouts
from caffe_to_cmsis_nn.kernels.base import WeightedKernel
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, L_contra, LayerView
from caffe_to_cmsis_nn.target import Core, Target


class _Packed(WeightedKernel[L_contra]):
    """Mixin for a kernel of cmsis_s8: the same order of weights, no reads past the end of arrays."""

    weight_bits = 4
    overread_weights = 0
    lanes = 1

    def layout(self, weights: np.ndarray, layer: L_contra) -> np.ndarray:
        return weight_layouts.nibbles(super().layout(weights, layer))

    def least_version(self, layer: L_contra) -> int:
        return 5


class Convolution(_Packed[ConvolutionView], cmsis_s8.Convolution):
    """arm_convolve_wrapper_s4: one group only; with more, the kernels report success and compute something else."""

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        """Room for im2col columns."""
        if (layer.window, layer.pad) == ((1, 1), (0, 0)):
            return 0
        whole = 16 if target.core is Core.MVE else 1
        return 4 * whole * -(-cmsis_s8.column_elements(layer) // whole)


class Depthwise(_Packed[ConvolutionView], cmsis_s8.Depthwise):
    """arm_depthwise_conv_wrapper_s4: one or more outputs per channel."""

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        """Only the code for one output per channel needs scratch memory; the generic code needs none."""
        return 2 * layer.in_shape[0] * layer.window[0] * layer.window[1] * (layer.out_shape[0] == layer.in_shape[0])


class PlainDepthwise(Depthwise):
    """arm_depthwise_conv_s4: generic code, plain C on all cores."""

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        return 0


class FullyConnected(_Packed[LayerView], cmsis_s8.FullyConnected):
    """arm_fully_connected_s4: reads the bias from its argument on all cores."""

    def _buffer(self, c: CNames) -> tuple[str, str]:
        return "NULL", "0"
