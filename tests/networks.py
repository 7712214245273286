# SPDX-License-Identifier: Apache-2.0
"""Random small networks of every supported layer, as prototxt text, and random legal formats for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from hypothesis import assume, reject
from hypothesis import strategies as st

from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.caffe_io.blobs import Blobs
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network import graph
from caffe_to_cmsis_nn.network.folding import simplify
from caffe_to_cmsis_nn.network.from_caffe import attach_weights, parse_network
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork, SourceFile, quantize_network
from caffe_to_cmsis_nn.ops.registry import layer_class
from caffe_to_cmsis_nn.qformat import QFormat
from caffe_to_cmsis_nn.search import common
from caffe_to_cmsis_nn.target import S8, Core, Rounding, Target
from tests.support import prototxt

CLASSES = 3
ZERO_EDGES = 0.3  # of convolutions
BEFORE_LAST = -1  # the networks' last layer is an inner product
TARGETS = [
    *(Target(core, rounding) for core in Core for rounding in Rounding),
    *(Target(core, library=S8) for core in Core),
]


@dataclass
class Builder:
    """Layers so far, and the shapes of the blobs that may be read."""

    draw: st.DrawFn
    shapes: dict[str, tuple[int, ...]]
    without: Collection[str] = ()  # types of layers
    text: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def add(self, kind: str, bottoms: list[str], parameters: str = "", top: str = "") -> str | None:
        """Adds a layer, and gives its top; None where it would be declined."""
        if kind in self.without:
            return None
        name = f"{kind.lower()}/{len(self.text)}"
        blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        text = f'name: "{name}" type: "{kind}" {blobs} top: "{top or name}" {parameters}'
        try:
            message = text_format.Parse(text, pb.LayerParameter())
            in_shapes = tuple(self.shapes[bottom] for bottom in bottoms)
            layers = layer_class(message, in_shapes).parse_all(message, tuple(bottoms), in_shapes)
            for layer in layers:
                layer.kernel_for(Target())
        except UserError:
            return None
        self.text.append(f"layer {{ {text} }}")
        self.read.update(bottom for bottom in bottoms if bottom != top)
        self.shapes[top or name] = layers[-1].out_shape
        return top or name

    # What may follow a blob:

    def window(self, most_beyond: int = 0) -> str:
        """A kernel with a padding below its size, or, rarely, up to so much beyond."""
        kernels, strides = st.sampled_from([2, 3, 1, 5]), st.sampled_from([1, 1, 2, 3])
        beyond = 1 + most_beyond if most_beyond and self.integer(0, 7) == 0 else 0
        sizes = {what: (self.draw(s), self.draw(s)) for what, s in (("kernel", kernels), ("stride", strides))}
        most = [size - 1 + beyond for size in sizes["kernel"]]
        sizes["pad"] = (self.integer(0, most[0]), self.integer(0, most[1]))
        if self.integer(0, 3):
            return " ".join(f"{what if what != 'kernel' else 'kernel_size'}: {pair[0]}" for what, pair in sizes.items())
        return " ".join(f"{what}_h: {pair[0]} {what}_w: {pair[1]}" for what, pair in sizes.items())

    def convolution(self, blob: str) -> None:
        channels = self.shapes[blob][0]
        group = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        count = group * self.integer(1, 4) if group < channels else channels * self.draw(st.sampled_from([1, 4, 2]))
        bias = "true" if self.flag() else "false"
        dilation = self.draw(
            st.sampled_from(["", "", "dilation: 2", "dilation: 1 dilation: 3", "dilation: 2 dilation: 1"])
        )
        param = f"num_output: {count} group: {group} bias_term: {bias} {self.window(1)} {dilation}"
        self.affine(self.add("Convolution", [blob], f"convolution_param {{ {param} }}"))

    def deconvolution(self, blob: str) -> None:
        channels, *sides = self.shapes[blob]
        if max(sides) > 16:
            return  # it would grow without end
        group = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        bias = "true" if self.flag() else "false"
        param = f"num_output: {group * self.integer(1, 3)} group: {group} bias_term: {bias} {self.window()}"
        self.affine(self.add("Deconvolution", [blob], f"convolution_param {{ {param} }}"))

    def inner_product(self, blob: str) -> None:
        count = self.integer(1, 9)
        self.affine(self.add("InnerProduct", [blob], f"inner_product_param {{ num_output: {count} }}"))

    def affine(self, blob: str | None) -> None:
        kinds = self.draw(st.sampled_from([[], [], ["BatchNorm"], ["BatchNorm", "Scale"], ["Scale", "Bias"]]))
        for kind in kinds if blob else []:
            param = "scale_param { bias_term: true }" if kind == "Scale" and self.flag() else ""
            assert blob
            blob = self.add(kind, [blob], param, top=blob if self.flag() else "")

    def pooling(self, blob: str) -> None:
        method = self.draw(st.sampled_from(["MAX", "AVE"]))
        window = "global_pooling: true" if self.integer(0, 4) == 0 else self.window()
        self.add("Pooling", [blob], f"pooling_param {{ pool: {method} {window} }}")

    def lrn(self, blob: str) -> None:
        size = f"local_size: {self.draw(st.sampled_from([3, 5, 1, 9]))}"
        alpha, beta = st.sampled_from([1e-4, 1, 0.02]), st.sampled_from([0.75, 0.5, 2])
        region = self.draw(st.sampled_from(["ACROSS_CHANNELS k: 2", "WITHIN_CHANNEL"]))
        self.add(
            "LRN",
            [blob],
            f"lrn_param {{ {size} alpha: {self.draw(alpha)} beta: {self.draw(beta)} norm_region: {region} }}",
        )

    def elementwise(self, blob: str) -> None:
        kinds = ["ReLU", "ReLU", "leaky", "ReLU6", "Clip", "Sigmoid", "TanH", "PReLU", "PReLU", "shared"]
        kinds += ["ELU", "AbsVal", "BNLL", "Power", "Threshold"]
        kind = self.draw(st.sampled_from(kinds))
        shared = blob.startswith(("permute", "reshape", "flatten"))  # Caffe's tops may be their bottoms' memory
        in_place = blob not in self.read and blob != "data" and kind != "AbsVal" and not shared and self.flag()
        param = {
            "Clip": "clip_param { min: -1 max: 2.5 }",
            "shared": "prelu_param { channel_shared: true }",
            "Power": "power_param { power: 2 scale: 0.5 shift: -1 }",
            "leaky": f"relu_param {{ negative_slope: {self.draw(st.sampled_from([0.1, 0.25, 1, -0.5, 2]))} }}",
        }.get(kind, "")
        kind = {"leaky": "ReLU", "shared": "PReLU"}.get(kind, kind)
        self.add(kind, [blob], param, top=blob if in_place else "")

    def _partners(self, blob: str, fits: Callable[[tuple[int, ...]], bool]) -> list[str]:
        others = [name for name, shape in self.shapes.items() if len(shape) == len(self.shapes[blob]) and fits(shape)]
        return [blob, *self.draw(st.lists(st.sampled_from(others), min_size=1, max_size=3))]

    def eltwise(self, blob: str) -> None:
        bottoms = self._partners(blob, lambda shape: shape == self.shapes[blob])
        numbers: list[float] = [1, -1] if self.flag() else [0.5, -1.25, 3, 1e-3]
        coefficients = " ".join(f"coeff: {self.draw(st.sampled_from(numbers))}" for _ in bottoms)
        param = self.draw(st.sampled_from(["operation: MAX", "operation: PROD", coefficients, ""]))
        self.add("Eltwise", bottoms[:2] if "PROD" in param else bottoms, f"eltwise_param {{ {param} }}")

    def concat(self, blob: str) -> None:
        axis = self.integer(0, len(self.shapes[blob]) - 1)

        def rest(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (*shape[:axis], 0, *shape[axis + 1 :])

        bottoms = self._partners(blob, lambda shape: rest(shape) == rest(self.shapes[blob]))
        self.add("Concat", bottoms, f"concat_param {{ axis: {axis + 1} }}")

    def by_input(self, blob: str) -> None:
        """With a number for each channel, which another blob has."""
        own = self.shapes[blob]
        numbers = [name for name, shape in self.shapes.items() if shape in (own, own[:1])]
        kind = self.draw(st.sampled_from(["Scale", "Bias"]))
        self.add(kind, [blob, self.draw(st.sampled_from(numbers))], f"{kind.lower()}_param {{ axis: 0 }}")

    def axpy(self, blob: str) -> None:
        own = self.shapes[blob]
        numbers = [name for name, shape in self.shapes.items() if shape in (own[:1], (*own[:1], 1, 1))]
        if numbers:
            summands = [name for name, shape in self.shapes.items() if shape == own]
            self.add("Axpy", [self.draw(st.sampled_from(numbers)), blob, self.draw(st.sampled_from(summands))], "")

    def normalize(self, blob: str) -> None:
        across, shared = (str(self.draw(st.booleans())).lower() for _ in range(2))
        param = f"across_spatial: {across} channel_shared: {shared} eps: {self.draw(st.sampled_from([1e-10, 0.1]))}"
        self.add("Normalize", [blob], f"norm_param {{ {param} }}")

    def interp(self, blob: str) -> None:
        param = ["zoom_factor: 2", "shrink_factor: 2", "height: 5 width: 3", "zoom_factor: 2 pad_beg: -1"]
        self.add("Interp", [blob], f"interp_param {{ {self.draw(st.sampled_from(param))} }}")

    def move(self, blob: str) -> None:
        shape = self.shapes[blob]
        axis = self.integer(0, len(shape) - 1)
        splits = [d for d in range(1, shape[0] + 1) if shape[0] % d == 0]
        order = self.draw(st.permutations(range(1, len(shape) + 1)))
        others = [name for name, other in self.shapes.items() if len(other) == len(shape)]
        bottoms = [blob]
        kind = self.draw(
            st.sampled_from(["Permute", "Reshape", "Flatten", "ShuffleChannel", "Upsample", "Tile", "Crop"])
        )
        if kind == "Upsample" and math.prod(shape) > 500:
            return
        if kind == "Crop":
            bottoms.append(self.draw(st.sampled_from(others)))
        group = self.draw(st.sampled_from(splits))
        dims = self.draw(st.sampled_from([(0, -1), (0, group, -1), (0, -1, *shape[:1]), (0, *shape[::-1]), (0, 0, -1)]))
        param = {
            "Permute": f"permute_param {{ order: 0 {' '.join(f'order: {one}' for one in order)} }}",
            "Reshape": f"reshape_param {{ shape {{ {' '.join(f'dim: {dim}' for dim in dims)} }} }}",
            "Flatten": f"flatten_param {{ axis: {axis + 1} }}",
            "ShuffleChannel": f"shuffle_channel_param {{ group: {group} }}",
            "Tile": f"tile_param {{ axis: {axis + 1} tiles: 2 }}",
            "Crop": f"crop_param {{ axis: {axis + 1} }}",
        }
        self.add(kind, bottoms, param.get(kind, ""))

    def along(self, blob: str) -> None:
        axis = self.integer(0, len(self.shapes[blob]) - 1) + 1
        operation = self.draw(st.sampled_from(["SUM", "MEAN", "ASUM", "SUMSQ"]))
        coefficient = self.draw(st.sampled_from([1, 0.3, -2]))
        largest = self.draw(st.sampled_from(["", "top_k: 2", "top_k: 2 out_max_val: true"]))
        param = {
            "Softmax": f"softmax_param {{ axis: {axis} }}",
            "ArgMax": f"argmax_param {{ axis: {axis} {largest} }}",
            "Reduction": f"reduction_param {{ axis: {axis} operation: {operation} coeff: {coefficient} }}",
        }
        kind = self.draw(st.sampled_from([*param]))
        top = self.add(kind, [blob], param[kind])
        if top and kind == "Reduction" and axis == 1:  # Caffe's blob has no axis but the batch's
            self.add("Reshape", [top], "reshape_param { shape { dim: -1 dim: 1 } }")
            del self.shapes[top]


@st.composite
def prototxts(draw: st.DrawFn, without: Collection[str] = ()) -> tuple[str, tuple[int, int, int], str]:
    """Layers as text, but none of some types, the images' shape, and the blob of the logits."""
    sides = st.one_of(st.integers(3, 9), st.integers(3, 9), st.integers(20, 39), st.just(1))
    shape = (draw(st.sampled_from([3, 4, 1, 2])), draw(sides), draw(sides))
    if draw(st.booleans()):
        shape = (shape[0], shape[1], shape[1])  # most kernels of the library are for squares
    builder = Builder(draw, {"data": shape}, without)
    images = [
        builder.convolution,
        builder.convolution,
        builder.pooling,
        builder.pooling,
        builder.lrn,
        builder.deconvolution,
        builder.interp,
    ]
    always = [
        builder.elementwise,
        builder.eltwise,
        builder.concat,
        builder.move,
        builder.by_input,
        builder.axpy,
        builder.along,
        builder.normalize,
    ]
    for _ in range(draw(st.integers(4, 10))):
        names = list(builder.shapes)
        blob = draw(st.sampled_from(names[-1:] * len(names) * 3 + names))
        deep = len(builder.shapes[blob]) == 3 and max(builder.shapes[blob][1:]) > 1
        draw(st.sampled_from(images * 2 + always if deep else [*always, builder.inner_product]))(blob)
    top = builder.add("InnerProduct", [list(builder.shapes)[-1]], f"inner_product_param {{ num_output: {CLASSES} }}")
    assume(top is not None)  # its input can be too large for an inner product
    assert top
    return "\n".join(builder.text), shape, top


