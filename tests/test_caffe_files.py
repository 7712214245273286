# SPDX-License-Identifier: Apache-2.0
"""The readers and writers of Caffe's files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from google.protobuf import text_format

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, read_mean, read_weights, write_mean, write_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt, read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.errors import UserError
from tests import tiny
from tests.support import prototxt


def read(folder: Path, text: str) -> Prototxt:
    path = folder / "net.prototxt"
    path.write_text(text)
    return read_prototxt(path)


def names(network: Prototxt) -> list[str]:
    return [layer.name for layer in network.layers]


# --- prototxt ---------------------------------------------------------------------------------------------------------


def test_current_form(tmp_path: Path) -> None:
    network = read_prototxt(prototxt(tmp_path, tiny.LAYERS, "ip1", "scale: 0.5 mean_value: 3"))
    assert network.name == "net"
    assert [layer.type for layer in network.layers] == [
        "Data",
        "Convolution",
        "ReLU",
        "Pooling",
        "InnerProduct",
        "Accuracy",
    ]
    assert network.layers[1].convolution_param.kernel_size == [3]
    assert network.layers[0].transform_param.scale == 0.5
    assert network.unknown == {}


V1_TYPES = """ABSVAL AbsVal, ACCURACY Accuracy, ARGMAX ArgMax, BNLL BNLL, CONCAT Concat, CONVOLUTION Convolution,
DATA Data, DECONVOLUTION Deconvolution, DROPOUT Dropout, DUMMY_DATA DummyData, EUCLIDEAN_LOSS EuclideanLoss,
ELTWISE Eltwise, EXP Exp, FLATTEN Flatten, HDF5_DATA HDF5Data, HDF5_OUTPUT HDF5Output, HINGE_LOSS HingeLoss,
IM2COL Im2col, IMAGE_DATA ImageData, INFOGAIN_LOSS InfogainLoss, INNER_PRODUCT InnerProduct, LRN LRN,
MEMORY_DATA MemoryData, MULTINOMIAL_LOGISTIC_LOSS MultinomialLogisticLoss, MVN MVN, POOLING Pooling,
POWER Power, RELU ReLU, SIGMOID Sigmoid,
SIGMOID_CROSS_ENTROPY_LOSS SigmoidCrossEntropyLoss, SILENCE Silence, SOFTMAX Softmax, SOFTMAX_LOSS SoftmaxWithLoss,
SPLIT Split, SLICE Slice, TANH TanH, WINDOW_DATA WindowData, THRESHOLD Threshold, CONTRASTIVE_LOSS ContrastiveLoss"""


@pytest.mark.parametrize("pair", V1_TYPES.split(","))
def test_old_types_get_caffes_names(tmp_path: Path, pair: str) -> None:
    old, new = pair.split()
    assert [layer.type for layer in read(tmp_path, f'layers {{ name: "x" type: {old} }}').layers] == [new]


def test_old_form(tmp_path: Path) -> None:
    network = read(
        tmp_path,
        """layers { name: "data" type: DATA top: "data" top: "label" include { phase: TEST }
          data_param { source: "db" batch_size: 7 backend: LMDB scale: 0.25 mean_file: "mean" crop_size: 28 } }
        layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 0
          convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
        layers: { name: "pool" type: POOLING bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 } }""",
    )
    data, conv, pool = network.layers
    transform = data.transform_param
    assert (transform.scale, transform.mean_file, transform.crop_size, transform.mirror) == (0.25, "mean", 28, False)
    assert (data.data_param.source, data.data_param.batch_size, list(data.top)) == ("db", 7, ["data", "label"])
    assert (conv.convolution_param.num_output, list(conv.bottom), list(conv.top)) == (20, ["data"], ["conv"])
    assert pool.pooling_param.pool == pool.pooling_param.AVE
    assert network.unknown == {}


# What Caffe 1.0 builds of these in the TEST phase, for a network of stage "s".
@pytest.mark.parametrize(
    ("rules", "built"),
    [
        ("", True),
        ("phase: TRAIN", True),  # a layer's own phase chooses nothing
        ("include { phase: TEST }", True),
        ("include { phase: TRAIN }", False),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ("include { min_level: 1 }", False),
        ("include { min_level: 0 max_level: 0 }", True),
        ("include { max_level: -1 }", False),
        ('include { stage: "s" }', True),
        ('include { stage: "s" stage: "t" }', False),
        ('include { not_stage: "s" }', False),
        ('include { phase: TEST not_stage: "t" }', True),
        ("exclude { phase: TEST }", False),
        ("exclude { phase: TRAIN }", True),
        ('exclude { stage: "s" }', False),
        ('exclude { not_stage: "s" }', True),
    ],
)
def test_phase_rules(tmp_path: Path, rules: str, built: bool) -> None:
    network = read(
        tmp_path,
        f'state {{ stage: "s" level: 3 }} layer {{ name: "a" {rules} }} layer {{ name: "b" }}',
    )
    assert names(network) == (["a", "b"] if built else ["b"])


def test_data_layers_of_both_phases_share_a_name(tmp_path: Path) -> None:
    layer = 'layer {{ name: "d" type: "Data" top: "d" include {{ phase: {} }} data_param {{ source: "{}" }} }}\n'
    network = read(tmp_path, layer.format("TRAIN", "train") + layer.format("TEST", "test"))
    assert [layer.data_param.source for layer in network.layers] == ["test"]


@pytest.mark.parametrize("unknown", ["", "gain: 3"])
@pytest.mark.parametrize(
    "text",
    [
        'layer {{ name: "a" type: "ReLU" {0} }} layer {{ name: "b" }}',
        'layer:{{name:"a"type:"ReLU" {0}}}layer:{{name:"b"}}',
        'layer\n{{ # {{ a comment\n name: "a" {0} }} # layer {{ }}\nlayer # and\n# more }}\n{{ name: "b" }}',
        'layer < name: "a" relu_param < negative_slope: 0 > {0} > layer {{ name: "b" }}',
        """layer {{ name: 'a' top: "}}{{\\"" bottom: '"}}' {0} }} layer {{ name: "b" top: "layer {{" }}""",
        'name: "layer {{" layer {{ name: "a"; {0} }}; layer {{ name: "b", }}',
    ],
)
def test_spellings_of_the_text_format(tmp_path: Path, text: str, unknown: str) -> None:
    network = read(tmp_path, text.format(unknown))
    assert names(network) == ["a", "b"]
    assert list(network.unknown) == ([0] if unknown else [])


