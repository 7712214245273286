# SPDX-License-Identifier: Apache-2.0
"""The README's table of layers is the current one."""

from __future__ import annotations

import pytest

from q7 import kernels, support
from q7.layers import IDENTITIES, LAYERS
from tests.support import ROOT


def test_the_table_names_every_layer_and_kernel() -> None:
    table = support.markdown()
    assert all(f"| {name} |" in table for name in (*LAYERS, *IDENTITIES))
    assert all(f"`{kernel.name}`" in table for kernel in kernels.ALL)
    assert "||" not in table.replace(" ", "")


def test_the_readme_holds_the_table() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md")
    text = readme.read_text()
    assert text.count(support.BEGIN) == text.count(support.END) == 1
    held = text.split(support.BEGIN)[1].split(support.END)[0].strip()
    assert held == support.markdown(), "paste what `python -m q7.support` prints between the markers"
