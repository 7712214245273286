# SPDX-License-Identifier: Apache-2.0
"""Pickles: ours, the original's, and those that were made to do harm."""

from __future__ import annotations

import math
import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.emit import projects, render
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.store import plain_pickle, record
from caffe_to_cmsis_nn.store.record import Record
from nn_quantizer import Caffe_Quantizer
from tests import small
from tests.support import shared

ATTRIBUTES = (
    "model_file weight_file quant_weight_file conv_layer ip_layer start_layer end_layer layer layer_shape "
    "layer_wt_shape top_blob bottom_blob layer_type kernel_size stride pad group pool_type lrn_type lrn_size "
    "lrn_alpha lrn_beta num_ops num_wts wt_int_bits wt_dec_bits bias_int_bits bias_dec_bits act_int_bits "
    "act_dec_bits bias_lshift act_rshift data_layer mean_file mean_val label_layer accuracy_layer iterations "
    "gpu"
)


def content(path: Path) -> Any:
    """What a pickle of ours holds: plain values."""
    return pickle.loads(path.read_bytes())


def refused(path: Path, damaged: bytes) -> str:
    """The message about a pickle that cannot be loaded."""
    path.write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        record.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- ours and the original's ------------------------------------------------------------------------------------------


def test_round_trip(tiny_pickle: Path, tmp_path: Path) -> None:
    loaded = record.load(tiny_pickle)
    assert loaded.network
    record.save(tmp_path / "again.pkl", loaded)
    assert content(tmp_path / "again.pkl") == content(tiny_pickle)
    plan = rows.plan(loaded.network)
    assert "conv1" in render.render(loaded.network, plan, projects.CodeOptions())["main.cpp"]


def test_the_pickle_holds_plain_values_alone(tiny_pickle: Path) -> None:
    def types(value: Any) -> set[type]:
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        return {type(value)}.union(*map(types, inner))

    assert types(content(tiny_pickle)["network"]) <= {dict, list, str, int, float, bool, bytes, type(None)}


def test_attributes_have_the_originals_names(tiny_pickle: Path) -> None:
    quantizer = Caffe_Quantizer()
    quantizer.load_quant_params(str(tiny_pickle))
    assert set(vars(quantizer)) >= set(ATTRIBUTES.split())
    found: Any = quantizer
    assert found.layer == ["data", "conv1", "relu1", "pool1", "ip1", "accuracy"]
    assert found.layer_type["pool1"] == "pooling"
    assert found.pool_type == {"pool1": 1}
    assert found.layer_shape["conv1"] == (10, 2, 6, 6)
    assert found.mean_val == [120, 120, 120]


def test_caffe_quantizer_round_trip(tiny_pickle: Path, tmp_path: Path) -> None:
    quantizer = Caffe_Quantizer()
    quantizer.load_quant_params(str(tiny_pickle))
    quantizer.save_quant_params(str(tmp_path / "copy.pkl"))
    assert content(tmp_path / "copy.pkl") == content(tiny_pickle)


def test_the_originals_pickle() -> None:
    quantizer = Caffe_Quantizer()
    quantizer.load_quant_params(str(shared("data", "arm_m4", "cifar10_m4.pkl")))
    assert set(vars(quantizer)) >= set(ATTRIBUTES.split())
    found: Any = quantizer
    assert found.conv_layer == ["conv1", "conv2", "conv3"]
    assert found.act_dec_bits["conv1"] == -3
    assert found.bias_lshift == {"conv1": 0, "conv2": 0, "conv3": 0, "ip1": 5}
    assert found.layer_shape["data"][1:] == (3, 32, 32)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_the_original_under_python_3(tmp_path: Path, protocol: int) -> None:
    quantizer = Caffe_Quantizer()
    vars(quantizer).pop("_network")
    vars(quantizer).update(gpu=False, act_dec_bits={"data": -1}, layer_shape={"data": (1, 3, 32, 32)})
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(quantizer, protocol))
    loaded = record.load(tmp_path / "old.pkl")
    assert loaded.network is None
    assert loaded.attributes == vars(quantizer)


