# SPDX-License-Identifier: Apache-2.0
"""Gains, offsets and slopes of each channel, and tables of functions: how far integers are from the real numbers."""

from __future__ import annotations

import pickle as plain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, read_weights, to_caffemodel
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, as_trained
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops import affine, functions
from caffe_to_cmsis_nn.ops.affine import Bias, Gains
from caffe_to_cmsis_nn.ops.functions import Function
from caffe_to_cmsis_nn.ops.prelu import PReLU, Slopes
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.target import Target
from tests.generated import generate, make, network, on_host, predicted, stored_images
from tests.support import prototxt, write_dataset

INPUTS = np.arange(-128, 128).astype(np.int8)
FACTORS = st.floats(-60, 60).filter(lambda value: not 0 < abs(value) < 1e-3)
BITS = st.integers(-4, 10)


def outputs(kernel: Any, layer: Any, integers: Any) -> np.ndarray:
    """(256, C) of all inputs in every channel."""
    g = OnnxGraph()
    g.output(kernel.build(g, [g.input("x", np.float32, layer.out_shape)], layer, integers, Target()))
    x = np.broadcast_to(INPUTS[:, None].astype(np.float32), (256, *layer.out_shape))
    return np.asarray(g.session().run(None, {"x": np.ascontiguousarray(x)})[0])


@given(st.lists(st.tuples(FACTORS, st.floats(-100, 100)), min_size=1, max_size=4), BITS, BITS)
def test_gains_and_offsets_are_off_by_half_a_step_and_what_16_bits_leave(
    pairs: list[tuple[float, float]], x: int, y: int
) -> None:
    gain, offset = np.array(pairs).T
    integers = Gains.fit(gain, offset, x, y)
    layer = Bias("b", ("x",), "b", ((len(pairs),),))
    real = (INPUTS[:, None] * 2.0**-x * gain + offset) * 2.0**y
    found = outputs(Bias.kernels[0], layer, integers)
    exact = (INPUTS[:, None].astype(np.int64) * integers.gains + integers.offsets) >> integers.rshift
    np.testing.assert_array_equal(found, np.clip(exact, -128, 127))
    left = 0.5 + 64.5 * 2.0**-integers.rshift
    if np.abs(gain).max() * 2.0 ** (y - x) <= affine.LARGEST_FACTOR:
        assert (np.abs(found - np.clip(real, -128, 127)) <= left + 1e-6).all()


@given(st.lists(FACTORS, min_size=1, max_size=4), BITS, st.integers(-14, 8))
def test_slopes_are_off_by_half_a_step_and_what_16_bits_leave(slopes: list[float], x: int, finer: int) -> None:
    slope = np.array(slopes)
    integers = Slopes.fit(slope, x, x + finer)
    layer = PReLU("p", ("x",), "p", ((len(slopes),),))
    found = outputs(PReLU.kernels[0], layer, integers)
    factors = np.where(INPUTS[:, None] < 0, integers.slopes, integers.one).astype(np.int64)
    exact = (INPUTS[:, None] * factors + (1 << integers.rshift >> 1)) >> integers.rshift
    np.testing.assert_array_equal(found, np.clip(exact, -128, 127))
    real = np.where(INPUTS[:, None] < 0, slope, 1) * INPUTS[:, None] * 2.0**finer
    assert (np.abs(found - np.clip(real, -128, 127)) <= 0.5 + 64 * 2.0**-integers.rshift + 1e-6).all()


def test_products_fill_16_bits_and_no_more() -> None:
    """The largest gain is above half of what 16 bits hold; one that is larger without a shift saturates outputs."""
    assert Gains.fit(np.array([0.7, -1.3]), np.zeros(2), 4, 4).gains.tolist() == [11469, -21299]
    assert Gains.fit(np.array([0.7, -1.3]), np.zeros(2), 4, 4).rshift == 14
    assert Gains.fit(np.array([1e-9]), np.zeros(1), 0, 0).rshift == affine.MOST_SHIFT
    assert Gains.fit(np.array([1e6]), np.zeros(1), 0, 0).gains.tolist() == [affine.LARGEST_FACTOR]
    assert Gains.fit(np.array([1.0]), np.array([1e12]), 0, 0).offsets.tolist() == [affine.LARGEST_OFFSET]


def _layers() -> list[Function]:
    """One of each class, with parameters that are not the defaults."""
    given: dict[str, dict[str, Any]] = {
        "ReLU": {"negative_slope": 3.0},
        "ELU": {"alpha": 0.5},
        "Power": {"power": 1.5, "scale": 2, "shift": 40},
        "Exp": {"base": 3, "scale": 0.1, "shift": -1},
        "Log": {"base": 10, "scale": 3, "shift": 60},
        "Threshold": {"threshold": 1.5},
        "Swish": {"beta": 0.7},
    }
    made: list[Function] = []
    for cls in functions.CLASSES:
        layer: Any = cls("f", ("x",), "f", ((1,),), **given.get(cls.caffe_type, {}))
        layer.check()
        made.append(layer)
    return made


