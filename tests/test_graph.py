# SPDX-License-Identifier: Apache-2.0
"""Caffe's semantics: shapes, in-place layers, the data layer's transform, weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, write_mean, write_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Simulation
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine, fold_input_scale
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, find_accuracy, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.to_caffe import caffe_types
from caffe_to_cmsis_nn.ops.base import UnsupportedLayer
from caffe_to_cmsis_nn.ops.pooling import MaxPooling
from tests import tiny
from tests.support import prototxt

IMAGE = (3, 10, 11)


def ip(name: str, bottom: str, count: int = 3, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f"inner_product_param {{ num_output: {count} {more} }} }}\n"
    )


def conv(name: str, bottom: str, param: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ {param} }} }}\n"
    )


def pool(name: str, bottom: str, param: str) -> str:
    return f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" pooling_param {{ {param} }} }}\n'


def plain(kind: str, name: str, bottom: str, top: str) -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" }}\n'


def layer(kind: str, name: str, bottoms: list[str], param: str = "") -> str:
    blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {blobs} top: "{name}" {param} }}\n'


def scale(name: str, bottom: str, top: str, bias: bool = True) -> str:
    param = "scale_param { bias_term: true }" if bias else ""
    return f'layer {{ name: "{name}" type: "Scale" bottom: "{bottom}" top: "{top}" {param} }}\n'


def parse(folder: Path, layers: str, bottom: str, transform: str = "", shape: tuple[int, ...] = IMAGE) -> Graph:
    network = read_prototxt(prototxt(folder, layers, bottom, transform))
    return parse_network(network, "accuracy", data_source(network), shape)


def random_weights(network: Graph, seed: int = 0) -> Blobs:
    rng = np.random.default_rng(seed)
    return {
        layer.name: [
            (rng.uniform(0.5, 2, shape) if layer.folds else rng.normal(0, 0.3, shape)).astype(np.float32)
            for shape in layer.weight_shapes()
        ]
        for layer in network.layers
        if layer.weight_shapes()
    }


# --- against Caffe ----------------------------------------------------------------------------------------------------

# Image (height, width), kernel, stride, pad; then what Caffe 1.0 makes of them: pooling with round_mode CEIL (the
# default) and FLOOR, convolution.
SIZES = [
    ((8, 8), 2, 2, 0, (4, 4), (4, 4), (4, 4)),
    ((8, 8), 3, 2, 0, (4, 4), (3, 3), (3, 3)),
    ((7, 7), 3, 2, 0, (3, 3), (3, 3), (3, 3)),
    ((32, 32), 3, 2, 0, (16, 16), (15, 15), (15, 15)),
    ((32, 32), 3, 2, 1, (17, 17), (16, 16), (16, 16)),
    ((6, 6), 3, 2, 1, (4, 4), (3, 3), (3, 3)),
    ((5, 5), 2, 2, 1, (3, 3), (3, 3), (3, 3)),
    ((6, 6), 2, 2, 1, (4, 4), (4, 4), (4, 4)),
    ((4, 4), 2, 3, 1, (2, 2), (2, 2), (2, 2)),
    ((7, 9), 3, 2, 0, (3, 4), (3, 4), (3, 4)),
    ((10, 10), 3, 4, 0, (3, 3), (2, 2), (2, 2)),
    ((10, 10), 4, 3, 2, (4, 4), (4, 4), (4, 4)),
    ((5, 7), 3, 1, 1, (5, 7), (5, 7), (5, 7)),
    ((1, 1), 1, 1, 0, (1, 1), (1, 1), (1, 1)),
    ((3, 3), 3, 2, 2, (3, 3), (3, 3), (3, 3)),
]


@pytest.mark.parametrize(("image", "kernel", "stride", "pad", "ceil", "floor", "convolved"), SIZES)
def test_sizes_are_caffes(
    tmp_path: Path,
    image: tuple[int, int],
    kernel: int,
    stride: int,
    pad: int,
    ceil: tuple[int, int],
    floor: tuple[int, int],
    convolved: tuple[int, int],
) -> None:
    window = f"kernel_size: {kernel} stride: {stride} pad: {pad}"
    shape = (2, *image)
    down = ("round_mode: FLOOR", floor), ("ceil_mode: false", floor)
    for how, expected in (("", ceil), ("ceil_mode: true", ceil), *down):
        param = f"{window} {how}"
        layers = parse(tmp_path, pool("p", "data", param) + ip("ip", "p"), "ip", shape=shape).layers
        assert layers[1].out_shape == (2, *expected)
    layers = parse(tmp_path, conv("c", "data", f"num_output: 5 {window}") + ip("ip", "c"), "ip", shape=shape).layers
    assert layers[1].out_shape == (5, *convolved)


def test_window_outside_the_image_is_declined(tmp_path: Path) -> None:
    # Caffe gives 4x4 here, whose last window holds no cell.
    with pytest.raises(UserError, match="layer 'p' \\(Pooling\\): the last window lies outside the image"):
        parse(tmp_path, pool("p", "data", "kernel_size: 2 stride: 3") + ip("ip", "p"), "ip", shape=(2, 9, 9))


NETS = {
    "windows": (
        conv("conv1", "data", "num_output: 4 kernel_size: 3 pad: 1 stride: 2 bias_term: false")
        + plain("ReLU", "relu1", "conv1", "conv1")
        + pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2 pad: 1")
        + conv("conv2", "pool1", "num_output: 6 kernel_size: 2 pad: 1 group: 2")
        + pool("pool2", "conv2", "pool: AVE kernel_size: 3 stride: 2 pad: 1")
        + plain("ReLU", "relu2", "pool2", "relu2")
        + ip("ip1", "relu2", 5)
        + plain("ReLU", "relu3", "ip1", "ip1")
        + plain("Dropout", "drop", "ip1", "ip1")
        + ip("ip2", "ip1", 3, "transpose: true"),
        "ip2",
        "crop_size: 8 mean_value: 100 mean_value: 110 mean_value: 120 scale: 0.0078125",
    ),
    "nonsquare": (
        conv("conv1", "data", "num_output: 3 kernel_h: 3 kernel_w: 2 pad_h: 0 pad_w: 1 stride_h: 1 stride_w: 2")
        + pool("pool1", "conv1", "pool: AVE kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 2 pad_h: 1 pad_w: 0")
        + pool("pool2", "pool1", "pool: AVE kernel_size: 3 stride: 2")
        + plain("Flatten", "flat", "pool2", "flat")
        + ip("ip1", "flat", 3, "bias_term: false"),
        "ip1",
        'mean_file: "mean.binaryproto" scale: 0.017',
    ),
    "global": (
        conv("conv1", "data", "num_output: 3 kernel_size: 5 kernel_size: 4 stride: 1 stride: 2 pad: 2")
        + pool("pool1", "conv1", "pool: AVE global_pooling: true")
        + ip("ip1", "pool1"),
        "ip1",
        'mean_file: "mean.binaryproto" crop_size: 7 mirror: false',
    ),
}


def _branches() -> str:
    """Batch normalisation in place and not, a residual sum, a pooling of every kind, Inception's concatenation."""
    text = conv("c1", "data", "num_output: 4 kernel_size: 3 pad: 1 bias_term: false")
    text += plain("BatchNorm", "c1/bn", "c1", "c1") + scale("c1/scale", "c1", "c1") + plain("ReLU", "r1", "c1", "c1")
    text += conv("c2", "c1", "num_output: 4 kernel_size: 1") + plain("BatchNorm", "c2/bn", "c2", "c2/bn")
    text += plain("Bias", "c2/bias", "c2/bn", "c2/b")
    text += layer("Eltwise", "sum", ["c1", "c2/b"], "eltwise_param { operation: SUM coeff: 1 coeff: -1 }")
    text += conv("b1", "sum", "num_output: 2 kernel_size: 1") + plain("Sigmoid", "s1", "b1", "b1")
    text += pool("b2", "sum", "pool: MAX kernel_size: 3 stride: 1 pad: 1") + plain("TanH", "t2", "b2", "t2")
    text += pool("b3", "sum", "pool: AVE kernel_size: 3 stride: 1 pad: 1")
    text += layer("Concat", "cat", ["b1", "t2", "b3"]) + layer("Eltwise", "max", ["b2", "b3"], MAX)
    text += layer("Concat", "both", ["cat", "max"]) + conv("c3", "both", "num_output: 7 group: 7 kernel_size: 2")
    text += plain("Reshape", "flat", "c3", "flat")[:-2] + "reshape_param { shape { dim: 0 dim: -1 } } }\n"
    text += ip("ip1", "flat", 5) + scale("ip1/scale", "ip1", "ip1s", bias=False) + ip("ip2", "ip1s")
    return text + layer("Eltwise", "last", ["ip2", "ip2"], MAX)


