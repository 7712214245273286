# SPDX-License-Identifier: Apache-2.0
"""The q7 kernels of CMSIS-NN 5.9.0: what each can do, what exactly it computes, its weight layout, scratch and C call.

Inside the ONNX graphs written here every tensor holds integers as float32, NCHW or (N, features). Sums stay exact
because they are proved to stay below 2**24, or are split until they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from q7.errors import Q7Error
from q7.onnx_graph import OnnxGraph
from q7.qformat import INT8_MAX, INT8_MIN, Core, Shifts, Target

EXACT_FLOAT32 = 1 << 24  # every integer of smaller magnitude is a float32, and so is every partial sum on the way
DSP_LANES = 4


@dataclass(frozen=True)
class Integers:
    """A weighted layer as the device holds it: int8 weights OIHW or (rows, columns in CHW order), int8 bias (O,)."""

    weights: np.ndarray
    bias: np.ndarray
    shifts: Shifts


@dataclass(frozen=True)
class Array:
    """A constant array in C: its macro in weights.h, its name, type, and values in the kernel's order."""

    macro: str
    name: str
    type: str
    values: np.ndarray


@dataclass(frozen=True)
class CNames:
    """What the arguments of a call are named in C."""

    prefix: str
    input: str
    output: str
    scratch: str
    weights: str
    bias: str

    def sizes(self, layer: Any, what: str) -> tuple[str, str]:
        """The macros of an x and a y extent (width before height), which are one macro for a square layer."""
        if layer.square:
            return (f"{self.prefix}_{what}",) * 2
        return f"{self.prefix}_{what}_X", f"{self.prefix}_{what}_Y"


# --- constraints: the docstring is the README's line and, after "needs", the message ---------------------------------

Constraint = Callable[[Any, Target], bool]


def square(layer: Any, target: Target) -> bool:
    """square images, kernel, stride and padding"""
    return layer.square


def one_group(layer: Any, target: Target) -> bool:
    """one group"""
    return layer.group == 1


def depthwise(layer: Any, target: Target) -> bool:
    """as many groups as input and output channels"""
    return layer.group == layer.in_shape[0] == layer.out_shape[0]


def three_channels(layer: Any, target: Target) -> bool:
    """3 input channels"""
    return layer.in_shape[0] == 3


def channels_of_four_and_two(layer: Any, target: Target) -> bool:
    """a multiple of 4 input channels and of 2 output channels"""
    return layer.in_shape[0] % 4 == 0 and layer.out_shape[0] % 2 == 0


def output_covers_padding(layer: Any, target: Target) -> bool:
    """an output at least as large as the padding (else the DSP code writes past it)"""
    return all(o >= p for o, p in zip(layer.out_shape[1:], layer.pad))


def pointwise(layer: Any, target: Target) -> bool:
    """a 1x1 kernel with stride 1 and no padding"""
    return (layer.kernel, layer.stride, layer.pad) == ((1, 1), (1, 1), (0, 0))


def indexable(layer: Any, target: Target) -> bool:
    """extents, channels, kernel, stride and padding of at most 32767"""
    return max(*layer.in_shape, *layer.out_shape, *layer.kernel, *layer.stride, *layer.pad) <= 32767


def short_column(layer: Any, target: Target) -> bool:
    """at most 65535 weights for each output"""
    return layer.in_shape[0] * layer.kernel[0] * layer.kernel[1] <= 65535


def vector_sizes(layer: Any, target: Target) -> bool:
    """at most 65535 inputs and 65535 outputs"""
    return max(int(np.prod(layer.in_shape)), *layer.out_shape) <= 65535


def output_within_input(layer: Any, target: Target) -> bool:
    """an output no larger than the input"""
    return all(o <= d for o, d in zip(layer.out_shape[1:], layer.in_shape[1:]))


def no_empty_window(layer: Any, target: Target) -> bool:
    """a cell of the image in every window"""
    return all(
        k > p and (o - 1) * s - p < d
        for d, o, k, s, p in zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad)
    )


