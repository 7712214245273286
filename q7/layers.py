# SPDX-License-Identifier: Apache-2.0
"""Caffe's layers: what each computes in float, its output shape, cost, macros, and the kernels that can compute it.

Shapes are Caffe's without the batch axis: (channels, height, width) or (features,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from q7 import kernels
from q7.errors import Q7Error
from q7.kernels import Array, CNames, Integers, Kernel
from q7.onnx_graph import OnnxGraph
from q7.qformat import LayerFormats, Target, shifts

Shape = tuple[int, ...]
Weights = tuple[np.ndarray, np.ndarray]  # OIHW or (rows, columns), and the bias (O,); float32


class Declined(Q7Error):
    """A layer that the tool cannot take; the message is the reason alone."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its name, the layers whose outputs it reads, their shapes, and the Caffe blob that it writes."""

    caffe_type: ClassVar[str]
    kernels: ClassVar[tuple[Kernel, ...]] = ()
    weighted: ClassVar[bool] = False
    own_format: ClassVar[bool] = False  # the output's Q-format is chosen, not inherited from the input
    floors: ClassVar[bool] = False  # the original's simulation puts the output on its grid

    name: str
    inputs: tuple[str, ...]
    blob: str
    in_shapes: tuple[Shape, ...]

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Layer:
        """From a LayerParameter; raises Declined where the layer asks for what cannot be done."""
        return cls(message.name, inputs, message.top[0], in_shapes)

    @property
    def in_shape(self) -> Shape:
        return self.in_shapes[0]

    @property
    def out_shape(self) -> Shape:
        return self.in_shape

    @property
    def square(self) -> bool:
        return len(self.out_shape) < 3 or self.in_shape[1] == self.in_shape[2]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return 0

    def check(self) -> None:
        """Raises Declined where the sizes make no sense."""

    def weight_shapes(self) -> tuple[Shape, ...]:
        """Shapes of the trained blobs; the bias, where there is one, comes second."""
        return ()

    def kernel_for(self, target: Target) -> Kernel:
        """The fastest kernel that can compute the layer; raises Q7Error where there is none."""
        return kernels.choose(self.kernels, self, target)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        """Adds Caffe's computation to a graph."""
        raise NotImplementedError

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Any:
        """What the layer's kernel holds as integers; None where it holds nothing."""
        return None

    def defines(self) -> dict[str, int]:
        """The layer's macros in parameter.h without its prefix, named as the original tool names them."""
        return {}

    def describe(self) -> str:
        """The layer's sizes in a few characters."""
        return "x".join(map(str, self.out_shape))


def _extents(what: str, pair: tuple[int, int]) -> dict[str, int]:
    """One macro for equal (height, width), else _X for the width and _Y for the height."""
    return {what: pair[0]} if pair[0] == pair[1] else {f"{what}_X": pair[1], f"{what}_Y": pair[0]}


MOST_PIXEL_SHIFT = 22  # 8-bit pixels stay within C's int


@dataclass(frozen=True, eq=False)
class Pixels:
    """The input layer on the device: integer mean to subtract, CHW or (C, 1, 1); shift right (bits, may be < 0)."""

    mean: np.ndarray
    rshift: int


@dataclass(frozen=True)
class ReadPixels(Kernel):
    """Our own loop: clamp((pixel - mean) >> rshift, -128, 127); a negative shift goes to the left."""

    def build(
        self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Pixels | Integers | None, target: Target
    ) -> str:
        assert isinstance(integers, Pixels)
        x = g.add("Sub", xs[0], integers.mean.astype(np.float32))
        x = g.add("Mul", x, np.array(2.0**-integers.rshift, np.float32))
        return kernels.saturate(g, g.add("Floor", x))

    def calls(self, layer: Any, c: CNames) -> list[str]:
        return [f"{self.name}({c.input}, {c.output})"]

    def defines(self, integers: Any) -> dict[str, int]:
        return {"RSHIFT": max(integers.rshift, 0), "LSHIFT": max(-integers.rshift, 0)}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        mean = integers.mean if integers.mean.any() else np.zeros((1, 1, 1))
        return [Array("MEAN_DATA", "mean", "uint8_t", mean.transpose(1, 2, 0).astype(np.uint8).ravel())]


