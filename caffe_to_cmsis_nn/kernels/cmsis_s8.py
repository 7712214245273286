# SPDX-License-Identifier: Apache-2.0
"""The s8 kernels of CMSIS-NN 4 to 7, with power-of-two scales and zero points of 0.

They requantize a sum with a multiplier and a shift: (sum * multiplier << shift) >> 31, rounded half up. With multiplier
2**(31 - s) and shift 0, that equals the q7 kernels' (sum + (1 << s >> 1)) >> s for every 32-bit sum. (The normalised
pair, a multiplier of at least 2**30 with a negative shift, rounds twice and differs.) Results are the same on all
cores; scratch sizes are not. They are those of the library's *_get_buffer_size, the largest of the four releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx, weight_layouts
from caffe_to_cmsis_nn.kernels.base import Array, Integers, Kernel, Operands, WeightedKernel, can_pool_in_place
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Extent, Statement, Value
from caffe_to_cmsis_nn.kernels.contract import ConvolutionView, L_contra, LayerView, WindowedView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.onnx_windows import crop, image_cells, max_pool, window_attributes
from caffe_to_cmsis_nn.target import S8, Core, Target

INT32_MAX = (1 << 31) - 1
ADD_LSHIFT = 20  # of both operands; below 16, DSP code is wrong for negative operands; from 23, sums can overflow
MVE_WEIGHTS = 16  # bytes that MVE code reads past the weights
MVE_SCRATCH = 16  # bytes that MVE code reads past the scratch memory of a depthwise convolution
MVE_LANES = 4  # 32-bit elements that MVE code reads at once
MVE_BLOCK = 124  # channels that the MVE depthwise kernel handles at once (CH_IN_BLOCK_MVE)


def multiplier(rshift: int) -> int:
    """The multiplier that shifts right by 0 to 31 and rounds half up; for 0, it is exact after saturation to int8."""
    return min(1 << (31 - rshift), INT32_MAX)


def _context(c: CNames, buffer: str, size: str) -> Declaration:
    return Declaration("const cmsis_nn_context", c.variable("ctx"), (buffer, size))


def _constant(c: CNames, kind: str, name: str, *values: Value) -> Declaration:
    """A structure; static if all its values are macros, hence constants."""
    return Declaration(f"{'const' if c.replaced else 'static const'} cmsis_nn_{kind}", c.variable(name), values)


def _activation(c: CNames) -> Value:
    return c.macro("ACT_MIN"), c.macro("ACT_MAX")


def _pointers(c: CNames, *structures: str) -> tuple[str, ...]:
    """Pointers to structures of the layer."""
    return tuple(f"&{c.variable(name)}" for name in structures)


class Weighted(WeightedKernel[L_contra]):
    """Weights in the order of the q7 kernels; the bias is already shifted to the accumulator's format."""

    libraries = (S8,)
    limits = True
    overread_weights: ClassVar[int] = MVE_WEIGHTS
    lanes: ClassVar[int] = MVE_LANES

    def arrays(self, layer: L_contra, integers: Integers, c: CNames) -> list[Array]:
        weights = self.layout(integers.weights, layer)
        return [
            Array(f"{c.prefix}_WT", c.weights, "int8_t", weights, self.overread_weights),
            self._each_output(c, "BIAS", integers.bias.astype(np.int32) << integers.shifts.bias_lshift),
        ]

    def _each_output(self, c: CNames, what: str, values: np.ndarray) -> Array:
        spare = -len(values) % self.lanes
        return Array(f"{c.prefix}_{what}", c.variable(what.lower()), "int32_t", values.astype(np.int32), spare)


def _needs_a_tap(layer: ConvolutionView) -> bool:
    """Whether MVE code would compute one row of outputs although padding gives more.

    It does so if image and kernel have one row. An extra row of zero weights avoids that.
    """
    one_row = layer.in_shape[1] == layer.window[0] == 1 and layer.pad[0] > 0
    one_column = layer.in_shape[2] == 1 and layer.window == (1, 1) and layer.pad[1] > 0
    return one_row or one_column


