# SPDX-License-Identifier: Apache-2.0
"""Base classes of elementwise layers and of kernels that look up their outputs in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels.base import (
    Array,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import I_contra, LayerView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Weights
from caffe_to_cmsis_nn.qformat import INT8_MIN
from caffe_to_cmsis_nn.target import Target


class Elementwise(Layer):
    elementwise = True
    any_rank = True

    op: ClassVar[str]  # the ONNX operator, if one without attributes computes the layer

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add(self.op, xs[0])


class Lookup(OwnLoop[LayerView, I_contra]):
    """A kernel that looks up the output of each of the 256 possible inputs."""

    header = "lookup_q7"
    promises_in_place = True
    computes_rows = True

    def outputs(self, integers: I_contra) -> np.ndarray:
        """(256,) the outputs for -128 to 127."""
        raise NotImplementedError

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: I_contra, target: Target) -> str:
        index = g.cast(g.add("Add", xs[0], np.array(-INT8_MIN, np.float32)), np.int64)
        return g.add("Gather", self.outputs(integers).astype(np.float32), index)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.elements(layer.out_shape), c.variable("table"), c.output))]

    def arrays(self, layer: LayerView, integers: I_contra, c: CNames) -> list[Array]:
        """The table is indexed by the input's bits as uint8: 0 to 127 come before -128 to -1."""
        values = np.roll(self.outputs(integers), INT8_MIN).astype(np.int8)
        return [Array(f"{c.prefix}_TABLE", c.variable("table"), "int8_t", values)]
