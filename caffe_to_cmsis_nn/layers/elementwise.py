# SPDX-License-Identifier: Apache-2.0
"""What layers that compute each element alone have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from caffe_to_cmsis_nn.layers.base import Layer, Weights
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph


class Elementwise(Layer):
    elementwise = True
    any_rank = True

    op: ClassVar[str]  # ONNX's, where one with no attributes computes it

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add(self.op, xs[0])
