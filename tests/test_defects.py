# SPDX-License-Identifier: Apache-2.0
"""Small networks, each of which a plan or a list of files once got wrong: whole, row by row and with every library.

The portable kernels are as dangerous as Arm's, and every image finds the arena as no image left it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.engines.known_answers import KnownAnswers
from caffe_to_cmsis_nn.network.graph import mark_shared
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import lowering, rows
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Target
from tests import small
from tests.generated import check_on_host, longest_row_groups, make
from tests.support import tool

IMAGES = 3
CORES = {"cortex-m3": Core.PLAIN, "cortex-m4": Core.DSP, "cortex-m55": Core.MVE}


def convolution(name: str, bottom: str, param: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ {param} }} }}\n"
    )


def pooling(name: str, bottom: str, param: str) -> str:
    return f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}" pooling_param {{ {param} }} }}\n'


@dataclass(frozen=True)
class Defect:
    """Layers before an inner product, the images' shape, and the blob that the inner product reads."""

    layers: str
    shape: tuple[int, int, int]
    top: str
    cut: bool = False  # the network ends with the blob, and is no classifier
    zero: tuple[str, int, int] | None = None  # a layer, an axis of its windows, and where these are zero along it


DEFECTS = {
    "scratch memory after rows of odd length": Defect(
        convolution("a", "data", "num_output: 6 kernel_size: 5 pad: 2")
        + convolution("b", "data", "num_output: 7 kernel_size: 3 pad: 1")
        + 'layer { name: "c" type: "Concat" bottom: "a" bottom: "b" top: "c" }\n'
        + pooling("p", "c", "pool: MAX kernel_size: 4 stride: 3")
        + convolution("d", "p", "num_output: 13 group: 13 kernel_size: 4 stride: 3 pad: 2"),
        (3, 39, 39),
        "d",
    ),
    "scratch memory after a picture of odd rows": Defect(
        convolution("a", "data", "num_output: 20 kernel_size: 3")
        + pooling("p", "a", "pool: MAX kernel_size: 3 stride: 2")
        + convolution("b", "p", "num_output: 6 kernel_size: 3 pad: 1")
        + pooling("q", "b", "pool: MAX kernel_size: 3 stride: 2"),
        (1, 23, 23),
        "q",
    ),
    "zero columns at the left, then an overhang at the right": Defect(
        convolution("a", "data", "num_output: 4 kernel_size: 1")
        + convolution("b", "a", "num_output: 8 kernel_size: 4 stride: 2 pad: 1"),
        (3, 12, 12),
        "b",
        True,
        ("b", 3, 0),
    ),
    "zero rows at the top, then an overhang at the bottom": Defect(
        convolution("a", "data", "num_output: 4 kernel_size: 1")
        + convolution("b", "a", "num_output: 8 kernel_size: 4 stride: 2 pad: 1"),
        (3, 12, 12),
        "b",
        True,
        ("b", 2, 0),
    ),
    "padding of 2 in front of a run": Defect(
        convolution("a", "data", "num_output: 4 kernel_size: 1")
        + convolution("b", "data", "num_output: 4 kernel_size: 5 pad: 2")
        + 'layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "e" }\n'
        + pooling("p", "e", "pool: MAX kernel_size: 2 stride: 2"),
        (4, 16, 16),
        "p",
    ),
    "rows that only consist of padding": Defect(
        convolution("a", "data", "num_output: 8 kernel_size: 3 pad: 1")
        + convolution("b", "a", "num_output: 8 kernel_size: 1 pad: 2")
        + convolution("c", "b", "num_output: 4 kernel_size: 3 stride: 2"),
        (3, 8, 8),
        "c",
    ),
    "a run makes the only output": Defect(
        convolution("a", "data", "num_output: 8 kernel_size: 3 pad: 1")
        + convolution("b", "a", "num_output: 2 kernel_size: 3 pad: 1"),
        (3, 12, 12),
        "b",
        True,
    ),
    "one row with padding above and below": Defect(
        convolution("a", "data", "num_output: 4 kernel_size: 1 pad: 1"), (4, 1, 9), "a"
    ),
    "one row, a wide kernel, padding above and below": Defect(
        convolution("a", "data", "num_output: 4 kernel_h: 1 kernel_w: 3 pad: 1"), (4, 1, 9), "a"
    ),
    "one cell with padding": Defect(convolution("a", "data", "num_output: 4 kernel_size: 1 pad: 1"), (4, 1, 1), "a"),
    "one cell with padding at the sides": Defect(
        convolution("a", "data", "num_output: 4 kernel_size: 1 pad_h: 0 pad_w: 2"), (4, 1, 1), "a"
    ),
    "depthwise with more padding than kernel": Defect(
        convolution("a", "data", "num_output: 5 kernel_size: 3 pad: 1")
        + convolution("b", "a", "num_output: 5 group: 5 kernel_h: 1 kernel_w: 2 stride: 3 pad: 3"),
        (3, 8, 8),
        "b",
    ),
    "no kernel of the library": Defect(
        convolution("a", "data", "num_output: 6 group: 3 kernel_size: 3")
        + pooling("p", "a", "pool: AVE kernel_size: 2 stride: 2"),
        (3, 8, 8),
        "p",
        True,
    ),
}