def pooled_row(layer: Any, target: Target) -> bool:
    """at most 65535 elements in a row of the output (DSP)"""
    return target.core is Core.PLAIN or layer.out_shape[0] * layer.out_shape[2] <= 65535


def padding_below_stride(layer: Any, target: Target) -> bool:
    """padding below the stride (DSP: the kernel works in place and would read columns that it overwrote)"""
    return target.core is Core.PLAIN or all(
        p < s or o == 1 for p, s, o in zip(layer.pad, layer.stride, layer.out_shape[1:])
    )


def short_window(layer: Any, target: Target) -> bool:
    """windows of at most 256 cells along an axis (DSP: longer ones overflow 16 bits)"""
    return target.core is Core.PLAIN or max(layer.kernel) <= 256


def unpadded(layer: Any, target: Target) -> bool:
    """no padding (Caffe counts padded cells in an average, the kernel does not)"""
    return layer.pad == (0, 0)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def end_padding(extent: int, out: int, kernel: int, stride: int, pad: int) -> int:
    """Cells to add behind an axis so that its last window is whole, where `pad` were added before it."""
    return max(0, (out - 1) * stride + kernel - extent - pad)


def window_attributes(layer: Any) -> dict[str, list[int]]:
    """ONNX attributes of a layer's windows; the padding at the end follows from the output shape."""
    ends = [
        end_padding(d, o, k, s, p)
        for d, o, k, s, p in zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad)
    ]
    return {"kernel_shape": list(layer.kernel), "strides": list(layer.stride), "pads": [*layer.pad, *ends]}


def crop(g: OnnxGraph, y: str, layer: Any) -> str:
    """Drops rows and columns beyond the layer's output, where the windows allow more than it asks for."""
    for axis, (d, o, k, s, p) in enumerate(
        zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad), 2
    ):
        if (d + p + end_padding(d, o, k, s, p) - k) // s + 1 > o:
            y = g.slice(y, axis, 0, o)
    return y


def saturate(g: OnnxGraph, x: str) -> str:
    return g.clip(x, INT8_MIN, INT8_MAX)


def _exact_parts(weights: np.ndarray, budget: int) -> list[np.ndarray]:
    """Splits weights (O, ...) into arrays that sum to them, so that each output's sum of |w| is within the budget."""
    flat = np.abs(weights.reshape(len(weights), -1).astype(np.int64))
    part = np.cumsum(flat, axis=1).max(axis=0) // (budget - INT8_MAX - 1)
    return [np.where((part == i).reshape(weights.shape[1:]), weights, 0) for i in np.unique(part)]


