# SPDX-License-Identifier: Apache-2.0
"""Q-formats by literal values at the halfway points and at both ends, and by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat, Shifts, shifts
from caffe_to_cmsis_nn.target import Rounding


@pytest.mark.parametrize(
    ("largest", "name"),
    [
        (0.0, "Q0.7"),
        (1.0, "Q0.7"),
        (np.nextafter(1.0, 2.0), "Q1.6"),
        (0.5, "Q-1.8"),
        (0.51, "Q0.7"),
        (127.0, "Q7.0"),
        (128.0, "Q7.0"),
        (129.0, "Q8.-1"),
        (1e-30, "Q-99.106"),
        (1e30, "Q100.-93"),
    ],
)
def test_covering(largest: float, name: str) -> None:
    assert str(QFormat.covering(largest)) == name


@pytest.mark.parametrize("largest", [float("nan"), float("inf")])
def test_covering_refuses(largest: float) -> None:
    with pytest.raises(UserError, match="has no Q-format"):
        QFormat.covering(largest)


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 127.5, 128, 1e9, -128.5, -129, -1e9])
    expected = [0, 2, 2, 0, -2, 126, 127, 127, 127, 127, -128, -128, -128]
    assert QFormat(0).quantize(values).tolist() == expected
    assert QFormat(3).quantize(values / 8).tolist() == expected
    assert QFormat(-3).quantize(values * 8).tolist() == expected


def test_formats_of_4_bits() -> None:
    """-8 to 7; what 8 bits hold in Q0.7 and Q1.6, they hold in Q0.3 and Q1.2."""
    q = QFormat(3, 4)
    assert (str(q), q.least, q.most) == ("Q0.3", -8, 7)
    assert [str(QFormat.covering(largest, 4)) for largest in (0, 1, 1.01, 0.5)] == ["Q0.3", "Q0.3", "Q1.2", "Q-1.4"]
    assert q.quantize(np.array([-1.2, -1, -0.9, 0.0625, 0.1875, 0.8125, 1])).tolist() == [-8, -8, -7, 0, 2, 6, 7]
    assert (q.finer(-2), q.within(-1, 1), q.within(4, 9)) == (QFormat(1, 4), QFormat(1, 4), QFormat(4, 4))


@given(st.integers(-20, 30), st.integers(-128, 127))
def test_integers_survive_the_round_trip(fraction_bits: int, value: int) -> None:
    q = QFormat(fraction_bits)
    assert q.integer_bits + q.fraction_bits == 7
    assert q.quantize(q.dequantize(np.array([value], np.int8)))[0] == value


def test_most_fraction_bits() -> None:
    """Of every layer's input and output: more than the smallest float32, 2**-149, has."""
    layer = Layer("x", ("y",), "x", ((1,),))
    assert layer.input_limits([QFormat(0)]) == layer.output_limits([QFormat(0)]) == (-200, 200)
    assert QFormat.covering(2.0**-149).fraction_bits < 200


@given(st.floats(2.0**-20, 2.0**20))
def test_covering_format_holds_the_range_and_no_finer_one_does(largest: float) -> None:
    q = QFormat.covering(largest)
    assert largest <= 2.0**q.integer_bits < 2 * largest


@pytest.mark.parametrize(
    ("shift", "nearest", "truncate"), [(0, 0, 0), (1, 1, 0), (2, 2, 0), (8, 128, 0), (30, 1 << 29, 0)]
)
def test_rounding_terms(shift: int, nearest: int, truncate: int) -> None:
    assert Rounding.NEAREST.term(shift) == nearest
    assert Rounding.TRUNCATE.term(shift) == truncate


def _formats(x: int, w: int, b: int, y: int) -> LayerFormats:
    return LayerFormats(QFormat(x), QFormat(w), QFormat(b), QFormat(y))


def test_shifts_of_the_published_network() -> None:
    assert shifts(_formats(0, 8, 8, -3)) == Shifts(bias_lshift=0, out_rshift=11)
    assert shifts(_formats(-1, 11, 5, 3)) == Shifts(bias_lshift=5, out_rshift=7)


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (_formats(0, 0, 1, 0), "bias shift would be -1"),
        (_formats(10, 13, 0, 0), "bias shift would be 23"),
        (_formats(0, 0, 0, 1), "output shift would be -1"),
        (_formats(0, 7, 0, -24), "output shift would be 31"),
    ],
)
def test_shifts_that_the_kernels_cannot_carry(formats: LayerFormats, message: str) -> None:
    with pytest.raises(UserError, match=message):
        shifts(formats)
