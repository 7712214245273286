# SPDX-License-Identifier: Apache-2.0
"""The default search: judges formats by the integer network, from raw pixels to logits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace

import numpy as np

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.data.image_set import Images, evenly_spaced, pick
from caffe_to_cmsis_nn.engines.accuracy import accuracy_caffe
from caffe_to_cmsis_nn.engines.batches import Values
from caffe_to_cmsis_nn.engines.engine import MEMORY_SHARES, NotFinite
from caffe_to_cmsis_nn.engines.networks import DeviceNetwork, FloatNetwork, as_trained
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.network.quantized import Measured, quantize_network
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.search import common, weight_bits
from caffe_to_cmsis_nn.search.common import Candidate, Choices, Search, SearchResult, Tensor, Trial
from caffe_to_cmsis_nn.search.layer_errors import LayerErrors, layer_by_layer
from caffe_to_cmsis_nn.search.verdict import FINAL_DEVIATIONS, Expected, Verdict, judge_in_stages
from caffe_to_cmsis_nn.search.weight_bits import Narrowing
from caffe_to_cmsis_nn.search.weight_fitting import Fit
from caffe_to_cmsis_nn.target import Target

SAMPLE = 2000  # images for ranges, and for the cost of 4-bit weights
FIT_SAMPLE = 3000  # images for fitting weights
Known = tuple[np.ndarray, np.ndarray]  # indices of images, and their logits on the device
NOTHING: Known = np.empty(0, np.intp), np.empty((0, 1), np.int8)
FIRST_FINAL_IMAGES = 1000  # in the first stage of judging candidates; later stages double the number


def _start(graph: Graph, ranges: Mapping[str, np.ndarray], target: Target) -> Choices:
    """Formats that cover every tensor's range without clipping; biases of s8 kernels have 32 bits instead."""
    choices: Choices = {}
    for name, tensor in common.tensors(graph):
        if tensor is Tensor.BIAS and target.library.bias_bits > 8:
            continue
        values = ranges[name] if tensor is Tensor.ACTIVATIONS else graph.weights[name][tensor is Tensor.BIAS]
        choices[name, tensor] = common.covering(name, tensor, common.largest(values))
    return choices


def _finer_logits(fit: Fit, formats: Mapping[str, LayerFormats], expected: Expected) -> Mapping[str, LayerFormats]:
    """Makes a classifier's logits finer while that helps, although the largest ones saturate.

    With fitted weights, the logits' steps cause most of their error, and ties. A finer format must give more images the
    float network's class (the labels of `expected`), and must not increase the divergence.
    """
    last = fit.graph.output_layers[-1]
    if not (fit.graph.classifier and last.weighted):
        return formats
    best = expected.judge(fit.results(formats), formats)
    while True:
        own = formats[last.name]
        assert own.y
        finer = common.clamp_to_kernel_limits(fit.graph, {**formats, last.name: replace(own, y=own.y.finer(1))})
        if finer == formats:  # beyond the kernels' limits
            return formats
        verdict = expected.judge(fit.results(finer), finer)
        if not verdict.beats(best, 0.0, FINAL_DEVIATIONS) or verdict.does_worse(best, FINAL_DEVIATIONS):
            return formats
        formats, best = finer, verdict


class _DeviceSearch:
    """The float network's results, and the steps of a search for formats and weights."""

    def __init__(self, graph: Graph, reference: FloatNetwork, labels: np.ndarray, target: Target) -> None:
        self._graph, self._reference, self._labels, self._target = graph, reference, labels, target
        self._images = images = reference.images
        self._some = evenly_spaced(len(images), SAMPLE)  # indices of the sample
        self._seen = evenly_spaced(len(images), FIT_SAMPLE)  # indices of the images that weights are fitted to
        self._logits = np.empty((len(images), graph.result_size), np.float32)
        self._ranges: Values = {}  # of the sample
        for indices in (np.setdiff1d(np.arange(len(images)), self._some), self._some):
            if len(indices):
                self._ranges = self._survey(indices)
        self.finals = _Finals(images, labels, self._logits, target, np.union1d(self._some, self._seen))

    def _survey(self, indices: np.ndarray) -> Values:
        """The ranges of some images, whose float logits are kept; raises NotFinite with an index among all images."""
        own = {layer.name for layer in self._graph.layers if layer.own_format}
        part = self._reference.part(pick(self._images, indices))
        try:
            self._logits[indices], ranges = part.survey(as_trained(self._graph), own)
        except NotFinite as error:
            raise error.among(indices) from None
        return ranges

    def _fit_of(self, network: Graph) -> Fit:
        memory = self._reference.memory // MEMORY_SHARES
        return Fit(network, pick(self._images, self._seen), self._target, memory)

    def eight_bits(
        self, make_errors: Callable[..., LayerErrors], tolerance: float
    ) -> Generator[Trial | str, None, SearchResult]:
        """Searches formats layer by layer, fits the weights, and judges the candidates on all images."""
        graph, seen = self._graph, self._seen
        choices = _start(graph, self._ranges, self._target)
        searched = yield from layer_by_layer(make_errors(graph, self._images, self._target), choices)
        yield "adapting the weights"
        self._fit = self._fit_of(searched.graph)
        as_in_float = Expected(graph, self._logits[seen].argmax(axis=1), self._logits[seen])
        self._formats = _finer_logits(self._fit, searched.formats, as_in_float)
        candidates = {
            "formats from ranges": Candidate(graph, common.table(graph, choices)),
            "formats searched": searched,
            "weights adapted": self._fit.refine(self._formats),
        }
        yield "judging the candidates on all images"
        return self.finals.choose(candidates, tolerance, (seen, self._fit.results(self._formats)))

    def four_bits(self) -> dict[str, Candidate]:
        """Weights of 4 bits in all layers with a kernel for them."""
        layers = weight_bits.supporting(self._graph, self._target)
        return {"weights of 4 bits": self._fit.refine(weight_bits.narrowed(self._fit.graph, self._formats, layers))}

    def mixed_bits(
        self, found: SearchResult, loss: float, make_narrowing: Callable[..., Narrowing]
    ) -> Generator[Trial | str, None, dict[str, Candidate]]:
        """Weights of 4 bits in as many layers as `loss` (percentage points) allows."""
        some, trained = self._some, found.chosen.trained
        network = DeviceNetwork(self._graph, pick(self._images, some), self._target, self._reference.memory)
        expected = Expected(self._graph, self._labels[some], self._logits[some])
        narrowing = make_narrowing(
            self._fit if trained is self._fit.graph else self._fit_of(trained),
            found.chosen.formats,
            lambda one: self.finals.judge(one)[0],
            lambda layers, formats: expected.judge(network.logits(layers), formats),
        )
        in_float = found.measured[0].accuracy
        assert in_float is not None
        chosen = yield from weight_bits.mixed(narrowing, in_float - loss)
        return {"weights of 8 and 4 bits": narrowing.candidate(chosen)}