def column_elements(layer: ConvolutionView) -> int:
    """Elements of all channels in a window, with the extra row of zeros."""
    return layer.in_shape[0] * (layer.window[0] + int(_needs_a_tap(layer))) * layer.window[1]


class Convolution(Weighted[ConvolutionView]):
    """arm_convolve_wrapper_s8: grouped convolutions; multiplier and shift are arrays of equal values."""

    source = "Source/ConvolutionFunctions/{}.c"
    params: ClassVar[str] = "conv_params"
    computes_rows = True

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        """OHWI; each window gets a row of zeros if MVE code would misread the geometry."""
        return weight_layouts.ohwi(np.pad(weights, ((0, 0), (0, 0), (0, int(_needs_a_tap(layer))), (0, 0))))

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: ConvolutionView, integers: Integers, target: Target) -> str:
        return exact_onnx.convolution(g, xs[0], layer, integers, target)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        """Room for im2col columns; grouped 1x1 convolutions fail without it, whatever *_get_buffer_size returns."""
        if (layer.window, layer.pad, layer.group) == ((1, 1), (0, 0), 1):
            return 4 * layer.in_shape[0] if target.core is Core.DSP else 0  # needed if built with Arm's compiler
        whole = 16 if target.core is Core.MVE else 4
        return 4 * whole * -(-column_elements(layer) // whole)

    def least_version(self, layer: ConvolutionView) -> int:
        """Before version 6, the kernels treat several groups as one, and report success."""
        return 6 if layer.group > 1 else 4

    def arrays(self, layer: ConvolutionView, integers: Integers, c: CNames) -> list[Array]:
        outputs = len(integers.bias)
        return [
            *super().arrays(layer, integers, c),
            self._each_output(c, "MULTIPLIER", np.full(outputs, multiplier(integers.shifts.out_rshift))),
            self._each_output(c, "SHIFT", np.zeros(outputs)),
        ]

    def _extents(self, layer: ConvolutionView, c: CNames) -> list[Extent]:
        """The extents of input, window, padding, stride, output and dilation, in this order."""
        return [*c.extents, Extent("1", "1") if layer.dilation == (1, 1) else c.extent("DILATION")]

    def _geometry(self, layer: ConvolutionView, c: CNames) -> list[Extent]:
        """The extents, with x and y swapped for a single row: MVE code of CMSIS-NN 5 to 7 is wrong for rows."""
        inputs, window, padding, *others = self._extents(layer, c)
        if _needs_a_tap(layer):
            window = Extent(window.x, f"{window.y} + 1")
        extents = [inputs, window, padding, *others]
        row = layer.window[0] == 1 and layer.pad[0] == 0 and (layer.in_shape[1] == 1 or c.output_extent.y == "1")
        return [Extent(pair.y, pair.x) for pair in extents] if row and not _needs_a_tap(layer) else extents

    def _channels(self, layer: ConvolutionView, c: CNames) -> tuple[tuple[str, ...], str, str]:
        """The parameters before the strides, and the filter's dimensions n and c."""
        depth = c.macro("IN_CH") if layer.group == 1 else f"{c.macro('IN_CH')} / {c.macro('GROUPS')}"
        return ("0", "0"), c.macro("OUT_CH"), depth

    def calls(self, layer: ConvolutionView, c: CNames) -> list[Statement]:
        inputs, window, padding, stride, output, dilation = self._geometry(layer, c)
        offsets, filters, depth = self._channels(layer, c)
        quantization = (f"(int32_t *){c.variable('multiplier')}", f"(int32_t *){c.variable('shift')}")
        arguments = [*_pointers(c, "ctx", "params", "quant", "in_dims"), c.input]
        arguments += [*_pointers(c, "filter_dims"), c.weights, *_pointers(c, "bias_dims"), c.bias]
        return [
            _context(c, c.scratch, str(c.scratch_bytes)),
            Declaration("const cmsis_nn_per_channel_quant_params", c.variable("quant"), quantization),
            _constant(c, self.params, "params", *offsets, stride, padding, dilation, _activation(c)),
            _constant(c, "dims", "in_dims", "1", inputs.y, inputs.x, c.macro("IN_CH")),
            _constant(c, "dims", "filter_dims", filters, window.y, window.x, depth),
            _constant(c, "dims", "bias_dims", "1", "1", "1", c.macro("OUT_CH")),
            _constant(c, "dims", "out_dims", "1", output.y, output.x, c.macro("OUT_CH")),
            Call(self.name, (*arguments, *_pointers(c, "out_dims"), c.output), checked=True),
        ]


class Depthwise(Convolution):
    """arm_depthwise_conv_wrapper_s8: one or more outputs per channel; weights KH,KW,C_OUT."""

    params = "dw_conv_params"

    def layout(self, weights: np.ndarray, layer: ConvolutionView) -> np.ndarray:
        return weight_layouts.depthwise(weights)

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        area = layer.window[0] * layer.window[1]
        if target.core is Core.PLAIN or layer.out_shape[0] > layer.in_shape[0]:
            return 0
        return 4 * MVE_BLOCK * area + MVE_SCRATCH if target.core is Core.MVE else 2 * layer.in_shape[0] * area

    def least_version(self, layer: ConvolutionView) -> int:
        return 4

    def _geometry(self, layer: ConvolutionView, c: CNames) -> list[Extent]:
        return self._extents(layer, c)

    def _channels(self, layer: ConvolutionView, c: CNames) -> tuple[tuple[str, ...], str, str]:
        return ("0", "0", f"{c.macro('OUT_CH')} / {c.macro('IN_CH')}"), "1", c.macro("OUT_CH")


class PlainDepthwise(Depthwise):
    """arm_depthwise_conv_s8: generic code, plain C on all cores; checks every cell, needs no scratch memory."""

    def scratch_bytes(self, layer: ConvolutionView, target: Target) -> int:
        return 0


class FullyConnected(Weighted[LayerView]):
    """arm_fully_connected_s8; the context's buffer is the bias.

    MVE code of CMSIS-NN 7 reads its kernel sums from that buffer. With zero points of 0, these sums equal the bias.
    """

    source = "Source/FullyConnectedFunctions/{}.c"

    def layout(self, weights: np.ndarray, layer: LayerView) -> np.ndarray:
        return weight_layouts.channels_last(weights, layer.in_shape).ravel()

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: LayerView, integers: Integers, target: Target) -> str:
        return exact_onnx.inner_product(g, xs[0], integers, target)

    def defines(self, integers: Integers) -> dict[str, int]:
        return {"MULTIPLIER": multiplier(integers.shifts.out_rshift)}

    def _buffer(self, c: CNames) -> tuple[str, str]:
        return f"(void *){c.bias}", f"(int32_t)sizeof({c.bias})"

    def calls(self, layer: LayerView, c: CNames) -> list[Statement]:
        columns, rows = c.macro("IN_DIM"), c.macro("OUT_DIM")
        arguments = [*_pointers(c, "ctx", "params", "quant", "in_dims"), c.input]
        arguments += [*_pointers(c, "filter_dims"), c.weights, *_pointers(c, "out_dims"), c.bias]
        return [
            _context(c, *self._buffer(c)),
            _constant(c, "per_tensor_quant_params", "quant", c.macro("MULTIPLIER"), "0"),
            _constant(c, "fc_params", "params", "0", "0", "0", _activation(c)),
            _constant(c, "dims", "in_dims", "1", "1", "1", columns),
            _constant(c, "dims", "filter_dims", columns, "1", "1", rows),
            _constant(c, "dims", "out_dims", "1", "1", "1", rows),
            Call(self.name, (*arguments, *_pointers(c, "out_dims"), c.output), checked=True),
        ]


