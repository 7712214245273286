# SPDX-License-Identifier: Apache-2.0
"""Networks that people have in Caffe's format, written from the papers that describe them, as prototxt text.

python -m tests.public_networks says which of them are computed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.from_caffe import parse_network
from caffe_to_cmsis_nn.network.graph import Graph

Shape = tuple[int, int, int]
BIAS_TERM = "scale_param { bias_term: true }"


@dataclass
class Net:
    """Layers so far, and the blob that the next one reads."""

    shape: Shape
    text: list[str] = field(default_factory=list)
    at: str = "data"
    count: int = 0

    def __post_init__(self) -> None:
        dims = " ".join(f"dim: {dim}" for dim in (1, *self.shape))
        self.text.append(f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}')

    def add(self, kind: str, param: str = "", *bottoms: str, tops: int = 1) -> str:
        """A layer that reads the last blob, or others; its top becomes the last blob."""
        self.count += 1
        name = f"{kind.lower()}{self.count}"
        bottom = " ".join(f'bottom: "{blob}"' for blob in bottoms or (self.at,))
        top = " ".join(f'top: "{name}{"abcdef"[i] if tops > 1 else ""}"' for i in range(tops))
        self.text.append(f'layer {{ name: "{name}" type: "{kind}" {bottom} {top} {param} }}')
        self.at = f"{name}a" if tops > 1 else name
        return self.at

    def on(self, blob: str) -> Net:
        """Goes on from another blob."""
        self.at = blob
        return self

    def conv(self, outputs: int, kernel: int, stride: int = 1, pad: int = -1, more: str = "") -> str:
        pad = kernel // 2 if pad < 0 else pad
        sizes = f"num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad}"
        return self.add("Convolution", f"convolution_param {{ {sizes} {more} }}")

    def relu(self) -> str:
        return self.add("ReLU")

    def conv_relu(self, outputs: int, kernel: int, stride: int = 1, pad: int = -1, more: str = "") -> str:
        self.conv(outputs, kernel, stride, pad, more)
        return self.relu()

    def norm(self) -> str:
        self.add("BatchNorm")
        return self.add("Scale", BIAS_TERM)

    def conv_norm(self, outputs: int, kernel: int, stride: int = 1, pad: int = -1, more: str = "") -> str:
        self.conv(outputs, kernel, stride, pad, f"bias_term: false {more}")
        return self.norm()

    def unit(self, outputs: int, kernel: int, stride: int = 1, pad: int = -1, more: str = "") -> str:
        """Convolution, normalisation, rectifier."""
        self.conv_norm(outputs, kernel, stride, pad, more)
        return self.relu()

    def pool(self, kernel: int, stride: int, method: str = "MAX", more: str = "") -> str:
        param = f"pool: {method} kernel_size: {kernel} stride: {stride} {more}"
        return self.add("Pooling", f"pooling_param {{ {param} }}")

    def mean(self) -> str:
        return self.add("Pooling", "pooling_param { pool: AVE global_pooling: true }")

    def ip(self, outputs: int) -> str:
        return self.add("InnerProduct", f"inner_product_param {{ num_output: {outputs} }}")

    def ip_relu(self, outputs: int) -> str:
        self.ip(outputs)
        self.relu()
        return self.add("Dropout")

    def lrn(self) -> str:
        return self.add("LRN", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def sum(self, *blobs: str) -> str:
        return self.add("Eltwise", "", *blobs)

    def concat(self, *blobs: str) -> str:
        return self.add("Concat", "", *blobs)

    def softmax(self) -> Net:
        self.add("Softmax")
        return self


def graph(net: Net) -> Graph:
    """The network, with images of its shape."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text("\n".join(net.text))
        prototxt = read_prototxt(path)
        return parse_network(prototxt, "accuracy", data_source(prototxt), net.shape)


def declined(net: Net) -> str:
    """Why it is not computed, if so."""
    try:
        graph(net)
    except UserError as error:
        return str(error)
    return ""


def classes(net: Net, outputs: int = 1000) -> Net:
    net.ip(outputs)
    return net.softmax()


# --- the first years --------------------------------------------------------------------------------------------------


def lenet() -> Net:
    net = Net((1, 28, 28))
    net.conv(20, 5, pad=0)
    net.pool(2, 2)
    net.conv(50, 5, pad=0)
    net.pool(2, 2)
    net.ip_relu(500)
    return classes(net, 10)


def cifar(full: bool, sigmoid: bool = False, norm: bool = False) -> Net:
    net = Net((3, 32, 32))
    for outputs, method in ((32, "MAX"), (32, "AVE"), (64, "AVE")):
        net.conv(outputs, 5)
        if outputs == 32 and method == "MAX" and not sigmoid:
            net.pool(3, 2)
            net.relu()
        else:
            if norm:
                net.add("BatchNorm")
            net.add("Sigmoid" if sigmoid else "ReLU")
            net.pool(3, 2, method)
        if full and not norm and outputs == 32:
            net.add("LRN", "lrn_param { local_size: 3 alpha: 5e-05 beta: 0.75 norm_region: WITHIN_CHANNEL }")
    if not full:
        net.ip(64)
    return classes(net, 10)


