# SPDX-License-Identifier: Apache-2.0
"""The layers as the templates print them: constants, macros and calls, whole or row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caffe_to_cmsis_nn.emit.c_text import comment, identifiers
from caffe_to_cmsis_nn.emit.projects import CodeOptions
from caffe_to_cmsis_nn.kernels.base import Array
from caffe_to_cmsis_nn.kernels.call import CNames, Statement
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.plan.cost import row_group_lines
from caffe_to_cmsis_nn.plan.rows import RowPlan
from caffe_to_cmsis_nn.plan.schedule import RowBuffer, RowGroup
from caffe_to_cmsis_nn.plan.stages import Reading, Stage


@dataclass(frozen=True)
class Step:
    """One layer in the generated code."""

    index: int
    name: str  # for printing, without the network's prefix
    identifier: str
    comment: str
    defines: Mapping[str, int]
    calls: Sequence[Statement]
    last_calls: Sequence[Statement]  # that turn complete sums into the output, if the layer adds up rows
    arrays: Sequence[Array]
    storage: str  # C storage class of the arrays
    bytes: int  # in its output, or in a row of it

    @property
    def macro(self) -> str:
        return self.identifier.upper()


@dataclass(frozen=True)
class RowStep:
    """The layers that compute a row of one stage; named after the first of them."""

    steps: Sequence[Step]
    row_buffer: int  # index of its row buffer
    rows: int
    row_bytes: int  # in memory
    zeros: RowBuffer  # its rows of zeros above and below
    readings: Sequence[tuple[str, Reading, int]]  # source, rows to read, and the source's rows including zeros
    wanted: Mapping[str, Sequence[tuple[str, int, Reading]]]  # by source: each reader, its rows, and what it reads
    scratch_bytes: int
    sums: bool

    @property
    def name(self) -> str:
        return self.steps[0].identifier


@dataclass(frozen=True)
class RowGroupStep:
    """Layers that run row by row."""

    row_buffers: Sequence[RowStep]  # by address
    stages: Sequence[RowStep]  # in the order of computation
    source: str  # the first layer of the stage that the group reads
    source_output: str  # the last layer of that stage
    source_rows: int
    source_row_bytes: int
    source_above: int  # rows of zeros
    source_below: int
    source_in_place: bool  # the source already lies at the arena's end
    slack: int  # most bytes by which aligning scratch memory moves it
    lines: Sequence[str]  # comment on the memory that the group uses

    @property
    def summed(self) -> list[str]:
        """The stages that add up rows."""
        return [one.name for one in self.row_buffers if one.sums]

    @property
    def output(self) -> str:
        """The last layer of the group."""
        return self.row_buffers[0].steps[-1].identifier


@dataclass(frozen=True)
class Program:
    """All steps in network order, and the sections that they belong to."""

    steps: Sequence[Step]
    sections: Sequence[RowGroupStep | Sequence[Step]]
    outputs: Sequence[OutputStep]  # empty for a classifier


@dataclass(frozen=True)
class OutputStep:
    """An output of the network in the generated code."""

    name: str  # for printing, without the network's prefix
    macro: str
    layer: int  # index
    place: str  # offset in the arena (bytes), a C expression
    bytes: int
    channels: int
    height: int
    width: int
    fraction_bits: int

    @property
    def step(self) -> str:
        """The value of one step of the output's format, as a float in C."""
        return f"{2.0**-self.fraction_bits!r}f"


