# SPDX-License-Identifier: Apache-2.0
"""Searches for layers with 4-bit weights: all with a kernel for them, or those where they cost least.

Weights are fitted (`weight_fitting`), since rounding to 16 levels costs whole percentage points. Activations keep the
formats that were found for 8-bit weights, clamped to the kernels' limits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from caffe_to_cmsis_nn.kernels.base import consider
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.search.common import Candidate, Tensor, Trial, clamp_to_kernel_limits, largest
from caffe_to_cmsis_nn.search.verdict import Verdict
from caffe_to_cmsis_nn.search.weight_fitting import Fit, Fitted
from caffe_to_cmsis_nn.target import Target

FEW = 4  # bits
ROUNDING = 1e-6  # percentage points, of accuracies as floats
LEAST_COST = 1e-9  # nats of divergence; smaller costs count as this
Table = Mapping[str, LayerFormats]


def objection(layer: Layer, target: Target) -> str:
    """Why no kernel takes 4-bit weights in a layer; empty if one does."""
    kernel, objections = consider(layer.kernels, layer, target, FEW)
    if kernel is not None and kernel.weight_bits == FEW:
        return ""
    return "; ".join(objections) or f"no kernel takes weights of {FEW} bits"


def supporting(graph: Graph, target: Target) -> list[str]:
    """The layers that have a kernel for 4-bit weights."""
    return [layer.name for layer in graph.layers if layer.weighted and not objection(layer, target)]


def narrowed(graph: Graph, formats: Table, names: Sequence[str]) -> dict[str, LayerFormats]:
    """The formats with 4-bit weights in the named layers, in the finest formats that cover them."""
    table = dict(formats)
    for name in names:
        table[name] = replace(table[name], w=QFormat.covering(largest(graph.weights[name][0]), FEW))
    return clamp_to_kernel_limits(graph, table)


class Narrowing:
    """Judges networks with 4-bit weights in some layers; each layer is fitted to the layers before it."""

    def __init__(
        self,
        fit: Fit,
        formats: Table,
        judge: Callable[[Candidate], Verdict],
        sample: Callable[[Sequence[IntegerLayer], Table], Verdict],
    ) -> None:
        """`formats` are those for 8-bit weights; `judge` runs all images, `sample` a sample of them."""
        self.fit, self.formats, self._judge, self._sample = fit, formats, judge, sample

    def table(self, names: Sequence[str]) -> dict[str, LayerFormats]:
        return narrowed(self.fit.graph, self.formats, names)

    def candidate(self, names: Sequence[str]) -> Candidate:
        return self.fit.refine(self.table(names))

    def judge(self, names: Sequence[str]) -> Verdict:
        """The verdict with 4-bit weights in these layers, in network order."""
        return self._judge(self.candidate(names))

    def by_cost(self, names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        """Layers by bytes saved per divergence, the best first, each judged alone; and the bytes that each saves.

        Later layers are not fitted again.
        """
        graph, formats = self.fit.graph, self.table(())
        whole = self.fit.layers(formats)
        before = self._divergence(whole, formats)
        saved, gain = {}, {}
        for name in names:
            table, fitted = self.table([name]), list(whole)
            for i, layer in enumerate(graph.layers):
                if table[layer.name] != formats[layer.name]:
                    fitted[i] = self.fit.layer(layer, table[layer.name], fitted[:i])
            saved[name] = flash(graph, whole) - flash(graph, fitted)
            gain[name] = saved[name] / max(self._divergence(fitted, table) - before, LEAST_COST)
        return sorted(names, key=lambda name: -gain[name]), saved

    def _divergence(self, fitted: Sequence[Fitted], formats: Table) -> float:
        return float(self._sample([known.integers for known in fitted], formats).divergences.mean())


def flash(graph: Graph, fitted: Sequence[Fitted]) -> int:
    """The bytes of the network's constants."""
    return sum(known.integers.constant_bytes(layer) for layer, known in zip(graph.layers, fitted))


def mixed(narrowing: Narrowing, least: float) -> Generator[Trial, None, list[str]]:
    """The layers to give 4-bit weights, in network order, so that the accuracy stays at least `least` (percent).

    Tries layers in the order of `Narrowing.by_cost`.
    """
    fit = narrowing.fit
    order, saved = narrowing.by_cost(supporting(fit.graph, fit.target))
    chosen: list[str] = []
    best, size = narrowing.judge(chosen).score, flash(fit.graph, fit.layers(narrowing.table(chosen)))
    for name in order:
        names = [layer.name for layer in fit.graph.layers if layer.name in (*chosen, name)]
        score, w = narrowing.judge(names).score, narrowing.table(names)[name].w
        assert w
        kept, sizes = score.percent > least - ROUNDING, (size - saved[name], size)
        reason = f"{score.percent:.2f} % is {'at least' if kept else 'less than'} {least:.2f} %"
        yield Trial(
            layer=name,
            tensor=Tensor.WEIGHTS,
            format=w,
            score=score,
            reference=best,
            kept=kept,
            flash=sizes,
            reason=reason,
        )
        if kept:
            chosen, best, size = names, score, sizes[0]
    return chosen