class Pool(Kernel[WindowedView, object]):
    """Pooling with windows clipped to the image; does not modify the input."""

    source = "Source/PoolingFunctions/{}.c"
    libraries = (S8,)
    limits = True
    computes_rows = True

    def in_place(self, layer: WindowedView, promised_only: bool) -> bool:
        """The library does not document it; tests showed exact results for square layers."""
        return not promised_only and layer.square and can_pool_in_place(layer)

    def calls(self, layer: WindowedView, c: CNames) -> list[Statement]:
        inputs, window, padding, stride, output = c.extents
        channels = c.macro("IN_CH")
        arguments = [*_pointers(c, "ctx", "params", "in_dims"), c.input, *_pointers(c, "filter_dims", "out_dims")]
        return [
            _context(c, c.scratch, str(c.scratch_bytes)),
            _constant(c, "pool_params", "params", stride, padding, _activation(c)),
            _constant(c, "dims", "in_dims", "1", inputs.y, inputs.x, channels),
            _constant(c, "dims", "filter_dims", "1", window.y, window.x, "1"),
            _constant(c, "dims", "out_dims", "1", output.y, output.x, channels),
            Call(self.name, (*arguments, c.output), checked=True),
        ]


class MaxPool(Pool):
    def build(self, g: OnnxGraph, xs: Sequence[str], layer: WindowedView, integers: object, target: Target) -> str:
        return max_pool(g, xs[0], layer)


