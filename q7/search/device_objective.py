# SPDX-License-Identifier: Apache-2.0
"""The sweep against the device: every format is judged by the integer network, from raw pixel to logit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from q7.data.image_set import Images, pick, spread
from q7.engines.accuracy import accuracy_caffe
from q7.engines.engine import MEMORY, MEMORY_SHARES
from q7.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from q7.network.graph import Graph
from q7.network.quantized import IntegerLayer, Measured, quantize_layer, quantize_network
from q7.qformat import LayerFormats
from q7.search import common, layer_errors, weight_bits, weight_fitting
from q7.search.common import Candidate, Choices, Found, Search, Tensor, Trial
from q7.search.verdict import FINAL_DEVIATIONS, Expected, Verdict, judge_in_stages
from q7.search.weight_bits import Narrowing
from q7.search.weight_fitting import Fit
from q7.target import Target

STAGES = (250, 1000, 2000)  # how many images judge a trial, as long as it does not do worse
GIVE_UP_STANDARD_ERRORS = 1.0  # of the mean divergence by which it does worse; with fewer, other formats were chosen
SAMPLE = STAGES[-1]
FIT_SAMPLE = 3000  # images that weights are fitted to
TRIAL_DEVIATIONS = 3.0  # of a lead (`mcnemar`): among many trials, chance makes single images look like a gain
FIRST_FINAL_IMAGES = 1000  # that candidates are judged by at first, then by twice as many, up to all
PASSES = 3  # over the tensors, since the best format of one depends on those of others


class Judge:
    """Judges formats against the float network's logits, in stages on more and more images."""

    def __init__(
        self,
        graph: Graph,
        images: np.ndarray,
        labels: np.ndarray,
        logits: np.ndarray,
        target: Target,
        stages: Sequence[int],
        memory: int = MEMORY,
    ) -> None:
        self.graph = graph
        # Layers whose formats did not change stay the same objects, so that their results are not computed again.
        self._quantize = functools.cache(
            lambda layer, own: quantize_layer(layer, graph.weights.get(layer.name), own, target)
        )
        network = DeviceNetwork(graph, images, target, memory)
        # Shuffled, since the images may lie in some order, and each stage is to have some of every kind.
        order = np.random.default_rng(0).permutation(len(images))
        self._stages = [
            (network.part(images[some]), Expected(graph, labels[some], logits[some]))
            for some in np.split(order, [count for count in stages if count < len(images)])
        ]

    def judge(self, formats: Mapping[str, LayerFormats], best: Verdict | None = None) -> Verdict:
        """On all images; or, once it does worse than `best`, on those of the stages until then."""
        layers = [self._quantize(layer, formats[layer.name]) for layer in self.graph.layers]
        return self.judge_layers(layers, formats, best)

    def judge_layers(
        self, layers: Sequence[IntegerLayer], formats: Mapping[str, LayerFormats], best: Verdict | None = None
    ) -> Verdict:
        """The same of layers with whichever weights."""
        return judge_in_stages(
            (expected.judge(network.trial_logits(layers), formats) for network, expected in self._stages),
            lambda verdict: best is not None and verdict.does_worse(best, GIVE_UP_STANDARD_ERRORS),
        )


def _start(graph: Graph, ranges: Mapping[str, np.ndarray], target: Target) -> Choices:
    """Formats that cover every tensor's range, so that nothing is clipped; s8 kernels take biases of 32 bits."""
    choices: Choices = {}
    for name, tensor in common.tensors(graph):
        if tensor is Tensor.BIAS and target.library.bias_bits > 8:
            continue
        values = ranges[name] if tensor is Tensor.ACTIVATIONS else graph.weights[name][tensor is Tensor.BIAS]
        choices[name, tensor] = common.covering(name, tensor, common.largest(values))
    return choices


