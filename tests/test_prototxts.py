# SPDX-License-Identifier: Apache-2.0
"""Prototxts of the shapes that people have: each becomes a graph, or is declined with the expected sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, quantize_network
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common
from caffe_to_cmsis_nn.target import Core, Target
from tests.test_graph import random_weights
from tests.test_public_networks import LARGEST, no_values


def layer(kind: str, name: str, bottoms: str, param: str = "", top: str = "") -> str:
    """A layer; `bottoms` is a list with blanks between."""
    blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {blobs} top: "{top or name}" {param} }}\n'


def relu(blob: str) -> str:
    return layer("ReLU", f"{blob}/relu", blob, top=blob)


def conv(name: str, bottom: str, count: int, kernel: int, more: str = "") -> str:
    param = f"convolution_param {{ num_output: {count} kernel_size: {kernel} {more} }}"
    return layer("Convolution", name, bottom, param)


def conv_relu(name: str, bottom: str, count: int, kernel: int, more: str = "") -> str:
    return conv(name, bottom, count, kernel, more) + relu(name)


def conv_bn(name: str, bottom: str, count: int, kernel: int, more: str = "") -> str:
    """Without a bias, as networks with batch normalisation are."""
    text = conv(name, bottom, count, kernel, f"bias_term: false {more}")
    text += layer("BatchNorm", f"{name}/bn", name, "batch_norm_param { eps: 0.001 use_global_stats: true }", name)
    return text + layer("Scale", f"{name}/scale", name, "scale_param { bias_term: true }", name)


def pool(name: str, bottom: str, kernel: int, stride: int, more: str = "pool: MAX") -> str:
    return layer("Pooling", name, bottom, f"pooling_param {{ kernel_size: {kernel} stride: {stride} {more} }}")


def global_pool(name: str, bottom: str) -> str:
    return layer("Pooling", name, bottom, "pooling_param { pool: AVE global_pooling: true }")


def ip(name: str, bottom: str, count: int) -> str:
    return layer("InnerProduct", name, bottom, f"inner_product_param {{ num_output: {count} }}")


def dropout(blob: str) -> str:
    return layer("Dropout", f"{blob}/drop", blob, "dropout_param { dropout_ratio: 0.5 }", blob)


def lrn(name: str, bottom: str) -> str:
    return layer("LRN", name, bottom, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")


DATA = """layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { mirror: true crop_size: 4 } data_param { source: "train_lmdb" batch_size: 64 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "test_lmdb" batch_size: 10 backend: LMDB } }
"""


def trained(top: str) -> str:
    """The end of a prototxt for training and testing."""
    loss = f'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "{top}" bottom: "label" top: "loss" }}\n'
    test = "include { phase: TEST }"
    top5 = layer("Accuracy", "top5", f"{top} label", f"accuracy_param {{ top_k: 5 }} {test}")
    return loss + layer("Accuracy", "accuracy", f"{top} label", test) + top5


# --- networks ---------------------------------------------------------------------------------------------------------


def lenet() -> str:
    text = conv("conv1", "data", 20, 5) + pool("pool1", "conv1", 2, 2) + conv("conv2", "pool1", 50, 5)
    text += pool("pool2", "conv2", 2, 2) + ip("ip1", "pool2", 500) + relu("ip1") + ip("ip2", "ip1", 10)
    return DATA + text + trained("ip2")


def cifar_quick() -> str:
    text = conv("conv1", "data", 32, 5, "pad: 2 stride: 1") + pool("pool1", "conv1", 3, 2) + relu("pool1")
    text += conv_relu("conv2", "pool1", 32, 5, "pad: 2") + pool("pool2", "conv2", 3, 2, "pool: AVE")
    text += conv_relu("conv3", "pool2", 64, 5, "pad: 2") + pool("pool3", "conv3", 3, 2, "pool: AVE")
    return DATA + text + ip("ip1", "pool3", 64) + ip("ip2", "ip1", 10) + trained("ip2")


def cifar_full() -> str:
    text = conv("conv1", "data", 32, 5, "pad: 2") + pool("pool1", "conv1", 3, 2) + relu("pool1")
    return DATA + text + lrn("norm1", "pool1") + ip("ip1", "norm1", 10) + trained("ip1")


def alexnet(norm: bool = True) -> str:
    text = conv_relu("conv1", "data", 96, 11, "stride: 4")
    text += lrn("norm1", "conv1") if norm else ""
    text += pool("pool1", "norm1" if norm else "conv1", 3, 2) + conv_relu("conv2", "pool1", 256, 5, "pad: 2 group: 2")
    text += lrn("norm2", "conv2") if norm else ""
    text += pool("pool2", "norm2" if norm else "conv2", 3, 2) + conv_relu("conv3", "pool2", 384, 3, "pad: 1")
    text += conv_relu("conv4", "conv3", 384, 3, "pad: 1 group: 2") + conv_relu(
        "conv5", "conv4", 256, 3, "pad: 1 group: 2"
    )
    text += pool("pool5", "conv5", 3, 2)
    for name, bottom in (("fc6", "pool5"), ("fc7", "fc6")):
        text += ip(name, bottom, 4096) + relu(name) + dropout(name)
    return DATA + text + ip("fc8", "fc7", 1000) + trained("fc8")


def vgg() -> str:
    text, bottom = "", "data"
    for stage, (count, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for i in range(1, depth + 1):
            name = f"conv{stage}_{i}"
            text += conv_relu(name, bottom, count, 3, "pad: 1")
            bottom = name
        text += pool(f"pool{stage}", bottom, 2, 2)
        bottom = f"pool{stage}"
    for name in ("fc6", "fc7"):
        text += ip(name, bottom, 4096) + relu(name) + dropout(name)
        bottom = name
    return DATA + text + ip("fc8", bottom, 1000) + trained("fc8")


def inception(name: str, bottom: str, scale: int = 1) -> str:
    """GoogLeNet's block: 1x1, 3x3 and 5x5 convolutions, a pooling of stride 1, one concatenation."""
    text = conv_relu(f"{name}/1x1", bottom, 8 * scale, 1) + conv_relu(f"{name}/3x3_reduce", bottom, 8 * scale, 1)
    text += conv_relu(f"{name}/3x3", f"{name}/3x3_reduce", 16 * scale, 3, "pad: 1")
    text += conv_relu(f"{name}/5x5_reduce", bottom, 4, 1)
    text += conv_relu(f"{name}/5x5", f"{name}/5x5_reduce", 4 * scale, 5, "pad: 2")
    text += pool(f"{name}/pool", bottom, 3, 1, "pool: MAX pad: 1") + conv_relu(
        f"{name}/pool_proj", f"{name}/pool", 4, 1
    )
    branches = " ".join(f"{name}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj"))
    return text + layer("Concat", f"{name}/output", branches)