LEAKY = "relu_param { negative_slope: 0.1 }"
NETS["leaky"] = (
    conv("conv1", "data", "num_output: 4 kernel_size: 3")
    + layer("ReLU", "r1", ["conv1"], LEAKY)
    + pool("pool1", "r1", "pool: MAX kernel_size: 2 stride: 2")
    + ip("ip1", "pool1", 5)
    + layer("ReLU", "r2", ["ip1"], "relu_param { negative_slope: -0.75 }")
    + ip("ip2", "r2", 3),
    "ip2",
    "mean_value: 120 scale: 0.0078125",
)
NETS["dilated"] = (
    conv("conv1", "data", "num_output: 4 kernel_size: 3 dilation: 2 pad: 1 stride: 2")
    + conv("conv2", "conv1", "num_output: 4 group: 4 kernel_h: 3 kernel_w: 2 dilation: 1 dilation: 3 pad: 2")
    + ip("ip1", "conv2", 3),
    "ip1",
    "mean_value: 120 scale: 0.0078125",
)
UP = "convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 bias_term: false }"
NETS["upsampled"] = (
    conv("conv1", "data", "num_output: 4 kernel_size: 3 stride: 2")
    + layer("Deconvolution", "up", ["conv1"], UP)
    + layer(
        "Deconvolution",
        "d2",
        ["up"],
        "convolution_param { num_output: 6 group: 2 kernel_size: 3 kernel_size: 2 stride: 1 stride: 3 pad: 2 pad: 0 }",
    )
    + plain("BatchNorm", "d2/bn", "d2", "d2")
    + ip("ip1", "d2", 3),
    "ip1",
    "mean_value: 120 scale: 0.0078125",
)
NETS["normalized"] = (
    conv("conv1", "data", "num_output: 6 kernel_size: 3")
    + layer("LRN", "n1", ["conv1"], "lrn_param { local_size: 3 alpha: 2 beta: 0.6 k: 1.5 }")
    + layer("LRN", "n2", ["n1"], "lrn_param { local_size: 5 alpha: 3 k: 7 norm_region: WITHIN_CHANNEL }")
    + layer("LRN", "n3", ["n2"], "")
    + ip("ip1", "n3", 3),
    "ip1",
    "mean_value: 120 scale: 0.0078125",
)
NETS["functions"] = (
    plain("BatchNorm", "bn0", "data", "bn0")
    + conv("conv1", "bn0", "num_output: 6 kernel_size: 3")
    + plain("PReLU", "p1", "conv1", "p1")
    + plain("BatchNorm", "bn1", "conv1", "bn1")
    + scale("scale1", "bn1", "scale1")
    + layer("PReLU", "p2", ["scale1"], "prelu_param { channel_shared: true }")
    + layer("ELU", "e1", ["p1"], "elu_param { alpha: 0.7 }")
    + plain("AbsVal", "a1", "p2", "a1")
    + plain("BNLL", "b1", "p2", "b1")
    + layer("Power", "q1", ["a1"], "power_param { power: 1.5 scale: 0.5 shift: 0.25 }")
    + layer("Power", "q2", ["e1"], "power_param { scale: -0.5 shift: 2 }")
    + layer("Exp", "x1", ["e1"], "exp_param { base: 2 scale: -0.5 shift: 1 }")
    + layer("Exp", "x2", ["p2"], "exp_param { scale: 0.25 }")
    + layer("Log", "l1", ["a1"], "log_param { base: 10 scale: 2 shift: 1 }")
    + layer("Threshold", "t1", ["bn1"], "threshold_param { threshold: 0.1 }")
    + layer("ReLU", "r1", ["p1"], "relu_param { negative_slope: 2.5 }")
    + layer("Concat", "cat", ["b1", "q1", "q2", "x1", "x2", "l1", "t1", "r1"])
    + layer("Bias", "bias1", ["cat"])
    + ip("ip1", "bias1", 5)
    + plain("PReLU", "p3", "ip1", "p3")
    + scale("scale2", "p3", "scale2", bias=False)
    + plain("Bias", "bias2", "scale2", "bias2"),
    "bias2",
    "mean_value: 120 scale: 0.0078125",
)