def schedule(graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors in the order in which `device_objective` looks at them, if it needs all passes."""
    first = common.tensors(graph)
    if layer_errors.is_deep(graph):
        return first
    return first + (PASSES - 1) * [key for key in first if key[1] is not Tensor.BIAS]


def _descend(judge: Judge, choices: Choices, tolerance: float) -> Generator[Trial, None, dict[str, LayerFormats]]:
    """Moves one format at a time, to finer or else to coarser steps, for as long as the verdict gets better.

    Layers are looked at again where their formats have changed, or those of a layer that they feed. Biases are looked
    at once: their error is far below the others', and does not depend on them.
    """
    source = common.format_sources(judge.graph)
    formats = common.table(judge.graph, choices)
    best = judge.judge(formats)
    visit = list(choices)
    for _ in range(PASSES):
        before = formats
        for name, tensor in visit:
            for step in (1, -1):
                moved = False
                while True:
                    q = choices[name, tensor].finer(step)
                    tried = common.table(judge.graph, {**choices, (name, tensor): q})
                    if tried == formats:  # the kernels cannot carry it
                        break
                    verdict = judge.judge(tried, best)
                    better = best.does_worse(verdict) and verdict.beats(best, tolerance, TRIAL_DEVIATIONS)
                    yield Trial(
                        name,
                        tensor,
                        q,
                        verdict.score,
                        best.first(verdict.images).score,
                        better,
                        reason=verdict.against(best),
                        given_up=verdict.images < best.images,
                    )
                    if not better:
                        break
                    moved, best, formats = True, verdict, tried
                    choices[name, tensor] = q
                if moved:
                    break
        changed = [layer for layer in judge.graph.layers if formats[layer.name] != before[layer.name]]
        near = {layer.name for layer in changed} | {source[name] for layer in changed for name in layer.inputs}
        visit = [(name, t) for name, t in common.tensors(judge.graph) if name in near and t is not Tensor.BIAS]
    return formats


def device_objective(
    graph: Graph,
    reference: FloatNetwork,
    labels: np.ndarray,
    target: Target,
    tolerance: float,
    make_judge: Callable[..., Judge] = Judge,
    bits: str = weight_bits.EIGHT,
    loss: float = weight_bits.LOSS,
    make_narrowing: Callable[..., Narrowing] = Narrowing,
) -> Search:
    """Searches formats on a sample of the images, adapts the weights, and lets all images decide what is taken.

    `tolerance` is in percentage points: smaller differences of accuracy than this do not count. `make_judge` and
    `make_narrowing` take the place of `Judge` and `Narrowing`. `bits` are those of weights (`weight_bits.MODES`); where
    they are mixed, the device may be worse than the float network by `loss` (percentage points).
    """
    images = reference.images
    some = spread(len(images), SAMPLE)
    others = np.setdiff1d(np.arange(len(images)), some)
    logits = np.empty((len(images), graph.result_size), np.float32)
    own = {layer.name for layer in graph.layers if layer.own_format}
    logits[some], ranges = reference.part(images[some]).survey(as_trained(graph), own)
    if len(others):
        logits[others] = reference.part(pick(images, others)).logits(as_trained(graph))

    choices = _start(graph, ranges, target)
    start = common.table(graph, choices)
    judge = make_judge(graph, images[some], labels[some], logits[some], target, STAGES, reference.memory)
    if layer_errors.is_deep(graph):
        formats = yield from layer_errors.layer_by_layer(graph, reference, target, choices)
    else:
        formats = yield from _descend(judge, choices, tolerance)
    yield "adapting the weights"
    seen = spread(len(images), FIT_SAMPLE)
    most = max(1, reference.memory // MEMORY_SHARES // weight_fitting.bytes_per_image(graph))
    fit = Fit(graph, pick(images, seen), target, most)
    candidates = {
        "formats from ranges": Candidate(graph, start),
        "formats searched": Candidate(graph, formats),
        "weights adapted": fit.refine(formats),
    }
    yield "judging the candidates on all images"
    finals = _Finals(images, labels, logits, target, np.union1d(some, seen))
    found = finals.choose(candidates, tolerance)
    if bits == weight_bits.EIGHT:
        return found
    yield "fitting weights of 4 bits"
    if bits == weight_bits.MIXED:
        narrowing = make_narrowing(fit, found.chosen.formats, lambda one: finals.judge(one)[0], judge.judge_layers)
        in_float = found.measured[0].accuracy
        assert in_float is not None
        chosen = yield from weight_bits.mixed(narrowing, in_float - loss)
        narrow = {"weights of 8 and 4 bits": narrowing.candidate(chosen)}
    else:
        names = weight_bits.able(graph, target)
        tables = {"formats from ranges": start, "formats searched": formats}
        narrow = {
            f"weights of 4 bits, {name}": fit.refine(weight_bits.narrowed(graph, table, names))
            for name, table in tables.items()
        }
    narrow_found = finals.choose(narrow, tolerance)
    before = tuple(replace(one, chosen=False) for one in found.measured)
    return replace(narrow_found, measured=before + narrow_found.measured[1:])


class _Finals:
    """Judges candidates on all images, in stages: few at first, and those that the candidates were made with last."""

    def __init__(
        self, images: Images, labels: np.ndarray, logits: np.ndarray, target: Target, known: np.ndarray
    ) -> None:
        """`known` has the indices of the images that the candidates were made with."""
        self.images, self.labels, self.logits, self.target = images, labels, logits, target
        order = np.random.default_rng(0).permutation(len(images))
        order = order[np.argsort(np.isin(order, known), kind="stable")]
        ends = [FIRST_FINAL_IMAGES << i for i in range(len(order).bit_length())]
        self._stages = [np.sort(part) for part in np.split(order, [end for end in ends if end < len(order)])]

    def judge(self, candidate: Candidate, best: Verdict | None = None) -> tuple[Verdict, np.ndarray]:
        """And its logits; on all images or, once it cannot beat `best`, on those of the stages until then."""
        graph, formats = candidate.graph, candidate.formats
        network, layers = DeviceNetwork(graph, self.images, self.target), quantize_network(graph, formats, self.target)
        logits = np.empty((len(self.images), graph.result_size), np.int8)

        def verdicts() -> Iterator[Verdict]:
            for stage in self._stages:
                logits[stage] = network.part(pick(self.images, stage)).logits(layers)
                expected = Expected(graph, self.labels[stage], self.logits[stage])
                yield expected.judge(logits[stage], formats)

        return judge_in_stages(verdicts(), lambda verdict: best is not None and verdict.cannot_beat(best)), logits

    def choose(self, candidates: Mapping[str, Candidate], tolerance: float) -> Found:
        """The last is likely to be the best and comes first; those before it are simpler and win if it is unclear."""
        *others, best_name = candidates
        classifier = candidates[best_name].graph.classifier
        accuracy = accuracy_caffe(self.logits, self.labels) if classifier else None
        measured = [Measured("float", len(self.labels), accuracy)]
        best, logits = self.judge(candidates[best_name])
        measured.append(best.measured(best_name))
        for name in reversed(others):
            if candidates[name].is_same(candidates[best_name]):
                best_name = name
                measured.append(best.measured(name))
                continue
            verdict, on_device = self.judge(candidates[name], best)
            count = verdict.images
            measured.append(verdict.measured(name))
            if count < len(self.images):
                measured.append(best.first(count).measured(best_name))
            elif not best.beats(verdict, tolerance, FINAL_DEVIATIONS):
                best_name, best, logits = name, verdict, on_device
        marked = tuple(replace(one, chosen=one.candidate == best_name) for one in measured)
        return Found(candidates[best_name], marked, logits, self.logits)
