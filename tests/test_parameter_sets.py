# SPDX-License-Identifier: Apache-2.0
"""The layer types of TVM's last Caffe tests, each with several parameters: Caffe's numbers, or declined by name."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from tests.support import ROOT, prototxt
from tests.test_graph import random_weights

SHAPE, IMAGES = (4, 10, 9), 3
CONV2 = (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 1 } }'
)
HALF = 'layer { name: "c" type: "Pooling" bottom: "data" top: "c" pooling_param { kernel_size: 3 stride: 2 } }'
VECTOR = 'layer { name: "c" type: "InnerProduct" bottom: "data" top: "c" inner_product_param { num_output: 4 } }'
PARAM = {
    "BatchNorm": "batch_norm_param", "Concat": "concat_param", "Convolution": "convolution_param", "Crop": "crop_param",
    "Deconvolution": "convolution_param", "Dropout": "dropout_param", "Eltwise": "eltwise_param",
    "Embed": "", "Flatten": "flatten_param", "InnerProduct": "inner_product_param", "LRN": "lrn_param",
    "Permute": "permute_param", "Pooling": "pooling_param", "Power": "power_param", "PReLU": "prelu_param",
    "Reduction": "reduction_param", "ReLU": "relu_param", "Reshape": "reshape_param", "Scale": "scale_param",
    "Sigmoid": "", "Slice": "slice_param", "Softmax": "softmax_param", "TanH": "",
}  # fmt: skip
# Parameters, and where it is not the data alone: a layer before it that writes c, and what it reads.
Case = tuple[str, str, str]
SETS: dict[str, list[Case]] = {
    "BatchNorm": [("", "", "data"), ("eps: 0.01", "", "data"), ("use_global_stats: true", CONV2, "c")],
    "Concat": [("", CONV2, "data c"), ("axis: 2", CONV2, "c data"), ("concat_dim: 1", CONV2, "data c data")],
    "Convolution": [
        ("num_output: 6 kernel_size: 3 pad: 1 stride: 2", "", "data"),
        ("num_output: 8 kernel_h: 3 kernel_w: 1 group: 4 bias_term: false", "", "data"),
        ("num_output: 2 kernel_size: 2 dilation: 3 pad: 1", "", "data"),
    ],
    "Crop": [
        ("", HALF, "data c"),
        ("axis: 3 offset: 2", HALF, "data c"),
        ("axis: 2 offset: 1 offset: 3", HALF, "data c"),
    ],
    "Deconvolution": [
        ("num_output: 3 kernel_size: 4 stride: 2 pad: 1", "", "data"),
        ("num_output: 4 kernel_size: 3 group: 4 bias_term: false", "", "data"),
        ("num_output: 6 kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 group: 2", "", "data"),
    ],
    "Dropout": [("", CONV2, "c"), ("dropout_ratio: 0.7", CONV2, "c"), ("dropout_ratio: 0", "", "data")],
    "Eltwise": [
        ("coeff: 0.5 coeff: -2", CONV2, "data c"),
        ("operation: PROD", CONV2, "data c"),
        ("operation: MAX", CONV2, "data c data"),
    ],
    "Embed": [("", "", "data")],
    "Flatten": [("", "", "data"), ("axis: 2", "", "data"), ("axis: 1 end_axis: 2", "", "data")],
    "InnerProduct": [
        ("num_output: 5", "", "data"),
        ("num_output: 5 bias_term: false", CONV2, "c"),
        ("num_output: 1", VECTOR, "c"),
    ],
    "LRN": [
        ("", "", "data"),
        ("local_size: 3 alpha: 2 beta: 0.5 k: 2", "", "data"),
        ("local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL", "", "data"),
    ],
    "Permute": [
        ("order: 0 order: 2 order: 3 order: 1", "", "data"),
        ("order: 0 order: 3", "", "data"),
        ("order: 0 order: 1 order: 3 order: 2", CONV2, "c"),
    ],
    "Pooling": [
        ("kernel_size: 3 stride: 2 pad: 1", "", "data"),
        ("pool: AVE kernel_h: 2 kernel_w: 3 stride: 2", "", "data"),
        ("pool: AVE global_pooling: true", "", "data"),
        ("pool: MAX global_pooling: true", "", "data"),
    ],
    "Power": [("power: 2 scale: 0.5 shift: 1", "", "data"), ("scale: -3", "", "data"), ("power: 3", "", "data")],
    "PReLU": [("", "", "data"), ("channel_shared: true", "", "data"), ("", VECTOR, "c")],
    "Reduction": [
        ("axis: 1", "", "data"),
        ("operation: MEAN axis: 2", "", "data"),
        ("operation: ASUM axis: 2 coeff: 0.5", "", "data"),
        ("operation: MEAN axis: 3", "", "data"),
        ("operation: SUMSQ axis: 1", VECTOR, "c"),
    ],
    "ReLU": [("", "", "data"), ("negative_slope: 0.2", "", "data"), ("negative_slope: 1.5", VECTOR, "c")],
    "Reshape": [
        ("shape { dim: 0 dim: -1 }", "", "data"),
        ("shape { dim: 0 dim: 2 dim: -1 dim: 9 }", "", "data"),
        ("shape { dim: 2 dim: -1 } axis: 1 num_axes: 1", "", "data"),
    ],
    "Scale": [
        ("", "", "data"),
        ("bias_term: true", CONV2, "c"),
        ("axis: 0", VECTOR, "data c"),
        ("axis: 0", CONV2, "data c"),
    ],
    "Sigmoid": [("", "", "data"), ("", CONV2, "c"), ("", VECTOR, "c")],
    "Slice": [
        ("axis: 1", "", "data"),
        ("axis: 2 slice_point: 3", "", "data"),
        ("slice_dim: 1 slice_point: 1", CONV2, "c"),
    ],
    "Softmax": [("", VECTOR, "c"), ("axis: 1", "", "data"), ("axis: 3", "", "data"), ("axis: 2", CONV2, "c")],
    "TanH": [("", "", "data"), ("", CONV2, "c"), ("", VECTOR, "c")],
}
BEGIN, END = "<!-- parameter sets -->", "<!-- /parameter sets -->"


def table() -> str:
    """Of docs/layers.md."""
    lines = ["| type | parameters, each equal to Caffe's own numbers |", "|---|---|"]
    for kind, cases in SETS.items():
        sets = [
            f"`{parameters or 'none'}`" + (f" of `{reads}`" if reads != "data" else "")
            for parameters, _, reads in cases
        ]
        lines.append(f"| {kind} | {'declined: this type is not supported' if kind == 'Embed' else ', '.join(sets)} |")
    return "\n".join(lines)


def test_the_document_holds_the_table() -> None:
    text = (ROOT / "docs" / "layers.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == table(), (
        "paste what `python -m tests.test_parameter_sets` prints"
    )
    assert all(len(cases) >= 3 for kind, cases in SETS.items() if kind != "Embed")


def layers(kind: str, case: Case) -> str:
    parameters, before, reads = case
    bottoms = " ".join(f'bottom: "{blob}"' for blob in reads.split())
    tops = 'top: "x" top: "y"' if kind == "Slice" else 'top: "x"'
    param = f"{PARAM[kind]} {{ {parameters} }}" if PARAM[kind] else ""
    return f'{before}\nlayer {{ name: "l" type: "{kind}" {bottoms} {tops} {param} }}\n'


def test_what_is_declined(tmp_path: Path) -> None:
    read = read_prototxt(prototxt(tmp_path, layers("Embed", ("", "", "data")), "x"))
    with pytest.raises(UserError, match=r"layer 'l' \(Embed\): this type is not supported"):
        parse_network(read, "accuracy", data_source(read), SHAPE)


@pytest.mark.parametrize(
    ("kind", "number"), [(k, i) for k, cases in SETS.items() for i in range(len(cases)) if k != "Embed"]
)
def test_the_numbers_are_caffes(kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("caffe") is None:
        assert not os.environ.get("REQUIRE_CAFFE")
        pytest.skip("pycaffe is not installed")
    import caffe

    monkeypatch.chdir(tmp_path)
    text = layers(kind, SETS[kind][number])
    ours = (
        text + 'layer { name: "end" type: "InnerProduct" bottom: "x" top: "end" inner_product_param { num_output: 2 } }'
    )
    read = read_prototxt(prototxt(tmp_path, ours, "end", "mean_value: 120 scale: 0.0078125"))
    network = parse_network(read, "accuracy", data_source(read), SHAPE)
    blobs = random_weights(network)
    network = fold_affine(attach_weights(network, blobs))
    # Of what changes nothing, the layer before it writes the blob.
    writer = next(layer for layer in network.layers[::-1] if layer.blob in ("x", read.layers[-3].bottom[0]))
    shape = (IMAGES, *SHAPE)
    dims = " ".join(f"dim: {dim}" for dim in shape)
    data = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}'
    Path("caffe.prototxt").write_text(data + text)
    net: Any = caffe.Net("caffe.prototxt", caffe.TEST)
    for name, params in net.params.items():
        for param, values in zip(params, blobs[name]):
            param.data[...] = values
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    net.blobs["data"].data[...] = (images.astype(np.float32) - 120) * np.float32(0.0078125)
    net.forward()
    position = network.layers.index(writer) + 1
    part = replace(network, layers=network.layers[:position], outputs=())
    found = FloatNetwork(part, images).logits(as_trained(part))
    np.testing.assert_allclose(found, net.blobs["x"].data.reshape(IMAGES, -1), rtol=1e-4, atol=2e-5)


if __name__ == "__main__":
    print(table())
