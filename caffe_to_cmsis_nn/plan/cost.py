# SPDX-License-Identifier: Apache-2.0
"""The costs of a network on the device: memory, constants, operations; and the printed table."""

from __future__ import annotations

from dataclasses import dataclass

from caffe_to_cmsis_nn.kernels import instructions
from caffe_to_cmsis_nn.kernels.base import consider
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.plan.rows import RowGroup, RowPlan
from caffe_to_cmsis_nn.target import OWN, Core
from caffe_to_cmsis_nn.templating import columns


def row_group_lines(network: QuantizedNetwork, plan: RowPlan, group: RowGroup) -> list[str]:
    """Text about a row group's memory: for each stage, the most rows held at once, and the bytes of each."""
    layers, stages = network.graph.layers, plan.stages
    names = [f"{layers[stages[i].layers[0]].name}" for i in (group.stages[0], group.stages[-1])]
    lines = [f"Row by row, {names[0]} to {names[1]}: {group.bytes} bytes at most. Rows in memory, and bytes of each:"]
    for row_buffer, most in zip(group.row_buffers, group.most_rows):
        stage = stages[row_buffer.stage]
        what = f"all {stage.rows} at first" if row_buffer.stage == group.source else f"{most} of {stage.rows}"
        lines.append(f"{layers[stage.layers[0]].name[:24]:24} {what:>18} {stage.held_bytes:>7}")
    return lines


def memory_lines(network: QuantizedNetwork, rows: RowPlan) -> list[str]:
    """The arena as text: each buffer with a bar for its place, then the row groups."""
    width, plan = 64, rows.memory
    lines = [f"{'buffer':24} {'layers':>7} {'offset':>7} {'bytes':>7}  |0{plan.arena_bytes:>{width - 1}}|"]
    for buffer in plan.buffers:
        start = buffer.offset * width // plan.arena_bytes
        end = max(start + 1, -(-buffer.end * width // plan.arena_bytes))
        bar = " " * start + "#" * (end - start)
        layers = f"{buffer.first}-{buffer.last}"
        lines.append(f"{buffer.name[:24]:24} {layers:>7} {buffer.offset:7} {buffer.size:7}  |{bar:{width}}|")
    return [*lines, *(line for group in rows.row_groups for line in ["", *row_group_lines(network, rows, group)])]


@dataclass(frozen=True)
class Totals:
    """MACs per image, and bytes of data in flash and RAM, without code and stack."""

    macs: int
    flash: int
    ram: int


def constant_bytes(network: QuantizedNetwork) -> list[int]:
    """The bytes of each layer's constants."""
    return [integer.constant_bytes(layer) for layer, integer in zip(network.graph.layers, network.layers)]


def totals(network: QuantizedNetwork, plan: RowPlan, weights_in_ram: bool) -> Totals:
    """The network's totals; weights in RAM also count as flash, from where they are copied at start-up."""
    layers, constants = network.graph.layers, constant_bytes(network)
    weights = sum(size for layer, size in zip(layers, constants) if layer.weighted)
    ram = plan.memory.arena_bytes + (weights if weights_in_ram else 0)
    return Totals(sum(layer.macs for layer in layers), sum(constants), ram)


def passed_over(network: QuantizedNetwork) -> list[str]:
    """Why faster kernels are not used, one line per reason; empty for this tool's kernels, one for each layer type."""
    if network.target.library is OWN:
        return []
    layers: dict[str, list[str]] = {}
    for layer, held in zip(network.graph.layers, network.layers):
        bits = network.formats[layer.name].weight_bits
        if held.kernel.header and bits < 8:
            continue
        reasons = "; ".join(consider(layer.kernels, layer, network.target, bits)[1])
        if reasons:
            layers.setdefault(reasons, []).append(layer.name)
    return [f"{', '.join(names)}: {reasons}" for reasons, names in layers.items()]


def _outputs(plan: RowPlan) -> dict[int, str]:
    """For layers that run row by row (indices): the most rows held at once, and the bytes of each."""
    found = {}
    for group in plan.row_groups:
        most = {row_buffer.stage: rows for row_buffer, rows in zip(group.row_buffers, group.most_rows)}
        for i in group.stages:
            first, *others = plan.stages[i].layers
            found.update({first: f"{most[i]} x {plan.stages[i].held_bytes}", **dict.fromkeys(others, "in place")})
    return found


def instruction_estimates(network: QuantizedNetwork) -> dict[str, float]:
    """Estimated instructions by layer, if known; only for networks with this tool's weighted kernels on DSP cores."""
    if network.target.core is not Core.DSP:
        return {}
    pairs = list(zip(network.graph.layers, network.layers))
    found = {layer.name: instructions.estimate(held.kernel, layer) for layer, held in pairs}
    if not any(layer.weighted and held.kernel.header and found[layer.name] for layer, held in pairs):
        return {}
    return {name: count for name, count in found.items() if count is not None}


def _rounded(instructions: float) -> str:
    """Rounds an estimate to two digits."""
    return f"{float(f'{instructions:.2g}'):.0f}"


def table(network: QuantizedNetwork, plan: RowPlan, weights_in_ram: bool) -> list[str]:
    """The table that code_gen.py prints: a line per layer, faster kernels not used, the arena, and totals.

    For this tool's kernels, it includes estimated instructions.
    """
    network = plan.lower(network)
    estimates = instruction_estimates(network)
    rows: list[list[str]] = [["layer", "kernel", "MACs", "weights", "output", "scratch"]]
    outputs = _outputs(plan)
    scratch = {
        plan.stages[i].layers[0]: plan.stages[i].scratch_bytes for group in plan.row_groups for i in group.stages
    }
    for i, (layer, integer, constants) in enumerate(zip(network.graph.layers, network.layers, constant_bytes(network))):
        buffer = plan.memory.scratch.get(layer.name)
        output, own_scratch = outputs.get(i, layer.out_size), scratch.get(i, buffer.size if buffer else 0)
        rows.append([layer.name, integer.kernel.name, *map(str, (layer.macs, constants, output, own_scratch))])
    if estimates:
        counts = [estimates.get(layer.name) for layer in network.graph.layers]
        for row, cell in zip(rows, ["instructions", *("" if n is None else _rounded(n) for n in counts)]):
            row.insert(3, cell)
    reasons = passed_over(network)
    total = totals(network, plan, weights_in_ram)
    less = plan.memory.arena_bytes - plan.least_bytes
    return [
        *columns(rows, left=2),
        *(["", "Faster kernels not used:", *reasons] if reasons else []),
        "",
        *memory_lines(network, plan),
        "",
        *([f"With --ram least, the layers would take {plan.least_bytes} bytes"] if less > 0 else []),
        *([f"Estimated instructions per image: {_rounded(sum(estimates.values()))}"] if estimates else []),
        f"Total: {total.macs} MACs, flash {total.flash} bytes of constants, RAM {total.ram} bytes",
    ]
