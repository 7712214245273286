# SPDX-License-Identifier: Apache-2.0
"""Reads LMDB's file format itself: the C library maps the file and follows whatever a damaged one says, to a crash."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from collections.abc import Container, Iterator
from typing import BinaryIO

from caffe_to_cmsis_nn import files

MAGIC, VERSION = 0xBEEFC0DE, 1
PAGE_HEADER = 16  # bytes: page number (8), padding (2), flags (2), start and end of the free space (2 + 2)
BRANCH, LEAF = 1, 2  # page flags
META = 152  # bytes that matter of the pages 0 and 1
OVERFLOW, PLAIN = 1, 0  # node flags: the value lies on pages of its own, or after the key
EMPTY = (1 << 64) - 1  # the root of a database without entries
Entry = tuple[bytes, int, bytes]  # key, where the value lies in the file, value


class LmdbFile:
    """The main database of an LMDB file of a 64-bit little-endian machine; raises ValueError where it is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.lock = threading.Lock()  # for threads that read the file: it has one position
        # A sound file makes us read each byte once, and hand out each value once: neither loops nor bombs get further.
        self._budget = 2 * file.seek(0, 2) + 3 * META
        (self._page_size,) = struct.unpack_from("<I", self._read(0, META), 40)
        self._version = self.version()
        _, self._depth, self.entries, self._root = self._version[0]
        if self.entries > self._budget:
            raise ValueError(f"it says that it has {self.entries} entries")

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ValueError("its pages lead back to each other")

    def _read(self, offset: int, size: int) -> bytes:
        self._spend(size)
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("a page lies outside the file")
        return data

    def _meta(self, offset: int) -> tuple[int, int, int, int]:
        """Transaction number, depth, entries and root page, in which the newest meta sorts last."""
        meta = self._read(offset, META)
        if struct.unpack_from("<II", meta, PAGE_HEADER) != (MAGIC, VERSION):
            raise ValueError("it is not an LMDB of version 1")
        depth, entries, root = struct.unpack_from("<6xH24xQQ", meta, 88)
        return struct.unpack_from("<Q", meta, 144)[0], depth, entries, root

    def version(self) -> tuple[tuple[int, int, int, int], int, int]:
        """What another process changes that writes to the file: its newest meta, its size, and when it was changed."""
        status = os.fstat(self._file.fileno())
        return max(self._meta(i * self._page_size) for i in (0, 1)), status.st_size, status.st_mtime_ns

    @property
    def changed(self) -> bool:
        """Whether another process has written to the file since it was opened here."""
        self._budget += 2 * META
        return self.version() != self._version

    def _nodes(self, page: bytes) -> Iterator[tuple[int, int, int, bytes, int]]:
        """Each node's three numbers, its key, and where its value starts."""
        (lower,) = struct.unpack_from("<H", page, 12)
        for (start,) in struct.iter_unpack("<H", page[PAGE_HEADER:lower][: (lower - PAGE_HEADER) // 2 * 2]):
            low, high, flags, key = struct.unpack_from("<HHHH", page, start)
            yield low, high, flags, page[start + 8 : start + 8 + key], start + 8 + key

    def _walk(self, number: int, depth: int, numbers: Iterator[int], wanted: Container[int]) -> Iterator[Entry]:
        page = self._read(number * self._page_size, self._page_size)
        (kind,) = struct.unpack_from("<H", page, 10)
        if kind != (LEAF if depth == 1 else BRANCH):
            raise ValueError(f"page {number} is of another kind")
        for low, high, flags, key, start in self._nodes(page):
            if kind == BRANCH:
                yield from self._walk(low | high << 16 | flags << 32, depth - 1, numbers, wanted)
                continue
            if next(numbers) not in wanted:
                continue
            size = low | high << 16
            if size > files.LARGEST:
                raise ValueError(f"it has a value of {size} bytes, allowed are {files.LARGEST}")
            if flags == OVERFLOW:
                (first,) = struct.unpack_from("<Q", page, start)
                offset = first * self._page_size + PAGE_HEADER
                value = self._read(offset, size)
            else:
                offset = number * self._page_size + start
                value = page[start : start + size]
            if flags not in (OVERFLOW, PLAIN) or len(value) != size:
                raise ValueError(f"page {number} holds no plain values")
            self._spend(size)
            yield key, offset, value

    def at(self, wanted: Container[int]) -> Iterator[Entry]:
        """The entries at these positions in key order, counted from 0."""
        if self._root != EMPTY:
            yield from self._walk(self._root, self._depth, itertools.count(), wanted)
