# SPDX-License-Identifier: Apache-2.0
"""Our own loop that moves elements and changes none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.kernels.contract import MoveView
from caffe_to_cmsis_nn.kernels.layout import MOST_LOOPS
from caffe_to_cmsis_nn.kernels.own_loops import OwnLoop
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.target import Target


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
