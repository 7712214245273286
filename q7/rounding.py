# SPDX-License-Identifier: Apache-2.0
"""Adaptive rounding: integer weights that bring a layer's output on the device close to the float network's.

Rounding each weight to its nearest integer ignores two things: errors of weights add up in the output, and the
layer's input on the device already differs from the float one (it was rounded, clipped, and truncated by pooling).
So each layer, in network order, is first fitted to the float output by least squares on the device's own inputs (the
asymmetric reconstruction of AdaRound, Nagel et al. 2020, https://arxiv.org/abs/2004.10568, solved in closed form),
and then rounded column by column, each error being made good by the columns that follow (GPTQ, Frantar et al. 2022,
https://arxiv.org/abs/2210.17323).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from q7 import device
from q7.engines import FloatNetwork, plain
from q7.graph import Graph
from q7.layers import Layer
from q7.qformat import MAX_BIAS_LSHIFT, LayerFormats, QFormat, Rounding, Target

PATCHES = 8  # places sampled in each image for each layer
CHUNK = 250  # images whose patches are held at once
LARGEST_COLUMN = 4096  # inputs of one output; beyond, the normal equations take too much memory
RIDGE = 0.3  # of the mean input power, toward the trained weights; larger values fit less and overfit less
DAMPING = 1e-4  # of the mean input power, for a stable inverse


def _patches(x: np.ndarray, layer: Layer, places: np.ndarray) -> np.ndarray:
    """The inputs (N * P, C * KH * KW) of a layer's outputs at `places` (N, P) row-major; (N, features) as they are."""
    if len(layer.out_shape) == 1:
        return x.reshape(len(x), -1)
    rows, columns = np.divmod(places, layer.out_shape[2])
    (k_y, k_x), (s_y, s_x), (p_y, p_x) = layer.kernel, layer.stride, layer.pad  # type: ignore[attr-defined]
    padded = np.pad(x, ((0, 0), (0, 0), (p_y, p_y), (p_x, p_x)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k_y, k_x), axis=(2, 3))
    picked = windows[np.arange(len(x))[:, None], :, rows * s_y, columns * s_x]
    return picked.reshape(places.size, -1)


@dataclass
class _Equations:
    """Normal equations of a fit of outputs to inputs, the bias being the last column: sums over samples."""

    inputs: np.ndarray  # (K + 1, K + 1)
    outputs: np.ndarray  # (K + 1, O)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.inputs += x.T @ x
        self.outputs += x.T @ y


def _with_one(x: np.ndarray) -> np.ndarray:
    """With a column of ones, float32."""
    return np.hstack([x.astype(np.float32), np.ones((len(x), 1), np.float32)])


def _raised(matrix: np.ndarray, diagonal: np.ndarray | float) -> np.ndarray:
    """With something added to its diagonal."""
    raised = matrix.copy()
    raised.flat[:: len(matrix) + 1] += diagonal
    return raised


def _collect(
    layer: Layer, trained: np.ndarray, x_float: np.ndarray, x_device: np.ndarray, formats: LayerFormats
) -> _Equations:
    """The equations of what the float network has behind the layer, from the integers that the device has before it.

    A chunk is added up in units of the formats' steps, where numbers are small and float32 is precise enough.
    """
    assert formats.x and formats.y
    size = trained.shape[1]
    equations = _Equations(np.zeros((size, size)), np.zeros((size, len(trained))))
    area = int(np.prod(layer.out_shape[1:]))
    generator = np.random.default_rng(0)
    count = 0
    for i in range(0, len(x_float), CHUNK):
        places = generator.integers(0, area, (len(x_float[i : i + CHUNK]), min(PATCHES, area)))
        reference = _with_one(_patches(x_float[i : i + CHUNK], layer, places)) @ trained.T
        samples = _with_one(_patches(x_device[i : i + CHUNK], layer, places))
        equations.add(samples, formats.y.scaled(reference).astype(np.float32))
        count += len(samples)
    steps = np.full((size, 1), 2.0**-formats.x.fraction_bits)
    steps[-1] = 1
    equations.inputs *= steps * steps.T / count
    equations.outputs *= steps * 2.0**-formats.y.fraction_bits / count
    return equations


def _round_columns(w: np.ndarray, power: np.ndarray, formats: LayerFormats) -> np.ndarray:
    """GPTQ: (O, K + 1) weights on their grids, the last column being the bias; `power` is the inputs' X'X."""
    assert formats.w
    w, rounded = w.copy(), np.empty_like(w)
    spread = np.linalg.cholesky(np.linalg.inv(power)).T
    for k in range(w.shape[1]):
        if k < w.shape[1] - 1:
            rounded[:, k] = formats.w.dequantize(formats.w.quantize(w[:, k]))
        else:
            rounded[:, k] = formats.bias_grid.dequantize(formats.quantize_bias(w[:, k]))
        error = (w[:, k] - rounded[:, k]) / spread[k, k]
        w[:, k + 1 :] -= np.outer(error, spread[k, k + 1 :])
    return rounded


def _bias_format(bias: np.ndarray, formats: LayerFormats) -> QFormat:
    """The finest format that covers the bias and that the kernel can shift."""
    accumulator = formats.accumulator.fraction_bits
    covering = QFormat.covering(float(np.abs(bias).max())).fraction_bits
    return QFormat(min(max(covering, accumulator - MAX_BIAS_LSHIFT), accumulator))


def refine(
    graph: Graph, formats: Mapping[str, LayerFormats], images: np.ndarray, target: Target
) -> tuple[Graph, dict[str, LayerFormats]]:
    """The graph with weights that lie on their formats' grids, and the formats with biases to match.

    `images` (N, C, H, W) uint8 are what the fit sees. Grouped layers and those with more than 4096 inputs to an
    output keep their weights, to be rounded to nearest.
    """
    formats, fitted = dict(formats), graph
    reference = FloatNetwork(graph, images)
    position, x_float, x_device = 0, reference.start(), reference.start()
    for index, layer in enumerate(graph.layers):
        if not layer.weighted:
            continue
        x_float = reference.advance(position, index, x_float, plain(graph))
        network = device.DeviceNetwork(fitted, images, target)
        x_device = network.advance(position, index, x_device, device.quantize(fitted, formats, target))
        position = index
        w, b = graph.weights[layer.name]
        own = formats[layer.name]
        assert own.x and own.w and own.y
        if getattr(layer, "group", 1) > 1 or w[0].size > LARGEST_COLUMN:
            continue
        trained = np.hstack([w.reshape(len(w), -1), b[:, None]])
        source = layer.inputs[0]
        equations = _collect(layer, trained, x_float[source], x_device[source], own)
        if target.rounding is Rounding.TRUNCATE:  # the shift will take half a step away
            equations.outputs += equations.inputs[:, -1:] * 2.0 ** -(own.y.fraction_bits + 1)
        mean_power = max(np.trace(equations.inputs[:-1, :-1]) / w[0].size, 1e-12)
        ridge = np.full(len(equations.inputs), RIDGE * mean_power)
        ridge[-1] = 1e-9
        best = np.linalg.solve(_raised(equations.inputs, ridge), equations.outputs + ridge[:, None] * trained.T).T
        own = replace(own, b=_bias_format(best[:, -1], own)) if own.b else own
        power = _raised(equations.inputs, DAMPING * mean_power)
        rounded = _round_columns(best, power, own).astype(np.float32)
        formats[layer.name] = own
        weights = {**fitted.weights, layer.name: (rounded[:, :-1].reshape(w.shape), rounded[:, -1])}
        fitted = replace(fitted, weights=weights)
    return fitted, formats
