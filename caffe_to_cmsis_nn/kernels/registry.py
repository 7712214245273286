# SPDX-License-Identifier: Apache-2.0
"""The kernels that can compute each kind of layer, the fastest first; before them, those for weights of fewer bits."""

from __future__ import annotations

import numpy as np

from caffe_to_cmsis_nn.kernels import (
    along_axis,
    arm_q7,
    arm_s4,
    arm_s8,
    channelwise,
    interpolation,
    lrn,
    moves,
    own_loops,
    own_q7,
)
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import Bounds, Integers, IntWidth, Kernels, Operands
from caffe_to_cmsis_nn.kernels.contract import (
    AverageView,
    AxisView,
    ConvolutionView,
    LargestView,
    LayerView,
    LengthView,
    LrnView,
    MoveView,
    SumView,
    WindowedLrnView,
    WindowedView,
)
from caffe_to_cmsis_nn.kernels.lrn import Powers
from caffe_to_cmsis_nn.kernels.own_loops import LeftShift, Pixels, RealInput, Rescalings, Shift, Slope

_CONVOLUTION = (needs.indexable, needs.short_column)
_FAST = (
    needs.one_group,
    needs.channels_of_four_and_two,
    needs.output_covers_padding,
    needs.windows_within_padding,
    *_CONVOLUTION,
)
_WRAPPED = (needs.pixels_within_image, needs.indexable, needs.short_image_column)
_COLUMNS = (needs.one_channel_groups, needs.padding_within_kernel, *_CONVOLUTION)  # a depthwise window at a time
CONVOLUTION: Kernels[ConvolutionView, Integers] = (
    own_q7.PackedDepthwise("depthwise_q7", (needs.depthwise, *_CONVOLUTION)),
    own_q7.PackedConvolution("convolve_q7", _CONVOLUTION),
    arm_q7.Convolution("arm_convolve_1x1_HWC_q7_fast_nonsquare", (needs.pointwise, *_FAST), nonsquare=True),
    arm_q7.Convolution(
        "arm_convolve_HWC_q7_RGB", (needs.one_group, needs.three_channels, needs.square, *_CONVOLUTION), overread=1
    ),
    arm_q7.Convolution("arm_convolve_HWC_q7_fast", (*_FAST, needs.square)),
    arm_q7.Convolution("arm_convolve_HWC_q7_fast_nonsquare", _FAST, nonsquare=True),
    arm_q7.Depthwise("arm_depthwise_separable_conv_HWC_q7", (needs.depthwise, needs.square, *_CONVOLUTION)),
    arm_q7.Depthwise("arm_depthwise_separable_conv_HWC_q7_nonsquare", (needs.depthwise, *_CONVOLUTION), nonsquare=True),
    arm_q7.Convolution("arm_convolve_HWC_q7_basic", (needs.one_group, needs.square, *_CONVOLUTION)),
    arm_q7.Convolution("arm_convolve_HWC_q7_basic_nonsquare", (needs.one_group, *_CONVOLUTION), nonsquare=True),
    arm_s4.Convolution("arm_convolve_wrapper_s4", (needs.one_group, *_WRAPPED)),
    arm_s4.Depthwise("arm_depthwise_conv_wrapper_s4", (needs.single_or_even, needs.no_mve, *_COLUMNS)),
    arm_s4.PlainDepthwise("arm_depthwise_conv_s4", (needs.one_channel_groups, needs.even_channels, *_CONVOLUTION)),
    own_q7.Depthwise("depthwise_q7", (needs.depthwise, *_CONVOLUTION)),
    own_q7.Convolution("convolve_q7", _CONVOLUTION),
    arm_s8.Convolution("arm_convolve_wrapper_s8", (needs.wide_groups, *_WRAPPED)),
    arm_s8.Depthwise("arm_depthwise_conv_wrapper_s8", (needs.second_columns_within_image, *_COLUMNS)),
    arm_s8.PlainDepthwise("arm_depthwise_conv_s8", (needs.one_channel_groups, *_CONVOLUTION)),
)
DILATED_CONVOLUTION: Kernels[ConvolutionView, Integers] = (
    own_q7.PackedDilatedConvolution("convolve_dilated_q7", _CONVOLUTION),
    arm_s4.Convolution("arm_convolve_wrapper_s4", (needs.one_group, *_WRAPPED)),
    own_q7.DilatedConvolution("convolve_dilated_q7", _CONVOLUTION),
    arm_s8.Convolution("arm_convolve_wrapper_s8", (needs.wide_groups, *_WRAPPED)),
    arm_s8.Depthwise("arm_depthwise_conv_wrapper_s8", (needs.one_channel_groups, *_CONVOLUTION)),
)
DECONVOLUTION: Kernels[ConvolutionView, Integers] = (
    own_q7.Deconvolution("deconvolve_q7", (needs.indexable, needs.few_products)),
)
FULLY_CONNECTED: Kernels[LayerView, Integers] = (
    own_q7.PackedInnerProduct("inner_product_q7", (needs.vector_sizes,)),
    arm_q7.FullyConnected("arm_fully_connected_q7_opt", (needs.vector_sizes,), interleaved=True),
    arm_q7.FullyConnected("arm_fully_connected_q7", (needs.vector_sizes,)),
    arm_s4.FullyConnected("arm_fully_connected_s4", (needs.vector_sizes,)),
    own_q7.InnerProduct("inner_product_q7", (needs.vector_sizes,)),
    arm_s8.FullyConnected("arm_fully_connected_s8", (needs.vector_sizes,)),
)
READ_PIXELS: Kernels[LayerView, Pixels] = (own_loops.ReadPixels("read_pixels"),)
READ_FEATURES: Kernels[LayerView, RealInput] = (own_loops.ReadFeatures("read_features"),)
RELU: Kernels[LayerView, object] = (arm_q7.Relu("arm_relu_q7"), own_q7.Relu("clip_q7"))
PRELU: Kernels[LayerView, channelwise.Slopes] = (channelwise.PRelu("prelu_q7"),)
AFFINE: Kernels[LayerView, channelwise.Gains] = (channelwise.ChannelAffine("affine_q7"),)
FUNCTION: Kernels[LayerView, np.ndarray] = (own_loops.Function("lookup_q7"),)
LEAKY_RELU: Kernels[LayerView, Slope] = (own_loops.LeakyRelu("lookup_q7"),)
SIGMOID: Kernels[LayerView, IntWidth] = (
    arm_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_SIGMOID", table=own_loops.sigmoid_table),
    own_loops.Curve("lookup_q7", table=own_loops.sigmoid_table),
)
TANH: Kernels[LayerView, IntWidth] = (
    arm_q7.Activation("arm_nn_activations_direct_q7", c_type="ARM_TANH", table=own_loops.tanh_table),
    own_loops.Curve("lookup_q7", table=own_loops.tanh_table),
)
CLIP: Kernels[LayerView, Bounds] = (own_loops.Clamp("clip_q7"),)
_WINDOWS = (needs.no_empty_window, needs.indexable)
_DSP_POOL = (needs.pooled_row, needs.padding_below_stride, needs.input_may_be_lost)
_POOL = (needs.square, *_WINDOWS, needs.output_within_input, *_DSP_POOL)
MAX_POOL: Kernels[WindowedView, object] = (
    arm_q7.MaxPool("arm_maxpool_q7_HWC", _POOL),
    arm_s8.MaxPool("arm_max_pool_s8", _WINDOWS),
    own_loops.OwnMaxPool("maxpool_q7", _WINDOWS),
)
OWN_AVERAGE_POOL: Kernels[AverageView, LeftShift] = (
    own_loops.OwnAveragePool("avepool_q7", (*_WINDOWS, needs.countable)),
)
AVERAGE_POOL: Kernels[AverageView, LeftShift] = (
    arm_s8.AveragePool("arm_avgpool_s8", (needs.unpadded, *_WINDOWS, needs.countable)),
    *OWN_AVERAGE_POOL,
)
LRN_ACROSS: Kernels[LrnView, Powers] = (lrn.Across("lrn_across_q7"),)
LENGTH: Kernels[LengthView, Powers] = (lrn.Length("normalize_q7"),)
LRN_WITHIN: Kernels[WindowedLrnView, Powers] = (lrn.Within("lrn_within_q7"),)
SUM: Kernels[SumView, Operands] = (
    arm_s8.Add("arm_elementwise_add_s8", (needs.plain_sum_of_two, needs.vector_core)),
    own_loops.Merge("add_q7"),
)
MAXIMUM: Kernels[LayerView, Operands] = (own_loops.Merge("max_q7", op="Max"),)
INTERPOLATION: Kernels[LayerView, object] = (interpolation.Bilinear("interpolate_q7"),)
MOVE: Kernels[MoveView, object] = (moves.Move("move_q7", (needs.even_steps,)),)
WEIGHTED_SUM: Kernels[LayerView, Operands] = (own_loops.Merge("add_q7"),)
SUM_BY_INPUT: Kernels[LayerView, Operands] = (own_loops.ChannelSum("add_channels_q7"),)
PRODUCT: Kernels[LayerView, Shift] = (own_loops.Product("multiply_q7"),)
CONCAT: Kernels[AxisView, Rescalings] = (own_loops.Concatenate("concat_q7"),)
SOFTMAX: Kernels[AxisView, along_axis.Exponentials] = (along_axis.SoftmaxAlong("softmax_along_q7"),)
LARGEST: Kernels[LargestView, object] = (along_axis.LargestAlong("largest_along_q7"),)
SUM_ALONG: Kernels[AxisView, along_axis.Ratio] = (along_axis.Reduce("reduce_q7"),)
SUM_OF_MAGNITUDES: Kernels[AxisView, along_axis.Ratio] = (along_axis.Reduce("reduce_q7", terms="MAGNITUDES"),)
SUM_OF_SQUARES: Kernels[AxisView, along_axis.Ratio] = (along_axis.Reduce("reduce_q7", terms="SQUARES"),)
POWERS_SOFTMAX: Kernels[LayerView, object] = (
    arm_q7.Softmax("arm_softmax_q7", (needs.short_vector,)),
    own_q7.Softmax("softmax_q7"),
)
