# SPDX-License-Identifier: Apache-2.0
"""Caffe's InnerProduct (inner_product_layer.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.kernels import cmsis_q7, cmsis_s4, cmsis_s8, exact_onnx, weight_layouts
from caffe_to_cmsis_nn.kernels import constraints as needs
from caffe_to_cmsis_nn.kernels.base import (
    Integers,
    Work,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.instructions import steps_of_four
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.weighted import Packed, Weighted, WeightedLoop
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True, eq=False)
class InnerProduct(Weighted):
    """Inner product (fully connected); an image is flattened in CHW order."""

    caffe_type = "InnerProduct"
    sums_windows = True
    flattens = True
    any_rank = True

    num_output: int = 1
    bias_term: bool = True
    transpose: bool = False

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.inner_product_param
        if param.axis != 1:
            raise UnsupportedLayer(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise UnsupportedLayer("num_output is missing")
        return {"num_output": param.num_output, "bias_term": param.bias_term, "transpose": param.transpose}

    @property
    def out_shape(self) -> Shape:
        return (self.num_output,)

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, math.prod(self.in_shape))
        weights = weights[::-1] if self.transpose else weights
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        w = np.ascontiguousarray(blobs[0].T) if self.transpose else blobs[0]
        return super().load([w, *blobs[1:]])

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("Gemm", g.add("Flatten", xs[0]), *weights, transB=1)

    def defines(self) -> dict[str, int]:
        return {"IN_DIM": math.prod(self.in_shape), "OUT_DIM": self.num_output}


class OwnInnerProduct(WeightedLoop[InnerProduct]):
    """Matrix times vector; widens the vector to int16 first, and reads an image in HWC order."""

    header = "inner_product_q7"

    def scratch_bytes(self, layer: InnerProduct, target: Target) -> int:
        return 2 * 4 * math.ceil(math.prod(layer.in_shape) / 4)

    def layout(self, weights: np.ndarray, layer: InnerProduct) -> np.ndarray:
        matrix = weight_layouts.channels_last(weights, layer.in_shape)
        rows, columns = matrix.shape
        rest = rows % 4 if rows % 4 < 3 else 0
        parts = [(matrix[: rows - rest], 4), (matrix[rows - rest :], 2)]
        return np.concatenate([weight_layouts.blocks(part, n, columns % 4 == 0) for part, n in parts])

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: InnerProduct, integers: Integers, target: Target) -> str:
        return exact_onnx.inner_product(g, xs[0], integers, target)

    def calls(self, layer: InnerProduct, c: CNames) -> list[Statement]:
        sizes = (c.macro("IN_DIM"), c.macro("OUT_DIM"))
        arguments = (c.weights, self._bits, f"&{c.variable('out_scaling')}", f"(q15_t *){c.scratch}", c.output)
        return [self._scaling(c), Call(self.name, (c.input, *sizes, *arguments))]

    def work(self, layer: InnerProduct) -> Work | None:
        size, fours = math.prod(layer.in_shape), math.ceil(layer.out_shape[0] / 4)
        steps = steps_of_four(math.ceil(size / 4), 19 + 6 * (self.weight_bits == 4))
        return {"instruction": fours * steps, "inner product block": fours}


class PackedInnerProduct(Packed[InnerProduct], OwnInnerProduct):
    """With 4-bit weights."""


computed_by(
    InnerProduct,
    PackedInnerProduct("inner_product_q7", (needs.vector_sizes,)),
    cmsis_q7.FullyConnected("arm_fully_connected_q7_opt", (needs.vector_sizes,), interleaved=True, macs_cost=1.6),
    cmsis_q7.FullyConnected("arm_fully_connected_q7", (needs.vector_sizes,)),
    cmsis_s4.FullyConnected("arm_fully_connected_s4", (needs.vector_sizes,)),
    OwnInnerProduct("inner_product_q7", (needs.vector_sizes,)),
    cmsis_s8.FullyConnected("arm_fully_connected_s8", (needs.vector_sizes,)),
)

CLASSES = (InnerProduct,)