def _moves() -> str:
    """Parts, axes in another order, other shapes, and what goes along an axis."""

    def shaped(*dims: int) -> str:
        return f"reshape_param {{ shape {{ {' '.join(f'dim: {dim}' for dim in dims)} }} }}"

    text = conv("c1", "data", "num_output: 6 kernel_size: 3 pad: 1")
    text += layer("Slice", "s1", ["c1"], 'top: "right" slice_param { axis: 3 slice_point: 4 }')
    text += layer("Slice", "s2", ["c1"], 'top: "third" top: "last" slice_param { slice_dim: 1 }')
    text += layer("Crop", "k1", ["c1", "right"], "crop_param { axis: 3 offset: 3 }")
    text += layer("Eltwise", "e1", ["k1", "right"], "eltwise_param { operation: PROD }")
    text += layer("Eltwise", "e2", ["e1", "right"], "eltwise_param { coeff: 0.3 coeff: -1.7 }")
    text += layer("Concat", "j1", ["e2", "s1"], "concat_param { axis: 3 }")
    text += layer("Permute", "p1", ["j1"], "permute_param { order: 0 order: 2 order: 3 order: 1 }")
    text += layer("Flatten", "f1", ["p1"]) + layer("Reshape", "r1", ["f1"], shaped(0, -1, 3))
    text += layer("Softmax", "x1", ["r1"], "softmax_param { axis: 2 }") + layer("Flatten", "f2", ["x1"])
    text += layer("Softmax", "x2", ["s2"]) + layer("ArgMax", "a1", ["x2"], "argmax_param { axis: 2 }")
    text += layer("Tile", "t1", ["a1"], "tile_param { axis: 1 tiles: 3 }") + layer("Permute", "p2", ["third"])
    text += pool("g1", "c1", "pool: AVE global_pooling: true") + ip("i1", "g1", 6) + plain("Sigmoid", "i2", "i1", "i2")
    text += layer("Scale", "m1", ["c1", "i2"], "scale_param { axis: 0 }")
    text += layer("Bias", "n1", ["c1", "i2"], "bias_param { axis: 0 }") + layer(
        "Bias", "n2", ["n1", "c1"], "bias_param { axis: 0 }"
    )
    text += layer("ArgMax", "a2", ["n2"], "argmax_param { axis: 3 top_k: 2 }")
    text += layer("ArgMax", "a3", ["n2"], "argmax_param { axis: 1 top_k: 3 out_max_val: true }")
    text += layer("Reduction", "d0", ["a2"], "reduction_param { axis: 3 operation: ASUM }")
    text += layer("Reduction", "d1", ["m1"], "reduction_param { axis: 2 operation: MEAN coeff: 3 }")
    text += layer("Reduction", "d2", ["m1"], "reduction_param { axis: 1 coeff: 0.01 }")
    text += layer("Reduction", "d3", ["r1"], "reduction_param { axis: -1 operation: ASUM }")
    text += layer("Reduction", "d4", ["x1"], "reduction_param { axis: 2 operation: SUMSQ }")
    text += layer("Reshape", "r2", ["last"], "reshape_param { shape { dim: 2 dim: -1 } axis: 1 num_axes: 1 }")
    text += layer("Flatten", "f3", ["r2"], "flatten_param { axis: 2 end_axis: 3 }") + layer("Flatten", "f4", ["f3"])
    text += (
        layer("Flatten", "f5", ["t1"]) + layer("Flatten", "f6", ["p2"]) + layer("Reshape", "f7", ["d2"], shaped(-1, 1))
    )
    text += layer("Flatten", "f8", ["d0"]) + layer("Flatten", "f9", ["a3"])
    ends = ["f2", "f4", "f5", "f6", "d1", "f7", "d3", "d4", "f8", "f9"]
    return text + layer("Concat", "all", ends) + ip("ip1", "all", 4)