def test_lists_of_layers(tmp_path: Path) -> None:
    assert names(read(tmp_path, 'layer: [ { name: "a" }, { name: "b" } ]')) == ["a", "b"]
    for text in ('layer: [ { name: "a" gain: 1 } ]', 'layer { name: "a" gain: 1 } layer: [ { name: "b" } ]'):
        with pytest.raises(UserError, match="has a field that this tool does not know"):
            read(tmp_path, text)


def test_unknown_fields_are_reported_with_their_place(tmp_path: Path) -> None:
    network = read(
        tmp_path,
        'layer { name: "a"\n  relu_param { gain: 1 } }\n'
        'layer { name: "b" layer { name: "x" } }\n'
        'layer { name: "c" type: "Warp" warp_param { by { more: 1 } } }\n'
        'layer { name: "d" }',
    )
    assert names(network) == ["a", "b", "c", "d"]
    assert network.unknown == {
        0: "line 2: ReLUParameter has no field 'gain'",
        1: "line 3: LayerParameter has no field 'layer'",
        2: "line 4: LayerParameter has no field 'warp_param'",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no layers in the TEST phase"),
        ("layer { include { phase: TRAIN } }", "has no layers in the TEST phase"),
        ("hello", "is truncated, damaged or of another kind: line 1: "),
        ('layer { name: "b" pooling_param { pool: MEDIAN } }', "has no value named MEDIAN."),
        ('layer { name: "a" ', "is truncated, damaged or of another kind"),
        ("layer { name: 3 }", "is truncated, damaged or of another kind"),
        ("layers { type: MAGIC }", "is truncated, damaged or of another kind"),
        (
            'gain: 3 layer { name: "a" }',
            "has a field that this tool does not know: line 1: NetParameter has no field 'gain'",
        ),
        ("layer { relu_param " + "{ a " * 5000 + "} " * 5001, "is truncated, damaged or of another kind"),
    ],
)
def test_what_is_no_network(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"the network definition '.*net' is truncated, damaged or of another kind"):
        read_prototxt(tmp_path / "net")
    with pytest.raises(UserError, match=r"cannot read the network definition '.*none': No such file or directory"):
        read_prototxt(tmp_path / "none")


def test_comments_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b'\xef\xbb\xbf# \xd6\xd0\xce\xc4 {\nlayer { name: "a" # \xff }\n gain: 1 }')
    assert names(read_prototxt(tmp_path / "net")) == ["a"]
    (tmp_path / "net").write_bytes(b'layer { name: "\xd6\xd0" }')
    with pytest.raises(UserError, match=r"the network definition '.*net' is truncated, damaged or of another kind"):
        read_prototxt(tmp_path / "net")


def test_deploy_inputs(tmp_path: Path) -> None:
    old = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 9 layer { name: "a" }'
    new = 'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 9 } layer { name: "a" }'
    for text in (old, new):
        network = read(tmp_path, text)
        assert network.inputs == {"data": [1, 3, 8, 9]}
        source = data_source(network)
        assert (source.layer, source.shape, source.batch_size, source.images) == ("data", (3, 8, 9), 1, "")


