# SPDX-License-Identifier: Apache-2.0
"""Our engine against Caffe itself: blobs, accuracies and formats; and --engine caffe from end to end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.engines import pycaffe_network
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Grid, Simulation, as_trained
from caffe_to_cmsis_nn.engines.pycaffe_network import PycaffeNetwork
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.from_caffe import parse_network
from caffe_to_cmsis_nn.network.to_caffe import caffe_types
from caffe_to_cmsis_nn.pipeline import job as jobs
from caffe_to_cmsis_nn.pipeline.job import Job
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.store import record
from tests import networks, test_images, test_outputs, tiny
from tests.support import MODELS, prototxt, write_dataset

IMAGES = 20
RANDOM_NETWORKS = int(os.environ.get("RANDOM_NETWORKS", "200"))


def load_or_skip() -> Any:
    """pycaffe; most machines cannot have it, so that only REQUIRE_CAFFE makes its absence a failure."""
    try:
        return pycaffe_network.load()
    except UserError as error:
        if os.environ.get("REQUIRE_CAFFE"):
            pytest.fail(f"REQUIRE_CAFFE is set: {error}")
        pytest.skip("pycaffe cannot be imported")


@pytest.fixture
def caffe() -> Any:
    return load_or_skip()


@pytest.fixture(params=["lenet", "arm_m4"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """nn_quantizer's arguments for a trained network."""
    if request.param == "lenet":
        folder = tmp_path
        (weights,) = MODELS.glob("lenet_iter_*.caffemodel.h5")
        shutil.copy(weights, folder)
        model = MODELS / "lenet_train_test.prototxt"
    else:
        folder = request.getfixturevalue("arm_m4")
        model, (weights,) = folder / "cifar10_m4_train_test.prototxt", folder.glob("*_iter_*.caffemodel.h5")
    return ["--model", str(model), "--weights", str(folder / weights.name), "--save", str(tmp_path / "net.pkl")]


def prepare(*arguments: str) -> Job:
    return jobs.prepare(nn_quantizer.parse_arguments(list(arguments)))


def users_net(caffe: Any, job: Job, arguments: list[str], folder: Path) -> Any:
    """Caffe's network as its user builds it: all layers, its own reader of weights, images and mean."""
    model = Path(arguments[1]).read_text().replace(job.source.images, str(job.lmdb.resolve()))
    if job.source.mean_file:
        model = model.replace(job.source.mean_file, str(job.source.find_mean().resolve()))
    (folder / "absolute.prototxt").write_text(model)
    return caffe.Net(str(folder / "absolute.prototxt"), arguments[3], caffe.TEST)


def close(ours: np.ndarray, theirs: np.ndarray, terms: float = 0) -> None:
    """Equal to 1e-4, and near zero to 1e-5 of the largest value, or of the `terms` that cancelled out."""
    atol = 1e-5 * max(float(np.abs(theirs).max()), terms)
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=atol)


def compare_blobs(caffe: Any, job: Job, arguments: list[str], folder: Path, terms: float = 0) -> None:
    """Every layer with PycaffeNetwork's, and every blob with that of the network that Caffe's user would build."""
    net = users_net(caffe, job, arguments, folder)
    net.forward()
    images = job.images[: job.source.batch_size]
    ours = FloatNetwork(job.graph, images).outputs(as_trained(job.graph))
    copied = PycaffeNetwork(job.graph, images, job.prototxt).outputs(as_trained(job.graph))
    writers = {layer.blob: layer.name for layer in job.graph.layers}
    for layer in job.graph.layers:
        close(ours[layer.name], copied[layer.name], terms)
    ours[job.graph.input.name] *= job.source.scale / job.graph.input.scale  # the rest went into the weights
    for blob, writer in writers.items():
        close(ours[writer], net.blobs[blob].data, terms)


def test_blobs_of_trained_networks(caffe: Any, trained: list[str], tmp_path: Path) -> None:
    compare_blobs(caffe, prepare(*trained, "--iterations", "1"), trained, tmp_path)


