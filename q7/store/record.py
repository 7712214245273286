# SPDX-License-Identifier: Apache-2.0
"""The pickle between the two scripts: plain Python values only, so that loading one can run no code.

It is a dictionary. `attributes` holds what the original's class Caffe_Quantizer held, under its names; `network`
holds the integer network, with arrays as {"dtype", "shape", "data"} dictionaries.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

import q7
from q7 import files
from q7.data.readers import READERS, Lmdb, Reader
from q7.errors import Q7Error
from q7.kernels.base import Integers
from q7.layers.base import Layer, Shape
from q7.layers.input import Input
from q7.layers.registry import CLASSES
from q7.layers.windowed import covers_image
from q7.network.graph import Graph, mark_shared
from q7.network.quantized import IntegerLayer, QuantizedNetwork
from q7.qformat import LARGEST_BIAS, MOST_FRACTION_BITS, LayerFormats, QFormat, shifts
from q7.target import LIBRARIES, Q7, Core, Rounding, Target

FORMAT, VERSION = "caffe-to-cmsis-nn", 2
LARGEST_FILE = 1 << 28  # bytes
MOST_VALUES = 1 << 20  # of a pickle: numbers, texts and containers, each as often as it is reached
_LAYER_TYPES: dict[tuple[str, str], type[Layer]] = {
    (Input.caffe_type, Input.variant): Input,
    **{(cls.caffe_type, cls.variant): cls for cls in CLASSES},
}


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
        "layers": [{"type": layer.caffe_type, "variant": layer.variant, **_plain(layer)} for layer in graph.layers],
        "formats": _plain(network.formats),
        "integers": [_plain(layer.integers) for layer in network.layers],
        "core": network.target.core.value,
        "rounding": network.target.rounding.value,
        "api": network.target.library.name,
        "sources": _plain(network.sources),
        "dataset": network.dataset,
        "crop": network.crop,
        "summary": _plain(network.summary),
        "reader": {"type": network.reader.caffe_type, **_plain(network.reader)},
    }


# --- and back ---------------------------------------------------------------------------------------------------------

_HINTS = {
    "name": str,
    "accuracy": str,
    "tops": dict[str, list[str]],
    "bottoms": dict[str, list[str]],
    "sources": dict[str, dict[str, str]],
    "dataset": str,
    "crop": int,
    "summary": dict,
}


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type to the letter, and its integers are sizes that C's int can hold."""
    parts = get_args(hint)
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 31
    if get_origin(hint) is dict:
        return type(value) is dict and all(_matches(k, parts[0]) and _matches(v, parts[1]) for k, v in value.items())
    if get_origin(hint) in (tuple, list):
        fits = type(value) is get_origin(hint) and (len(parts) == len(value) or parts[-1] is ... or len(parts) == 1)
        return fits and all(_matches(v, parts[0]) for v in value)
    return type(value) is hint