# --- weights ----------------------------------------------------------------------------------------------------------


def assert_same(found: Blobs, expected: Blobs) -> None:
    assert list(found) == list(expected)
    for name, blobs in expected.items():
        assert [(b.shape, b.dtype.name) for b in found[name]] == [(b.shape, "float32") for b in blobs]
        for ours, theirs in zip(found[name], blobs):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["net.caffemodel", "net.caffemodel.h5", "net"])
def test_weights_round_trip(tmp_path: Path, name: str) -> None:
    blobs = tiny.blobs()
    write_weights(tmp_path / "new" / name, "net", blobs, tiny.TYPES)
    assert_same(read_weights(tmp_path / "new" / name), blobs)
    assert os.listdir(tmp_path / "new") == [name]


def test_layer_names_with_slashes(tmp_path: Path) -> None:
    blobs: Blobs = {
        "a/b/c": [np.ones(2, np.float32)],
        "a": [np.zeros((1, 3), np.float32), np.ones(1, np.float32)],
    }
    for name in ("w.h5", "w.caffemodel"):
        write_weights(tmp_path / name, "net", blobs, {"a/b/c": "Scale", "a": "InnerProduct"})
        found = read_weights(tmp_path / name)
        assert_same({key: found[key] for key in sorted(found)}, dict(sorted(blobs.items())))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("legacy_shape", [False, True])
def test_forms_of_a_caffemodel(tmp_path: Path, old: bool, double: bool, legacy_shape: bool) -> None:
    network = pb.NetParameter()
    layer = network.layers.add(name="ip") if old else network.layer.add(name="ip")
    blob = layer.blobs.add(num=1, channels=1, height=2, width=3) if legacy_shape else layer.blobs.add()
    if not legacy_shape:
        blob.shape.dim.extend([2, 3])
    (blob.double_data if double else blob.data).extend([0, 1, 2, 3, 4, 0.5])
    (tmp_path / "w").write_bytes(network.SerializeToString())
    expected = np.array([[0, 1, 2], [3, 4, 0.5]], np.float32)
    assert_same(read_weights(tmp_path / "w"), {"ip": [expected.reshape(1, 1, 2, 3) if legacy_shape else expected]})


@pytest.mark.parametrize(
    ("shape", "count"), [([2, 3], 5), ([-1, 3], 3), ([0, 1 << 62, 8], 0), ([1] * 100, 1), ([1 << 62, 1 << 62], 1)]
)
def test_blobs_that_contradict_their_shape(tmp_path: Path, shape: list[int], count: int) -> None:
    blob = pb.BlobProto(shape=pb.BlobShape(dim=shape), data=[0] * count)
    network = pb.NetParameter(layer=[pb.LayerParameter(name="ip", blobs=[blob])])
    (tmp_path / "w").write_bytes(network.SerializeToString())
    (tmp_path / "m").write_bytes(blob.SerializeToString())
    with pytest.raises(UserError, match="w'"):
        read_weights(tmp_path / "w")
    with pytest.raises(UserError, match="m'"):
        read_mean(tmp_path / "m")