@pytest.mark.parametrize("layer", _layers(), ids=lambda layer: layer.caffe_type)
@pytest.mark.parametrize(("x", "y"), [(3, 3), (4, 6), (7, 2)])
def test_a_table_holds_what_the_float_layer_computes_to_half_a_step(layer: Function, x: int, y: int) -> None:
    table = layer.quantize(None, LayerFormats(x=QFormat(x), y=QFormat(y)))
    g = OnnxGraph()
    g.output(layer.build_float(g, [g.input("x", np.float32, (1,))], None))
    (real,) = g.session().run(None, {"x": (INPUTS * 2.0**-x).astype(np.float32)[:, None]})
    assert np.abs(table - np.clip(real[:, 0] * 2.0**y, -128, 127)).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(outputs(Function.kernels[0], layer, table)[:, 0], table)


def test_what_is_not_defined_is_zero() -> None:
    root = functions.Power("p", ("x",), "p", ((1,),), power=0.5)
    table = root.quantize(None, LayerFormats(x=QFormat(0), y=QFormat(3)))
    assert table[:128].tolist() == [0] * 128
    assert table[128 + 9] == 24


# --- in networks ------------------------------------------------------------------------------------------------------


def layer(kind: str, name: str, bottom: str, parameters: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {parameters} }}\n'


BIASED = "scale_param { bias_term: true }"
DENSE = (
    layer("BatchNorm", "bn0", "data")
    + layer("Convolution", "conv", "bn0", "convolution_param { num_output: 6 kernel_size: 3 }")
    + layer("BatchNorm", "bn1", "conv")
    + layer("Scale", "s1", "bn1", BIASED)
    + layer("PReLU", "p1", "s1")
    + layer("Convolution", "conv2", "p1", "convolution_param { num_output: 6 kernel_size: 3 pad: 1 }")
    + 'layer { name: "cat" type: "Concat" bottom: "conv" bottom: "conv2" top: "cat" }'
    + layer("BatchNorm", "bn2", "cat")
    + layer("Scale", "s2", "bn2")
    + layer("Bias", "b2", "s2")
    + layer("ELU", "e2", "b2")
    + layer("InnerProduct", "ip", "e2", "inner_product_param { num_output: 4 }")
)


def trained(folder: Path, text: str, top: str) -> tuple[Graph, Blobs]:
    """The network as it was trained, and its blobs."""
    rng = np.random.default_rng(5)
    definition = read_prototxt(prototxt(folder, text, top, "mean_value: 127 scale: 0.0078125"))
    graph = parse_network(definition, "accuracy", data_source(definition), (3, 8, 8))
    blobs = {
        one.name: [
            (rng.uniform(0.5, 2, shape) if one.folds else rng.normal(0, 0.4, shape)).astype(np.float32)
            for shape in one.weight_shapes()
        ]
        for one in graph.layers
        if one.weight_shapes()
    }
    types = {one.name: one.caffe_type for one in graph.layers}
    (folder / "net.caffemodel").write_bytes(to_caffemodel("net", blobs, types))
    return attach_weights(graph, blobs), blobs


def test_those_that_follow_each_other_become_one(tmp_path: Path) -> None:
    graph, _ = trained(tmp_path, DENSE, "ip")
    folded = fold_affine(graph)
    names = [one.name for one in folded.layers]
    assert names == ["data", "bn0", "conv", "s1", "p1", "conv2", "cat", "bn2", "e2", "ip"]
    into = {name: [one.name for one in others] for name, others in folded.folded.items()}
    assert into == {"s1": ["bn1"], "bn2": ["s2", "b2"]}  # a Scale without bias_term cannot hold an offset
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    before, after = (FloatNetwork(one, images).logits(as_trained(one)) for one in (graph, folded))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("api", "kernels"),
    [
        ("q7", "own"),
        pytest.param("q7", "cmsis", marks=pytest.mark.slow),
        pytest.param("s8", "cmsis", marks=pytest.mark.slow),
    ],
)
def test_quantized_stored_and_run(api: str, kernels: str, tmp_path: Path) -> None:
    _, blobs = trained(tmp_path, DENSE, "ip")
    write_dataset(tmp_path, (3, 8, 8), 60, 4)
    files = {"model": "net.prototxt", "weights": "net.caffemodel", "save": "net.pkl"}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    assert nn_quantizer.main([*flags, "--api", api, "-q"]) == 0
    pickle = tmp_path / "net.pkl"
    quantized = network(pickle)
    images = stored_images(quantized, pickle, 20)
    for ram in ("fast", "least"):
        folder = generate(pickle, tmp_path / ram, "--target", "host", "--kernels", kernels, "--ram", ram)
        assert "PASS" in make(folder, "run")
        np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))
    content = plain.loads(pickle.read_bytes())
    content["network"]["constants"]["p1"][0] = np.full(6, np.nan, np.float32).tobytes()
    (tmp_path / "bad.pkl").write_bytes(plain.dumps(content, 4))
    with pytest.raises(UserError, match="layer 'p1': a constant is not finite"):
        record.load(tmp_path / "bad.pkl")
    written = read_weights(tmp_path / "quantized_net.caffemodel")
    assert written.keys() == blobs.keys()
    again = fold_affine(attach_weights(trained(tmp_path, DENSE, "ip")[0], written))
    for name in ("bn0", "s1", "p1", "bn2"):
        for ours, theirs in zip(quantized.graph.weights[name], again.weights[name]):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