def googlenet(norm: bool = False) -> str:
    text = conv_relu("conv1/7x7_s2", "data", 64, 7, "pad: 3 stride: 2") + pool("pool1/3x3_s2", "conv1/7x7_s2", 3, 2)
    text += lrn("pool1/norm1", "pool1/3x3_s2") if norm else ""
    text += inception("inception_3a", "pool1/norm1" if norm else "pool1/3x3_s2")
    text += inception("inception_3b", "inception_3a/output", 2) + pool("pool3", "inception_3b/output", 3, 2)
    text += inception("inception_4a", "pool3", 2)
    text += pool("loss1/ave_pool", "inception_4a/output", 5, 3, "pool: AVE")
    text += conv_relu("loss1/conv", "loss1/ave_pool", 128, 1) + ip("loss1/classifier", "loss1/conv", 10)
    text += pool("pool5/7x7_s1", "inception_4a/output", 7, 1, "pool: AVE") + dropout("pool5/7x7_s1")
    return DATA + text + ip("loss3/classifier", "pool5/7x7_s1", 10) + trained("loss3/classifier")


def fire(name: str, bottom: str, squeeze: int, expand: int) -> str:
    text = conv_relu(f"{name}/squeeze1x1", bottom, squeeze, 1)
    text += conv_relu(f"{name}/expand1x1", f"{name}/squeeze1x1", expand, 1)
    text += conv_relu(f"{name}/expand3x3", f"{name}/squeeze1x1", expand, 3, "pad: 1")
    return text + layer("Concat", f"{name}/concat", f"{name}/expand1x1 {name}/expand3x3")