def random_layers(rng: np.random.Generator) -> str:
    """Convolutions with ReLU and pooling in any order, then two inner products."""
    filler = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -0.5 max: 0.5 }'
    text, bottom = "", "data"
    for i in range(1, 4):
        kernel, stride = rng.integers(1, 4), rng.choice([1, 1, 2])
        group = int(rng.choice([1, 4])) if i > 1 else 1
        text += f"""layer {{ name: "conv{i}" type: "Convolution" bottom: "{bottom}" top: "conv{i}"
          convolution_param {{ num_output: 4 group: {group} kernel_size: {kernel} stride: {stride} pad: {kernel // 2}
            bias_term: {rng.choice(["true", "false"])} {filler} }} }}"""
        top = str(rng.choice([f"conv{i}", f"relu{i}"]))
        text += f'layer {{ name: "relu{i}" type: "ReLU" bottom: "conv{i}" top: "{top}" }}'
        bottom = f"pool{i}"
        pool, pad = [("MAX", 1), ("AVE", 0)][rng.integers(2)]
        text += f"""layer {{ name: "{bottom}" type: "Pooling" bottom: "{top}" top: "{bottom}"
          pooling_param {{ pool: {pool} kernel_size: {rng.integers(2, 4)} stride: 2 pad: {pad} }} }}"""
    return f"""{text}
layer {{ name: "drop" type: "Dropout" bottom: "{bottom}" top: "{bottom}" }}
layer {{ name: "ip1" type: "InnerProduct" bottom: "{bottom}" top: "ip1"
  inner_product_param {{ num_output: 7 transpose: {rng.choice(["true", "false"])} {filler} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "ip1" top: "ip1" }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param {{ num_output: 5 {filler} }} }}
"""


@pytest.mark.parametrize("seed", range(6))
def test_blobs_of_random_networks(caffe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path, (3, int(rng.integers(15, 25)), int(rng.integers(15, 25))), IMAGES, 5)
    scale = rng.choice(["0.0078125", "0.017"])  # the second goes into the first layer's weights
    model = prototxt(tmp_path, random_layers(rng), "ip2", f"mean_value: 120 scale: {scale} crop_size: 15", IMAGES)
    caffe.set_random_seed(seed)
    caffe.Net(str(model), caffe.TEST).save("net.caffemodel")
    arguments = ["--model", str(model), "--weights", "net.caffemodel", "--save", "net.pkl"]
    job = prepare(*arguments)
    compare_blobs(caffe, job, arguments, tmp_path)


def test_accuracy_is_caffes_to_the_image(caffe: Any, trained: list[str], tmp_path: Path) -> None:
    job = prepare(*trained)
    net = users_net(caffe, job, trained, tmp_path)
    batches = len(job.images) // job.source.batch_size
    right = sum(float(net.forward()["accuracy"]) * job.source.batch_size for _ in range(batches))
    logits = FloatNetwork(job.graph, job.images).logits(as_trained(job.graph))
    assert accuracy_caffe(logits, job.labels) / 100 * len(job.images) == pytest.approx(right, abs=0.01)