def weighted_sum(
    g: OnnxGraph, integers: Integers, target: Target, product: Callable[[np.ndarray, np.ndarray], str]
) -> str:
    """clamp((sum(x * w) + (bias << bias_lshift) + rounding term) >> out_rshift), exact for every int8 input.

    `product(weights, constants)` adds the convolution or matrix product of float32 weights and per-output constants.
    Scaling by 2**-out_rshift is put on the weights, which keeps every float exact. The kernels' 32-bit sums cannot
    overflow: at most 65535 * 2**14 of products, 2**29 of bias and 2**29 of rounding stay below 2**31.
    """
    shift = integers.shifts
    weights = integers.weights.astype(np.float64)
    constants = (integers.bias.astype(np.int64) << shift.bias_lshift) + target.rounding.term(shift.out_rshift)
    sums = np.abs(weights.reshape(len(weights), -1)).sum(axis=1) * -INT8_MIN
    bound = int((sums + np.abs(constants)).max())
    scale = 2.0**-shift.out_rshift
    if bound < EXACT_FLOAT32:
        total = product((weights * scale).astype(np.float32), (constants * scale).astype(np.float32))
        return saturate(g, g.add("Floor", total))
    none = np.zeros(len(weights), np.float32)
    parts = [
        g.cast(product(part.astype(np.float32), none), np.float64)
        for part in _exact_parts(weights, EXACT_FLOAT32 // -INT8_MIN)
    ]
    shape = (-1,) + (1,) * (weights.ndim - 2)
    total = g.add("Sum", *parts, constants.astype(np.float64).reshape(shape))
    total = g.add("Floor", g.add("Mul", total, np.array(scale)))
    return g.cast(g.clip(total, INT8_MIN, INT8_MAX, np.float64), np.float32)


def _divide(g: OnnxGraph, total: str, count: np.ndarray) -> str:
    """C's division, which truncates toward zero; float32 divides integers below 2**24 without crossing one."""
    return g.cast(g.cast(g.add("Div", total, count.astype(np.float32)), np.int32), np.float32)


def window_sum(g: OnnxGraph, x: str, **windows: Any) -> str:
    """The sum over each window, zeros outside: exact, since the mean's rounding error is far below 1 / cells."""
    cells = float(np.prod(windows["kernel_shape"]))
    mean = g.add("AveragePool", x, count_include_pad=1, **windows)
    return g.add("Round", g.add("Mul", mean, np.array(cells, np.float32)))


def window_cells(extent: int, out: int, kernel: int, stride: int, pad: int) -> np.ndarray:
    """How many cells of the image each window holds along one axis."""
    start = np.arange(out) * stride - pad
    return np.minimum(start + kernel, extent) - np.maximum(start, 0)


def _sum_int16(g: OnnxGraph, cells: list[str], saturates: np.ndarray) -> str:
    """Adds cells one after the other in int16, which saturates where `saturates` and wraps elsewhere."""
    if len(cells) <= 256:
        return g.add("Sum", *cells)
    total = cells[0]
    for cell in cells[1:]:
        total = g.add("Add", total, cell)
        over = g.add(
            "Floor", g.add("Mul", g.add("Add", total, np.array(2.0**15, np.float32)), np.array(2.0**-16, np.float32))
        )
        wrapped = g.add("Sub", total, g.add("Mul", over, np.array(2.0**16, np.float32)))
        total = g.add("Where", saturates, g.clip(total, -32768, 32767), wrapped)
    return total


def _dsp_pool_axis(g: OnnxGraph, x: str, layer: Any, axis: int, average: bool) -> str:
    """One stage of the DSP path's separable pooling, cell by cell: along x in place, along y into the output.

    In place means that a window whose start lies before the image starts at column i instead of 0, and that a
    window may read columns that earlier outputs have replaced.
    """
    extent, out = layer.in_shape[axis], layer.out_shape[axis]
    kernel, stride, pad = layer.kernel[axis - 1], layer.stride[axis - 1], layer.pad[axis - 1]
    channels = layer.in_shape[0]
    row = (channels, 1, 1) if axis == 2 else (channels, 1, layer.out_shape[2])
    lane = np.arange(np.prod(row)).reshape(row[1], row[2], channels).transpose(2, 0, 1)
    saturates = lane < lane.size // DSP_LANES * DSP_LANES
    cells = [g.slice(x, axis + 1, i, i + 1) for i in range(extent)]
    results = []
    for i in range(out):
        start = i * stride - pad
        first = start if start >= 0 else (i if axis == 2 else 0)
        window = cells[first : max(first + 1, min(start + kernel, extent))]
        if average:
            value = _divide(g, _sum_int16(g, window, saturates), np.array(len(window)))
        else:
            value = g.add("Max", *window)
        results.append(value)
        if axis == 2:
            cells[i] = value
    return g.add("Concat", *results, axis=axis + 1)


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A C function of the kernel library."""

    name: str
    constraints: tuple[Constraint, ...] = ()

    def objection(self, layer: Any, target: Target) -> str | None:
        """Why the kernel cannot serve the layer, or None."""
        for constraint in self.constraints:
            if not constraint(layer, target):
                return f"{self.name} needs {constraint.__doc__}"
        return None

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        """Bytes of scratch memory that the kernel touches, 4-byte aligned."""
        return 0

    def overread_bytes(self) -> int:
        """Bytes behind its input that the kernel reads and ignores."""
        return 0

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        """Whether the output may take the input's memory: as the library promises, or as was measured exact."""
        return False

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        """Adds the kernel's exact integer computation to a graph."""
        raise NotImplementedError

    def calls(self, layer: Any, c: CNames) -> list[str]:
        """The C calls, without their semicolons."""
        raise NotImplementedError

    def defines(self, integers: Any) -> dict[str, int]:
        """Macros that follow from the quantization, without the layer's prefix."""
        return {}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        """The constants that the calls read."""
        return []


@dataclass(frozen=True)
class WeightedKernel(Kernel):
    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        """Weights in the order of the C array, flat int8."""
        raise NotImplementedError

    def defines(self, integers: Any) -> dict[str, int]:
        return {"BIAS_LSHIFT": integers.shifts.bias_lshift, "OUT_RSHIFT": integers.shifts.out_rshift}

    def arrays(self, layer: Any, integers: Any, c: CNames) -> list[Array]:
        return [
            Array(f"{c.prefix}_WT", c.weights, "q7_t", self.layout(integers.weights, layer)),
            Array(f"{c.prefix}_BIAS", c.bias, "q7_t", integers.bias),
        ]


@dataclass(frozen=True)
class Convolution(WeightedKernel):
    """Convolutions whose weights are O,KH,KW,C; two q15 columns of scratch on the DSP path (one for one pixel)."""

    nonsquare: bool = False
    overread: int = 0

    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        return weights.transpose(0, 2, 3, 1).ravel()

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        if target.core is Core.PLAIN:
            return 0
        columns = 1 if layer.out_shape[1] * layer.out_shape[2] == 1 else 2
        return 2 * columns * layer.in_shape[0] * layer.kernel[0] * layer.kernel[1]

    def overread_bytes(self) -> int:
        return self.overread

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        assert integers is not None

        def convolve(weights: np.ndarray, constants: np.ndarray) -> str:
            return g.add("Conv", xs[0], weights, constants, group=layer.group, **window_attributes(layer))

        return crop(g, weighted_sum(g, integers, target, convolve), layer)

    def calls(self, layer: Any, c: CNames) -> list[str]:
        pairs = [c.sizes(layer, what) for what in ("IN_DIM", "KER_DIM", "PAD", "STRIDE", "OUT_DIM")]
        inputs, kernel, pad, stride, output = (pair if self.nonsquare else pair[:1] for pair in pairs)
        p = c.prefix
        arguments = [c.input, *inputs, f"{p}_IN_CH", c.weights, f"{p}_OUT_CH", *kernel, *pad, *stride]
        arguments += [c.bias, f"{p}_BIAS_LSHIFT", f"{p}_OUT_RSHIFT", c.output, *output, f"(q15_t *){c.scratch}", "NULL"]
        return [f"{self.name}({', '.join(arguments)})"]


@dataclass(frozen=True)
class Depthwise(Convolution):
    """Depthwise convolutions: weights KH,KW,C, one q7 column of scratch."""

    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        return weights[:, 0].transpose(1, 2, 0).ravel()

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        return layer.in_shape[0] * layer.kernel[0] * layer.kernel[1] if target.core is Core.DSP else 0


@dataclass(frozen=True)
class FullyConnected(WeightedKernel):
    """Matrix times vector; the vector comes in H,W,C order where an image precedes it."""

    interleaved: bool = False

    def layout(self, weights: np.ndarray, layer: Any) -> np.ndarray:
        rows = len(weights)
        if len(layer.in_shape) == 3:
            weights = weights.reshape(rows, *layer.in_shape).transpose(0, 2, 3, 1)
        weights = weights.reshape(rows, -1)
        return interleave(weights) if self.interleaved else weights.ravel()

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        return 2 * int(np.prod(layer.in_shape)) if target.core is Core.DSP else 0

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        assert integers is not None
        vector = g.add("Flatten", xs[0])

        def multiply(weights: np.ndarray, constants: np.ndarray) -> str:
            return g.add("Gemm", vector, weights, constants, transB=1)

        return weighted_sum(g, integers, target, multiply)

    def calls(self, layer: Any, c: CNames) -> list[str]:
        p = c.prefix
        arguments = [c.input, c.weights, f"{p}_IN_DIM", f"{p}_OUT_DIM", f"{p}_BIAS_LSHIFT", f"{p}_OUT_RSHIFT"]
        return [f"{self.name}({', '.join([*arguments, c.bias, c.output, f'(q15_t *){c.scratch}'])})"]


def interleave(matrix: np.ndarray) -> np.ndarray:
    """The weight stream of arm_fully_connected_q7_opt for a row-major (rows, columns) matrix, flat.

    Four rows at a time: 4x4 blocks in the order (0,0)(1,0)(0,2)(1,2) (2,0)(3,0)(2,2)(3,2) (0,1)(1,1)(0,3)(1,3)
    (2,1)(3,1)(2,3)(3,3), then left-over columns with the four rows side by side; left-over rows stay row-major.
    """
    rows, columns = matrix.shape
    whole = columns - columns % 4
    stream = []
    for r in range(0, rows - rows % 4, 4):
        # Axes: row pair, row, block, column pair, column.
        blocks = matrix[r : r + 4, :whole].reshape(2, 2, -1, 2, 2)
        stream.append(blocks.transpose(2, 4, 0, 3, 1).ravel())
        stream.append(matrix[r : r + 4, whole:].T.ravel())
    return np.concatenate([*stream, matrix[rows - rows % 4 :].ravel()])


@dataclass(frozen=True)
class Relu(Kernel):
    """max(x, 0) in place; the size is a uint16_t, so larger tensors take several calls."""

    LARGEST = 65535

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        return True

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        return g.add("Relu", xs[0])

    def calls(self, layer: Any, c: CNames) -> list[str]:
        size = int(np.prod(layer.out_shape))
        if size <= self.LARGEST:
            return [f"{self.name}({c.output}, {layer.size_expression(c.prefix)})"]
        starts = range(0, size, self.LARGEST)
        return [f"{self.name}({c.output} + {start}, {min(self.LARGEST, size - start)})" for start in starts]


@dataclass(frozen=True)
class Pool(Kernel):
    """Pooling; the DSP path reduces along x, in place in its input, and then along y."""

    def in_place(self, layer: Any, promised_only: bool) -> bool:
        """With pad < stride, window i starts at i * stride - pad >= i for i >= 1, along each axis.

        So output (i, j) lies at or before the first cell that it is made of, and every later window starts behind
        it: nothing is overwritten that is still to be read, provided that output rows are no longer than input rows.
        """
        return not promised_only and all(
            p < s and o <= d for p, s, o, d in zip(layer.pad, layer.stride, layer.out_shape[1:], layer.in_shape[1:])
        )

    def calls(self, layer: Any, c: CNames) -> list[str]:
        p = c.prefix
        sizes = [f"{p}_{what}" for what in ("IN_DIM", "IN_CH", "KER_DIM", "PAD", "STRIDE", "OUT_DIM")]
        scratch = c.scratch if self.scratch_bytes(layer, Target()) else "NULL"
        return [f"{self.name}({', '.join([c.input, *sizes, scratch, c.output])})"]


@dataclass(frozen=True)
class MaxPool(Pool):
    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        if padding_below_stride(layer, target):
            return crop(g, g.add("MaxPool", xs[0], **window_attributes(layer)), layer)
        return _dsp_pool_axis(g, _dsp_pool_axis(g, xs[0], layer, 2, False), layer, 1, False)


@dataclass(frozen=True)
class AveragePool(Pool):
    """Plain: sum / cells. DSP: two divisions, along x and then along y. All of them truncate toward zero."""

    def scratch_bytes(self, layer: Any, target: Target) -> int:
        return 2 * layer.out_shape[2] * layer.in_shape[0] if target.core is Core.DSP else 0

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Any, integers: Integers | None, target: Target) -> str:
        windows = zip(layer.in_shape[1:], layer.out_shape[1:], layer.kernel, layer.stride, layer.pad)
        rows, columns = (window_cells(*window) for window in windows)
        attributes = window_attributes(layer)
        if target.core is Core.PLAIN:
            return _divide(g, crop(g, window_sum(g, xs[0], **attributes), layer), rows[:, None] * columns)
        if not (padding_below_stride(layer, target) and short_window(layer, target)):
            return _dsp_pool_axis(g, _dsp_pool_axis(g, xs[0], layer, 2, True), layer, 1, True)
        (top, left, bottom, right), (k_y, k_x), (s_y, s_x) = attributes["pads"], layer.kernel, layer.stride
        x = window_sum(g, xs[0], kernel_shape=[1, k_x], strides=[1, s_x], pads=[0, left, 0, right])
        x = _divide(g, g.slice(x, 3, 0, len(columns)), columns)
        y = window_sum(g, x, kernel_shape=[k_y, 1], strides=[s_y, 1], pads=[top, 0, bottom, 0])
        return _divide(g, g.slice(y, 2, 0, len(rows)), rows[:, None])


