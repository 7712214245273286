# SPDX-License-Identifier: Apache-2.0
"""Pickles that earlier versions of the tool wrote are still read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from q7.codegen import emit, rows
from q7.codegen.boards import Options
from tests import small
from tests.generated import network, predicted

DATA = Path(__file__).parent / "data"


def test_the_first_version_is_read_as_before() -> None:
    """The first version's own logits, for a network of every layer whose fields have changed since."""
    quantized = network(DATA / "version_1_kinds.pkl")
    images = np.random.default_rng(1).integers(0, 256, (50, *small.SHAPE), dtype=np.uint8)
    np.testing.assert_array_equal(predicted(quantized, images), np.load(DATA / "version_1_kinds_logits.npy"))
    plan = rows.plan(quantized)
    main = emit.render(quantized, plan, Options())["main.cpp"]
    assert all(integer.kernel.name in main for integer in quantized.layers)


def test_the_first_version_is_written_as_the_current_one(tmp_path: Path) -> None:
    quantized = network(DATA / "version_1_kinds.pkl")
    again = network(small.save(quantized, tmp_path / "again.pkl"))
    assert [type(layer) for layer in again.graph.layers] == [type(layer) for layer in quantized.graph.layers]
    assert [layer.kernel for layer in again.layers] == [layer.kernel for layer in quantized.layers]
