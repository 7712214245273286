# SPDX-License-Identifier: Apache-2.0
"""The protocol by which a board runs images that a host sends, docs/serving.md: frames, facts, fingerprints.

`client` is the host's side of it, templates/common/_serve.cpp.jinja the board's.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Rounding, Target

VERSION = 1
LIBRARIES = (Q7, S8, OWN)  # by number
CHUNK = 64  # bytes of pixels or results in a frame
CHECKED = 1 << 31  # of an image's number: its layers' checksums are wanted
REQUEST, ANSWER = struct.Struct("<BBIH"), struct.Struct("<BBIHII")  # kind, tag, image, index; fingerprint, runs
LARGEST = CHUNK << 16  # bytes of pixels or results: chunks have 16-bit numbers
FACTS = struct.Struct("<6BIII")  # version, library, core, rounding, softmax, times; bytes of pixels, classes, layers

# --- frames -----------------------------------------------------------------------------------------------------------


def encode_frame(message: bytes) -> bytes:
    """The frame of a message of at most 250 bytes: with its CRC-32, and by COBS (Cheshire and Baker 1999) without 0."""
    blocks = (message + zlib.crc32(message).to_bytes(4, "little")).split(b"\0")
    return b"\0" + b"".join(bytes([len(block) + 1]) + block for block in blocks) + b"\0"


def decode_frame(frame: bytes) -> bytes | None:
    """The message of what came between two zeros; None where it is damaged."""
    blocks, at = [], 0
    while at < len(frame):
        end = at + frame[at]
        if frame[at] == 0 or end > len(frame):
            return None
        blocks.append(frame[at + 1 : end])
        at = end
    message = b"\0".join(blocks)
    return message[:-4] if message and zlib.crc32(message[:-4]).to_bytes(4, "little") == message[-4:] else None


# --- which network it is ----------------------------------------------------------------------------------------------


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if is_dataclass(value):
        return b"".join(_bytes(getattr(value, field.name)) for field in fields(value))
    return repr(value).encode()


def fingerprint(network: QuantizedNetwork) -> int:
    """CRC-32 of the target, and of the integers of each layer, which are what decides the logits."""
    crc = zlib.crc32(str(network.target).encode())
    for layer, held in zip(network.graph.layers, network.layers):
        text = f"{layer.caffe_type} {layer.describe()} {held.bounds}"
        crc = zlib.crc32(_bytes(held.integers), zlib.crc32(text.encode(), crc))
    return crc


@dataclass(frozen=True)
class Facts:
    """What a board says of its network."""

    target: Target
    softmax: bool
    times: bool
    input_bytes: int
    classes: int
    layers: int

    def pack(self) -> bytes:
        target = self.target
        numbers = (LIBRARIES.index(target.library), [*Core].index(target.core))
        flags = ([*Rounding].index(target.rounding), self.softmax, self.times)
        return FACTS.pack(VERSION, *numbers, *flags, self.input_bytes, self.classes, self.layers)

    @classmethod
    def unpack(cls, data: bytes) -> Facts:
        """Raises UserError where the board is of another version, or says what no board can."""
        if len(data) != FACTS.size or data[0] != VERSION:
            raise UserError("the board's program is of another version of this tool: generate it again")
        _, library, core, rounding, softmax, times, *sizes = FACTS.unpack(data)
        if library >= len(LIBRARIES) or core >= len(Core) or rounding >= len(Rounding) or max(softmax, times) > 1:
            raise UserError("the board names a library, core or rounding that does not exist: generate its code again")
        target = Target([*Core][core], [*Rounding][rounding], LIBRARIES[library])
        return cls(target, bool(softmax), bool(times), *sizes)

    @classmethod
    def of(cls, network: QuantizedNetwork, times: bool) -> Facts:
        """Those of a network as it is before layers run row by row; raises UserError where it is too large to serve."""
        graph = network.graph
        sizes = (graph.input.out_size, graph.result_size, len(graph.layers))
        if max(*sizes[:2], 4 * sizes[2]) > LARGEST:
            raise UserError(f"images of {sizes[0]} bytes with {sizes[1]} results: --serve takes {LARGEST} at most")
        return cls(network.target, graph.output_layers[-1].probabilities, times, *sizes)


def board_side(network: QuantizedNetwork, times: bool) -> dict[str, Any]:
    """What the template prints; `network` as it is before layers run row by row."""
    facts = Facts.of(network, times).pack()
    return {"chunk": CHUNK, "fingerprint": f"0x{fingerprint(network):08x}u", "facts": [*facts]}
