# SPDX-License-Identifier: Apache-2.0
"""Networks with several outputs, of any shape, and without labels."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import to_caffemodel
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data import lmdb_images
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe, accuracy_first
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.folding import fold_affine
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.report import page
from caffe_to_cmsis_nn.target import Core, Target
from tests.generated import (
    STRICT,
    flip_first_value,
    generate,
    macros,
    made,
    make,
    network,
    on_host,
    predicted,
    stored_images,
)
from tests.support import ROOT, run, tool, write_dataset
from tests.test_graph import random_weights
from tests.test_serving import STUBS as SERVING_STUBS
from tests.test_serving import on_this_computer

SHAPE = (3, 12, 10)
INPUT = 'input: "data" input_dim: 1 ' + " ".join(f"input_dim: {extent}" for extent in SHAPE) + "\n"
LAYERS = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "map" type: "Convolution" bottom: "conv1" top: "map" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 12 kernel_size: 3 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "scores" type: "Convolution" bottom: "conv2" top: "scores"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "boxes" type: "InnerProduct" bottom: "conv2" top: "boxes" inner_product_param { num_output: 4 } }
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "scores" top: "prob" }\n'
ALL = ["map", "scores", "boxes"]


def parse(folder: Path, text: str, *outputs: str) -> Graph:
    (folder / "net.prototxt").write_text(text)
    prototxt = read_prototxt(folder / "net.prototxt")
    return parse_network(prototxt, "accuracy", data_source(prototxt), SHAPE, output_names=outputs)


def trained(folder: Path, text: str, *outputs: str) -> list[str]:
    """The network of a prototxt with random weights and an LMDB of random images; flags that quantize it."""
    rng = np.random.default_rng(1)
    graph = parse(folder, text, *outputs)
    blobs = {
        layer.name: [
            (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) for shape in layer.weight_shapes()
        ]
        for layer in graph.layers
        if layer.weight_shapes()
    }
    types = {layer.name: layer.caffe_type for layer in graph.layers}
    (folder / "net.caffemodel").write_bytes(to_caffemodel("net", blobs, types))
    write_dataset(folder, SHAPE, 30, 10)
    files = {"model": "net.prototxt", "weights": "net.caffemodel", "save": "net.pkl", "lmdb": "data_lmdb"}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    return [*flags, "--mean", "120", "--scale", "0.0071", *(word for name in outputs for word in ("--output", name))]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pickle of a network with three outputs: two images and a vector."""
    folder = tmp_path_factory.mktemp("three")
    assert nn_quantizer.main([*trained(folder, INPUT + LAYERS), "--json", str(folder / "net.json"), "-q"]) == 0
    return folder / "net.pkl"


# --- which ones -------------------------------------------------------------------------------------------------------


def test_what_no_layer_reads_is_given(tmp_path: Path) -> None:
    graph = parse(tmp_path, INPUT + LAYERS)
    assert [*graph.outputs] == ALL and not graph.classifier and graph.result_size == 2 * 80 + 2 * 6 + 4


@pytest.mark.parametrize("names", [["boxes"], ["scores", "map"], ["conv1", "boxes"], ["pool1", "conv1"]])
def test_what_is_named_is_given(names: list[str], tmp_path: Path) -> None:
    graph = parse(tmp_path, INPUT + LAYERS, *names)
    blobs = {layer.name: layer.blob for layer in graph.layers}
    assert [blobs[name] for name in graph.outputs] == names and not graph.classifier
    assert ("map" in blobs) == ("map" in names)  # what leads to no output is left out


@pytest.mark.parametrize(("labels", "accuracy"), [([0, 1, 2, 3], True), ([0, 0, 0, 0], False), ([0, 1, 2, 4], False)])
def test_one_vector_is_of_logits_where_images_have_labels(labels: list[int], accuracy: bool, tmp_path: Path) -> None:
    """In a deploy prototxt: all are 0 where there are none, and 4 is no class of 4."""
    one = LAYERS[: LAYERS.index('layer { name: "map"')]
    one += LAYERS[LAYERS.index('layer { name: "boxes"') :].replace("conv2", "pool1")
    flags = trained(tmp_path, INPUT + one)
    lmdb_images.write(tmp_path / "data_lmdb", lmdb_images.read(tmp_path / "data_lmdb")[0][:4], labels)
    assert nn_quantizer.main([*flags, "-q"]) == 0
    outcome = network(tmp_path / "net.pkl").outcome
    assert outcome and (outcome.accuracy is not None) == accuracy and ({*outcome.outputs} == {"boxes"}) != accuracy


