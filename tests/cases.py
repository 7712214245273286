# SPDX-License-Identifier: Apache-2.0
"""Named cases: layers that a kernel computes, and layers that are declined, with the message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Declined:
    """Prototxt text behind data of CHW `shape`, and a part of the message that refuses it."""

    name: str
    layers: str
    message: str
    shape: tuple[int, int, int] = (4, 8, 8)


def layer(kind: str, parameters: str, bottom: str = "data", name: str = "x") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {parameters} }}'


def conv(parameters: str, **names: str) -> str:
    return layer("Convolution", f"convolution_param {{ {parameters} }}", **names)


def pool(parameters: str, **names: str) -> str:
    return layer("Pooling", f"pooling_param {{ {parameters} }}", **names)


# Behind each of them comes an inner product with 3 outputs.
DECLINED = [
    Declined("dilation", conv("num_output: 4 kernel_size: 3 dilation: 2"), "dilation [2], allowed is 1"),
    Declined("group does not divide", conv("num_output: 4 kernel_size: 3 group: 3"), "group 3 does not divide 4"),
    Declined("empty output", conv("num_output: 4 kernel_size: 9"), "its output would be empty"),
    Declined("no kernel size", conv("num_output: 4"), "kernel_size is missing"),
    Declined("no num_output", conv("kernel_size: 3"), "num_output is missing"),
    Declined("steep", layer("ReLU", "relu_param { negative_slope: 1.5 }"), "negative_slope 1.5, allowed are -1 to 1"),
    Declined("stochastic", pool("pool: STOCHASTIC kernel_size: 2 stride: 2"), "STOCHASTIC pooling"),
    Declined("pad not below kernel", pool("kernel_size: 2 stride: 2 pad: 2"), "must be below the kernel"),
    Declined("empty window", pool("kernel_size: 1 stride: 3"), "lies outside the image", (4, 5, 5)),
    Declined("unknown type", layer("PReLU", ""), "layer 'x' (PReLU): this type is not supported"),
    Declined("unknown field", conv("num_output: 4 kernel_size: 3 offset: 2"), "a field that this tool does not know"),
]
