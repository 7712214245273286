# SPDX-License-Identifier: Apache-2.0
"""Pickles that earlier versions of the tool wrote are still read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from q7.codegen import emit, rows
from q7.codegen.boards import Options
from q7.layers.windowed import AveragePooling
from tests import small
from tests.generated import network, predicted
from tests.test_device import ArmAveragePool

DATA = Path(__file__).parent / "data"


def test_the_first_version_is_read_as_before() -> None:
    """The first version's own logits, for a network of every layer whose fields have changed since.

    It called Arm's average pooling.
    """
    quantized = network(DATA / "version_1_kinds.pkl")
    images = np.random.default_rng(1).integers(0, 256, (50, *small.SHAPE), dtype=np.uint8)
    layers = tuple(
        replace(own, kernel=ArmAveragePool("arm_avepool_q7_HWC")) if type(layer) is AveragePooling else own
        for layer, own in zip(quantized.graph.layers, quantized.layers)
    )
    logits = predicted(replace(quantized, layers=layers), images)
    np.testing.assert_array_equal(logits, np.load(DATA / "version_1_kinds_logits.npy"))
    plan = rows.plan(quantized)
    main = emit.render(quantized, plan, Options())["main.cpp"]
    assert all(integer.kernel.name in main for integer in quantized.layers)


def test_the_first_version_is_written_as_the_current_one(tmp_path: Path) -> None:
    quantized = network(DATA / "version_1_kinds.pkl")
    again = network(small.save(quantized, tmp_path / "again.pkl"))
    assert [type(layer) for layer in again.graph.layers] == [type(layer) for layer in quantized.graph.layers]
    assert [layer.kernel for layer in again.layers] == [layer.kernel for layer in quantized.layers]
