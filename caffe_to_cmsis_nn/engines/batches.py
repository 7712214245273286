# SPDX-License-Identifier: Apache-2.0
"""Distributes images over the CPU cores, in batches that fit into caches and memory.

Batch sizes do not depend on the number of cores, since float results may depend on the batch size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

BATCH = 25  # images that a core runs at once; few enough for its cache
LARGE_BATCH = 100  # images at once if cores do not share the work
BATCH_BYTES = 1 << 23  # of layer outputs that are alive in a batch

Values = dict[str, np.ndarray]  # by layer: outputs, or raw images for the input layer; the first axis is the image
Run = Callable[[Values], Sequence[np.ndarray]]
Use = Callable[[slice, Sequence[np.ndarray]], None]  # takes a range of images, and their results


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class BatchRunner:
    """Runs batches of at most `most` images in `workers` threads.

    Each core runs its own batches. Splitting the work within layers instead would make cores wait for each other.
    """

    most: int
    workers: int

    def run(self, run: Run, inputs: Values, images: int, bytes_per_image: int, use: Use) -> None:
        """Calls `run` for each batch, and `use` with its results, both in the worker's thread."""
        size = max(1, min(self.most, BATCH_BYTES // bytes_per_image))
        starts = iter(range(0, images, size))

        def work() -> None:
            for start in starts:
                some = slice(start, start + size)
                use(some, run({name: values[some] for name, values in inputs.items()}))

        if self.workers == 1:  # in this thread, since Caffe's GPU mode applies to one thread
            work()
            return
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for worker in as_completed([pool.submit(work) for _ in range(self.workers)]):
                    worker.result()
            finally:
                deque(starts, maxlen=0)  # after an error or a signal, the other workers stop
