# SPDX-License-Identifier: Apache-2.0
"""The kernels that can compute each kind of layer, the fastest first."""

from __future__ import annotations

from q7.kernels import arm_q7, arm_s8
from q7.kernels.base import AnyKernel, Bounds, Integers, IntWidth, Kernels, Operands
from q7.kernels.constraints import (
    channels_of_four_and_two,
    countable,
    depthwise,
    indexable,
    input_may_be_lost,
    no_empty_window,
    one_channel_groups,
    one_group,
    output_covers_padding,
    output_within_input,
    padding_below_stride,
    plain_sum_of_two,
    pointwise,
    pooled_row,
    short_column,
    short_image_column,
    short_vector,
    short_window,
    square,
    three_channels,
    unpadded,
    vector_sizes,
    wide_groups,
)
from q7.kernels.contract import AverageView, ConvolutionView, LayerView, SumView, WindowedView
from q7.kernels.own_loops import (
    Clamp,
    Concatenate,
    Curve,
    GroupConvolution,
    LeakyRelu,
    Merge,
    OwnAveragePool,
    OwnMaxPool,
    Pixels,
    Ratio,
    ReadPixels,
    Rescalings,
    Slope,
    sigmoid_table,
    tanh_table,
)

_CONVOLUTION = (indexable, short_column)
_FAST = (one_group, channels_of_four_and_two, output_covers_padding, *_CONVOLUTION)
CONVOLUTION: Kernels[ConvolutionView, Integers] = (
    arm_q7.Convolution("arm_convolve_1x1_HWC_q7_fast_nonsquare", (pointwise, *_FAST), nonsquare=True),
    arm_q7.Convolution("arm_convolve_HWC_q7_RGB", (one_group, three_channels, square, *_CONVOLUTION), overread=1),
    arm_q7.Convolution("arm_convolve_HWC_q7_fast", (*_FAST, square)),
    arm_q7.Convolution("arm_convolve_HWC_q7_fast_nonsquare", _FAST, nonsquare=True),
    arm_q7.Depthwise("arm_depthwise_separable_conv_HWC_q7", (depthwise, square, *_CONVOLUTION)),
    arm_q7.Depthwise("arm_depthwise_separable_conv_HWC_q7_nonsquare", (depthwise, *_CONVOLUTION), nonsquare=True),
    arm_q7.Convolution("arm_convolve_HWC_q7_basic", (one_group, square, *_CONVOLUTION)),
    arm_q7.Convolution("arm_convolve_HWC_q7_basic_nonsquare", (one_group, *_CONVOLUTION), nonsquare=True),
    GroupConvolution("convolve_group_q7", _CONVOLUTION),
    arm_s8.Convolution("arm_convolve_wrapper_s8", (wide_groups, indexable, short_image_column)),
    arm_s8.Depthwise("arm_depthwise_conv_wrapper_s8", (one_channel_groups, *_CONVOLUTION)),
)
FULLY_CONNECTED: Kernels[LayerView, Integers] = (
    arm_q7.FullyConnected("arm_fully_connected_q7_opt", (vector_sizes,), interleaved=True),
    arm_q7.FullyConnected("arm_fully_connected_q7", (vector_sizes,)),
    arm_s8.FullyConnected("arm_fully_connected_s8", (vector_sizes,)),
)
READ_PIXELS: Kernels[LayerView, Pixels] = (ReadPixels("read_pixels"),)
RELU: Kernels[LayerView, object] = (arm_q7.Relu("arm_relu_q7"),)
LEAKY_RELU: Kernels[LayerView, Slope] = (LeakyRelu("lookup_q7"),)
SIGMOID: Kernels[LayerView, IntWidth] = (
    arm_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_SIGMOID", table=sigmoid_table),
    Curve("lookup_q7", table=sigmoid_table),
)
TANH: Kernels[LayerView, IntWidth] = (
    arm_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_TANH", table=tanh_table),
    Curve("lookup_q7", table=tanh_table),
)
CLIP: Kernels[LayerView, Bounds] = (Clamp("clip_q7"),)
_WINDOWS = (no_empty_window, indexable)
_POOL = (square, *_WINDOWS, output_within_input, pooled_row, padding_below_stride, input_may_be_lost)
MAX_POOL: Kernels[WindowedView, object] = (
    arm_q7.MaxPool("arm_maxpool_q7_HWC", _POOL),
    arm_s8.MaxPool("arm_max_pool_s8", _WINDOWS),
    OwnMaxPool("maxpool_q7", _WINDOWS),
)
OWN_AVERAGE_POOL: Kernels[AverageView, Ratio] = (OwnAveragePool("avepool_q7", (*_WINDOWS, countable)),)
AVERAGE_POOL: Kernels[AverageView, Ratio] = (
    arm_q7.AveragePool("arm_avepool_q7_HWC", (unpadded, *_POOL, short_window)),
    arm_s8.AveragePool("arm_avgpool_s8", (unpadded, *_WINDOWS, countable)),
    *OWN_AVERAGE_POOL,
)
SUM: Kernels[SumView, Operands] = (
    arm_s8.Add("arm_elementwise_add_s8", (plain_sum_of_two,)),
    Merge("add_q7"),
)
MAXIMUM: Kernels[LayerView, Operands] = (Merge("max_q7", op="Max"),)
CONCAT: Kernels[LayerView, Rescalings] = (Concatenate("concat_q7"),)
SOFTMAX: Kernels[LayerView, object] = (arm_q7.Softmax("arm_softmax_q7", (short_vector,)),)

ALL: tuple[AnyKernel, ...] = (
    *READ_PIXELS,
    *CONVOLUTION,
    *FULLY_CONNECTED,
    *RELU,
    *LEAKY_RELU,
    *SIGMOID,
    *TANH,
    *CLIP,
    *MAX_POOL,
    *AVERAGE_POOL,
    *SUM,
    *MAXIMUM,
    *CONCAT,
    *SOFTMAX,
)