def _array(value: Any, dtype: str, *shapes: Shape) -> np.ndarray:
    """An array of a type and one of some shapes."""
    if value["dtype"] != dtype or tuple(value["shape"]) not in shapes:
        raise ValueError(f"an array of {value['dtype']} and shape {value['shape']}, not {dtype} and {shapes}")
    return np.frombuffer(value["data"], dtype).reshape(value["shape"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _from_version_1(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer of the first version's pickles in today's words."""
    today = {"window" if name == "kernel" else name: value for name, value in layer.items()}
    today["variant"] = ""
    if layer["type"] == "Pooling":
        average = "global AVE" if covers_image(layer["in_shapes"][0], layer["kernel"], layer["pad"]) else "AVE"
        today["variant"] = average if today.pop("average") else "MAX"
    if layer["type"] == "Eltwise":
        today["variant"] = "MAX" if today.pop("maximum") else "SUM"
        if today["variant"] == "MAX":
            del today["negative"]
    return today


def _unpack_layer(value: dict[str, Any]) -> Layer:
    cls: Any = _LAYER_TYPES[value["type"], value["variant"]]
    names = {f.name for f in fields(cls)}
    if set(value) != names | {"type", "variant"}:
        raise ValueError("fields of another version")
    arguments = {k: _tuples(v) for k, v in value.items() if k not in ("type", "variant")}
    if cls is Input:
        shape = arguments["in_shapes"][0]
        arguments["mean"] = _array(arguments["mean"], "float32", shape, (shape[0], 1, 1))
        if not np.isfinite(arguments["mean"]).all():
            raise ValueError("its mean is not finite")
    layer: Layer = cls(**arguments)
    hints = get_type_hints(cls)
    for name in names:
        if not _matches(arguments[name], hints[name]):
            raise ValueError(f"layer {layer.name!r}: its {name} cannot be {arguments[name]!r}")
    layer.check()
    return layer


def _unpack_reader(value: dict[str, Any]) -> Reader:
    cls = READERS[value["type"]]
    arguments = {k: _tuples(v) for k, v in value.items() if k != "type"}
    if not all(_matches(arguments[f.name], get_type_hints(cls)[f.name]) for f in fields(cls)):
        raise ValueError("its reader of images has fields of another type")
    return cls(**arguments)


def _unpack_integers(layer: Layer, value: Any, formats: LayerFormats) -> Any:
    """A layer's integers; all but weights and bias follow from its formats."""
    integers: Any = None
    if layer.weighted:
        shape = layer.weight_shapes()[0]
        w = _array(value["weights"], "int8", shape[::-1] if getattr(layer, "transpose", False) else shape)
        bias = _array(value["bias"], "int8" if formats.b else "int32", layer.out_shape[:1])
        if not (abs(bias.astype(np.int64)) <= LARGEST_BIAS).all():
            raise ValueError(f"layer '{layer.name}': its bias is too large for the accumulator")
        integers = Integers(w, bias, shifts(formats))
    else:
        integers = layer.quantize(None, formats)
    if _plain(integers) != value:
        raise ValueError(f"layer '{layer.name}': its integers do not follow from its formats")
    return integers


def _format(value: Any) -> QFormat | None:
    if value is None:
        return None
    if type(value) is not int or abs(value) > MOST_FRACTION_BITS:
        raise ValueError(f"{value!r} is no number of fraction bits")
    return QFormat(value)


def _unpack(value: dict[str, Any]) -> QuantizedNetwork:
    for key, hint in _HINTS.items():
        if not _matches(value[key], hint):
            raise ValueError(f"its {key} is of another type")
    if not all({"name", "sha256"} <= set(source) for source in value["sources"].values()):
        raise ValueError("its sources have no names and sha256")
    layers = tuple(_unpack_layer(layer) for layer in value["layers"])
    seen: dict[str, Layer] = {}
    for i, layer in enumerate(layers):
        sizes = min(layer.out_shape) > 0 and math.prod(layer.out_shape) < 1 << 31
        if (
            layer.name in seen
            or (i == 0) != isinstance(layer, Input)
            or len(layer.in_shapes) != max(i and len(layer.inputs), 1)
            or not sizes
        ):
            raise ValueError(f"layer '{layer.name}' is out of place")
        if i and tuple(seen[name].out_shape for name in layer.inputs) != layer.in_shapes:
            raise ValueError(f"layer '{layer.name}' does not fit its inputs")
        seen[layer.name] = layer
    if [layer.shared_input for layer in mark_shared(layers)] != [layer.shared_input for layer in layers]:
        raise ValueError("its layers do not know who shares their inputs")
    tops, bottoms = ({k: tuple(v) for k, v in value[key].items()} for key in ("tops", "bottoms"))
    graph = Graph(value["name"], layers, {}, value["accuracy"], tops, bottoms)
    w, b, y = ({name: _format(entry[tensor]) for name, entry in value["formats"].items()} for tensor in "wby")
    formats = graph.formats(w, b, y)  # type: ignore[arg-type]
    if _plain(formats) != value["formats"]:
        raise ValueError("its formats do not follow from each other")
    target = Target(Core(value["core"]), Rounding(value["rounding"]), LIBRARIES[value.get("api", Q7.name)])
    if target.library.bias_bits == 8 and any(layer.weighted and not formats[layer.name].b for layer in layers):
        raise ValueError("its biases have no formats")
    if len(value["integers"]) != len(layers):
        raise ValueError("its layers and integers differ in number")
    integers = [_unpack_integers(layer, entry, formats[layer.name]) for layer, entry in zip(layers, value["integers"])]
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
        _unpack_reader(value.get("reader", {"type": Lmdb.caffe_type})),
    )


# --- files ------------------------------------------------------------------------------------------------------------


class _State:
    """Stands for an instance of the original's class while an old pickle is read."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Reconstructor:
    """What copy_reg._reconstructor does for the one class that is allowed; nothing that a pickle could set."""

    __slots__ = ()

    def __call__(self, cls: Any, base: Any, state: Any) -> _State:
        if cls is not _State or base is not object or state is not None:
            raise pickle.UnpicklingError("an object of another class")
        return _State()


# The only names that an original's pickle needs (protocol 0, Python 2 or 3).
_ALLOWED = {
    ("copy_reg", "_reconstructor"): _Reconstructor(),
    ("copyreg", "_reconstructor"): _Reconstructor(),
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


def _check_opcodes(content: bytes) -> None:
    """Refuses what would make the unpickler itself take unbounded memory."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count > MOST_VALUES or ("PUT" in opcode.name and int(argument or 0) > MOST_VALUES):
            raise pickle.UnpicklingError("it has too many values")


def _check_plain(value: Any) -> None:
    """Refuses other objects than plain values, and values that are shared until there are too many of them."""
    pending, left = [value], MOST_VALUES
    while pending:
        item = pending.pop()
        if type(item) in (dict, list, tuple):
            left -= len(item) + 1
            if left < 0:
                raise pickle.UnpicklingError("it has too many values")
            pending.extend(item)
            pending.extend(item.values() if type(item) is dict else ())
        elif type(item) not in (str, bytes, int, float, bool, type(None)) or (type(item) is int and abs(item) >> 63):
            raise pickle.UnpicklingError(f"it holds a value of type {type(item).__name__} that no network has")


def _attributes(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(type(name) is str for name in value):
        raise ValueError("its attributes have no names")
    return value


@dataclass
class Record:
    """What a pickle holds: the original's attributes, and our network unless the original wrote it."""

    attributes: dict[str, Any]
    network: QuantizedNetwork | None = None


def dump(record: Record) -> bytes:
    """The pickle's bytes."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tool": q7.__version__,
        "attributes": record.attributes,
        "network": _pack(record.network) if record.network else None,
    }
    return pickle.dumps(content, protocol=4)


def save(path: Path, record: Record) -> None:
    """Replaces the file in one step."""
    files.write(path, dump(record))


def load(path: Path) -> Record:
    """Reads our pickle or the original's; raises Q7Error for anything else, without running any of it."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Q7Error(f"'{path}' is larger than {LARGEST_FILE} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise Q7Error(f"cannot read the pickle '{path}': {error.strerror}") from error
    with files.reading(f"the pickle '{path}'"):
        _check_opcodes(content)
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        old = isinstance(value, _State)
        value = value.attributes if old else value
        _check_plain(value)
        if old:
            return Record(_attributes(value))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("it is no network of this tool")
        version, network = value["version"], value["network"]
        if version not in (1, VERSION):
            raise Q7Error(f"the pickle '{path}' has version {version!r}, this tool reads 1 to {VERSION}")
        if version == 1 and network is not None:
            network = {**network, "layers": [_from_version_1(layer) for layer in network["layers"]]}
        return Record(_attributes(value["attributes"]), None if network is None else _unpack(network))
