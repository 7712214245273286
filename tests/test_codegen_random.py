# SPDX-License-Identifier: Apache-2.0
"""Random networks of all layers: the compiled program computes every layer as the device model does."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_to_cmsis_nn.emit import render
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import lowering, proof, rows
from caffe_to_cmsis_nn.store import record
from caffe_to_cmsis_nn.store.record import Record
from caffe_to_cmsis_nn.target import LIBRARIES, OWN, Q7, S8, Core, Library, Rounding, Target
from tests.generated import check_on_host, longest_row_groups, make, predicted
from tests.networks import BEFORE_LAST, TARGETS, prototxts, quantize
from tests.support import tool

IMAGES = 3
EXAMPLES = int(os.environ.get("RANDOM_NETWORKS", "30"))
EMULATED = max(1, EXAMPLES // 12)
OWN_TARGETS = [Target(core, rounding, OWN) for core in Core for rounding in Rounding]
CORES = {"cortex-m3": Core.PLAIN, "cortex-m4": Core.DSP, "cortex-m55": Core.MVE}


def device_order(network: QuantizedNetwork, images: np.ndarray) -> np.ndarray:
    """What the device model gives, as it lies in the device's memory."""
    return known_answers.device_order(network.graph, predicted(network, images))


@given(
    prototxts(),
    st.sampled_from([*TARGETS, *OWN_TARGETS]),
    st.booleans(),
    st.sampled_from(["fast", "least", "runs"]),
    st.integers(0, 1 << 30),
    st.sampled_from([0, 0, 1, 3, BEFORE_LAST]),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_program_computes_what_the_model_predicts(
    network: tuple[str, tuple[int, int, int], str],
    target: Target,
    promised_only: bool,
    ram: str,
    seed: int,
    outputs: int,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        origin = target
        if target.library is OWN:
            origin = replace(target, library=Q7)
        elif target.library is S8 and seed % 2:  # a network for q7 kernels
            origin = Target(target.core, Rounding.TRUNCATE if seed % 4 == 1 else Rounding.NEAREST)
        quantized = quantize(folder, *network, origin, seed, outputs)
        record.save(folder / "net.pkl", Record({}, quantized))
        loaded = record.load(folder / "net.pkl").network
        assert loaded
        images = np.random.default_rng(seed).integers(0, 256, (IMAGES, *network[1]), dtype=np.uint8)
        lowered = lowering.fuse(lowering.retarget(loaded, target))
        answers = known_answers.compute(lowered, images, np.zeros(IMAGES, np.int32))
        retargeted = lowering.retarget(quantized, target)
        results = lowered.graph.join(answers.outputs)
        np.testing.assert_array_equal(results, device_order(retargeted, images))
        exchanged = {
            name
            for before, after in zip(quantized.layers, retargeted.layers)
            if before.kernel != after.kernel
            for name in (before.kernel.name, after.kernel.name)
        }
        if "arm_avgpool_s8" not in exchanged:  # rounds ties away from zero
            np.testing.assert_array_equal(results, device_order(quantized, images))
        plan = longest_row_groups(lowered, promised_only) if ram == "runs" else rows.plan(lowered, promised_only, ram)
        assert ram != "least" or plan.memory.arena_bytes <= rows.plan(lowered, promised_only).memory.arena_bytes
        np.testing.assert_array_equal(results, device_order(plan.lower(lowered), images))
        proof.prove(lowered, plan)
        check_on_host(folder, lowered, plan, answers)


ROWS = {  # a network, its images, and what its program must have
    "zeros below the source": (
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 '
        'kernel_size: 3 pad: 1 } } layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { '
        "kernel_size: 2 stride: 2 } }",
        (4, 6, 6),
        "memset(rows_at(data_rows, 6)",
    ),
    "rows of one byte": (
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 1 kernel_h: 5 '
        'kernel_w: 1 } } layer { name: "d" type: "Convolution" bottom: "c" top: "d" convolution_param { num_output: 1 '
        'kernel_h: 3 kernel_w: 1 stride: 2 } } layer { name: "p" type: "Pooling" bottom: "d" top: "p" pooling_param { '
        "kernel_h: 3 kernel_w: 1 stride: 2 } }",
        (1, 33, 1),
        "rows_add(",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_at_the_limits(case: str, tmp_path: Path) -> None:
    text, shape, needed = ROWS[case]
    text += 'layer { name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 3 } }'
    target = Target()
    lowered = lowering.fuse(quantize(tmp_path, text, shape, "i", target, seed=0))  # weights of 8 bits
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)
    answers = known_answers.compute(lowered, images, np.zeros(IMAGES, np.int32))
    check_on_host(tmp_path, lowered, longest_row_groups(lowered), answers)
    assert needed in (tmp_path / "main.cpp").read_text()


@given(
    prototxts(),
    st.sampled_from([*CORES]),
    st.sampled_from([*LIBRARIES.values(), OWN]),
    st.integers(0, 1 << 30),
    st.sampled_from([0, 0, 2, BEFORE_LAST]),
)
@settings(max_examples=EMULATED, deadline=None)
def test_boards_compute_row_by_row_what_the_model_predicts(
    network: tuple[str, tuple[int, int, int], str], core: str, library: Library, seed: int, outputs: int
) -> None:
    tool("arm-none-eabi-g++")
    tool("qemu-system-arm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = Target(CORES[core], library=library)
        origin = replace(target, library=Q7) if library is OWN else target
        lowered = lowering.fuse(lowering.retarget(quantize(folder, *network, origin, seed, outputs), target))
        images = np.random.default_rng(seed).integers(0, 256, (IMAGES, *network[1]), dtype=np.uint8)
        answers = known_answers.compute(lowered, images, np.zeros(IMAGES, np.int32))
        render.write(folder, render.render(lowered, longest_row_groups(lowered, False), CodeOptions("mps2"), answers))
        text = make(folder, "run", f"CORE={core}")
        assert f"PASS: every layer as predicted for {IMAGES} of {IMAGES} images" in text
