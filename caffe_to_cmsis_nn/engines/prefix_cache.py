# SPDX-License-Identifier: Apache-2.0
"""What enters a layer, kept from one trial to the next, which goes on from there if it has the same layers before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np

from caffe_to_cmsis_nn.engines.batches import Values
from caffe_to_cmsis_nn.network.graph import Graph

Settings = Sequence[Any]  # how each layer behaves, in network order; hashable
Last = tuple[Settings, Optional[np.ndarray]]  # a trial's settings and its logits (N, classes)
NONE: Last = ((), None)
Entry = tuple[int, Values]  # a layer's index, and the outputs of earlier layers that are read from there on


def _first_change(before: Settings, now: Settings) -> int:
    """Index of the first layer whose setting is another, 0 where nothing was before."""
    return next((i for i, (a, b) in enumerate(zip(now, before)) if a != b), 0)


class PrefixCache:
    """The last trial's logits and two entries of what entered a layer in it: where it went on from, and one later.

    What holds between trials, also after one that failed:

    - Both entries are what the last trial's settings give before their layers. So they serve a trial that differs
      from the last one at an entry's layer or later, and no other. An entry at layer 0 is the images, and serves all.
    - The later entry's layer is not before the other's, and is the other one where there is nothing to keep.
    - They lie in slabs of memory of their own: the trial reads one while it fills the other. Neither is larger than
      `limit` (bytes).
    """

    def __init__(
        self, graph: Graph, images: Any, stored: Any, limit: int, last: Last = NONE, whole: PrefixCache | None = None
    ) -> None:
        """`stored` is the type of outputs; `whole` has all images: trials come to one part of them after the other."""
        self._graph, self._stored, self._count, self._limit = graph, stored, len(images), limit
        self._settings, self._logits = last
        # The two latest trials, whichever parts of the images they saw.
        self._latest: deque[Settings] = whole._latest if whole else deque([(), ()], 2)
        self._images: Entry = (0, {graph.input.name: images})
        self._kept = self._later = self._images
        self._slabs = [np.empty(0, stored)] * 2  # the first is where `_kept` lies

    def logits(self, settings: Settings, compute: Callable[[int, Values, Values], np.ndarray]) -> np.ndarray:
        """A trial's; `compute` gets the layer to go on from, what enters it, and arrays to fill with other outputs."""
        if settings == self._settings and self._logits is not None:
            return self._logits
        if settings != self._latest[1]:
            self._latest.append(settings)
        changed = _first_change(self._settings, settings)
        if changed >= self._later[0] > self._kept[0]:
            self._kept, self._slabs = self._later, self._slabs[::-1]
        if changed < self._kept[0]:
            self._kept = self._images
        self._later = self._kept  # what else there was is written over
        room = self._room(self._next_change(max(changed, _first_change(*self._latest))))
        logits = compute(*self._kept, room[1] if room else {})
        self._later, self._settings, self._logits = room or self._kept, settings, logits
        return logits

    def _next_change(self, changed: int) -> int:
        """The layer where the next trial is likely to differ, 0 where there is none.

        That is the next one that has a format, or once more this one, if it took other layers to come here.
        """
        layers = self._graph.layers
        on_the_way = any(layer.weighted for layer in layers[self._kept[0] : changed])
        candidates = range(changed if on_the_way else changed + 1, len(layers))
        return next((i for i in candidates if layers[i].weighted or layers[i].own_format), 0)

    def _room(self, position: int) -> Entry | None:
        """Arrays for what enters a layer, in the slab that is free; None for the first layer, or where too large.

        They lie in memory that was used before: to get fresh memory takes longer than to compute what goes in.
        """
        live = self._graph.live(position)
        sizes = [self._count * layer.out_size for layer in live]
        if not position or sum(sizes) * self._slabs[1].itemsize > self._limit:
            return None
        if self._kept[0] == 0:  # both are free: the smallest that is large enough
            self._slabs.sort(key=lambda slab: (len(slab) < sum(sizes), len(slab)), reverse=True)
        if len(self._slabs[1]) < sum(sizes):
            self._slabs[1] = np.empty(0)  # freed before
            self._slabs[1] = np.empty(sum(sizes), self._stored)
        arrays = np.split(self._slabs[1], np.cumsum(sizes))
        return position, {layer.name: array.reshape(-1, *layer.out_shape) for layer, array in zip(live, arrays)}
