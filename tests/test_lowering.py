# SPDX-License-Identifier: Apache-2.0
"""One pickle for both kernel libraries: kernels exchanged, layers fused, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.kernels.base import Bounds
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.ops.activations import LeakyReLU, OwnLeakyReLU, Slope
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.target import S8 as S8_LIBRARY
from caffe_to_cmsis_nn.target import Core, Target
from tests import small, tiny
from tests.generated import generate, macros, make, network, on_host, predicted, stored_images
from tests.support import tool

S8 = Target(library=S8_LIBRARY)
BRANCHES = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "relu1" }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "relu1" top: "sum" }
layer { name: "clip" type: "Clip" bottom: "sum" top: "sum" clip_param { min: -2 max: 6 } }
layer { name: "relu2" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "ip1" type: "InnerProduct" bottom: "sum" top: "ip1" inner_product_param { num_output: 6 } }
"""


def test_only_what_nobody_else_reads_is_fused(tmp_path: Path) -> None:
    quantized = small.quantized(tmp_path, Target(Core.MVE, library=S8_LIBRARY), BRANCHES, "ip1")
    fused = lowering.fuse(quantized)
    assert [layer.name for layer in fused.graph.layers] == ["data", "conv1", "relu1", "sum", "ip1"]
    by_name = dict(zip((layer.name for layer in fused.graph.layers), fused.layers))
    grid = quantized.formats["sum"].y
    assert grid
    assert by_name["conv1"].bounds == Bounds()
    assert by_name["sum"].bounds == Bounds(0, min(127, round(6 * 2.0**grid.fraction_bits)))
    images = np.random.default_rng(1).integers(0, 256, (50, *small.SHAPE), dtype=np.uint8)
    np.testing.assert_array_equal(predicted(fused, images), predicted(quantized, images))


def test_q7_kernels_take_no_range(tmp_path: Path) -> None:
    quantized = small.quantized(tmp_path)
    assert len(lowering.fuse(quantized).layers) == len(quantized.layers)


@pytest.mark.parametrize("slope", [0.1, 0.25, 0.5, 1.0, -1.0])
def test_the_table_of_a_leaky_relu(slope: float) -> None:
    """Every input by Python's own rounding, half to even; the C array begins with input 0."""
    kernel = OwnLeakyReLU("lookup_q7")
    expected = [x if x >= 0 else max(-128, min(127, round(slope * x))) for x in range(-128, 128)]
    np.testing.assert_array_equal(kernel.outputs(Slope(slope)), expected)
    layer = LeakyReLU("r", ("x",), "r", ((4,),), negative_slope=slope)
    (table,) = kernel.arrays(layer, Slope(slope), CNames("R", ("in",), "out", "NULL", "", ""))
    np.testing.assert_array_equal(table.values, expected[128:] + expected[:128])


@pytest.mark.parametrize("low", [-128, 0, 5])
def test_ranges_of_several_layers(low: int) -> None:
    x = np.arange(-128, 128)
    for second in (Bounds(0, 127), Bounds(-3, 2), Bounds(100, 110)):
        both = Bounds(low, 90).within(second)
        expected = np.clip(np.clip(x, low, 90), second.low, second.high)
        np.testing.assert_array_equal(np.clip(x, both.low, both.high), expected)


@pytest.fixture(scope="module")
def s8_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was quantized for s8 kernels."""
    folder = tmp_path_factory.mktemp("s8")
    assert nn_quantizer.main([*tiny.write(folder), "--api", "s8", "--iterations", "2"]) == 0
    return folder / "net.pkl"


def test_biases_keep_the_accumulators_precision(s8_pickle: Path) -> None:
    quantized = network(s8_pickle)
    assert quantized.target == S8
    trained = tiny.blobs()
    for layer, integer in zip(quantized.graph.layers, quantized.layers):
        if layer.weighted:
            formats = quantized.formats[layer.name]
            assert formats.b is None
            assert integer.integers.bias.dtype == np.int32
            assert integer.integers.shifts.bias_lshift == 0
            bias = formats.accumulator.dequantize(integer.integers.bias)
            if layer.name in quantized.graph.outputs:  # the others' channels may have factors
                np.testing.assert_allclose(bias, trained[layer.name][1], atol=0.25)
    attributes = nn_quantizer.Caffe_Quantizer()
    attributes.load_quant_params(str(s8_pickle))
    formats = quantized.formats["conv1"]
    assert QFormat(attributes.bias_dec_bits["conv1"]) == formats.accumulator  # type: ignore[attr-defined]


def test_the_program_computes_what_the_model_predicts(s8_pickle: Path, tmp_path: Path) -> None:
    for names in (("make",), ("cc", "gcc"), ("c++", "g++")):
        tool(*names)
    quantized = network(s8_pickle)
    images = stored_images(quantized, s8_pickle, 20)
    folder = generate(s8_pickle, tmp_path, "--target", "host")
    assert "PASS" in make(folder, "run")
    np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))
    assert "RELU1_OUT_CH" not in macros(folder / "parameter.h")


def test_refusals(s8_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_gen.main(["--model", str(s8_pickle), "--out_dir", str(tmp_path / "x"), "--api", "q7"]) == 2
    assert "has a 32-bit bias, which the q7 kernels do not support" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    command = ["--model", str(s8_pickle), "--out_dir", str(tmp_path / "x"), "--softmax"]
    assert code_gen.main(command) == 2
    assert "(Softmax): no kernel can compute it: there is no s8 kernel" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        nn_quantizer.main([*tiny.write(tmp_path), "--api", "s8", "--rounding", "truncate"])
    assert "the s8 kernels round to nearest" in capsys.readouterr().err


def test_another_core(tmp_path: Path) -> None:
    """The pickle's core is the default only."""
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    sizes = []
    for core in Core:
        folder = generate(pickle, tmp_path / core.value, "--api", "s8", "--core", core.value)
        sizes.append(int(macros(folder / "network.h")["NN_ARENA_BYTES"]))
    dsp, plain, mve = sizes
    assert plain <= dsp < mve
