# SPDX-License-Identifier: Apache-2.0
"""Limits and constants that hold by proofs: one step beyond each, something would be computed otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.base import Integers, can_pool_in_place
from caffe_to_cmsis_nn.kernels.cmsis_s8 import INT32_MAX, multiplier
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops import concat, eltwise
from caffe_to_cmsis_nn.ops.pooling import MaxPooling
from caffe_to_cmsis_nn.ops.reduction import Ratio
from caffe_to_cmsis_nn.plan.memory import Buffer, _place
from caffe_to_cmsis_nn.qformat import Shifts
from caffe_to_cmsis_nn.target import Rounding, Target


@pytest.mark.parametrize("odd", [-1, 0, 1])
@pytest.mark.parametrize("count", [1031, 1032, 1049, 1201, 2001])
def test_weighted_sums_are_exact_beyond_float32(odd: int, count: int) -> None:
    """-127 * -127 so often, and what is missing to the next multiple of 2**18: the shift shows the last bit."""
    total = count * 127 * 127
    missing = -total % (1 << 18)
    integers = Integers(np.full((1, count), -127, np.int8), np.array([missing + odd], np.int32), Shifts(0, 18))
    g = OnnxGraph()
    x = g.cast(g.input("x", np.int8, (count,)), np.float32)
    product = exact_onnx.weighted_sum(
        g, integers, Target(rounding=Rounding.TRUNCATE), lambda w, b: g.add("Gemm", x, w, b, transB=1)
    )
    g.output(product)
    (found,) = g.session().run(None, {"x": np.full((1, count), -127, np.int8)})
    assert found.item() == (total + missing + odd) >> 18


def test_multipliers_of_s8_kernels() -> None:
    """2**(31 - s); for no shift the largest, which is one step short of 1."""
    assert [multiplier(s) for s in (0, 1, 30, 31)] == [INT32_MAX, 1 << 30, 2, 1]
    for shift in (1, 2, 17, 31):
        for total in (-(1 << 31), -(1 << (shift - 1)) - 1, -1, 0, (1 << (shift - 1)) - 1, 1 << (shift - 1), INT32_MAX):
            assert (total * multiplier(shift) + (1 << 30)) >> 31 == (total + (1 << shift >> 1)) >> shift


def test_ratios_have_15_bits_and_a_sign() -> None:
    """The nearest of these, with the largest shift that they can have."""
    for factor, expected, rshift in ((0.3, 19661, 16), (-0.3, -19661, 16), (1.0, 16384, 14), (0.9999999, 32767, 15)):
        assert Ratio.fit(factor) == Ratio(expected, rshift)
    assert (Ratio.fit(0), Ratio.fit(2.0**-60).rshift, Ratio.fit(1e6)) == (Ratio(0, 1), 46, Ratio(32767, 1))


def test_rescaling_beyond_8_bits_changes_nothing() -> None:
    assert [concat.rescaling(shift) for shift in (-40, -9, -8, -7, 7, 8, 9, 40)] == [-8, -8, -8, -7, 7, 8, 8, 8]


def test_sums_of_operands_stay_within_32_bits() -> None:
    """The most operands, all -128, shifted the most, with the rounding term; one bit more is too many."""

    def largest(alignment: int) -> int:
        return eltwise.MOST_OPERANDS * 128 << alignment

    rounding = 1 << eltwise.MOST_MERGED_RSHIFT >> 1
    assert largest(eltwise.MOST_ALIGNMENT) + rounding <= INT32_MAX < largest(eltwise.MOST_ALIGNMENT + 1)


def test_a_buffer_goes_to_the_lowest_offset_that_is_free() -> None:
    """Two that are alive with it leave a gap, which the third one fits: not beyond the largest of them."""
    first, second, both = Buffer("a", 64, 0, 1), Buffer("b", 32, 1, 3), Buffer("c", 16, 3, 4)
    last = Buffer("d", 8, 3, 3)
    _place([[first], [second], [both], [last]], "a")
    assert [(b.name, b.offset) for b in (first, second, both, last)] == [("a", 0), ("b", 64), ("c", 0), ("d", 16)]


@pytest.mark.parametrize(("pad", "stride", "ahead"), [(1, 2, True), (1, 1, False), (2, 2, False), (0, 1, True)])
def test_poolings_that_may_write_over_their_input(pad: int, stride: int, ahead: bool) -> None:
    """With a padding as long as the stride, window 1 begins at cell 0, which output 0 has been written to."""
    shape = (1, 8, 8)
    layer = MaxPooling("p", ("x",), "p", (shape,), window=(3, 3), stride=(stride, stride), pad=(pad, pad))
    assert can_pool_in_place(layer) is ahead
