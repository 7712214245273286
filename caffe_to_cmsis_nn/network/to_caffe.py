# SPDX-License-Identifier: Apache-2.0
"""Converts the quantized network to Caffe's blobs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.qformat import LayerFormats


def quantized_blobs(graph: Graph, formats: Mapping[str, LayerFormats]) -> Blobs:
    """The quantized weights as float32 blobs, in the shapes of the prototxt.

    Folded layers get blobs that change nothing. If a weighted layer has no bias blob, the first folded layer that can
    carries its bias. So the unchanged prototxt describes the quantized network.
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
    """The Caffe type of each layer, by name."""
    folded = [layer for layers in graph.folded.values() for layer in layers]
    return {layer.name: layer.caffe_type for layer in [*graph.layers, *folded]}
