# SPDX-License-Identifier: Apache-2.0
"""Time and memory grow with the input as they must, and no faster."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caffe_to_cmsis_nn.data import pictures
from caffe_to_cmsis_nn.emit.c_text import identifiers
from caffe_to_cmsis_nn.report import plots


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Of memory that Python and numpy take meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def test_names_that_become_one_identifier() -> None:
    names = ["data", *("!" * i for i in range(1, 5001)), "layer_7"]
    start = time.process_time()
    found = identifiers(names)
    assert time.process_time() - start < 1
    assert len({*found.values()}) == len(names)
    assert (found["!" * 5000], found["layer_7"]) == ("layer_5000", "layer_7_2")


def test_resizing_and_greying_take_the_pictures_and_little_more(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    for height, width in ((3000, 2000), (250, 350), (1000, 1400)):
        with at_most(height * width * 3 / 1e6 + 30):
            pictures.resize(image, height, width)
    Image.fromarray(np.broadcast_to(image[:1], (3000, 700, 3))).save(tmp_path / "a.png")
    with at_most(3000 * 700 * 4 / 1e6 + 30):
        pictures.read(tmp_path / "a.png", color=False)


def test_blocks_of_rows_make_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block is a row, and where the last one is shorter."""
    image = np.random.default_rng(1).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    for shape in ((17, 90), (15, 20), (61, 13)):
        expected = pictures.resize(image[:, :40], *shape)
        for block in (1, 7 * shape[1]):
            monkeypatch.setattr(pictures, "BLOCK", block)
            np.testing.assert_array_equal(pictures.resize(image[:, :40], *shape), expected)


def test_a_confusion_matrix_of_many_classes() -> None:
    """Classes share cells; every image is still in one."""
    from matplotlib.figure import Figure

    pairs = [{"float": i, "device": i - i % 2, "count": 3} for i in range(5000)]
    ax = Figure().add_subplot()
    with at_most(60):
        plots._confusion(ax, pairs, "float", "float", [*map(str, range(5000))])
    shown = ax.images[0].get_array()
    assert shown is not None
    assert (shown.shape, shown.sum()) == ((500, 500), 15000)
    assert [*ax.images[0].get_extent()] == [-0.5, 4999.5, 4999.5, -0.5]
