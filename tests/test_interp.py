# SPDX-License-Identifier: Apache-2.0
"""Interp: sizes as DeepLab's interp_layer.cpp has them, and values between neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.interp import Interp
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.target import Target

SHAPE = (2, 9, 12)


def parse(param: str) -> list[Layer]:
    message = text_format.Parse(
        f'name: "x" type: "Interp" bottom: "d" top: "x" interp_param {{ {param} }}', pb.LayerParameter()
    )
    return [*Interp.parse_all(message, ("d",), (SHAPE,))]


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("zoom_factor: 2", (17, 23)),
        ("shrink_factor: 2", (5, 6)),
        ("shrink_factor: 4 zoom_factor: 8", (17, 17)),
        ("height: 33 width: 1", (33, 1)),
        ("height: 3 width: 4 shrink_factor: 2", (5, 6)),
        ("height: 3 width: 4 shrink_factor: 2 zoom_factor: 2", (3, 4)),
        ("zoom_factor: 3 pad_beg: -2 pad_end: -1", (16, 25)),
    ],
)
def test_sizes(param: str, expected: tuple[int, int]) -> None:
    assert parse(param)[-1].out_shape == (2, *expected)


def between(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each output alone, in float64: the corners stay where they are."""
    (_, rows, columns), out = image.shape, np.zeros((len(image), height, width))
    for y, x in np.ndindex(height, width):
        at_y = y * (rows - 1) / (height - 1) if height > 1 else 0.0
        at_x = x * (columns - 1) / (width - 1) if width > 1 else 0.0
        top, left = int(at_y + 1e-9), int(at_x + 1e-9)
        for j, i in np.ndindex(2, 2):
            share = (at_y - top if j else 1 - at_y + top) * (at_x - left if i else 1 - at_x + left)
            out[:, y, x] += share * image[:, min(top + j, rows - 1), min(left + i, columns - 1)]
    return out


def run(layer: Layer, values: np.ndarray, exact: bool) -> np.ndarray:
    g = OnnxGraph()
    x = g.input("x", np.float32, layer.in_shape)
    if exact:
        g.output(layer.kernels[0].build(g, [x], layer, layer.quantize(None, LayerFormats()), Target()))
    else:
        g.output(layer.build_float(g, [x], None))
    (found,) = g.session().run(None, {"x": values[None].astype(np.float32)})
    assert found.shape == (1, *layer.out_shape)
    return np.asarray(found[0])


@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 30)] * 2), st.integers(0, 1 << 30))
@settings(max_examples=50, deadline=None)
def test_values_between_neighbours(size: tuple[int, int], out: tuple[int, int], seed: int) -> None:
    """In float; and of 8-bit values within half a step, and what the weights' rounding to 2048ths can do."""
    values = np.random.default_rng(seed).integers(-128, 128, (2, *size))
    layer = Interp("x", ("d",), "x", ((2, *size),), size=out)
    layer.check()
    expected = between(values, *out)
    np.testing.assert_allclose(run(layer, values, False), expected, atol=1e-3)
    found = run(layer, values, True)
    assert np.abs(found - expected).max() <= 0.5 + 2 * 255 / 4096
    corners = np.ix_([0, 1], [0, -1], [0, -1])
    if min(*size, *out) > 1:
        np.testing.assert_array_equal(found[corners], values[corners])
