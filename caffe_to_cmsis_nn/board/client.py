# SPDX-License-Identifier: Apache-2.0
"""The host's side of the protocol. The board is a stranger: what it says is compared with the network's own sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from caffe_to_cmsis_nn.board.protocol import ANSWER, CHUNK, REQUEST, Facts, decode_frame, encode_frame
from caffe_to_cmsis_nn.errors import UserError

PATIENCE = 0.5  # seconds to wait for an answer before the request is sent again
GIVE_UP = 15.0  # seconds without the answer to a request
WINDOW = 32  # chunks of pixels that are sent before the board is asked: a quarter of a second at 115,200 baud
ROUNDS_OF_IMAGE, ROUNDS_OF_WINDOW = 50, 10  # of sending an image's pixels, at most: on a bad line, few arrive at once
NO_IMAGE = (1 << 31) - 1  # a number that no image has
MOST_BYTES = 512  # between two zeros: more than a frame has


class Port(Protocol):
    """What is used of pyserial's ports."""

    def read(self, size: int = 1) -> bytes: ...

    def write(self, data: bytes) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    kind: bytes
    tag: int
    image: int
    index: int
    fingerprint: int
    runs: int
    data: bytes

    def require(self, sound: bool, request: str) -> None:
        """Raises UserError unless the answer is sound."""
        if not sound:
            raise UserError(
                f"the board answered {request} with kind {self.kind!r}, image {self.image}, index {self.index} and "
                f"{len(self.data)} bytes, which this network's program never does: generate it again"
            )


class Board:
    """Requests that are repeated until they are answered; whatever is damaged or lost on the way is sent again."""

    def __init__(self, open_port: Callable[[], Port], warn: Callable[[str], None]) -> None:
        self._open, self._warn = open_port, warn
        self._port = open_port()
        self._received = bytearray()
        self._runs, self._tag = 0, 0
        self.expected: int | None = None  # fingerprint
        self.repeated = 0  # requests

    def close(self) -> None:
        self._port.close()

    def _write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except OSError:  # the port went away, as when a board with USB is reset, or takes nothing
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
        """The next answer to the latest request that arrives whole, or None when it is late."""
        while time.monotonic() < end:
            byte = self._read()
            if byte != b"\0":
                self._received = (self._received + byte)[-MOST_BYTES:]
                continue
            message = decode_frame(bytes(self._received))
            self._received.clear()
            if message and len(message) >= ANSWER.size and message[1] == self._tag:
                kind, tag, image, index, network, runs = ANSWER.unpack(message[: ANSWER.size])
                return Answer(
                    kind=bytes([kind]),
                    tag=tag,
                    image=image,
                    index=index,
                    fingerprint=network,
                    runs=runs,
                    data=message[ANSWER.size :],
                )
        return None

    def _ask(self, kind: bytes, image: int, index: int = 0) -> Answer:
        """The answer to a request; raises UserError where there is none, or the board has another network."""
        self._tag = (self._tag + 1) % 256
        request = encode_frame(REQUEST.pack(kind[0], self._tag, image, index))
        began = time.monotonic()
        self._write(request)
        while (answer := self._receive(time.monotonic() + PATIENCE)) is None:
            waited = time.monotonic() - began
            if waited > GIVE_UP:
                raise UserError(f"the board has not answered for {waited:.0f} s")
            self.repeated += 1
            self._write(request)
        if self.expected not in (None, answer.fingerprint):
            raise UserError("the board runs another network now")
        if answer.runs < self._runs:
            self._warn("the board restarted: continuing with the image that it had not finished")
        self._runs = answer.runs
        return answer

    def identify(self) -> Facts:
        answer = self._ask(b"I", NO_IMAGE)  # so that the board forgets the image that it holds
        answer.require((answer.kind, answer.image, answer.index) == (b"I", NO_IMAGE, 0), "request I")
        self.expected = answer.fingerprint
        return Facts.unpack(answer.data)

    def run(self, image: int, pixels: bytes, kind: bytes, size: int) -> bytes:
        """What the board computes of an image: `size` bytes of logits (L), checksums (C) or times (T).

        Raises UserError where a kernel refuses its arguments, or the pixels do not arrive.
        """
        chunks = [pixels[at : at + CHUNK] for at in range(0, len(pixels), CHUNK)]
        missing: Sequence[int] = range(len(chunks))
        most = ROUNDS_OF_IMAGE + ROUNDS_OF_WINDOW * -(-len(chunks) // WINDOW)
        for _ in range(most):
            frames = (REQUEST.pack(b"P"[0], 0, image, i) + chunks[i] for i in missing[:WINDOW])
            self._write(b"".join(map(encode_frame, frames)))
            result = bytearray()
            while len(result) < size:
                index = len(result) // CHUNK
                answer = self._ask(kind, image, index)
                request = f"request {kind.decode()}, image {image}, index {index},"
                answer.require(answer.image == image, request)
                if answer.kind == b"M":
                    missing = _missing(answer, len(chunks), request)
                    break  # also in the middle of the results, where the board restarted
                if answer.kind == b"E":
                    raise UserError("a kernel on the board refused its arguments")
                expected = kind, index, min(CHUNK, size - len(result))
                answer.require((answer.kind, answer.index, len(answer.data)) == expected, request)
                result += answer.data
            else:
                return bytes(result)
        raise UserError(f"the board still lacks pixels of image {image}, which were sent {most} times")


def _missing(answer: Answer, chunks: int, request: str) -> list[int]:
    """The chunks of pixels that the board lacks, of those that it has a bit for: the first one, and some after it."""
    bits = np.unpackbits(np.frombuffer(answer.data[:CHUNK], np.uint8), bitorder="little")
    missing = [answer.index + int(i) for i in np.flatnonzero(bits)]
    sound = len(answer.data) <= CHUNK and missing[:1] == [answer.index] and missing[-1] < chunks
    answer.require(sound, request)
    return missing
