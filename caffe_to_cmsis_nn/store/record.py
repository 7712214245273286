# SPDX-License-Identifier: Apache-2.0
"""The pickle between the two scripts: only plain Python values, so that loading one cannot run code.

It is a dictionary. `attributes` holds the attributes of the original tool's class Caffe_Quantizer. `network` holds the
integer network, with arrays as bytes in C order, and without values that can be derived.
"""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

import caffe_to_cmsis_nn
from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io.prototxt import is_prototxt
from caffe_to_cmsis_nn.data.readers import READERS
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.kernels.base import Integers
from caffe_to_cmsis_nn.network.graph import Graph, mark_shared
from caffe_to_cmsis_nn.network.quantized import IntegerLayer, Outcome, QuantizedNetwork, SourceFile
from caffe_to_cmsis_nn.ops.base import LARGEST_NETWORK, Layer, Shape, Weights
from caffe_to_cmsis_nn.ops.input import Features, Input
from caffe_to_cmsis_nn.ops.registry import CLASSES
from caffe_to_cmsis_nn.qformat import LARGEST_BIAS, MOST_FRACTION_BITS, WEIGHT_BITS, LayerFormats, QFormat, shifts
from caffe_to_cmsis_nn.store import plain_pickle
from caffe_to_cmsis_nn.store.plain_pickle import Instance
from caffe_to_cmsis_nn.target import Target

FORMAT, VERSION = "caffe-to-cmsis-nn", 6
LARGEST_SIZE = (1 << 31) - 1  # of C's int
_LAYER_TYPES: dict[tuple[str, str], type[Layer]] = {
    (Input.caffe_type, Input.variant): Input,
    (Features.caffe_type, Features.variant): Features,
    **{(cls.caffe_type, cls.variant): cls for cls in CLASSES},
}
_DERIVED = {"in_shapes", "shared_input"}  # fields of layers that are not stored


# --- to plain values --------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Converts arrays, formats and dataclasses to bytes, numbers and dictionaries."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, QFormat):
        return value.fraction_bits
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _pack_layer(layer: Layer) -> dict[str, Any]:
    own = {"type": layer.caffe_type, "variant": layer.variant, **_plain(layer)}
    if isinstance(layer, Input):
        own["shape"] = _plain(layer.out_shape)
    return {name: value for name, value in own.items() if name not in _DERIVED}