def alexnet(norm_first: bool, outputs: int = 1000) -> Net:
    """AlexNet normalizes before it pools, CaffeNet after that; R-CNN and Flickr Style are the latter."""
    net = Net((3, 227, 227))
    for count, kernel, stride, group in ((96, 11, 4, 1), (256, 5, 1, 2)):
        net.conv_relu(count, kernel, stride, 0 if stride > 1 else -1, f"group: {group}")
        for step in (net.lrn, lambda: net.pool(3, 2))[:: 1 if norm_first else -1]:
            step()
    net.conv_relu(384, 3)
    net.conv_relu(384, 3, more="group: 2")
    net.conv_relu(256, 3, more="group: 2")
    net.pool(3, 2)
    net.ip_relu(4096)
    net.ip_relu(4096)
    return classes(net, outputs)


def zfnet() -> Net:
    net = Net((3, 224, 224))
    net.conv_relu(96, 7, 2)
    net.lrn()
    net.pool(3, 2)
    net.conv_relu(256, 5, 2, 0)
    net.lrn()
    net.pool(3, 2)
    for outputs in (384, 384, 256):
        net.conv_relu(outputs, 3)
    net.pool(3, 2)
    net.ip_relu(4096)
    net.ip_relu(4096)
    return classes(net)


def vgg(*depths: int, norm: bool = False, outputs: int = 1000, size: int = 224) -> Net:
    net = Net((3, size, size))
    for count, depth in zip((64, 128, 256, 512, 512), depths):
        for _ in range(depth):
            (net.unit if norm else net.conv_relu)(count, 3)
        net.pool(2, 2)
    net.ip_relu(4096)
    net.ip_relu(4096)
    return classes(net, outputs)


def vgg_cnn(kind: str) -> Net:
    """CNN-F, M and S of "Return of the devil in the details"."""
    net = Net((3, 224, 224))
    net.conv_relu(64 if kind == "F" else 96, 11 if kind == "F" else 7, 4 if kind == "F" else 2, 0)
    net.lrn()
    net.pool(3, 3 if kind == "S" else 2)
    net.conv_relu(256, 5, 2 if kind == "M" else 1, 1)
    if kind != "S":
        net.lrn()
    net.pool(2 if kind == "S" else 3, 2)
    for _ in range(3):
        net.conv_relu(256 if kind == "F" else 512, 3)
    net.pool(3, 3 if kind == "S" else 2)
    net.ip_relu(4096)
    net.ip_relu(4096)
    return classes(net)


def network_in_network(imagenet: bool) -> Net:
    net = Net((3, 224, 224) if imagenet else (3, 32, 32))
    rows = (
        ((96, 11, 4), (256, 5, 1), (384, 3, 1), (1024, 3, 1)) if imagenet else ((192, 5, 1), (192, 5, 1), (192, 3, 1))
    )
    for i, (count, kernel, stride) in enumerate(rows):
        net.conv_relu(count, kernel, stride, 0 if stride > 1 else -1)
        net.conv_relu(count, 1)
        last = i == len(rows) - 1
        net.conv_relu((1000 if imagenet else 10) if last else count, 1)
        if not last:
            net.pool(3, 2, "MAX" if imagenet or i == 0 else "AVE")
            net.add("Dropout")
    net.mean()
    return net.softmax()


def logistic_regression(hidden: int = 0) -> Net:
    net = Net((4, 1, 1))
    if hidden:
        net.ip(hidden)
        net.relu()
    return classes(net, 2)


def autoencoder() -> Net:
    net = Net((1, 28, 28))
    net.add("Flatten")
    for outputs in (1000, 500, 250, 30, 250, 500, 1000):
        net.ip(outputs)
        net.add("Sigmoid")
    net.ip(784)
    net.add("Sigmoid")
    return net


def siamese() -> Net:
    net = Net((2, 28, 28))
    net.add("Slice", "slice_param { slice_dim: 1 slice_point: 1 }", tops=2)
    for outputs in (20, 50):
        net.conv(outputs, 5, pad=0)
        net.pool(2, 2)
    net.ip(500)
    net.relu()
    net.ip(10)
    net.ip(2)
    return net


def fully_convolutional_caffenet() -> Net:
    """As "net surgery" makes it: scores for each place of a large picture."""
    net = Net((3, 451, 451))
    for count, kernel, stride, group in ((96, 11, 4, 1), (256, 5, 1, 2)):
        net.conv_relu(count, kernel, stride, 0 if stride > 1 else -1, f"group: {group}")
        net.pool(3, 2)
        net.lrn()
    for count, group in ((384, 1), (384, 2), (256, 2)):
        net.conv_relu(count, 3, more=f"group: {group}")
    net.pool(3, 2)
    net.conv_relu(4096, 6, pad=0)
    net.conv_relu(4096, 1)
    net.conv(1000, 1)
    return net.softmax()


# --- Inception --------------------------------------------------------------------------------------------------------


def inception(
    net: Net, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int, norm: bool = False
) -> str:
    unit = net.unit if norm else net.conv_relu
    source = net.at
    ends = [unit(one, 1)] if one else []
    for (reduced, count), kernel in ((three, 3), (five, 5)):
        net.on(source)
        unit(reduced, 1)
        ends.append(unit(count, kernel))
    net.on(source).pool(3, 1, "MAX", "pad: 1")
    ends.append(unit(pooled, 1))
    return net.concat(*ends)


GOOGLENET = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)


