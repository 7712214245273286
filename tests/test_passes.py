# SPDX-License-Identifier: Apache-2.0
"""What is folded into weights, what cannot be, and what the quantized weights file then holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Simulation, as_trained
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.to_caffe import caffe_types, quantized_blobs
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common
from tests.test_graph import conv, ip, layer, parse, plain, random_weights, scale

SHAPE = (2, 5, 5)
CHAINS = {
    "BatchNorm": plain("BatchNorm", "bn", "c", "c"),
    "BatchNorm, Scale": plain("BatchNorm", "bn", "c", "bn") + scale("s", "bn", "c2"),
    "BatchNorm, Scale without bias": plain("BatchNorm", "bn", "c", "c") + scale("s", "c", "c", bias=False),
    "Scale": scale("s", "c", "c", bias=False),
    "Scale, Bias": scale("s", "c", "c", bias=False) + plain("Bias", "b", "c", "b"),
}


def _network(folder: Path, chain: str, bias: bool) -> tuple[Graph, Blobs]:
    param = f"num_output: 3 kernel_size: 2 bias_term: {'true' if bias else 'false'}"
    top = chain.rsplit('top: "', 1)[1].split('"', maxsplit=1)[0]
    network = parse(folder, conv("c", "data", param) + chain + ip("ip", top), "ip", shape=SHAPE)
    return network, random_weights(network)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_quantized_blobs_give_the_quantized_network_with_the_same_prototxt(
    tmp_path: Path, chain: str, bias: bool
) -> None:
    """Fine formats, so that folding once more what was written for each layer gives what was folded before."""
    network, blobs = _network(tmp_path, CHAINS[chain], bias)
    folded = fold_affine(attach_weights(network, blobs))
    assert [layer.name for layer in folded.layers] == ["data", "c", "ip"]
    fine = {key: QFormat(4) for key in common.tensors(folded)}
    formats = common.table(folded, fine)
    written = quantized_blobs(folded, formats)
    assert {name: [b.shape for b in bs] for name, bs in written.items()} == {
        name: [b.shape for b in bs] for name, bs in blobs.items()
    }
    assert set(caffe_types(folded)) >= set(written)
    again = fold_affine(attach_weights(network, written))
    for name, (w, b) in folded.weights.items():
        q, own = formats[name], again.weights[name]
        assert q.w and q.b
        np.testing.assert_allclose(own[0], q.w.dequantize(q.w.quantize(w)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own[1], q.b.dequantize(q.b.quantize(b)), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_without_samples_counts_nothing(tmp_path: Path) -> None:
    """Caffe takes the mean and the variance for 0 then."""
    network, blobs = _network(tmp_path, CHAINS["BatchNorm"], False)
    blobs["bn"][2][:] = 0
    folded = fold_affine(attach_weights(network, blobs))
    np.testing.assert_allclose(folded.weights["c"][0], blobs["c"][0] / np.sqrt(1e-5), rtol=1e-5)
    assert not folded.weights["c"][1].any()


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    network, blobs = _network(tmp_path, CHAINS["BatchNorm"], False)
    blobs["bn"][1][0] = -1
    with pytest.raises(UserError, match="layer 'c': NaN or infinity, after BatchNorm was folded into it"):
        fold_affine(attach_weights(network, blobs))


BN, ONE = plain("BatchNorm", "bn", "c", "bn"), conv("c", "data", "num_output: 2 kernel_size: 1")
ALONE = {
    "nothing before it": (plain("BatchNorm", "bn", "data", "bn"), "bn"),
    "after a ReLU": (ONE + plain("ReLU", "r", "c", "c") + BN, "bn"),
    "others read it": (ONE + BN + layer("Eltwise", "e", ["c", "bn"]), "e"),
}
DECLINED = {
    "statistics of the batch": (
        plain("BatchNorm", "bn", "data", "bn")[:-2] + "batch_norm_param { use_global_stats: false } }\n",
        "bn",
        "use_global_stats false in the TEST phase",
    ),
    "a scale of two blobs": (layer("Scale", "s", ["data", "data"]), "s", "axis 1 with two inputs, allowed is 0"),
    "a scale of pixels": (
        plain("Scale", "s", "data", "s")[:-2] + "scale_param { axis: 2 } }\n",
        "s",
        "axis 2 and num_axes 1, allowed are 1 and 1",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_folded_stands_alone(tmp_path: Path, name: str) -> None:
    layers, top = ALONE[name]
    network = parse(tmp_path, layers + ip("ip", top), "ip", shape=SHAPE)
    network = attach_weights(network, random_weights(network))
    folded = fold_affine(network)
    assert [layer.name for layer in folded.layers] == [layer.name for layer in network.layers]
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    before, after = (FloatNetwork(one, images).logits(as_trained(one)) for one in (network, folded))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_computed_is_declined(tmp_path: Path, name: str) -> None:
    layers, top, message = DECLINED[name]
    with pytest.raises(UserError) as caught:
        parse(tmp_path, layers + ip("ip", top), "ip", shape=SHAPE)
    assert message in str(caught.value)


def test_folding_does_not_change_what_the_network_computes(tmp_path: Path) -> None:
    chain = CHAINS["BatchNorm, Scale"]
    network, blobs = _network(tmp_path, chain, True)
    folded = fold_affine(attach_weights(network, blobs))
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    ours = FloatNetwork(folded, images).outputs([Simulation()] * 3)["c"]
    w, b = (blob.astype(np.float64) for blob in blobs["c"])
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), axis=(2, 3))
    x = np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]
    mean, variance, factor = (blob.astype(np.float64)[:, None, None] for blob in blobs["bn"])
    x = (x - mean / factor) / np.sqrt(variance / factor + 1e-5)
    gain, offset = (blob.astype(np.float64)[:, None, None] for blob in blobs["s"])
    np.testing.assert_allclose(ours, x * gain + offset, rtol=1e-4, atol=1e-3)
