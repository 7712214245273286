# SPDX-License-Identifier: Apache-2.0
"""Shares images out among the cores, in batches that fit their caches and the memory.

Batches do not depend on the number of cores, since what a batch gives in float may depend on its size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

BATCH = 25  # images that a core runs at once: few enough for its cache
LARGE_BATCH = 100  # images at once where cores do not share the work
BATCH_BYTES = 1 << 23  # of layers' outputs that are alive in a batch

Values = dict[str, np.ndarray]  # outputs by layer, or raw images by the input layer; the first axis is the image
Run = Callable[[Values], Sequence[np.ndarray]]
Use = Callable[[slice, Sequence[np.ndarray]], None]  # takes which images, and what a run gave for them


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class BatchRunner:
    """Runs batches of at most `most` images, each in one of so many threads (`workers`).

    Each core runs batches of its own: to split the work within every layer instead has the cores wait for each other.
    """

    most: int
    workers: int

    def run(self, run: Run, inputs: Values, images: int, bytes_per_image: int, use: Use) -> None:
        """Has `use` take what `run` gives for each batch of so many images, in the worker's thread."""
        size = max(1, min(self.most, BATCH_BYTES // bytes_per_image))
        starts = iter(range(0, images, size))

        def work() -> None:
            for start in starts:
                some = slice(start, start + size)
                use(some, run({name: values[some] for name, values in inputs.items()}))

        if self.workers == 1:  # in this thread, which Caffe has been told to compute on the GPU in
            work()
            return
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for worker in as_completed([pool.submit(work) for _ in range(self.workers)]):
                    worker.result()
            finally:
                deque(starts, maxlen=0)  # where one has failed, or a signal has come, the others stop
