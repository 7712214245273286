# SPDX-License-Identifier: Apache-2.0
"""Fits integer weights so that a layer's output on the device is close to the float network's.

Rounding each weight to its nearest integer ignores two things: errors of weights add up in the output, and the layer's
input on the device already differs from the float one (after rounding, clipping and pooling). So each layer, in network
order, is first fitted to the float output by least squares on the device's inputs (the asymmetric reconstruction of
AdaRound, Nagel et al. 2020, https://arxiv.org/abs/2004.10568, solved in closed form). Then its weights are rounded
column by column, and later columns compensate for each error (GPTQ, Frantar et al. 2022,
https://arxiv.org/abs/2210.17323).

Results depend neither on the number of processors nor on the number of images in memory: the equations are exact sums
of integers in any order, and one thread solves them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.data.image_set import Images, pick
from caffe_to_cmsis_nn.engines.engine import MEMORY_SHARES
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, quantize_layer
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import dilated_kernel_size
from caffe_to_cmsis_nn.ops.base import Layer, Weights
from caffe_to_cmsis_nn.qformat import MAX_OUT_RSHIFT, LayerFormats, QFormat
from caffe_to_cmsis_nn.search.common import Candidate, carried_bias, largest
from caffe_to_cmsis_nn.target import Rounding, Target

PLACES = 8  # sampled from each image's output of each layer
CHUNK = 1024  # int8 samples that are added up at once: 1024 * 128 * 128 is 2**24, up to which float32 is exact
FINER_BITS = 16  # additional fraction bits of the float outputs to fit
LARGEST_OUTPUT = 1 << 31  # in these units; 2**15 products of an int8 and such an output are 2**53: exact in float64
BLOCK_COLUMNS = 64  # that are updated together (the lazy batch updates of GPTQ)
KEPT = 0.75  # most of the memory for layer inputs; the rest is for float outputs
MOST_CLIPPED_BITS = 2  # additional fraction bits of 4-bit formats over the one that covers all weights
MOST_INPUTS = 4096  # per output; with more, the normal equations would take too much memory
RIDGE = 0.3  # of the mean input power, toward the trained weights; larger values fit less and overfit less
DAMPING = 1e-4  # of the mean input power, for a stable factor (GPTQ takes 0.01)


def _can_fit(graph: Graph, layer: Layer) -> bool:
    return layer.sums_windows and graph.weights[layer.name][0][0].size <= MOST_INPUTS


def bytes_on_device(graph: Graph) -> int:
    """The bytes per image of the inputs and outputs of a layer on the device, at most."""
    return 2 * max(sum(x.out_size for x in graph.live(position)) for position in range(len(graph.layers)))


def _area(layer: Layer) -> int:
    return math.prod(layer.out_shape[1:])


def _places(layer: Layer, count: int) -> np.ndarray:
    """(N, P) random pixels of a layer's output, as row-major indices."""
    return np.random.default_rng(0).integers(0, _area(layer), (count, min(PLACES, _area(layer))))


def _windows(layers: Sequence[Layer], images: int, room: int) -> dict[str, list[Layer]]:
    """For each layer, the layers with float outputs computed in the same pass: as many as fit into `room` (bytes)."""
    windows: dict[str, list[Layer]] = {}
    window: list[Layer] = []
    used = 0
    for layer in layers:
        own = 4 * images * layer.out_shape[0] * min(PLACES, _area(layer))
        if used + own > room:
            window, used = [], 0
        window.append(layer)
        used += own
        windows[layer.name] = window
    return windows


def _patches(x: np.ndarray, layer: Layer, places: np.ndarray) -> np.ndarray:
    """The inputs (N * P, C * KH * KW) of a layer's outputs at `places`; for vectors (N, features), the inputs."""
    if len(layer.out_shape) == 1:
        return x.reshape(len(x), -1)
    rows, columns = np.divmod(places, layer.out_shape[2])
    (s_y, s_x), (p_y, p_x) = layer.stride, layer.pad  # type: ignore[attr-defined]
    d_y, d_x = layer.dilation  # type: ignore[attr-defined]
    padded = np.pad(x, ((0, 0), (0, 0), (p_y, p_y), (p_x, p_x)))
    size = dilated_kernel_size(layer)  # type: ignore[arg-type]
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))[..., ::d_y, ::d_x]
    picked = windows[np.arange(len(x))[:, None], :, rows * s_y, columns * s_x]
    return picked.reshape(places.size, -1)


