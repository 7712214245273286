# SPDX-License-Identifier: Apache-2.0
"""The same pickle, to the last byte, on any number of processors and threads, and with any memory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caffe_to_cmsis_nn.caffe_io.blobs import write_weights
from tests.support import FULL_SIZE, MODELS, ROOT, prototxt, run, write_dataset

# A sum behind a convolution, which onnxruntime computes with it where it can.
RESIDUAL = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "conv2" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 5 } }
"""
SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (16, 16, 3, 3), "ip": (5, 16 * 6 * 6)}


def _residual(folder: Path) -> list[str]:
    write_dataset(folder, (3, 12, 12), 400, 5)
    rng = np.random.default_rng(2)
    blobs = {name: [rng.normal(0, 0.2, shape), rng.normal(0, 0.2, shape[0])] for name, shape in SHAPES.items()}
    types = {name: "InnerProduct" if name == "ip" else "Convolution" for name in blobs}
    write_weights(folder / "net.caffemodel", "net", blobs, types)
    model = prototxt(folder, RESIDUAL, "ip", "mean_value: 120 scale: 0.01")
    return ["--model", str(model), "--weights", str(folder / "net.caffemodel")]


def _lenet(folder: Path) -> list[str]:
    weights = next(MODELS.glob("lenet_iter_*.caffemodel.h5"))
    shutil.copy(weights, folder)
    model = ["--model", str(MODELS / "lenet_train_test.prototxt"), "--weights", str(folder / weights.name)]
    return [*model, "--iterations", "5"]


CASES = [(_lenet, "device"), (_residual, "caffe"), (_residual, "device")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be taken away from a process")
@pytest.mark.slow
@pytest.mark.parametrize(("network", "objective"), CASES if FULL_SIZE else CASES[:2])
def test_same_bytes(tmp_path: Path, network: Callable[[Path], list[str]], objective: str) -> None:
    """Processors of the process, threads of OpenBLAS, and GB of memory: what is kept, and what is cut in parts."""
    fixed = [*network(tmp_path), "--objective", objective, "--save", str(tmp_path / "net.pkl"), "-q"]
    every = os.sched_getaffinity(0)
    found = set()
    for some, threads, memory in (([min(every)], "1", "2"), ([min(every)], "1", "0.0005"), (every, "4", "0.002")):
        arguments = [*fixed, "--memory", memory]
        code = f"import os; os.sched_setaffinity(0, {some}); import nn_quantizer; exit(nn_quantizer.main({arguments}))"
        ended = run(sys.executable, "-c", code, cwd=ROOT, env={**os.environ, "OPENBLAS_NUM_THREADS": threads})
        assert ended.returncode == 0, ended.stderr
        found.add((tmp_path / "net.pkl").read_bytes())
    assert len(found) == 1
