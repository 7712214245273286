# SPDX-License-Identifier: Apache-2.0
"""The integer network, bit for bit as the device computes it, from the raw 8-bit pixel to the last logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from q7.engines.engine import MEMORY, Network
from q7.kernels.base import Bounds
from q7.layers.base import Layer
from q7.network.graph import Graph
from q7.network.quantized import IntegerLayer
from q7.onnx_graph import OnnxGraph
from q7.target import Target


class DeviceNetwork(Network):
    """Runs integer layers on images; values are the int8 that the device's memory would hold."""

    stored = np.int8

    def __init__(self, graph: Graph, images: Any, target: Target, memory: int = MEMORY) -> None:
        super().__init__(graph, images, memory=memory)
        self.target = target

    def build(self, g: OnnxGraph, layer: Layer, xs: Sequence[str], setting: IntegerLayer) -> str:
        y = setting.kernel.build(g, xs, layer, setting.integers, self.target)
        return y if setting.bounds == Bounds() else g.clip(y, setting.bounds.low, setting.bounds.high)