def _own_formats(layers: Iterable[Layer], formats: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The formats (as plain values) that are not derived from others."""
    chosen = {}
    for layer in layers:
        tensors = ("w", "b") * layer.weighted + ("y",) * layer.own_format
        own = {tensor: formats[layer.name][tensor] for tensor in tensors}
        chosen[layer.name] = {tensor: bits for tensor, bits in own.items() if bits is not None}
    return {name: own for name, own in chosen.items() if own}


def _constant_layers(layers: Iterable[Layer]) -> list[str]:
    """The layers with trained constants that have no format, and are stored as floats."""
    return [layer.name for layer in layers if layer.weight_shapes() and not layer.weighted]


def _pack(network: QuantizedNetwork) -> dict[str, Any]:
    layers = network.graph.layers
    return {
        "name": network.graph.name,
        "outputs": [*network.graph.outputs],
        "classifier": network.graph.classifier,
        "top_k": [*network.graph.top_k],
        "layers": [_pack_layer(layer) for layer in layers],
        "formats": _own_formats(layers, _plain(network.formats)),
        "weights": {
            layer.name: {
                "weights": _plain(own.integers.weights),
                "bias": _plain(own.integers.bias),
                "bits": network.formats[layer.name].weight_bits,
            }
            for layer, own in zip(layers, network.layers)
            if layer.weighted
        },
        "constants": {name: _plain(network.graph.weights[name]) for name in _constant_layers(layers)},
        "target": network.target.names(),
        "sources": _plain(network.sources),
        "dataset": network.dataset,
        "crop": network.crop,
        "scale": network.scale,
        "reader": {"type": network.reader.caffe_type, **_plain(network.reader)},
        "outcome": _plain(network.outcome),
    }


# --- and back ---------------------------------------------------------------------------------------------------------


def _restore(value: Any, hint: Any, largest: int = LARGEST_SIZE) -> Any:
    """The inverse of `_plain` for a type; raises ValueError for other types, and integers outside 0 to `largest`."""
    parts, origin = get_args(hint), get_origin(hint)
    if is_dataclass(hint):
        return _restore_fields(hint, value, largest)
    if origin is Union:
        return None if value is None else _restore(value, parts[0], largest)
    if origin is tuple and type(value) is list and (parts[-1] is ... or len(parts) == len(value)):
        return tuple(_restore(v, parts[0], largest) for v in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and type(value) is dict:
        return {_restore(k, parts[0]): _restore(v, parts[1], largest) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if type(value) is not hint or (hint is int and not 0 <= value <= largest):
        raise ValueError(f"{value!r} instead of a value of type {hint}")
    return value


def _restore_fields(cls: Any, value: Any, largest: int = LARGEST_SIZE, **known: Any) -> Any:
    """A dataclass from plain values of its fields, apart from `known` ones; fields with a default may be missing.

    So a field with a default can be added without breaking older pickles.
    """
    names = {f.name for f in fields(cls)} - {*known}
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING} & names
    if type(value) is not dict or not needed <= set(value) <= names:
        raise ValueError(f"a {cls.__name__} with other fields")
    hints = get_type_hints(cls)
    return cls(**known, **{name: _restore(entry, hints[name], largest) for name, entry in value.items()})


def _array(value: Any, dtype: str, *shapes: Shape) -> np.ndarray:
    """An array from its bytes, in the first of the given shapes that fits; raises ValueError if none does."""
    array = np.frombuffer(value, np.dtype(dtype).newbyteorder("<"))
    for shape in shapes:
        if type(value) is bytes and math.prod(shape) == array.size:
            return array.astype(dtype, copy=False).reshape(shape)
    raise ValueError(f"{array.size} values instead of an array of shape {shapes[0]}")


@contextlib.contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Has errors name the layer."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the pickle's layer '{layer.name}': {error}") from error


def _unpack_layer(value: dict[str, Any], known: Mapping[str, Layer]) -> Layer:
    """A layer that reads `known` layers; the first one is the input."""
    own = dict(value)
    kind = _LAYER_TYPES[own.pop("type"), own.pop("variant")]
    if issubclass(kind, Input) == bool(known):
        raise ValueError(f"a layer of type {value['type']} is out of place")
    if issubclass(kind, Input):
        shape = _restore(own.pop("shape"), tuple[int, int, int])
        mean = _array(own.pop("mean"), "float32", shape, (shape[0], 1, 1))
        if not np.isfinite(mean).all():
            raise ValueError("its mean is not finite")
        given: dict[str, Any] = {"in_shapes": (shape,), "mean": mean}
    else:
        given = {"in_shapes": tuple(known[name].out_shape for name in own["inputs"])}
    layer: Layer = _restore_fields(kind, own, shared_input=False, **given)
    with _naming(layer):
        layer.verify()
    if len(layer.inputs) not in (range(1, layer.most_inputs + 1) if known else (0,)) or layer.name in known:
        raise ValueError(f"layer '{layer.name}' is out of place")
    if min(layer.out_shape) < 1 or layer.out_size > LARGEST_SIZE:
        raise ValueError(f"layer '{layer.name}' has an output of shape {layer.out_shape}")
    return layer


def _unpack_layers(values: list[dict[str, Any]], outputs: Sequence[str]) -> tuple[Layer, ...]:
    known: dict[str, Layer] = {}
    for value in values:
        layer = _unpack_layer(value, known)
        known[layer.name] = layer
    if not known:
        raise ValueError("it has no layers")
    if sum(layer.out_size for layer in known.values()) > LARGEST_NETWORK:
        raise ValueError(f"its layers' outputs have more than {LARGEST_NETWORK} elements")
    if len({*outputs}) < len(outputs) or not {*outputs} <= {*known}:
        raise ValueError(f"it has no outputs {outputs}")
    return mark_shared(known.values(), outputs)


def _constants(layers: Sequence[Layer], value: Mapping[str, Any]) -> dict[str, Weights]:
    """Trained constants, float32: one or two arrays (C,) per layer."""
    names = _constant_layers(layers)
    if type(value) is not dict or [*value] != names:
        raise ValueError("it has constants that no layer needs")
    found = {}
    for layer in layers:
        if layer.name in names:
            first, second = value[layer.name]
            channels = layer.in_shape[:1]
            found[layer.name] = _array(first, "float32", channels), _array(second, "float32", channels, (0,))
            if not all(np.isfinite(array).all() for array in found[layer.name]):
                raise ValueError(f"layer '{layer.name}': a constant is not finite")
    return found


def _unpack_integers(
    layer: Layer, value: Mapping[str, Any], constants: Mapping[str, Weights], formats: LayerFormats
) -> Any:
    """A layer's integers; all but weights and bias follow from its constants and formats."""
    with _naming(layer):
        layer.check_formats(formats)
    if not layer.weighted:
        return layer.quantize(constants.get(layer.name), formats)
    own, shape = value[layer.name], layer.weight_shapes()[0]
    weights = _array(own["weights"], "int8", shape[::-1] if getattr(layer, "transpose", False) else shape)
    bias = _array(own["bias"], "int8" if formats.b else "int32", layer.out_shape[:1])
    if not (set(own) == {"weights", "bias", "bits"} and (abs(bias.astype(np.int64)) <= LARGEST_BIAS).all()):
        raise ValueError(f"layer '{layer.name}': its bias is too large for the accumulator")
    assert formats.w
    if weights.min(initial=0) < formats.w.least or weights.max(initial=0) > formats.w.most:
        raise ValueError(f"layer '{layer.name}': its weights do not fit into {formats.w.bits} bits")
    return Integers(weights, bias, shifts(formats))


def _format(value: Any, bits: Any = 8) -> QFormat:
    if type(value) is not int or abs(value) > MOST_FRACTION_BITS:
        raise ValueError(f"{value!r} is not a number of fraction bits")
    if type(bits) is not int or bits not in WEIGHT_BITS:
        raise ValueError(f"{bits!r} is not a number of bits that weights have")
    return QFormat(value, bits)


def _unpack_graph(value: dict[str, Any]) -> Graph:
    outputs = _restore(value["outputs"], tuple[str, ...])
    if not outputs:
        raise ValueError("it has no outputs")
    layers = _unpack_layers(value["layers"], outputs)
    graph = Graph(
        name=_restore(value["name"], str),
        layers=layers,
        weights=_constants(layers, value["constants"]),
        accuracy="",
        outputs=outputs,
        classifier=_restore(value["classifier"], bool),
        top_k=_restore(value["top_k"], tuple[int, ...]),
    )
    if graph.classifier and (len(outputs) != 1 or math.prod(graph.output_layers[0].out_shape[1:]) > 1):
        raise ValueError("a classifier has one vector of logits")
    if graph.top_k[:1] != (1,) or (len(graph.top_k) > 1 and max(graph.top_k) >= graph.result_size):
        raise ValueError("its top_k is invalid")
    return graph


def _unpack_formats(value: dict[str, Any], graph: Graph, target: Target) -> dict[str, LayerFormats]:
    """Every layer's formats, from the stored ones."""
    w, b, y = (
        {name: _format(own[tensor]) for name, own in value["formats"].items() if tensor in own} for tensor in "wby"
    )
    w = {name: _format(q.fraction_bits, value["weights"][name]["bits"]) for name, q in w.items()}
    formats = graph.formats(w, b, y)
    if _own_formats(graph.layers, _plain(formats)) != value["formats"]:
        raise ValueError("it has formats that no layer needs")
    if target.library.bias_bits == 8 and any(layer.weighted and not formats[layer.name].b for layer in graph.layers):
        raise ValueError("its biases have no formats")
    return formats


def _unpack_scale(value: Any) -> float:
    scale: float = _restore(value, float)
    if not 0 < scale < math.inf:
        raise ValueError("its scale is invalid")
    return scale


def _unpack(value: dict[str, Any]) -> QuantizedNetwork:
    graph, target = _unpack_graph(value), Target.named(**value["target"])
    formats = _unpack_formats(value, graph, target)
    if set(value["weights"]) != {layer.name for layer in graph.layers if layer.weighted}:
        raise ValueError("it has weights that no layer needs")
    reader = {name: entry for name, entry in value["reader"].items() if name != "type"}
    return QuantizedNetwork(
        graph=graph,
        formats=formats,
        layers=tuple(
            IntegerLayer(
                layer.kernel_for(target, formats[layer.name].weight_bits),
                _unpack_integers(layer, value["weights"], graph.weights, formats[layer.name]),
            )
            for layer in graph.layers
        ),
        target=target,
        sources=_restore(value["sources"], Mapping[str, SourceFile]),
        dataset=_restore(value["dataset"], str),
        crop=_restore(value["crop"], int),
        outcome=None if value["outcome"] is None else _restore(value["outcome"], Outcome, 1 << 63),
        reader=_restore_fields(READERS[value["reader"]["type"]], reader),
        scale=_unpack_scale(value["scale"]),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _attributes(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(type(name) is str for name in value):
        raise ValueError("its attributes have no names")
    return value


@dataclass
class Record:
    """The contents of a pickle: the original tool's attributes, and the network unless that tool wrote it."""

    attributes: dict[str, Any]
    network: QuantizedNetwork | None = None


def dump(record: Record) -> bytes:
    """The pickle's bytes."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tool": caffe_to_cmsis_nn.__version__,
        "attributes": record.attributes,
        "network": _pack(record.network) if record.network else None,
    }
    return pickle.dumps(content, protocol=4)


def save(path: Path, record: Record) -> None:
    """Replaces the file in one step."""
    files.write(path, dump(record))


def load(path: Path) -> Record:
    """Reads a pickle of this tool or the original one, without running code from it; raises UserError for others."""
    with files.reading(f"the pickle '{path}'"):
        if is_prototxt(files.beginning(path)):
            raise UserError(f"'{path}' is a prototxt: nn_quantizer.py takes it, and writes the pickle")
        with files.opened(path) as file:
            value = plain_pickle.load(file)
        if isinstance(value, Instance):
            return Record(_attributes(value.attributes))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("it is not a network of this tool")
        version, network = value["version"], value["network"]
        if type(version) is not int or version != VERSION:
            raise UserError(
                f"the pickle '{path}' has version {version!r}, this tool reads {VERSION}: quantize the network again"
            )
        restored = None if network is None else _unpack(network)
        return Record(_attributes(value["attributes"]), restored)
