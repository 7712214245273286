# SPDX-License-Identifier: Apache-2.0
"""Runs the float network on Caffe itself; only imported for --engine caffe, since few machines have pycaffe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from caffe_to_cmsis_nn import choices
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.caffe_io.prototxt import Prototxt
from caffe_to_cmsis_nn.engines.batches import LARGE_BATCH, BatchRunner, Run, Values
from caffe_to_cmsis_nn.engines.engine import Layers, Settings
from caffe_to_cmsis_nn.engines.networks import FloatNetwork, Grid, Simulation
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.graph import Graph
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.ops.convolution import Grouped
from caffe_to_cmsis_nn.ops.moves import Part
from caffe_to_cmsis_nn.ops.pooling import Pooling
from caffe_to_cmsis_nn.ops.reduction import Reduction
from caffe_to_cmsis_nn.qformat import INT8_MAX, INT8_MIN

# Caffe exits the whole process if there is no GPU, or no GPU support, so this runs in a child process.
_PROBE = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass  # Windows writes no core
import caffe
caffe.set_device(0)
"""


def load(gpu: bool = False) -> Any:
    """The caffe module in CPU or GPU mode; raises UserError if it is not usable."""
    # Both are read when the module is loaded. At these sizes, OpenBLAS's threads are slower, and round differently.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        import caffe
        from caffe import Net  # noqa: F401
        from caffe.proto import caffe_pb2  # noqa: F401
    except Exception as error:  # an incompatible protobuf raises others than ImportError
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            "--engine caffe needs pycaffe: on Python 3.9, pip install -r requirements-caffe.txt, or add the folder "
            f"'python' of your Caffe to PYTHONPATH ({reason})"
        ) from error
    if not gpu:
        caffe.set_mode_cpu()
        return caffe
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False).returncode:
        raise UserError(
            "--gpu with --engine caffe needs an NVIDIA GPU, and a pycaffe built with CUDA (CPU_ONLY off) on PYTHONPATH"
        )
    caffe.set_device(0)
    caffe.set_mode_gpu()
    return caffe


def _message(prototxt: Prototxt, layer: Layer) -> Any:
    """The layer's message with the graph's names, without fields for training or for other builds of Caffe."""
    types = (layer.caffe_type, *layer.other_types)
    names = (layer.name, layer.name.removesuffix(f"/{layer.blob}"))  # some layers appear several times in the graph
    own = next((m for name in names for m in prototxt.layers if m.name == name and m.type in types), None)
    if own is None:
        raise UserError(f"layer '{layer.name}' ({layer.caffe_type}): --engine caffe does not find it in the prototxt")
    message = pb.LayerParameter(name=layer.name, type=layer.caffe_type, bottom=layer.inputs, top=[layer.name])
    for field, value in own.ListFields():
        if field.name.endswith("_param"):
            param = getattr(message, field.name)
            param.CopyFrom(value)
            known = {f.name for f in param.DESCRIPTOR.fields}
            for name in known & {"engine", "weight_filler", "bias_filler", "transpose"}:
                param.ClearField(name)
            if layer.weighted and "bias_term" in known:
                param.bias_term = True
            if isinstance(layer, Grouped) and "group" in known:
                param.group = layer.group
            if isinstance(layer, Pooling) and "ceil_mode" in known and param.HasField("ceil_mode"):
                param.ClearField("ceil_mode")
                param.round_mode = param.CEIL if layer.round_up else param.FLOOR
    return message


def _part(layer: Part) -> list[Any]:
    """Slice layers equal to the layer, one per axis that it crops; their other tops stay unread."""
    messages: list[Any] = []
    bottom = layer.inputs[0]
    cut = [axis for axis, size in enumerate(layer.sizes) if size < layer.in_shape[axis]] or [0]
    for axis in cut:
        begin, end = layer.begins[axis], layer.begins[axis] + layer.sizes[axis]
        name = layer.name if axis == cut[-1] else f"{layer.name}:{axis}"
        points = [point for point in (begin, end) if 0 < point < layer.in_shape[axis]]
        tops = [f"{name}:before"] * (begin > 0) + [name] + [f"{name}:after"] * (end < layer.in_shape[axis])
        message = pb.LayerParameter(name=name, type="Slice", bottom=[bottom], top=tops)
        message.slice_param.axis = axis + 1
        message.slice_param.slice_point.extend(points)
        messages.append(message)
        bottom = name
    return messages


def _messages(prototxt: Prototxt, layer: Layer) -> list[Any]:
    """The messages of a layer for this network."""
    if isinstance(layer, Part):
        return _part(layer)
    own = _message(prototxt, layer)
    if not isinstance(layer, Reduction) or layer.axis:
        return [own]
    # In Caffe, a reduction over the whole image only keeps the batch axis.
    own.top[0] = own.name = f"{layer.name}:sum"
    vector = pb.LayerParameter(name=layer.name, type="Reshape", bottom=own.top, top=[layer.name])
    vector.reshape_param.shape.dim.extend([-1, 1])
    return [own, vector]


