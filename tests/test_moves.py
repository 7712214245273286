# SPDX-License-Identifier: Apache-2.0
"""Layers that move elements, and those along an axis; random networks have more of them (test_codegen_random.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.ops.moves import MOST_LOOPS, MoveLoops
from caffe_to_cmsis_nn.ops.reduction import Ratio
from caffe_to_cmsis_nn.ops.softmax import Exponentials
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import Target
from tests.cases import conv, ip, layer
from tests.networks import quantize

NHWC = "permute_param { order: 0 order: 2 order: 3 order: 1 }"


def calls(folder: Path, layers: str, bottom: str) -> dict[str, tuple[str, bool]]:
    """Kernels of the layers after `c`, as they are generated, and whether nothing moves."""
    text = conv("num_output: 4 kernel_size: 3", name="c") + layers + ip("num_output: 3", bottom=bottom, name="i")
    network = lowering.fuse(lowering.retarget(quantize(folder, text, (3, 8, 9), "i", Target(), 0), Target()))
    pairs = zip(network.graph.layers[2:-1], network.layers[2:-1])
    return {one.name: (own.kernel.name, own.kernel.in_place(one, False)) for one, own in pairs}


def test_the_order_of_detectors_is_free(tmp_path: Path) -> None:
    """An image lies in the device's memory as Permute and Flatten would have it."""
    text = layer("Permute", NHWC, bottom="c", name="p") + layer("Flatten", bottom="p", name="f")
    assert calls(tmp_path, text + layer("PReLU", bottom="f", name="r"), "r") == {
        "f": ("move_q7", True),
        "r": ("prelu_q7", True),
    }


def test_moves_become_one(tmp_path: Path) -> None:
    """ShuffleNet's shuffle as some converters write it, and one that others read in between."""
    five = layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 6 dim: 7 } }", bottom="c", name="a")
    five += layer("Permute", "permute_param { order: 0 order: 2 order: 1 }", bottom="a", name="b")
    five += layer("Reshape", "reshape_param { shape { dim: 0 dim: 4 dim: 6 dim: 7 } }", bottom="b", name="d")
    assert calls(tmp_path, five, "d") == {"d": ("move_q7", False)}
    two = layer("Permute", NHWC, bottom="c", name="p") + layer("Permute", NHWC, bottom="p", name="q")
    two += layer("Concat", bottom="p p", name="k") + layer("Flatten", bottom="q", name="f")
    two += layer("Flatten", bottom="k", name="g") + layer("Concat", bottom="f g", name="e")
    assert [*calls(tmp_path, two, "e")] == ["p", "k", "f", "g", "e"]


@pytest.mark.parametrize(
    ("positions", "loops"),
    [
        ([0, 1, 2, 3], MoveLoops(0, (4,), (1,))),
        ([5], MoveLoops(5, (), ())),
        ([3, 2, 1, 0], MoveLoops(3, (4,), (-1,))),
        ([0, 0, 4, 4, 1, 1, 5, 5], MoveLoops(0, (2, 2, 2), (1, 4, 0))),
        ([1, 2, 3, 4, 7, 8, 9, 10], MoveLoops(1, (2, 4), (6, 1))),
    ],
)
def test_loops_that_give_positions(positions: list[int], loops: MoveLoops) -> None:
    assert MoveLoops.find(np.array(positions)) == loops


def test_no_loops_for_uneven_positions() -> None:
    assert len(MoveLoops.find(np.array([0, 1, 3, 2])).counts) > MOST_LOOPS


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1 << 20])
@pytest.mark.parametrize("fraction_bits", [-3, 0, 4, 9])
def test_exponentials_stay_within_32_bits(count: int, fraction_bits: int) -> None:
    """So does each quotient's numerator, 128 * exp(x) + sum / 2; no entry is further than half a unit from exp."""
    table = Exponentials.of(fraction_bits, count).table.astype(np.int64)
    total = int(table[0]) * count
    assert total < 1 << 32 and int(table[0]) * 128 + total // 2 < 1 << 32
    exact = np.exp(-np.arange(256) * 2.0**-fraction_bits) * table[0]
    assert abs(table - exact).max() <= 0.5


@pytest.mark.parametrize("factor", [0, 1, -1, 1 / 3, 1e-9, -70000.0, 2**-30])
def test_ratios_are_near(factor: float) -> None:
    ratio = Ratio.fit(factor)
    assert abs(ratio.multiplier) < 1 << 15 and 1 <= ratio.rshift <= 46
    limited = max(min(factor, 16383.5), -16383.5)
    assert abs(ratio.multiplier * 2.0**-ratio.rshift - limited) <= abs(limited) * 2**-14 + 2**-47