def test_what_branches_call_otherwise(caffe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types and fields that this Caffe does not know, but has under other names."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path, (3, 9, 9), IMAGES, 3)
    text = """layer { name: "d" type: "ConvolutionDepthwise" bottom: "data" top: "d"
      convolution_param { num_output: 3 kernel_size: 3 } }
    layer { name: "p" type: "Pooling" bottom: "d" top: "p"
      pooling_param { kernel_size: 2 stride: 2 ceil_mode: false } }
    layer { name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 3 } }"""
    definition = read_prototxt(prototxt(tmp_path, text, "i"))
    graph = parse_network(definition, "accuracy", data_source(definition), (3, 9, 9))
    blobs = networks.random_blobs(graph, np.random.default_rng(0))
    assert graph.layers[2].out_shape == (3, 3, 3)
    write_weights(tmp_path / "net.caffemodel", "net", blobs, caffe_types(graph))
    job = prepare("--model", "net.prototxt", "--weights", "net.caffemodel", "--save", "net.pkl")
    ours = FloatNetwork(job.graph, job.images).logits(as_trained(job.graph))
    close(ours, PycaffeNetwork(job.graph, job.images, job.prototxt).logits(as_trained(job.graph)))


def test_grids_in_any_order(caffe: Any, tmp_path: Path) -> None:
    """Trials that go back and forth, a last batch that is not full: what is kept from one to the next is right."""
    job = prepare(*tiny.write(tmp_path))
    images = np.random.default_rng(1).integers(0, 256, (120, *job.images.shape[1:]), dtype=np.uint8)
    ours, theirs = FloatNetwork(job.graph, images), PycaffeNetwork(job.graph, images, job.prototxt)
    grids = [Grid(QFormat(3)), Grid(QFormat(1)), Grid(QFormat(2), clip=False)]
    rng = np.random.default_rng(0)
    for _ in range(30):
        settings = [Simulation(*rng.choice(np.array([None, *grids]), 3)) for _ in job.graph.layers]
        settings[0] = Simulation(y=Grid(QFormat(-1)))
        close(ours.logits(settings), theirs.logits(settings))
        (logits, ranges), (their_logits, their_ranges) = ours.survey(settings), theirs.survey(settings)
        close(logits, their_logits)
        for name, ends in ranges.items():
            close(ends, their_ranges[name])


def test_runners_share_the_net_in_any_order(caffe: Any, tmp_path: Path) -> None:
    """The first of two with other weights runs after the second was made, and again after that one has run."""
    job = prepare(*tiny.write(tmp_path))
    network = PycaffeNetwork(job.graph, job.images, job.prototxt)
    ways = as_trained(job.graph), [Simulation(w=Grid(QFormat(1)), b=Grid(QFormat(0)))] * len(job.graph.layers)
    logits = [FloatNetwork(job.graph, job.images).logits(settings) for settings in ways]
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    runners = [network.runner(0, settings, job.graph.output_layers) for settings in ways]
    for which in (0, 1, 0):
        (found,) = runners[which](network.start())
        close(logits[which], found)


def test_the_caffe_objective_chooses_the_same(
    caffe: Any, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, printed = [], []
    for engine in ("onnxruntime", "caffe"):
        assert nn_quantizer.main([*trained, "--objective", "caffe", "--iterations", "10", "--engine", engine]) == 0
        network = record.load(tmp_path / "net.pkl").network
        assert network
        chosen.append(network.formats)
        printed.append(capsys.readouterr().out)
    assert chosen[0] == chosen[1]
    assert printed[0] == printed[1]


def test_the_device_objective_chooses_the_same(caffe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path)
    printed = []
    for options in ([], ["--engine", "caffe"]):
        assert nn_quantizer.main([*arguments, "--holdout", "0.5", *options]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_several_outputs_are_caffes(caffe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a deploy prototxt, by Caffe's own names; and both engines choose the same."""
    arguments = test_outputs.trained(tmp_path, test_outputs.INPUT + test_outputs.LAYERS)
    job = prepare(*arguments)
    net = caffe.Net(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"), caffe.TEST)
    net.blobs["data"].reshape(len(job.images), *test_outputs.SHAPE)
    net.blobs["data"].data[...] = (job.images.astype(np.float32) - 120) * 0.0071
    expected = net.forward()
    found = job.graph.split(FloatNetwork(job.graph, job.images).logits(as_trained(job.graph)))
    assert {*found} == {*expected} == {*test_outputs.ALL}
    for name, values in found.items():
        close(values, expected[name])
    printed = []
    for options in ([], ["--engine", "caffe"]):
        assert nn_quantizer.main([*arguments, *options]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], reason: str) -> None:
    """One sentence on stderr, exit code 2, nothing written."""
    assert nn_quantizer.main([*arguments, "--engine", "caffe"]) == 2
    out, err = capsys.readouterr()
    assert reason in err
    assert err.count("\n") == 1
    assert out == ""
    assert not Path(arguments[5]).exists()


def test_no_pycaffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "caffe", None)
    refused(tiny.write(tmp_path), capsys, "on Python 3.9, pip install -r requirements-caffe.txt")


def test_no_gpu(caffe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path)
    try:
        pycaffe_network.load(gpu=True)
    except UserError:
        refused([*arguments, "--gpu"], capsys, "a pycaffe built with CUDA")
    else:
        pytest.skip("this machine has a GPU, and a Caffe that uses it")


def test_no_lmdb(caffe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny.write(tmp_path)
    shutil.rmtree(tmp_path / "data_lmdb")
    refused(arguments, capsys, "'data_lmdb' does not exist")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('layer { name: "x" type: "Unheard" }', r"layer 'x' \(Unheard\): this Caffe has no such layer"),
        ('layer { name: "x" unheard: 1 }', "does not know a field"),
    ],
)
def test_what_caffe_would_die_of(caffe: Any, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        pycaffe_network.build(caffe, text)


def random_blobs_for(caffe: Any, model: Path, weights: Path, seed: int) -> None:
    """Weights for Caffe's network; positive ones where a variance must be."""
    rng = np.random.default_rng(seed)
    net = caffe.Net(str(model), caffe.TEST)
    kinds = dict(zip(net._layer_names, (layer.type for layer in net.layers)))
    for name, blobs in net.params.items():
        for blob in blobs:
            folded = kinds[name] in ("BatchNorm", "Scale", "Bias")
            blob.data[...] = rng.uniform(0.5, 2, blob.data.shape) if folded else rng.normal(0, 0.4, blob.data.shape)
    net.save(str(weights))


BVLC_LACKS = ("Axpy", "ReLU6", "Clip", "ShuffleChannel", "Upsample", "Normalize", "Interp")


# An image that becomes a vector, once for each of two readers.
FLAT_TWICE = """
layer { name: "e" type: "Eltwise" bottom: "data" bottom: "data" top: "e" eltwise_param { operation: MAX } }
layer { name: "r" type: "Reshape" bottom: "e" top: "r" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "relu" type: "ReLU" bottom: "r" top: "relu" }
layer { name: "c" type: "Concat" bottom: "relu" bottom: "r" top: "c" concat_param { axis: 1 } }
layer { name: "i" type: "InnerProduct" bottom: "c" top: "i" inner_product_param { num_output: 3 } }
"""


@example((FLAT_TWICE, (3, 20, 1), "i"), 0)
@given(networks.prototxts(without=BVLC_LACKS), st.integers(0, 1 << 30))
@settings(max_examples=RANDOM_NETWORKS, deadline=None)
def test_random_networks_of_all_layers(network: tuple[str, tuple[int, int, int], str], seed: int) -> None:
    """Folded normalisation, branches, groups and padded pooling: every blob is Caffe's."""
    text, shape, top = network
    caffe = load_or_skip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, shape, IMAGES, networks.CLASSES, seed)
        model, weights = (
            prototxt(folder, text, top, "mean_value: 120 scale: 0.0078125", IMAGES),
            folder / "net.caffemodel",
        )
        model.write_text(model.read_text().replace('"data_lmdb"', f'"{folder}/data_lmdb"'))
        random_blobs_for(caffe, model, weights, seed)
        arguments = ["--model", str(model), "--weights", str(weights), "--save", str(folder / "net.pkl")]
        compare_blobs(caffe, prepare(*arguments), arguments, folder, terms=1)


@pytest.mark.parametrize("form", ["pictures", "resized", "whole numbers"])
def test_caffe_reads_the_same_images(caffe: Any, form: str, tmp_path: Path) -> None:
    data = {**test_images.DATA, "resized": test_images.LISTED + " new_height: 9 new_width: 5 }"}[form]
    text = data.replace('source: "', f'source: "{tmp_path}/').replace('root_folder: "', f'root_folder: "{tmp_path}/')
    arguments = test_images.write(tmp_path, text)[:6]
    model = Path(arguments[1]).read_text()
    (tmp_path / "list.txt").write_text(
        (tmp_path / "list.txt").read_text().strip()
    )  # Caffe takes an empty line for a path
    for name in ("whole_1.h5", "whole_2.h5"):  # Caffe looks for them in the current directory
        (tmp_path / "whole.txt").write_text((tmp_path / "whole.txt").read_text().replace(name, f"{tmp_path}/{name}"))
    if form == "resized":
        source = data_source(read_prototxt(Path(arguments[1])))
        images, labels = source.reader.read(source.find_images(), 5)
    else:
        job = prepare(*arguments, "--iterations", "1")
        images, labels = job.images, job.labels
    (tmp_path / "data.prototxt").write_text(model[: model.index("\n")])
    net = caffe.Net(str(tmp_path / "data.prototxt"), caffe.TEST)
    net.forward()
    np.testing.assert_array_equal(net.blobs["data"].data, images)
    np.testing.assert_array_equal(net.blobs["label"].data.ravel(), labels)
