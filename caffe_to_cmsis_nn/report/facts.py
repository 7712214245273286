# SPDX-License-Identifier: Apache-2.0
"""The results of a run of the quantizer as plain values; docs/report.schema.json describes them."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import onnx
import onnxruntime

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.network.quantized import Outcome, QuantizedNetwork
from caffe_to_cmsis_nn.plan import cost, lowering, memory
from caffe_to_cmsis_nn.plan import rows as row_plans
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.report import statistics
from caffe_to_cmsis_nn.report.statistics import Histogram, Statistics, TensorStatistics
from caffe_to_cmsis_nn.search.common import Score, Trial

FORMAT, VERSION = "caffe-to-cmsis-nn report", 2


@dataclass(frozen=True, eq=False)
class QuantizerRun:
    """The results of a run of the quantizer; images and logits are those that accuracies were computed on."""

    command: str
    full_command: str  # with all defaults
    network: QuantizedNetwork
    class_names: Sequence[str]  # empty if the network is not a classifier
    trials: Sequence[Trial]
    statistics: Statistics
    positions: np.ndarray  # (N,) of the images in the test data
    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,)
    in_float: np.ndarray  # logits (N, classes) float32
    on_device: np.ndarray  # logits (N, classes) int8

    @property
    def classes(self) -> tuple[list[int], list[int]]:
        """The class of each image, from the float network and from the device."""
        return self.in_float.argmax(axis=1).tolist(), self.on_device.argmax(axis=1).tolist()


def _bits(q: QFormat | None) -> int | None:
    return q.fraction_bits if q else None


def _histogram(histogram: Histogram) -> dict[str, Any]:
    shares = {"float": histogram.trained, "device": histogram.device}
    return {
        "low": histogram.low,
        "width": histogram.width,
        **{what: [round(float(share), 9) for share in values] for what, values in shares.items()},
    }


def _tensor(tensor: TensorStatistics) -> dict[str, Any]:
    return {
        "at_min": tensor.at_min,
        "at_max": tensor.at_max,
        "sqnr": tensor.sqnr,
        "range": [tensor.smallest, tensor.largest],
        "histogram": _histogram(tensor.histogram),
    }


def _layers(run: QuantizerRun, network: QuantizedNetwork, plan: memory.MemoryPlan) -> list[dict[str, Any]]:
    """The layers of the lowered network."""
    measured = statistics.measured_after(run.network.graph, network.formats)
    layers = []
    for layer, integer, size in zip(network.graph.layers, network.layers, cost.constant_bytes(network)):
        own, weights = network.formats[layer.name], run.statistics.weights.get(layer.name)
        shifts = integer.integers.shifts if layer.weighted else None
        scratch = plan.scratch.get(layer.name)
        layers.append(
            {
                "name": layer.name,
                "type": layer.caffe_type,
                "inputs": list(layer.inputs),
                "shape": list(layer.out_shape),
                "description": layer.describe(),
                "kernel": integer.kernel.name,
                "macs": layer.macs,
                "constant_bytes": size,
                "scratch_bytes": scratch.size if scratch else 0,
                "own_format": bool(layer.own_format),
                "weight_bits": own.weight_bits if layer.weighted else None,
                "fraction_bits": {"weights": _bits(own.w), "bias": _bits(own.b), "activations": _bits(own.y)},
                "bias_lshift": shifts.bias_lshift if shifts else None,
                "act_rshift": shifts.out_rshift if shifts else None,
                "measured_behind": measured[layer.name],
                "activations": _tensor(run.statistics.outputs[layer.name]),
                "weights": _tensor(weights) if weights else None,
            }
        )
    return layers


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "layer": trial.layer,
        "tensor": trial.tensor.value,
        "fraction_bits": trial.format.fraction_bits,
        "accuracy": trial.score.accuracy,
        "reference_accuracy": trial.reference.accuracy,
        "divergence": trial.score.divergence,
        "reference_divergence": trial.reference.divergence,
        "images": trial.score.images,
        "kept": trial.kept,
        "reason": trial.reason,
        "given_up": trial.given_up,
    }


def _flash_and_loss(run: QuantizerRun) -> list[dict[str, Any]]:
    """Bytes of constants and loss in percentage points, with 8-bit weights and for each trial of 4-bit weights."""
    steps = [(trial, trial.flash) for trial in run.trials if trial.flash]
    points: list[tuple[str | None, int, Score, bool]] = [
        (None, flash[1], trial.reference, True) for trial, flash in steps[:1]
    ]
    points += [(trial.layer, flash[0], trial.score, trial.kept) for trial, flash in steps]
    if not points:
        return []
    assert run.network.outcome
    in_float = run.network.outcome.search[0].accuracy
    assert in_float is not None
    return [
        {"layer": layer, "flash_bytes": size, "loss": in_float - score.percent, "kept": kept}
        for layer, size, score, kept in points
    ]


def _rows(network: QuantizedNetwork) -> dict[str, Any]:
    """The plan of the fewest bytes: of each tensor that is made row by row, all rows and those in memory at most."""
    plan = row_plans.plan(network, ram=choices.RAM_LEAST)
    held = [(plan.stages[i], most) for group in plan.row_groups for i, most in zip(group.stages, group.most_rows)]
    return {
        "ram_bytes": plan.memory.arena_bytes,
        "tensors": [
            {
                "name": network.graph.layers[stage.layers[0]].name,
                "rows": stage.rows,
                "most_rows": most,
                "row_bytes": stage.held_bytes,
            }
            for stage, most in held
        ],
    }


def _confusion(run: QuantizerRun) -> list[dict[str, int]]:
    """The number of images for each pair of classes from the float network and the device."""
    pairs = Counter(zip(*run.classes))
    return [{"float": f, "device": d, "count": count} for (f, d), count in sorted(pairs.items())]


def _per_class(run: QuantizerRun) -> list[dict[str, Any]]:
    """For each class: the number of images with this label, and how many of them each network has right."""
    right = [run.labels[run.labels == np.array(found)] for found in run.classes]
    counts = [np.bincount(labels, minlength=len(run.class_names)).tolist() for labels in (run.labels, *right)]
    return [
        {"name": name, "images": images, "float": in_float, "device": on_device}
        for name, images, in_float, on_device in zip(run.class_names, *counts)
    ]


def _against_labels(run: QuantizerRun) -> list[dict[str, int]]:
    """The number of images for each pair of label and the device's class."""
    pairs = Counter(zip(run.labels.tolist(), run.classes[1]))
    return [{"label": label, "device": d, "count": count} for (label, d), count in sorted(pairs.items())]