def test_losses_are_no_readers(tmp_path: Path) -> None:
    loss = 'layer { name: "loss" type: "%s" bottom: "boxes" bottom: "label" top: "loss" }'
    assert [*parse(tmp_path, INPUT + LAYERS + loss % "EuclideanLoss").outputs] == ALL
    one = LAYERS[: LAYERS.index('layer { name: "map"')]
    one += LAYERS[LAYERS.index('layer { name: "boxes"') :].replace("conv2", "pool1")
    assert not parse(tmp_path, INPUT + one + loss % "EuclideanLoss").classifier
    assert parse(tmp_path, INPUT + one + loss % "SoftmaxWithLoss").classifier


def test_a_softmax_is_left_out_of_one_output_and_computed_of_several(tmp_path: Path) -> None:
    assert [*parse(tmp_path, INPUT + LAYERS + PROB).outputs] == ["map", "boxes", "prob"]
    with pytest.raises(UserError, match=r"--output nothing: .* blobs that no layer reads: map, boxes, prob"):
        parse(tmp_path, INPUT + LAYERS + PROB, "nothing")
    assert parse(tmp_path, INPUT + LAYERS + PROB, "prob").scores == {"scores"}


def test_batchnorm_does_not_go_into_an_output(tmp_path: Path) -> None:
    norm = 'layer { name: "norm" type: "BatchNorm" bottom: "map" top: "norm" }'
    assert parse(tmp_path, INPUT + LAYERS + norm).outputs
    both = parse(tmp_path, INPUT + LAYERS + norm, "map", "norm")
    folded = fold_affine(attach_weights(both, random_weights(both)))
    assert [layer.name for layer in folded.layers][-2:] == ["map", "norm"]


ACCURACIES = """layer { name: "top1" type: "Accuracy" bottom: "boxes" bottom: "label" top: "top1" }
layer { name: "top3" type: "Accuracy" bottom: "boxes" bottom: "label" top: "top3" accuracy_param { top_k: 3 } }
"""


def test_accuracy_layers_may_ask_for_several_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Caffe counts the images for which fewer than top_k other classes are at least as large."""
    trained(tmp_path, INPUT + LAYERS, "boxes")
    write_dataset(tmp_path, SHAPE, 200, 4)
    transform = "transform_param { mean_value: 120 scale: 0.0078125 }"
    source = f'data_param {{ source: "{tmp_path / "data_lmdb"}" batch_size: 10 backend: LMDB }}'
    data = f'layer {{ name: "data" type: "Data" top: "data" top: "label" {transform} {source} }}\n'
    (tmp_path / "net.prototxt").write_text(data + LAYERS + ACCURACIES)
    files = {"model": "net.prototxt", "weights": "net.caffemodel", "save": "net.pkl", "json": "net.json"}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    assert nn_quantizer.main(flags) == 0
    printed = capsys.readouterr().out
    outcome = network(tmp_path / "net.pkl").outcome
    assert outcome
    (three,) = outcome.other_accuracies
    assert three.top_k == 3 and f"Accuracy of the first 3: float {three.in_float:.2f} %" in printed
    assert 50 < three.on_device < 100 and three.in_float > outcome.known.in_float
    assert json.loads((tmp_path / "net.json").read_text())["other_accuracies"][0]["device"] == three.on_device
    assert nn_quantizer.main(["--eval", str(tmp_path / "net.pkl"), "-q"]) == 0
    assert f"Accuracy of the first 3 now: device {three.on_device:.2f} %" in capsys.readouterr().out


def test_accuracies_of_several_classes() -> None:
    logits = np.array([[3, 5, 5, 1], [3, 5, 5, 1], [3, 5, 4, 1]])
    labels = np.array([1, 2, 3])
    caffe, first = ([count(logits, labels, k) for k in (1, 2, 3)] for count in (accuracy_caffe, accuracy_first))
    assert caffe == pytest.approx([0, 200 / 3, 200 / 3])
    assert first == pytest.approx([100 / 3, 200 / 3, 200 / 3])


def test_images_of_another_size_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no layer is for one size alone."""
    flags = trained(tmp_path, INPUT + LAYERS, "map", "scores")
    write_dataset(tmp_path, (3, 16, 20), 30, 10)
    assert nn_quantizer.main([*flags, "-q"]) == 0
    assert [layer.out_shape for layer in network(tmp_path / "net.pkl").graph.output_layers] == [(2, 14, 18), (2, 5, 7)]
    assert "asks for images of shape (3, 12, 10): the network is made for (3, 16, 20)" in capsys.readouterr().err
    assert nn_quantizer.main(["--eval", str(tmp_path / "net.pkl")]) == 0
    flags = trained(tmp_path, INPUT + LAYERS, "boxes")
    write_dataset(tmp_path, (3, 16, 20), 30, 10)
    assert nn_quantizer.main(flags) == 2
    assert "the weights of layer 'boxes' are for this size alone" in capsys.readouterr().err