_CONVOLUTION = (indexable, short_column)
_FAST = (one_group, channels_of_four_and_two, output_covers_padding, *_CONVOLUTION)
CONVOLUTION: tuple[WeightedKernel, ...] = (
    Convolution("arm_convolve_1x1_HWC_q7_fast_nonsquare", (pointwise, *_FAST), nonsquare=True),
    Convolution("arm_convolve_HWC_q7_RGB", (one_group, three_channels, square, *_CONVOLUTION), overread=1),
    Convolution("arm_convolve_HWC_q7_fast", (*_FAST, square)),
    Convolution("arm_convolve_HWC_q7_fast_nonsquare", _FAST, nonsquare=True),
    Depthwise("arm_depthwise_separable_conv_HWC_q7", (depthwise, square, *_CONVOLUTION)),
    Depthwise("arm_depthwise_separable_conv_HWC_q7_nonsquare", (depthwise, *_CONVOLUTION), nonsquare=True),
    Convolution("arm_convolve_HWC_q7_basic", (one_group, square, *_CONVOLUTION)),
    Convolution("arm_convolve_HWC_q7_basic_nonsquare", (one_group, *_CONVOLUTION), nonsquare=True),
)
FULLY_CONNECTED: tuple[WeightedKernel, ...] = (
    FullyConnected("arm_fully_connected_q7_opt", (vector_sizes,), interleaved=True),
    FullyConnected("arm_fully_connected_q7", (vector_sizes,)),
)
RELU = (Relu("arm_relu_q7"),)
_POOL = (square, no_empty_window, output_within_input, indexable, pooled_row, padding_below_stride)
MAX_POOL = (MaxPool("arm_maxpool_q7_HWC", _POOL),)
AVERAGE_POOL = (AveragePool("arm_avepool_q7_HWC", (unpadded, *_POOL, short_window)),)

ALL: tuple[Kernel, ...] = (*CONVOLUTION, *FULLY_CONNECTED, *RELU, *MAX_POOL, *AVERAGE_POOL)


def choose(kernels: Sequence[Kernel], layer: Any, target: Target) -> Kernel:
    """The first kernel whose constraints the layer meets; raises Q7Error with every objection."""
    objections = []
    for kernel in kernels:
        objection = kernel.objection(layer, target)
        if objection is None:
            return kernel
        objections.append(objection)
    raise Q7Error(f"layer '{layer.name}': no kernel can compute it: {'; '.join(objections)}")
