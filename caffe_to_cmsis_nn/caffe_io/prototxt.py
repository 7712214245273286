# SPDX-License-Identifier: Apache-2.0
"""Reads Caffe's network definitions: the layers that Caffe would build in the TEST phase."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.caffe_io import caffe_pb2 as pb
from caffe_to_cmsis_nn.errors import UserError

LARGEST = 1 << 20  # bytes, which the parser may take seconds for; a thousand layers take a quarter of that
LONGEST_LINE = 1 << 15  # characters; the parser's time per token grows with the length of a line
MOST_LAYERS = 4000

# Names of V1 layer types that are not just the capitalized words of the enumerator (Caffe's upgrade_proto.cpp).
_V1_NAMES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "IM2COL": "Im2col",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}


def is_prototxt(content: bytes) -> bool:
    """Whether a file's first bytes look like a network definition."""
    return b"\0" not in content and bool(re.search(rb"^\s*layers?\s*:?\s*{", content, re.MULTILINE))


@dataclass
class Prototxt:
    """The TEST-phase network of a prototxt, with layers in the current format.

    `unknown` maps a layer's index to a message about a field that is not in the schema.
    """

    path: Path
    name: str = ""
    layers: list[Any] = field(default_factory=list)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    unknown: dict[int, str] = field(default_factory=dict)

    def check_known(self, index: int) -> None:
        """Raises UserError if a layer has a field that is not in the schema."""
        if index in self.unknown:
            name = self.layers[index].name
            raise UserError(f"layer '{name}' has a field that this tool does not know: {self.unknown[index]}")


# Matches comments and strings first, so that braces in them do not count.
_BRACE = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]""")
# Parts of protobuf's error messages: the position, and the message and name of an unknown field.
_WHERE = re.compile(r"^(\d+):\d+ : ")
_UNKNOWN = re.compile(r'Message type "?\w+\.(\w+)"? has no field named "(.*)"\.$')
_LAYER = re.compile(r"\blayers?\s*(:\s*)?$")


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _split_layers(text: str) -> tuple[str, list[tuple[str, int]]]:
    """The text with its layer blocks blanked, and each block with the number of lines before it."""
    text = _BRACE.sub(lambda match: _blank(match.group()) if match.group()[0] == "#" else match.group(), text)
    spans: list[tuple[int, int]] = []
    depth, start, last = 0, -1, 0
    for match in _BRACE.finditer(text):
        if match.group() in "{<":
            header = _LAYER.search(text, last, match.start()) if depth == 0 else None
            start = header.start() if header else start
            depth += 1
        elif match.group() in "}>":
            depth -= 1
            if depth == 0 and start >= 0:
                spans.append((start, match.end()))
                start = -1
        last = match.end()
    if start >= 0:
        spans.append((start, len(text)))
    rest, blocks, line, last = [], [], 0, 0
    for begin, end in spans:
        line += text.count("\n", last, begin)
        blocks.append((text[begin:end], line))
        rest += [text[last:begin], _blank(text[begin:end])]
        line, last = line + text.count("\n", begin, end), end
    return "".join([*rest, text[last:]]), blocks


def _in_words(error: str, lines: int) -> str:
    """Rewords protobuf's error message about a part of a text, after `lines` other lines."""
    error = _UNKNOWN.sub(lambda found: f"{found.group(1)} has no field '{found.group(2)}'", error)
    return _WHERE.sub(lambda found: f"line {int(found.group(1)) + lines}: ", error)


def _parse(path: Path, text: str, lines: int = 0) -> tuple[Any, str]:
    """Parses text into a NetParameter; also returns a message about the first unknown field, which is skipped.

    Messages begin with a line number; `lines` is the number of lines before the text.
    """

    def parse(allow_unknown_field: bool = False) -> Any:
        try:
            return text_format.Parse(text, pb.NetParameter(), allow_unknown_field=allow_unknown_field)
        except text_format.ParseError as error:
            raise ValueError(_in_words(str(error), lines)) from error

    try:
        return parse(), ""
    except ValueError as error:
        unknown = str(error)
    with files.reading(f"the network definition '{path}'"):
        # An invalid V1 type or a syntax error raises again.
        return parse(allow_unknown_field=True), unknown


