# SPDX-License-Identifier: Apache-2.0
"""Constraints of kernels on layers: each docstring appears in docs/layers.md and, after "needs", in error messages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, L_contra, LayerView, WindowedView
from caffe_to_cmsis_nn.target import Core, Target

Constraint = Callable[[L_contra, Target], bool]


def square(layer: LayerView, target: Target) -> bool:
    """square images, kernel, stride and padding"""
    return layer.square


def one_group(layer: ConvolutionView, target: Target) -> bool:
    """one group"""
    return layer.group == 1


def depthwise(layer: ConvolutionView, target: Target) -> bool:
    """as many groups as input and output channels"""
    return layer.group == layer.in_shape[0] == layer.out_shape[0]


def three_channels(layer: LayerView, target: Target) -> bool:
    """3 input channels"""
    return layer.in_shape[0] == 3


def channels_of_four_and_two(layer: LayerView, target: Target) -> bool:
    """a multiple of 4 input channels and of 2 output channels"""
    return layer.in_shape[0] % 4 == 0 and layer.out_shape[0] % 2 == 0


def output_covers_padding(layer: WindowedView, target: Target) -> bool:
    """an output at least as large as the padding (otherwise DSP code writes past it)"""
    return all(o >= p for o, p in zip(layer.out_shape[1:], layer.pad))


def windows_within_padding(layer: WindowedView, target: Target) -> bool:
    """windows that exceed the image on the right by at most the padding (DSP: the code checks no further columns)"""
    pad, stride, window = layer.pad[1], layer.stride[1], layer.window[1]
    last_unchecked = (layer.out_shape[2] - pad - 1) * stride - pad
    return target.core is not Core.DSP or last_unchecked + window <= layer.in_shape[2]


def pixels_within_image(layer: ConvolutionView, target: Target) -> bool:
    """for a 1x1 kernel without padding: all outputs within the image (otherwise the code reads past it)"""
    if (layer.window, layer.pad, layer.dilation) != ((1, 1), (0, 0), (1, 1)):
        return True
    sizes = list(zip(layer.in_shape[1:], layer.out_shape[1:], layer.stride))
    return all((o - 1) * s < d for d, o, s in sizes) and (layer.stride != (1, 1) or all(o == d for d, o, _ in sizes))


def padding_within_kernel(layer: ConvolutionView, target: Target) -> bool:
    """at most as many rows of padding as kernel rows (without MVE: the code would clear too much scratch memory)"""
    (rows, out), pad = (layer.in_shape[1], layer.out_shape[1]), layer.pad[0]
    return target.core is Core.MVE or (pad <= layer.window[0] and (out - 1) * layer.stride[0] - pad <= rows)


def second_columns_within_image(layer: ConvolutionView, target: Target) -> bool:
    """for a 3x3 kernel: the second column of every window within the image (without MVE: the code does not check it)"""
    last = (layer.out_shape[2] - 1) * layer.stride[1] - layer.pad[1]
    return target.core is Core.MVE or layer.window != (3, 3) or layer.pad[1] > 1 or last <= layer.in_shape[2] - 2


def one_channel_groups(layer: ConvolutionView, target: Target) -> bool:
    """as many groups as input channels"""
    return layer.group == layer.in_shape[0]


def single_or_even(layer: ConvolutionView, target: Target) -> bool:
    """one output per input channel, or an even number of input channels (otherwise the generic code is wrong)"""
    return layer.out_shape[0] == layer.in_shape[0] or layer.in_shape[0] % 2 == 0


def even_channels(layer: LayerView, target: Target) -> bool:
    """an even number of input channels (otherwise the generic code is wrong)"""
    return layer.in_shape[0] % 2 == 0


def no_mve(layer: LayerView, target: Target) -> bool:
    """a core without MVE (GCC 12 miscompiles the MVE code)"""
    return target.core is not Core.MVE


def wide_groups(layer: ConvolutionView, target: Target) -> bool:
    """one group, or groups of several input channels"""
    return layer.group == 1 or layer.group < layer.in_shape[0]


def pointwise(layer: WindowedView, target: Target) -> bool:
    """a 1x1 kernel with stride 1 and no padding"""
    return (layer.window, layer.stride, layer.pad) == ((1, 1), (1, 1), (0, 0))


def indexable(layer: WindowedView, target: Target) -> bool:
    """extents, channels, kernel, stride and padding of at most 32767"""
    return max(*layer.in_shape, *layer.out_shape, *layer.window, *layer.stride, *layer.pad) <= 32767


def short_column(layer: ConvolutionView, target: Target) -> bool:
    """at most 65535 weights per output"""
    return layer.in_shape[0] // layer.group * layer.window[0] * layer.window[1] <= 65535


def few_products(layer: ConvolutionView, target: Target) -> bool:
    """at most 65535 products per output"""
    rows, columns = (-(-k // s) for k, s in zip(layer.window, layer.stride))
    return layer.in_shape[0] // layer.group * rows * columns <= 65535


def short_image_column(layer: WindowedView, target: Target) -> bool:
    """at most 65535 elements in a window, all channels counted"""
    return layer.in_shape[0] * layer.window[0] * layer.window[1] <= 65535


def vector_sizes(layer: LayerView, target: Target) -> bool:
    """at most 65535 inputs and 65535 outputs"""
    return max(int(np.prod(layer.in_shape)), *layer.out_shape) <= 65535


def short_vector(layer: LayerView, target: Target) -> bool:
    """at most 32767 elements"""
    return int(np.prod(layer.in_shape)) <= 32767


def output_within_input(layer: LayerView, target: Target) -> bool:
    """an output no larger than the input"""
    return all(o <= d for o, d in zip(layer.out_shape[1:], layer.in_shape[1:]))


def no_empty_window(layer: WindowedView, target: Target) -> bool:
    """at least one cell of the image in every window"""
    return all(
        k > p and (o - 1) * s - p < d
        for d, o, k, s, p in zip(layer.in_shape[1:], layer.out_shape[1:], layer.window, layer.stride, layer.pad)
    )


def pooled_row(layer: LayerView, target: Target) -> bool:
    """at most 65535 elements in a row of the output (DSP)"""
    return target.core is not Core.DSP or layer.out_shape[0] * layer.out_shape[2] <= 65535


def padding_below_stride(layer: WindowedView, target: Target) -> bool:
    """padding smaller than the stride (DSP: the kernel works in place and would read columns that it overwrote)"""
    return target.core is not Core.DSP or all(
        p < s or o == 1 for p, s, o in zip(layer.pad, layer.stride, layer.out_shape[1:])
    )


def input_may_be_lost(layer: LayerView, target: Target) -> bool:
    """an input that no later layer reads (DSP: the kernel overwrites it)"""
    return target.core is not Core.DSP or not layer.shared_input


def vector_core(layer: LayerView, target: Target) -> bool:
    """a core with MVE (on other cores it takes five times as many instructions as add_q7)"""
    return target.core is Core.MVE


def countable(layer: WindowedView, target: Target) -> bool:
    """windows of at most 32768 cells"""
    return int(np.prod(layer.window)) <= 1 << 15


def unpadded(layer: WindowedView, target: Target) -> bool:
    """no padding (Caffe includes padded cells in an average, the kernel does not)"""
    return layer.pad == (0, 0)