@dataclass(frozen=True, eq=False)
class Input(Layer):
    """8-bit pixels; Caffe's transform_param makes (pixel - mean) * scale of them. `mean` is CHW or (C, 1, 1)."""

    caffe_type = "Data"
    kernels = (ReadPixels("read_pixels"),)
    own_format = True
    floors = True

    mean: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1), np.float32))
    scale: float = 1.0

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        x = g.add("Sub", xs[0], self.mean.astype(np.float32))
        return g.add("Mul", x, np.array(self.scale, np.float32))

    @property
    def integer_mean(self) -> np.ndarray:
        """The mean rounded half to even, as the device subtracts it."""
        return np.clip(np.rint(self.mean), 0, 255).astype(np.int32)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Pixels:
        """The scale is a power of two here: the graph has put what is left of it into the first layer's weights."""
        assert formats.y
        mantissa, exponent = math.frexp(self.scale)
        assert mantissa == 0.5, "the scale is folded before"
        rshift = -(exponent - 1) - formats.y.fraction_bits
        if abs(rshift) > MOST_PIXEL_SHIFT:
            raise Q7Error(f"its pixels would be shifted by {rshift}, allowed are {MOST_PIXEL_SHIFT} bits either way")
        return Pixels(self.integer_mean, rshift)

    def defines(self) -> dict[str, int]:
        return {"OUT_CH": self.out_shape[0], **_extents("OUT_DIM", self.out_shape[1:])}  # type: ignore[arg-type]


def _pair(what: str, values: Sequence[int], param: Any, prefix: str, default: int | None) -> tuple[int, int]:
    """(height, width) of a repeated or single field, or of its _h and _w forms (Caffe's base_conv_layer.cpp)."""
    if len(values) > 2:
        raise Declined(f"{what} has {len(values)} spatial axes, allowed are 2")
    if param.HasField(f"{prefix}_h") or param.HasField(f"{prefix}_w"):
        return getattr(param, f"{prefix}_h"), getattr(param, f"{prefix}_w")
    if values:
        return values[0], values[-1]
    if default is None:
        raise Declined(f"{what} is missing")
    return default, default


