# SPDX-License-Identifier: Apache-2.0
"""Powers of sums of squares (LRN, Normalize): how far they are from real numbers, for every sum; and tables' sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops import lrn
from caffe_to_cmsis_nn.ops.lrn import Across, Powers, Within
from caffe_to_cmsis_nn.ops.normalize import UnitLength
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target
from tests.support import FULL_SIZE

CAFFENET = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}


def layer(
    local_size: int = 5, alpha: float = 1.0, beta: float = 0.75, k: float = 1.0, within: bool = False
) -> Across | Within:
    cls: type[Across | Within] = Within if within else Across
    made = cls("norm", ("x",), "norm", ((7, 6, 5),), local_size=local_size, alpha=alpha, beta=beta, k=k)
    made.check()
    return made


def largest_error(norm: Across | Within, x: int, y: int) -> float:
    """In steps of the output, over all sums and all inputs that they allow, before rounding."""
    powers = norm.quantize(None, LayerFormats(x=QFormat(x), y=QFormat(y)))
    sums = np.arange(norm.cells * 128**2 + 1)
    with np.errstate(over="ignore"):
        real = 2.0 ** (y - x) * (norm.k + norm.alpha / norm.cells * 4.0**-x * sums) ** -norm.beta
    return error_of(powers, sums, real)


def error_of(powers: Powers, sums: np.ndarray, real: np.ndarray) -> float:
    """Results beyond 128 are saturated: an error below half a step there changes nothing."""
    multipliers = powers.multipliers()
    assert multipliers.max() * 128 + (1 << powers.rshift >> 1) < 1 << 31  # within 32 bits in C
    inputs = np.minimum(np.minimum(np.floor(np.sqrt(sums)), 128), np.floor(128.5 / real))  # the largest not saturated
    error = inputs * np.abs(multipliers * 2.0**-powers.rshift - real)
    saturating = (inputs + 1) * multipliers * 2.0**-powers.rshift  # the next one must saturate as well
    beyond = (inputs + 1 <= 128) & ((inputs + 1) ** 2 <= sums)
    assert (saturating[beyond] >= 127.5).all()
    return float(error.max())


@given(
    st.sampled_from([1, 3, 5, 7, 9]),
    st.one_of(st.sampled_from([0.0, 5e-5, 1e-4, 1.0]), st.floats(1e-8, 1e8)),
    st.floats(0, 10),
    st.floats(2**-10, 2**10),
    st.integers(-8, 16),
    st.integers(-6, 20),
)
@settings(max_examples=100, deadline=None)
def test_less_than_half_a_step_for_every_sum(
    local_size: int, alpha: float, beta: float, k: float, x: int, finer: int
) -> None:
    assert largest_error(layer(local_size, alpha, beta, k), x, x + finer) < 0.5


LARGEST = (-3, 2, 7) if FULL_SIZE else (2,)  # fraction bits of inputs


@pytest.mark.parametrize(
    ("norm", "most_bytes", "x"),
    [
        *((layer(5, 1e-4), 240, x) for x in range(-3, 8)),  # AlexNet, CaffeNet, GoogLeNet
        *((layer(3, 5e-5, within=True), 240, x) for x in range(-3, 8)),  # cifar10_full
        *((layer(5, 1.0), 650, x) for x in range(-3, 8)),  # Caffe's defaults
        *(
            pytest.param(layer(31, 1.0, within=True), 850, x, marks=pytest.mark.slow)
            for x in ((-3, 2, 7) if FULL_SIZE else (2,))
        ),
    ],
)
def test_layers_of_known_networks(norm: Across | Within, most_bytes: int, x: int) -> None:
    for y in range(x - 2, x + 3):
        assert largest_error(norm, x, y) < 0.5
    assert norm.quantize(None, LayerFormats(x=QFormat(x), y=QFormat(x))).table.nbytes <= most_bytes


def squares(norm: Across | Within, image: np.ndarray) -> np.ndarray:
    """Sums as the definition has them, CHW."""
    half = norm.local_size // 2
    found = np.zeros(image.shape, np.int64)
    for place in np.ndindex(image.shape):
        spans = [slice(max(i - half, 0), i + half + 1) for i in place]
        own = (
            (slice(place[0], place[0] + 1), *spans[1:])
            if norm.axes == 2
            else (spans[0], *(slice(i, i + 1) for i in place[1:]))
        )
        found[place] = (image[own].astype(np.int64) ** 2).sum()
    return found


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("local_size", [1, 3, 9])
def test_the_model_computes_the_definition(within: bool, local_size: int) -> None:
    norm = layer(local_size, 0.3, within=within)
    image = np.random.default_rng(0).integers(-128, 128, norm.in_shape).astype(np.int8)
    powers = norm.quantize(None, LayerFormats(x=QFormat(4), y=QFormat(5)))
    g = OnnxGraph()
    g.output(norm.kernels[0].build(g, [g.input("x", np.float32, norm.in_shape)], norm, powers, Target()))
    (found,) = g.session().run(None, {"x": image[None].astype(np.float32)})
    factors = powers.multipliers()[squares(norm, image)]
    np.testing.assert_array_equal(
        found[0], np.clip((image * factors + (1 << powers.rshift >> 1)) >> powers.rshift, -128, 127)
    )


def test_a_table_of_one_octave_where_little_is_added() -> None:
    powers = Powers.fit(5, 0.0, 0.75, 1.0, 0, 0)
    assert len(powers.table) == 2
    assert set(powers.multipliers()) == {1 << powers.rshift}


@pytest.mark.parametrize("x", [-200, 200])
@pytest.mark.parametrize("y", [-200, 200])
@pytest.mark.parametrize(("alpha", "k"), [(1e30, 5e-324), (0.0, 1e30), (5e-324, 1.0)])
def test_numbers_at_the_limits(alpha: float, k: float, x: int, y: int) -> None:
    norm = layer(3, alpha, 10.0, k)
    powers = norm.quantize(None, LayerFormats(x=QFormat(x), y=QFormat(y)))
    assert (np.diff(powers.table.astype(int)) <= 0).all()
    assert powers.multipliers().min() >= 0
    assert len(powers.table) < 20_000


# --- Normalize --------------------------------------------------------------------------------------------------------


def unit(channels: int, eps: float = 1e-10, across_spatial: bool = False) -> UnitLength:
    made = UnitLength("unit", ("x",), "unit", ((channels, 3, 5),), across_spatial=across_spatial, eps=eps)
    made.check()
    return made


@given(st.sampled_from([1, 2, 16, 100]), st.floats(1e-12, 10), st.integers(-8, 16), st.integers(-6, 20))
@example(512, 1e-10, 3, 3)  # SSD's conv4_3_norm
@settings(max_examples=40, deadline=None)
def test_lengths_less_than_half_a_step_off_for_every_sum(channels: int, eps: float, x: int, finer: int) -> None:
    norm, y = unit(channels, eps), x + finer
    sums = np.arange(channels * 128**2 + 1)
    real = 2.0 ** (y - x) / np.sqrt(eps + 4.0**-x * sums)
    assert error_of(norm.quantize(None, LayerFormats(x=QFormat(x), y=QFormat(y))), sums, real) < 0.5


@pytest.mark.parametrize(
    "channels", [5, pytest.param(300, marks=pytest.mark.slow)]
)  # multipliers from a list, and computed in the graph
@pytest.mark.parametrize("across_spatial", [False, True])
def test_the_model_gives_vectors_the_length_one(channels: int, across_spatial: bool) -> None:
    norm = unit(channels, across_spatial=across_spatial)
    image = np.random.default_rng(0).integers(-128, 128, norm.in_shape)
    image[:, 0] = np.arange(5) == 2  # small sums, and none
    powers = norm.quantize(None, LayerFormats(x=QFormat(4), y=QFormat(7)))
    g = OnnxGraph()
    g.output(norm.kernels[0].build(g, [g.input("x", np.float32, norm.in_shape)], norm, powers, Target()))
    (found,) = g.session().run(None, {"x": image[None].astype(np.float32)})
    factors = powers.multipliers()[np.broadcast_to((image**2).sum(axis=None if across_spatial else 0), image.shape)]
    np.testing.assert_array_equal(
        found[0], np.clip((image * factors + (1 << powers.rshift >> 1)) >> powers.rshift, -128, 127)
    )


@given(st.integers(0, 24), st.integers(1, 6), st.integers(0, 1 << 30))
@settings(max_examples=20, deadline=None)
def test_the_graph_computes_the_listed_multipliers(octave: int, steps: int, seed: int) -> None:
    rng, most = np.random.default_rng(seed), lrn.MOST_LISTED
    last = int(lrn._pieces(np.array([most]), octave, steps)[0][0])
    table = np.sort(rng.integers(0, 1 << 16, last + 2))[::-1].astype(np.uint16)
    powers = Powers(table, octave, steps, 20, most)
    sums = np.unique(
        np.append(rng.integers(0, most + 1, 5000), [0, 1, most, *(1 << np.arange(21)), *(1 << np.arange(21)) - 1])
    )
    g = OnnxGraph()
    g.output(powers.build(g, g.input("x", np.float64, [1])))
    (found,) = g.session().run(None, {"x": sums[:, None].astype(np.float64)})
    np.testing.assert_array_equal(found[:, 0], powers.multipliers()[sums])


@pytest.mark.parametrize("across_spatial", [False, True])
def test_float_computation_of_normalize(across_spatial: bool) -> None:
    """As normalize_layer.cpp defines it; this project's Caffe has no such layer to compare with."""
    norm = unit(6, 0.5, across_spatial)
    values = np.random.default_rng(1).normal(size=(2, *norm.in_shape)).astype(np.float32)
    g = OnnxGraph()
    g.output(norm.build_float(g, [g.input("x", np.float32, norm.in_shape)], None))
    (found,) = g.session().run(None, {"x": values})
    axes = (1, 2, 3) if across_spatial else (1,)
    expected = values / np.sqrt((values.astype(np.float64) ** 2).sum(axes, keepdims=True) + 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