# --- versions ---------------------------------------------------------------------------------------------------------


def test_nothing_is_stored_that_follows_from_the_rest(tiny_pickle: Path) -> None:
    found = content(tiny_pickle)
    network = found["network"]
    assert found["version"] == 6
    assert [*network] == [
        *(
            "name",
            "outputs",
            "classifier",
            "top_k",
            "layers",
            "formats",
            "weights",
            "constants",
            "target",
            "sources",
            "dataset",
            "crop",
            "scale",
            "reader",
            "outcome",
        )
    ]
    conv1, relu1 = network["layers"][1:3]
    assert {*conv1} == {
        *("type", "variant", "name", "inputs", "blob", "window", "stride", "pad", "num_output", "group", "bias_term")
    }
    assert relu1 == {"type": "ReLU", "variant": "", "name": "relu1", "inputs": ["conv1"], "blob": "conv1"}
    assert {name: [*own] for name, own in network["formats"].items()} == {
        "data": ["y"],
        "conv1": ["w", "b", "y"],
        "ip1": ["w", "b", "y"],
    }
    assert {name: len(own["weights"]) for name, own in network["weights"].items()} == {"conv1": 54, "ip1": 54}


def test_fields_with_defaults_may_be_missing(tiny_pickle: Path, tmp_path: Path) -> None:
    """So pickles that were written before a field was added are still read; fields without a default are needed."""
    found = content(tiny_pickle)
    for one in found["network"]["outcome"]["search"]:
        del one["divergence"]
    (tmp_path / "before.pkl").write_bytes(pickle.dumps(found))
    loaded = record.load(tmp_path / "before.pkl").network
    assert loaded and loaded.outcome
    assert {one.divergence for one in loaded.outcome.search} == {None}
    del found["network"]["outcome"]["search"][0]["images"]
    assert "a Measured with other fields" in refused(tmp_path / "bad.pkl", pickle.dumps(found))


def test_other_versions_are_refused(tiny_pickle: Path, tmp_path: Path) -> None:
    message = refused(tmp_path / "bad.pkl", pickle.dumps({**content(tiny_pickle), "version": 5}))
    assert message.endswith("bad.pkl' has version 5, this tool reads 6: quantize the network again")


# --- attacks ----------------------------------------------------------------------------------------------------------

RAN: list[str] = []


def run(text: str) -> None:
    """What an attack would call."""
    RAN.append(text)