@dataclass(frozen=True, eq=False)
class _Windowed(Layer):
    """What convolution and pooling share; pairs are (height, width)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)

    @property
    def square(self) -> bool:
        sizes = (self.in_shape[1:], self.out_shape[1:], self.kernel, self.stride, self.pad)
        return all(height == width for height, width in sizes)

    def check(self) -> None:
        if min(*self.kernel, *self.stride) < 1:
            raise Declined(f"kernel {self.kernel} and stride {self.stride} must be at least 1")
        if min(self.out_shape) < 1:
            raise Declined(f"its output would be empty: input {self.in_shape}, kernel {self.kernel}")

    def _window_defines(self) -> dict[str, int]:
        pairs = {
            "IN_DIM": self.in_shape[1:],
            "KER_DIM": self.kernel,
            "PAD": self.pad,
            "STRIDE": self.stride,
            "OUT_DIM": self.out_shape[1:],
        }
        if self.square:
            return {what: pair[0] for what, pair in pairs.items()}
        return {f"{what}_{axis}": pair[i] for what, pair in pairs.items() for axis, i in (("X", 1), ("Y", 0))}

    def describe(self) -> str:
        return f"{super().describe()}, kernel {self.kernel[0]}x{self.kernel[1]}, stride {self.stride[0]}"


def _spatial(in_shape: Shape) -> None:
    if len(in_shape) != 3:
        raise Declined(f"its input has shape {in_shape}, allowed is (channels, height, width)")


class _Weighted(Layer):
    weighted = True
    own_format = True
    floors = True

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Integers:
        assert weights and formats.w and formats.b
        return Integers(formats.w.quantize(weights[0]), formats.b.quantize(weights[1]), shifts(formats))


@dataclass(frozen=True, eq=False)
class Convolution(_Windowed, _Weighted):
    """Caffe's Convolution: the output size rounds down."""

    caffe_type = "Convolution"
    kernels = kernels.CONVOLUTION

    num_output: int = 1
    group: int = 1
    bias_term: bool = True

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Layer:
        param = message.convolution_param
        _spatial(in_shapes[0])
        if any(d != 1 for d in param.dilation):
            raise Declined(f"dilation {list(param.dilation)}, allowed is 1: no q7 kernel skips cells")
        if param.axis != 1:
            raise Declined(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise Declined("num_output is missing")
        if param.group < 1 or in_shapes[0][0] % param.group or param.num_output % param.group:
            raise Declined(
                f"group {param.group} does not divide {in_shapes[0][0]} inputs and {param.num_output} outputs"
            )
        layer = cls(
            message.name,
            inputs,
            message.top[0],
            in_shapes,
            kernel=_pair("kernel_size", param.kernel_size, param, "kernel", None),
            stride=_pair("stride", param.stride, param, "stride", 1),
            pad=_pair("pad", param.pad, param, "pad", 0),
            num_output=param.num_output,
            group=param.group,
            bias_term=param.bias_term,
        )
        layer.check()
        return layer

    @property
    def out_shape(self) -> Shape:
        sizes = zip(self.in_shape[1:], self.kernel, self.stride, self.pad)
        return self.num_output, *((d + 2 * p - k) // s + 1 for d, k, s, p in sizes)

    @property
    def macs(self) -> int:
        return math.prod(self.out_shape) * math.prod(self.weight_shapes()[0][1:])

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, self.in_shape[0] // self.group, *self.kernel)
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        attributes = kernels.window_attributes(self)
        return kernels.crop(g, g.add("Conv", xs[0], *weights, group=self.group, **attributes), self)

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], "OUT_CH": self.num_output, **self._window_defines()}


@dataclass(frozen=True, eq=False)
class InnerProduct(_Weighted):
    """Caffe's InnerProduct: an image is flattened in CHW order."""

    caffe_type = "InnerProduct"
    kernels = kernels.FULLY_CONNECTED

    num_output: int = 1
    bias_term: bool = True
    transpose: bool = False

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Layer:
        param = message.inner_product_param
        if param.axis != 1:
            raise Declined(f"axis {param.axis}, allowed is 1")
        if param.num_output < 1:
            raise Declined("num_output is missing")
        return cls(message.name, inputs, message.top[0], in_shapes, param.num_output, param.bias_term, param.transpose)

    @property
    def out_shape(self) -> Shape:
        return (self.num_output,)

    @property
    def macs(self) -> int:
        return self.num_output * math.prod(self.in_shape)

    def weight_shapes(self) -> tuple[Shape, ...]:
        weights = (self.num_output, math.prod(self.in_shape))
        weights = weights[::-1] if self.transpose else weights
        return (weights, (self.num_output,)) if self.bias_term else (weights,)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        assert weights
        return g.add("Gemm", g.add("Flatten", xs[0]), *weights, transB=1)

    def defines(self) -> dict[str, int]:
        return {"IN_DIM": math.prod(self.in_shape), "OUT_DIM": self.num_output}