def definition(graph: Graph, prototxt: Prototxt, batch: int) -> str:
    """The graph as a prototxt with an Input layer; each layer writes a blob of its own name, none works in place."""
    network = pb.NetParameter(name=graph.name)
    data = network.layer.add(name=graph.input.name, type="Input", top=[graph.input.name])
    data.input_param.shape.add(dim=[batch, *graph.input.out_shape])
    for layer in graph.layers[1:]:
        network.layer.extend(_messages(prototxt, layer))
    return text_format.MessageToString(network)


def build(caffe: Any, text: str) -> Any:
    """Builds Caffe's network; first checks for errors on which Caffe would exit the process."""
    from caffe.proto import caffe_pb2

    try:
        network = text_format.Parse(text, caffe_pb2.NetParameter())
    except text_format.ParseError as error:
        raise UserError(f"this Caffe does not know a field of the network: {error}") from error
    for layer in network.layer:
        if layer.type not in caffe.layer_type_list():
            raise UserError(
                f"layer '{layer.name}' ({layer.type}): this Caffe has no such layer; leave out --engine caffe"
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.prototxt")
        path.write_text(text)
        return caffe.Net(str(path), caffe.TEST)


def _floor(grid: Grid, values: np.ndarray) -> None:
    """Rounds toward minus infinity to the grid, in place."""
    np.floor(np.ldexp(values, grid.format.fraction_bits, out=values), out=values)
    if grid.clip:
        np.clip(values, INT8_MIN, INT8_MAX, out=values)
    np.ldexp(values, -grid.format.fraction_bits, out=values)


class PycaffeNetwork(FloatNetwork):
    """The float network on pycaffe: sets quantized weights, and rounds outputs between layers."""

    def __init__(
        self, graph: Graph, images: np.ndarray, prototxt: Prototxt, gpu: bool = False, memory: int = choices.MEMORY
    ) -> None:
        super().__init__(graph, images, memory=memory)
        self.batches = BatchRunner(min(LARGE_BATCH, len(images)), workers=1)  # one worker, since blobs exist once
        self._net = build(load(gpu), definition(graph, prototxt, self.batches.most))
        for layer in graph.layers:
            if layer.name in graph.weights and not layer.weighted:
                for blob, values in zip(self._net.params[layer.name], layer.blobs(graph.weights[layer.name])):
                    blob.data[...] = values
        self._weights_in_net: dict[str, tuple[Grid | None, Grid | None]] = {}  # grids of weights and bias, by layer
        # Split layers copy blobs with several readers, and share their memory after the first run. From then on, all
        # readers see what is written into a blob.
        self._net.forward()

    def _set_weights(self, layers: Sequence[Layer], settings: Sequence[Simulation]) -> None:
        """Sets the weights of layers that are on other grids."""
        for layer, setting in zip(layers, settings):
            grids = setting.w, setting.b
            if not layer.weighted or self._weights_in_net.get(layer.name) == grids:
                continue
            for blob, values, grid in zip(self._net.params[layer.name], self.graph.weights[layer.name], grids):
                blob.data[...] = grid.round(values) if grid else values
            self._weights_in_net[layer.name] = grids

    def _forward(self, layers: Sequence[Layer], settings: Sequence[Simulation]) -> None:
        """Runs these layers, and rounds outputs with a grid before the next layer."""
        start = 0
        for i, (layer, setting) in enumerate(zip(layers, settings)):
            if setting.y or i == len(layers) - 1:
                self._net.forward(start=layers[start].name, end=layer.name)
                start = i + 1
            if setting.y:
                _floor(setting.y, self._net.blobs[layer.name].data)

    def _write(self, name: str, values: np.ndarray) -> None:
        if name == self.graph.input.name and values.dtype == self.graph.input.stored:
            values = (values.astype(np.float32) - self.graph.input.mean) * np.float32(self.graph.input.scale)
        self._net.blobs[name].data[: len(values)] = values

    def runner(self, first: int, settings: Settings, outputs: Layers, watched: Layers = ()) -> Run:
        layers = self.graph.layers[first : first + len(settings)]

        def run(batch: Values) -> Sequence[np.ndarray]:
            self._set_weights(layers, settings)
            for name, values in batch.items():
                self._write(name, values)
            self._forward(layers, settings)
            size = len(next(iter(batch.values())))
            results = [self._net.blobs[layer.name].data[:size] for layer in outputs]
            seen = [self._net.blobs[layer.name].data[:size] for layer in watched]
            return results + [end for values in seen for end in (values.min(), values.max())]

        return run