class _SampledNetwork(FloatNetwork):
    """The float network, which returns samples (N, P, O) of watched outputs.

    Besides images, it takes the places (N, P) to sample in each output, under the name `places_of`.
    """

    @staticmethod
    def places_of(name: str) -> str:
        return f"places in {name}"

    def watch(self, g: OnnxGraph, layer: Layer, value: str) -> list[str]:
        channels = layer.out_shape[0]
        places = g.input(f"in_{self.places_of(layer.name)}", np.int64, [min(PLACES, _area(layer))])
        places = g.add("Unsqueeze", places, np.array([1], np.int64))
        places = g.add("Expand", places, np.array([1, channels, 1], np.int64))
        flat = g.add("Reshape", value, np.array([0, channels, -1], np.int64))
        return [g.add("Transpose", g.add("GatherElements", flat, places, axis=2), perm=[0, 2, 1])]


class _Part:
    """A part of the images: provides the device's inputs of each layer, and its float outputs."""

    def __init__(
        self,
        in_float: _SampledNetwork,
        device: DeviceNetwork,
        places: Mapping[str, np.ndarray],
        windows: Mapping[str, Sequence[Layer]],
        keep: bool,
    ) -> None:
        """With `keep`, keeps the inputs of the last layer instead of computing them again."""
        self._in_float, self._device, self._keep = in_float, device, keep
        self._places, self._windows = places, windows
        self._before: list[IntegerLayer] = []
        self._x = device.start()
        self._wanted: dict[str, np.ndarray] = {}

    def samples(self, layers: Sequence[IntegerLayer], layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The device's inputs (N, ...) of a layer, places in its output (N, P), and the float outputs there (N, P, O).

        `layers` are the integer layers before it.
        """
        done = self._known(layers)
        x = self._device.advance(done, self._x, layers[done:]) if done < len(layers) else self._x
        if self._keep:
            self._before, self._x = [*layers], x
        return x[layer.inputs[0]], self._places[layer.name], self._trained_outputs(layer.name)

    def _known(self, layers: Sequence[IntegerLayer]) -> int:
        """The number of these layers that need not run again."""
        if [*layers[: len(self._before)]] != self._before:
            self._before, self._x = [], self._device.start()
        return len(self._before)

    def results(self, layers: Sequence[IntegerLayer]) -> np.ndarray:
        """The network's outputs (N, result_size) on the device."""
        done = self._known(layers)
        return self._device.logits_from(done, self._x, layers[done:])

    def _trained_outputs(self, name: str) -> np.ndarray:
        if name not in self._wanted:
            self._wanted = self._run_trained(self._windows[name])
        return self._wanted[name]

    def _run_trained(self, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        network, at = self._in_float, {layer.name: self._places[layer.name] for layer in layers}
        places = {network.places_of(name): own for name, own in at.items()}
        found = {layer.name: np.empty((*at[layer.name].shape, layer.out_shape[0]), np.float32) for layer in layers}

        def take(some: slice, samples: Sequence[np.ndarray]) -> None:
            for into, values in zip(found.values(), samples):
                into[some] = values

        network.run(0, {**network.start(), **places}, as_trained(network.graph), [], take, layers)
        return found


def _add_up(
    parts: Sequence[_Part],
    layers: Sequence[IntegerLayer],
    layer: Layer,
    trained: np.ndarray,
    formats: LayerFormats,
) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations' X'X (G, K + 1, K + 1) and X'Y (G, K + 1, O), as means, for each group of a layer.

    X are the device's inputs of the layer, with a last column of 1 for the bias. Y are the float outputs with the
    `trained` weights (G, O, K + 1). `layers` are the integer layers before it. Sums of integers are exact: in float32
    for a chunk's X'X, else in float64.
    """
    assert formats.x and formats.y
    unit = QFormat(formats.y.fraction_bits + FINER_BITS)
    groups, outputs, inputs = trained.shape
    power, products, count = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs, outputs)), 0
    for part in parts:
        x, places, wanted = part.samples(layers, layer)
        count += places.size
        images = CHUNK // places.shape[1]
        for i in range(0, len(x), images):
            patches = _patches(x[i : i + images], layer, places[i : i + images])
            patches = patches.reshape(len(patches), groups, -1).transpose(1, 2, 0)
            patches = np.pad(patches, ((0, 0), (0, 1), (0, 0)), constant_values=1).astype(np.float32)
            y = np.rint(unit.scaled(wanted[i : i + images].reshape(-1, groups, outputs))).transpose(1, 0, 2)
            power += patches @ patches.transpose(0, 2, 1)
            products += patches.astype(np.float64) @ np.clip(y, -LARGEST_OUTPUT, LARGEST_OUTPUT)
    steps = np.full((inputs, 1), 2.0**-formats.x.fraction_bits)
    steps[-1] = 1
    return power * (steps * steps.T / count), products * (steps * 2.0**-unit.fraction_bits / count)


def _round_columns(w: np.ndarray, power: np.ndarray, formats: LayerFormats) -> np.ndarray:
    """Rounds weights (O, K + 1), the last column being the bias, with GPTQ; `power` is the inputs' X'X.

    With `power` = M'M, M lower triangular, the squared error is that of M times the columns' errors. Row k only depends
    on columns up to k, so each column compensates for the earlier ones in its row. This is Babai's nearest plane
    algorithm (1986), which is equivalent to GPTQ (Chen et al. 2025, https://arxiv.org/abs/2507.18553). Errors of
    earlier blocks are added up for a whole block at once.
    """
    assert formats.w
    m = np.linalg.cholesky(power[::-1, ::-1])[::-1, ::-1].T
    m = m / m.diagonal()[:, None]
    w = np.ascontiguousarray(w.T)
    errors, rounded, count = np.empty_like(w), np.empty_like(w), len(w)
    for first in range(0, count, BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        for k, start in enumerate(w[block] + m[block, :first] @ errors[:first], first):
            column = start + m[k, first:k] @ errors[first:k]
            if k < count - 1:
                rounded[k] = formats.w.dequantize(formats.w.quantize(column))
            else:
                rounded[k] = formats.bias_grid.dequantize(formats.quantize_bias(column))
            errors[k] = w[k] - rounded[k]
    return rounded.T


def _choices(own: LayerFormats) -> list[LayerFormats]:
    """The formats to try: with 4 bits, finer ones may be better although they clip the largest weights."""
    assert own.w and own.y
    room = own.y.fraction_bits + MAX_OUT_RSHIFT - own.accumulator.fraction_bits
    steps = range(min(MOST_CLIPPED_BITS, room) + 1 if own.w.bits < 8 else 1)
    return [replace(own, w=own.w.finer(step)) for step in steps]


class _Solved(NamedTuple):
    """Float weights (O, K) that solve a group's equations, for the inputs `used` (indices), the last for the bias."""

    used: np.ndarray
    weights: np.ndarray
    power: np.ndarray
    damped: np.ndarray  # power for rounding columns

    def error(self, rounded: np.ndarray) -> float:
        """The mean squared error of the outputs with rounded weights."""
        return float(np.sum((rounded - self.weights) @ self.power * (rounded - self.weights)))


def _solve(power: np.ndarray, products: np.ndarray, trained: np.ndarray, ordered: bool) -> _Solved:
    """Least squares with a ridge toward the trained weights (O, K + 1).

    Inputs with all weights zero keep them: converters write such zeros for uneven padding. With `ordered`, the
    strongest inputs come first, so that the most others can compensate for their errors.
    """
    used = np.flatnonzero(trained[:, :-1].any(axis=0))
    if ordered:
        used = used[np.argsort(-power.diagonal()[used], kind="stable")]
    used = np.append(used, len(power) - 1)
    power, products, start = power[np.ix_(used, used)], products[used], trained[:, used]
    mean_power = max(np.trace(power[:-1, :-1]) / max(len(power) - 1, 1), 1e-12)
    ridge = np.full(len(power), RIDGE * mean_power)
    ridge[-1] = 1e-9
    weights = np.linalg.solve(power + np.diag(ridge), products + ridge[:, None] * start.T).T
    return _Solved(used, weights, power, power + DAMPING * mean_power * np.eye(len(power)))


def _fit(
    power: np.ndarray, products: np.ndarray, trained: np.ndarray, own: LayerFormats
) -> tuple[np.ndarray, LayerFormats]:
    """Rounded weights (G, O, K + 1) that solve the equations of each group, and their formats."""
    assert own.w
    groups = [_solve(*group, ordered=own.w.bits < 8) for group in zip(power, products, trained)]
    if own.b:
        most = max(largest(group.weights[:, -1]) for group in groups)
        own = replace(own, b=carried_bias(QFormat.covering(most), own.accumulator))
    tried = []
    for choice in _choices(own):
        rounded = [_round_columns(group.weights, group.damped, choice) for group in groups]
        tried.append((sum(map(_Solved.error, groups, rounded)), choice, rounded))
    _, own, rounded = min(tried, key=lambda found: found[0])
    fitted = np.zeros(trained.shape, np.float32)
    for into, group, weights in zip(fitted, groups, rounded):
        into[:, group.used] = weights
    return fitted, own


class Fitted(NamedTuple):
    """A layer's weights (None if it has none), its formats after the fit, and its integers."""

    weights: Weights | None
    formats: LayerFormats
    integers: IntegerLayer


class Fit:
    """Fits a network's weights in network order, for several tables of formats.

    A layer is not fitted again if it and all layers before it have the same formats as in an earlier table.
    """

    def __init__(
        self, graph: Graph, images: Images, target: Target, memory: int = choices.MEMORY // MEMORY_SHARES
    ) -> None:
        """`images` (N, C, H, W) uint8 are what the fit sees, `memory` (bytes) bounds what it holds of them."""
        self.graph, self.target = graph, target
        layers = [layer for layer in graph.layers if _can_fit(graph, layer)]
        self._places = {layer.name: _places(layer, len(images)) for layer in layers}
        # By the number of the entry for the layers before, and the layer's formats: a number, and what was fitted.
        self._known: dict[tuple[int, LayerFormats], tuple[int, Fitted]] = {}
        size = bytes_on_device(graph)
        keep = len(images) * size <= KEPT * memory
        most = len(images) if keep else max(1, memory // 2 // size)
        windows = _windows(layers, len(images), memory - len(images) * size if keep else memory // 2)
        in_float, device, self._parts = _SampledNetwork(graph, images), DeviceNetwork(graph, images, target), []
        for which in np.split(np.arange(len(images)), range(most, len(images), most)):
            some = pick(images, which)
            places = {name: at[which] for name, at in self._places.items()}
            self._parts.append(_Part(in_float.part(some), device.part(some), places, windows, keep))

    def layers(self, formats: Mapping[str, LayerFormats]) -> list[Fitted]:
        """All layers, each fitted to the layers before it.

        Deconvolutions, and layers with more than 4096 inputs per output, are rounded to nearest instead.
        """
        fitted: list[Fitted] = []
        before = 0
        for layer in self.graph.layers:
            key = before, formats[layer.name]
            if key not in self._known:
                self._known[key] = len(self._known) + 1, self.layer(layer, formats[layer.name], fitted)
            before, known = self._known[key]
            fitted.append(known)
        return fitted

    def layer(self, layer: Layer, own: LayerFormats, before: Sequence[Fitted]) -> Fitted:
        """One layer, fitted to those before it."""
        weights = self.graph.weights.get(layer.name)
        if layer.name in self._places:
            assert weights and own.y
            w, b = weights
            trained = np.hstack([w.reshape(len(w), -1), b[:, None]])
            trained = trained.reshape(getattr(layer, "group", 1), -1, trained.shape[1])
            power, products = _add_up(self._parts, [known.integers for known in before], layer, trained, own)
            if self.target.rounding is Rounding.TRUNCATE:  # compensates for half a step that the shift drops
                products += power[:, :, -1:] * 2.0 ** -(own.y.fraction_bits + 1)
            with threadpool_limits(1, user_api="blas"):  # several threads round differently
                rounded, own = _fit(power, products, trained, own)
            weights = rounded[..., :-1].reshape(w.shape), rounded[..., -1].ravel()
        elif weights and own.w:
            own = min(_choices(own), key=functools.partial(_rounding_error, weights[0]))
        return Fitted(weights, own, quantize_layer(layer, weights, own, self.target))

    def results(self, formats: Mapping[str, LayerFormats]) -> np.ndarray:
        """The device's outputs (N, result_size) for the images, with fitted weights."""
        integers = [known.integers for known in self.layers(formats)]
        return np.concatenate([part.results(integers) for part in self._parts])

    def refine(self, formats: Mapping[str, LayerFormats]) -> Candidate:
        """The network with fitted weights, and the formats after the fit."""
        fitted = dict(zip((layer.name for layer in self.graph.layers), self.layers(formats)))
        weights = {name: known.weights for name, known in fitted.items() if known.weights}
        graph = replace(self.graph, weights=weights) if self._places else self.graph
        return Candidate(graph, {name: known.formats for name, known in fitted.items()}, self.graph)


def _rounding_error(weights: np.ndarray, own: LayerFormats) -> float:
    assert own.w
    return float(np.sum((own.w.dequantize(own.w.quantize(weights)) - weights) ** 2))