class Reduces:
    """Pickles as the call that it is given."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def reduced(*call: Any) -> bytes:
    return pickle.dumps(Reduces(*call), protocol=2)


STATE = b"c__main__\nCaffe_Quantizer\n"
OBJECT = b"c__builtin__\nobject\n"
MAKE = b"ccopy_reg\n_reconstructor\n"
INSTANCE = MAKE + b"(" + STATE + OBJECT + b"NtR"
ATTACKS = {
    "os.system": b"cos\nsystem\n(S'touch ran'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'touch ran'\ntR.",
    "eval": b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.',
    "python 2's eval": b'c__builtin__\neval\n(S\'open("ran", "w")\'\ntR.',
    "getattr": b"cbuiltins\ngetattr\n(" + STATE + b"S'__init__'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x08__main__\x8c\x1eCaffe_Quantizer.__init__.func\x93.",
    "the class by another way": b"\x80\x04\x8c\x0cnn_quantizer\x8c\x04main\x93)R.",
    "our own function": reduced(run, ("ran",)),
    "a call in a state": INSTANCE + b"(dS'a'\ncos\nsystem\n(S'touch ran'\ntRsb.",
    "an instruction for instances": b"(S'touch ran'\nios\nsystem\n.",
    "an object instruction": b"(cos\nsystem\nS'touch ran'\no.",
    "a numpy array": pickle.dumps(np.arange(3)),
    "an array of objects": pickle.dumps(np.array([Reduces(run, ("ran",))], dtype=object)),
    "a numpy scalar": pickle.dumps(np.float64(3)),
    "a registered extension": b"\x80\x02\x82\x01.",
    "a persistent name": b"Pname\n.",
    "reconstructing another class": MAKE + b"(" + OBJECT + OBJECT + b"NtR.",
    "reconstructing on another base": MAKE + b"(" + STATE + STATE + b"NtR.",
    "reconstructing from a state": MAKE + b"(" + STATE + OBJECT + b"I1\ntR.",
    "reconstructing by keywords": b"\x80\x04" + MAKE + b")}\x92.",
    "attributes of the function": MAKE + b"(dS'a'\nI1\nsb.",
    "slots of the function": MAKE + b"(N(dS'__call__'\nI1\nstb.",
    "attributes of the class": STATE + b"(dS'a'\nI1\nsb.",
    "slots of the class": STATE + b"(N(dS'attributes'\nI1\nstb.",
    "attributes of object": OBJECT + b"(dS'a'\nI1\nsb.",
    "an instance made with arguments": STATE + b"(I1\ntR.",
    "an instance without a state": INSTANCE + b".",
    "a state that is not a dictionary": INSTANCE + b"I1\nb.",
    "names that are not text": INSTANCE + b"(dI1\nI1\nsb.",
    "a bare object": INSTANCE + b"(dS'a'\n" + OBJECT + b"(tRsb.",
    "the class as a value": INSTANCE + b"(dS'a'\n" + STATE + b"sb.",
    "an instance in itself": INSTANCE + b"p0\n(dS'a'\ng0\nsb.",
    "a list in itself": INSTANCE + b"(dS'a'\n(lp0\ng0\nasb.",
    "an integer without end": INSTANCE + b"(dS'a'\nL" + b"9" * 4000 + b"L\nsb.",
    "a huge array of bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "the longest array of bytes": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
    "a bytearray": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "a huge text": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "a huge frame": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
    "a huge integer": b"\x80\x02\x8b" + b"\xff\xff\xff\x7f" + b"abc.",
    "a far memo": b"N" + b"r\xff\xff\xff\x7f" + b".",
    "a far memo in text": b"Np2147483647\n.",
    "keys that collide": b"(" + b"".join(b"L%dL\nN" % (i * (2**61 - 1)) for i in range(100_000)) + b"d.",
    "a key that takes for ever to hash": b"N" + b"".join(b"p%d\n(g%d\ng%d\nt" % (i, i, i) for i in range(60)) + b"Nd.",
    "a deep tuple as a key": b"(N" + b"\x85" * 100_000 + b"Nd.",
    "a set": pickle.dumps({"a": {1, 2}}, protocol=4),
    "a frozenset": pickle.dumps({"a": frozenset([1])}, protocol=4),
    "values that are taken again and again": b"(" * 200_000 + b"t" * 200_000 + b".",
    "a text that is too long": pickle.dumps({"a": "b" * (plain_pickle.LARGEST_TEXT + 1)}, protocol=4),
    "long texts": pickle.dumps({f"a{i}": "b" * 60_000 + str(i) for i in range(300)}, protocol=4),
    "a number that is too long": b"(I1\n" + b"L" + b"9" * 300 + b"L\nd.",
    "a mark that is not there": b"}u.",
    "a value that is not there": b"a.",
    "a memo that is not there": b"g7\n.",
    "adding to a text": b"S'a'\n(N" + b"e.",
    "deep lists": b"(l" * 100000 + b"a" * 99999 + b".",
    "deep tuples": b"N" + b"\x85" * 500000 + b".",
    "a memo bomb": INSTANCE + b"(dS'a'\n(l" + b"".join(b"p%d\n0(lg%d\nag%d\na" % (i, i, i) for i in range(60)) + b"sb.",
    "many values": b"(" + b"N" * 2000000 + b"l.",
    "a file of nothing": b"",
    "plain text": b"hello, world\n",
    "another program's dictionary": pickle.dumps({"a": 1}),
    "a list": pickle.dumps([1, 2]),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    start, memory_before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(tmp_path / "bad.pkl", ATTACKS[name])
    assert message.startswith("the pickle '")
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 200_000  # kilobytes
    assert (RAN, list(tmp_path.iterdir())) == ([], [tmp_path / "bad.pkl"])


def test_attacks_leave_nothing_behind(tmp_path: Path) -> None:
    for name, attack in ATTACKS.items():
        if name.startswith(("attributes", "slots")):
            refused(tmp_path / "bad.pkl", attack)
    assert plain_pickle.Instance.attributes is None
    assert not any(hasattr(named, "a") for named in (plain_pickle.Instance, *plain_pickle._Name))


def test_a_pickle_that_is_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(files.LARGEST + 1)
    with pytest.raises(UserError, match="large' has 67108865 bytes, allowed are 67108864"):
        record.load(tmp_path / "large")
    with pytest.raises(UserError, match=r"cannot read the pickle '.*none': No such file"):
        record.load(tmp_path / "none")


# --- tampered networks ------------------------------------------------------------------------------------------------


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    """Sets one value deep in a pickle's content."""

    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