def squeezenet() -> str:
    text = conv_relu("conv1", "data", 64, 3, "stride: 2") + pool("pool1", "conv1", 3, 2)
    text += fire("fire2", "pool1", 16, 64) + fire("fire3", "fire2/concat", 16, 64)
    text += layer("Eltwise", "bypass_23", "fire2/concat fire3/concat") + pool("pool3", "bypass_23", 3, 2)
    text += fire("fire4", "pool3", 32, 128) + dropout("fire4/concat") + conv_relu("conv10", "fire4/concat", 1000, 1)
    return DATA + text + global_pool("pool10", "conv10") + trained("pool10")


def separable(name: str, bottom: str, inputs: int, outputs: int, stride: int) -> str:
    text = conv_bn(f"{name}/dw", bottom, inputs, 3, f"pad: 1 stride: {stride} group: {inputs}") + relu(f"{name}/dw")
    return text + conv_bn(f"{name}/sep", f"{name}/dw", outputs, 1) + relu(f"{name}/sep")


def mobilenet() -> str:
    text, bottom, inputs = conv_bn("conv1", "data", 32, 3, "pad: 1 stride: 2") + relu("conv1"), "conv1", 32
    for i, (outputs, stride) in enumerate([(64, 1), (128, 2), (128, 1), (256, 2), (512, 2), (512, 1)], 2):
        text += separable(f"conv{i}", bottom, inputs, outputs, stride)
        bottom, inputs = f"conv{i}/sep", outputs
    text += global_pool("pool6", bottom) + conv("fc7", "pool6", 1000, 1)
    return DATA + text + trained("fc7")


def mobilenet_v2() -> str:
    """Inverted residuals, whose last convolutions have no ReLU."""
    text = conv_bn("conv1", "data", 16, 3, "pad: 1 stride: 2") + layer("ReLU6", "conv1/relu6", "conv1", top="conv1")
    text += conv_bn("expand", "conv1", 96, 1) + layer("ReLU6", "expand/relu6", "expand", top="expand")
    text += conv_bn("dwise", "expand", 96, 3, "pad: 1 group: 96") + layer("ReLU6", "dwise/relu6", "dwise", top="dwise")
    text += conv_bn("linear", "dwise", 16, 1) + layer("Eltwise", "block_2_1", "conv1 linear")
    return DATA + text + global_pool("pool6", "block_2_1") + ip("fc7", "pool6", 10) + trained("fc7")


def shufflenet() -> str:
    text = conv_bn("conv1", "data", 24, 3, "pad: 1 stride: 2") + conv("conv2", "conv1", 60, 1, "group: 3")
    text += layer("ShuffleChannel", "shuffle", "conv2", "shuffle_channel_param { group: 3 }")
    return DATA + text + global_pool("pool", "shuffle") + ip("fc", "pool", 10) + trained("fc")


def residual(name: str, bottom: str, count: int, stride: int = 1) -> str:
    text = conv_bn(f"{name}_branch2a", bottom, count, 3, f"pad: 1 stride: {stride}") + relu(f"{name}_branch2a")
    text += conv_bn(f"{name}_branch2b", f"{name}_branch2a", count, 3, "pad: 1")
    if stride > 1:
        text += conv_bn(f"{name}_branch1", bottom, count, 1, f"stride: {stride}")
        bottom = f"{name}_branch1"
    return text + layer("Eltwise", name, f"{bottom} {name}_branch2b", "eltwise_param { operation: SUM }") + relu(name)


