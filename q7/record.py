# SPDX-License-Identifier: Apache-2.0
"""The pickle between the two scripts: plain Python values only, so that loading one can run no code.

It is a dictionary. `attributes` holds what the original's class Caffe_Quantizer held, under its names; `network`
holds the integer network, with arrays as {"dtype", "shape", "data"} dictionaries.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

import q7
from q7 import files
from q7.device import IntegerLayer
from q7.errors import Q7Error
from q7.graph import Graph
from q7.kernels import Integers
from q7.layers import LAYERS, Input, Layer, Pixels
from q7.qformat import Core, LayerFormats, QFormat, Rounding, Shifts, Target

FORMAT, VERSION = "caffe-to-cmsis-nn", 1
LARGEST_FILE = 1 << 30
_LAYER_TYPES: dict[str, type[Layer]] = {**LAYERS, Input.caffe_type: Input}


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network as the device runs it, and where it comes from."""

    graph: Graph  # without float weights
    formats: Mapping[str, LayerFormats]
    layers: tuple[IntegerLayer, ...]
    target: Target
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # "model", "weights": {"name", "sha256"}
    dataset: str = ""  # the test LMDB's path
    crop: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)  # accuracies in percent, images, objective


# --- to plain values --------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Arrays, formats and shifts as dictionaries and numbers."""
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "shape": list(value.shape), "data": value.tobytes()}
    if isinstance(value, QFormat):
        return value.fraction_bits
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _pack(network: QuantizedNetwork) -> dict[str, Any]:
    graph = network.graph
    return {
        "name": graph.name,
        "accuracy": graph.accuracy,
        "tops": _plain(graph.tops),
        "bottoms": _plain(graph.bottoms),
        "layers": [{"type": layer.caffe_type, **_plain(layer)} for layer in graph.layers],
        "formats": _plain(network.formats),
        "integers": [_plain(layer.integers) for layer in network.layers],
        "core": network.target.core.value,
        "rounding": network.target.rounding.value,
        "sources": _plain(network.sources),
        "dataset": network.dataset,
        "crop": network.crop,
        "summary": _plain(network.summary),
    }


# --- and back ---------------------------------------------------------------------------------------------------------

_DTYPES = {"int8", "int32", "float32"}


def _array(value: Any) -> np.ndarray:
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"an array of {value['dtype']}")
    return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _unpack_layer(value: dict[str, Any]) -> Layer:
    cls: Any = _LAYER_TYPES[value["type"]]
    names = {f.name for f in fields(cls)}
    if set(value) != names | {"type"}:
        raise ValueError("fields of another version")
    arguments = {k: _array(v) if isinstance(v, dict) else _tuples(v) for k, v in value.items() if k != "type"}
    return cls(**arguments)


def _unpack_integers(layer: Layer, value: Any) -> Any:
    if value is None:
        return None
    if "mean" in value:
        return Pixels(_array(value["mean"]), int(value["rshift"]))
    weights, bias = _array(value["weights"]), _array(value["bias"])
    rows = layer.out_shape[0]
    shape = layer.weight_shapes()[0]
    if math.prod(shape) != weights.size or len(weights) != rows or bias.shape != (rows,):
        raise ValueError(f"layer '{layer.name}' has weights of shape {weights.shape}")
    return Integers(weights, bias, Shifts(**value["shifts"]))


def _format(value: Any) -> QFormat | None:
    if value is None:
        return None
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is no number of fraction bits")
    return QFormat(value)


def _unpack(value: dict[str, Any]) -> QuantizedNetwork:
    layers = tuple(_unpack_layer(layer) for layer in value["layers"])
    seen: dict[str, Layer] = {}
    for i, layer in enumerate(layers):
        consistent = (i == 0) == isinstance(layer, Input) and all(type(e) is int and e > 0 for e in layer.out_shape)
        if layer.name in seen or not isinstance(layer.name, str) or not consistent:
            raise ValueError(f"layer '{layer.name}' is out of place")
        if i and tuple(seen[name].out_shape for name in layer.inputs) != layer.in_shapes:
            raise ValueError(f"layer '{layer.name}' does not fit its inputs")
        seen[layer.name] = layer
    tops = {k: tuple(v) for k, v in value["tops"].items()}
    bottoms = {k: tuple(v) for k, v in value["bottoms"].items()}
    graph = Graph(value["name"], layers, {}, value["accuracy"], tops, bottoms)
    formats = {
        name: LayerFormats(*(_format(entry[tensor]) for tensor in "xwby")) for name, entry in value["formats"].items()
    }
    target = Target(Core(value["core"]), Rounding(value["rounding"]))
    integers = [_unpack_integers(layer, entry) for layer, entry in zip(layers, value["integers"])]
    for layer, entry in zip(layers, integers):
        if (entry is None) == (layer.weighted or isinstance(layer, Input)) or layer.name not in formats:
            raise ValueError(f"layer '{layer.name}' lacks its integers or formats")
    kernels = [layer.kernel_for(target) for layer in layers]
    return QuantizedNetwork(
        graph,
        formats,
        tuple(map(IntegerLayer, kernels, integers)),
        target,
        value["sources"],
        value["dataset"],
        value["crop"],
        value["summary"],
    )