NETS["moves"] = (_moves(), "ip1", "mean_value: 120 scale: 0.0078125")
MAX = "eltwise_param { operation: MAX }"
NETS["branches"] = (_branches(), "last", "mean_value: 120 scale: 0.0078125")

# data/caffe_blobs.npz holds the blobs that BVLC Caffe 1.0 computes; run with pycaffe in the folder of write_net():
#
#   net = caffe.Net("net.prototxt", "net.caffemodel", caffe.TEST)
#   net.forward()
#   results.update({f"{name}/{blob}": net.blobs[blob].data.copy() for blob in net.blobs if "split" not in blob})
#   np.savez_compressed("caffe_blobs.npz", **results)


def write_net(folder: Path, name: str) -> tuple[Graph, np.ndarray]:
    """Writes one of NETS with its data; returns the graph with weights, and the images that it reads."""
    rng = np.random.default_rng(len(name))
    images = rng.integers(0, 256, (4, *IMAGE), dtype=np.uint8)
    lmdb_images.write(folder / "data_lmdb", images, [0, 1, 2, 1])
    write_mean(folder / "mean.binaryproto", rng.uniform(90, 140, IMAGE).astype(np.float32))
    layers, bottom, transform = NETS[name]
    read = read_prototxt(prototxt(folder, layers, bottom, transform, batch=4))
    source = data_source(read)
    network = parse_network(read, "accuracy", source, IMAGE)
    blobs = random_weights(network)
    write_weights(folder / "net.caffemodel", name, blobs, caffe_types(network))
    return fold_affine(attach_weights(network, blobs)), np.ascontiguousarray(source.crop_image(images))


