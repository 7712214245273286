# SPDX-License-Identifier: Apache-2.0
"""SENet's Axpy: as Scale and Eltwise in float, as integers in any formats, and in C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe_to_cmsis_nn.engines import known_answers
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.axpy import Axpy, Terms
from caffe_to_cmsis_nn.plan import lowering, rows
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target
from tests.cases import CONV1, ip, layer, pool
from tests.generated import check_on_host
from tests.networks import quantize

SHAPES = ((4, 1, 1), (4, 3, 2), (4, 3, 2))
LAYER = Axpy("x", ("a", "x", "y"), "x", SHAPES)


def run(integers: Terms | None, *inputs: np.ndarray) -> np.ndarray:
    """Through the exact graph, or in float."""
    g = OnnxGraph()
    names = [g.input(f"in{i}", np.float32, shape) for i, shape in enumerate(SHAPES)]
    kernel = LAYER.kernels[0]
    g.output(kernel.build(g, names, LAYER, integers, Target()) if integers else LAYER.build_float(g, names, None))
    feeds = {f"in{i}": values.astype(np.float32) for i, values in enumerate(inputs)}
    return np.array(g.session(fused=False).run(None, feeds)[0])


def test_in_float() -> None:
    rng = np.random.default_rng(0)
    a, x, y = (rng.normal(size=(5, *shape)).astype(np.float32) for shape in SHAPES)
    np.testing.assert_array_equal(run(None, a, x, y), a * x + y)


@given(st.tuples(*[st.integers(-12, 20)] * 4), st.integers(0, 1 << 30))
def test_integers_in_any_formats(bits: tuple[int, int, int, int], seed: int) -> None:
    """Within 32 bits at each step, and off by less than what two roundings can cost."""
    formats = LayerFormats(QFormat(bits[0]), others=(QFormat(bits[1]), QFormat(bits[2])))
    low, high = LAYER.output_limits(formats.inputs)
    assert low <= high
    output = QFormat(min(max(bits[3], low), high))
    terms = Terms.align(bits[0] + bits[1], bits[2], output.fraction_bits)
    assert 0 <= terms.out_rshift <= 30
    assert terms.product <= 15
    assert terms.summand <= 22
    rng = np.random.default_rng(seed)
    a, x, y = (rng.integers(-128, 128, (20, *shape)) for shape in SHAPES)
    a[0], x[0], y[0] = -128, -128, 127
    product, summand = a * x, np.broadcast_to(y, x.shape)
    real = product * 2.0 ** -(bits[0] + bits[1]) + summand * 2.0 ** -bits[2]
    found = run(terms, a, x, y)
    exact = np.clip(real * 2.0**output.fraction_bits, -128, 127)
    assert np.abs(found - exact).max() <= 0.5 + 0.5 * 2.0**-terms.out_rshift * (
        (terms.product < 0) + (terms.summand < 0)
    )


NETWORK = CONV1 + pool("pool: AVE global_pooling: true", name="g") + layer("Axpy", "", "g c data", name="s")


@pytest.mark.parametrize("seed", range(3))
def test_programs_compute_what_is_predicted(seed: int, tmp_path: Path) -> None:
    """With random formats, inputs first."""
    shape = (4, 7, 5)
    network = lowering.fuse(quantize(tmp_path, NETWORK + ip("num_output: 3", bottom="s"), shape, "x", Target(), seed))
    images = np.random.default_rng(seed).integers(0, 256, (3, *shape), dtype=np.uint8)
    answers = known_answers.compute(network, images, np.zeros(3, np.int32))
    check_on_host(tmp_path, network, rows.plan(network), answers)
    assert "axpy_q7(" in (tmp_path / "main.cpp").read_text()