def attributes(network: QuantizedNetwork, batch: int, iterations: int, gpu: bool) -> dict[str, Any]:
    """What the original's Caffe_Quantizer holds for a network, under its names; shapes are NCHW."""
    graph, formats = network.graph, network.formats
    layers = {layer.name: layer for layer in graph.layers}
    chosen = {layer.name: formats[layer.name] for layer in graph.layers if layer.own_format or layer.floors}
    weighted = [layer for layer in graph.layers if layer.weighted]
    end = [*chosen, graph.accuracy]
    order = [*layers, graph.accuracy]
    windowed = {name: layer for name, layer in layers.items() if hasattr(layer, "kernel")}
    shifts = {
        layer.name: integer.integers.shifts for layer, integer in zip(graph.layers, network.layers) if layer.weighted
    }
    weights = {
        layer.name: integer.integers.weights for layer, integer in zip(graph.layers, network.layers) if layer.weighted
    }
    own = graph.input

    def bits(tensor: str, names: Any) -> tuple[dict[str, int], dict[str, int]]:
        table = {name: getattr(formats[name], tensor) for name in names}
        return {n: q.integer_bits for n, q in table.items()}, {n: q.fraction_bits for n, q in table.items()}

    wt_int_bits, wt_dec_bits = bits("w", weights)
    bias_int_bits, bias_dec_bits = bits("b", weights)
    act_int_bits, act_dec_bits = bits("y", chosen)
    sources = network.sources
    return {
        "model_file": sources["model"]["name"],
        "weight_file": sources["weights"]["name"],
        "quant_weight_file": sources["quantized weights"]["name"],
        "conv_layer": [layer.name for layer in weighted if len(layer.out_shape) == 3],
        "ip_layer": [layer.name for layer in weighted if len(layer.out_shape) == 1],
        "start_layer": ["", *(order[order.index(name) + 1] for name in end[:-1])],
        "end_layer": end,
        "layer": order,
        "layer_shape": {**{n: (batch, *layer.out_shape) for n, layer in layers.items()}, graph.accuracy: ()},
        "layer_wt_shape": {name: w.shape for name, w in weights.items()},
        "top_blob": {k: list(v) for k, v in graph.tops.items()},
        "bottom_blob": {k: list(v) for k, v in graph.bottoms.items()},
        "layer_type": {**{n: layer.caffe_type.lower() for n, layer in layers.items()}, graph.accuracy: "accuracy"},
        "kernel_size": {n: layer.kernel[0] for n, layer in windowed.items()},
        "stride": {n: layer.stride[0] for n, layer in windowed.items()},  # type: ignore[attr-defined]
        "pad": {n: layer.pad[0] for n, layer in windowed.items()},  # type: ignore[attr-defined]
        "group": {n: layer.group for n, layer in layers.items() if hasattr(layer, "group")},
        "pool_type": {n: int(layer.average) for n, layer in layers.items() if hasattr(layer, "average")},
        "lrn_type": {},
        "lrn_size": {},
        "lrn_alpha": {},
        "lrn_beta": {},
        "num_ops": {n: layer.macs for n, layer in layers.items()},
        "num_wts": {n: int(w.size) for n, w in weights.items()},
        "wt_int_bits": wt_int_bits,
        "wt_dec_bits": wt_dec_bits,
        "bias_int_bits": bias_int_bits,
        "bias_dec_bits": bias_dec_bits,
        "act_int_bits": {**act_int_bits, graph.accuracy: 0},
        "act_dec_bits": {**act_dec_bits, graph.accuracy: 7},
        "bias_lshift": {n: s.bias_lshift for n, s in shifts.items()},
        "act_rshift": {n: s.out_rshift for n, s in shifts.items()},
        "data_layer": own.name,
        "mean_file": sources.get("mean", {}).get("name", ""),
        "mean_val": [float(v) for v in own.mean.ravel()] if own.mean.shape[1:] == (1, 1) and own.mean.any() else [],
        "label_layer": graph.tops[own.name][1] if len(graph.tops[own.name]) > 1 else "",
        "accuracy_layer": graph.accuracy,
        "iterations": iterations,
        "gpu": gpu,
    }


# --- files ------------------------------------------------------------------------------------------------------------


class _State(dict):
    """Stands for an instance of the original's class while an old pickle is read."""

    def __setstate__(self, state: Any) -> None:
        self.update(state)


def _reconstruct(cls: Any, base: Any, state: Any) -> _State:
    """What copy_reg._reconstructor does for the one class that is allowed."""
    if cls is not _State or base is not object or state is not None:
        raise pickle.UnpicklingError("an object of another class")
    return _State()


# The only names that an original's pickle needs (protocol 0, Python 2 or 3).
_ALLOWED = {
    ("copy_reg", "_reconstructor"): _reconstruct,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("__main__", "Caffe_Quantizer"): _State,
    ("nn_quantizer", "Caffe_Quantizer"): _State,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not loaded") from None


@dataclass
class Record:
    """What a pickle holds: the original's attributes, and our network unless the original wrote it."""

    attributes: dict[str, Any]
    network: QuantizedNetwork | None = None


def save(path: Path, record: Record) -> None:
    """Replaces the file in one step."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tool": q7.__version__,
        "attributes": record.attributes,
        "network": _pack(record.network) if record.network else None,
    }
    files.write(path, pickle.dumps(content, protocol=4))


def load(path: Path) -> Record:
    """Reads our pickle or the original's; raises Q7Error for anything else, without running any of it."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Q7Error(f"'{path}' is larger than {LARGEST_FILE} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise Q7Error(f"cannot read the pickle '{path}': {error.strerror}") from error
    try:
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if isinstance(value, _State):
            return Record(dict(value))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("it is no network of this tool")
        if value["version"] != VERSION:
            raise ValueError(f"it has version {value['version']}, this tool reads {VERSION}")
        network = value["network"]
        return Record(dict(value["attributes"]), None if network is None else _unpack(network))
    except Q7Error:
        raise
    except RecursionError:
        raise Q7Error(f"cannot load '{path}': it is nested too deeply") from None
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise Q7Error(f"cannot load '{path}': {error}") from None
