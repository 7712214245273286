# SPDX-License-Identifier: Apache-2.0
"""What reaches a terminal, whatever names are made of, and how scripts end when they are told to."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn import errors
from caffe_to_cmsis_nn.caffe_io import blobs
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.errors import UserError, finish, print_lines, warn
from tests.support import ROOT, prototxt, run, write_dataset

HOSTILE = "a\x1b[31m\udc80\u202eé"


def test_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    print_lines(HOSTILE, "b\nc")
    warn("script", HOSTILE)
    assert tuple(capsys.readouterr()) == ("a?[31m??é\nb?c\n", "script: a?[31m??é\n")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    print_lines(HOSTILE)
    assert raw.getvalue() == b"a?[31m??\\xe9\n"
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    print_lines("nothing")
    warn("script", "nothing")


def test_a_sentence_has_an_end() -> None:
    assert str(UserError("a" * errors.MOST_CHARACTERS)) == "a" * errors.MOST_CHARACTERS
    assert str(UserError("a" * (errors.MOST_CHARACTERS + 1))) == "a" * errors.MOST_CHARACTERS + " ..."


def _hostile_pickle(source: Path, folder: Path) -> Path:
    """Every text of a pickle with what no terminal should get."""

    def spoil(value: Any) -> Any:
        if type(value) is list:
            return [*map(spoil, value)]
        if type(value) is dict:
            texts = {"name", "blob", "dataset", "objective", "inputs"}
            return {k: f"{v}{HOSTILE}" if k in texts and type(v) is str else spoil(v) for k, v in value.items()}
        return value

    content = pickle.loads(source.read_bytes())
    network = content["network"] = spoil(content["network"])
    for layer in network["layers"]:
        layer["inputs"] = [f"{name}{HOSTILE}" for name in layer["inputs"]]
    network["outputs"] = [f"{name}{HOSTILE}" for name in network["outputs"]]
    for owner, table in ((network, "formats"), (network, "weights"), (network["outcome"], "layers")):
        owner[table] = {f"{name}{HOSTILE}": own for name, own in owner[table].items()}
    for one in network["outcome"]["search"]:
        one["candidate"] += HOSTILE
    (folder / "hostile.pkl").write_bytes(pickle.dumps(content, 4))
    return folder / "hostile.pkl"


def test_names_of_a_pickle(tiny_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _hostile_pickle(tiny_pickle, tmp_path)
    assert code_gen.main(["--describe", str(path)]) == 0
    assert code_gen.main(["--model", str(path), "--out_dir", str(tmp_path / "code")]) == 0
    out, err = capsys.readouterr()
    assert "conv1a?[31m??é" in out
    assert (out + err).replace("\n", "").isprintable()
    for file in (tmp_path / "code").iterdir():
        assert b"\x1b" not in file.read_bytes()


def _network(folder: Path, name: str) -> list[str]:
    """The flags for a network of one inner product of that name."""
    write_dataset(folder, (1, 4, 4), 20, 2)
    layer = f'layer {{ name: "{name}" type: "InnerProduct" bottom: "data" top: "ip"'
    model = prototxt(folder, layer + " inner_product_param { num_output: 2 } }", "ip")
    weights = pb.NetParameter()
    own = weights.layer.add(name=name, type="InnerProduct")
    for shape in ((2, 16), (2,)):
        own.blobs.add(data=np.ones(shape).ravel()).shape.dim.extend(shape)
    (folder / "weights").write_bytes(weights.SerializeToString())
    return ["--model", str(model), "--weights", str(folder / "weights")]


def test_names_of_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every trial's line, in the table, on a page, and where the command's paths are not UTF-8."""
    monkeypatch.chdir(tmp_path)
    arguments = [*_network(tmp_path, "ip\x1b[31m"), "--save", "\udce9.pkl", "-v"]
    assert nn_quantizer.main([*arguments, "--report", "r.html", "--json", "r.json"]) == 0
    assert nn_quantizer.main(["--eval", "\udce9.pkl"]) == 0
    out, err = capsys.readouterr()
    assert out.count("layer ip?[31m: ") > 1
    assert (out + err).replace("\n", "").isprintable()
    assert b"\x1b" not in Path("r.html").read_bytes() + Path("r.json").read_bytes()


def test_a_layer_name_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _network(tmp_path, "ab")
    weights = tmp_path / "weights"
    weights.write_bytes(weights.read_bytes().replace(b"ab", b"a\xff"))
    assert nn_quantizer.main([*arguments, "--save", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.endswith("the name of a layer is not UTF-8\n")


def test_a_layer_name_that_has_no_end(tmp_path: Path) -> None:
    for length, said in ((blobs.LONGEST_NAME, None), (blobs.LONGEST_NAME + 1, "has 1001 characters, allowed are 1000")):
        weights = tmp_path / "weights"
        blobs.write_weights(weights, "net", {"a" * length: [np.zeros(1, np.float32)]}, {"a" * length: "Bias"})
        with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            assert [*blobs.read_weights(weights)] == ["a" * length]


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """As a terminal has them, whatever the tests were started with: nohup and background jobs ignore some."""
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("script", ["nn_quantizer", "code_gen"])
def test_ctrl_c_during_the_imports(tmp_path: Path, script: str) -> None:
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = run(sys.executable, f"{script}.py", cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_that_end_a_run(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """All as Ctrl-C, which keeps the journal; what was set before holds again afterwards."""
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))

    def work() -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    assert finish("script", work) == 128 + number
    assert capsys.readouterr().err == "script: interrupted\n"
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert finish("script", lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_standard_error(tmp_path: Path) -> None:
    """The bar has nowhere to go."""
    command = [sys.executable, "nn_quantizer.py", *_network(tmp_path, "ip"), "--save", str(tmp_path / "p")]
    ended = run("sh", "-c", shlex.join(command) + " 2>&-", cwd=ROOT)
    assert ended.returncode == 0
    assert "Accuracy: float" in ended.stdout


@pytest.mark.parametrize("flag", ["--save", "--report", "--json", "--out_dir"])
def test_names_that_are_too_long(
    tiny_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    name = str(tmp_path / ("a" * 300))
    if flag == "--out_dir":
        code = code_gen.main(["--model", str(tiny_pickle), "--test_images", "0", flag, name])
    else:
        model = ["--model", "models/lenet_train_test.prototxt", "--weights", "models/lenet_iter_12000.caffemodel.h5"]
        code = nn_quantizer.main([*model, "--save", str(tmp_path / "p"), flag, name])
    assert code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "'" + name in message
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_leads_to_itself(
    tiny_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert code_gen.main(["--model", str(tiny_pickle), "--test_images", "0", "--out_dir", str(tmp_path / "loop")]) == 2
    assert capsys.readouterr().err == f"code_gen: cannot write '{tmp_path}/loop': File exists\n"


def test_errors_are_one_line() -> None:
    assert str(errors.UserError(HOSTILE + "\n")) == "a?[31m??é?"


@pytest.mark.parametrize("script", ["nn_quantizer", "code_gen"])
def test_help_imports_nothing_that_takes_long(script: str) -> None:
    heavy = "numpy", "onnx", "onnxruntime", "google.protobuf", "h5py", "lmdb", "jinja2"
    code = f"import sys, {script}; {script}.build_parser().format_help(); print({{*{heavy}}} & {{*sys.modules}})"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout == "set()\n"