# Kernels that differ on a computer; whole layers, where s8 kernels alone went wrong, are run for these alone. Of the
# two kinds of cores without MVE, each defect has one with each library, by turns; the others are slow.
S8_TARGETS = [Target(core, library=S8) for core in Core]
BY_ROWS = [*S8_TARGETS, Target(Core.DSP), Target(Core.PLAIN), Target(library=OWN)]
WHOLE = [name for name in DEFECTS if name.startswith(("one ", "depthwise"))]
ALL = [(name, target, "runs", 8) for name in DEFECTS for target in BY_ROWS]
ALL += [(name, target, "fast", bits) for name in WHOLE for target in S8_TARGETS for bits in (4, 8)]


def _has_a_turn(name: str, target: Target, plan: str, bits: int) -> bool:
    by_turns = (Core.DSP, Core.PLAIN)[([*DEFECTS].index(name) + (target.library is Q7) + (bits == 4)) % 2]
    return target.core in (Core.MVE, by_turns) or target.library is OWN


CASES = [case if _has_a_turn(*case) else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]


def _with_zeros(network: QuantizedNetwork, name: str, axis: int, where: int) -> QuantizedNetwork:
    """The network where a layer's windows are zero at one place along an axis."""
    layers = list(network.layers)
    index = next(i for i, layer in enumerate(network.graph.layers) if layer.name == name)
    weights = np.moveaxis(layers[index].integers.weights.copy(), axis, 0)
    weights[where] = 0
    changed = replace(layers[index].integers, weights=np.moveaxis(weights, 0, axis))
    layers[index] = replace(layers[index], integers=changed)
    return replace(network, layers=tuple(layers))


def without_last(network: QuantizedNetwork) -> QuantizedNetwork:
    """The network that ends with what its last layer reads."""
    *kept, last = network.graph.layers
    layers = mark_shared(kept, last.inputs)
    graph = replace(network.graph, layers=layers, outputs=last.inputs, classifier=False)
    return replace(network, graph=graph, layers=network.layers[:-1])


def lowered(
    defect: Defect, target: Target, plan: str, bits: int, folder: Path
) -> tuple[QuantizedNetwork, RowPlan, KnownAnswers]:
    """The network with its plan, and what the device model predicts."""
    last = (
        f'layer {{ name: "last" type: "InnerProduct" bottom: "{defect.top}" top: "last" '
        "inner_product_param { num_output: 3 } }"
    )
    origin = replace(target, library=Q7) if target.library is OWN else target
    quantized = small.quantized(folder, origin, defect.layers + last, "last", defect.shape, bits)
    if defect.cut:
        quantized = without_last(quantized)
    if defect.zero:
        quantized = _with_zeros(quantized, *defect.zero)
    network = lowering.fuse(lowering.retarget(quantized, target))
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *defect.shape), dtype=np.uint8)
    answers = known_answers.compute(network, images, np.zeros(IMAGES, np.int32))
    return network, longest_row_groups(network) if plan == "runs" else rows.plan(network, ram=plan), answers


@pytest.mark.parametrize(("name", "target", "plan", "bits"), CASES, ids=str)
def test_programs_compute_what_is_predicted(name: str, target: Target, plan: str, bits: int, tmp_path: Path) -> None:
    check_on_host(tmp_path, *lowered(DEFECTS[name], target, plan, bits, tmp_path))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", ["a run makes the only output", "scratch memory after a picture of odd rows"])
def test_boards_compute_what_is_predicted(name: str, core: str, tmp_path: Path) -> None:
    tool("arm-none-eabi-g++")
    tool("qemu-system-arm")
    network, plan, answers = lowered(DEFECTS[name], Target(CORES[core], library=S8), "least", 8, tmp_path)
    render.write(tmp_path, render.render(network, plan, CodeOptions("mps2"), answers))
    assert "PASS" in make(tmp_path, "run", f"CORE={core}", "OPTIMIZE=-O1")