def _h5(path: Path, **data_sets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in data_sets.items():
            file[name.replace("__", "/")] = value
    return path


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_hdf5_of_other_numbers(tmp_path: Path, dtype: str) -> None:
    path = _h5(tmp_path / "w.h5", data__ip__0=np.arange(12).astype(dtype), data__ip__1=np.array([1], np.float32))
    found = read_weights(path)
    assert_same(found, {"ip": [np.arange(12, dtype=np.float32), np.ones(1, np.float32)]})


def test_blobs_of_hdf5_are_ordered_by_number(tmp_path: Path) -> None:
    path = _h5(tmp_path / "w.h5", **{f"data__ip__{i}": np.array([i], np.float32) for i in range(12)})
    assert [float(blob[0]) for blob in read_weights(path)["ip"]] == list(range(12))


def test_hdf5_that_caffe_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no group 'data': Caffe did not write it"):
        read_weights(_h5(tmp_path / "a.h5", weights__ip__0=np.ones(3)))
    with pytest.raises(UserError, match="has no group 'data'"):
        read_weights(_h5(tmp_path / "b.h5", data=np.ones(3)))
    with pytest.raises(UserError, match="data set 'ip/0' holds object instead of numbers"):
        read_weights(_h5(tmp_path / "c.h5", data__ip__0="text"))


def test_hdf5_that_leads_to_other_files(tmp_path: Path) -> None:
    _h5(tmp_path / "other.h5", data__ip__0=np.ones(3))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["data"] = h5py.ExternalLink("other.h5", "data")
    with pytest.raises(UserError, match="has no group 'data'"):
        read_weights(tmp_path / "link.h5")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("data/ip/0", (3,), np.float32, external=[(str(tmp_path / "other.h5"), 0, 12)])
    with pytest.raises(UserError, match="data set 'ip/0' is stored in other files"):
        read_weights(tmp_path / "raw.h5")


def test_hdf5_bomb_of_many_pieces(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for i in range(20):
            file.create_dataset(f"data/ip/{i}", (50_000,), np.float32, chunks=(50_000,), compression="gzip")
    with pytest.raises(UserError, match=r"data set 'ip/\d+' claims to have 200000 bytes"):
        read_weights(tmp_path / "w.h5")


def test_hdf5_bomb(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("data/ip/0", (1 << 32,), np.float32, chunks=(1 << 20,), compression="gzip")
    with pytest.raises(UserError, match="data set 'ip/0' claims to have 17179869184 bytes"):
        read_weights(tmp_path / "w.h5")


@pytest.mark.parametrize("name", ["net.caffemodel", "net.caffemodel.h5"])
def test_truncated_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_weights(path, "net", tiny.blobs(), tiny.TYPES)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 9):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"the weights file '.*' is truncated, damaged or of another kind"):
            read_weights(path)
    with pytest.raises(UserError, match="cannot read the weights file"):
        read_weights(tmp_path / "none")


# --- mean -------------------------------------------------------------------------------------------------------------


def test_mean_round_trip(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (3, 4, 5)).astype(np.float32)
    write_mean(tmp_path / "m", mean)
    np.testing.assert_array_equal(read_mean(tmp_path / "m"), mean)


def test_mean_in_the_new_form(tmp_path: Path) -> None:
    blob = pb.BlobProto(shape=pb.BlobShape(dim=[2, 1, 2]), double_data=[1, 2, 3, 4])
    (tmp_path / "m").write_bytes(blob.SerializeToString())
    assert read_mean(tmp_path / "m").tolist() == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize(
    "blob",
    [
        pb.BlobProto(),
        pb.BlobProto(num=2, channels=1, height=1, width=1, data=[1, 2]),
        pb.BlobProto(num=1, channels=1, height=1, width=1, data=[float("nan")]),
    ],
)
def test_what_is_no_mean(tmp_path: Path, blob: Any) -> None:
    (tmp_path / "m").write_bytes(blob.SerializeToString())
    with pytest.raises(UserError, match=r"the mean file '.*m' does not hold a finite image"):
        read_mean(tmp_path / "m")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_files_are_replaced_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.write(path, b"one")
    assert not files.write(path, b"one")

    def fail() -> None:
        with files.replacing(path) as (temporary,):
            temporary.write_bytes(b"tw")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_what_we_write_is_caffes_own_format(tmp_path: Path) -> None:
    """Field numbers of the text form, checked through the schema."""
    write_weights(tmp_path / "w", "net", {"ip": [np.array([[1, 2]], np.float32)]}, {"ip": "InnerProduct"})
    network = pb.NetParameter.FromString((tmp_path / "w").read_bytes())
    text = 'name: "net" layer { name: "ip" type: "InnerProduct" blobs { data: 1 data: 2 shape { dim: 1 dim: 2 } } }'
    assert network == text_format.Parse(text, pb.NetParameter())
    assert pb.NetParameter.DESCRIPTOR.fields_by_name["layer"].number == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer { bogus: 1 }\n" * 50_000, "has 50000 layers, allowed are 4000"),
        ("layer { bogus: 1 }" * 50_000, "has a line of 900000 characters, allowed are 32768"),
        (("layer { bogus: 1 }" + "\n" * 200) * 4000, "has no layers|does not know|bogus"),
        ("x\n" * (1 << 19) + "x", "has 1048577 bytes, allowed are 1048576"),
        ("layer {\n" * 100_000, "maximum recursion depth"),
        ("layer " * 5000 + "{", "is truncated, damaged or of another kind: line 1: "),
        ("#\n" * 200_000 + "x: 1", "line 200001: NetParameter has no field 'x'"),
    ],
)
def test_long_prototxts_end_soon(tmp_path: Path, text: str, message: str) -> None:
    """The parser takes time that is linear in them, and so must we."""
    (tmp_path / "net").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        network = read_prototxt(tmp_path / "net")
        network.check_known(3999)
    assert time.process_time() - start < 8


def test_lines_of_fields_that_are_not_known(tmp_path: Path) -> None:
    """They are counted from the file's beginning, in whichever block they are."""
    (tmp_path / "net").write_text('layer { name: "a" }\n# {\nlayer {\n  name: "b"\n  bogus: 1 }\n')
    with pytest.raises(
        UserError,
        match="layer 'b' has a field that this tool does not know: line 5: LayerParameter has no field 'bogus'",
    ):
        read_prototxt(tmp_path / "net").check_known(1)
