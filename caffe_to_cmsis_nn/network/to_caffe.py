# SPDX-License-Identifier: Apache-2.0
"""The quantized network as Caffe's blobs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.qformat import LayerFormats


def quantized_blobs(graph: Graph, formats: Mapping[str, LayerFormats]) -> Blobs:
    """The trained blobs on their Q-formats' grids, float32, in the shapes that the prototxt asks for.

    What was folded into a layer gets blobs that leave its output alone, except that the first of them which can
    carries the bias of a layer that has none of its own. So the unchanged prototxt gives the quantized network.
    """
    blobs: Blobs = {}
    for layer in graph.layers:
        if layer.weighted:
            own = formats[layer.name]
            assert own.w
            w, b = graph.weights[layer.name]
            pair = (own.w.dequantize(own.w.quantize(w)), own.bias_grid.dequantize(own.quantize_bias(b)))
            shapes = layer.weight_shapes()
            blobs[layer.name] = [blob if blob.shape == shape else blob.T for blob, shape in zip(pair, shapes)]
            left = pair[1] if len(shapes) == 1 else np.zeros_like(pair[1])
            for folded in graph.folded.get(layer.name, ()):
                neutral = folded.neutral(left)
                if neutral is None:
                    neutral = folded.neutral(np.zeros_like(left))
                else:
                    left = np.zeros_like(left)
                assert neutral
                blobs[folded.name] = neutral
        elif layer.name in graph.weights:
            blobs[layer.name] = layer.blobs(graph.weights[layer.name])
            zeros = np.zeros(layer.in_shape[:1], np.float32)
            blobs.update((folded.name, folded.neutral(zeros) or []) for folded in graph.folded.get(layer.name, ()))
    return blobs


def caffe_types(graph: Graph) -> dict[str, str]:
    """Caffe's type of each layer by name."""
    folded = [layer for layers in graph.folded.values() for layer in layers]
    return {layer.name: layer.caffe_type for layer in [*graph.layers, *folded]}
