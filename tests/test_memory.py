# SPDX-License-Identifier: Apache-2.0
"""The arena's plan, and that the figures that are printed are those of the built object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_to_cmsis_nn.plan import cost, memory, rows
from caffe_to_cmsis_nn.plan.memory import ALIGNMENT, MemoryPlan
from caffe_to_cmsis_nn.target import Core, Target
from tests import small
from tests.generated import STRICT, cross_compile, generate, network, sections

# --- properties -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeKernel:
    """What the planner asks a kernel (bytes)."""

    scratch: int
    overread: int
    works_in_place: bool
    promised: bool

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        return self.scratch

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        return self.works_in_place and (self.promised or not promised_only)


@dataclass(frozen=True)
class FakeLayer:
    """A layer and its integer counterpart at once."""

    name: str
    inputs: tuple[str, ...]
    in_shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    kernel: FakeKernel


@dataclass(frozen=True)
class FakeGraph:
    layers: tuple[FakeLayer, ...]
    outputs: tuple[str, ...]


@st.composite
def graphs(draw: st.DrawFn) -> FakeGraph:
    """Layers that read one or two before them; those that work in place do not grow."""
    layers: list[FakeLayer] = []
    for index in range(draw(st.integers(1, 12))):
        size = draw(st.integers(1, 5000))
        inputs = layers[-1:]
        if len(layers) > 1:
            inputs = draw(st.lists(st.sampled_from(layers), min_size=1, max_size=2))
        in_place = draw(st.booleans()) if inputs else False
        if in_place:
            size = min(size, *(layer.out_shape[0] for layer in inputs))
        kernel = FakeKernel(
            draw(st.sampled_from([0, 0, 1, 300, 2001])), draw(st.integers(0, 1)), in_place, draw(st.booleans())
        )
        layers.append(
            FakeLayer(
                f"layer{index}",
                tuple(layer.name for layer in inputs),
                tuple(layer.out_shape for layer in inputs),
                (size,),
                kernel,
            )
        )
    names = [layer.name for layer in layers]
    others = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    return FakeGraph(tuple(layers), tuple(dict.fromkeys([*others, names[-1]])))


def shares_memory(graph: Any, plan: MemoryPlan) -> set[frozenset[int]]:
    """Pairs of buffers (by id) of layers that work in place and those they take the memory of."""
    pairs = set()
    for layer in graph.layers:
        if layer.name in plan.in_place:
            pairs.add(frozenset((id(plan.outputs[layer.name]), id(plan.outputs[plan.in_place[layer.name]]))))
    return pairs


def source_bytes(graph: Any, name: str) -> int:
    return next(math.prod(layer.out_shape) for layer in graph.layers if layer.name == name)


@given(graphs(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_plan(graph: Any, promised_only: bool) -> None:
    plan = memory.plan(graph, graph.layers, Target(), promised_only)
    together = shares_memory(graph, plan)
    for buffer in plan.buffers:
        assert buffer.offset % ALIGNMENT == 0 <= buffer.offset
        for other in plan.buffers:
            alive_together = buffer.first <= other.last and other.first <= buffer.last
            overlap = buffer.offset < other.end and other.offset < buffer.end
            if buffer is not other and alive_together and frozenset((id(buffer), id(other))) not in together:
                assert not overlap
    assert plan.arena_bytes % ALIGNMENT == 0
    assert plan.arena_bytes == max(buffer.end for buffer in plan.buffers)
    for index, layer in enumerate(graph.layers):
        output = plan.outputs[layer.name]
        assert output.first == index
        assert output.size >= math.prod(layer.out_shape)
        assert (layer.kernel.scratch > 0) == (layer.name in plan.scratch)
        if layer.kernel.scratch:
            assert plan.scratch[layer.name].size >= layer.kernel.scratch
        for name in layer.inputs:
            source = plan.outputs[name]
            assert source.last >= index
            assert source.size >= source_bytes(graph, name) + layer.kernel.overread
        if layer.name in plan.in_place:
            taken = plan.in_place[layer.name]
            assert taken in layer.inputs
            assert layer.kernel.in_place(layer, promised_only)
            assert not any(taken in later.inputs for later in graph.layers[index + 1 :])
            assert taken not in graph.outputs
            assert output.offset == plan.outputs[taken].offset
        elif layer.kernel.in_place(layer, promised_only):
            wanted = {name for later in graph.layers[index + 1 :] for name in later.inputs} | {*graph.outputs}
            assert wanted.issuperset(layer.inputs)
    assert all(plan.outputs[name].last == len(graph.layers) for name in graph.outputs)


def test_the_rgb_kernels_read_behind_its_input_stays_in_the_arena(tmp_path: Path) -> None:
    quantized = small.quantized(tmp_path)
    plan = memory.plan(quantized.graph, quantized.layers, quantized.target)
    data = quantized.graph.input
    assert quantized.layers[1].kernel.name == "arm_convolve_HWC_q7_RGB"
    assert plan.outputs[data.name].size > math.prod(data.out_shape)


# --- figures ----------------------------------------------------------------------------------------------------------


def built(pickle: Path, folder: Path, *flags: str) -> dict[str, int]:
    """Sections (bytes) of the network alone, built for Cortex-M4: no main(), no test images, no kernels."""
    generate(pickle, folder, "--target", "mps2", "--test_images", "0", *flags)
    flags = ("-mcpu=cortex-m4", "-ffunction-sections", "-DNN_NO_MAIN", *STRICT)
    return sections(cross_compile(folder / "main.cpp", folder / "main.o", *flags))


def in_ram(found: dict[str, int]) -> int:
    return sum(size for name, size in found.items() if name.startswith((".data", ".bss")))


def in_flash(found: dict[str, int]) -> int:
    """Text and data, without the function that nobody calls, which linkers leave out."""
    flash = (".text", ".rodata", ".ARM.ex", ".data")
    return sum(size for name, size in found.items() if name.startswith(flash) and "observed" not in name)


@pytest.mark.parametrize(
    ("flags", "most_ram"), [([], 36_500), (["--no-inplace-pooling"], 41_000)], ids=["in place", "promised"]
)
def test_arms_network_is_small(flags: list[str], most_ram: int, arm_m4_pickle: Path, tmp_path: Path) -> None:
    found = built(arm_m4_pickle, tmp_path, *flags)
    assert in_ram(found) <= most_ram
    assert in_flash(found) <= 37_100


@pytest.mark.parametrize("flags", [[], ["--no-inplace-pooling"], ["--weights_in", "ram"]], ids=str)
@pytest.mark.parametrize("name", [pytest.param("lenet_pickle", marks=pytest.mark.slow), "arm_m4_pickle"])
def test_totals_are_those_of_the_built_object(
    name: str, flags: list[str], request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle = request.getfixturevalue(name)
    capsys.readouterr()
    found = built(pickle, tmp_path, *flags)
    constants = sum(size for section, size in found.items() if section.startswith((".rodata", ".data")))
    quantized = network(pickle)
    plan = rows.plan(quantized, "--no-inplace-pooling" in flags)
    total = cost.totals(quantized, plan, "ram" in flags)
    assert total.ram == pytest.approx(in_ram(found), rel=0.01)
    assert total.flash == pytest.approx(constants, rel=0.01)
    printed = f"Total: {total.macs} MACs, flash {total.flash} bytes of constants, RAM {total.ram} bytes"
    assert printed in capsys.readouterr().out


def test_what_is_printed_says_why_a_kernel_was_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(small.save(small.quantized(tmp_path), tmp_path / "small.pkl"), tmp_path / "code")
    lines = capsys.readouterr().out.splitlines()
    reasons = dict(line.split(": ", 1) for line in lines[lines.index("Faster kernels not used:") + 1 :][:4])
    pointwise = "arm_convolve_1x1_HWC_q7_fast_nonsquare needs a 1x1 kernel with stride 1 and no padding"
    assert reasons["conv1"] == pointwise  # and then comes the kernel for three channels
    assert "arm_convolve_HWC_q7_fast needs one group" in reasons["depthwise"]
    assert "arm_convolve_HWC_q7_fast_nonsquare needs a multiple of 4 input channels" in reasons["tall"]
    assert not reasons.keys() & {"data", "pool1", "1x1", "ip1"}


def test_constants_lie_in_flash_unless_asked_otherwise(tmp_path: Path) -> None:
    pickle = small.save(small.quantized(tmp_path, Target(Core.DSP)), tmp_path / "small.pkl")
    flash, ram = built(pickle, tmp_path / "flash"), built(pickle, tmp_path / "ram", "--weights_in", "ram")
    assert flash.get(".data", 0) == 0
    mean, alignment = 3, 64
    assert 0 <= ram[".data"] - (flash[".rodata"] - mean) + alignment <= 2 * alignment
