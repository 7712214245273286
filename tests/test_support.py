# SPDX-License-Identifier: Apache-2.0
"""The README's table of layers is the current one."""

from __future__ import annotations

import pytest

from q7 import readme_tables
from q7.layers.passthrough import IDENTITIES
from q7.layers.registry import ALL_KERNELS, LAYERS
from q7.target import Q7
from tests.support import ROOT


def test_the_table_names_every_layer_and_kernel() -> None:
    table = readme_tables.markdown()
    assert all(f"| {name} |" in table for name in (*LAYERS, *IDENTITIES))
    assert all(f"`{kernel.name}`" in table for kernel in ALL_KERNELS)
    assert "||" not in table.replace(" ", "")


def test_kernels_name_the_files_that_define_them() -> None:
    for kernel in ALL_KERNELS:
        if kernel.source_file.startswith("templates"):
            assert f"{kernel.name}(" in (ROOT / kernel.source_file).read_text()
        else:
            folder = "NN/Source" if kernel.libraries[0] is Q7 else "Source"
            assert kernel.source_file.startswith(f"{folder}/")
            assert kernel.source_file.endswith(".c")


def test_the_readme_holds_the_table() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md")
    text = readme.read_text()
    assert text.count(readme_tables.BEGIN) == text.count(readme_tables.END) == 1
    held = text.split(readme_tables.BEGIN)[1].split(readme_tables.END)[0].strip()
    assert held == readme_tables.markdown(), "paste what `python -m q7.readme_tables` prints between the markers"
