# SPDX-License-Identifier: Apache-2.0
"""Trains the network of a prototxt with PyTorch, and saves the weights in Caffe's formats."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs, write_weights
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt


def build(path: Path, shape: tuple[int, ...]) -> tuple[nn.Sequential, float]:
    """The sequential network of a prototxt for CHW inputs of `shape`, and the scale of its transform.

    Caffe rounds pooling sizes up and clips the last windows, as PyTorch does with ceil_mode.
    """
    network, scale, flat = nn.Sequential(), 1.0, False
    x = torch.zeros(1, *shape)
    for layer in read_prototxt(path).layers:
        module: nn.Module
        if layer.type == "Data":
            scale = layer.transform_param.scale
            continue
        if layer.type == "Convolution":
            conv = layer.convolution_param
            module = nn.Conv2d(x.shape[1], conv.num_output, conv.kernel_size[0], padding=conv.pad[0] if conv.pad else 0)
        elif layer.type == "Pooling":
            pool = layer.pooling_param
            kind = nn.MaxPool2d if pool.pool == pool.MAX else nn.AvgPool2d
            module = kind(pool.kernel_size, pool.stride, ceil_mode=True)
        elif layer.type == "InnerProduct":
            if not flat:
                network.add_module("flatten", nn.Flatten())
                x, flat = x.flatten(1), True
            module = nn.Linear(x.shape[1], layer.inner_product_param.num_output)
        elif layer.type == "ReLU":
            module = nn.ReLU()
        else:
            continue
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        x = module(x)
        network.add_module(layer.name, module)
    return network, scale


def augment(x: torch.Tensor, shift: int, flip: bool) -> torch.Tensor:
    """Shifts each image by up to `shift` pixels along both axes, filled with zeros, and mirrors half of the images."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, (shift,) * 4)
    rows = torch.randint(0, 2 * shift + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * shift + 1, (count, 1)) + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def build_optimizer(network: nn.Module, rate: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum, without weight decay for biases."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim == 1]
    return torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": biases, "weight_decay": 0.0}],
        lr=rate,
        momentum=0.9,
        nesterov=True,
    )


def collect(network: nn.Module, factor: float) -> tuple[Blobs, dict[str, str]]:
    """Weights and biases by layer, with the first layer's weights multiplied by `factor`, and the Caffe types."""
    weights: Blobs = {}
    types = {}
    for name, module in network.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.detach().numpy() * (factor if not weights else 1.0)
            weights[name] = [weight.astype(np.float32), module.bias.detach().numpy()]
            types[name] = "Convolution" if isinstance(module, nn.Conv2d) else "InnerProduct"
    return weights, types


def train(
    prototxt: Path,
    images: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray | None,
    epochs: int,
    rate: float,
    shift: int,
    flip: bool,
    bfloat16: bool = False,
    seed: int = 1,
    batch: int = 100,
) -> None:
    """SGD with Nesterov momentum and a one-cycle rate; writes NAME_iter_N.caffemodel.h5 and .caffemodel.

    NAME and the folder are those of the prototxt NAME_train_test.prototxt.

    If the prototxt has no scale, inputs are divided by 64 during training to suit the usual initialization and rates;
    the factor is folded into the first layer's weights afterwards. With `bfloat16`, products are computed in that type,
    which is about three times as fast on processors that support it.
    """
    torch.manual_seed(seed)
    network, scale = build(prototxt, images.shape[1:])
    if bfloat16:
        network.to(memory_format=torch.channels_last)
    inner = 1 / 64 if scale == 1 else 1.0
    offset = torch.from_numpy(mean) if mean is not None else torch.zeros(images.shape[1:])
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels).long()
    iterations = epochs * (len(images) // batch)
    optimizer = build_optimizer(network, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=iterations, pct_start=0.2)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    for epoch in range(epochs):
        order, total, right = torch.randperm(len(images)), 0.0, 0
        for i in range(len(images) // batch):
            chosen = order[i * batch : (i + 1) * batch]
            x = augment((pixels[chosen].float() - offset) * (scale * inner), shift, flip)
            if bfloat16:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(x).float()
            loss = nn.functional.cross_entropy(logits, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            total += loss.item()
            right += int((logits.argmax(1) == targets[chosen]).sum())
        count = batch * (len(images) // batch)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total * batch / count:.4f}, right {100 * right / count:.2f} %",
            flush=True,
        )
        if not math.isfinite(total):
            raise SystemExit("training diverged")
    weights, types = collect(average.module, inner)
    title = read_prototxt(prototxt).name
    for suffix in (".caffemodel.h5", ".caffemodel"):
        path = Path(str(prototxt).replace("_train_test.prototxt", f"_iter_{iterations}{suffix}"))
        write_weights(path, title, weights, types)
        print(f"{path}  sha256 {files.sha256(path)}")
