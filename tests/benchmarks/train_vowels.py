#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the one-dimensional network of tests/data/vowels with Caffe in some seconds, and writes some of its test data.

It tells nine speakers apart by twelve cepstrum coefficients of a Japanese vowel (the UCI repository's Japanese Vowels,
CC BY 4.0), which the package sktime holds: in an environment with requirements-caffe.txt,

    pip download --no-deps sktime && unzip -j sktime-*.whl 'sktime/datasets/data/JapaneseVowels/*' -d vowels
    python -m tests.benchmarks.train_vowels vowels
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import h5py
import numpy as np

from tests.support import ROOT

DATA = ROOT / "tests" / "data" / "vowels"
STEPS = 32  # the longest utterance has 29: all lie in the middle, and their ends are repeated
KEPT = 185  # test images in the repository, every second one
SOLVER = """net: "{folder}/net.prototxt" base_lr: 0.002 lr_policy: "step" gamma: 0.3 stepsize: 1500 max_iter: 4000
type: "Adam" momentum: 0.9 momentum2: 0.999 weight_decay: 0.0005 random_seed: 1 snapshot_after_train: false
solver_mode: CPU"""
TRAINING = """layer {{ name: "data" type: "HDF5Data" top: "data" top: "label" include {{ phase: TRAIN }}
  hdf5_data_param {{ source: "{folder}/train.txt" batch_size: 30 shuffle: true }} }}
{layers}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" }}
"""


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 12, 1, STEPS) float32 and labels (N,) of a .ts file: numbers between commas, channels between colons."""
    features, labels = [], []
    lines = path.read_text("utf-8", errors="replace").split("@data", 1)[1].split()
    for line in lines:
        *channels, label = line.split(":")
        series = np.array([channel.split(",") for channel in channels], np.float32)
        left = (STEPS - series.shape[1]) // 2
        features.append(np.pad(series, ((0, 0), (left, STEPS - series.shape[1] - left)), mode="edge")[:, None])
        labels.append(int(label) - 1)
    return np.array(features), np.array(labels)


def write(folder: Path, name: str, features: np.ndarray, labels: np.ndarray) -> None:
    """An HDF5 file, and the list of files that names it."""
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file.create_dataset("data", data=features, compression="gzip", compression_opts=9, shuffle=True)
        file.create_dataset("label", data=labels.astype(np.float32))
    (folder / f"{name}.txt").write_text(f"{folder / name}.h5\n")


def main() -> None:
    import caffe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts")
    folder = parser.parse_args().folder.resolve()
    for name in ("train", "test"):
        write(folder, name, *load(folder / f"JapaneseVowels_{name.upper()}.ts"))
    text = (DATA / "vowels.prototxt").read_text()
    filled = text.replace("num_output", 'weight_filler { type: "msra" } num_output')
    filled = TRAINING.format(folder=folder, layers=filled.replace('"test.txt"', f'"{folder}/test.txt"'))
    (folder / "net.prototxt").write_text(filled)
    (folder / "solver.prototxt").write_text(SOLVER.format(folder=folder) + " test_iter: 10 test_interval: 5000")
    solver = caffe.get_solver(str(folder / "solver.prototxt"))
    solver.solve()
    right = [float(solver.test_nets[0].forward()["accuracy"]) for _ in range(10)]
    print(f"{100 * np.mean(right):.2f} % of 370 test utterances")
    solver.net.save(str(DATA / "vowels.caffemodel"))
    features, labels = load(folder / "JapaneseVowels_TEST.ts")
    os.chdir(DATA)
    write(Path(), "test", features[::2][:KEPT], labels[::2][:KEPT])


if __name__ == "__main__":
    main()
