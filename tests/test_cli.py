# SPDX-License-Identifier: Apache-2.0
"""Both scripts from end to end, as a user calls them."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights, write_weights
from caffe_to_cmsis_nn.data.image_set import StoredImages
from caffe_to_cmsis_nn.network import test_images
from caffe_to_cmsis_nn.store import record
from nn_quantizer import Caffe_Quantizer
from tests.support import MODELS, prototxt, write_dataset

NET = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool1" top: "pool1" }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 3 } }
"""
LAST_LINE = r"Accuracy: float \d+\.\d\d %, device \d+\.\d\d % \((\d+) images, (\w+) core, (\w+) rounding\)"


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    """Arguments for a small network with random weights and 120 random images of 3x6x6."""
    rng = np.random.default_rng(1)
    write_dataset(tmp_path, (3, 6, 6), 120, 3)
    blobs = {"conv1": [rng.normal(0, 0.3, (4, 3, 3, 3)), rng.normal(0, 0.1, 4)]}
    blobs["ip1"] = [rng.normal(0, 0.2, (3, 36)), rng.normal(0, 0.1, 3)]
    types = {"conv1": "Convolution", "ip1": "InnerProduct"}
    write_weights(tmp_path / "net.caffemodel.h5", "net", blobs, types)
    model = prototxt(tmp_path, NET, "ip1", "mean_value: 120 scale: 0.0078125")
    save = tmp_path / "net.pkl"
    return ["--model", str(model), "--weights", str(tmp_path / "net.caffemodel.h5"), "--save", str(save)]


def test_lenet_loses_nothing(lenet_pickle: Path) -> None:
    network = record.load(lenet_pickle).network
    assert network is not None and network.outcome
    accuracy = network.outcome.known
    assert network.outcome.images == 10000
    assert accuracy.in_float >= 98.9
    assert accuracy.on_device >= accuracy.in_float - 0.1