class _Builder:
    def __init__(self, network: QuantizedNetwork, plan: RowPlan, options: CodeOptions) -> None:
        self.network, self.plan, self.options = network, plan, options
        self.printed = identifiers(layer.name for layer in network.graph.layers)
        self.prefix = options.names.prefix
        self.constants = f"{options.names.nn.upper()}WEIGHTS_SECTION"
        self.names = {name: f"{self.prefix}{identifier}" for name, identifier in self.printed.items()}
        self.ids = [self.names[layer.name] for layer in network.graph.layers]
        self.index = {layer.name: i for i, layer in enumerate(network.graph.layers)}

    def _step(self, i: int, c: CNames, offsets: Mapping[str, int], stage: Stage | None = None) -> Step:
        layer: Any = self.network.graph.layers[i]  # mypy cannot see that the kernel takes it
        integer, kernel = self.network.layers[i], self.network.layers[i].kernel
        return Step(
            index=i,
            name=self.printed[layer.name],
            identifier=self.ids[i],
            comment=comment(
                f"{layer.name}: {layer.caffe_type}, {layer.describe()}, {self.network.formats[layer.name].y}"
            ),
            defines={**layer.defines(), **integer.defines(), **offsets},
            calls=kernel.calls(layer, c),
            last_calls=kernel.last_calls(layer, c),
            arrays=kernel.arrays(layer, integer.integers, c),
            storage="static" if self.options.weights_in_ram and layer.weighted else f"{self.constants} static const",
            bytes=stage.row_bytes if stage else layer.out_size,
        )

    def whole(self, i: int) -> Step:
        """A layer that runs whole, in one call."""
        layer, memory = self.network.graph.layers[i], self.plan.memory
        macro, scratch = self.ids[i].upper(), memory.scratch.get(layer.name)
        c = CNames(
            prefix=macro,
            inputs=tuple(f"{self.names[name]}_out" for name in layer.inputs) or ("image",),
            output=f"{self.ids[i]}_out",
            scratch=f"(arena + {macro}_SCRATCH)" if scratch else "NULL",
            scratch_bytes=scratch.size if scratch else 0,
            weights=f"{self.ids[i]}_wt",
            bias=f"{self.ids[i]}_bias",
            in_place=layer.name in memory.in_place,
            square=layer.square,
            network=self.prefix.upper(),
        )
        offsets = {"OFFSET": memory.outputs[layer.name].offset}
        if scratch:
            offsets["SCRATCH"] = scratch.offset
        return self._step(i, c, offsets)

    def _row(self, stage: Stage, i: int) -> Step:
        """A layer that computes one row: the stage's first layer from its windows, the others in place."""
        layer = self.network.graph.layers[i]
        name = self.ids[stage.layers[0]]
        first = stage.layers[0] == i
        if first:
            inputs = [f"in_{number}.data" for number in range(1, len(layer.inputs) + 1)]
        else:
            start = len(stage.readings) - len(stage.added) + 1
            views = {r.source: f"in_{number}.data" for number, r in enumerate(stage.added, start)}
            owner = {self.plan.stages[s].layers[-1]: view for s, view in views.items()}
            inputs = [owner.get(self.index[input_name], f"{name}_row") for input_name in layer.inputs]
        c = CNames(
            prefix=self.ids[i].upper(),
            inputs=tuple(inputs),
            output=f"{name}_row",
            scratch=f"{name}_scratch" if first and stage.scratch_bytes else "NULL",
            scratch_bytes=stage.scratch_bytes if first else 0,
            weights=f"{self.ids[i]}_wt",
            bias=f"{self.ids[i]}_bias",
            in_place=not first,
            square=layer.square,
            replaced={
                "IN_DIM_Y": "in_1.count",
                "PAD_Y": "in_1.above",
                "OUT_DIM_Y": "1",
                "SIZE": str(stage.row_bytes),
                "PIXELS": str(layer.out_shape[2]) if len(layer.out_shape) == 3 else "1",
                "FIRST_ROW": f"{name}_summed == 0",
            },
            network=self.prefix.upper(),
        )
        return self._step(i, c, {}, stage)

    def _first_layer(self, stage: int) -> str:
        """The identifier of a stage's first layer, which names its row buffer in C."""
        return self.ids[self.plan.stages[stage].layers[0]]

    def _row_step(self, group: RowGroup, index: int, row_buffers: Mapping[int, RowBuffer]) -> RowStep:
        """What computes a row of one stage of a row group."""
        stages, name = self.plan.stages, self._first_layer
        stage = stages[index]
        return RowStep(
            steps=[self._row(stage, i) for i in stage.layers],
            row_buffer=len(group.stages) - 1 - group.stages.index(index),
            rows=stage.rows,
            row_bytes=stage.held_bytes,
            zeros=row_buffers[index],
            readings=[(name(r.source), r, stages[r.source].rows + row_buffers[r.source].below) for r in stage.readings],
            wanted={name(r.source): self._readers(group, r.source) for r in stage.readings},
            scratch_bytes=stage.scratch_bytes,
            sums=stage.sums,
        )

    def _readers(self, group: RowGroup, source: int) -> list[tuple[str, int, Reading]]:
        """The stages of a row group that read `source`: name, number of rows, and which rows each needs."""
        stages = self.plan.stages
        return [
            (self._first_layer(reader), stages[reader].rows, r)
            for reader in group.stages
            for r in stages[reader].readings
            if r.source == source
        ]

    def row_group(self, group: RowGroup, in_place: bool) -> RowGroupStep:
        """A row group; the last stage's buffer has the lowest address."""
        row_buffers = {b.stage: b for b in group.row_buffers}
        steps = [self._row_step(group, index, row_buffers) for index in group.stages]
        source, zeros = self.plan.stages[group.source], group.row_buffers[-1]
        return RowGroupStep(
            row_buffers=steps[::-1],
            stages=steps,
            source=self._first_layer(group.source),
            source_output=self.ids[source.layers[-1]],
            source_rows=source.rows,
            source_row_bytes=source.row_bytes,
            source_above=zeros.above,
            source_below=zeros.below,
            source_in_place=in_place,
            slack=group.slack,
            lines=[comment(line) for line in row_group_lines(self.network, self.plan, group)],
        )

    def program(self) -> Program:
        sections: list[RowGroupStep | Sequence[Step]] = []
        steps: list[Step] = []
        for number, section in enumerate(self.plan.sections):
            if section.group:
                before = self.plan.sections[number - 1] if number else None
                group = self.row_group(section.group, bool(before and not before.group and before.stages == (0,)))
                sections.append(group)
                steps += [step for stage in group.stages for step in stage.steps]
            else:
                own = [self.whole(i) for i in sorted(i for s in section.stages for i in self.plan.stages[s].layers)]
                sections.append(own)
                steps += own
        graph, of_group = self.network.graph, bool(self.plan.sections[-1].group)
        outputs = [] if graph.classifier else [self._output(layer, of_group) for layer in graph.output_layers]
        return Program(sorted(steps, key=lambda step: step.index), sections, outputs)

    def _output(self, layer: Layer, of_group: bool) -> OutputStep:
        """An output of the network; a row group's output lies at the arena's start."""
        name, shape = layer.name, layer.out_shape
        channels, height, width = shape if len(shape) == 3 else (layer.out_size, 1, 1)
        place, y = "0" if of_group else f"{self.names[name].upper()}_OFFSET", self.network.formats[name].y
        assert y
        return OutputStep(
            name=self.printed[name],
            macro=self.printed[name].upper(),
            layer=self.index[name],
            place=place,
            bytes=layer.out_size,
            channels=channels,
            height=height,
            width=width,
            fraction_bits=y.fraction_bits,
        )


def build(network: QuantizedNetwork, plan: RowPlan, options: CodeOptions) -> Program:
    """The program for a network, as the templates print it."""
    return _Builder(network, plan, options).program()
