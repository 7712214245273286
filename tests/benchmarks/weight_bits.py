#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What weights of 4 bits save and cost: bytes of constants and accuracy with 8, 4 and mixed bits, dsp core.

Run from the project's root: python -m tests.benchmarks.weight_bits [--api q7|s8] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import nn_quantizer
from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.network.quantized import quantize_network
from caffe_to_cmsis_nn.pipeline.job import prepare
from caffe_to_cmsis_nn.pipeline.quantize import find_formats, open_journal
from caffe_to_cmsis_nn.search import weight_bits
from caffe_to_cmsis_nn.target import LIBRARIES, Target
from tests.benchmarks.accuracy import Case, cases, in_float, on_device


class Result(NamedTuple):
    """Bytes of constants, percentage points below the float network on the reported images, and layers of 4 bits."""

    flash: int
    loss: float
    narrow: int


def measure(case: Case, target: Target, *options: str) -> tuple[float, dict[str, Result]]:
    """The float network's accuracy (percent), and the results by the bits of weights; formats are searched once."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        arguments = ["--model", str(case.model), "--weights", str(case.weights), "--accuracy", case.accuracy]
        arguments += ["--save", str(Path(folder) / "net.pkl"), "--api", target.library.name, *options]
        asked = nn_quantizer.parse_arguments(arguments)
        job = prepare(asked)
        answers = open_journal(job, asked)
        reference, results = in_float(job), {}
        for bits in choices.WEIGHT_BITS:
            chosen = find_formats(job, replace(asked, weight_bits=bits), answers)[0].chosen
            integers = quantize_network(chosen.graph, chosen.formats, target)
            flash = sum(own.constant_bytes(layer) for layer, own in zip(chosen.graph.layers, integers))
            narrow = sum(own.weight_bits == weight_bits.FEW for own in chosen.formats.values())
            results[bits] = Result(flash, reference - on_device(job, chosen, target), narrow)
        answers.remove()
    return reference, results


def all_images(name: str, case: Case, target: Target) -> str:
    """A row: float, then flash and accuracy of each, and in how many layers mixed bits are 4."""
    reference, results = measure(case, target)
    cells = [f"{result.flash:,} | {reference - result.loss:.2f}" for result in results.values()]
    return f"| {name} | {reference:.2f} | {' | '.join(cells)} | {results[choices.WEIGHTS_MIXED].narrow} |"


def held_out(name: str, case: Case, target: Target, splits: int) -> str:
    """A row: the mean loss on held-out halves with each, its standard deviation, and the mean flash."""
    found, cells = [], []
    for seed in range(splits):
        found.append(measure(case, target, "--holdout", "0.5", "--seed", str(seed))[1])
        print(f"{name}, split {seed}: {found[-1]}", file=sys.stderr, flush=True)
    for bits in choices.WEIGHT_BITS:
        losses, sizes = zip(*((results[bits].loss, results[bits].flash) for results in found))
        cells.append(f"{np.mean(losses):+.2f} ± {np.std(losses):.2f} | {np.mean(sizes):,.0f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", help="names (default: all that are here)")
    parser.add_argument("--splits", type=int, default=5, help="held-out halves to report on")
    parser.add_argument("--api", choices=LIBRARIES, default="s8", help="kernel library")
    args = parser.parse_args()
    target = Target(library=LIBRARIES[args.api])
    chosen = {name: case for name, case in cases().items() if not args.network or name in args.network}
    modes = [f"{bits} bits" if bits != choices.WEIGHTS_MIXED else bits for bits in choices.WEIGHT_BITS]
    heads = " | ".join(f"{mode}: bytes | %" for mode in modes)
    print(f"| network | float % | {heads} | layers of 4 bits |\n" + "|---" * 9 + "|")
    for name, case in chosen.items():
        print(all_images(name, case, target), flush=True)
    if args.splits:
        heads = " | ".join(f"{mode}: loss | bytes" for mode in modes)
        print(f"\nMean loss in percentage points on held-out halves, over {args.splits} splits:\n")
        print(f"| network | {heads} |\n" + "|---" * 7 + "|")
        for name, case in chosen.items():
            print(held_out(name, case, target, args.splits), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