def test_what_is_printed_and_written(net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main(net) == 0
    out, err = capsys.readouterr()
    last = re.fullmatch(LAST_LINE, out.splitlines()[-1])
    assert last and last.groups() == ("120", "dsp", "nearest")
    assert err == ""
    blobs = read_weights(tmp_path / "quantized_net.caffemodel")
    network = record.load(tmp_path / "net.pkl").network
    assert network is not None
    for layer, integer in zip(network.graph.layers, network.layers):
        if layer.weighted:
            q = network.formats[layer.name].w
            assert q is not None
            np.testing.assert_array_equal(blobs[layer.name][0], q.dequantize(integer.integers.weights))


def test_iterations(net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main([*net, "--iterations", "10"]) == 0
    out, err = capsys.readouterr()
    assert "(100 images," in out
    assert err == ""
    assert nn_quantizer.main([*net, "--iterations", "100"]) == 0
    out, err = capsys.readouterr()
    assert "(120 images," in out
    assert "100 batches of 10 asked for, but" in err and "holds 120 images" in err


@pytest.mark.parametrize(("core", "rounding"), [("plain", "nearest"), ("dsp", "truncate")])
def test_target_goes_into_the_pickle_and_the_code(net: list[str], tmp_path: Path, core: str, rounding: str) -> None:
    assert nn_quantizer.main([*net, "--core", core, "--rounding", rounding]) == 0
    assert code_gen.main(["--model", net[-1], "--out_dir", str(tmp_path / "code")]) == 0
    code = (tmp_path / "code" / "main.cpp").read_text()
    assert ("ARM_MATH_DSP is not defined" in code) == (core == "dsp")
    assert ("#if !defined(ARM_NN_TRUNCATE)" in code) == (rounding == "truncate")


def test_the_same_input_gives_the_same_bytes(net: list[str], tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        assert nn_quantizer.main(net) == 0
        assert code_gen.main(["--model", net[-1], "--out_dir", str(tmp_path / name)]) == 0
        files = sorted((tmp_path / name).iterdir())
        written.append([(file.name, file.read_bytes()) for file in [*files, tmp_path / "net.pkl"]])
    assert written[0] == written[1]


def test_code_gen_leaves_unchanged_files_alone(net: list[str], tmp_path: Path) -> None:
    arguments = ["--model", net[-1], "--out_dir", str(tmp_path / "deep" / "code")]
    assert nn_quantizer.main(net) == 0
    times = []
    for _ in range(2):
        assert code_gen.main(arguments) == 0
        times.append({path: path.stat().st_mtime_ns for path in (tmp_path / "deep" / "code").iterdir()})
    assert times[0] == times[1]
    assert {"weights.h", "parameter.h", "main.cpp"} <= {path.name for path in times[0]}


def test_the_accuracy_layer_may_be_named_by_its_top(net: list[str], tmp_path: Path) -> None:
    model = Path(net[1])
    model.write_text(model.read_text().replace('top: "accuracy"', 'top: "top1"'))
    assert nn_quantizer.main([*net, "--accuracy", "top1"]) == 0


def test_gpu_is_no_silent_fall_back(net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main([*net, "--gpu"]) == 2
    assert "onnxruntime-gpu" in capsys.readouterr().err
    assert not Path(net[-1]).exists()


DEPLOY = """input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "ip1" top: "prob" }
"""


def test_a_deploy_prototxt_takes_its_data_from_flags(net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = Path(net[1]), Path(net[3])
    model.write_text(DEPLOY)
    rng = np.random.default_rng(1)
    blobs = {"conv1": [rng.normal(0, 0.3, (4, 3, 3, 3)), rng.normal(0, 0.1, 4)]}
    blobs["ip1"] = [rng.normal(0, 0.2, (3, 16)), rng.normal(0, 0.1, 3)]
    write_weights(weights, "net", blobs, {"conv1": "Convolution", "ip1": "InnerProduct"})
    assert nn_quantizer.main(net) == 2
    assert "layer 'data' names no data: give the test images with --lmdb" in capsys.readouterr().err
    given = ["--lmdb", str(model.parent / "data_lmdb"), "--mean", "100,110,120", "--scale", "0.0078125"]
    assert nn_quantizer.main([*net, *given]) == 2
    assert "the images have shape (3, 6, 6), the prototxt asks for (3, 4, 4)" in capsys.readouterr().err
    assert nn_quantizer.main([*net, *given, "--crop", "4"]) == 0
    network = record.load(Path(net[-1])).network
    assert network
    assert network.graph.input.mean.ravel().tolist() == [100, 110, 120]
    assert network.graph.input.scale == 0.0078125
    assert [layer.name for layer in network.graph.layers] == ["data", "conv1", "ip1"]
    assert network.crop == 4
    assert code_gen.main(["--model", net[-1], "--out_dir", str(model.parent / "code")]) == 0


def test_the_original_s_class(net: list[str], tmp_path: Path) -> None:
    assert nn_quantizer.main(net) == 0
    m = Caffe_Quantizer()
    m.load_quant_params(net[-1])
    assert m.layer == ["data", "conv1", "relu1", "pool1", "ip1", "accuracy"]  # type: ignore[attr-defined]
    assert m.layer_shape["pool1"] == (10, 4, 3, 3)  # type: ignore[attr-defined]
    assert m.act_rshift["conv1"] == (  # type: ignore[attr-defined]
        m.wt_dec_bits["conv1"] + m.act_dec_bits["data"] - m.act_dec_bits["conv1"]  # type: ignore[attr-defined]
    )
    m.save_quant_params(str(tmp_path / "again.pkl"))
    assert pickle.loads((tmp_path / "again.pkl").read_bytes()) == pickle.loads(Path(net[-1]).read_bytes())


def test_default_flags_name_files_that_exist() -> None:
    args = nn_quantizer.parse_arguments([])
    if not list(MODELS.glob("cifar10_m4_iter_*.caffemodel.h5")):
        pytest.skip("the m4 network is not trained yet")
    assert Path(args.model).name in {path.name for path in MODELS.iterdir()}
    assert Path(args.weights).name in {path.name for path in MODELS.iterdir()}
    assert code_gen.parse_arguments([]).model == args.save


def test_eval_says_what_is_in_a_pickle_and_runs_it_again(
    net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nn_quantizer.main([*net, "--holdout", "0.4", "--seed", "3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    again = re.search(r"device (\d+\.\d\d) % \(48 held-out images", printed[-1])
    assert again
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert nn_quantizer.main(["--eval", net[-1]]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[-1].startswith(f"Accuracy now: device {again[1]} % (48 held-out images of ")
    assert printed[-1] in lines
    assert {line for line in printed if line.startswith(("layer ", "data ", "conv1 ", "pool1 ", "ip1 "))} <= {*lines}
    assert err == "" and before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert nn_quantizer.main(["--eval", net[-1], "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_eval_takes_other_images(net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main([*net, "--iterations", "2"]) == 0
    (tmp_path / "other").mkdir()
    write_dataset(tmp_path / "other", (3, 6, 6), 30, 3, seed=9)
    assert nn_quantizer.main(["--eval", net[-1], "--lmdb", str(tmp_path / "other" / "data_lmdb")]) == 0
    assert "(20 images of" in capsys.readouterr().out


def test_eval_keeps_within_the_memory(
    net: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nn_quantizer.main([*net, "--holdout", "0.4"]) == 0
    open_images, opened = test_images.open_images, []

    def spy(*arguments: Any) -> Any:
        opened.append(open_images(*arguments))
        return opened[-1]

    monkeypatch.setattr(test_images, "open_images", spy)
    said = []
    for flags in ([], ["--memory", "0.000002"]):
        capsys.readouterr()
        assert nn_quantizer.main(["--eval", net[-1], *flags]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert [isinstance(images, StoredImages) for images, _ in opened] == [False, True]
    assert nn_quantizer.main(["--eval", net[-1], "--memory", "0"]) == 2
    assert "--memory 0.0 must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("script", [nn_quantizer, code_gen])
def test_every_flag_is_taken_in_either_spelling(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And --help shows one of them."""
    parser = script.build_parser()
    tried = 0
    for action in parser._actions:
        for flag in action.option_strings:
            other = "--" + flag[2:].replace("_", "-")
            if flag.startswith("--") and action.nargs != 0:
                value = str(next(iter(action.choices or [{"HxW": "1x1"}.get(str(action.metavar), "1")])))
                assert parser.parse_args([other, value]) == parser.parse_args([f"{other}={value}"])
                assert parser.parse_args([other, value]) == parser.parse_args([flag, value])
            elif flag.startswith("--") and action.dest not in ("help", "version"):
                assert parser.parse_args([other]) == parser.parse_args([flag]) != parser.parse_args([])
            tried += other != flag
    assert tried >= {nn_quantizer: 1, code_gen: 4}[script]
    assert not re.search(r"--[a-z]+-[a-z]", parser.format_help())
    assert parser.parse_args(["--channel-order=rgb"]).channel_order == "rgb"
    for flag in ("--no-such-flag", "--channel-ord"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])


@pytest.mark.parametrize(
    ("main", "arguments", "flag"),
    [
        (nn_quantizer.main, ["--eval", "net.pkl", "--objective", "caffe"], "--objective has no use with --eval"),
        (nn_quantizer.main, ["--eval", "net.pkl", "--report", "r.html"], "--report has no use with --eval"),
        (code_gen.main, ["--describe", "net.pkl", "--out_dir", "x"], "--out_dir has no use with --describe"),
        (code_gen.main, ["--images", "1,x"], "argument --images: invalid positions value: '1,x'"),
        (code_gen.main, ["--images=-1"], "argument --images: invalid positions value: '-1'"),
    ],
)
def test_flags_that_have_no_use_are_refused(
    main: Callable[[list[str]], int], arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert flag in capsys.readouterr().err


def test_describe_needs_no_data(net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main(net) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    shutil.rmtree(tmp_path / "data_lmdb")
    assert code_gen.main(["--describe", net[-1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Network: net, for dsp core, nearest rounding"
    assert last in lines
    assert lines[-1].startswith("Total: ")
    assert any(line.startswith("weights: ") and "sha256 " in line for line in lines)


def test_a_damaged_outcome_is_refused_in_one_sentence(
    net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nn_quantizer.main(net) == 0
    for key, value in (("accuracy", 3), ("search", {"x": "y"}), ("layers", {"conv1": {}}), ("images_read", [])):
        content = pickle.loads((tmp_path / "net.pkl").read_bytes())
        content["network"]["outcome"][key] = value
        (tmp_path / "damaged.pkl").write_bytes(pickle.dumps(content))
        capsys.readouterr()
        assert code_gen.main(["--describe", str(tmp_path / "damaged.pkl")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_each_pickle_has_quantized_weights_of_its_own(
    net: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    saved = [tmp_path / "net.pkl", tmp_path / "out" / "first.pkl", tmp_path / "out" / "second"]
    for save in saved:
        assert nn_quantizer.main([*net[:-1], str(save)]) == 0
    named = []
    for save in saved:
        m = Caffe_Quantizer()
        m.load_quant_params(str(save))
        named.append(m.quant_weight_file)  # type: ignore[attr-defined]
    out = tmp_path / "out"
    first, second = (str(out / f"quantized_{name}.caffemodel") for name in ("first", "second"))
    assert named == [str(tmp_path / "quantized_net.caffemodel"), first, second]
    capsys.readouterr()
    arguments = ["--model", str(saved[1]), "--out_dir", str(tmp_path / "code")]
    assert code_gen.main(arguments) == 0
    assert capsys.readouterr().err == ""
    shutil.copy(net[3], first)
    for main, flags in ((code_gen.main, arguments), (nn_quantizer.main, ["--eval", str(saved[1])])):
        assert main(flags) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"'{first}' (quantized weights) has been replaced since: its sha256 is not the one in the pickle" in line