def resnet(last: str = "") -> str:
    text = conv_bn("conv1", "data", 64, 7, "pad: 3 stride: 2") + relu("conv1") + pool("pool1", "conv1", 3, 2)
    text += residual("res2a", "pool1", 64) + residual("res3a", "res2a", 128, 2) + residual("res3b", "res3a", 128)
    return DATA + text + (last or pool("pool5", "res3b", 4, 1, "pool: AVE")) + ip("fc", "pool5", 10) + trained("fc")


def nvcaffe() -> str:
    """What NVIDIA's branch says of how it computes, and gains and offsets of its batch normalisation."""
    head = "default_forward_type: FLOAT16 default_backward_type: FLOAT16 default_forward_math: FLOAT\n"
    head += 'global_grad_scale: 1000 default_conv_algos_override: "1,-1,-1" reduce_buckets: 3\n'
    data = DATA.replace("data_param {", "data_param { threads: 2 parser_threads: 3 cache: true shuffle: false")
    data = data.replace("TEST }", "TEST } transform_param { use_gpu_transform: true }")
    text = conv("conv1", "data", 16, 3, "cudnn_convolution_algo_seeker: FINDEX").replace(
        "layer {", "layer { forward_type: FLOAT forward_math: FLOAT", 1
    )
    text += layer("BatchNorm", "bn1", "conv1", "batch_norm_param { scale_bias: true }") + relu("bn1")
    return head + data + text + ip("fc", "bn1", 10) + trained("fc")


def preactivated() -> str:
    text = conv("conv1", "data", 16, 3, "pad: 1") + layer("BatchNorm", "bn1", "conv1") + relu("bn1")
    text += (
        conv("conv2", "bn1", 16, 3, "pad: 1")
        + layer("Eltwise", "sum", "conv1 conv2")
        + layer("BatchNorm", "bn2", "sum")
    )
    return DATA + text + ip("fc", "bn2", 10) + trained("fc")


def squeeze_and_excite() -> str:
    text = conv_relu("conv1", "data", 16, 3, "pad: 1") + global_pool("squeeze", "conv1") + ip("down", "squeeze", 16)
    text += layer("Sigmoid", "prob", "down") + layer("Scale", "scale", "conv1 prob", "scale_param { axis: 0 }")
    return DATA + text + ip("fc", "scale", 10) + trained("fc")


def densenet() -> str:
    text, bottom = conv_bn("conv0", "data", 16, 3, "pad: 1") + relu("conv0"), "conv0"
    for i in range(1, 4):
        text += conv_bn(f"conv{i}", bottom, 12, 3, "pad: 1") + relu(f"conv{i}") + dropout(f"conv{i}")
        text += layer("Concat", f"concat{i}", f"{bottom} conv{i}")
        bottom = f"concat{i}"
    return DATA + text + global_pool("pool", bottom) + ip("fc", "pool", 10) + trained("fc")


def network_in_network() -> str:
    text = conv_relu("conv1", "data", 192, 5, "pad: 2") + conv_relu("cccp1", "conv1", 160, 1)
    text += pool("pool1", "cccp1", 3, 2) + dropout("pool1") + conv_relu("cccp6", "pool1", 10, 1)
    return DATA + text + pool("pool3", "cccp6", 16, 1, "pool: AVE") + trained("pool3")


def siamese() -> str:
    tops = 'data_a" top: "data_b'
    text = layer("Slice", "slice_pair", "data", "slice_param { slice_dim: 1 slice_point: 1 }", tops)
    return DATA + text + ip("ip1", "data_a", 10) + trained("ip1")