def _outputs(network: QuantizedNetwork) -> list[dict[str, Any]]:
    """The outputs of the lowered network; their quality is only known for networks other than classifiers."""
    outcome = network.outcome
    assert outcome
    named = zip(outcome.outputs.values(), network.graph.output_layers)
    return [{"name": layer.name, "shape": list(layer.out_shape), **asdict(own)} for own, layer in named]


def _made() -> dict[str, str]:
    """The date, and versions of packages; no hash depends on these."""
    packages = {module.__name__: module.__version__ for module in (np, onnxruntime, onnx)}
    return {"date": date.today().isoformat(), "python": platform.python_version(), **packages}


def changed(run: QuantizerRun) -> list[dict[str, int]]:
    """The images with different classes in float and on the device."""
    if not run.class_names:
        return []
    classes = zip(run.positions.tolist(), run.labels.tolist(), *run.classes)
    return [{"image": i, "label": label, "float": f, "device": d} for i, label, f, d in classes if f != d]


def _origin(run: QuantizerRun) -> dict[str, Any]:
    """Which tool, command and files the report comes from."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool": caffe_to_cmsis_nn.__version__,
        "command": run.command,
        "full_command": run.full_command,
        "made": _made(),
        "name": run.network.graph.name,
        "sources": {what: asdict(source) for what, source in run.network.sources.items()},
    }


def _results(run: QuantizerRun, outcome: Outcome) -> dict[str, Any]:
    """How the network does on the test images."""
    known = outcome.accuracy
    return {
        "objective": outcome.objective,
        "images": {
            "lmdb": run.network.dataset,
            "count": len(run.images),
            "held_out": outcome.holdout > 0,
            "measured": run.statistics.images,
        },
        "accuracy": known and {"float": known.in_float, "device": known.on_device, "loss": known.loss},
        "other_accuracies": [
            {"top_k": one.top_k, "float": one.in_float, "device": one.on_device} for one in outcome.other_accuracies
        ],
    }


def _classes(run: QuantizerRun) -> dict[str, Any]:
    """Which classes the float network and the device give the images."""
    labelled = run.network.graph.classifier
    return {
        "classes": run.network.graph.result_size if labelled else None,
        "per_class": _per_class(run) if labelled else [],
        "confusion": _confusion(run) if labelled else [],
        "confusion_with_labels": _against_labels(run) if labelled else [],
        "changed": changed(run),
    }


def _memory(network: QuantizedNetwork, plan: RowPlan) -> dict[str, Any]:
    """What the generated code takes."""
    totals = cost.totals(network, plan, weights_in_ram=False)
    return {
        "macs": totals.macs,
        "flash_bytes": totals.flash,
        "ram_bytes": totals.ram,
        "buffers": [
            {"name": b.name, "offset": b.offset, "bytes": b.size, "first": b.first, "last": b.last}
            for b in plan.memory.buffers
        ],
        "by_rows": _rows(network),
    }


def facts(run: QuantizerRun) -> dict[str, Any]:
    """All results as plain values, which docs/report.schema.json describes."""
    network = lowering.fuse(run.network)
    plan, outcome = row_plans.plan(network), network.outcome
    assert outcome
    return {
        **_origin(run),
        "target": network.target.names(),
        **_results(run, outcome),
        "outputs": _outputs(network),
        "candidates": [asdict(candidate) for candidate in outcome.search],
        "layers": _layers(run, network, plan.memory),
        "trials": [_trial(trial) for trial in run.trials if trial.flash is None],
        "weight_bits": outcome.weight_bits,
        "flash_and_loss": _flash_and_loss(run),
        **_classes(run),
        "memory": _memory(network, plan),
    }


def to_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()
