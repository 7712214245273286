# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 bits: which layers get them, what they are fitted to, and what all that reads and writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import read_weights
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.ops.activations import ReLU
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.deconvolution import Deconvolution
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.input import Input
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common, journal, weight_bits
from caffe_to_cmsis_nn.search.common import Candidate, SearchResult, Tensor, Trial
from caffe_to_cmsis_nn.search.device_objective import device_objective
from caffe_to_cmsis_nn.search.verdict import Verdict
from caffe_to_cmsis_nn.search.weight_bits import Narrowing
from caffe_to_cmsis_nn.search.weight_fitting import Fit
from caffe_to_cmsis_nn.target import S8, Target
from tests import tiny
from tests.generated import generate, make, network, on_host, predicted, stored_images
from tests.support import run_through

TARGET = Target(library=S8)


def _graph(group: int = 2) -> Graph:
    """Data, convolution, ReLU, convolution in groups, ReLU, inner product."""
    layers = (
        Input("data", (), "data", ((3, 8, 8),), mean=np.full((3, 1, 1), 128, np.float32), scale=2.0**-7),
        Convolution("conv", ("data",), "conv", ((3, 8, 8),), window=(3, 3), num_output=8),
        ReLU("relu", ("conv",), "conv", ((8, 6, 6),)),
        Convolution("groups", ("relu",), "groups", ((8, 6, 6),), window=(3, 3), num_output=8, group=group),
        ReLU("relu2", ("groups",), "groups", ((8, 4, 4),)),
        InnerProduct("ip", ("relu2",), "ip", ((8, 4, 4),), num_output=5),
    )
    rng = np.random.default_rng(0)
    weights = {
        layer.name: tuple(rng.normal(0, 0.25, shape).astype(np.float32) for shape in layer.weight_shapes())
        for layer in layers
        if layer.weighted
    }
    return Graph("net", layers, weights, "accuracy")  # type: ignore[arg-type]


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def _search(bits: str, loss: float = 0.3) -> tuple[list[Any], SearchResult]:
    """Labels are what the float network says."""
    graph, images = _graph(), _images(400)
    reference = FloatNetwork(graph, images)
    labels = reference.logits(as_trained(graph)).argmax(axis=1)
    return run_through(device_objective(graph, reference, labels, TARGET, 0.0, bits=bits, loss=loss))


def _bits(candidate: Candidate) -> dict[str, int]:
    return {name: candidate.formats[name].weight_bits for name in ("conv", "groups", "ip")}


def test_layers_without_a_kernel_for_them_keep_8_bits() -> None:
    _, found = _search("4")
    assert _bits(found.chosen) == {"conv": 4, "groups": 8, "ip": 4}
    layers = {layer.name: layer for layer in found.chosen.graph.layers}
    assert weight_bits.objection(layers["groups"], TARGET).startswith("arm_convolve_wrapper_s4 needs one group; ")
    assert weight_bits.objection(layers["conv"], TARGET) == ""
    assert weight_bits.supporting(found.chosen.graph, Target()) == [
        "conv",
        "groups",
        "ip",
    ]  # our own kernels take them all
    integers = quantize_network(found.chosen.graph, found.chosen.formats, TARGET)
    kernels = [integer.kernel.name for integer in integers if integer.integers is not None][1:]
    assert kernels == ["arm_convolve_wrapper_s4", "arm_convolve_wrapper_s8", "arm_fully_connected_s4"]
    for i in (1, 5):
        assert integers[i].integers.weights.min() >= -8 and integers[i].integers.weights.max() <= 7


@pytest.mark.parametrize(("loss", "few"), [(100, 4), (-100, 8)])
def test_mixed_bits_follow_the_loss(loss: float, few: int) -> None:
    steps, found = _search("mixed", loss)
    assert _bits(found.chosen) == {"conv": few, "groups": 8, "ip": few}
    trials = [step for step in steps if isinstance(step, Trial) and step.flash]
    assert {trial.layer for trial in trials} == {"conv", "ip"}
    assert all(trial.kept is (loss > 0) for trial in trials)
    assert all(trial.format.bits == 4 and trial.flash and trial.flash[0] < trial.flash[1] for trial in trials)
    integers = quantize_network(found.chosen.graph, found.chosen.formats, TARGET)
    constants = sum(own.constant_bytes(layer) for layer, own in zip(found.chosen.graph.layers, integers))
    assert trials[-1].flash and constants == trials[-1].flash[0 if loss > 0 else 1]


