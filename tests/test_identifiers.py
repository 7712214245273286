# SPDX-License-Identifier: Apache-2.0
"""Names of layers as C identifiers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from q7.emit import comment, identifiers


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
    assert "*/" not in line and "/*" not in line and "\\" not in line and "\n" not in line
