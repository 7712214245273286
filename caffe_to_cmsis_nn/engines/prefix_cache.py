# SPDX-License-Identifier: Apache-2.0
"""Caches layer inputs, so that the next trial can skip the unchanged prefix of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np

from caffe_to_cmsis_nn.engines.batches import Values
from caffe_to_cmsis_nn.network.graph import Graph

Settings = Sequence[Any]  # one per layer, in network order; hashable
Last = tuple[Settings, Optional[np.ndarray]]  # a trial's settings and its logits (N, classes)
NONE: Last = ((), None)
Entry = tuple[int, Values]  # a layer's index, and the outputs of earlier layers that are live there


def _first_change(before: Settings, now: Settings) -> int:
    """The index of the first layer with a different setting; 0 without settings before."""
    return next((i for i, (a, b) in enumerate(zip(now, before)) if a != b), 0)


class PrefixCache:
    """The last trial's logits and two cached entries: the one that the trial resumed from, and a later one.

    Invariants between trials, also after a failed one:

    - Both entries match the last trial's settings. So they serve only trials that differ from it at an entry's layer or
      later. An entry at layer 0 holds the images, and serves all trials.
    - The later entry is not before the other one. It is the same entry if there was nothing to keep.
    - Each entry has its own slab of memory: a trial reads one while it fills the other. A slab has at most `limit`
      bytes.
    """

    def __init__(
        self, graph: Graph, images: Any, stored: Any, limit: int, last: Last = NONE, whole: PrefixCache | None = None
    ) -> None:
        """`stored` is the type of outputs; `whole` is the cache over all images, if this one is for a part of them."""
        self._graph, self._stored, self._count, self._limit = graph, stored, len(images), limit
        self._settings, self._logits = last
        # The settings of the two latest trials, shared by all parts of the images.
        self._latest: deque[Settings] = whole._latest if whole else deque([(), ()], 2)
        self._images: Entry = (0, {graph.input.name: images})
        self._kept = self._later = self._images
        self._slabs = [np.empty(0, stored)] * 2  # the first holds `_kept`

    def logits(self, settings: Settings, compute: Callable[[int, Values, Values], np.ndarray]) -> np.ndarray:
        """A trial's logits; `compute` takes the layer to resume from, its inputs, and arrays to fill with outputs."""
        if settings == self._settings and self._logits is not None:
            return self._logits
        if settings != self._latest[1]:
            self._latest.append(settings)
        changed = _first_change(self._settings, settings)
        if changed >= self._later[0] > self._kept[0]:
            self._kept, self._slabs = self._later, self._slabs[::-1]
        if changed < self._kept[0]:
            self._kept = self._images
        self._later = self._kept  # the other slab is overwritten
        room = self._room(self._next_change(max(changed, _first_change(*self._latest))))
        logits = compute(*self._kept, room[1] if room else {})
        self._later, self._settings, self._logits = room or self._kept, settings, logits
        return logits

    def _next_change(self, changed: int) -> int:
        """The layer where the next trial is likely to differ, or 0.

        That is the next layer with a format. It is this layer again if the trial ran other weighted layers before it.
        """
        layers = self._graph.layers
        on_the_way = any(layer.weighted for layer in layers[self._kept[0] : changed])
        candidates = range(changed if on_the_way else changed + 1, len(layers))
        return next((i for i in candidates if layers[i].weighted or layers[i].own_format), 0)

    def _room(self, position: int) -> Entry | None:
        """Arrays for a layer's inputs, in the free slab; None for the first layer, or if they are too large.

        Slabs are reused, since allocating memory takes longer than computing its contents.
        """
        live = self._graph.live(position)
        sizes = [self._count * layer.out_size for layer in live]
        if not position or sum(sizes) * self._slabs[1].itemsize > self._limit:
            return None
        if self._kept[0] == 0:  # both are free: take the smallest that is large enough
            self._slabs.sort(key=lambda slab: (len(slab) < sum(sizes), len(slab)), reverse=True)
        if len(self._slabs[1]) < sum(sizes):
            self._slabs[1] = np.empty(0)  # free the old one first
            self._slabs[1] = np.empty(sum(sizes), self._stored)
        arrays = np.split(self._slabs[1], np.cumsum(sizes))
        return position, {layer.name: array.reshape(-1, *layer.out_shape) for layer, array in zip(live, arrays)}