def _parse_layers(path: Path, text: str) -> tuple[Any, list[tuple[Any, str]]]:
    """The NetParameter, and its layers in the current format, each with a message about an unknown field, or ""."""
    whole, unknown = _parse(path, text)
    if len(whole.layer) + len(whole.layers) > MOST_LAYERS:
        raise UserError(f"'{path}' has {len(whole.layer) + len(whole.layers)} layers, allowed are {MOST_LAYERS}")
    if not unknown:
        return whole, [(layer, "") for layer in [*whole.layer, *map(_upgrade, whole.layers)]]
    rest, blocks = _split_layers(text)
    head, unknown = _parse(path, rest)
    if unknown or head.layer or head.layers:
        raise UserError(f"'{path}' has a field that this tool does not know: {unknown or 'in a list of layers'}")
    parsed = [_parse(path, block, lines) for block, lines in blocks]
    return head, [(layer, unknown) for net, unknown in parsed for layer in [*net.layer, *map(_upgrade, net.layers)]]


def _upgrade(old: Any) -> Any:
    """A V1LayerParameter in the current format, without learning rates (Caffe's UpgradeV1LayerParameter)."""
    kind = pb.V1LayerParameter.LayerType.Name(old.type)
    new = pb.LayerParameter(name=old.name, type=_V1_NAMES.get(kind, kind.title().replace("_", "")))
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name in ("bottom", "top", "include", "exclude", "blobs"):
            getattr(new, name).extend(value)
        elif name.endswith("_param"):
            getattr(new, name).CopyFrom(value)
    return new


def _move_transform(layer: Any) -> None:
    """Moves scale, mean_file, crop_size and mirror of an old data_param to transform_param, as Caffe does."""
    for name in ("data_param", "image_data_param"):
        if layer.HasField(name):
            param = getattr(layer, name)
            for key in ("scale", "mean_file", "crop_size", "mirror"):
                if param.HasField(key):
                    setattr(layer.transform_param, key, getattr(param, key))


def _included(layer: Any, stages: set[str]) -> bool:
    """Whether Caffe builds the layer in the TEST phase at level 0 (Net::StateMeetsRule of Caffe's net.cpp)."""

    def meets(rule: Any) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == pb.TEST)
            and (not rule.HasField("min_level") or rule.min_level <= 0)
            and (not rule.HasField("max_level") or rule.max_level >= 0)
            and set(rule.stage) <= stages
            and not set(rule.not_stage) & stages
        )

    if layer.include:
        return any(meets(rule) for rule in layer.include)
    return not any(meets(rule) for rule in layer.exclude)


def read_prototxt(path: Path) -> Prototxt:
    """The layers that Caffe would build in the TEST phase, with old `layers {}` blocks in the current format.

    Raises UserError if the file is missing or not a network definition.
    """
    with files.reading(f"the network definition '{path}'"):
        text = files.read(path, LARGEST).decode("utf-8-sig", "surrogateescape")  # comments may be in any encoding
        if len(longest := max(text.split("\n"), key=len)) > LONGEST_LINE:
            raise UserError(f"'{path}' has a line of {len(longest)} characters, allowed are {LONGEST_LINE}")
        head, layers = _parse_layers(path, text)
    network = Prototxt(path, head.name)
    shapes = [list(shape.dim) for shape in head.input_shape] or [
        list(head.input_dim[i : i + 4]) for i in range(0, len(head.input_dim), 4)
    ]
    network.inputs = dict(zip(head.input, shapes))
    for layer, unknown in layers:
        if not _included(layer, set(head.state.stage)):
            continue
        _move_transform(layer)
        if unknown:
            network.unknown[len(network.layers)] = unknown
        network.layers.append(layer)
    if not network.layers:
        raise UserError(f"'{path}' has no layers in the TEST phase")
    return network