@pytest.mark.parametrize("name", NETS)
def test_float_network_computes_what_caffe_does(tmp_path: Path, name: str) -> None:
    network, images = write_net(tmp_path, name)
    compared = []
    with np.load(Path(__file__).parent / "data" / "caffe_blobs.npz") as caffe:
        for count, layer in enumerate(network.layers, 1):
            if layer.blob in (later.blob for later in network.layers[count:]):
                continue  # rewritten in place
            part = replace(network, layers=network.layers[:count], outputs=())
            ours = FloatNetwork(part, images).logits([Simulation()] * count)
            theirs = caffe[f"{name}/{layer.blob}"]
            assert layer.out_shape == (theirs.shape[1:] or (1,))
            np.testing.assert_allclose(ours, theirs.reshape(4, -1), rtol=1e-4, atol=2e-4)
            compared.append(layer.blob)
    assert compared[0] == "data"
    assert compared[-1] == NETS[name][1]


# --- the graph --------------------------------------------------------------------------------------------------------


def test_in_place_layers_follow_their_producer(tmp_path: Path) -> None:
    layers = conv("conv1", "data", "num_output: 2 kernel_size: 3") + plain("ReLU", "relu1", "conv1", "conv1")
    network = parse(tmp_path, layers + ip("ip1", "conv1"), "ip1")
    assert [(layer.name, layer.inputs) for layer in network.layers] == [
        ("data", ()),
        ("conv1", ("data",)),
        ("relu1", ("conv1",)),
        ("ip1", ("relu1",)),
    ]


def test_inner_products_flatten_whatever_comes(tmp_path: Path) -> None:
    layers = ip("ip1", "data", 7) + plain("ReLU", "relu1", "ip1", "r") + ip("ip2", "r", 5) + ip("ip3", "ip2", 3)
    shapes = {layer.name: layer.weight_shapes() for layer in parse(tmp_path, layers, "ip3").layers if layer.weighted}
    assert shapes == {"ip1": ((7, 330), (7,)), "ip2": ((5, 7), (5,)), "ip3": ((3, 5), (3,))}


def test_layers_that_change_nothing_vanish(tmp_path: Path) -> None:
    layers = plain("Split", "split", "data", "a") + ip("ip1", "a", 4) + plain("Dropout", "drop1", "ip1", "ip1")
    layers += plain("Flatten", "flat", "ip1", "f") + plain("ReLU", "relu1", "f", "f") + ip("ip2", "f")
    assert [layer.name for layer in parse(tmp_path, layers, "ip2").layers] == ["data", "ip1", "relu1", "ip2"]


def test_layers_that_do_not_lead_to_the_accuracy_are_ignored(tmp_path: Path) -> None:
    layers = ip("ip1", "data") + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "l" }'
    layers += '\nlayer { name: "side" type: "Warp" bottom: "ip1" top: "s" warp_param { by: 3 } }'
    assert [layer.name for layer in parse(tmp_path, layers, "ip1").layers] == ["data", "ip1"]


def test_an_output_that_no_layer_writes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no layer that writes 'ip2'"):
        parse(tmp_path, ip("ip1", "data"), "ip2")


