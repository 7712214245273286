# SPDX-License-Identifier: Apache-2.0
"""Functions of one number; on the device, a table holds the outputs for the 256 possible inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.ops.elementwise import Elementwise, Lookup
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN, LayerFormats


def _constant(value: float) -> np.ndarray:
    return np.array(value, np.float32)


class Function(Elementwise):
    """A function with its own output format, rounded half to even and saturated."""

    own_format = True
    simulates_rounding = True

    def value(self, x: np.ndarray) -> np.ndarray:
        """The function of float64 numbers; undefined values are NaN, and become 0."""
        raise NotImplementedError

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> np.ndarray:
        """(256,) the outputs for -128 to 127."""
        assert formats.x and formats.y
        with np.errstate(all="ignore"):
            outputs = formats.y.scaled(self.value(formats.x.dequantize(np.arange(INT8_MIN, INT8_MAX + 1))))
        return np.clip(np.rint(np.nan_to_num(outputs)), INT8_MIN, INT8_MAX)


@dataclass(frozen=True, eq=False)
class SteepReLU(Function):
    """With a negative_slope below -1 or above 1: the same, with its own output format."""

    caffe_type = "ReLU"
    variant = "steep"

    negative_slope: float = 2.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"negative_slope": message.relu_param.negative_slope}

    def check(self) -> None:
        if not 1 < abs(self.negative_slope) < math.inf:
            raise UnsupportedLayer(f"negative_slope {self.negative_slope:g}")

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.where(x < 0, self.negative_slope, 1) * x

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("LeakyRelu", xs[0], alpha=self.negative_slope)


@dataclass(frozen=True, eq=False)
class ELU(Function):
    """x, or alpha * (exp(x) - 1) for negative inputs."""

    caffe_type = "ELU"

    alpha: float = 1.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"alpha": message.elu_param.alpha}

    def check(self) -> None:
        if not math.isfinite(self.alpha):
            raise UnsupportedLayer(f"alpha {self.alpha:g}")

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.where(x < 0, self.alpha * np.expm1(np.minimum(x, 0)), x)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Elu", xs[0], alpha=self.alpha)


class AbsVal(Function):
    """abs(x)."""

    caffe_type = "AbsVal"
    op = "Abs"

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.abs(x)


class BNLL(Function):
    """log(1 + exp(x))."""

    caffe_type = "BNLL"
    op = "Softplus"

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, x)


@dataclass(frozen=True, eq=False)
class _OfLine(Function):
    """A function of shift + scale * x."""

    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def _line(cls, param: Any) -> dict[str, float]:
        return {"scale": param.scale, "shift": param.shift}

    def check(self) -> None:
        for name, value in vars(self).items():
            if type(value) is float and not math.isfinite(value):
                raise UnsupportedLayer(f"{name} {value:g}")

    def _inner(self, g: OnnxGraph, x: str) -> str:
        return g.add("Add", g.add("Mul", x, _constant(self.scale)), _constant(self.shift))


@dataclass(frozen=True, eq=False)
class Power(_OfLine):
    """(shift + scale * x) ** power."""

    caffe_type = "Power"

    power: float = 1.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"power": message.power_param.power, **cls._line(message.power_param)}

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.float_power(self.shift + self.scale * x, self.power)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        inner = self._inner(g, xs[0])
        return inner if self.power == 1 else g.add("Pow", inner, _constant(self.power))


@dataclass(frozen=True, eq=False)
class _OfBase(_OfLine):
    base: float = math.e

    @classmethod
    def _based(cls, param: Any) -> dict[str, float]:
        """In Caffe, base -1 stands for e."""
        return {"base": math.e if param.base == -1 else param.base, **cls._line(param)}

    def check(self) -> None:
        super().check()
        if not self.base > 0 or self.base == 1:
            raise UnsupportedLayer(f"base {self.base:g}, it must be above 0 and not 1, or -1 for e")


@dataclass(frozen=True, eq=False)
class Exp(_OfBase):
    """base ** (shift + scale * x); base -1 stands for e."""

    caffe_type = "Exp"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return cls._based(message.exp_param)

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.exp((self.shift + self.scale * x) * math.log(self.base))

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Exp", g.add("Mul", self._inner(g, xs[0]), _constant(math.log(self.base))))


@dataclass(frozen=True, eq=False)
class Log(_OfBase):
    """The logarithm of shift + scale * x to `base`; base -1 stands for e."""

    caffe_type = "Log"

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return cls._based(message.log_param)

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.log(self.shift + self.scale * x) / math.log(self.base)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Mul", g.add("Log", self._inner(g, xs[0])), _constant(1 / math.log(self.base)))


@dataclass(frozen=True, eq=False)
class Threshold(Function):
    """1 if x is above the threshold, else 0."""

    caffe_type = "Threshold"

    threshold: float = 0.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"threshold": message.threshold_param.threshold}

    def check(self) -> None:
        if not math.isfinite(self.threshold):
            raise UnsupportedLayer(f"threshold {self.threshold:g}")

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.where(x > self.threshold, 1.0, 0.0)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.cast(g.add("Greater", xs[0], _constant(self.threshold)), np.float32)


@dataclass(frozen=True, eq=False)
class Swish(Function):
    """x / (1 + exp(-beta * x))."""

    caffe_type = "Swish"

    beta: float = 1.0

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        return {"beta": message.swish_param.beta}

    def check(self) -> None:
        if not math.isfinite(self.beta):
            raise UnsupportedLayer(f"beta {self.beta:g}")

    def value(self, x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-self.beta * x))

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Mul", xs[0], g.add("Sigmoid", g.add("Mul", xs[0], _constant(self.beta))))


class OwnFunction(Lookup[np.ndarray]):
    """Any function of one number, as a table of 256 outputs."""

    def outputs(self, integers: np.ndarray) -> np.ndarray:
        return integers


computed_by(Function, OwnFunction("lookup_q7"))


CLASSES = (SteepReLU, ELU, AbsVal, BNLL, Power, Exp, Log, Threshold, Swish)
