# SPDX-License-Identifier: Apache-2.0
"""How kernels compute one row of an output at a time, from the rows that it reads, with the same constants and bits.

The nonsquare kernels take heights apart from widths, so that one call can compute one row; the library's maximum of
the q7 kernels is for squares, and has a loop of our own here (CMSIS-NN 5.9.0, read and measured).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

from caffe_to_cmsis_nn.kernels import along_axis, arm_q7, arm_s8, channelwise, constraints, lrn, own_loops, own_q7
from caffe_to_cmsis_nn.kernels.base import AnyKernel
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Statement
from caffe_to_cmsis_nn.kernels.contract import AverageView
from caffe_to_cmsis_nn.target import Core, Target


@dataclass(frozen=True)
class RowForm:
    """What computes a row.

    A kernel that does not check rows reads all rows of a window: rows of zeros must stand for the padding, except that
    it takes one row of padding above. A kernel with `sums` adds one row of the input after the other.
    """

    kernel: AnyKernel
    checks_rows: bool = True

    @property
    def sums(self) -> bool:
        return isinstance(self.kernel, SummedAveragePool)


@singledispatch
def row_form(kernel: AnyKernel, layer: Any, target: Target) -> RowForm | None:
    """How the kernel computes the layer row by row; None where it cannot."""
    return None


@row_form.register(arm_q7.Convolution)
def _(kernel: arm_q7.Convolution, layer: Any, target: Target) -> RowForm | None:
    """On DSP cores, the fast ones check rows above the image for as many outputs as padding_y says only.

    arm_convolve_HWC_q7_RGB is for squares, and its nonsquare sibling takes half as many instructions again: our own
    convolution takes its place.
    """
    if constraints.three_channels in kernel.constraints:
        return RowForm(own_q7.Convolution("convolve_q7"))
    checks_rows = target.core is not Core.DSP or constraints.output_covers_padding not in kernel.constraints
    if kernel.nonsquare:
        return RowForm(kernel, checks_rows)
    needed = tuple(one for one in kernel.constraints if one is not constraints.square)
    nonsquare = replace(kernel, name=f"{kernel.name}_nonsquare", nonsquare=True, constraints=needed)
    return RowForm(nonsquare, checks_rows)


@row_form.register(arm_q7.MaxPool)
def _(kernel: arm_q7.MaxPool, layer: Any, target: Target) -> RowForm | None:
    return RowForm(own_loops.OwnMaxPool("maxpool_q7"))


@row_form.register(own_loops.OwnAveragePool)
def _(kernel: own_loops.OwnAveragePool, layer: Any, target: Target) -> RowForm | None:
    if layer.covers_image:
        return RowForm(SummedAveragePool("avepool_of_sums_q7"))
    # What Caffe counts of the padding below the image is not seen in a row's window.
    return RowForm(kernel) if layer.pad[0] == 0 else None


@row_form.register(own_q7.Deconvolution)
def _(kernel: own_q7.Deconvolution, layer: Any, target: Target) -> RowForm | None:
    """Its windows lie on the output."""
    return None


@row_form.register(own_loops.Product)
@row_form.register(own_loops.ChannelSum)
def _(kernel: AnyKernel, layer: Any, target: Target) -> RowForm | None:
    """A vector has no rows."""
    return RowForm(kernel) if layer.in_shapes[0] == layer.in_shapes[1] else None


@row_form.register(lrn.Length)
def _(kernel: lrn.Length, layer: Any, target: Target) -> RowForm | None:
    return None if layer.across_spatial else RowForm(kernel)


@row_form.register(own_loops.Concatenate)
@row_form.register(along_axis.SoftmaxAlong)
def _(kernel: AnyKernel, layer: Any, target: Target) -> RowForm | None:
    """A row has all channels of its cells."""
    return RowForm(kernel) if layer.axis == 0 else None


@row_form.register(own_loops.WindowLoop)
@row_form.register(lrn.Across)
@row_form.register(own_loops.Merge)
@row_form.register(own_loops.Clamp)
@row_form.register(own_loops.Lookup)
@row_form.register(channelwise.ChannelAffine)
@row_form.register(channelwise.PRelu)
@row_form.register(arm_s8.Convolution)
@row_form.register(arm_s8.Pool)
@row_form.register(arm_s8.Add)
@row_form.register(arm_q7.InPlace)
def _(kernel: AnyKernel, layer: Any, target: Target) -> RowForm | None:
    return RowForm(kernel)


class SummedAveragePool(own_loops.OwnAveragePool):
    """The mean of a whole image, of sums to which one row after the other is added."""

    def _sums(self, c: CNames) -> str:
        return f"(q31_t *)(void *){c.output}"

    def calls(self, layer: AverageView, c: CNames) -> list[Statement]:
        """`c.output` has 32 bits for each channel until the last row has come."""
        return [Call("add_row_q7", (c.input, c.input_extent.x, c.macro("IN_CH"), c.macro("FIRST_ROW"), self._sums(c)))]

    def last_calls(self, layer: AverageView, c: CNames) -> list[Statement]:
        """What makes the output of the sums."""
        cells = str(layer.in_shape[1] * layer.in_shape[2])
        ratio = (c.macro("MULTIPLIER"), c.macro("DIVISOR"))
        return [Call(self.name, (self._sums(c), c.macro("IN_CH"), cells, *ratio, c.output))]
