# SPDX-License-Identifier: Apache-2.0
"""The base class of layers: shapes, cost, float computation, macros, and the kernels that can compute the layer.

Shapes are Caffe's without the batch axis: (channels, height, width) or (features,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, final

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels import base
from caffe_to_cmsis_nn.kernels.base import AnyKernel, Kernel
from caffe_to_cmsis_nn.kernels.contract import I, I_contra, L, L_contra, LayerView
from caffe_to_cmsis_nn.onnx_graph import OnnxGraph
from caffe_to_cmsis_nn.qformat import MOST_FRACTION_BITS, LayerFormats, QFormat
from caffe_to_cmsis_nn.target import Target

if TYPE_CHECKING:
    from typing_extensions import Self

L_co = TypeVar("L_co", bound=LayerView, covariant=True)
I_co = TypeVar("I_co", covariant=True)
Shape = tuple[int, ...]
Weights = tuple[np.ndarray, np.ndarray]  # OIHW or (rows, columns), and the bias (O,); float32


# Elements of a layer's output and weights, and of a network's outputs together; more than any device holds.
LARGEST_OUTPUT, LARGEST_WEIGHTS, LARGEST_NETWORK = 1 << 25, 1 << 27, 1 << 28


class UnsupportedLayer(UserError):
    """A layer that is not supported; the message is only the reason."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its name, the layers that it reads, their output shapes, and the Caffe blob that it writes."""

    caffe_type: ClassVar[str]
    other_types: ClassVar[tuple[str, ...]] = ()  # its types in branches of Caffe
    variant: ClassVar[str] = ""  # tells operations of one Caffe type apart
    kernels: ClassVar[tuple[AnyKernel, ...]] = ()  # see computed_by
    weighted: ClassVar[bool] = False
    own_format: ClassVar[bool] = False  # the output's Q-format is searched for, not inherited from the input
    most_inputs: ClassVar[int] = 1
    elementwise: ClassVar[bool] = False  # the order of the elements does not matter
    flattens: ClassVar[bool] = False  # reads an image as a vector in Caffe's order
    sums_windows: ClassVar[bool] = False  # has one row of weights per output, applied to a window or to the whole input
    folds: ClassVar[bool] = False  # can be folded into the weights of the layer before it
    homogeneous: ClassVar[bool] = False  # scaling an input channel by a positive factor scales the output equally
    probabilities: ClassVar[bool] = False  # the outputs come from a softmax
    simulates_rounding: ClassVar[bool] = False  # the original tool's simulation rounds the output to its format
    any_rank: ClassVar[bool] = False  # takes more than vectors and images

    name: str
    inputs: tuple[str, ...]
    blob: str
    in_shapes: tuple[Shape, ...]
    shared_input: bool = False  # another layer reads an input of this one later

    @final
    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Self:
        """The layer of a LayerParameter; raises UnsupportedLayer."""
        layer = cls(message.name, inputs, message.top[0], in_shapes, **cls.read_fields(message, in_shapes))
        layer.verify()
        return layer

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Sequence[Layer]:
        """The layers of a LayerParameter: usually one, for some types one per top; raises UnsupportedLayer."""
        return [cls.parse(message, inputs, in_shapes)]

    @final
    def verify(self) -> None:
        """Raises UnsupportedLayer if the layer's inputs or fields are invalid."""
        odd = [shape for shape in self.in_shapes if len(shape) not in (1, 3)]
        if odd and not self.any_rank:
            raise UnsupportedLayer(f"its input has shape {odd[0]}, allowed are images and vectors")
        self.check()
        if self.out_size > LARGEST_OUTPUT:
            raise UnsupportedLayer(f"its output of shape {self.out_shape}, allowed are {LARGEST_OUTPUT} elements")
        weights = sum(map(math.prod, self.weight_shapes()))
        if weights > LARGEST_WEIGHTS:
            raise UnsupportedLayer(f"{weights} weights, allowed are {LARGEST_WEIGHTS}")

    @classmethod
    def read_fields(cls, message: Any, in_shapes: tuple[Shape, ...]) -> dict[str, Any]:
        """The fields specific to the layer's type, from a LayerParameter; raises UnsupportedLayer."""
        return {}

    @property
    def in_shape(self) -> Shape:
        return self.in_shapes[0]

    @property
    def out_shape(self) -> Shape:
        return self.in_shape

    @property
    def out_size(self) -> int:
        """The number of elements in the output, for one image."""
        return math.prod(self.out_shape)

    @property
    def square(self) -> bool:
        return len(self.out_shape) != 3 or len(self.in_shape) != 3 or self.in_shape[1] == self.in_shape[2]

    @property
    def keeps_order(self) -> bool:
        """Whether the layer can be left out at the end of a classifier, since the largest output stays the largest."""
        return False

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return 0

    def trimmed(self, integers: Any, rows: bool = True, columns: bool = True) -> tuple[Layer, Any]:
        """The layer and its integers without rows and columns of zero weights at the edges of its windows."""
        return self, integers

    def joined(self, first: Layer) -> Layer | None:
        """A single layer equal to `first` followed by this one, or None."""
        return None

    def check(self) -> None:
        """Raises UnsupportedLayer for invalid fields, which may come from a prototxt or a pickle."""

    def weight_shapes(self) -> tuple[Shape, ...]:
        """The shapes of the trained blobs; the bias, if any, comes second."""
        return ()

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """Weights and bias from the trained blobs, which have the shapes `weight_shapes`."""
        raise NotImplementedError

    def with_gain(self, weights: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Weights that scale each output by its gain (O,)."""
        return weights * gain.reshape(-1, *[1] * (weights.ndim - 1))

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        """The trained blobs for these weights, the inverse of `load`; for layers that are not `weighted`."""
        raise NotImplementedError

    def inherited(self, x: QFormat) -> QFormat:
        """The output's format, if it follows from the input's."""
        return x

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """The fewest and most fraction bits that an input may have, given the formats of all inputs."""
        return -MOST_FRACTION_BITS, MOST_FRACTION_BITS

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """The fewest and most fraction bits that the output may have, if it has its own format."""
        return -MOST_FRACTION_BITS, MOST_FRACTION_BITS

    @final
    def check_formats(self, formats: LayerFormats) -> None:
        """Raises UserError where the kernels cannot take the inputs' formats, or give the output's."""
        limits = [("input", x, self.input_limits(formats.inputs)) for x in formats.inputs]
        if self.own_format and formats.y:
            limits.append(("output", formats.y, self.output_limits(formats.inputs)))
        for what, q, (low, high) in limits:
            if not low <= q.fraction_bits <= high:
                raise UserError(f"its {what} has {q.fraction_bits} fraction bits, allowed are {low} to {high}")

    def kernel_for(self, target: Target, weight_bits: int = 8) -> AnyKernel:
        """The first kernel that supports the layer and its weights; raises UserError if there is none."""
        return base.choose(self.kernels, self, target, weight_bits)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        """Adds Caffe's computation to a graph."""
        raise NotImplementedError

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> object:
        """The integer parameters of the layer's kernel, or None if it has none."""
        return None

    def defines(self) -> dict[str, int]:
        """The layer's macros in parameter.h, without its prefix; names are those of the original tool.

        Equal height and width share a macro; otherwise _X is the width and _Y the height.
        """
        if len(self.out_shape) != 3:
            return {"OUT_DIM": self.out_size}
        channels, height, width = self.out_shape
        sides = {"OUT_DIM": height} if height == width else {"OUT_DIM_X": width, "OUT_DIM_Y": height}
        return {"OUT_CH": channels, **sides}

    def describe(self) -> str:
        """The layer's sizes as a short text."""
        return "x".join(map(str, self.out_shape))


class OwnLoop(Kernel[L_contra, I_contra]):
    """A C function of this tool, in its operator's header; it rounds half up, whatever the target's rounding."""

    source = "templates/ops/{}.h"
    header: ClassVar[str]

    @property
    def source_file(self) -> str:
        return self.source.format(self.header)


class _Computable(Protocol[L_co, I_co]):
    """A class of layers that satisfy L and quantize to I."""

    kernels: ClassVar[tuple[AnyKernel, ...]]

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> L_co: ...

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> I_co: ...


def computed_by(cls: type[_Computable[L, I]], *kernels: Kernel[L, I]) -> None:
    """Registers the kernels of a class of layers: those for narrower weights first, then the fastest first.

    mypy checks that each kernel takes these layers and their integers.
    """
    cls.kernels = kernels
