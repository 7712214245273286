# SPDX-License-Identifier: Apache-2.0
"""Caches a search's results in a file beside the pickle, so that a run that was stopped can resume.

Searches are deterministic, so it is enough to store the results of trials: a new run repeats the same trials without
computing them. The file holds one JSON value per line: first the key of model, weights, data and options, then
questions with their answers.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.data.image_set import Images
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.qformat import LayerFormats
from caffe_to_cmsis_nn.search.caffe_objective import Grids, Judged, ScreenedSimulation
from caffe_to_cmsis_nn.search.layer_errors import LayerErrors
from caffe_to_cmsis_nn.search.verdict import Verdict
from caffe_to_cmsis_nn.search.weight_bits import Narrowing

HASHED_ROWS = 1000  # of an array, to hash at once
T = TypeVar("T")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def key(arrays: Sequence[Images], options: Mapping[str, Any]) -> str:
    """The hexadecimal SHA-256 of everything that a search depends on."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array[:1].dtype} {array.shape}".encode())
        for i in range(0, len(array), HASHED_ROWS):
            digest.update(np.ascontiguousarray(array[i : i + HASHED_ROWS]).data)
    return digest.hexdigest()


class Journal:
    """Questions and answers for one key; nothing is written before the first answer.

    `resumed` counts the answers from a stopped run, and `computed` those of this run. `replaced` is whether there is a
    journal with another key, which the first answer replaces.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.computed = 0
        self.replaced = False
        self._file: BinaryIO | None = None
        self._answers = self._read()
        self.resumed = len(self._answers)

    def _read(self) -> dict[str, Any]:
        """The answers in the file, if the key matches; skips incomplete or damaged lines."""
        answers: dict[str, Any] = {}
        with contextlib.suppress(OSError, UserError):
            first, *lines = files.read(self.path).split(b"\n")
            self.replaced = first != self._header()
            for line in [] if self.replaced else lines:
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    question, answer = json.loads(line)
                    answers[str(question)] = answer
        return answers

    def _header(self) -> bytes:
        return json.dumps({"format": "caffe-to-cmsis-nn journal", "key": self.key}).encode()

    def _append(self, question: str, answer: Any) -> None:
        """Writes one line at once; it starts with a line break, in case the last line is incomplete."""
        try:
            if self._file is None:
                if not self.resumed:
                    files.write(self.path, self._header())
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            self._file.write(b"\n" + json.dumps([question, answer]).encode())
        except OSError as error:
            raise UserError(f"cannot write '{self.path}': {error.strerror}") from error

    def remember(
        self, question: Any, compute: Callable[[], T], plain: Callable[[T], Any], restore: Callable[[Any], T]
    ) -> T:
        """The stored answer, else the computed one; `plain` converts it to JSON, `restore` back, or raises."""
        asked = _digest(question)
        if asked in self._answers:
            with contextlib.suppress(Exception):  # a damaged answer is computed again
                return restore(self._answers[asked])
        answer = compute()
        self._answers[asked] = plain(answer)
        self._append(asked, self._answers[asked])
        self.computed += 1
        return answer

    @property
    def kept(self) -> int:
        """The number of answers for the next run."""
        return len(self._answers)

    def close(self) -> None:
        """Closes the file, and keeps it for the next run."""
        if self._file:
            self._file.close()

    def remove(self) -> None:
        """Removes the file after a complete run, unless another run has replaced it."""
        self.close()
        with contextlib.suppress(OSError, UserError), files.opened(self.path) as file:
            if file.read(len(self._header())) == self._header():
                self.path.unlink()


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _values(text: str, dtype: DTypeLike) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def _flags(right: np.ndarray) -> str:
    return _text(np.packbits(right))


def _right(text: str, count: int) -> np.ndarray:
    packed = _values(text, np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError("another number of images")
    return np.unpackbits(packed, count=count).astype(bool)


def _plain(verdict: Verdict) -> list[Any]:
    return [len(verdict.right), _flags(verdict.right), _text(verdict.divergences)]


def _verdict(value: Any) -> Verdict:
    """The inverse of `_plain`; raises if the value is damaged."""
    divergences = _values(value[2], np.float64)
    if value[0] not in (0, len(divergences)):
        raise ValueError("another number of images")
    return Verdict(_right(value[1], value[0]), divergences)


def _bits(formats: Mapping[str, LayerFormats]) -> dict[str, Any]:
    return {name: [q and q.fraction_bits for q in (own.w, own.b, own.y)] for name, own in formats.items()}


class RememberedErrors(LayerErrors):
    """Layer errors, cached in the journal."""

    def __init__(self, journal: Journal, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.journal = journal
        self._behind = ""  # digest of the finished sections' formats and factors

    def _question(self, formats: Mapping[str, LayerFormats], factors: np.ndarray) -> list[Any]:
        own = {layer.name: formats[layer.name] for layer in self._layers}
        return ["errors", self._behind, _bits(own), factors.tolist()]

    def errors(self, formats: Mapping[str, LayerFormats], factors: np.ndarray) -> np.ndarray:
        return self.journal.remember(
            self._question(formats, factors),
            functools.partial(super().errors, formats, factors),
            np.ndarray.tolist,
            lambda values: np.array([float(value) for value in values]).reshape(self.channels),
        )

    def leave(self, formats: Mapping[str, LayerFormats], factors: np.ndarray) -> None:
        self._behind = _digest(self._question(formats, factors))
        super().leave(formats, factors)


class RememberedNarrowing(Narrowing):
    """Verdicts of a Narrowing, cached in the journal."""

    def __init__(self, journal: Journal, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.journal = journal

    def judge(self, names: Sequence[str]) -> Verdict:
        question = ["weights of 4 bits", [*names], _bits(self.formats)]
        return self.journal.remember(question, functools.partial(super().judge, names), _plain, _verdict)


class RememberedSimulation(ScreenedSimulation):
    """A simulation with its results cached in the journal."""

    def __init__(self, journal: Journal, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.journal = journal

    @staticmethod
    def _question(what: str, grids: Grids) -> list[Any]:
        return [what, sorted((name, t.value, q.format.fraction_bits, q.clip) for (name, t), q in grids.items())]

    def start(self, grids: Grids) -> np.ndarray:
        self._begin(grids)
        question, compute = self._question("start", grids), functools.partial(super().start, grids)
        return self.journal.remember(question, compute, _flags, lambda text: _right(text, len(self.labels)))

    def judge(self, grids: Grids, rival: Judged | None = None) -> Judged:
        count = len(self.labels)
        question = [self._question("judge", grids), self._question("start", self._grids), rival and _flags(rival.right)]
        return self.journal.remember(
            question,
            functools.partial(super().judge, grids, rival),
            lambda judged: [_flags(judged.right), None if judged.seen is None else _flags(judged.seen)],
            lambda value: Judged(_right(value[0], count), None if value[1] is None else _right(value[1], count)),
        )

    def largest(self, grids: Grids) -> dict[str, float]:
        self._begin(grids)
        return self.journal.remember(
            self._question("largest", grids),
            functools.partial(super().largest, grids),
            lambda values: [values[name] for name in self._measured],
            lambda values: {name: float(values[i]) for i, name in enumerate(self._measured)},
        )
