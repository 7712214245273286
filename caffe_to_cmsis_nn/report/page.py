# SPDX-License-Identifier: Apache-2.0
"""Renders the results of a run as an HTML page, including pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.errors import printable
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.report.facts import QuantizerRun, changed, facts, to_json
from caffe_to_cmsis_nn.templating import TEMPLATES, templates

MOST_PICTURES = 48


def render(run: QuantizerRun, page_path: str | None, json_path: str | None, channel_order: str) -> dict[Path, bytes]:
    """The contents of the page and the JSON file by path, for those with a path."""
    values = facts(run)
    contents = {}
    if page_path:
        contents[Path(page_path)] = page(values, pictures(run, channel_order)).encode("utf-8", "replace")
    if json_path:
        contents[Path(json_path)] = to_json(values)
    return contents


def pictures(run: QuantizerRun, order: str) -> dict[int, str]:
    """The first images that changed class, as data URLs by position in the test data; `order` is "bgr" or "rgb"."""
    from PIL import Image

    row = {position: i for i, position in enumerate(run.positions.tolist())}
    urls = {}
    for entry in changed(run)[:MOST_PICTURES]:
        i = row[entry["image"]]
        pixels = run.images[i : i + 1][0].transpose(1, 2, 0)
        if pixels.shape[2] not in (1, 3) or pixels.dtype != np.uint8:
            break
        pixels = pixels[..., ::-1] if order == "bgr" else pixels
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.squeeze())).save(png, "PNG")
        urls[entry["image"]] = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return urls


def _printable(value: Any) -> Any:
    """Replaces control characters and the like in names, which come from files."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable(entry) for key, entry in value.items()}
    return list(map(_printable, value)) if isinstance(value, list) else value


def page(values: Mapping[str, Any], images: Mapping[int, str]) -> str:
    """A self-contained HTML page without scripts; `images` are data URLs by position."""
    from caffe_to_cmsis_nn.report.plots import draw

    environment = templates(
        TEMPLATES / "report", autoescape=True, q=lambda n, bits=8: "" if n is None else str(QFormat(n, bits))
    )
    shown = _printable(dict(values))
    context = {**shown, "pictures": images, "plots": draw(shown), "edges": _edges(shown["layers"])}
    return environment.get_template("page.html.jinja").render(context)


@dataclass(frozen=True)
class Edge:
    """A connection between layers (rows) that are not adjacent, drawn in a lane beside them."""

    source: int
    target: int
    lane: int


def _edges(layers: Sequence[Mapping[str, Any]]) -> list[Edge]:
    """The connections that skip layers, each in the first free lane."""
    row = {layer["name"]: i for i, layer in enumerate(layers)}
    edges: list[Edge] = []
    for target, layer in enumerate(layers):
        for source in sorted((row[name] for name in layer["inputs"]), reverse=True):
            if source == target - 1:
                continue
            taken = {e.lane for e in edges if source < e.target and e.source < target}
            edges.append(Edge(source, target, next(lane for lane in range(len(edges) + 1) if lane not in taken)))
    return edges