def googlenet(norm: bool = False, size: int = 224, outputs: int = 1000) -> Net:
    net = Net((3, size, size))
    unit = net.unit if norm else net.conv_relu
    unit(64, 7, 2)
    net.pool(3, 2)
    if not norm:
        net.lrn()
    unit(64, 1)
    unit(192, 3)
    if not norm:
        net.lrn()
    net.pool(3, 2)
    for i, stage in enumerate(GOOGLENET):
        if i:
            net.pool(3, 2)
        for row in stage:
            inception(net, *row, norm=norm)
    net.mean()
    net.add("Dropout")
    return classes(net, outputs)


def rectangular(net: Net, outputs: int, height: int, width: int) -> str:
    param = f"num_output: {outputs} kernel_h: {height} kernel_w: {width} pad_h: {height // 2} pad_w: {width // 2}"
    net.add("Convolution", f"convolution_param {{ {param} bias_term: false }}")
    net.norm()
    return net.relu()


def inception_v3() -> Net:
    """Blocks with windows of 1 x 7 and 7 x 1."""
    net = Net((3, 299, 299))
    net.unit(32, 3, 2, 0)
    net.unit(32, 3, pad=0)
    net.unit(64, 3)
    net.pool(3, 2)
    net.unit(80, 1)
    net.unit(192, 3, pad=0)
    net.pool(3, 2)
    for pooled in (32, 64, 64):
        inception(net, 64, (48, 64), (64, 96), pooled, norm=True)
    net.unit(768, 3, 2, 0)
    for width in (128, 160, 192):
        source = net.at
        one = net.unit(192, 1)
        net.on(source).unit(width, 1)
        rectangular(net, width, 1, 7)
        seven = rectangular(net, 192, 7, 1)
        net.on(source).pool(3, 1, "AVE", "pad: 1")
        net.concat(one, seven, net.unit(192, 1))
    net.mean()
    return classes(net)


def xception() -> Net:
    net = Net((3, 299, 299))
    net.unit(32, 3, 2, 0)
    net.unit(64, 3, pad=0)
    inputs = 64
    for outputs in (128, 256, 728):
        source = net.at
        side = net.conv_norm(outputs, 1, 2)
        net.on(source)
        for count in (inputs, outputs):
            net.conv(count, 3, more=f"group: {count} bias_term: false")
            net.conv_norm(outputs, 1)
        net.sum(net.pool(3, 2, more="pad: 1 round_mode: FLOOR"), side)
        inputs = outputs
    net.mean()
    return classes(net)


# --- residual networks ------------------------------------------------------------------------------------------------