def autoencoder() -> str:
    text = layer("Flatten", "flatdata", "data") + ip("encode1", "flatdata", 100)
    text += layer("Sigmoid", "encode1neuron", "encode1") + ip("decode1", "encode1neuron", 3072)
    loss = layer("SigmoidCrossEntropyLoss", "loss", "decode1 flatdata") + layer("Sigmoid", "decode1neuron", "decode1")
    return DATA + text + loss + layer("EuclideanLoss", "l2", "decode1neuron flatdata")


def perceptron() -> str:
    """Images flattened and classified by inner products, as the MNIST examples of many courses are."""
    text = layer("Flatten", "flat", "data") + ip("ip1", "flat", 32) + layer("TanH", "tanh1", "ip1", top="ip1")
    return DATA + text + ip("ip2", "ip1", 10) + layer("Softmax", "prob", "ip2") + trained("prob")


def v1() -> str:
    return """name: "old"
layers { name: "data" type: DATA top: "data" top: "label"
  data_param { source: "test_lmdb" batch_size: 10 backend: LMDB scale: 0.00390625 } include: { phase: TEST } }
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
  convolution_param { num_output: 32 kernel_size: 5 pad: 2 } }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "relu1" type: RELU bottom: "pool1" top: "pool1" }
layers { name: "drop" type: DROPOUT bottom: "pool1" top: "pool1" }
layers { name: "ip1" type: INNER_PRODUCT bottom: "pool1" top: "ip1" inner_product_param { num_output: 10 } }
layers { name: "accuracy" type: ACCURACY bottom: "ip1" bottom: "label" top: "accuracy" include: { phase: TEST } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip1" bottom: "label" top: "loss" }
"""


def old_inception() -> str:
    """V1 syntax with the field's old name."""
    text = v1().replace('layers { name: "ip1" type: INNER_PRODUCT bottom: "pool1"', "@")
    branches = "".join(
        f'layers {{ name: "b{i}" type: CONVOLUTION bottom: "pool1" top: "b{i}"'
        " convolution_param { num_output: 8 kernel_size: 1 } }\n"
        for i in (1, 2)
    )
    concat = 'layers { name: "cat" type: CONCAT bottom: "b1" bottom: "b2" top: "cat" concat_param { concat_dim: 1 } }\n'
    return text.replace("@", branches + concat + 'layers { name: "ip1" type: INNER_PRODUCT bottom: "cat"')


DEPLOYED = conv_relu("conv1", "data", 8, 3) + ip("ip1", "conv1", 10) + layer("Softmax", "prob", "ip1")


def deploy_layer() -> str:
    shape = "input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } }"
    return f'layer {{ name: "data" type: "Input" top: "data" {shape} }}\n{DEPLOYED}'


def deploy_fields() -> str:
    return f'input: "data"\ninput_dim: 1 input_dim: 3 input_dim: 32 input_dim: 32\n{DEPLOYED}'


def deploy_shape() -> str:
    return f'input: "data" input_shape {{ dim: 10 dim: 3 dim: 32 dim: 32 }}\n{DEPLOYED}'


def deploy_of_another_size() -> str:
    return f'input: "data" input_shape {{ dim: 1 dim: 3 dim: 28 dim: 28 }}\n{DEPLOYED}'


def fully_convolutional() -> str:
    text = conv_relu("conv1", "data", 8, 3, "pad: 1") + conv("score", "conv1", 10, 1)
    return DATA + text + layer("Softmax", "prob", "score") + trained("prob")


def segmentation() -> str:
    text = conv("conv1", "data", 8, 3, "dilation: 2")
    up = "convolution_param { num_output: 4 kernel_size: 4 stride: 2 }"
    text += layer("Deconvolution", "up", "conv1", up) + layer("Crop", "c", "up data", "crop_param { offset: 9 }")
    return DATA + text + trained("c")


def attention() -> str:
    text = conv("conv1", "data", 8, 3) + layer("Softmax", "weights", "conv1")
    text += layer("Eltwise", "product", "conv1 weights", "eltwise_param { operation: PROD }")
    return DATA + text + ip("ip1", "product", 10) + trained("ip1")