def random_blobs(network: graph.Graph, rng: np.random.Generator) -> Blobs:
    """Trained blobs; positive ones, as variances are, for layers that are folded.

    Of some windows the first or last row or column is zero, as some converters leave it.
    """
    blobs = {
        layer.name: [
            (rng.uniform(0.5, 2, shape) if layer.folds else rng.normal(0, 0.5, shape)).astype(np.float32)
            for shape in layer.weight_shapes()
        ]
        for layer in network.layers
        if layer.weight_shapes()
    }
    for weights in (blob for layer in blobs.values() for blob in layer if blob.ndim == 4):
        along = np.moveaxis(weights, rng.integers(2, 4), 0)
        if len(along) > 1 and rng.random() < ZERO_EDGES:
            along[rng.choice([0, -1])] = 0
    return blobs


def quantize(
    folder: Path, text: str, shape: tuple[int, int, int], top: str, target: Target, seed: int, outputs: int = 0
) -> QuantizedNetwork:
    """The network with random weights in random formats that the kernels can carry.

    Weights have 4 bits in no, some or all layers; for s8, biases have 32. With `outputs`, so many layers' outputs are
    the network's besides the logits, and it is no classifier; with BEFORE_LAST, only what the last layer reads is.
    """
    rng = np.random.default_rng(seed)
    definition = read_prototxt(prototxt(folder, text, top, "mean_value: 120"))
    network = parse_network(definition, "accuracy", data_source(definition), shape, target)
    network = simplify(attach_weights(network, random_blobs(network, rng)))
    if outputs == BEFORE_LAST:
        *kept, last = network.layers
        marked = graph.mark_shared(tuple(kept), last.inputs)
        network = replace(network, layers=marked, outputs=last.inputs, classifier=False)
    elif outputs:
        names = [layer.name for layer in network.layers[1:]]
        also = tuple(dict.fromkeys([*rng.choice(names, outputs).tolist(), *network.outputs]))
        marked = graph.mark_shared(network.layers, also)
        network = replace(network, layers=marked, outputs=also, classifier=False)
    middles = {common.Tensor.WEIGHTS: 6, common.Tensor.BIAS: 5, common.Tensor.ACTIVATIONS: 2}
    choices = {
        (name, tensor): QFormat(int(middles[tensor] + rng.integers(-4, 5)))
        for name, tensor in common.tensors(network)
        if not (target.library is S8 and tensor is common.Tensor.BIAS)
    }
    share = rng.choice([0, 0.5, 1])
    for (name, tensor), q in choices.items():
        if tensor is common.Tensor.WEIGHTS and rng.random() < share:
            choices[name, tensor] = QFormat(q.fraction_bits - 4, 4)
    choices[network.input.name, common.Tensor.ACTIVATIONS] = QFormat(int(rng.integers(-2, 2)))
    try:
        formats = common.table(network, choices)
    except UserError as error:
        assert str(error) == "no Q-formats fit all layers at once"
        reject()  # a Sigmoid's input has at least four fraction bits, and the places that ArgMax gives have none
    layers = tuple(quantize_network(network, formats, target))
    return QuantizedNetwork(network, formats, layers, target, {"model": SourceFile("net.prototxt", "0" * 64)})
