# SPDX-License-Identifier: Apache-2.0
"""Draws the report's figures with matplotlib, as SVG to embed in a page.

Text stays text. It comes from this module, apart from names of layers and classes. The same values give the same SVG.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from caffe_to_cmsis_nn.qformat import QFormat

INK, MUTED, GRID = "#1d2733", "#5d6b7a", "#dfe5ec"
TRAINED, DEVICE, RANGE, CLIPPED = "#8aa4c2", "#d9480f", "#e8f3ec", "#c92a2a"
RANGE_EDGE = "#2b8a3e"
TENSORS = {"weights": "#1864ab", "activations": "#d9480f", "bias": "#6741d9"}
MOST_CELLS = 500  # along each axis of a confusion matrix
MOST_LABELLED = 20  # classes up to which a confusion matrix shows names and numbers

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "q7",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings about fonts that only the browser needs."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


TIP = "tip-"


def _tip(text: str) -> str:
    """Encodes tooltip text in an SVG gid."""
    return TIP + text.encode().hex()


def _svg(size: tuple[float, float], label: str, draw: Callable[..., None], *values: Any) -> Markup:
    """One figure (size in inches), drawn by `draw(axes, *values)`; `label` is its text for screen readers.

    The page scales it with the column, within readable limits and up to its own size.
    """
    with mpl.rc_context(STYLE), _quiet():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), *values)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    view = re.search(r'viewBox="[^"]*"', text.getvalue())
    assert view
    body = text.getvalue()[text.getvalue().index("<g ") :]
    body = re.sub(r' id="[a-zA-Z.]+_\d+"', "", body)  # many figures share a page
    body = re.sub(
        rf'<g id="{TIP}([0-9a-f]*)">', lambda tip: f"<g><title>{escape(bytes.fromhex(tip[1]).decode())}</title>", body
    )
    width = f"max-width:{size[0] * 96:.0f}px;min-width:{min(size[0] * 72, 600):.0f}px"
    opening = Markup('<svg role="img" aria-label="{}" style="{}" {}>').format(label, width, Markup(view[0]))
    return opening + Markup(body)


# --- histograms -------------------------------------------------------------------------------------------------------


def _number(value: float, _: object = None) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _histogram(ax: Axes, tensor: Mapping[str, Any], q: QFormat) -> None:
    histogram = tensor["histogram"]
    trained, device = np.array(histogram["float"]), np.array(histogram["device"])
    edges = histogram["low"] + histogram["width"] * np.arange(len(trained) + 1)
    low, high = q.dequantize(np.array([q.least, q.most])).tolist()
    ax.axvspan(low, high, color=RANGE, lw=0, label="representable")
    for end in (low, high):
        ax.axvline(end, color=RANGE_EDGE, lw=1)
    ax.stairs(trained, edges, fill=True, color=TRAINED, label="float")
    outside = (edges[1:] <= low) | (edges[:-1] >= high + 2.0**-q.fraction_bits)
    if trained[outside].any():
        ax.stairs(np.where(outside, trained, 0), edges, fill=True, color=CLIPPED, label="clipped")
    ax.stairs(device, edges, color=DEVICE, lw=1.1, label="device")
    seen = np.concatenate([trained, device])
    seen = seen[seen > 0]
    ax.set_yscale("log")
    ax.set_ylim(max(seen.min(initial=1) / 2, 1e-6), 1.6)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(_number))
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.02)


# --- the sweep --------------------------------------------------------------------------------------------------------


def _change(trial: Mapping[str, Any]) -> float:
    """The change of accuracy in percentage points, or without accuracies, the decrease of the divergence in dB."""
    if trial["accuracy"] is not None:
        return float(trial["accuracy"] - trial["reference_accuracy"])
    before, now = trial["reference_divergence"], trial["divergence"]
    return 10 * math.log10(before / now) if before > 0 and now > 0 else 0.0


def _changes(trials: Sequence[Mapping[str, Any]], chosen: int) -> dict[int, float]:
    """By fraction bits: the change with each tried format, relative to the chosen one or to the search's target.

    In the search by device, trials are relative to the format kept so far. When a format is kept, earlier changes are
    shifted to be relative to it.
    """
    against_kept = trials[0]["divergence"] is not None
    changes: dict[int, float] = {chosen: 0.0} if against_kept else {}
    for trial in trials:
        change = _change(trial)
        if against_kept and trial["kept"]:
            changes = {bits: value - change for bits, value in changes.items()}
            change = 0.0
        changes[trial["fraction_bits"]] = change
    if against_kept:
        changes[chosen] = 0.0
    return dict(sorted(changes.items()))


def _why(bits: int, trial: Mapping[str, Any] | None) -> str:
    """The tooltip for a format: its result and reason; None is for the initial format."""
    if trial is None:
        return str(QFormat(bits))
    end = "kept" if trial["kept"] else "given up" if trial["given_up"] else "not kept"
    return f"{QFormat(bits)}, {end}: {trial['reason']} ({trial['images'] or 'all'} images)"


def _sweep(ax: Axes, trials: Sequence[Mapping[str, Any]], chosen: int, colour: str) -> None:
    """Draws the trials of one tensor."""
    changes = _changes(trials, chosen)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.axvline(chosen, color=RANGE_EDGE, lw=9, alpha=0.2)
    last = {trial["fraction_bits"]: trial for trial in trials}
    ax.plot([*changes], [*changes.values()], color=colour, lw=1.3, alpha=0.5)
    for n, change in changes.items():
        trial, filled = last.get(n), colour if n == chosen else "white"
        faded = 0.35 if trial and trial["given_up"] and n != chosen else 1
        ax.plot([n], [change], "o", color=colour, mfc=filled, ms=5, mew=1.3, alpha=faded, gid=_tip(_why(n, trial)))
    bits = range(min(chosen, *changes), max(chosen, *changes) + 1)
    ax.set_xlim(bits[0] - 0.5, bits[-1] + 0.5)
    ax.set_xticks(bits, [str(QFormat(n)) for n in bits])
    reach = max(0.1, *(abs(change) for change in changes.values())) * 1.2
    ax.set_ylim(
        -reach if min(changes.values()) < 0 else -0.2 * reach, reach if max(changes.values()) > 0 else 0.2 * reach
    )
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_formatter(FuncFormatter(_signed))
    ax.grid(axis="x", visible=False)


def _signed(value: float, _: object = None) -> str:
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _flash(ax: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    """Draws the loss against bytes of constants for trials of 4-bit weights; rejected trials are hollow."""
    for kept, line, face in ((True, "-", DEVICE), (False, "", "white")):
        some = [step for step in steps if step["kept"] is kept]
        sizes, losses = [step["flash_bytes"] for step in some], [step["loss"] for step in some]
        ax.plot(sizes, losses, marker="o", color=DEVICE, ms=5, ls=line, mfc=face)
    ax.set_xlabel("bytes of constants")
    ax.set_ylabel("loss, percentage points")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(_number))


# --- confusion and memory ---------------------------------------------------------------------------------------------


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _confusion(ax: Axes, pairs: Sequence[Mapping[str, int]], rows: str, of_rows: str, names: Sequence[str]) -> None:
    """Draws the number of images for each pair of classes (`rows` and "device")."""
    classes = len(names)
    together = -(-classes // MOST_CELLS)  # classes in a cell
    cells = -(-classes // together)
    counts, edge = np.zeros((cells, cells)), cells * together - 0.5
    for entry in pairs:
        counts[entry[rows] // together, entry["device"] // together] += entry["count"]
    shown, norm = np.ma.masked_equal(counts, 0), LogNorm(1, max(counts.max(), 2) * 4)
    ax.imshow(shown, cmap="Blues", norm=norm, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
    ax.set(xlabel="class on the device", ylabel=of_rows)
    ax.grid(visible=False)
    if classes > MOST_LABELLED:
        return
    short = [_short(name, 12) for name in names]
    ax.set_xticks(range(classes), short, rotation=90 if max(map(len, short)) > 2 else 0)
    ax.set_yticks(range(classes), short)
    ax.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5, visible=True)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    size = 8.5 if classes <= 10 else 6
    for row, column in np.argwhere(counts > 0):
        count = int(counts[row, column])
        dark = np.log(count + 1) > 0.55 * np.log(4 * counts.max())
        colour = "white" if dark and row == column else INK
        ax.text(column, row, str(count), ha="center", va="center", size=size, color=colour)


def _kilobytes(size: float, _: object = None) -> str:
    return f"{size / 1024:g} kB" if size else "0"


def _layers_and_bytes(ax: Axes, names: Sequence[str], top: float) -> None:
    """Sets up axes with layers from left to right, and bytes upwards."""
    ax.set_xticks(range(len(names)), [*map(_short, names)], rotation=90)
    ax.yaxis.set_major_locator(MultipleLocator(2 ** max(math.ceil(math.log2(top / 6)), 0)))
    ax.yaxis.set_major_formatter(FuncFormatter(_kilobytes))
    ax.grid(axis="x", visible=False)


def _memory(ax: Axes, values: Mapping[str, Any]) -> None:
    """Draws the memory map: layers from left to right, the arena's bytes upwards, a bar for each buffer."""
    layers, buffers = values["layers"], values["memory"]["buffers"]
    top = max(b["offset"] + b["bytes"] for b in buffers)
    for b in buffers:
        scratch = b["name"].endswith(" scratch")
        first, last = b["first"], min(b["last"], len(layers) - 1)
        ax.bar(
            first - 0.46,
            b["bytes"],
            last - first + 0.92,
            b["offset"],
            align="edge",
            color="#fff4e6" if scratch else "#dbe9f9",
            edgecolor="#e8590c" if scratch else "#1864ab",
            lw=0.8,
            alpha=0.85,  # outputs in place overlap their inputs
            gid=_tip(f"{b['name']}: {b['bytes']:,} bytes from {b['offset']:,} on"),
        )
        room = (last - first + 0.92) * 72 * _memory_size(layers)[0] * 0.88 / len(layers)
        short = "scratch" if scratch else b["name"]
        if b["bytes"] > 0.045 * top and len(short) * 4.8 < room:
            ax.text((first + last) / 2, b["offset"] + b["bytes"] / 2, short, ha="center", va="center", size=8)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_ylim(0, top * 1.02)
    _layers_and_bytes(ax, [layer["name"] for layer in layers], top)