def leaky() -> str:
    text = conv("conv1", "data", 8, 3) + layer("ReLU", "r", "conv1", "relu_param { negative_slope: 0.1 }", "conv1")
    return DATA + text + ip("ip1", "conv1", 10) + trained("ip1")


def steep() -> str:
    return leaky().replace("negative_slope: 0.1", "negative_slope: 2")


def trained_slopes() -> str:
    return DATA + layer("PReLU", "p", "data") + ip("ip1", "p", 10) + trained("ip1")


def flat_branches() -> str:
    text = conv("conv1", "data", 8, 3) + layer("Flatten", "f", "conv1") + ip("ip1", "data", 5)
    return DATA + text + layer("Concat", "cat", "f ip1") + ip("ip2", "cat", 10) + trained("ip2")


def flat_vectors() -> str:
    text = (
        conv("conv1", "data", 8, 3)
        + global_pool("pool", "conv1")
        + layer("Flatten", "f", "pool")
        + ip("ip1", "data", 5)
    )
    return DATA + text + layer("Concat", "cat", "f ip1") + ip("ip2", "cat", 10) + trained("ip2")


def detector() -> str:
    text = conv("conv1", "data", 8, 3) + layer("Permute", "perm", "conv1", "permute_param { order: 0 order: 2 }")
    return (
        DATA + text + layer("Reshape", "r", "perm", "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }") + trained("r")
    )


def hdf5() -> str:
    param = 'hdf5_data_param { source: "list" batch_size: 1 }'
    text = f'layer {{ name: "data" type: "HDF5Data" top: "data" top: "label" {param} }}\n'
    return text + ip("ip1", "data", 10) + trained("ip1")


@dataclass(frozen=True)
class Case:
    """A prototxt; the layers that its graph has, or parts of the sentence that declines it."""

    text: Callable[[], str]
    layers: int = 0
    declined: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (3, 32, 32)
    core: Core = Core.DSP


CASES = {
    "lenet": Case(lenet, 8, shape=(1, 28, 28)),
    "cifar quick": Case(cifar_quick, 12),
    "cifar full": Case(cifar_full, 6),
    "alexnet": Case(alexnet, 21, shape=(3, 227, 227)),
    "alexnet without lrn": Case(lambda: alexnet(False), 19, shape=(3, 227, 227)),
    "vgg": Case(vgg, 37, shape=(3, 64, 64)),
    "vgg, large": Case(vgg, 37, shape=(3, 224, 224)),
    "googlenet": Case(lambda: googlenet(True), 50, shape=(3, 112, 112)),
    "googlenet without lrn": Case(googlenet, 49, shape=(3, 112, 112)),
    "googlenet, plain core": Case(googlenet, 49, shape=(3, 112, 112), core=Core.PLAIN),
    "squeezenet": Case(squeezenet, 30, shape=(3, 64, 64)),
    "mobilenet": Case(mobilenet, 29, shape=(3, 64, 64)),
    "mobilenet v2": Case(mobilenet_v2, 11),
    "shufflenet": Case(shufflenet, 6),
    "resnet": Case(resnet, 22, shape=(3, 64, 64)),
    "resnet, global pooling": Case(lambda: resnet(global_pool("pool5", "res3b")), 22, shape=(3, 64, 64)),
    "preactivated resnet": Case(preactivated, 6),
    "squeeze and excite": Case(squeeze_and_excite, 8),
    "densenet": Case(densenet, 14),
    "network in network": Case(network_in_network, 9),
    "siamese": Case(siamese, 3, shape=(2, 28, 28)),
    "autoencoder": Case(autoencoder, 5),
    "perceptron": Case(perceptron, 4),
    "v1": Case(v1, 5),
    "v1 with branches": Case(old_inception, 8),
    "deploy, input layer": Case(deploy_layer, 4),
    "deploy, input fields": Case(deploy_fields, 4),
    "deploy, input shape": Case(deploy_shape, 4),
    "deploy of another size": Case(
        deploy_of_another_size,
        declined=("layer 'data' (Input): the images have shape (3, 32, 32), the prototxt asks for (3, 28, 28)",),
    ),
    "fully convolutional": Case(
        fully_convolutional, declined=("'prob' has shape (10, 32, 32), allowed is one value for each class",)
    ),
    "segmentation": Case(segmentation, declined=("'c' has shape (4, 32, 32), allowed is one value for each class",)),
    "NVCaffe": Case(nvcaffe, 4),
    "attention": Case(attention, 5),
    "leaky": Case(leaky, 4),
    "steep": Case(steep, 4),
    "trained slopes": Case(trained_slopes, 3),
    "flattened branches": Case(flat_branches, 6),
    "flat vectors": Case(flat_vectors, 6),
    "detector": Case(detector, declined=("'r' has shape (2, 3600), allowed is one value for each class",)),
    "hdf5": Case(hdf5, 2),
    "silence": Case(lambda: hdf5() + 'layer { name: "quiet" type: "Silence" bottom: "label" bottom: "ip1" }', 2),
    "memory data": Case(
        lambda: hdf5().replace("HDF5Data", "MemoryData"),
        declined=(
            "no layer of type Data, ImageData, HDF5Data, Input in the TEST phase; it begins with 'data' (MemoryData)",
        ),
    ),
}


