# SPDX-License-Identifier: Apache-2.0
"""Plans for running networks row by row: how much memory they take, and what they compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import code_gen
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, read_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source, override
from caffe_to_cmsis_nn.emit import program
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.kernels.base import Integers
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import parse_network
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, QuantizedNetwork
from caffe_to_cmsis_nn.ops.input import Pixels
from caffe_to_cmsis_nn.ops.pooling import AveragePooling
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.plan.rows import Planner
from caffe_to_cmsis_nn.qformat import LayerFormats, Shifts
from caffe_to_cmsis_nn.target import OWN, Core, Target
from tests import small
from tests.generated import network, predicted
from tests.support import MODELS, SHARED, missing

CIFAR = (3, 32, 32)
NETWORKS = {  # prototxt, images, weights that have rows of zeros, bytes as one call each, bytes row by row
    "LeNet": (MODELS / "lenet_train_test.prototxt", (1, 28, 28), None, 12404, 4624),
    "m4": (MODELS / "cifar10_m4_train_test.prototxt", CIFAR, None, 36144, 9760),
    "m7": (MODELS / "cifar10_m7_train_test.prototxt", CIFAR, None, 36144, 10528),
    "ResNet-8": (
        SHARED / "data" / "mlperf_tiny" / "mlperf_tiny_resnet8_train_test.prototxt",
        CIFAR,
        SHARED / "data" / "mlperf_tiny" / "mlperf_tiny_resnet8.caffemodel",
        49728,
        11584,
    ),
    "VWW": (SHARED / "data" / "mlperf_tiny" / "mlperf_tiny_vww_train_test.prototxt", (3, 96, 96), None, 64516, 28320),
    "resnet20": (SHARED / "data" / "resnet20" / "res20_cifar_train_test.prototxt", CIFAR, None, 49728, 16512),
}


def of_prototxt(path: Path, shape: tuple[int, ...], weights: Path | None, target: Target) -> QuantizedNetwork:
    """A network whose weights are the signs of the trained ones, or ones: for plans alone."""
    if not path.exists():
        missing(f"the development data '{path.name}' is not here")
    prototxt = read_prototxt(path)
    source = override(data_source(prototxt), None, "0", 1.0, None)
    accuracy = next(layer.name for layer in prototxt.layers if layer.type == "Accuracy")
    graph = parse_network(prototxt, accuracy, source, shape)
    blobs: Blobs = read_weights(weights) if weights else {}

    def integers(name: str, shape: tuple[int, ...]) -> Integers:
        trained = blobs[name][0] if name in blobs else np.ones(shape)
        return Integers(np.sign(trained).astype(np.int8), np.zeros(len(trained), np.int8), Shifts(0, 0))

    ones = {
        layer.name: layer.load([np.ones(s, np.float32) for s in layer.weight_shapes()])
        for layer in graph.layers
        if layer.weight_shapes()
    }
    graph = simplify(replace(graph, weights=ones))
    layers = []
    for layer in graph.layers:
        own = integers(layer.name, layer.weight_shapes()[0]) if layer.weighted else None
        layers.append(IntegerLayer(layer.kernel_for(target), own))
    return QuantizedNetwork(graph, {}, tuple(layers), target)


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_of_known_networks(name: str) -> None:
    path, shape, weights, whole, least = NETWORKS[name]
    quantized = of_prototxt(path, shape, weights, Target())
    assert rows.plan(quantized).memory.arena_bytes == whole
    plan = rows.plan(quantized, ram="least")
    assert plan.memory.arena_bytes == plan.least_bytes == least


@pytest.mark.parametrize("core", Core)
def test_a_number_of_bytes_gets_the_fastest_plan_that_fits(core: Core) -> None:
    path, shape, weights, _, _ = NETWORKS["m4"]
    quantized = of_prototxt(path, shape, weights, Target(core))
    fast, least = (rows.plan(quantized, ram=ram) for ram in ("fast", "least"))

    def computed_alone(plan: rows.RowPlan) -> int:
        return sum(plan.stages[i].rows for group in plan.row_groups for i in group.stages)

    before = computed_alone(least)
    assert before > 0 == computed_alone(fast)
    for ram in range(least.least_bytes, fast.memory.arena_bytes + 1, 1500):
        plan = rows.plan(quantized, ram=ram)
        assert plan.memory.arena_bytes <= ram
        assert computed_alone(plan) <= before
        before = computed_alone(plan)
    assert not rows.plan(quantized, ram=fast.memory.arena_bytes).row_groups


def test_too_few_bytes_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    least = rows.plan(network(pickle)).least_bytes
    arguments = ["--model", str(pickle), "--out_dir", str(tmp_path / "code"), "--test_images", "0"]
    assert code_gen.main([*arguments, "--ram", str(least)]) == 0
    capsys.readouterr()
    assert code_gen.main([*arguments, "--ram", str(least - 1)]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"code_gen: --ram {least - 1}: this network's layers need at least {least} bytes"


@pytest.mark.parametrize("text", ["little", "-1", "1.5"])
def test_other_plans_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        code_gen.main(["--ram", text])
    assert ended.value.code == 2
    assert f"argument --ram: '{text}' is not fast, least or a number of bytes" in capsys.readouterr().err


CONV = """
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "d" type: "Convolution" bottom: "c" top: "d" convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "ip2" type: "InnerProduct" bottom: "d" top: "ip2" inner_product_param { num_output: 6 } }
"""


@pytest.mark.parametrize("zero", [[0], [3], [0, 3], [0, 1, 2, 3], []], ids=str)
def test_rows_of_zeros_are_left_out(zero: list[int], tmp_path: Path) -> None:
    """First rows as far as they are padded, and last ones; what is computed stays what it was."""
    quantized = small.quantized(tmp_path, layers=CONV, shape=(3, 12, 12))
    integers = quantized.layers[1].integers
    weights = integers.weights.copy()
    weights[:, :, zero] = 0
    changed = replace(quantized.layers[1], integers=replace(integers, weights=weights))
    quantized = replace(quantized, layers=(quantized.layers[0], changed, *quantized.layers[2:]))
    planner = Planner(quantized)
    stop, group = max(planner.row_groups(1), key=lambda found: found[0])
    sections = [rows.Section((0,)), rows.Section(tuple(range(1, planner.cuts[stop])), group)]
    lowered = planner.plan(sections).lower(quantized)
    assert lowered.graph.layers[1].weight_shapes()[0][2] == {0: 4, 1: 3, 2: 2, 4: 4}[len(zero)]
    assert lowered.graph.layers[1].out_shape == quantized.graph.layers[1].out_shape
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 12, 12), dtype=np.uint8)
    np.testing.assert_array_equal(predicted(lowered, images), predicted(quantized, images))


def test_a_layer_whose_last_rows_nobody_reads_runs_whole(tmp_path: Path) -> None:
    """Its checksum is of all rows."""
    layers = CONV.replace("kernel_size: 3 pad: 1", "kernel_size: 1 stride: 4")
    quantized = small.quantized(tmp_path, layers=layers, shape=(3, 12, 12))
    members = [{*group.stages} for start in range(2) for _, group in Planner(quantized).row_groups(start)]
    assert all(not {1, 2} <= stages for stages in members)


@pytest.mark.parametrize(("target", "zeros"), [(Target(), 2), (Target(library=OWN), 0)], ids=["cmsis", "own"])
def test_rows_of_zeros_stand_for_padding_that_a_kernel_does_not_check(target: Target, zeros: int) -> None:
    """Above and below what the second convolution of m4 reads (5x5, padding 2), which waits for them, too."""
    path, shape, *_ = NETWORKS["m4"]
    quantized = of_prototxt(path, shape, None, target)
    names = [layer.name for layer in quantized.graph.layers]
    pixels = replace(quantized.layers[0], integers=Pixels(np.zeros((3, 1, 1)), 0))
    averages = AveragePooling.kernels
    layers = (pixels, *(replace(own, integers=0) if own.kernel in averages else own for own in quantized.layers[1:]))
    quantized = replace(quantized, formats=dict.fromkeys(names, LayerFormats()), layers=layers)
    plan = rows.plan(quantized, ram="least")
    (group,) = plan.row_groups
    padded = {
        plan.stages[b.stage].layers[0]: (b.above, b.below) for b in group.row_buffers if (b.above, b.below) != (0, 0)
    }
    assert padded == ({names.index("pool1"): (zeros, zeros)} if zeros else {})
    built = program.build(plan.lower(quantized), plan, CodeOptions())
    (section,) = (section for section in built.sections if isinstance(section, program.RowGroupStep))
    stages = {stage.name: stage for stage in section.stages}
    assert [(name, count) for name, _, count in stages["conv2"].readings] == [("pool1", 16 + zeros)]
    assert "conv2_scratch" in str(stages["conv2"].steps[0].calls)
    assert "scratch" not in str(stages["pool1"].steps[0].calls)
