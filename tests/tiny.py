# SPDX-License-Identifier: Apache-2.0
"""A network of a few hundred weights as Caffe's files, and quantized: what the readers' tests read and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nn_quantizer
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, write_weights
from tests.support import prototxt, write_dataset

LAYERS = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 2 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 3 } }
"""
TYPES = {"conv1": "Convolution", "ip1": "InnerProduct"}
IMAGE = (3, 6, 6)
CLASSES = 3


def blobs(seed: int = 0) -> Blobs:
    """Weights that fit the tiny network."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1": [(2, 3, 3, 3), (2,)], "ip1": [(CLASSES, 18), (CLASSES,)]}
    return {name: [rng.normal(0, 0.1, s).astype(np.float32) for s in both] for name, both in shapes.items()}


def write(folder: Path, suffix: str = ".caffemodel.h5") -> list[str]:
    """Writes prototxt, weights and data set; returns nn_quantizer's arguments."""
    write_dataset(folder, IMAGE, 100, CLASSES)
    model = prototxt(folder, LAYERS, "ip1", "mean_value: 120")
    weights = folder / f"net{suffix}"
    write_weights(weights, "net", blobs(), TYPES)
    return ["--model", str(model), "--weights", str(weights), "--save", str(folder / "net.pkl")]


def quantize(folder: Path) -> Path:
    """Writes and quantizes the network; returns the pickle."""
    assert nn_quantizer.main(write(folder)) == 0
    return folder / "net.pkl"
