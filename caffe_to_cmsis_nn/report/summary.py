# SPDX-License-Identifier: Apache-2.0
"""The text that the scripts print about a quantized network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.network.quantized import Measured, OutputQuality, Quality, QuantizedNetwork
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import weight_bits
from caffe_to_cmsis_nn.templating import columns


def _format(q: QFormat | None) -> str:
    """A format with its scale (integer / value), and its bits if not 8."""
    return f"{q} ({2.0**q.fraction_bits:g})" + (f", {q.bits} bits" if q.bits != 8 else "") if q else ""


def _measured(quality: Quality | None) -> tuple[str, str]:
    """A layer's saturation and signal-to-noise ratio, empty if unknown."""
    if quality is None:
        return "", ""
    return f"{quality.at_min:.2f} / {quality.at_max:.2f} %", _decibels(quality.sqnr)


def wide(network: QuantizedNetwork) -> list[str]:
    """Why some layers have 8-bit weights although --weight_bits allows fewer."""
    reasons: dict[str, list[str]] = {}
    if network.outcome and network.outcome.weight_bits != choices.WEIGHTS_8:
        for layer in network.graph.layers:
            if layer.weighted and network.formats[layer.name].weight_bits != weight_bits.FEW:
                reason = weight_bits.objection(layer, network.target) or "4 would cost more than --loss allows"
                reasons.setdefault(reason, []).append(layer.name)
    return [f"8-bit weights in {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def table(network: QuantizedNetwork) -> list[str]:
    """The table of layers with formats: formats and scales, shifts, saturation, SQNR; then layers with 8-bit weights.

    The last part is empty unless --weight_bits allows fewer bits.
    """
    header = ("layer", "weights", "activations", "bias", "bias_lshift", "act_rshift", "saturated -128 / 127", "SQNR")
    rows: list[tuple[str, ...]] = [header]
    measured = network.outcome.layers if network.outcome else {}
    for layer, integer in zip(network.graph.layers, network.layers):
        if not (layer.own_format or layer.simulates_rounding):
            continue
        formats = network.formats[layer.name]
        shifts = integer.integers.shifts if layer.weighted else None
        rows.append(
            (
                layer.name,
                *map(_format, (formats.w, formats.y, formats.b)),
                *((str(shifts.bias_lshift), str(shifts.out_rshift)) if shifts else ("", "")),
                *_measured(measured.get(layer.name)),
            )
        )
    return [*columns(rows, left=4), *wide(network)]


def counted(images: int, held_out: bool) -> str:
    return f"{images} {'held-out ' if held_out else ''}images"


def candidates(search: Sequence[Measured]) -> list[str]:
    """The candidates of the search, as a table."""
    rows: list[tuple[str, ...]] = [("candidate", "images", "accuracy", "divergence", "")]
    for one in search:
        unit = "" if one.accuracy is None else " nats"
        divergence = "" if one.divergence is None else f"{one.divergence:.4g}{unit}"
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.2f} %"
        rows.append((one.candidate, str(one.images), accuracy, divergence, "chosen" if one.chosen else ""))
    if not any(row[2] for row in rows[1:]):
        rows = [(*row[:2], *row[3:]) for row in rows if row[3]]
    return columns(rows, left=1)


def _decibels(sqnr: float | None) -> str:
    return "-" if sqnr is None else f"{sqnr:.1f} dB"


def outputs(qualities: Mapping[str, OutputQuality]) -> list[str]:
    """The quality of each output, as a table."""
    rows = [("output", "SQNR", "cosine")]
    for name, own in qualities.items():
        rows.append((name, _decibels(own.sqnr), "-" if own.cosine is None else f"{own.cosine:.6f}"))
    return columns(rows, left=1)


def worst(qualities: Mapping[str, OutputQuality]) -> str:
    """The worst signal-to-noise ratio of the outputs."""
    least = min((own.sqnr for own in qualities.values() if own.sqnr is not None), default=None)
    return _decibels(least) + (f", the worst of {len(qualities)} outputs" if len(qualities) > 1 else "")


def of_first(top_k: int) -> str:
    """The name of a top-k accuracy."""
    return f"Accuracy of the first {top_k}"


def recorded(network: QuantizedNetwork) -> list[str]:
    """The results in the pickle, if any; the last line is the most important one."""
    outcome = network.outcome
    if not outcome:
        return []
    others = outcome.other_accuracies
    known, images = outcome.accuracy, counted(outcome.images, outcome.holdout > 0)
    if known is None:
        return [
            *candidates(outcome.search),
            "",
            *outputs(outcome.outputs),
            f"SQNR: {worst(outcome.outputs)} ({images}, {network.target})",
        ]
    return [
        *candidates(outcome.search),
        "",
        *(f"{of_first(one.top_k)}: float {one.in_float:.2f} %, device {one.on_device:.2f} %" for one in others),
        f"Loss: {known.loss:.2f} percentage points",
        f"Accuracy: float {known.in_float:.2f} %, device {known.on_device:.2f} % ({images}, {network.target})",
    ]


def describe(network: QuantizedNetwork) -> list[str]:
    """The contents of a pickle: origin, target, the table, and the recorded results."""
    lines = [f"Network: {network.graph.name or 'without a name'}, for {network.target}"]
    lines += [f"{what}: {source.name}, sha256 {source.sha256}" for what, source in network.sources.items()]
    lines.append(f"test images: {network.dataset or 'unknown'}" + (f", crop {network.crop}" if network.crop else ""))
    lines += [f"objective: {network.outcome.objective}"] if network.outcome else []
    return [*lines, "", *table(network), *(["", *found] if (found := recorded(network)) else [])]