def _rows(ax: Axes, tensors: Sequence[Mapping[str, Any]]) -> None:
    """Draws the most rows of each tensor in memory, in front of all its rows."""
    whole = [t["rows"] * t["row_bytes"] for t in tensors]
    held = [t["most_rows"] * t["row_bytes"] for t in tensors]
    ax.bar(range(len(tensors)), whole, 0.92, color="none", edgecolor=MUTED, lw=0.8, ls=":", label="all rows")
    ax.bar(
        range(len(tensors)), held, 0.92, color="#dbe9f9", edgecolor="#1864ab", lw=0.8, label="rows in memory at most"
    )
    for i, tensor in enumerate(tensors):
        ax.text(i, held[i], str(tensor["most_rows"]), ha="center", va="bottom", size=8)
    ax.legend(loc="upper right")
    _layers_and_bytes(ax, [t["name"] for t in tensors], max(whole))


def _memory_size(layers: Sequence[object]) -> tuple[float, float]:
    """The size in inches: wide enough for the layers' names, and at least as wide as a phone."""
    return min(max(3.8, 0.42 * len(layers)), 9.5), 3.6


# --- all of them ------------------------------------------------------------------------------------------------------


def _format(layer: Mapping[str, Any], tensor: str) -> QFormat:
    return QFormat(layer["fraction_bits"][tensor], layer["weight_bits"] if tensor == "weights" else 8)


