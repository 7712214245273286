#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory and instructions of networks whose layers run whole, and row by row, on an emulated Cortex-M4.

RAM is that of the built object (data + bss), instructions are those of one image (QEMU, -icount shift=0). The portable
convolution skips padding; Arm's multiplies it, two im2col columns at a time. For the count, one of that structure takes
its place. Needs the development data, arm-none-eabi-gcc and qemu-system-arm.

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
from q7.codegen import rows
from q7.data import lmdb_images, pictures
from tests.generated import make, network, printed_ticks, sections
from tests.support import MODELS, SHARED, run

DATA = SHARED / "data"
CIFAR, MEAN = DATA / "cifar10" / "cifar10_test_lmdb", DATA / "cifar10" / "mean.binaryproto"
QUICK = ["--iterations", "10", "-q"]  # the bits do not matter here

IM2COL = """
static void convolve(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, int outputs, const q7_t *bias,
                     uint16_t bias_shift, uint16_t out_shift, q7_t *out)
{
    static q15_t columns[2][1 << 14];
    const int size = y.kernel * x.kernel * channels;
    int filled = 0;
    for (int pixel = 0; pixel < y.out * x.out; pixel++) {
        const int top = pixel / x.out * y.stride - y.padding, left = pixel % x.out * x.stride - x.padding;
        q15_t *column = columns[filled++];
        for (int ky = 0; ky < y.kernel; ky++) {
            for (int kx = 0; kx < x.kernel; kx++) {
                const int row = top + ky, at = left + kx;
                const int inside = row >= 0 && row < y.in && at >= 0 && at < x.in;
                const q7_t *cell = image + (row * x.in + at) * channels;
                for (int c = 0; c < channels; c++) {
                    *column++ = inside ? cell[c] : 0;
                }
            }
        }
        if (filled < 2 && pixel < y.out * x.out - 1) {
            continue;
        }
        for (int o = 0; o < outputs; o++) {
            const q7_t *w = wt + o * size;
            uint32_t a = start(bias[o], bias_shift, out_shift), b = a;
            if (filled == 2) {
                for (int k = 0; k < size; k++) {
                    a += (uint32_t)(columns[0][k] * w[k]);
                    b += (uint32_t)(columns[1][k] * w[k]);
                }
                out[outputs + o] = finish(b, out_shift);
            } else {
                for (int k = 0; k < size; k++) {
                    a += (uint32_t)(columns[0][k] * w[k]);
                }
            }
            out[o] = finish(a, out_shift);
        }
        out += filled * outputs;
        filled = 0;
    }
}
"""


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


def measure(pickle: Path, folder: Path, ram: str) -> tuple[int, int]:
    """Bytes of data and bss of the built object, and instructions of one image."""
    arguments = ["--model", str(pickle), "--out_dir", str(folder), "--target", "mps2", "--profile", "--ram", ram]
    with contextlib.redirect_stdout(io.StringIO()):
        assert code_gen.main(arguments) == 0
    kernels = folder / "portable" / "arm_nnfunctions.c"
    before, rest = kernels.read_text().split("/* Weights O,KH,KW,C", 1)
    kernels.write_text(before + IM2COL + "/* Weights KH,KW,C" + rest.split("/* Weights KH,KW,C", 1)[1])
    text = make(folder, "run")
    assert "PASS" in text
    flags = ["-Os", "-mcpu=cortex-m4", "-mthumb", "-DNN_NO_MAIN", f"-I{folder}/portable"]
    done = run("arm-none-eabi-g++", *flags, "-c", folder / "main.cpp", "-o", folder / "n.o")
    assert done.returncode == 0, done.stderr
    ram_bytes = sum(size for name, size in sections(folder / "n.o").items() if name.startswith((".data", ".bss")))
    return ram_bytes, printed_ticks(text)["all"]


def main(names: list[str]) -> None:
    print("| network | RAM whole | row by row | instructions whole | row by row | ratio |\n|---|---|---|---|---|---|")
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            pickle = quantize(CASES[name], Path(folder))
            (whole, count), (least, by_rows) = (measure(pickle, Path(folder, ram), ram) for ram in ("fast", "least"))
            assert least == rows.plan(network(pickle)).least_bytes
            cells = (f"{whole:,}", f"{least:,}", f"{count:,}", f"{by_rows:,}", f"{by_rows / count:.3f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
