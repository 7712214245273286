# SPDX-License-Identifier: Apache-2.0
"""The protocol by which a board runs images that a host sends, docs/serving.md; templates/common/_serve.cpp.jinja has
the board's side."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import numpy as np

from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.target import OWN, Q7, S8, Core, Rounding, Target

VERSION = 1
LIBRARIES = (Q7, S8, OWN)  # by number
CHUNK = 64  # bytes of pixels or results in a frame: of those with 1 % of bytes damaged, half arrive
CHECKED = 1 << 31  # of an image's number: its layers' checksums are wanted
REQUEST, ANSWER = struct.Struct("<BBIH"), struct.Struct("<BBIHII")  # kind, tag, image, index; fingerprint, runs
FACTS = struct.Struct("<6BIII")  # version, library, core, rounding, softmax, times; bytes of pixels, classes, layers
FIRST_PATIENCE = 2.0  # seconds to wait for an answer, before it is known how long one takes
LEAST_PATIENCE = 0.05
GIVE_UP = 15.0  # seconds without any answer
MOST_COPIES = 4  # of a frame, where frames get lost


class Port(Protocol):
    """What is used of pyserial's ports."""

    def read(self, size: int = 1) -> bytes: ...

    def write(self, data: bytes) -> Any: ...

    def close(self) -> None: ...


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
        """Raises UserError where the board is of another version."""
        if len(data) != FACTS.size or data[0] != VERSION:
            raise UserError("the board's program is of another version of this tool: generate it again")
        _, library, core, rounding, softmax, times, *sizes = FACTS.unpack(data)
        target = Target([*Core][core], [*Rounding][rounding], LIBRARIES[library])
        return cls(target, bool(softmax), bool(times), *sizes)


def board_side(network: QuantizedNetwork, times: bool) -> dict[str, Any]:
    """What the template prints; `network` as it is before layers run row by row."""
    graph = network.graph
    sizes = (graph.input.out_size, graph.result_size, len(graph.layers))
    facts = Facts(network.target, graph.output_layers[-1].probabilities, times, *sizes)
    return {"chunk": CHUNK, "fingerprint": f"0x{fingerprint(network):08x}u", "facts": [*facts.pack()]}


# --- the host's side --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    kind: bytes
    tag: int
    image: int
    index: int
    fingerprint: int
    runs: int
    data: bytes


class Board:
    """Requests that are repeated until they are answered; whatever is damaged or lost on the way is sent again."""

    def __init__(self, open_port: Callable[[], Port], say: Callable[[str], None]) -> None:
        self._open, self._say = open_port, say
        self._port = open_port()
        self._received = bytearray()
        self._patience, self._copies = FIRST_PATIENCE, 1
        self._mean, self._deviation = 0.0, 0.0  # of the seconds that an answer takes
        self._runs, self._tag = 0, 0
        self.expected: int | None = None  # fingerprint
        self.lost = 0  # requests that had to be repeated

    def close(self) -> None:
        self._port.close()

    def _write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except OSError:  # the port went away, as when a board with USB is reset
            self._reopen()

    def _read(self) -> bytes:
        try:
            return self._port.read(1)
        except OSError:
            self._reopen()
            return b""

    def _reopen(self) -> None:
        self._port.close()
        end = time.monotonic() + GIVE_UP
        while True:
            try:
                self._port = self._open()
                return
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _receive(self, end: float) -> Answer | None:
        """The next answer that is whole, or None when it is late."""
        while time.monotonic() < end:
            byte = self._read()
            if byte != b"\0":
                self._received += byte
                continue
            message = decode_frame(bytes(self._received))
            self._received.clear()
            if message and len(message) >= ANSWER.size:
                kind, *numbers = ANSWER.unpack(message[: ANSWER.size])
                tag, image, index, network, runs = numbers
                return Answer(bytes([kind]), tag, image, index, network, runs, message[ANSWER.size :])
        return None

    def ask(self, kind: bytes, image: int, index: int = 0) -> Answer:
        """The answer to a request; raises UserError where there is none, or the board has another network."""
        began = time.monotonic()
        while True:
            asked = time.monotonic()
            self._tag = (self._tag + 1) % 256
            self._write(encode_frame(REQUEST.pack(kind[0], self._tag, image, index)) * self._copies)
            while answer := self._receive(asked + self._patience):
                if answer.tag == self._tag:
                    break
            if answer:
                break
            self.lost += 1
            self._patience *= 2
            self._copies = min(self._copies + 1, MOST_COPIES)
            if time.monotonic() > began + GIVE_UP:
                raise UserError(f"the board has not answered for {GIVE_UP:.0f} s")
        if self.expected not in (None, answer.fingerprint):
            raise UserError("the board runs another network now")
        if answer.runs < self._runs:
            self._say("the board began anew: going on with the image that it had not done")
        self._runs = answer.runs
        self._adapt(time.monotonic() - asked)
        return answer

    def _adapt(self, seconds: float) -> None:
        """To the time that answers take, as TCP does (RFC 6298)."""
        self._mean = self._mean or seconds
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8
        self._patience = max(LEAST_PATIENCE, self._mean + 4 * self._deviation)

    def identify(self) -> Facts:
        answer = self.ask(b"I", 0)
        self.expected = answer.fingerprint
        return Facts.unpack(answer.data)

    def _results(self, kind: bytes, image: int, first: Answer, size: int) -> bytes:
        data = bytearray()
        for index in range(-(-size // CHUNK)):
            data += (first if index == 0 else self.ask(kind, image, index)).data
        return bytes(data)

    def run(self, image: int, pixels: bytes, kind: bytes, size: int) -> bytes:
        """What the board computes of an image: `size` bytes of logits (L), checksums (C) or times (T).

        Raises UserError where a kernel refuses its arguments.
        """
        chunks = [pixels[at : at + CHUNK] for at in range(0, len(pixels), CHUNK)]
        wanted = [*range(len(chunks))]
        copies = 1
        while True:
            self._write(b"".join(encode_frame(REQUEST.pack(b"P"[0], 0, image, i) + chunks[i]) * copies for i in wanted))
            answer = self.ask(kind, image)
            if answer.kind == b"E":
                raise UserError("a kernel on the board refused its arguments")
            if answer.kind == kind:
                return self._results(kind, image, answer, size)
            bits = np.unpackbits(np.frombuffer(answer.data, np.uint8), bitorder="little")
            wanted = [answer.index + int(i) for i in np.flatnonzero(bits)]
            copies = self._copies