def device_objective(
    graph: Graph,
    reference: FloatNetwork,
    labels: np.ndarray,
    target: Target,
    tolerance: float,
    make_errors: Callable[..., LayerErrors] = LayerErrors,
    bits: str = choices.WEIGHTS_8,
    loss: float = choices.LOSS,
    make_narrowing: Callable[..., Narrowing] = Narrowing,
) -> Search:
    """Searches formats on a sample of the images, fits the weights, and chooses a candidate on all images.

    `tolerance` is in percentage points: smaller differences of accuracy do not count. `make_errors` and
    `make_narrowing` replace `LayerErrors` and `Narrowing`. `bits` is one of `choices.WEIGHT_BITS`; mixed weights may
    cost the device `loss` percentage points against the float network.
    """
    search = _DeviceSearch(graph, reference, labels, target)
    found = yield from search.eight_bits(make_errors, tolerance)
    if bits == choices.WEIGHTS_8:
        return found
    yield "fitting weights of 4 bits"
    if bits == choices.WEIGHTS_MIXED:
        candidates = yield from search.mixed_bits(found, loss, make_narrowing)
    else:
        candidates = search.four_bits()
    narrow_found = search.finals.choose(candidates, tolerance)
    before = tuple(replace(one, chosen=False) for one in found.measured)
    return replace(narrow_found, measured=before + narrow_found.measured[1:])


class _Finals:
    """Judges candidates on all images, in stages of growing size; images used to make the candidates come last."""

    def __init__(
        self, images: Images, labels: np.ndarray, logits: np.ndarray, target: Target, known: np.ndarray
    ) -> None:
        """`known` has the indices of the images that were used to make the candidates."""
        self.images, self.labels, self.logits, self.target = images, labels, logits, target
        order = np.random.default_rng(0).permutation(len(images))
        order = order[np.argsort(np.isin(order, known), kind="stable")]
        ends = [FIRST_FINAL_IMAGES << i for i in range(len(order).bit_length())]
        self._stages = [np.sort(part) for part in np.split(order, [end for end in ends if end < len(order)])]

    def judge(
        self, candidate: Candidate, best: Verdict | None = None, known: Known = NOTHING
    ) -> tuple[Verdict, np.ndarray]:
        """The verdict on a candidate, and its logits; stops after a stage if it cannot beat `best` any more.

        `known` logits are not computed again.
        """
        graph, formats = candidate.graph, candidate.formats
        network, layers = DeviceNetwork(graph, self.images, self.target), quantize_network(graph, formats, self.target)
        logits = np.empty((len(self.images), graph.result_size), np.int8)
        logits[known[0]] = known[1]

        def verdicts() -> Iterator[Verdict]:
            for stage in self._stages:
                new = np.setdiff1d(stage, known[0])
                if new.size:
                    logits[new] = network.part(pick(self.images, new)).logits(layers)
                expected = Expected(graph, self.labels[stage], self.logits[stage])
                yield expected.judge(logits[stage], formats)

        return judge_in_stages(verdicts(), lambda verdict: best is not None and verdict.cannot_beat(best)), logits

    def choose(self, candidates: Mapping[str, Candidate], tolerance: float, known: Known = NOTHING) -> SearchResult:
        """Chooses among candidates, simplest first: a later one must be clearly better than those before it.

        The last one is judged first, since it is most likely the best; `known` has logits of it.
        """
        *others, best_name = candidates
        classifier = candidates[best_name].graph.classifier
        accuracy = accuracy_caffe(self.logits, self.labels) if classifier else None
        measured = [Measured("float", len(self.labels), accuracy)]
        best, logits = self.judge(candidates[best_name], known=known)
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
        return SearchResult(candidates[best_name], marked, logits, self.logits)