def parse(folder: Path, case: Case) -> Graph:
    (folder / "net.prototxt").write_text(case.text())
    prototxt = read_prototxt(folder / "net.prototxt")
    return parse_network(prototxt, "accuracy", data_source(prototxt), case.shape, Target(case.core))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.declined])
def test_declined_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        parse(tmp_path, CASES[name])
    for part in CASES[name].declined:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.declined])
def test_parsed_and_placed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer gets a kernel, a place in memory, and C that names it; small networks get weights as well."""
    monkeypatch.setattr(render, "c_array", no_values)
    case = CASES[name]
    target = Target(case.core)
    network = parse(tmp_path, case)
    assert len([layer for layer in network.layers if not layer.folds]) == case.layers
    if sum(layer.macs for layer in network.layers) > LARGEST:
        return
    network = simplify(attach_weights(network, random_weights(network)))
    formats = common.table(network, {key: QFormat(4) for key in common.tensors(network)})
    layers = tuple(quantize_network(network, formats, target))
    quantized = QuantizedNetwork(network, formats, layers, target)
    plan = rows.plan(quantized)
    files = render.render(quantized, plan, CodeOptions("host"))
    assert all(integer.kernel.name in files["main.cpp"] for integer in layers)


def test_gains_of_a_batch_normalisation_are_those_of_a_scale_behind_it(tmp_path: Path) -> None:
    """NVCaffe's scale_bias; also where neither can go into weights, and in the blobs that are written."""
    nv = parse(tmp_path, Case(nvcaffe))
    blobs = random_weights(nv)
    one = simplify(attach_weights(nv, blobs))
    behind = layer("Scale", "s1", "bn1", "scale_param { bias_term: true }", "bn1") + relu("bn1")
    text = nvcaffe().replace("batch_norm_param { scale_bias: true }", "").replace(relu("bn1"), behind)
    split = {**blobs, "bn1": blobs["bn1"][:3], "s1": blobs["bn1"][3:]}
    assert len(split["s1"]) == 2
    two = simplify(attach_weights(parse(tmp_path, Case(lambda: text)), split))
    for name in one.weights:
        for found, expected in zip(one.weights[name], two.weights[name]):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    (norm,) = (layer for layer in nv.layers if layer.name == "bn1")
    pair = norm.load(blobs["bn1"])
    for found, expected in zip(norm.load([*norm.blobs(pair)]), pair):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