@pytest.mark.parametrize("group", [2, 8])
def test_fitted_weights_of_4_bits_are_closer_to_the_float_network_than_rounded_ones(group: int) -> None:
    """Logits on images that the fit did not see; a third of the error at most."""
    graph, images = _graph(group), _images(1200)
    formats = common.table(
        graph, {(name, tensor): QFormat(3) for name, tensor in common.tensors(graph) if tensor is not Tensor.BIAS}
    )
    names = weight_bits.supporting(graph, TARGET)
    assert names == ["conv", *["groups"] * (group == 8), "ip"]
    narrow = weight_bits.narrowed(graph, formats, names)
    fitted = Fit(graph, images[:800], TARGET).refine(narrow)
    expected = FloatNetwork(graph, images[800:]).logits(as_trained(graph))

    def error(candidate: Candidate) -> float:
        integers = quantize_network(candidate.graph, candidate.formats, TARGET)
        logits = DeviceNetwork(candidate.graph, images[800:], TARGET).logits(integers)
        y = candidate.formats["ip"].y
        assert y
        return float(np.mean((y.dequantize(logits) - expected) ** 2))

    assert error(fitted) < error(Candidate(graph, narrow)) / 3


class FakeNarrowing(Narrowing):
    """Each layer's 4 bits cost so many points, whichever others have them."""

    def __init__(self, fit: Fit, formats: Any, costs: dict[str, int]) -> None:
        super().__init__(fit, formats, NotImplemented, NotImplemented)
        self.costs = costs
        self.judged: list[list[str]] = []

    def judge(self, names: Sequence[str]) -> Verdict:
        self.judged.append([*names])
        return Verdict(np.arange(100) >= sum(self.costs[name] for name in names), np.zeros(100))

    def by_cost(self, names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        return ["ip", "conv"], {"ip": 300, "conv": 100}


@pytest.mark.parametrize(
    ("costs", "least", "chosen", "judged"),
    [
        ({"ip": 1, "conv": 1}, 98, ["conv", "ip"], [[], ["ip"], ["conv", "ip"]]),
        ({"ip": 1, "conv": 2}, 98, ["ip"], [[], ["ip"], ["conv", "ip"]]),
        ({"ip": 3, "conv": 2}, 98, ["conv"], [[], ["ip"], ["conv"]]),
        ({"ip": 3, "conv": 3}, 98, [], [[], ["ip"], ["conv"]]),
    ],
)
def test_layers_are_narrowed_one_after_the_other(
    costs: dict[str, int], least: float, chosen: list[str], judged: list[list[str]]
) -> None:
    graph = _graph()
    formats = common.table(
        graph, {(name, tensor): QFormat(4) for name, tensor in common.tensors(graph) if tensor is not Tensor.BIAS}
    )
    narrowing = FakeNarrowing(Fit(graph, _images(50), TARGET), formats, costs)
    trials, found = run_through(weight_bits.mixed(narrowing, least))
    assert (found, narrowing.judged) == (chosen, judged)
    assert [trial.kept for trial in trials] == [name in chosen for name in ("ip", "conv")]
    sizes = [trial.flash for trial in trials]
    assert sizes[0][1] - sizes[0][0] == 300 and sizes[1][1] == sizes[0]["ip" not in chosen]


def test_the_order_is_that_of_bytes_saved_for_divergence_added() -> None:
    """Of conv (216 weights), ip (640), when ip's cost is made 1000 times conv's."""
    graph = _graph()
    formats = common.table(
        graph, {(name, tensor): QFormat(4) for name, tensor in common.tensors(graph) if tensor is not Tensor.BIAS}
    )

    def order(ip: float) -> list[str]:
        def sample(layers: Sequence[Any], table: Any) -> Verdict:
            cost = 0.001 * (table["conv"].weight_bits == 4) + ip * (table["ip"].weight_bits == 4)
            return Verdict(np.ones(10, bool), np.full(10, 0.5 + cost))

        fit = Fit(graph, _images(50), TARGET)
        return Narrowing(fit, formats, lambda candidate: sample([], formats), sample).by_cost(["conv", "ip"])[0]

    assert (order(0.001), order(1.0), order(-1.0)) == (["ip", "conv"], ["conv", "ip"], ["ip", "conv"])


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged is not judged again."""
    arguments = [*tiny.write(tmp_path), "--api", "s8", "--weight_bits", "mixed", "--loss", "100"]
    assert nn_quantizer.main(arguments) == 0
    expected = (tmp_path / "net.pkl").read_bytes()
    judge = Narrowing.judge
    judged: list[list[str]] = []

    def stop(self: Narrowing, names: Sequence[str]) -> Verdict:
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append([*names])
        return judge(self, names)

    monkeypatch.setattr(Narrowing, "judge", stop)
    assert nn_quantizer.main(arguments) == 130
    assert judged[0] == [] and len(judged[1]) == 1

    def count(self: Narrowing, names: Sequence[str]) -> Verdict:
        judged.append([*names])
        return judge(self, names)

    monkeypatch.setattr(Narrowing, "judge", count)
    assert nn_quantizer.main(arguments) == 0
    assert judged[2:] == [["conv1", "ip1"]]
    assert (tmp_path / "net.pkl").read_bytes() == expected
    assert issubclass(journal.RememberedNarrowing, Narrowing)


@pytest.mark.parametrize("api", ["q7", "s8"])
def test_pickle_caffemodel_attributes_and_program(api: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*tiny.write(tmp_path), "--api", api, "--weight_bits", "4"]
    assert nn_quantizer.main(arguments) == 0
    assert "Q" in (text := capsys.readouterr().out) and ", 4 bits" in text and "Weights of 8 bits" not in text
    pickle = tmp_path / "net.pkl"
    quantized, loaded = network(pickle), nn_quantizer.Caffe_Quantizer()
    loaded.load_quant_params(str(pickle))
    blobs = read_weights(tmp_path / "quantized_net.caffemodel")
    for layer, integer in zip(quantized.graph.layers, quantized.layers):
        if layer.weighted:
            w, integers = quantized.formats[layer.name].w, integer.integers
            assert w and (w.bits, integer.kernel.weight_bits) == (4, 4)
            wanted = w.dequantize(integers.weights)
            np.testing.assert_array_equal(blobs[layer.name][0].reshape(wanted.shape), wanted)
            bits = vars(loaded)["wt_int_bits"][layer.name], vars(loaded)["wt_dec_bits"][layer.name]
            assert bits == (3 - w.fraction_bits, w.fraction_bits)
    assert quantized.outcome and quantized.outcome.weight_bits == "4"
    assert nn_quantizer.main(["--eval", str(pickle)]) == 0
    assert f"device {quantized.outcome.known.on_device:.2f} %" in capsys.readouterr().out.splitlines()[-1]
    folder = generate(pickle, tmp_path / "code", "--target", "host")
    assert "needs" not in capsys.readouterr().out  # what is not there is no reason
    assert "PASS" in make(folder, "run")
    images = stored_images(quantized, pickle, 20)
    np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--api s8 --weight_bits 4 --objective caffe",
            "--weight_bits 4 needs --objective device: the original's procedure is for weights of 8 bits",
        ),
        ("--api s8 --weight_bits 4 --loss 1", "--loss is for --weight_bits mixed, not for --weight_bits 4"),
        ("--loss 1", "--loss is for --weight_bits mixed, not for --weight_bits 8"),
        ("--api s8 --weight_bits mixed --loss -1", "--loss -1.0 must be 0 or more"),
        ("--api s8 --weight_bits mixed --loss nan", "--loss nan must be 0 or more"),
    ],
)
def test_what_is_refused(options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nn_quantizer.main([*tiny.write(tmp_path), *options.split()]) == 2
    assert capsys.readouterr().err == f"nn_quantizer: {message}\n"
    assert not (tmp_path / "net.pkl").exists()


def test_groups_are_fitted_as_layers_of_their_own() -> None:
    """Each of two groups gets the weights that its channels alone would get."""
    graph, images = _graph(), _images(300)
    formats = common.table(
        graph, {(name, tensor): QFormat(4) for name, tensor in common.tensors(graph) if tensor is not Tensor.BIAS}
    )
    fitted = Fit(graph, images, TARGET).refine(formats).graph.weights["groups"][0]
    layers = tuple(replace(x, group=1) if isinstance(x, Convolution) else x for x in graph.layers)
    w, b = graph.weights["groups"]
    for group in (slice(0, 4), slice(4, 8)):
        alone = np.zeros((8, 8, 3, 3), np.float32)
        alone[group, group] = w[group]
        one = replace(graph, layers=layers, weights={**graph.weights, "groups": (alone, b)})
        found = Fit(one, images, TARGET).refine(formats).graph.weights["groups"][0]
        np.testing.assert_array_equal(found[group, group], fitted[group])


def test_a_layer_without_such_a_kernel_keeps_eight_bits() -> None:
    up = Deconvolution(
        "up", ("x",), "up", ((4, 5, 5),), window=(4, 4), stride=(2, 2), pad=(1, 1), num_output=4, group=4
    )
    for target in (Target(), TARGET):
        assert weight_bits.objection(up, target) == "no kernel takes weights of 4 bits"
