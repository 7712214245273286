# SPDX-License-Identifier: Apache-2.0
"""What every Caffe layer has: its shapes, cost, float computation, macros, and the kernels that can compute it.

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


# Elements of a layer's output and weights, and of a network's outputs together; no device holds so many.
LARGEST_OUTPUT, LARGEST_WEIGHTS, LARGEST_NETWORK = 1 << 25, 1 << 27, 1 << 28


class UnsupportedLayer(UserError):
    """A layer that the tool cannot take; the message is the reason alone."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its name, the layers whose outputs it reads, their shapes, and the Caffe blob that it writes."""

    caffe_type: ClassVar[str]
    other_types: ClassVar[tuple[str, ...]] = ()  # what branches of Caffe call it
    variant: ClassVar[str] = ""  # which of Caffe's operations, where a type has several
    kernels: ClassVar[tuple[AnyKernel, ...]] = ()  # see computed_by
    weighted: ClassVar[bool] = False
    own_format: ClassVar[bool] = False  # the output's Q-format is chosen, not inherited from the input
    most_inputs: ClassVar[int] = 1
    elementwise: ClassVar[bool] = False  # the order of the data does not matter
    flattens: ClassVar[bool] = False  # takes an image for the vector that it is in Caffe's order
    sums_windows: ClassVar[bool] = False  # with one row of weights for each output, whose input is a window or all
    folds: ClassVar[bool] = False  # goes into the weights of the layer before it
    homogeneous: ClassVar[bool] = False  # a channel that is so many times as large leaves it so many times as large
    probabilities: ClassVar[bool] = False  # its outputs are a softmax's
    simulates_rounding: ClassVar[bool] = False  # the original's simulation puts the output on its grid
    any_rank: ClassVar[bool] = False  # takes more than vectors and images

    name: str
    inputs: tuple[str, ...]
    blob: str
    in_shapes: tuple[Shape, ...]
    shared_input: bool = False  # another layer reads an input of this one later

    @final
    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Self:
        """From a LayerParameter; raises UnsupportedLayer where the layer asks for what cannot be done."""
        layer = cls(message.name, inputs, message.top[0], in_shapes, **cls.read_fields(message, in_shapes))
        layer.verify()
        return layer

    @classmethod
    def parse_all(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> Sequence[Layer]:
        """The layers that a LayerParameter stands for: one, except that some have one for each top."""
        return [cls.parse(message, inputs, in_shapes)]

    @final
    def verify(self) -> None:
        """Raises UnsupportedLayer where the layer cannot take its inputs, or where its fields make no sense."""
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
        """The fields of the layer's own type, from a LayerParameter; raises UnsupportedLayer as `parse` does."""
        return {}

    @property
    def in_shape(self) -> Shape:
        return self.in_shapes[0]

    @property
    def out_shape(self) -> Shape:
        return self.in_shape

    @property
    def out_size(self) -> int:
        """Elements of the output, for one image."""
        return math.prod(self.out_shape)

    @property
    def square(self) -> bool:
        return len(self.out_shape) != 3 or len(self.in_shape) != 3 or self.in_shape[1] == self.in_shape[2]

    @property
    def keeps_order(self) -> bool:
        """Whether it may be left out at the end of a network: what is the largest stays the largest."""
        return False

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return 0

    def trimmed(self, integers: Any, rows: bool = True, columns: bool = True) -> tuple[Layer, Any]:
        """The layer and what it holds without zeros at the edges of its windows; the same where there are none."""
        return self, integers

    def joined(self, first: Layer) -> Layer | None:
        """One layer that does what `first` and then this one do; None where there is none."""
        return None

    def check(self) -> None:
        """Raises UnsupportedLayer where fields, from a prototxt or a pickle, make no sense."""

    def weight_shapes(self) -> tuple[Shape, ...]:
        """Shapes of the trained blobs; the bias, where there is one, comes second."""
        return ()

    def load(self, blobs: Sequence[np.ndarray]) -> Weights:
        """What the trained blobs, in the shapes asked for, mean to this tool."""
        raise NotImplementedError

    def with_gain(self, weights: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """The weights with which each output (O,) is `gain` times as large."""
        return weights * gain.reshape(-1, *[1] * (weights.ndim - 1))

    def blobs(self, weights: Weights) -> list[np.ndarray]:
        """What `load` has made its weights of, where the layer is no weighted one."""
        raise NotImplementedError

    def inherited(self, x: QFormat) -> QFormat:
        """The output's format where it is not chosen."""
        return x

    def input_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """The fraction bits that the kernels can take, fewest and most, given those of all inputs."""
        return -MOST_FRACTION_BITS, MOST_FRACTION_BITS

    def output_limits(self, xs: Sequence[QFormat]) -> tuple[int, int]:
        """The fraction bits that the kernels can give, fewest and most, where the format is chosen."""
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
        """The first kernel that can compute the layer with such weights; raises UserError where there is none."""
        return base.choose(self.kernels, self, target, weight_bits)

    def build_float(self, g: OnnxGraph, xs: Sequence[str], weights: Weights | None) -> str:
        """Adds Caffe's computation to a graph."""
        raise NotImplementedError

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> object:
        """What the layer's kernel holds as integers; None where it holds nothing."""
        return None

    def defines(self) -> dict[str, int]:
        """The layer's macros in parameter.h without its prefix, named as the original tool names them.

        One macro for an equal height and width, else _X for the width and _Y for the height.
        """
        if len(self.out_shape) != 3:
            return {"OUT_DIM": self.out_size}
        channels, height, width = self.out_shape
        sides = {"OUT_DIM": height} if height == width else {"OUT_DIM_X": width, "OUT_DIM_Y": height}
        return {"OUT_CH": channels, **sides}

    def describe(self) -> str:
        """The layer's sizes in a few characters."""
        return "x".join(map(str, self.out_shape))


class OwnLoop(Kernel[L_contra, I_contra]):
    """One of our own C functions, in a header of its operator; it rounds half up, whatever the target."""

    source = "templates/ops/{}.h"
    header: ClassVar[str]

    @property
    def source_file(self) -> str:
        return self.source.format(self.header)


class _Computable(Protocol[L_co, I_co]):
    """A class of layers that are an L and hold an I."""

    kernels: ClassVar[tuple[AnyKernel, ...]]

    @classmethod
    def parse(cls, message: Any, inputs: tuple[str, ...], in_shapes: tuple[Shape, ...]) -> L_co: ...

    def quantize(self, weights: Weights | None, formats: LayerFormats) -> I_co: ...


def computed_by(cls: type[_Computable[L, I]], *kernels: Kernel[L, I]) -> None:
    """Gives a class of layers its kernels, the fastest first; before them, those for weights of fewer bits.

    mypy proves that each takes these layers, and what they hold as integers.
    """
    cls.kernels = kernels
