#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""RAM of networks whose layers run whole, and row by row: data + bss of the object built for a Cortex-M4.

Needs the development data and arm-none-eabi-gcc. Instructions: python -m tests.real_library --instructions.

Run from the project's root: python -m tests.benchmarks.rows [NETWORK ...]
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.data import lmdb_images, pictures
from caffe_to_cmsis_nn.plan import rows
from tests.generated import network, sections
from tests.support import MODELS, SHARED, run

DATA = SHARED / "data"
CIFAR, MEAN = DATA / "cifar10" / "cifar10_test_lmdb", DATA / "cifar10" / "mean.binaryproto"
QUICK = ["--iterations", "10", "-q"]  # the bits do not matter here


@dataclass(frozen=True)
class Case:
    """A network's files, and the flags of nn_quantizer.py that go with them."""

    model: Path
    weights: Path
    flags: tuple[str, ...] = ()


CIFAR_FLAGS = ("--lmdb", str(CIFAR), "--mean", str(MEAN))
CASES = {
    "LeNet": Case(MODELS / "lenet_train_test.prototxt", MODELS / "lenet_iter_12000.caffemodel.h5"),
    "m4": Case(MODELS / "cifar10_m4_train_test.prototxt", MODELS / "cifar10_m4_iter_40000.caffemodel.h5", CIFAR_FLAGS),
    "m7": Case(MODELS / "cifar10_m7_train_test.prototxt", MODELS / "cifar10_m7_iter_12000.caffemodel.h5", CIFAR_FLAGS),
    "ResNet-8": Case(
        DATA / "mlperf_tiny" / "mlperf_tiny_resnet8_train_test.prototxt",
        DATA / "mlperf_tiny" / "mlperf_tiny_resnet8.caffemodel",
        ("--lmdb", str(CIFAR)),
    ),
    "VWW": Case(
        DATA / "mlperf_tiny" / "mlperf_tiny_vww_train_test.prototxt",
        DATA / "mlperf_tiny" / "mlperf_tiny_vww.caffemodel",
        ("--lmdb", "vww_lmdb"),
    ),
    "resnet20": Case(
        DATA / "resnet20" / "res20_cifar_train_test.prototxt",
        DATA / "resnet20" / "cifar10_res20_iter_64000.caffemodel",
        (*CIFAR_FLAGS, "--accuracy", "Accuracy1"),
    ),
}


def enlarged(folder: Path, count: int) -> None:
    """CIFAR-10 pictures of 96x96 pixels in two classes: their bits count, not the accuracy."""
    images, labels = lmdb_images.read(CIFAR, range(count))
    large = [pictures.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), 96, 96) for image in images]
    lmdb_images.write(folder / "vww_lmdb", [image.transpose(2, 0, 1) for image in large], labels % 2)


def arguments(case: Case, folder: Path, pictures: int = 300) -> list[str]:
    """nn_quantizer's; the weights are copied first, since something is written beside them."""
    weights = Path(shutil.copy(case.weights, folder))
    flags = [str(folder / flag) if flag == "vww_lmdb" else flag for flag in case.flags]
    if "vww_lmdb" in case.flags:
        enlarged(folder, pictures)
    return ["--model", str(case.model), "--weights", str(weights), "--save", str(folder / "net.pkl"), *flags]


def quantize(case: Case, folder: Path, *options: str) -> Path:
    """The network's pickle."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert nn_quantizer.main([*arguments(case, folder), *QUICK, *options]) == 0
    return folder / "net.pkl"


def measure(pickle: Path, folder: Path, ram: str) -> int:
    """Bytes of data and bss of the built object."""
    arguments = ["--model", str(pickle), "--out_dir", str(folder), "--target", "mps2", "--ram", ram]
    with contextlib.redirect_stdout(io.StringIO()):
        assert code_gen.main(arguments) == 0
    flags = ["-Os", "-mcpu=cortex-m4", "-mthumb", "-DNN_NO_MAIN", f"-I{folder}/portable"]
    done = run("arm-none-eabi-g++", *flags, "-c", folder / "main.cpp", "-o", folder / "n.o")
    assert done.returncode == 0, done.stderr
    return sum(size for name, size in sections(folder / "n.o").items() if name.startswith((".data", ".bss")))


def main(names: list[str]) -> None:
    print("| network | RAM whole | row by row |\n|---|---|---|")
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            pickle = quantize(CASES[name], Path(folder))
            whole, least = (measure(pickle, Path(folder, ram), ram) for ram in ("fast", "least"))
            assert least == rows.plan(network(pickle)).least_bytes
            print(f"| {name} | {whole:,} | {least:,} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
