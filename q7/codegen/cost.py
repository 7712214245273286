# SPDX-License-Identifier: Apache-2.0
"""What a network costs on the device: memory, constants, operations; the table that is printed."""

from __future__ import annotations

from dataclasses import dataclass

from q7.codegen.boards import Options
from q7.codegen.c_text import comment
from q7.codegen.memory import MemoryPlan
from q7.kernels.base import consider
from q7.kernels.call import CNames
from q7.network.quantized import QuantizedNetwork
from q7.templating import columns


def memory_lines(plan: MemoryPlan) -> list[str]:
    """The arena as text: each buffer's bytes, and a bar of where it lies."""
    width = 64
    lines = [f"{'buffer':24} {'layers':>7} {'offset':>7} {'bytes':>7}  |0{plan.arena_bytes:>{width - 1}}|"]
    for buffer in plan.buffers:
        start = buffer.offset * width // plan.arena_bytes
        end = max(start + 1, -(-buffer.end * width // plan.arena_bytes))
        bar = " " * start + "#" * (end - start)
        lines.append(
            comment(
                f"{buffer.name[:24]:24} {f'{buffer.first}-{buffer.last}':>7} {buffer.offset:7} {buffer.size:7}  "
                f"|{bar:{width}}|"
            )
        )
    return lines


@dataclass(frozen=True)
class Totals:
    """Of one network: MACs for an image, and bytes that its data takes in flash and RAM (code and stack aside)."""

    macs: int
    flash: int
    ram: int


def constant_bytes(network: QuantizedNetwork) -> list[int]:
    """Bytes of each layer's constants."""
    names = CNames("", ("",), "", "", "", "")
    return [
        sum(array.bytes for array in integer.kernel.arrays(layer, integer.integers, names))
        for layer, integer in zip(network.graph.layers, network.layers)
    ]


def totals(network: QuantizedNetwork, plan: MemoryPlan, options: Options) -> Totals:
    """Weights that lie in RAM take flash as well, which they are copied from at start-up."""
    layers, constants = network.graph.layers, constant_bytes(network)
    weights = sum(size for layer, size in zip(layers, constants) if layer.weighted)
    ram = plan.arena_bytes + (weights if options.weights_in_ram else 0)
    return Totals(sum(layer.macs for layer in layers), sum(constants), ram)


def passed_over(network: QuantizedNetwork) -> list[str]:
    """Why faster kernels were not taken; layers with the same reasons share a line."""
    layers: dict[str, list[str]] = {}
    for layer in network.graph.layers:
        reasons = "; ".join(consider(layer.kernels, layer, network.target)[1])
        if reasons:
            layers.setdefault(reasons, []).append(layer.name)
    return [f"{', '.join(names)}: {reasons}" for reasons, names in layers.items()]


def table(network: QuantizedNetwork, plan: MemoryPlan, options: Options) -> list[str]:
    """Per layer: kernel, MACs, bytes of constants, output and scratch memory; then reasons, arena, totals."""
    rows: list[tuple[str, ...]] = [("layer", "kernel", "MACs", "weights", "output", "scratch")]
    for layer, integer, constants in zip(network.graph.layers, network.layers, constant_bytes(network)):
        scratch = plan.scratch.get(layer.name)
        sizes = (layer.macs, constants, layer.out_size, scratch.size if scratch else 0)
        rows.append((layer.name, integer.kernel.name, *map(str, sizes)))
    reasons = passed_over(network)
    total = totals(network, plan, options)
    return [
        *columns(rows, left=2),
        *(["", "Faster kernels that were passed over:", *reasons] if reasons else []),
        "",
        *memory_lines(plan),
        "",
        f"Total: {total.macs} MACs, flash {total.flash} bytes of constants, RAM {total.ram} bytes",
    ]
