# SPDX-License-Identifier: Apache-2.0
"""SENet's Axpy (axpy_layer.cpp): a * x + y, with a number of a for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_to_cmsis_nn.kernels import exact_onnx
from caffe_to_cmsis_nn.kernels.call import Call, CNames, Declaration, Statement
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.ops.base import Layer, OwnLoop, Shape, UnsupportedLayer, Weights, computed_by
from caffe_to_cmsis_nn.qformat import LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

# Shifts in bits: products have 15 bits and y has 8, both with their sign, so that their sum and the rounding term stay
# within 32 bits.
MOST_PRODUCT_LSHIFT, MOST_SUMMAND_LSHIFT, MOST_OUT_RSHIFT = 15, 22, 20


@dataclass(frozen=True)
class Terms:
    """(a * x * 2**product + y * 2**summand + rounding term) >> out_rshift; negative exponents shift right, rounded."""

    product: int
    summand: int
    out_rshift: int

    @classmethod
    def align(cls, product: int, summand: int, output: int) -> Terms:
        """From fraction bits, at the finest of these that 32 bits hold."""
        finest = min(max(product, summand, output), product + MOST_PRODUCT_LSHIFT, summand + MOST_SUMMAND_LSHIFT)
        return cls(finest - product, finest - summand, finest - output)


class Axpy(Layer):
    """a * x + y: the inputs are a (C,) or (C, 1, 1), x and y of one shape."""

    caffe_type = "Axpy"
    own_format = True
    simulates_rounding = True
    most_inputs = 3

    def check(self) -> None:
        if len(self.in_shapes) == 3:
            a, x, y = self.in_shapes
            if x == y and a in (x[:1], (*x[:1], 1, 1)):
                return
        shapes = ", ".join(map(str, self.in_shapes))
        raise UnsupportedLayer(f"inputs of shapes {shapes}: it takes a number for each channel, and two of one shape")

    @property
    def out_shape(self) -> Shape:
        return self.in_shapes[1]

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """Fraction bits with which `Terms.align` shifts to the right, and not too far."""
        product, summand = xs[0].fraction_bits + xs[1].fraction_bits, xs[2].fraction_bits
        most = min(product + MOST_PRODUCT_LSHIFT, summand + MOST_SUMMAND_LSHIFT)
        return min(max(product, summand) - MOST_OUT_RSHIFT, most), most

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        a, x, y = exact_onnx.same_axes(g, xs, self)
        return g.add("Add", g.add("Mul", a, x), y)

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> Terms:
        assert formats.y
        a, x, y = (q.fraction_bits for q in formats.inputs)
        return Terms.align(a + x, y, formats.y.fraction_bits)

    def defines(self) -> dict[str, int]:
        return {"SIZE": self.out_size, "OUT_CH": self.out_shape[0]}


class OwnAxpy(OwnLoop[Axpy, Terms]):
    """Products and summands are brought to one format, added, and rounded half up."""

    header = "axpy_q7"

    def build(self, g: OnnxGraph, xs: Sequence[str], layer: Axpy, integers: Terms, target: Target) -> str:
        """Exact in float64."""
        a, x, y = (g.cast(value, np.float64) for value in exact_onnx.same_axes(g, xs, layer))
        product = _shifted(g, g.add("Mul", a, x), integers.product)
        total = g.add("Add", product, _shifted(g, y, integers.summand))
        return exact_onnx.saturate(g, g.cast(_shifted(g, total, -integers.out_rshift), np.float32))

    def calls(self, layer: Axpy, c: CNames) -> list[Statement]:
        name = c.variable("out_terms")
        shifts = tuple(map(c.macro, ("PRODUCT_LSHIFT", "PRODUCT_RSHIFT", "Y_LSHIFT", "Y_RSHIFT", "OUT_RSHIFT")))
        return [
            Declaration("const axpy_t", name, shifts),
            Call(self.name, (*c.inputs, c.macro("SIZE"), c.macro("OUT_CH"), f"&{name}", c.output)),
        ]

    def defines(self, integers: Terms) -> dict[str, int]:
        shifts = (("PRODUCT", integers.product), ("Y", integers.summand))
        sides = {f"{what}_LSHIFT": max(n, 0) for what, n in shifts}
        return {**sides, **{f"{what}_RSHIFT": max(-n, 0) for what, n in shifts}, "OUT_RSHIFT": integers.out_rshift}


def _shifted(g: OnnxGraph, x: str, lshift: int) -> str:
    """x * 2**lshift; to the right, rounded half up."""
    scaled = g.add("Mul", x, np.array(2.0**lshift))
    return scaled if lshift >= 0 else g.add("Floor", g.add("Add", scaled, np.array(0.5)))


computed_by(Axpy, OwnAxpy("axpy_q7"))

CLASSES = (Axpy,)