class AveragePool(Pool):
    """arm_avgpool_s8: sum / cells, rounded to nearest, ties away from zero."""

    def scratch_bytes(self, layer: WindowedView, target: Target) -> int:
        return 4 * layer.in_shape[0] if target.core is Core.DSP else 0

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: WindowedView, integers: object, target: Target) -> str:
        cells = image_cells(layer)
        total = crop(g, exact_onnx.window_sum(g, xs[0], **window_attributes(layer)), layer)
        half = g.add("Mul", g.add("Sign", total), (cells // 2).astype(np.float32))
        return exact_onnx.divide(g, g.add("Add", total, half), cells)


class Add(Kernel[L_contra, Operands]):
    """arm_elementwise_add_s8: the sum of two inputs in any formats, rounded once."""

    source = "Source/BasicMathFunctions/{}.c"
    libraries = (S8,)
    limits = True
    computes_rows = True

    def in_place(self, layer: L_contra, promised_only: bool) -> bool:
        """Tests showed that each element is read before it is overwritten."""
        return not promised_only

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: L_contra, integers: Operands, target: Target) -> str:
        return exact_onnx.merge(g, xs, layer, integers, "Sum")

    def calls(self, layer: L_contra, c: CNames) -> list[Statement]:
        scales = [argument for i in (1, 2) for argument in ("0", c.macro(f"MULTIPLIER_{i}"), c.macro(f"SHIFT_{i}"))]
        output = (c.output, "0", c.macro("MULTIPLIER"), "0", c.macro("ACT_MIN"), c.macro("ACT_MAX"), c.macro("SIZE"))
        return [Call(self.name, (*c.inputs, *scales, str(ADD_LSHIFT), *output), checked=True)]

    def defines(self, integers: Operands) -> dict[str, int]:
        """Shifts both operands left by 20 bits, then the finer one right to the coarser one's format."""
        coarsest = max(integers.factors)
        defines = {}
        for i, factor in enumerate(integers.factors, 1):
            finer = (coarsest // factor).bit_length() - 1
            # Multiplier 2**30 with a left shift by 1 is exact for operands below 2**30.
            pair = (multiplier(finer), 0) if finer else (1 << 30, 1)
            defines.update({f"MULTIPLIER_{i}": pair[0], f"SHIFT_{i}": pair[1]})
        out_rshift = ADD_LSHIFT + integers.out_rshift - (coarsest.bit_length() - 1)
        # Any larger shift also turns the sum of two 8-bit numbers into 0.
        return {**defines, "MULTIPLIER": multiplier(min(out_rshift, 31))}