# --- quantized --------------------------------------------------------------------------------------------------------


def test_it_is_judged_by_how_close_it_comes(three: Path) -> None:
    outcome = network(three).outcome
    assert outcome and outcome.accuracy is None
    assert [*outcome.outputs] == ALL
    assert all(own.sqnr and own.sqnr > 25 and own.cosine and own.cosine > 0.998 for own in outcome.outputs.values())
    before, chosen = outcome.search[1], [one for one in outcome.search if one.chosen]
    assert chosen and chosen[0].accuracy is None and before.divergence and chosen[0].divergence
    assert chosen[0].divergence <= max(one.divergence or 0 for one in outcome.search)


def test_trials_are_judged_by_what_the_network_gives(three: Path) -> None:
    """Whichever layer a trial goes on from: no step of one bit in a late layer spoils all outputs."""
    values = json.loads((three.parent / "net.json").read_text())
    assert len(values["trials"]) > 10 and all(trial["divergence"] < 0.5 for trial in values["trials"])


def test_labels_are_not_looked_at(three: Path, tmp_path: Path) -> None:
    flags = trained(tmp_path, INPUT + LAYERS)
    lmdb_images.write(tmp_path / "data_lmdb", lmdb_images.read(three.parent / "data_lmdb")[0], np.full(30, -1))
    assert nn_quantizer.main([*flags, "-q"]) == 0
    assert network(tmp_path / "net.pkl").outcome == network(three).outcome


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--objective", "caffe"], "--objective caffe needs accuracies, and there is no Accuracy layer"),
        (["--api", "s8", "--weight_bits", "mixed"], "--weight_bits mixed needs accuracies"),
    ],
)
def test_what_needs_labels_is_declined(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nn_quantizer.main([*trained(tmp_path, INPUT + LAYERS), *flags]) == 2
    assert said in capsys.readouterr().err


def test_what_is_printed(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = trained(three.parent, INPUT + LAYERS)
    assert nn_quantizer.main([*flags, "--save", str(three.parent / "again.pkl")]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^scores +\d\d\.\d dB +0\.99\d{4}$", printed.out, re.M)
    assert re.search(r"^SQNR: \d\d\.\d dB, the worst of 3 outputs \(30 images, .*\)$", printed.out, re.M)
    assert "accurac" not in printed.out.lower()
    assert "no Accuracy layer: map, scores, boxes are judged by how close they come" in printed.err


def test_a_pickle_is_held_against_its_float_network_again(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main(["--eval", str(three)]) == 0
    printed = capsys.readouterr().out
    recorded, now = re.findall(r"^SQNR(?: now)?: (.*) \(30 images", printed, re.M)
    assert recorded == now
    for name in ALL:
        before, after = re.findall(rf"^{name} +(\S+ dB +0\.\d+)$", printed, re.M)
        assert before == after


def test_the_report_tells_of_outputs(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((three.parent / "net.json").read_text())
    jsonschema.validate(values, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert values["accuracy"] is None and values["classes"] is None and values["per_class"] == []
    assert [(one["name"], one["shape"]) for one in values["outputs"]] == [
        ("map", [2, 10, 8]),
        ("scores", [2, 3, 2]),
        ("boxes", [4]),
    ]
    shown = page.page(values, {})
    assert "in the worst of 3 outputs" in shown and "2x10x8" in shown and "accuracy in" not in shown


@pytest.mark.parametrize("name", ["map", "pixels", "t3", "c0"])
def test_onnx_gives_every_output(name: str, three: Path, tmp_path: Path) -> None:
    """Under its layer's name, unless a value of the model has that."""
    quantized = network(three)
    layers = tuple(replace(layer, name=name) if layer.name == "map" else layer for layer in quantized.graph.layers)
    graph = replace(quantized.graph, layers=layers, outputs=(name, "scores", "boxes"))
    images = stored_images(quantized, three, 5)
    device = DeviceNetwork(graph, images, quantized.target)
    session = onnxruntime.InferenceSession(device.to_onnx(quantized.layers))
    first, *others = session.get_outputs()
    assert (first.name.rstrip("_"), first.shape) == (name, ["N", 2, 10, 8])
    assert [(one.name, one.shape[1:]) for one in others] == [("scores", [2, 3, 2]), ("boxes", [4])]
    results = dict(zip(graph.outputs, session.run(None, {"pixels": images})))
    np.testing.assert_array_equal(graph.join(results), predicted(quantized, images))


# --- on the device ----------------------------------------------------------------------------------------------------

TARGETS = [("--api", "q7"), ("--api", "s8"), ("--kernels", "own"), ("--core", "plain"), ("--ram", "least")]


@pytest.mark.parametrize("flags", TARGETS, ids=" ".join)
def test_the_program_gives_every_output(flags: tuple[str, str], three: Path, tmp_path: Path) -> None:
    generate(three, tmp_path, "--target", "host", "--test_images", "3", *flags)
    make(tmp_path, f"CFLAGS={' '.join(STRICT)}", f"CXXFLAGS={' '.join(STRICT)}")
    done = run("./network", cwd=tmp_path)
    assert done.returncode == 0 and "PASS: every layer as predicted for 3 of 3 images" in done.stdout, done.stdout
    quantized = network(three)
    images = stored_images(quantized, three, 30)
    expected = known_answers.device_order(quantized.graph, predicted(quantized, images))
    np.testing.assert_array_equal(on_host(tmp_path, images), expected)


BOARDS = [
    ("cortex-m3", "--api", "q7"),
    ("cortex-m4", "--api", "q7"),
    ("cortex-m4", "--kernels", "own", "--ram", "least"),
    ("cortex-m7", "--api", "q7", "--name", "detector"),
    ("cortex-m55", "--api", "s8", "--profile"),
]


@pytest.mark.parametrize("board", BOARDS, ids=" ".join)
def test_boards_give_every_output(board: tuple[str, ...], three: Path, tmp_path: Path) -> None:
    """The same as on this computer: checksums of all layers, and of all outputs once the whole network has run."""
    for name in ("arm-none-eabi-g++", "qemu-system-arm"):
        tool(name)
    core, *flags = board
    target = Target({"cortex-m3": Core.PLAIN, "cortex-m55": Core.MVE}.get(core, Core.DSP))
    flags += ["--core", target.core.value, "--target", "mps2", "--test_images", "5"]
    text = make(generate(three, tmp_path, *flags), "run", f"CORE={core}")
    assert "PASS: every layer as predicted for 5 of 5 images" in text
    quantized = network(three)
    results = quantized.graph.split(predicted(quantized, stored_images(quantized, three, 5)))
    boxes = [[int(n) for n in row.split()] for row in re.findall(r"^image .*, boxes([- 0-9]+)$", text, re.M)]
    np.testing.assert_array_equal(boxes, results["boxes"])


def test_an_output_that_is_overwritten_is_seen(three: Path, tmp_path: Path) -> None:
    folder = generate(three, tmp_path, "--target", "host")
    header = folder / "parameter.h"
    offsets = {name: macros(header)[f"{name.upper()}_OFFSET"] for name in ALL}
    text = header.read_text()
    assert len({*offsets.values()}) == 3 and f"#define BOXES_OFFSET {offsets['boxes']}\n" in text
    header.write_text(text.replace(f"BOXES_OFFSET {offsets['boxes']}\n", f"BOXES_OFFSET {offsets['map']}\n"))
    done = made(folder, "run")
    assert done.returncode != 0 and "FAIL: output map has been overwritten" in done.stdout, done.stdout


PROGRAM = """
#include <stdio.h>
#include "network.h"
int main(void)
{
    static uint8_t pixels[NN_INPUT_BYTES];
    static float values[NN_OUT_MAP_BYTES];
    for (int i = 0; i < NN_INPUT_BYTES; i++) {
        pixels[i] = (uint8_t)(i * 7);
    }
    const nn_output_t *const outputs = run_nn(pixels);
    const nn_output_t *const map = &outputs[NN_OUT_MAP_INDEX];
    nn_floats(map, values);
    const int at = (3 * NN_OUT_MAP_WIDTH + 5) * NN_OUT_MAP_CHANNELS + 1;
    printf("%d %d %d %d %.9g %.9g\\n", NN_OUTPUTS, NN_OUTPUT_BYTES, map->height, map->width,
           values[at], map->data[at] / (float)(1 << NN_OUT_MAP_FRACTION_BITS));
    return 0;
}
"""


@pytest.mark.parametrize("target", ["host", "cmake"])
def test_a_program_of_ones_own_reads_the_outputs(target: str, three: Path, tmp_path: Path) -> None:
    """In C++ beside main.cpp, and in C beside a network in a file of its own."""
    folder = generate(three, tmp_path, "--target", target)
    name, compiler, source = ("app.c", "gcc", "network.c") if target == "cmake" else ("app.cpp", "g++", "main.cpp")
    (folder / name).write_text(PROGRAM)
    kernels = ["gcc", "-DARM_MATH_DSP", "-Iportable", "-c", "portable/arm_nnfunctions.c", "-o", "kernels.o"]
    flags = [*STRICT, "-DARM_MATH_DSP", "-DNN_NO_MAIN", "-Iportable"]
    for command in (kernels, [compiler, *flags, name, source, "kernels.o", "-o", "app"]):
        done = run(tool(command[0]), *command[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
    quantized = network(three)
    image = (np.arange(np.prod(SHAPE)) * 7 % 256).astype(np.uint8).reshape(12, 10, 3).transpose(2, 0, 1)
    y = quantized.formats["map"].y
    assert y
    value = y.dequantize(quantized.graph.split(predicted(quantized, image[None]))["map"])[0, 1, 3, 5]
    assert run("./app", cwd=folder).stdout.split() == ["3", "176", "10", "8", *2 * [f"{value:.9g}"]]


@pytest.mark.parametrize("board", SERVING_STUBS)
def test_programs_for_every_board_compile(board: str, three: Path, tmp_path: Path) -> None:
    for flags in (["--serve"], ["--profile"], ["--test_images", "0"]):
        if flags == ["--profile"] and board in ("mbed", "keil"):
            continue  # what they use of their systems is not here
        folder = generate(three, tmp_path / flags[0], "--target", board, "--api", "s8", *flags)
        kernels = generate(three, tmp_path / "mps2", "--target", "mps2", "--api", "s8") / "portable"
        stubs = {**SERVING_STUBS[board], "zephyr/kernel.h": "#include <stdint.h>\nuint32_t k_cycle_get_32(void);\n"}
        for name, text in stubs.items():
            (tmp_path / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "stubs" / name).write_text(text)
        options = ["-mcpu=cortex-m4", "-mthumb", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
        folders = [f"-I{path}" for path in (folder, tmp_path / "stubs", kernels)]
        for program in [*folder.glob("main.cpp"), *folder.glob("src/main.c"), *folder.glob("network.c")]:
            done = run(tool("arm-none-eabi-gcc"), *options, *folders, program)
            assert done.returncode == 0, done.stderr


def test_a_board_that_serves_gives_every_output(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate(three, tmp_path, "--target", "host", "--serve")
    with on_this_computer(folder) as terminal:
        assert nn_quantizer.main(["--eval", str(three), "--board", terminal]) == 0
    printed = capsys.readouterr().out
    assert "30 images, dsp core, nearest rounding; 30 images with every value as predicted" in printed
    flip_first_value(folder / "weights.h", "MAP_WT")
    with on_this_computer(folder) as terminal:
        assert nn_quantizer.main(["--eval", str(three), "--board", terminal, "--board_images", "1"]) == 2
    assert "image 0: layer map is the first that differs" in capsys.readouterr().err