def _histograms(layers: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Markup]:
    """The histograms of tensors with their own format, by (layer, tensor)."""
    return {
        (name, tensor): _svg(
            (3.6, 1.75), f"Histogram of the {tensor}", _histogram, layer[tensor], _format(layer, tensor)
        )
        for name, layer in layers.items()
        for tensor in ("weights", "activations")
        if layer[tensor] and (tensor == "weights" or layer["own_format"])
    }


def _sweeps(layers: Mapping[str, Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The plots of trials for each tensor that was searched, in network order."""
    places = [(name, tensor) for name in layers for tensor in TENSORS]

    def place(trial: Mapping[str, Any]) -> int:
        return places.index((trial["layer"], trial["tensor"]))

    sweeps = []
    for index, some in groupby(sorted(trials, key=place), place):
        own = [*some]
        name, tensor = places[index]
        bits = layers[name]["fraction_bits"][tensor]
        if tensor == "weights":  # formats are tried with 8 bits
            bits += 8 - layers[name]["weight_bits"]
        label = f"{'Closeness' if own[0]['accuracy'] is None else 'Accuracy'} against the format of the {tensor}"
        figure = _svg((3.6, 1.7), label, _sweep, own, bits, TENSORS[tensor])
        sweeps.append({"layer": name, "tensor": tensor, "figure": figure, "bits": bits})
    return sweeps


def _confusions(values: Mapping[str, Any]) -> dict[str, Markup]:
    """The confusion matrices of a classifier: device against float network, and device against labels."""
    names, size = [one["name"] for one in values["per_class"]], (4.4, 4.2)
    if not names:
        return {}
    with_float, with_labels = (f"Confusion matrix of the {rows} and the device" for rows in ("float network", "labels"))
    counts, label_counts = values["confusion"], values["confusion_with_labels"]
    return {
        "confusion": _svg(size, with_float, _confusion, counts, "float", "class of the float network", names),
        "against_labels": _svg(size, with_labels, _confusion, label_counts, "label", "label", names),
    }


def draw(values: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of a report, from the values of `facts`."""
    layers = {layer["name"]: layer for layer in values["layers"]}
    tensors, steps = values["memory"]["by_rows"]["tensors"], values["flash_and_loss"]
    rows = "Rows in memory at most, against all rows"
    return {
        "histograms": _histograms(layers),
        "sweeps": _sweeps(layers, values["trials"]),
        "flash": _svg((4.6, 2.6), "Flash against loss", _flash, steps) if steps else None,
        **_confusions(values),
        "memory": _svg(_memory_size(values["layers"]), "Memory map over time", _memory, values),
        "rows": _svg(_memory_size(tensors), rows, _rows, tensors) if tensors else None,
    }
