# SPDX-License-Identifier: Apache-2.0
"""The proof of each memory plan: it holds for plans as they are made, and fails for those that are tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import code_gen
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan import lowering, proof, rows
from caffe_to_cmsis_nn.plan.proof import Broken, prove
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Target
from tests import small
from tests.test_rows import NETWORKS, of_prototxt


def planned(network: QuantizedNetwork, ram: int | str) -> tuple[QuantizedNetwork, RowPlan]:
    fused = lowering.fuse(network)
    return fused, rows.plan(fused, ram=ram)


@pytest.mark.parametrize("library", [Q7, S8, OWN], ids=str)
@pytest.mark.parametrize("core", Core, ids=lambda core: core.value)
def test_plans_of_a_network_with_all_kinds_of_layers(library: object, core: Core, tmp_path: Path) -> None:
    network = lowering.retarget(small.quantized(tmp_path), Target(core, library=library))  # type: ignore[arg-type]
    for ram in ("fast", "least"):
        prove(*planned(network, ram))


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_of_known_networks(name: str) -> None:
    """Row groups of many layers, with residual sums."""
    path, shape, weights, _, _ = NETWORKS[name]
    network, plan = planned(of_prototxt(path, shape, weights, Target()), "least")
    assert plan.row_groups
    prove(network, plan)


def _less_memory(plan: RowPlan) -> RowPlan:
    """4 bytes less, of the one buffer that the whole arena is for, or of what row groups are given."""
    last = max(plan.memory.buffers, key=lambda buffer: buffer.end)
    for buffer in plan.memory.buffers:
        if buffer.end == last.end:
            buffer.size -= 4
    return replace(plan, memory=replace(plan.memory, least_bytes=plan.memory.least_bytes - 4))


def _rows_dropped_too_soon(plan: RowPlan) -> RowPlan:
    """A layer that reads several rows of another one begins a row earlier."""
    stages, computed = list(plan.stages), plan.row_groups[0].stages
    i = next(s for s in computed if stages[s].readings[0].window > 1 and stages[s].readings[0].source in computed)
    reading = stages[i].readings[0]
    stages[i] = replace(stages[i], readings=(replace(reading, ahead=reading.ahead - 1), *stages[i].readings[1:]))
    return replace(plan, stages=tuple(stages))


def _larger_scratch(plan: RowPlan) -> RowPlan:
    stages = list(plan.stages)
    i = next(i for i, stage in enumerate(stages) if stage.scratch_bytes)
    stages[i] = replace(stages[i], scratch_bytes=stages[i].scratch_bytes + plan.memory.arena_bytes)
    return replace(plan, stages=tuple(stages))


@pytest.mark.parametrize("tamper", [_less_memory, _rows_dropped_too_soon, _larger_scratch])
def test_a_wrong_plan_of_rows_is_found(tamper: Callable[[RowPlan], RowPlan], tmp_path: Path) -> None:
    network, plan = planned(small.quantized(tmp_path), "least")
    with pytest.raises(Broken, match="please report it with the prototxt and the command"):
        prove(network, tamper(plan))


def test_buffers_that_meet_are_found(tmp_path: Path) -> None:
    """Each buffer moved onto each other one: the proof fails exactly where both are needed at once."""
    network, plan = planned(small.quantized(tmp_path), "fast")
    found = 0
    for buffer in plan.memory.outputs.values():
        before = buffer.offset
        for other in plan.memory.outputs.values():
            pair = {buffer.name, other.name}
            shared = any({layer, source} == pair for layer, source in plan.memory.in_place.items())
            both = buffer.first <= other.last and other.first <= buffer.last
            if buffer is not other and both and not shared and other.offset != before:
                buffer.offset = other.offset
                with pytest.raises(Broken):
                    prove(network, plan)
                found += 1
        buffer.offset = before
    assert found > 3
    prove(network, plan)


def test_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(network: QuantizedNetwork, plan: RowPlan) -> None:
        raise Broken("conv1", "overwrites data before it is read")

    monkeypatch.setattr(proof, "prove", broken)
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    assert code_gen.main(["--model", str(pickle), "--out_dir", str(tmp_path / "code")]) == 2
    assert "layer 'conv1': the memory plan overwrites data before it is read" in capsys.readouterr().err
    assert not (tmp_path / "code").exists()
