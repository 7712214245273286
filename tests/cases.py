# SPDX-License-Identifier: Apache-2.0
"""The one table of layers: those that a kernel computes, with the kernels, and those that are declined, and why."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Accepted:
    """Prototxt text after data of CHW `shape`, and the kernels of layer x on a DSP core; none, if it is folded."""

    name: str
    layers: str
    q7: str = ""
    s8: str = ""
    shape: Shape = (4, 8, 8)


@dataclass(frozen=True)
class Declined:
    """Prototxt text after data of CHW `shape`, and a part of the message that refuses it."""

    name: str
    layers: str
    message: str
    shape: Shape = (4, 8, 8)


def layer(kind: str, parameters: str = "", bottom: str = "data", name: str = "x") -> str:
    """A layer; `bottom` is a list with blanks between."""
    bottoms = " ".join(f'bottom: "{blob}"' for blob in bottom.split())
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{name}" {parameters} }}\n'


def conv(parameters: str, **names: str) -> str:
    return layer("Convolution", f"convolution_param {{ {parameters} }}", **names)


def deconv(parameters: str, **names: str) -> str:
    return layer("Deconvolution", f"convolution_param {{ {parameters} }}", **names)


def ip(parameters: str, **names: str) -> str:
    return layer("InnerProduct", f"inner_product_param {{ {parameters} }}", **names)


def pool(parameters: str, **names: str) -> str:
    return layer("Pooling", f"pooling_param {{ {parameters} }}", **names)


def lrn(parameters: str, **names: str) -> str:
    return layer("LRN", f"lrn_param {{ {parameters} }}", **names)


CONV1 = conv("num_output: 4 kernel_size: 1", name="c")
HALVED = pool("kernel_size: 2 stride: 2", name="p")

# After each of them comes an inner product with 3 outputs, which reads x.
ACCEPTED = [
    Accepted(
        "convolution", conv("num_output: 4 kernel_size: 3"), "arm_convolve_HWC_q7_fast", "arm_convolve_wrapper_s8"
    ),
    Accepted(
        "convolution of three channels",
        conv("num_output: 4 kernel_size: 3"),
        "arm_convolve_HWC_q7_RGB",
        "arm_convolve_wrapper_s8",
        (3, 8, 8),
    ),
    Accepted(
        "odd channels", conv("num_output: 3 kernel_size: 3"), "arm_convolve_HWC_q7_basic", "arm_convolve_wrapper_s8"
    ),
    Accepted(
        "window of one cell",
        conv("num_output: 4 kernel_size: 1"),
        "arm_convolve_1x1_HWC_q7_fast_nonsquare",
        "arm_convolve_wrapper_s8",
    ),
    Accepted(
        "window of two extents",
        conv("num_output: 4 kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 stride_h: 1 stride_w: 2"),
        "arm_convolve_HWC_q7_fast_nonsquare",
        "arm_convolve_wrapper_s8",
    ),
    Accepted(
        "depthwise",
        conv("num_output: 4 group: 4 kernel_size: 3 pad: 1 bias_term: false"),
        "arm_depthwise_separable_conv_HWC_q7",
        "arm_depthwise_conv_wrapper_s8",
    ),
    Accepted(
        "depthwise by another name",
        layer("ConvolutionDepthwise", "convolution_param { num_output: 4 kernel_size: 3 }"),
        "arm_depthwise_separable_conv_HWC_q7",
        "arm_depthwise_conv_wrapper_s8",
    ),
    Accepted(
        "dilation", conv("num_output: 4 kernel_size: 3 dilation: 2"), "convolve_dilated_q7", "arm_convolve_wrapper_s8"
    ),
    Accepted(
        "depthwise with dilation",
        layer("DepthwiseConvolution", "convolution_param { num_output: 4 kernel_size: 3 dilation: 2 dilation: 1 }"),
        "convolve_dilated_q7",
        "arm_depthwise_conv_wrapper_s8",
    ),
    Accepted(
        "dilation of one cell",
        conv("num_output: 4 kernel_size: 1 dilation: 2"),
        "convolve_dilated_q7",
        "arm_convolve_wrapper_s8",
    ),
    Accepted("deconvolution", deconv("num_output: 3 kernel_size: 4 stride: 2"), "deconvolve_q7", "deconvolve_q7"),
    Accepted(
        "upsampling",
        deconv("num_output: 4 group: 4 kernel_size: 4 stride: 2 pad: 1 bias_term: false"),
        "deconvolve_q7",
        "deconvolve_q7",
    ),
    Accepted("groups", conv("num_output: 4 group: 2 kernel_size: 3"), "convolve_q7", "arm_convolve_wrapper_s8"),
    Accepted(
        "inner product", ip("num_output: 4 transpose: true"), "arm_fully_connected_q7_opt", "arm_fully_connected_s8"
    ),
    Accepted("maximum", pool("kernel_size: 2 stride: 2"), "arm_maxpool_q7_HWC", "arm_max_pool_s8"),
    Accepted("mean", pool("pool: AVE kernel_size: 2 stride: 2"), "avepool_q7", "arm_avgpool_s8"),
    Accepted("mean of all", pool("pool: AVE global_pooling: true"), "avepool_q7", "avepool_q7"),
    Accepted(
        "rounded down", pool("kernel_size: 3 stride: 2 round_mode: FLOOR"), "arm_maxpool_q7_HWC", "arm_max_pool_s8"
    ),
    Accepted(
        "rounded down by another name",
        pool("kernel_size: 3 stride: 2 ceil_mode: false"),
        "arm_maxpool_q7_HWC",
        "arm_max_pool_s8",
    ),
    Accepted("across channels", lrn("local_size: 5 alpha: 1e-4"), "lrn_across_q7", "lrn_across_q7"),
    Accepted("within a channel", lrn("norm_region: WITHIN_CHANNEL"), "lrn_within_q7", "lrn_within_q7"),
    Accepted("ReLU", layer("ReLU"), "arm_relu_q7", "arm_relu_q7"),
    Accepted("leaky", layer("ReLU", "relu_param { negative_slope: 0.1 }"), "lookup_q7", "lookup_q7"),
    Accepted("steep", layer("ReLU", "relu_param { negative_slope: -1.5 }"), "lookup_q7", "lookup_q7"),
    Accepted("trained slopes", layer("PReLU"), "prelu_q7", "prelu_q7"),
    Accepted("one trained slope", layer("PReLU", "prelu_param { channel_shared: true }"), "prelu_q7", "prelu_q7"),
    *(Accepted(kind, layer(kind), "lookup_q7", "lookup_q7") for kind in ("ELU", "AbsVal", "BNLL", "Swish")),
    Accepted("power", layer("Power", "power_param { power: 2 scale: 0.5 shift: 1 }"), "lookup_q7", "lookup_q7"),
    Accepted("exponential", layer("Exp", "exp_param { base: 2 scale: 0.01 }"), "lookup_q7", "lookup_q7"),
    Accepted("LRN without alpha", lrn("alpha: 0 k: 2"), "lrn_across_q7", "lrn_across_q7"),
    Accepted("LRN without beta", lrn("beta: 0"), "lrn_across_q7", "lrn_across_q7"),
    Accepted("logarithm", layer("Log", "log_param { shift: 300 }"), "lookup_q7", "lookup_q7"),
    Accepted("threshold", layer("Threshold", "threshold_param { threshold: 3 }"), "lookup_q7", "lookup_q7"),
    Accepted("normalized data", layer("BatchNorm"), "affine_q7", "affine_q7"),
    Accepted("scaled data", layer("Scale", "scale_param { bias_term: true }"), "affine_q7", "affine_q7"),
    Accepted("shifted data", layer("Bias"), "affine_q7", "affine_q7"),
    Accepted("ReLU6", layer("ReLU6"), "clip_q7", "clip_q7"),
    Accepted("Clip", layer("Clip", "clip_param { min: -1 max: 1 }"), "clip_q7", "clip_q7"),
    Accepted("Sigmoid", layer("Sigmoid"), "arm_nn_activations_direct_q7", "lookup_q7"),
    Accepted("TanH", layer("TanH"), "arm_nn_activations_direct_q7", "lookup_q7"),
    Accepted("sum", CONV1 + layer("Eltwise", "eltwise_param { coeff: 1 coeff: -1 }", "data c"), "add_q7", "add_q7"),
    Accepted("largest", CONV1 + layer("Eltwise", "eltwise_param { operation: MAX }", "data c"), "max_q7", "max_q7"),
    Accepted(
        "sum with coefficients",
        CONV1 + layer("Eltwise", "eltwise_param { coeff: 1 coeff: 0.5 }", "data c"),
        *("add_q7", "add_q7"),
    ),
    Accepted(
        "product", CONV1 + layer("Eltwise", "eltwise_param { operation: PROD }", "data c"), "multiply_q7", "multiply_q7"
    ),
    Accepted(
        "product of each channel",
        pool("pool: AVE global_pooling: true", name="g") + layer("Scale", "scale_param { axis: 0 }", "data g"),
        *("multiply_q7", "multiply_q7"),
    ),
    Accepted(
        "squeeze and excitation",
        CONV1 + pool("pool: AVE global_pooling: true", name="g") + layer("Axpy", "", "g c data"),
        *("axpy_q7", "axpy_q7"),
    ),
    Accepted("rows of both", CONV1 + layer("Concat", "concat_param { axis: -2 }", "data c"), "concat_q7", "concat_q7"),
    *(
        Accepted(f"{kind} {parameters}", layer(kind, parameters), "move_q7", "move_q7")
        for kind, parameters in (
            ("Permute", "permute_param { order: 0 order: 3 order: 1 order: 2 }"),
            ("Permute", "permute_param { order: 0 order: 1 order: 3 }"),
            ("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"),
            ("Reshape", "reshape_param { shape { dim: 8 dim: -1 } axis: 1 num_axes: 2 }"),
            ("Reshape", "reshape_param { shape { dim: -1 dim: 4 dim: 64 } }"),
            ("Flatten", "flatten_param { axis: 2 }"),
            ("Flatten", "flatten_param { axis: 1 end_axis: -2 }"),
            ("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
            ("Upsample", "upsample_param { scale: 2 }"),
            ("Upsample", ""),
            ("Tile", "tile_param { axis: 2 tiles: 3 }"),
        )
    ),
    Accepted("cropped", HALVED + layer("Crop", "", "data p"), "move_q7", "move_q7"),
    Accepted("all of it", CONV1 + layer("Crop", "crop_param { axis: 1 }", "data c")),
    Accepted("one part", layer("Slice", "slice_param { axis: 2 }")),
    *(
        Accepted(
            f"Softmax over {axis}",
            layer("Softmax", f"softmax_param {{ axis: {axis} }}"),
            *("softmax_along_q7", "softmax_along_q7"),
        )
        for axis in (1, 2, 3, -1)
    ),
    *(
        Accepted(
            f"largest {parameters}",
            layer("ArgMax", f"argmax_param {{ {parameters} }}"),
            *("largest_along_q7", "largest_along_q7"),
        )
        for parameters in ("axis: 1", "axis: 2 top_k: 3", "axis: 3 top_k: 8 out_max_val: true")
    ),
    Accepted("sum of columns", layer("Reduction", "reduction_param { axis: 3 }"), "reduce_q7", "reduce_q7"),
    *(
        Accepted(
            f"Normalize {parameters}", layer("Normalize", f"norm_param {{ {parameters} }}"), *("affine_q7", "affine_q7")
        )
        for parameters in ("", "across_spatial: false", "channel_shared: false eps: 0.01")
    ),
    *(
        Accepted(
            f"Interp {parameters}",
            layer("Interp", f"interp_param {{ {parameters} }}"),
            *("interpolate_q7", "interpolate_q7"),
        )
        for parameters in ("zoom_factor: 2", "shrink_factor: 3 pad_end: -1", "height: 5 width: 1")
    ),
    Accepted(
        "offsets of another layer",
        layer("Bias", "bias_param { axis: 0 }", "data data"),
        *("add_channels_q7", "add_channels_q7"),
    ),
    Accepted(
        "an offset for each channel",
        pool("pool: AVE global_pooling: true", name="g") + layer("Bias", "bias_param { axis: 0 }", "data g"),
        *("add_channels_q7", "add_channels_q7"),
    ),
    *(
        Accepted(kind, layer("Reduction", f"reduction_param {{ axis: 2 operation: {kind} }}"), "reduce_q7", "reduce_q7")
        for kind in ("SUM", "MEAN", "ASUM", "SUMSQ")
    ),
    Accepted("channels of both", CONV1 + layer("Concat", "", "data c"), "concat_q7", "concat_q7"),
    Accepted("batch normalisation", CONV1 + layer("BatchNorm", "", "c")),
    Accepted("scale", CONV1 + layer("Scale", "scale_param { bias_term: true }", "c")),
    Accepted("bias", CONV1 + layer("Bias", "", "c")),
]
DECLINED = [
    Declined("no dilation", conv("num_output: 4 kernel_size: 3 dilation: 0"), "dilation (0, 0) must be at least 1"),
    Declined("dilation of three axes", conv("num_output: 4 kernel_size: 3 dilation: [1, 2, 1]"), "3 spatial axes"),
    Declined("dilated beyond the image", conv("num_output: 4 kernel_size: 3 dilation: 5"), "its output would be empty"),
    Declined(
        "depthwise in other groups",
        layer("DepthwiseConvolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 }"),
        "group 2, allowed is the number of channels, 4",
    ),
    Declined("dilated deconvolution", deconv("num_output: 4 kernel_size: 3 dilation: 2"), "dilation [2], allowed is 1"),
    Declined("empty deconvolution", deconv("num_output: 4 kernel_size: 1 pad: 4"), "its output would be empty"),
    Declined("groups of a deconvolution", deconv("num_output: 3 kernel_size: 1 group: 2"), "group 2 does not divide 4"),
    Declined("axis", conv("num_output: 2 kernel_size: 3 axis: 2"), "axis 2, allowed is 1"),
    Declined("group does not divide", conv("num_output: 4 kernel_size: 3 group: 3"), "group 3 does not divide 4"),
    Declined("empty output", conv("num_output: 4 kernel_size: 9"), "its output would be empty"),
    Declined("no kernel size", conv("num_output: 4"), "kernel_size is missing"),
    Declined("no num_output", conv("kernel_size: 3"), "num_output is missing"),
    Declined("no stride", conv("num_output: 2 kernel_size: 3 stride: 0"), "must be at least 1"),
    Declined("three axes", conv("num_output: 2 kernel_size: 3 kernel_size: 3 kernel_size: 3"), "3 spatial axes"),
    Declined("axis of a product", ip("num_output: 3 axis: 2"), "axis 2, allowed is 1"),
    Declined(
        "no slope", layer("ReLU", "relu_param { negative_slope: nan }"), "negative_slope nan, allowed are -1 to 1"
    ),
    Declined("endless slope", layer("ReLU", "relu_param { negative_slope: inf }"), "negative_slope inf"),
    Declined("base of 1", layer("Log", "log_param { base: 1 }"), "base 1, it must be above 0 and not 1, or -1 for e"),
    Declined("endless shift", layer("Exp", "exp_param { shift: inf }"), "shift inf"),
    Declined("endless power", layer("Power", "power_param { power: nan }"), "power nan"),
    Declined("endless threshold", layer("Threshold", "threshold_param { threshold: nan }"), "threshold nan"),
    Declined("two inputs", layer("ReLU", "", "data data"), "it has 2 inputs, allowed is 1"),
    Declined("no such input", layer("ReLU", "", "nothing"), "no layer writes its input 'nothing'"),
    Declined("the same name", layer("ReLU") + layer("ReLU", "", "x"), "a layer of the same name comes before it"),
    Declined(
        "stochastic", pool("pool: STOCHASTIC kernel_size: 2 stride: 2"), "STOCHASTIC pooling, allowed are MAX and AVE"
    ),
    Declined(
        "pad not below kernel", pool("kernel_size: 2 stride: 2 pad: 2"), "pad (2, 2) must be below the kernel (2, 2)"
    ),
    Declined("rounded up and down", pool("kernel_size: 2 ceil_mode: true round_mode: FLOOR"), "contradict each other"),
    Declined("empty window", pool("kernel_size: 1 stride: 3"), "lies outside the image", (4, 5, 5)),
    Declined("unknown type", layer("Embed"), "layer 'x' (Embed): this type is not supported"),
    Declined(
        "the mask of a pooling",
        pool('kernel_size: 2 stride: 2 } top: "mask" include {', name="p") + layer("Upsample", "", "p mask"),
        "its input 'mask' is not the first top of layer 'p': not supported",
    ),
    Declined("another unknown type", layer("MVN"), "layer 'x' (MVN): this type is not supported"),
    Declined("even local_size", lrn("local_size: 4"), "local_size 4, allowed are odd numbers up to 1023"),
    Declined("large local_size", lrn("local_size: 33 norm_region: WITHIN_CHANNEL"), "allowed are odd numbers up to 31"),
    Declined(
        "LRN of a vector", CONV1 + ip("num_output: 2", name="i") + lrn("", bottom="i"), "its input has shape (2,)"
    ),
    Declined("k", lrn("k: 0"), "k 0, allowed is more than 0, up to 1e+30"),
    Declined("alpha", lrn("alpha: -1"), "alpha -1, allowed are 0 to 1e+30"),
    Declined("beta", lrn("beta: nan"), "beta nan, allowed are 0 to 10"),
    Declined(
        "three factors",
        CONV1 + layer("Eltwise", "eltwise_param { operation: PROD }", "data c c"),
        "it has 3 inputs, allowed is 2",
    ),
    Declined(
        "endless coefficient",
        CONV1 + layer("Eltwise", "eltwise_param { coeff: 1 coeff: inf }", "data c"),
        "coefficients [1.0, inf], allowed is one number for each input",
    ),
    Declined("other rows", HALVED + layer("Concat", "", "data p"), "different shapes"),
    Declined("axis of a list", layer("Concat", "concat_param { axis: 4 }", "data data"), "axis 4, allowed are 1 to 3"),
    Declined(
        "scaled with an offset", layer("Scale", "scale_param { axis: 0 bias_term: true }", "data data"), "bias_term"
    ),
    Declined("excitation of another map", CONV1 + HALVED + layer("Axpy", "", "c c p"), "and two of one shape"),
    Declined("scaled along columns", layer("Scale", "scale_param { axis: 1 }", "data data"), "axis 1 with two inputs"),
    Declined("uneven parts", layer("Slice", 'top: "b" top: "c"'), "3 tops of the same size, but axis 1 has 4"),
    Declined(
        "no part", layer("Slice", 'top: "b" slice_param { slice_point: 4 }'), "slice_point [4], allowed are 1 asc"
    ),
    Declined(
        "moved batch", layer("Permute", "permute_param { order: 1 }"), "order [1, 0, 2, 3], which moves the batch"
    ),
    Declined("an axis twice", layer("Permute", "permute_param { order: 0 order: 1 order: 1 }"), "its input has 3 axes"),
    Declined("reshaped batch", layer("Reshape", "reshape_param { shape { dim: 2 dim: -1 } }"), "keep the batch's axis"),
    Declined(
        "shape that does not fit", layer("Reshape", "reshape_param { shape { dim: 0 dim: 7 dim: -1 } }"), "[0, 7, -1]"
    ),
    Declined("no axes left", layer("Flatten", "flatten_param { axis: 3 end_axis: 2 }"), "axis 3 and end_axis 2"),
    Declined(
        "groups of a shuffle", layer("ShuffleChannel", "shuffle_channel_param { group: 3 }"), "3 does not divide 4"
    ),
    Declined("negative scale", layer("Upsample", "upsample_param { scale: -1 }"), "scale -1: allowed is at least 1"),
    Declined(
        "two negative axes", layer("Reshape", "reshape_param { shape { dim: 0 dim: -2 dim: -128 } }"), "[0, -2, -128]"
    ),
    Declined(
        "2,000 axes",
        layer("Reshape", f"reshape_param {{ shape {{ dim: 0 dim: 256 {'dim: 1 ' * 2000}}} }}"),
        "a shape of 2002 axes, allowed are 32",
    ),
    *(
        Declined(
            f"padding before {after}",
            conv("num_output: 100 kernel_size: 1 pad: 10000", name="b") + layer(after, "", "b"),
            "layer 'b' (Convolution): its output of shape (100, 20008, 20008), allowed are 33554432 elements",
        )
        for after in ("Flatten", "Permute", "Slice")
    ),
    Declined(
        "many weights",
        conv("num_output: 1000 kernel_size: 1000 pad: 500"),
        "4000001000 weights, allowed are 134217728",
    ),
    Declined(
        "many large layers",
        conv("num_output: 100 kernel_size: 1 pad: 280", name="l0")
        + "".join(conv("num_output: 100 kernel_size: 1", bottom=f"l{i}", name=f"l{i + 1}") for i in range(9))
        + layer("Pooling", "pooling_param { global_pooling: true }", bottom="l9"),
        "(Convolution): outputs of 290361600 elements up to here, allowed are 268435456 in all",
    ),
    Declined("no scale", layer("Upsample", "upsample_param { scale: 0 }"), "scale 0: allowed is at least 1"),
    Declined("too many tiles", layer("Tile", "tile_param { tiles: 1000000 }"), "tiles 1000000: allowed is at least 1"),
    Declined(
        "cropped beyond", CONV1 + layer("Crop", "crop_param { offset: 1 }", "data c"), "the places 1 to 9 of axis 2"
    ),
    Declined("one to crop", layer("Crop", ""), "it needs two with as many axes"),
    Declined("nine largest", layer("ArgMax", "argmax_param { axis: 2 top_k: 9 }"), "top_k 9, allowed are 1 to 8"),
    Declined(
        "place in an image", layer("ArgMax", ""), "no axis with out_max_val False and an input of shape (4, 8, 8)"
    ),
    Declined("no eps", layer("Normalize", "norm_param { eps: 0 }"), "eps 0, allowed is more than 0, up to 1e+30"),
    Declined("no size", layer("Interp"), "it needs height and width, or a zoom_factor or shrink_factor of at least 1"),
    Declined(
        "enlarged too much", layer("Interp", "interp_param { zoom_factor: 3000 }"), "allowed are up to 16384 a side"
    ),
    Declined("padded", layer("Interp", "interp_param { zoom_factor: 2 pad_beg: 1 }"), "pad_beg 1 and pad_end 0"),
    Declined(
        "nothing left",
        layer("Interp", "interp_param { zoom_factor: 2 pad_beg: -4 pad_end: -4 }"),
        "values that crop the image",
    ),
    Declined("offsets along columns", layer("Bias", "", "data data"), "axis 1 with two inputs, allowed is 0"),
    Declined("sum of the batch", layer("Reduction", ""), "axis 0, allowed are 1 to 3"),
    Declined("endless sum", layer("Reduction", "reduction_param { axis: 1 coeff: nan }"), "coeff nan"),
    Declined(
        "elements at odd places",
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 5 dim: 7 dim: 2 } }"),
        "move_q7 needs at most 5 nested loops over evenly spaced elements in the device's memory",
        (2, 5, 7),
    ),
    Declined("unknown field", conv("num_output: 4 kernel_size: 3 offset: 2"), "a field that this tool does not know"),
    Declined(
        "another unknown field",
        ip("num_output: 3 gain: 2"),
        "x' (InnerProduct): it has a field that this tool does not know: ",
    ),
]
