# SPDX-License-Identifier: Apache-2.0
"""The q7 kernels of CMSIS-NN 5.9.0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import weight_layouts
from caffe_to_cmsis_nn.kernels.base import (
    AnyKernel,
    Bounds,
    Integers,
    IntWidth,
    Kernel,
    RowForm,
    ShiftingKernel,
    Work,
    can_pool_in_place,
)
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, I_contra, LayerView, WindowedView
from caffe_to_cmsis_nn.kernels.exact_onnx import convolution, inner_product
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import max_pool
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN
from caffe_to_cmsis_nn.target import Q7, S8, Core, Library, Target


@dataclass(frozen=True)
class Convolution(ShiftingKernel[ConvolutionView]):
    """arm_convolve_*_q7: weights OHWI; scratch memory on DSP cores: two q15 columns, one if the output is one pixel."""

    source = "NN/Source/ConvolutionFunctions/{}.c"
    libraries = (Q7,)

    nonsquare: bool = False
    row_kernel: AnyKernel | None = None  # the kernel for rows, if this one takes only square images
    unchecked_rows: bool = False  # on DSP cores, only the first padding_y output rows check for rows above the image
    macs_cost: float = 0.0  # measured instructions per multiply-accumulate on DSP cores; 0 if unknown

    def row_form(self, layer: ConvolutionView, target: Target) -> RowForm | None:
        return RowForm(self.row_kernel or self, not (self.unchecked_rows and target.core is Core.DSP))

    def work(self, layer: ConvolutionView) -> Work | None:
        return {"instruction": self.macs_cost * layer.macs} if self.macs_cost else None

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return weight_layouts.ohwi(weights)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        if target.core is not Core.DSP:
            return 0
        columns = 1 if layer.out_shape[1] * layer.out_shape[2] == 1 else 2
        return 2 * columns * layer.in_shape[0] * layer.window[0] * layer.window[1]

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: ConvolutionView, integers: Integers, target: Target) -> str:
        return convolution(g, xs[0], layer, integers, target)

    def calls(self, layer: ConvolutionView, c: CNames) -> list[Statement]:
        inputs, window, padding, stride, output = (pair if self.nonsquare else pair[:1] for pair in c.extents)
        arguments = [c.input, *inputs, c.macro("IN_CH"), c.weights, c.macro("OUT_CH"), *window, *padding, *stride]
        arguments += [c.bias, c.macro("BIAS_LSHIFT"), c.macro("OUT_RSHIFT"), c.output, *output]
        return [Call(self.name, (*arguments, f"(q15_t *){c.scratch}", "NULL"))]


class Depthwise(Convolution):
    """arm_depthwise_separable_conv_*: weights KH,KW,C; one q7 column of scratch memory."""

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return weight_layouts.depthwise(weights)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        return layer.in_shape[0] * layer.window[0] * layer.window[1] if target.core is Core.DSP else 0


@dataclass(frozen=True)
class FullyConnected(ShiftingKernel[LayerView]):
    """arm_fully_connected_q7*: matrix times vector; an image as input is read in HWC order."""

    source = "NN/Source/FullyConnectedFunctions/{}.c"
    libraries = (Q7,)

    interleaved: bool = False
    macs_cost: float = 0.0

    def work(self, layer: LayerView) -> Work | None:
        return {"instruction": self.macs_cost * layer.macs} if self.macs_cost else None

    def layout(self, weights: np.ndarray, layer: LayerView) -> np.ndarray:
        matrix = weight_layouts.channels_last(weights, layer.in_shape)
        return weight_layouts.interleaved(matrix) if self.interleaved else matrix.ravel()

    def scratch_bytes(self, layer: LayerView, target: Target) -> int:
        return 2 * int(np.prod(layer.in_shape)) if target.core is Core.DSP else 0

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Integers, target: Target) -> str:
        return inner_product(g, xs[0], integers, target)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        sizes = [c.macro(what) for what in ("IN_DIM", "OUT_DIM", "BIAS_LSHIFT", "OUT_RSHIFT")]
        return [Call(self.name, (c.input, c.weights, *sizes, c.bias, c.output, f"(q15_t *){c.scratch}"))]


class InPlace(Kernel[LayerView, I_contra]):
    """A kernel that works in place; it gets a copy if other layers read the input.

    Sizes are 16 bits, so large tensors take several calls.
    """

    LARGEST = 65535
    promises_in_place = True
    computes_rows = True

    def _arguments(self, c: CNames) -> list[str]:
        """The arguments after data and size."""
        return []

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        size = int(np.prod(layer.out_shape))
        copy = Call("memcpy", (c.output, c.input, c.replaced.get("SIZE", str(size))))
        if size <= self.LARGEST or "SIZE" in c.replaced:
            parts = [(c.output, c.elements(layer.out_shape))]
        else:
            starts = range(0, size, self.LARGEST)
            parts = [(f"{c.output} + {start}", str(min(self.LARGEST, size - start))) for start in starts]
        calls = [Call(self.name, (*part, *self._arguments(c))) for part in parts]
        return [*calls] if c.in_place else [copy, *calls]


class Relu(InPlace[object]):
    """arm_relu_q7 in both libraries: max(x, 0)."""

    source = "NN/Source/ActivationFunctions/{}.c"
    libraries: ClassVar[tuple[Library, ...]] = (Q7, S8)

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: object, target: Target) -> str:
        return g.add("Relu", xs[0])

    def bounds(self, integers: object) -> Bounds:
        return Bounds(low=0)


def sigmoid_table() -> np.ndarray:
    """(256,) round(128 / (1 + exp(-k / 16))) for k = -128 to 127, equal to arm_nntables.c in CMSIS 5.9.0."""
    return np.minimum(np.floor(128 / (1 + np.exp(np.arange(-128, 128) / -16)) + 0.5), INT8_MAX)


def tanh_table() -> np.ndarray:
    """(256,) round(128 * tanh(k / 16)) for k = -128 to 127, equal to arm_nntables.c in CMSIS 5.9.0."""
    return np.minimum(np.floor(128 * np.tanh(np.arange(-128, 128) / 16) + 0.5), INT8_MAX)


@dataclass(frozen=True)
class Activation(InPlace[IntWidth]):
    """table[x >> (3 - int_width)], in Q0.7; drops the low bits of inputs finer than Q3.4 (arm_nn_activations_q7.c)."""

    source = "NN/Source/ActivationFunctions/arm_nn_activations_q7.c"
    tables = "NN/Source/NNSupportFunctions/arm_nntables.c"
    libraries = (Q7,)

    c_type: str = ""
    table: Callable[[], np.ndarray] = sigmoid_table

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: IntWidth, target: Target) -> str:
        shifted = g.add("Floor", g.add("Mul", xs[0], np.array(2.0 ** (integers - 3), np.float32)))
        index = g.cast(g.add("Add", shifted, np.array(-INT8_MIN, np.float32)), np.int64)
        return g.add("Gather", self.table().astype(np.float32), index)

    def _arguments(self, c: CNames) -> list[str]:
        return [c.macro("INT_WIDTH"), self.c_type]

    def defines(self, integers: IntWidth) -> dict[str, int]:
        return {"INT_WIDTH": integers}


class Softmax(Kernel[LayerView, object]):
    """arm_softmax_q7 of CMSIS 5.9.0: powers of two instead of exponentials, output in Q0.7.

    b = 2**20 / sum(2**e) where e = clamp(x - max + 8, 0, 7); the output is min(127, b >> min(31, 5 + max - x)). Older
    releases compute something else.
    """

    source = "NN/Source/SoftmaxFunctions/{}.c"
    SHIFTS = 32
    libraries = (Q7,)

    def in_place(self, layer: LayerView, promised_only: bool) -> bool:
        """The library does not document it; tests showed exact results."""
        return not promised_only

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: object, target: Target) -> str:
        x = g.add("Flatten", xs[0])
        below = g.add("Sub", g.add("ReduceMax", x, axes=[1]), x)
        power = g.cast(g.clip(g.add("Sub", np.array(8, np.float32), below), 0, 7), np.int64)
        powers = g.cast(g.add("Gather", 2 ** np.arange(8), power), np.int64)
        total = g.add("ReduceSum", powers, np.array([1]))
        base = g.cast(g.add("Div", np.array(1 << 20), total), np.float32)
        shift = g.cast(g.clip(g.add("Add", below, np.array(5, np.float32)), 0, self.SHIFTS - 1), np.int64)
        scale = g.add("Gather", (2.0 ** -np.arange(self.SHIFTS)).astype(np.float32), shift)
        return g.clip(g.add("Floor", g.add("Mul", base, scale)), 0, INT8_MAX)

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        return [Call(self.name, (c.input, c.macro("OUT_DIM"), c.output))]


@dataclass(frozen=True)
class MaxPool(Kernel[WindowedView, object]):
    """arm_maxpool_q7_HWC; on DSP cores, it first takes the maximum along x in place, which overwrites the input.

    arm_avepool_q7_HWC is not used: it truncates, on DSP cores twice, which costs accuracy.
    """

    source = "NN/Source/PoolingFunctions/arm_pool_q7_HWC.c"
    libraries = (Q7,)
    selects = True

    row_kernel: AnyKernel | None = None  # the kernel for rows: this one takes only square images

    def row_form(self, layer: WindowedView, target: Target) -> RowForm | None:
        return RowForm(self.row_kernel) if self.row_kernel else None

    def in_place(self, layer: WindowedView, promised_only: bool) -> bool:
        """The library does not document it."""
        return not promised_only and can_pool_in_place(layer)

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: WindowedView, integers: object, target: Target) -> str:
        return max_pool(g, xs[0], layer)

    def calls(self, layer: WindowedView, c: CNames) -> list[Statement]:
        width, *sizes = (pair.x for pair in c.extents)
        return [Call(self.name, (c.input, width, c.macro("IN_CH"), *sizes, "NULL", c.output))]