def test_all_offending_layers_are_reported_at_once(tmp_path: Path) -> None:
    """Not those whose reason may only be that another one was declined."""
    layers = conv("c1", "data", "num_output: 2") + plain("MVN", "n1", "data", "a") + plain("Embed", "e", "a", "b")
    layers += conv("c2", "b", "num_output: 2") + layer("Concat", "cat", ["c1", "c2"])
    with pytest.raises(UserError) as caught:
        parse(tmp_path, layers + ip("ip1", "cat"), "ip1")
    assert [part.split(":")[0] for part in str(caught.value).split("; ")] == [
        "layer 'c1' (Convolution)",
        "layer 'n1' (MVN)",
        "layer 'e' (Embed)",
    ]


def test_layers_are_grouped_by_the_reason(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(60)]
    layers = "".join(plain("MVN", name, bottom, name) for name, bottom in zip(names, ["data", *names]))
    with pytest.raises(UserError) as caught:
        parse(tmp_path, layers + plain("Embed", "e", "n59", "e") + ip("ip1", "e"), "ip1", 'mean_file: "missing"')
    many, one = str(caught.value).split("; ")
    assert many == "layers 'n0', 'n1', 'n2' and 57 more (MVN): this type is not supported"
    assert one == "layer 'e' (Embed): this type is not supported"


def test_a_network_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which depends on no weighted layer"):
        parse(tmp_path, pool("p", "data", "kernel_size: 2"), "p")


# --- the data layer ---------------------------------------------------------------------------------------------------


