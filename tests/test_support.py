# SPDX-License-Identifier: Apache-2.0
"""The table of layers in the documents is the current one."""

from __future__ import annotations

from caffe_to_cmsis_nn import layer_tables
from caffe_to_cmsis_nn.ops.identities import IDENTITIES
from caffe_to_cmsis_nn.ops.registry import ALL_KERNELS, LAYERS
from caffe_to_cmsis_nn.target import Q7
from tests.support import ROOT


def test_the_table_names_every_layer_and_kernel() -> None:
    table = layer_tables.markdown()
    named = {
        name for line in table.split("\n\n")[0].split("\n") for name in line.split(" | ")[0].strip("| ").split(", ")
    }
    assert named >= {*LAYERS, *IDENTITIES}
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


def test_the_document_holds_the_table() -> None:
    text = (ROOT / "docs" / "layers.md").read_text()
    assert text.count(layer_tables.BEGIN) == text.count(layer_tables.END) == 1
    held = text.split(layer_tables.BEGIN)[1].split(layer_tables.END)[0].strip()
    assert held == layer_tables.markdown(), (
        "paste what `python -m caffe_to_cmsis_nn.layer_tables` prints between the markers"
    )
