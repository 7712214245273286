# SPDX-License-Identifier: Apache-2.0
"""Generates the tables in docs/layers.md from the docstrings of layers and constraints."""

from __future__ import annotations

from dataclasses import fields

from caffe_to_cmsis_nn.data.readers import READERS
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.identities import IDENTITIES
from caffe_to_cmsis_nn.ops.input import Features, Input
from caffe_to_cmsis_nn.ops.registry import ALL_KERNELS, CLASSES
from caffe_to_cmsis_nn.target import LIBRARIES, Library

BEGIN, END = "<!-- layers -->", "<!-- /layers -->"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _how(cls: type[Layer], library: Library) -> str:
    supporting: dict[str, set[int]] = {}
    for kernel in sorted(cls.kernels, key=lambda kernel: -kernel.weight_bits):
        if library in kernel.libraries:
            supporting.setdefault(kernel.name, set()).add(kernel.weight_bits)
    bits = {
        name: "" if held == {8} else f" ({'also ' * (8 in held)}4-bit weights)" for name, held in supporting.items()
    }
    names = "<br>".join(f"`{name}`{bits[name]}" for name in supporting)
    if cls.folds:
        return f"folded into the convolution or inner product before it, else {names}"
    return names


def _kernels(cls: type[Layer]) -> str:
    return " | ".join(_how(cls, library) for library in LIBRARIES.values())


def markdown() -> str:
    """The tables of layers with their kernels, the best first, and of kernels with their constraints."""
    lines = ["| Caffe layer | computes | q7 kernels, the first that fits | s8 kernels |", "|---|---|---|---|"]
    for name, reader in READERS.items():
        names = f"`{Input.kernels[0].name}`" + f"<br>`{Features.kernels[0].name}`" * (
            "features" in {field.name for field in fields(reader)}
        )
        lines.append(f"| {name} | {_sentence((reader.__doc__ or '').split(chr(10) * 2)[0])} | {names} | {names} |")
    for cls in CLASSES:
        lines.append(
            f"| {', '.join((cls.caffe_type, *cls.other_types))} | {_sentence(cls.__doc__)} | {_kernels(cls)} |"
        )
    for name, why in IDENTITIES.items():
        lines.append(f"| {name} | {why} | nothing to compute | nothing to compute |")
    lines += ["", "| kernel | in CMSIS 5.9.0 (NN/), CMSIS-NN 7 (Source/) or here | needs |", "|---|---|---|"]
    for name, kernel in {kernel.name: kernel for kernel in ALL_KERNELS}.items():
        needs = "; ".join(dict.fromkeys(_sentence(constraint.__doc__) for constraint in kernel.constraints))
        lines.append(f"| `{name}` | {kernel.source_file} | {needs or 'nothing'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