def drop(*path: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return apply


NET = "network"
DATA, CONV, RELU, POOL, IP = ((NET, "layers", i) for i in range(5))
TAMPERED = [
    change("version", to=7),
    change("version", to=0),
    change("version", to="1"),
    change("version", to=True),
    change("version", to=1.0),
    change("format", to="other"),
    drop("version"),
    drop("network"),
    drop("attributes"),
    change("attributes", to=[1]),
    change("attributes", to={1: 2}),
    change("network", to=[1]),
    drop(NET, "layers"),
    change(NET, "layers", to=[]),
    change(NET, "name", to=7),
    change(NET, "sources", to={"model": {"name": "x"}}),
    change(NET, "sources", to={"model": {"name": 3, "sha256": ""}}),
    change(NET, "dataset", to=3),
    change(NET, "crop", to=-1),
    change(NET, "crop", to=2.5),
    change(NET, "reader", to={"type": "LevelDB"}),
    change(NET, "reader", to={"type": "Data", "more": 1}),
    change(*DATA, "type", to="ReLU"),
    change(*DATA, "inputs", to=["ip1"]),
    change(*DATA, "scale", to=0.3),
    change(*DATA, "scale", to=0.0),
    change(*DATA, "scale", to=float("nan")),
    change(*DATA, "scale", to=float("inf")),
    change(*DATA, "scale", to=2.0**1000),
    change(*DATA, "scale", to="1"),
    change(*DATA, "mean", to=None),
    change(*CONV, "type", to="Data"),
    change(*CONV, "type", to="Embed"),
    change(*CONV, "name", to="data"),
    change(*CONV, "name", to=5),
    change(*CONV, "blob", to=5),
    change(*CONV, "inputs", to=["none"]),
    change(*CONV, "inputs", to=[]),
    change(*CONV, "inputs", to=["data", "data"]),
    change(*CONV, "inputs", to=["ip1"]),
    change(*CONV, "stride", to=[0, 0]),
    change(*CONV, "stride", to=[-1, -1]),
    change(*CONV, "pad", to=[2**31, 2**31]),
    change(*CONV, "pad", to=[-1, -1]),
    change(*CONV, "pad", to=[True, True]),
    change(*CONV, "num_output", to=3),
    change(*CONV, "num_output", to=0),
    change(*CONV, "num_output", to=2.0),
    change(*CONV, "group", to=0),
    change(*CONV, "group", to=3),
    change(*CONV, "bias_term", to=1),
    change(*CONV, "gain", to=1),
    drop(*CONV, "pad"),
    drop(*CONV, "type"),
    drop(*CONV, "name"),
    change(*IP, "num_output", to=2),
    drop(NET, "formats", "conv1"),
    change(NET, "formats", "data", "y", to=None),
    change(NET, "formats", "data", "y", to=25),
    change(NET, "formats", "data", "y", to=-60),
    change(NET, "formats", "data", "y", to=10**6),
    change(NET, "formats", "data", "y", to=1.0),
    change(NET, "formats", "data", "y", to=True),
    change(NET, "formats", "conv1", "w", to=None),
    change(NET, "formats", "conv1", "w", to=64),
    change(NET, "formats", "conv1", "w", to=-64),
    change(NET, "formats", "ip1", "b", to=64),
    drop(NET, "formats", "ip1", "b"),
]
OUTCOME = (NET, "outcome")
TAMPERED += [
    change("network", "constants", to={"conv1": [b"", b""]}),
    change("network", "constants", to=[]),
    drop("network", "constants"),
    change("network", "outputs", to=[]),
    change("network", "outputs", to=["ip1", "ip1"]),
    change("network", "outputs", to=["conv9"]),
    change("network", "outputs", to=["conv1", "ip1"]),
    change("network", "outputs", to="ip1"),
    change("network", "outputs", to=["conv1"]),
    change("network", "classifier", to=1),
    change("network", "top_k", to=[]),
    change("network", "top_k", to=[2]),
    change("network", "top_k", to=[1, 9]),
    change("network", "scale", to=0.0),
    change("network", "scale", to=math.nan),
    change("network", "scale", to=1),
    change(*CONV, "window", to=[3]),
    change(*CONV, "window", to=[3.0, 3.0]),
    change(*CONV, "window", to=[0, 0]),
    change(*CONV, "window", to=[[3, 3], 3]),
    change(*CONV, "window", to="33"),
    change(*POOL, "window", to=[7, 7]),
    change(*POOL, "variant", to="SUM"),
    change(*POOL, "variant", to="global AVE"),
    drop(*POOL, "variant"),
    change(*DATA, "shape", to=[3, 6]),
    change(*DATA, "shape", to=[3, 6, -6]),
    change(*DATA, "shape", to=[3, 2**30, 2**30]),
    change(*DATA, "shape", to=[]),
    change(*DATA, "in_shapes", to=[[3, 6, 6]]),
    change(*DATA, "mean", to=b"\x00\x00\xc0\x7f" * 3),
    change(*DATA, "mean", to=bytes(13)),
    change(*DATA, "mean", to=[0, 0, 0]),
    change(*CONV, "in_shapes", to=[[3, 6, 6]]),
    change(*RELU, "shared_input", to=True),
    change(NET, "formats", "more", to={"y": 1}),
    change(NET, "formats", "conv1", "x", to=0),
    change(NET, "formats", "relu1", to={"y": 0}),
    change(NET, "formats", "data", "w", to=3),
    drop(NET, "weights", "ip1"),
    change(NET, "weights", "data", to={"weights": b"", "bias": b""}),
    change(NET, "weights", "conv1", to=None),
    change(NET, "weights", "conv1", to={}),
    change(NET, "weights", "conv1", "weights", to=b"abc"),
    change(NET, "weights", "conv1", "weights", to="abc"),
    change(NET, "weights", "conv1", "weights", to=[0] * 54),
    change(NET, "weights", "conv1", "bias", to=bytes(8)),
    change(NET, "weights", "conv1", "shifts", to=[1, 1]),
    change(NET, "weights", "conv1", "bits", to=4),  # but its weights are larger
    change(NET, "weights", "conv1", "bits", to=16),
    change(NET, "weights", "conv1", "bits", to=8.0),
    drop(NET, "weights", "conv1", "bits"),
    change(NET, "target", "core", to="m7"),
    change(NET, "target", "rounding", to=None),
    change(NET, "target", "api", to="S8"),
    drop(NET, "target", "api"),
    drop(*OUTCOME),
    change(*OUTCOME, to=1),
    change(*OUTCOME, "objective", to=None),
    change(*OUTCOME, "images_read", to=[]),
    change(*OUTCOME, "images_read", to=-1),
    change(*OUTCOME, "holdout", to="0.5"),
    change(*OUTCOME, "accuracy", to=3),
    change(*OUTCOME, "accuracy", "on_device", to=None),
    change(*OUTCOME, "search", to={"x": "y"}),
    change(*OUTCOME, "search", to={1: 2.0}),
    change(*OUTCOME, "layers", to={"conv1": {}}),
    change(*OUTCOME, "layers", "conv1", "sqnr", to="37"),
    change(*OUTCOME, "images", to=20),
]


@pytest.mark.parametrize("number", range(len(TAMPERED)))
def test_tampered_networks_are_refused(tmp_path: Path, tiny_pickle: Path, number: int) -> None:
    tampered = content(tiny_pickle)
    TAMPERED[number](tampered)
    message = refused(tmp_path / "bad.pkl", pickle.dumps(tampered))
    assert len(message) < 600


MERGING = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "relu1" }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "relu1" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE global_pooling: true } }
"""


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change(NET, "formats", "sum", "y", to=127), "layer 'sum': its output has 127 fraction bits, allowed are "),
        (change(NET, "formats", "sum", "y", to=-63), "layer 'sum': its output has -63 fraction bits, allowed are "),
        (change(NET, "formats", "data", "y", to=60), "layer 'data': its output has 60 fraction bits, allowed are "),
        (change(NET, "layers", 1, "group", to=2), "layer 'conv1': group 2 does not divide 3 inputs and 6 outputs"),
        (change(NET, "layers", 1, "group", to=0), "layer 'conv1': group 0 does not divide 3 inputs and 6 outputs"),
    ],
)
def test_what_a_prototxt_may_not_ask_for_a_pickle_may_not_either(
    tmp_path: Path, tamper: Callable[[Any], None], message: str
) -> None:
    """Such pickles ended in a traceback, or in C that shifts by 70 bits."""
    pickled = small.save(small.quantized(tmp_path, layers=MERGING, top="pool"), tmp_path / "net.pkl")
    tampered = content(pickled)
    tamper(tampered)
    assert message in refused(tmp_path / "bad.pkl", pickle.dumps(tampered))


@pytest.mark.parametrize("name", ["C_1_73", "_1_137", "_2_82", "_3_161", "_el_y127"])
def test_mutated_pickles_that_once_passed(name: str) -> None:
    with pytest.raises(UserError, match=r"the pickle's layer '(el|c)': (its output has|group 2 does not divide 3)"):
        record.load(shared("cases", "attack", f"pickle{name}.pkl"))


def test_names_cannot_become_code(tmp_path: Path, tiny_pickle: Path) -> None:
    """Names of layers and files come into C comments and identifiers."""
    evil = '*/ int evil; // "\n#error \\\n'
    changed = content(tiny_pickle)
    network = changed["network"]
    network["layers"][1]["name"] = network["layers"][2]["inputs"][0] = evil
    for table in ("formats", "weights"):
        network[table][evil] = network[table].pop("conv1")
    network["sources"] = {evil: {"name": evil, "sha256": evil}}
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(changed))
    loaded = record.load(tmp_path / "evil.pkl").network
    assert loaded
    assert loaded.graph.layers[1].name == evil
    rendered = render.render(loaded, rows.plan(loaded), projects.CodeOptions(profile=True))
    assert "int evil" in rendered["parameter.h"]
    for text in rendered.values():
        assert "*/ int evil" not in text
        assert "\n#error \\" not in text


def test_saving_replaces_in_one_step(tmp_path: Path) -> None:
    record.save(tmp_path / "a.pkl", Record({"x": 1}))
    before = (tmp_path / "a.pkl").read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        record.save(tmp_path / "a.pkl", Record({"x": lambda: None}))
    assert (tmp_path / "a.pkl").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pkl"]


def test_the_class_is_where_old_pickles_look_for_it() -> None:
    assert nn_quantizer.Caffe_Quantizer.__name__ == "Caffe_Quantizer"
    assert set(plain_pickle._NAMES) == {
        f"{module} {name}"
        for name, modules in {
            "_reconstructor": ("copy_reg", "copyreg"),
            "object": ("__builtin__", "builtins"),
            "Caffe_Quantizer": ("__main__", "nn_quantizer"),
        }.items()
        for module in modules
    }
