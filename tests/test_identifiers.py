# SPDX-License-Identifier: Apache-2.0
"""Names of layers as C identifiers."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_to_cmsis_nn.emit import projects, render
from caffe_to_cmsis_nn.emit.c_text import comment, identifiers
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.plan import rows
from caffe_to_cmsis_nn.store import record
from tests import tiny
from tests.generated import without_fingerprint


def test_names_that_people_use() -> None:
    names = [
        "images",
        "conv1/bn",
        "1x1_reduce",
        "inception_3a/5x5",
        "conv1_bn",
        "Conv1.BN",
        "int",
        "data",
        "é",
        "",
        "a",
    ]
    assert list(identifiers(names).values()) == [
        "data",
        "conv1_bn",
        "layer_1x1_reduce",
        "inception_3a_5x5",
        "conv1_bn_2",
        "conv1_bn_3",
        "int",
        "data_2",
        "layer",
        "layer_2",
        "a",
    ]


@given(st.lists(st.one_of(st.text(), st.from_regex(r"[aA_12/]{0,4}", fullmatch=True)), unique=True, min_size=1))
def test_identifiers_are_valid_unique_and_stable(names: list[str]) -> None:
    found = identifiers(names)
    assert list(found) == names
    assert len({identifier.upper() for identifier in found.values()}) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", identifier) for identifier in found.values())
    assert identifiers(names[:3]) == dict(list(found.items())[:3])


@given(st.text())
def test_comments_cannot_end(text: str) -> None:
    line = comment(text)
    assert not any(part in line for part in ("*/", "/*", "\\", "\n", "??/"))


NASTY = [
    "*/",
    "/*",
    "//",
    "\\",
    "\n",
    "\r",
    "\u2028",
    "\0",
    '"',
    "'",
    "??/",
    "#error",
    "${x}",
    "$(x)",
    "{{",
    "%}",
    "</script>",
    "*",
    "/",
    "é",
    "a",
    "_",
    " ",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pickle.loads(tiny.quantize(tmp_path_factory.mktemp("plain")).read_bytes())


def rendered(content: Any, path: Path, names: dict[str, str], origin: str) -> dict[str, str]:
    """The generated files of the tiny network with other names of layers and files, without their comments."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed(k): renamed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [renamed(v) for v in value]
        return names.get(value, value) if isinstance(value, str) else value

    network = {key: renamed(content["network"][key]) for key in ("formats", "weights", "outputs")}
    network["layers"] = [
        {key: renamed(value) if key in ("name", "blob", "inputs") else value for key, value in layer.items()}
        for layer in content["network"]["layers"]
    ]
    network["sources"] = {origin: {"name": origin, "sha256": origin}}
    path.write_bytes(pickle.dumps({**content, "network": {**content["network"], **network, "name": origin}}))
    loaded = record.load(path).network
    assert loaded
    plan = rows.plan(loaded)
    answers = known_answers.compute(loaded, np.zeros((1, *tiny.IMAGE), np.uint8), np.zeros(1, np.int32))
    files = {}
    for target in projects.PROJECTS:
        files.update(render.render(loaded, plan, projects.CodeOptions(target, profile=True), answers))
    texts = {name: without_fingerprint(text) for name, text in files.items()}
    return {name: re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL) for name, text in texts.items()}


@settings(max_examples=3)
@given(name=st.lists(st.sampled_from(NASTY), min_size=1, max_size=6).map("".join))
def test_names_reach_comments_alone(plain: Any, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Without comments, the code is that of a network whose names are plain, byte for byte."""
    path = tmp_path_factory.getbasetemp() / "named.pkl"
    layers = ["data", "conv1", "relu1", "pool1", "ip1"]
    nasty = {layer: name + layer for layer in layers}
    harmless = dict(zip(layers, identifiers(nasty.values()).values()))
    assert rendered(plain, path, nasty, name) == rendered(plain, path, harmless, "net")
