# SPDX-License-Identifier: Apache-2.0
"""Our own loop that moves elements and changes none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q7.kernels.call import Call, CNames, Declaration, Statement
from q7.kernels.contract import MoveView
from q7.kernels.own_loops import OwnLoop
from q7.onnx_graph import OnnxGraph
from q7.target import Target

MOST_LOOPS = 5  # of move_q7


@dataclass(frozen=True)
class Steps:
    """Loops over the positions of elements in memory, the outermost first: how often, and how far each time."""

    start: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def find(cls, positions: np.ndarray) -> Steps:
        """The fewest loops that give these positions, each as long as it can be; there may be too many."""
        start, counts, strides = int(positions[0]), [], []
        while len(positions) > 1:
            stride = int(positions[1] - positions[0])
            uneven = np.flatnonzero(np.diff(positions) != stride)
            count = math.gcd(len(positions), *(int(i) + 1 for i in uneven))
            if count == 1:
                return cls(start, (1,) * (MOST_LOOPS + 1), (0,) * (MOST_LOOPS + 1))
            counts.append(count)
            strides.append(stride)
            positions = positions[::count]
        return cls(start, tuple(counts[::-1]), tuple(strides[::-1]))

    @property
    def nothing(self) -> bool:
        """Whether each element stays where it is."""
        return self.start == 0 and len(self.counts) <= 1 and self.strides in ((), (1,))


class Move(OwnLoop[MoveView, object]):
    """Elements in another order, some of them, or some of them again and again; none changes."""

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: MoveView, integers: object, target: Target) -> str:
        return gathered(g, xs[0], layer)

    def in_place(self, layer: MoveView, promised_only: bool) -> bool:
        return layer.steps.nothing

    def calls(self, layer: MoveView, c: CNames) -> list[Statement]:
        """Nothing to do where nothing moves, and the output lies where the input lay."""
        if c.in_place:
            return [Call("(void)", (c.input,))]
        name, steps = c.variable("out_move"), layer.steps
        missing = MOST_LOOPS - len(steps.counts)
        counts = (*["1"] * missing, *map(str, steps.counts))
        strides = (*["0"] * missing, *map(str, steps.strides))
        return [
            Declaration("const move_t", name, (str(steps.start), counts, strides)),
            Call(self.name, (c.input, f"&{name}", c.output)),
        ]


def gathered(g: OnnxGraph, x: str, layer: MoveView) -> str:
    """The layer's output of a blob in Caffe's order."""
    flat = g.add("Gather", g.add("Flatten", x), layer.sources.ravel(), axis=1)
    return g.add("Reshape", flat, np.array([-1, *layer.out_shape]))
