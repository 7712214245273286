# SPDX-License-Identifier: Apache-2.0
"""Layers that multiply and add a number to each channel; they go into the weights of the layer before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from q7.layers.base import Declined, Layer, Shape, Weights


class Affine(Layer):
    """gain * x + offset for each channel; `load` gives the two, float64 (channels,)."""

    folds = True

    def neutral(self, offset: np.ndarray) -> list[np.ndarray] | None:
        """Trained blobs with which Caffe's layer computes x + offset; None where it cannot."""
        raise NotImplementedError


def _each_channel(param: Any) -> None:
    if param.axis != 1 or param.num_axes != 1:
        raise Declined(f"axis {param.axis} and num_axes {param.num_axes}, allowed are 1 and 1")


@dataclass(frozen=True, eq=False)
class BatchNorm(Affine):
    """(x - mean) / sqrt(variance + eps), from sums that the third blob divides (Caffe's batch_norm_layer.cpp)."""

    caffe_type = "BatchNorm"

    eps: float = 1e-5

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        param = message.batch_norm_param
        if param.HasField("use_global_stats") and not param.use_global_stats:
            raise Declined("use_global_stats false in the TEST phase: each batch would have its own mean and variance")
        return {"eps": param.eps}

    def weight_shapes(self) -> tuple[Shape, ...]:
        channels = self.in_shape[:1]
        return channels, channels, (1,)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        mean, variance, factor = (blob.astype(np.float64) for blob in blobs)
        unit = 1 / factor if factor[0] != 0 else 0 * factor
        with np.errstate(all="ignore"):  # what is no number is refused where it is folded
            gain = 1 / np.sqrt(variance * unit + self.eps)
        return gain, -mean * unit * gain

    def neutral(self, offset: np.ndarray) -> list[np.ndarray] | None:
        return [-offset, np.full_like(offset, 1 - self.eps), np.ones(1)]


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """A trained gain, and a trained offset where there is a bias_term."""

    caffe_type = "Scale"

    bias_term: bool = False

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        _each_channel(message.scale_param)
        return {"bias_term": message.scale_param.bias_term}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return (self.in_shape[:1],) * (2 if self.bias_term else 1)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        gain = blobs[0].astype(np.float64)
        return gain, blobs[1].astype(np.float64) if self.bias_term else np.zeros_like(gain)

    def neutral(self, offset: np.ndarray) -> list[np.ndarray] | None:
        gain = np.ones_like(offset)
        if self.bias_term:
            return [gain, offset]
        return None if offset.any() else [gain]


class Bias(Affine):
    """A trained offset."""

    caffe_type = "Bias"

    @classmethod
    def options(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        _each_channel(message.bias_param)
        return {}

    def weight_shapes(self) -> tuple[Shape, ...]:
        return (self.in_shape[:1],)

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        offset = blobs[0].astype(np.float64)
        return np.ones_like(offset), offset

    def neutral(self, offset: np.ndarray) -> list[np.ndarray] | None:
        return [offset]