def test_crop_takes_the_centre(tmp_path: Path) -> None:
    source = data_source(read_prototxt(prototxt(tmp_path, "", "x", "crop_size: 5")))
    image = np.arange(8 * 9).reshape(1, 8, 9)
    np.testing.assert_array_equal(source.crop_image(image), image[:, 1:6, 2:7])
    np.testing.assert_array_equal(source.crop_image(image[:, :5, :5]), image[:, :5, :5])
    with pytest.raises(UserError, match="crop_size 5 is larger than the image, 4x9"):
        source.crop_image(image[:, :4])


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("", [0, 0, 0]),
        ("mean_value: 7", [7, 7, 7]),
        ("mean_value: 1 mean_value: 2.5 mean_value: 3", [1, 2.5, 3]),
    ],
)
def test_mean_values(tmp_path: Path, transform: str, expected: list[float]) -> None:
    assert parse(tmp_path, ip("ip1", "data"), "ip1", transform).input.mean.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("mean_value: 1 mean_value: 2", "layer 'data': 2 mean values for 3 channels"),
        ("mean_value: 300", "layer 'data': the mean must lie within a pixel's range, 0 to 255"),
        ("mean_value: nan", "the mean must lie within a pixel's range"),
        ('mean_value: 1 mean_file: "m"', "mean_file and mean_value exclude each other"),
        ('mean_file: "none"', "layer 'data': the mean file 'none' does not exist"),
        ("scale: 0", "scale 0 must be positive"),
        ("scale: -1", "scale -1 must be positive"),
        ("scale: inf", "scale inf must be positive"),
        ("force_gray: true", "force_color and force_gray are not supported"),
        (
            "contrast: 2",
            "a field that this tool does not know: line 3: TransformationParameter has no field 'contrast'",
        ),
        ("crop_size: 12", "crop_size 12 is larger than the image, 10x11"),
    ],
)
def test_refused_transforms(tmp_path: Path, transform: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(tmp_path, ip("ip1", "data"), "ip1", transform)
    assert message in str(caught.value)


def test_a_mean_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_mean(tmp_path / "m", np.zeros((3, 5, 5), np.float32))
    with pytest.raises(UserError, match=r"the mean has shape \(3, 5, 5\), the images have \(3, 10, 11\)"):
        parse(tmp_path, ip("ip1", "data"), "ip1", 'mean_file: "m"')


@pytest.mark.parametrize(("scale", "power"), [(2.0**-8, 2.0**-8), (0.017, 2.0**-6), (1 / 255, 2.0**-8), (3.0, 4.0)])
def test_scale_is_folded_into_the_first_weights(tmp_path: Path, scale: float, power: float) -> None:
    network = parse(tmp_path, ip("ip1", "data"), "ip1", f"mean_value: 9 scale: {scale!r}")
    network = attach_weights(network, random_weights(network))
    folded = fold_input_scale(network)
    assert folded.input.scale == power
    images = np.random.default_rng(0).integers(0, 256, (4, *IMAGE), dtype=np.uint8)
    before, after = (FloatNetwork(n, images).logits([Simulation()] * 2) for n in (network, folded))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_scale_cannot_be_folded_past_a_pooling(tmp_path: Path) -> None:
    layers = pool("p", "data", "kernel_size: 2") + ip("ip1", "p")
    network = parse(tmp_path, layers, "ip1", "scale: 0.017")
    with pytest.raises(UserError, match=r"layer 'p' reads the data with scale 0\.017, which is not a power of two"):
        fold_input_scale(attach_weights(network, random_weights(network)))


# --- accuracy layers --------------------------------------------------------------------------------------------------

SECOND = """layer { name: "top5" type: "Accuracy" bottom: "ip1" bottom: "label" top: "five"
  accuracy_param { top_k: 5 } }
layer { name: "other" type: "Accuracy" bottom: "ip1" bottom: "data" top: "out" }
layer { name: "rest" type: "Accuracy" bottom: "ip1" bottom: "label" accuracy_param { ignore_label: 1 } }
"""


def test_accuracy_layers_by_name_or_top(tmp_path: Path) -> None:
    network = read_prototxt(prototxt(tmp_path, ip("ip1", "data") + SECOND, "ip1"))
    assert find_accuracy(network, "accuracy").name == "accuracy"
    assert find_accuracy(network, "out").name == "other"
    assert find_accuracy(network, "five").name == "top5"
    with pytest.raises(UserError, match="'rest': it must have axis 1, no ignore_label and 2 bottoms"):
        find_accuracy(network, "rest")
    with pytest.raises(UserError, match=r"no accuracy layer 'acc'.* it has: 'top5', 'other', 'rest', 'accuracy'$"):
        find_accuracy(network, "acc")
    with pytest.raises(UserError, match="accuracy layer 'other' reads 'data', which is not the data layer's label"):
        parse_network(network, "other", data_source(network), IMAGE)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_old_four_axis_blobs_fit(tmp_path: Path) -> None:
    network = parse(tmp_path, tiny.LAYERS, "ip1", shape=tiny.IMAGE)
    blobs = tiny.blobs()
    old = {name: [b.reshape((1,) * (4 - b.ndim) + b.shape) for b in both] for name, both in blobs.items()}
    for name, (w, b) in attach_weights(network, old).weights.items():
        np.testing.assert_array_equal(w, blobs[name][0])
        np.testing.assert_array_equal(b, blobs[name][1])


def test_transposed_weights_and_a_missing_bias(tmp_path: Path) -> None:
    network = parse(tmp_path, ip("ip1", "data", 4, "transpose: true bias_term: false"), "ip1")
    trained = np.arange(1320, dtype=np.float32).reshape(330, 4)
    w, b = attach_weights(network, {"ip1": [trained]}).weights["ip1"]
    np.testing.assert_array_equal(w, trained.T)
    assert b.tolist() == [0, 0, 0, 0]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    network = parse(tmp_path, tiny.LAYERS, "ip1", shape=tiny.IMAGE)
    blobs = tiny.blobs()
    with pytest.raises(UserError) as caught:
        attach_weights(network, {**blobs, "ip1": [blobs["ip1"][0][:, :17], blobs["ip1"][1]]})
    assert "layer 'ip1': the weights file has (3, 17) and (3,), the prototxt asks for (3, 18) and (3,)" in str(caught)
    with pytest.raises(UserError, match=r"layer 'ip1': the weights file has \(3, 18\), the prototxt asks for"):
        attach_weights(network, {**blobs, "ip1": blobs["ip1"][:1]})
    with pytest.raises(UserError, match="layer 'ip1' has no weights in the weights file; it has: conv1"):
        attach_weights(network, {"conv1": blobs["conv1"]})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    network = parse(tmp_path, tiny.LAYERS, "ip1", shape=tiny.IMAGE)
    blobs = tiny.blobs()
    blobs["conv1"][1][1] = value
    with pytest.raises(UserError, match="layer 'conv1': its weights hold NaN or infinity"):
        attach_weights(network, blobs)


def test_declined_names_the_reason_alone() -> None:
    message = pb.LayerParameter(name="p", top=["p"])
    with pytest.raises(UnsupportedLayer, match=r"^its input has shape \(5,\), allowed is \(channels, height, width\)$"):
        MaxPooling.parse(message, ("ip",), ((5,),))