def squeeze_and_excite(net: Net, channels: int) -> str:
    source = net.at
    net.mean()
    net.conv(channels // 16, 1)
    net.relu()
    net.conv(channels, 1)
    gate = net.add("Sigmoid")
    vector = net.on(gate).add("Flatten")
    return net.add("Scale", "scale_param { axis: 0 }", source, vector)


def resnet(
    *depths: int, bottleneck: bool, group: int = 1, width: int = 64, size: int = 224, excite: bool = False
) -> Net:
    net = Net((3, size, size))
    net.unit(64, 7, 2)
    net.pool(3, 2)
    outputs = 4 * 64 if bottleneck else 64
    inner = width
    for stage, depth in enumerate(depths):
        for i in range(depth):
            source, stride = net.at, 2 if stage and not i else 1
            side = net.conv_norm(outputs, 1, stride) if i == 0 and (stage or bottleneck) else source
            net.on(source)
            if bottleneck:
                net.unit(inner, 1)
                net.unit(inner, 3, stride, more=f"group: {group}")
                net.conv_norm(outputs, 1)
            else:
                net.unit(inner, 3, stride)
                net.conv_norm(outputs, 3)
            if excite:
                squeeze_and_excite(net, outputs)
            net.sum(side, net.at)
            net.relu()
        outputs, inner = 2 * outputs, 2 * inner
    net.mean()
    return classes(net)


def cifar_resnet(depth: int) -> Net:
    net = Net((3, 32, 32))
    net.unit(16, 3)
    for stage, outputs in enumerate((16, 32, 64)):
        for i in range((depth - 2) // 6):
            source, stride = net.at, 2 if stage and not i else 1
            side = net.conv_norm(outputs, 1, stride) if stride > 1 else source
            net.on(source).unit(outputs, 3, stride)
            net.sum(side, net.conv_norm(outputs, 3))
            net.relu()
    net.mean()
    return classes(net, 10)


def preactivated(depth: int) -> Net:
    net = Net((3, 32, 32))
    net.conv(16, 3)
    for stage, outputs in enumerate((64, 128, 256)):
        for i in range((depth - 2) // 9):
            source, stride = net.at, 2 if stage and not i else 1
            net.norm()
            started = net.relu()
            side = net.conv(outputs, 1, stride) if i == 0 else source
            net.on(started).unit(outputs // 4, 1)
            net.unit(outputs // 4, 3, stride)
            net.sum(side, net.conv(outputs, 1))
    net.norm()
    net.relu()
    net.mean()
    return classes(net, 10)


def densenet(*depths: int, growth: int = 32, first: int = 64, size: int = 224) -> Net:
    net = Net((3, size, size))
    channels = first
    if size > 100:
        net.unit(first, 7, 2)
        net.pool(3, 2, more="pad: 1")
    else:
        net.conv(first, 3)
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            source = net.at
            net.norm()
            net.relu()
            net.conv(4 * growth, 1, more="bias_term: false")
            net.norm()
            net.relu()
            net.concat(source, net.conv(growth, 3, more="bias_term: false"))
            channels += growth
        net.norm()
        net.relu()
        if stage < len(depths) - 1:
            channels //= 2
            net.conv(channels, 1, more="bias_term: false")
            net.pool(2, 2, "AVE")
    net.mean()
    net.conv(1000, 1)
    return net.softmax()


def dual_path(*depths: int) -> Net:
    """DPN: of each block's output, some channels are added and others concatenated."""
    net = Net((3, 224, 224))
    net.unit(64, 7, 2)
    net.pool(3, 2)
    for stage, depth in enumerate(depths):
        added, growth = 64 << stage, 16
        net.norm()
        net.relu()
        net.conv(added + 2 * growth, 1, 2 if stage else 1)
        split = f"slice_param {{ axis: 1 slice_point: {added} }}"
        path = net.add("Slice", split, tops=2)
        dense = path[:-1] + "b"
        for _ in range(depth):
            net.concat(path, dense)
            net.norm()
            net.relu()
            net.conv(96, 1)
            net.unit(96, 3, more="group: 32")
            net.conv(added + growth, 1)
            new = net.add("Slice", split, tops=2)
            path, dense = net.sum(path, new), net.concat(dense, new[:-1] + "b")
        net.concat(path, dense)
    net.mean()
    return classes(net)


# --- small ones -------------------------------------------------------------------------------------------------------


def squeezenet(version: str, bypass: bool = False) -> Net:
    net = Net((3, 227, 227))
    net.conv_relu(96 if version == "1.0" else 64, 7 if version == "1.0" else 3, 2, 0)
    pools = (1, 4, 8) if version == "1.0" else (1, 3, 5)
    widths = (16, 16, 32, 32, 48, 48, 64, 64)
    net.pool(3, 2)
    for i, width in enumerate(widths, 2):
        source = net.at
        squeezed = net.conv_relu(width, 1)
        wide = net.on(squeezed).conv_relu(4 * width, 1)
        net.concat(wide, net.on(squeezed).conv_relu(4 * width, 3))
        if bypass and i in (3, 5, 7, 9):
            net.sum(source, net.at)
        if i in pools:
            net.pool(3, 2)
    net.add("Dropout")
    net.conv_relu(1000, 1)
    net.mean()
    return net.softmax()


def mobilenet(width: float, size: int = 224, kind: str = "Convolution") -> Net:
    net = Net((3, size, size))
    inputs = int(32 * width)
    net.unit(inputs, 3, 2)
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for outputs, stride in rows:
        group = f"group: {inputs} engine: CAFFE" if kind == "Convolution" else ""
        sizes = f"num_output: {inputs} kernel_size: 3 stride: {stride} pad: 1 bias_term: false {group}"
        net.add(kind, f"convolution_param {{ {sizes} }}")
        net.norm()
        net.relu()
        inputs = int(outputs * width)
        net.unit(inputs, 1)
    net.mean()
    net.conv(1000, 1)
    net.softmax()
    return net


def mobilenet_v2(width: float, act: str = "ReLU") -> Net:
    net = Net((3, 224, 224))
    channels = int(32 * width)
    net.conv_norm(channels, 3, 2)
    net.add(act)
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, repeats, first_stride in rows:
        for i in range(repeats):
            source, stride, wide = net.at, first_stride if i == 0 else 1, expansion * channels
            if expansion > 1:
                net.conv_norm(wide, 1)
                net.add(act)
            net.conv_norm(wide, 3, stride, more=f"group: {wide}")
            net.add(act)
            end = net.conv_norm(int(outputs * width), 1)
            if stride == 1 and channels == int(outputs * width):
                net.sum(source, end)
            channels = int(outputs * width)
    net.conv_norm(1280, 1)
    net.add(act)
    net.mean()
    net.conv(1000, 1)
    return net.softmax()


def shufflenet(group: int) -> Net:
    net = Net((3, 224, 224))
    net.unit(24, 3, 2)
    net.pool(3, 2)
    channels, base = 24, {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}[group]
    for stage, repeats in enumerate((4, 8, 4)):
        for i in range(repeats):
            source, outputs = net.at, base << stage
            inner = outputs // 4 // group * group
            net.unit(inner, 1, more=f"group: {group if channels > 24 else 1}")
            net.add("ShuffleChannel", f"shuffle_channel_param {{ group: {group} }}")
            net.conv_norm(inner, 3, 1 if i else 2, more=f"group: {inner}")
            end = net.conv_norm(outputs if i else outputs - channels, 1, more=f"group: {group}")
            if i:
                net.sum(source, end)
            else:
                net.concat(net.on(source).pool(3, 2, "AVE"), end)
            net.relu()
            channels = outputs
    net.mean()
    return classes(net)


def shufflenet_v2() -> Net:
    """With a Slice at the beginning of each unit, and the shuffle as Reshape, Permute and Reshape."""
    net = Net((3, 224, 224))
    net.unit(24, 3, 2)
    net.pool(3, 2)
    channels, side = 24, 56
    for outputs, repeats in ((116, 4), (232, 8), (464, 4)):
        for i in range(repeats):
            half, source = outputs // 2, net.at
            if i:
                left = net.add("Slice", "slice_param { axis: 1 }", tops=2)
                right = left[:-1] + "b"
            else:
                net.conv_norm(channels, 3, 2, more=f"group: {channels}")
                left, right = net.unit(half, 1), source
                side //= 2
            net.on(right).unit(half, 1)
            net.conv_norm(half, 3, 1 if i else 2, more=f"group: {half}")
            net.concat(left, net.unit(half, 1))
            net.add("Reshape", f"reshape_param {{ shape {{ dim: 0 dim: 2 dim: {half} dim: {side} dim: {side} }} }}")
            net.add("Permute", "permute_param { order: 0 order: 2 order: 1 order: 3 order: 4 }")
            net.add("Reshape", f"reshape_param {{ shape {{ dim: 0 dim: {outputs} dim: {side} dim: {side} }} }}")
        channels = outputs
    net.unit(1024, 1)
    net.mean()
    return classes(net)


# --- faces ------------------------------------------------------------------------------------------------------------


def mtcnn(size: int, *outputs: int) -> Net:
    """Classes, boxes and, at the end, landmarks."""
    net = Net((3, size, size))
    rows = {12: ((10, 3), (16, 3), (32, 3)), 24: ((28, 3), (48, 3), (64, 2)), 48: ((32, 3), (64, 3), (64, 3), (128, 2))}
    for i, (count, kernel) in enumerate(rows[size]):
        net.conv(count, kernel, pad=0)
        net.add("PReLU")
        if i < (1 if size == 12 else len(rows[size]) - 1):
            net.pool(3 if size > 12 and i < 2 else 2, 2)
    if size > 12:
        net.ip(128 if size == 24 else 256)
        net.add("PReLU")
    source = net.at
    for i, count in enumerate(outputs):
        net.on(source)
        net.conv(count, 1) if size == 12 else net.ip(count)
        if i == 0:
            net.add("Softmax")
    return net


def age_gender(outputs: int) -> Net:
    net = Net((3, 227, 227))
    for count, kernel, stride in ((96, 7, 4), (256, 5, 1), (384, 3, 1)):
        net.conv_relu(count, kernel, stride, 0 if stride > 1 else -1)
        net.pool(3, 2)
        if count < 384:
            net.lrn()
    net.ip_relu(512)
    net.ip_relu(512)
    return classes(net, outputs)


def sphereface(*depths: int) -> Net:
    net = Net((3, 112, 96))
    for count, depth in zip((64, 128, 256, 512), depths):
        net.conv(count, 3, 2)
        net.add("PReLU")
        for _ in range(depth):
            source = net.at
            for _ in range(2):
                net.conv(count, 3)
                net.add("PReLU")
            net.sum(source, net.at)
    net.ip(512)
    return net


def light_cnn() -> Net:
    """Max-feature-map: the larger of two halves of the channels."""
    net = Net((1, 128, 128))

    def halves(outputs: int, kernel: int) -> None:
        net.conv(2 * outputs, kernel)
        first = net.add("Slice", "slice_param { slice_dim: 1 }", tops=2)
        net.add("Eltwise", "eltwise_param { operation: MAX }", first, first[:-1] + "b")

    halves(48, 5)
    net.pool(2, 2)
    for outputs in (96, 192, 128):
        halves(outputs // 2, 1)
        halves(outputs, 3)
        net.pool(2, 2)
    net.ip(512)
    first = net.add("Slice", "slice_param { slice_dim: 1 }", tops=2)
    net.add("Eltwise", "eltwise_param { operation: MAX }", first, first[:-1] + "b")
    return classes(net, 10575)


def landmarks() -> Net:
    net = Net((1, 60, 60))
    for outputs, kernel in ((20, 5), (48, 5), (64, 3), (80, 3)):
        net.conv(outputs, kernel, pad=0)
        net.add("TanH")
        net.add("AbsVal")
        net.pool(2, 2)
    net.ip(256)
    net.add("TanH")
    net.ip(10)
    return net


def deepid() -> Net:
    net = Net((3, 55, 47))
    for outputs, kernel in ((20, 4), (40, 3), (60, 3)):
        net.conv_relu(outputs, kernel, pad=0)
        pooled = net.pool(2, 2)
    last = net.on(pooled).conv_relu(80, 2, pad=0)
    first, second = net.on(pooled).ip(160), net.on(last).ip(160)
    net.sum(first, second)
    net.relu()
    return classes(net, 10575)


# --- pictures out of pictures -----------------------------------------------------------------------------------------


def deconv(net: Net, outputs: int, kernel: int, stride: int, more: str = "") -> str:
    sizes = f"num_output: {outputs} kernel_size: {kernel} stride: {stride} {more}"
    return net.add("Deconvolution", f"convolution_param {{ {sizes} }}")


def fcn(stride: int) -> Net:
    """VGG-16 with one, two or three steps of upsampling, each cropped to what it is added to."""
    net = Net((3, 224, 224))
    ends = []
    for count, depth in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3)):
        for _ in range(depth):
            net.conv_relu(count, 3, pad=100 if net.at == "data" else 1)
        ends.append(net.pool(2, 2))
    net.conv_relu(4096, 7, pad=0)
    net.conv_relu(4096, 1)
    net.conv(21, 1)
    for finer, end, offset in ((16, ends[3], 5), (8, ends[2], 9)):
        if stride <= finer:
            up = deconv(net, 21, 4, 2, "bias_term: false")
            score = net.on(end).conv(21, 1)
            net.sum(up, net.add("Crop", f"crop_param {{ axis: 2 offset: {offset} }}", score, up))
    deconv(net, 21, 2 * stride, stride, "bias_term: false")
    net.add("Crop", "crop_param { axis: 2 offset: 19 }", net.at, "data")
    return net


def deeplab(branches: int) -> Net:
    net = Net((3, 321, 321))
    for count, depth, dilation in ((64, 2, 1), (128, 2, 1), (256, 3, 1), (512, 3, 1), (512, 3, 2)):
        for _ in range(depth):
            net.conv_relu(count, 3, pad=dilation, more=f"dilation: {dilation}")
        net.pool(3, 2 if count < 512 else 1, more="pad: 1")
    source, ends = net.at, []
    for i in range(branches):
        dilation = 6 * (i + 1) if branches > 1 else 12
        net.on(source).conv_relu(1024, 3, pad=dilation, more=f"dilation: {dilation}")
        net.conv_relu(1024, 1)
        ends.append(net.conv(21, 1))
    if branches > 1:
        net.sum(*ends)
    return net


def unet() -> Net:
    net = Net((1, 128, 128))
    ends = []
    for count in (16, 32, 64):
        net.conv_relu(count, 3)
        ends.append(net.conv_relu(count, 3))
        net.pool(2, 2)
    net.conv_relu(128, 3)
    for end, count in zip(ends[::-1], (64, 32, 16)):
        net.concat(deconv(net, count, 2, 2), end)
        net.conv_relu(count, 3)
        net.conv_relu(count, 3)
    net.conv(2, 1)
    net.add("Softmax")
    return net


def edges() -> Net:
    """HED: five maps of edges, each brought to the picture's size."""
    net = Net((3, 96, 96))
    maps = []
    for i, (count, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for _ in range(depth):
            net.conv_relu(count, 3, pad=35 if net.at == "data" else 1)
        source = net.at
        net.conv(1, 1)
        if i:
            deconv(net, 1, 2 << i, 1 << i, "bias_term: false")
        maps.append(net.add("Crop", "crop_param { axis: 2 offset: 34 }", net.at, "data"))
        net.add("Sigmoid")
        net.on(source).pool(2, 2)
    net.concat(*maps)
    net.conv(1, 1)
    net.add("Sigmoid")
    return net


def super_resolution(depth: int) -> Net:
    net = Net((1, 41, 41))
    if depth == 3:
        net.conv_relu(64, 9)
        net.conv_relu(32, 1)
        net.conv(1, 5)
        return net
    for _ in range(depth - 1):
        net.conv_relu(64, 3)
    net.sum("data", net.conv(1, 3))
    return net


def pose(stages: int) -> Net:
    """Maps of parts, looked at again with the picture's features at each stage."""
    net = Net((3, 184, 184))
    for count, depth in ((64, 2), (128, 2), (256, 4)):
        for _ in range(depth):
            net.conv_relu(count, 3)
        net.pool(2, 2)
    features = net.conv_relu(128, 3)
    ends = [features]
    for _ in range(stages):
        net.concat(*ends) if len(ends) > 1 else net.on(features)
        source, ends = net.at, [features]
        for outputs in (38, 19):
            net.on(source).conv_relu(128, 7)
            net.conv_relu(128, 1)
            ends.append(net.conv(outputs, 1))
    net.concat(*ends[1:])
    return net


def with_masks() -> Net:
    """SegNet: a pooling tells the places of its maxima."""
    net = Net((3, 96, 96))
    net.unit(64, 3)
    net.add("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", tops=2)
    pooled = net.at
    net.unit(64, 3)
    net.add("Upsample", "upsample_param { scale: 2 }", net.at, pooled[:-1] + "b")
    net.conv(11, 3)
    return net.softmax()


def interpolated() -> Net:
    """PSPNet and ICNet: bilinear interpolation."""
    net = Net((3, 97, 97))
    net.unit(64, 3)
    net.pool(3, 2)
    net.conv(19, 1)
    net.add("Interp", "interp_param { zoom_factor: 8 }")
    return net


# --- detectors --------------------------------------------------------------------------------------------------------


def single_shot(norm: bool, prior_boxes: bool) -> Net:
    """Boxes and scores of two sizes; a program of one's own compares them with the prior boxes."""
    net = Net((3, 160, 160))
    for count in (32, 64, 128):
        net.unit(count, 3, 2)
    ends = [net.at]
    boxes: list[str] = []
    scores: list[str] = []
    ends.append(net.unit(128, 3, 2))
    for end in ends:
        net.on(end)
        if norm and end == ends[0]:
            net.add("Normalize", "norm_param { across_spatial: false channel_shared: false }")
        source = net.at
        for outputs, flat in ((4 * 4, boxes), (4 * 21, scores)):
            net.on(source).conv(outputs, 3)
            net.add("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }")
            flat.append(net.add("Flatten", "flatten_param { axis: 1 }"))
    net.concat(*boxes)
    located = net.at
    net.concat(*scores)
    net.add("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 21 } }")
    net.add("Softmax", "softmax_param { axis: 2 }")
    net.add("Flatten", "flatten_param { axis: 1 }")
    if prior_boxes:
        net.add("PriorBox", "", ends[0], "data")
        net.add("DetectionOutput", "", located, net.at)
    return net


def yolo(version: int) -> Net:
    net = Net((3, 224, 224) if version < 3 else (3, 160, 160))
    leaky = "relu_param { negative_slope: 0.1 }"

    def unit(outputs: int, kernel: int = 3) -> str:
        net.conv_norm(outputs, kernel)
        return net.add("ReLU", leaky)

    ends = []
    for outputs in (16, 32, 64, 128, 256):
        ends.append(unit(outputs))
        net.pool(2, 2)
    unit(512)
    if version == 1:
        net.ip(1470)
    elif version == 2:
        unit(512)
        net.conv(125, 1)
    else:
        source = unit(256, 1)
        net.conv(255, 1)
        net.on(source)
        unit(128, 1)
        net.concat(net.add("Upsample", "upsample_param { scale: 2 }"), ends[-1])
        unit(256)
        net.conv(255, 1)
    return net


def regions() -> Net:
    """Faster R-CNN: a layer in Python proposes regions."""
    net = Net((3, 224, 224))
    net.conv_relu(64, 7, 2)
    net.conv(18, 1)
    net.add("Python", 'python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" }')
    net.add("ROIPooling", "roi_pooling_param { pooled_w: 6 pooled_h: 6 spatial_scale: 0.0625 }")
    return classes(net, 21)


# --- others -----------------------------------------------------------------------------------------------------------


def captions() -> Net:
    net = Net((1000, 1, 1))
    net.add("Embed", "")
    net.add("LSTM", "recurrent_param { num_output: 1000 }")
    return classes(net, 8801)


def text_boxes() -> Net:
    """CRNN-like: columns of a line of text, without the recurrent layers."""
    net = Net((1, 32, 100))
    for outputs in (64, 128, 256):
        net.unit(outputs, 3)
        net.pool(2, 2)
    net.add("Pooling", "pooling_param { pool: AVE kernel_h: 4 kernel_w: 1 }")
    net.conv(37, 1)
    net.add("Permute", "permute_param { order: 0 order: 3 order: 1 order: 2 }")
    net.add("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
    net.add("Softmax", "softmax_param { axis: 2 }")
    return net


def series(channels: int, length: int) -> Net:
    """Accelerometers, or the cepstra of a word."""
    net = Net((channels, 1, length))
    for outputs in (32, 64):
        param = f"num_output: {outputs} kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2"
        net.add("Convolution", f"convolution_param {{ {param} }}")
        net.relu()
        net.add("Pooling", "pooling_param { kernel_h: 1 kernel_w: 2 stride_h: 1 stride_w: 2 }")
    net.mean()
    return classes(net, 6)


def attention() -> Net:
    """CBAM's gate of channels: a mean and a maximum through one pair of convolutions each, and their product."""
    net = Net((3, 32, 32))
    source = net.unit(32, 3)
    net.mean()
    first = net.conv(32, 1)
    net.on(source).add("Pooling", "pooling_param { pool: MAX global_pooling: true }")
    net.sum(first, net.conv(32, 1))
    gate = net.add("Sigmoid")
    net.add("Tile", "tile_param { axis: 2 tiles: 32 }", gate)
    net.add("Tile", "tile_param { axis: 3 tiles: 32 }")
    net.add("Eltwise", "eltwise_param { operation: PROD }", source, net.at)
    net.mean()
    return classes(net, 10)


NETWORKS: dict[str, Callable[[], Net]] = {
    "LeNet": lenet,
    "CIFAR-10 quick": partial(cifar, False),
    "CIFAR-10 full": partial(cifar, True),
    "CIFAR-10 full, sigmoid": partial(cifar, True, sigmoid=True),
    "CIFAR-10 full, sigmoid, normalized": partial(cifar, True, sigmoid=True, norm=True),
    "AlexNet": partial(alexnet, True),
    "CaffeNet": partial(alexnet, False),
    "R-CNN": partial(alexnet, False, 200),
    "Flickr style": partial(alexnet, False, 20),
    "Places": partial(alexnet, False, 205),
    "hybrid CNN": partial(alexnet, False, 1183),
    "ZFNet": zfnet,
    "logistic regression": logistic_regression,
    "logistic regression with a hidden layer": partial(logistic_regression, 40),
    "MNIST autoencoder": autoencoder,
    "MNIST siamese": siamese,
    "CaffeNet, fully convolutional": fully_convolutional_caffenet,
    "VGG-11": partial(vgg, 1, 1, 2, 2, 2),
    "VGG-13": partial(vgg, 2, 2, 2, 2, 2),
    "VGG-16": partial(vgg, 2, 2, 3, 3, 3),
    "VGG-19": partial(vgg, 2, 2, 4, 4, 4),
    "VGG-16, normalized": partial(vgg, 2, 2, 3, 3, 3, norm=True),
    "VGG-Face": partial(vgg, 2, 2, 3, 3, 3, outputs=2622),
    "VGG-Places": partial(vgg, 2, 2, 3, 3, 3, outputs=365),
    "CNN-F": partial(vgg_cnn, "F"),
    "CNN-M": partial(vgg_cnn, "M"),
    "CNN-S": partial(vgg_cnn, "S"),
    "Network in Network, ImageNet": partial(network_in_network, True),
    "Network in Network, CIFAR-10": partial(network_in_network, False),
    "GoogLeNet": googlenet,
    "GoogLeNet, Places": partial(googlenet, outputs=365),
    "GoogLeNet, cars": partial(googlenet, outputs=431),
    "Inception, normalized": partial(googlenet, norm=True),
    "Inception 21k": partial(googlenet, norm=True, outputs=21841),
    "Inception v3": inception_v3,
    "Xception": xception,
    **{
        f"ResNet-{n}": partial(resnet, *d, bottleneck=False)
        for n, d in ((10, (1,) * 4), (18, (2,) * 4), (34, (3, 4, 6, 3)))
    },
    **{
        f"ResNet-{n}": partial(resnet, *d, bottleneck=True)
        for n, d in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3)))
    },
    **{
        f"ResNeXt-{n}": partial(resnet, *d, bottleneck=True, group=32, width=128)
        for n, d in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)))
    },
    "Wide ResNet-50": partial(resnet, 3, 4, 6, 3, bottleneck=True, width=128),
    "SE-ResNet-50": partial(resnet, 3, 4, 6, 3, bottleneck=True, excite=True),
    "SE-ResNet-101": partial(resnet, 3, 4, 23, 3, bottleneck=True, excite=True),
    "SE-ResNeXt-50": partial(resnet, 3, 4, 6, 3, bottleneck=True, group=32, width=128, excite=True),
    **{f"ResNet-{n}, CIFAR-10": partial(cifar_resnet, n) for n in (20, 32, 44, 56, 110)},
    **{f"pre-activated ResNet-{n}": partial(preactivated, n) for n in (29, 56, 164)},
    "DenseNet-121": partial(densenet, 6, 12, 24, 16),
    "DenseNet-161": partial(densenet, 6, 12, 36, 24, growth=48, first=96),
    "DenseNet-169": partial(densenet, 6, 12, 32, 32),
    "DenseNet-201": partial(densenet, 6, 12, 48, 32),
    "DenseNet-BC-100, CIFAR-10": partial(densenet, 16, 16, 16, growth=12, first=24, size=32),
    "DPN-68": partial(dual_path, 3, 4, 12, 3),
    "DPN-92": partial(dual_path, 3, 4, 20, 3),
    "SqueezeNet 1.0": partial(squeezenet, "1.0"),
    "SqueezeNet 1.1": partial(squeezenet, "1.1"),
    "SqueezeNet, residual": partial(squeezenet, "1.0", bypass=True),
    **{f"MobileNet {width}": partial(mobilenet, width) for width in (0.25, 0.5, 0.75, 1.0)},
    "MobileNet, another depthwise type": partial(mobilenet, 1.0, kind="DepthwiseConvolution"),
    "MobileNet, visual wake words": partial(mobilenet, 0.25, 96),
    **{f"MobileNet v2 {width}": partial(mobilenet_v2, width) for width in (0.5, 1.0, 1.5)},
    "MobileNet v2, ReLU6": partial(mobilenet_v2, 1.0, "ReLU6"),
    **{f"ShuffleNet, {group} groups": partial(shufflenet, group) for group in (1, 2, 3, 4, 8)},
    "ShuffleNet v2": shufflenet_v2,
    "MTCNN P-Net": partial(mtcnn, 12, 2, 4),
    "MTCNN R-Net": partial(mtcnn, 24, 2, 4),
    "MTCNN O-Net": partial(mtcnn, 48, 2, 4, 10),
    "age": partial(age_gender, 8),
    "gender": partial(age_gender, 2),
    **{
        f"SphereFace-{n}": partial(sphereface, *d)
        for n, d in ((4, (0,) * 4), (20, (1, 2, 4, 1)), (36, (2, 4, 8, 2)), (64, (3, 8, 16, 3)))
    },
    "Light CNN": light_cnn,
    "landmarks": landmarks,
    "DeepID": deepid,
    **{f"FCN-{stride}s": partial(fcn, stride) for stride in (8, 16, 32)},
    "DeepLab, large field of view": partial(deeplab, 1),
    "DeepLab v2": partial(deeplab, 4),
    "U-Net": unet,
    "HED": edges,
    "SRCNN": partial(super_resolution, 3),
    "VDSR": partial(super_resolution, 20),
    "pose machine": partial(pose, 1),
    "OpenPose": partial(pose, 6),
    "SSD without its own layers": partial(single_shot, False, False),
    "MobileNet-SSD with its own layers": partial(single_shot, False, True),
    "SSD with Normalize": partial(single_shot, True, False),
    **{f"YOLO v{version}": partial(yolo, version) for version in (1, 2, 3)},
    "SegNet": with_masks,
    "PSPNet": interpolated,
    "Faster R-CNN": regions,
    "LRCN": captions,
    "CRNN without its recurrent layers": text_boxes,
    "accelerometers": partial(series, 6, 128),
    "keywords": partial(series, 40, 98),
    "CBAM": attention,
}


def main() -> None:
    """Prints which of them are computed, and why the others are not."""
    reasons = {name: declined(make()) for name, make in NETWORKS.items()}
    for name, reason in reasons.items():
        print(f"{name}: {reason or 'computed'}")
    print(f"{sum(not reason for reason in reasons.values())} of {len(reasons)} are computed")


if __name__ == "__main__":
    main()