@dataclass(frozen=True, eq=False)
class Pooling(_Windowed):
    """Caffe's Pooling: the output size rounds up, and windows are clipped (pooling_layer.cpp)."""

    caffe_type = "Pooling"

    average: bool = False
    round_up: bool = True

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Layer:
        param = message.pooling_param
        _spatial(in_shapes[0])
        if param.pool == param.STOCHASTIC:
            raise Declined("STOCHASTIC pooling, allowed are MAX and AVE")
        if param.global_pooling:
            kernel: tuple[int, int] = (in_shapes[0][1], in_shapes[0][2])
            stride, pad = (1, 1), (0, 0)
        else:
            sizes = [param.kernel_size] if param.HasField("kernel_size") else []
            kernel = _pair("kernel_size", sizes, param, "kernel", None)
            stride = _pair("stride", [param.stride], param, "stride", 1)
            pad = _pair("pad", [param.pad], param, "pad", 0)
        if any(p >= k for p, k in zip(pad, kernel)):
            raise Declined(f"pad {pad} must be below the kernel {kernel}")
        layer = cls(
            message.name,
            inputs,
            message.top[0],
            in_shapes,
            kernel,
            stride,
            pad,
            average=param.pool == param.AVE,
            round_up=param.round_mode == param.CEIL,
        )
        layer.check()
        if not kernels.no_empty_window(layer, Target()):
            raise Declined(f"the last window lies outside the image: kernel {kernel}, stride {stride}")
        return layer

    @property
    def kernels(self) -> tuple[Kernel, ...]:  # type: ignore[override]
        return kernels.AVERAGE_POOL if self.average else kernels.MAX_POOL

    @property
    def floors(self) -> bool:  # type: ignore[override]
        return self.average

    @property
    def out_shape(self) -> Shape:
        sizes = []
        for d, k, s, p in zip(self.in_shape[1:], self.kernel, self.stride, self.pad):
            out = -(-(d + 2 * p - k) // s) + 1 if self.round_up else (d + 2 * p - k) // s + 1
            # With padding, Caffe drops a last window that would start behind the image.
            sizes.append(out - 1 if max(self.pad) > 0 and (out - 1) * s >= d + p else out)
        return self.in_shape[0], *sizes

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        attributes = kernels.window_attributes(self)
        if not self.average:
            return kernels.crop(g, g.add("MaxPool", xs[0], **attributes), self)
        # Caffe divides by the window clipped to the padded image, padding included.
        geometry = zip(self.in_shape[1:], self.out_shape[1:], self.kernel, self.stride, self.pad)
        rows, columns = (kernels.window_cells(d + 2 * p, o, k, s, 0) for d, o, k, s, p in geometry)
        correction = math.prod(self.kernel) / (rows[:, None] * columns)
        mean = kernels.crop(g, g.add("AveragePool", xs[0], count_include_pad=1, **attributes), self)
        return mean if (correction == 1).all() else g.add("Mul", mean, correction.astype(np.float32))

    def defines(self) -> dict[str, int]:
        return {"IN_CH": self.in_shape[0], **self._window_defines()}


@dataclass(frozen=True, eq=False)
class ReLU(Layer):
    """max(x, 0)."""

    caffe_type = "ReLU"
    kernels = kernels.RELU

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Layer:
        if message.relu_param.negative_slope != 0:
            raise Declined(f"negative_slope {message.relu_param.negative_slope:g}, allowed is 0")
        return super().parse(message, inputs, in_shapes)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        return g.add("Relu", xs[0])

    def defines(self) -> dict[str, int]:
        if len(self.out_shape) == 1:
            return {"OUT_DIM": self.out_shape[0]}
        return {"OUT_CH": self.out_shape[0], **_extents("OUT_DIM", self.out_shape[1:])}  # type: ignore[arg-type]

    def size_expression(self, prefix: str) -> str:
        """The number of elements, in the layer's macros."""
        if len(self.out_shape) == 1:
            return f"{prefix}_OUT_DIM"
        factors = ["OUT_DIM", "OUT_DIM"] if self.square else ["OUT_DIM_X", "OUT_DIM_Y"]
        return "*".join(f"{prefix}_{factor}" for factor in ["OUT_CH", *factors])


LAYERS: dict[str, type[Layer]] = {cls.caffe_type: cls for cls in (Convolution, InnerProduct, Pooling, ReLU)}
IDENTITIES = {
    "Dropout": "scales while training only",
    "Flatten": "the order of the data does not change; the inner product after it takes the image",
    "Split": "one blob read by several layers",
}
