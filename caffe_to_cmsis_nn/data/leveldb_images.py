# SPDX-License-Identifier: Apache-2.0
"""Images and labels in LevelDBs of Datums, which Caffe's Data layer reads by default. The only user of plyvel."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.data.image_set import (
    PLAIN,
    Crop,
    Datums,
    Decoder,
    Gathering,
    Images,
    check_size,
    has_features,
    parse_datum,
    place_of,
    whole,
)
from caffe_to_cmsis_nn.errors import UserError

TABLES = (".ldb", ".sst")  # files that LevelDB never changes
LARGEST_LOG = 1 << 30  # bytes: Caffe has 256 MB written to the log before it makes a table of them
LARGEST_NAME = 1 << 10  # bytes of CURRENT, which names the manifest
BLOCK, HEADER = 1 << 15, 7  # of logs: fragments of CRC (4), length (2) and type (1) do not go across blocks
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # types of fragments
# What a manifest's records are made of, by tag: numbers (n) and texts (t).
EDITS = {1: "t", 2: "n", 3: "n", 4: "n", 5: "nt", 6: "nn", 7: "nnntt", 9: "n"}
LOG_NUMBER, NEXT_NUMBER = 2, 3  # tags: the current log's number, and the next free file number


# Reads a database in a process of its own, which LevelDB ends where it is given a damaged table. Every checksum is
# compared, and the memory is limited.
PROGRAM = """
import struct, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
except ImportError:
    pass  # Windows writes no core
import plyvel
try:
    database = plyvel.DB(sys.argv[1], create_if_missing=False, paranoid_checks=True)
    values = sys.argv[2] == "values"
    for entry in database.iterator(include_value=values, verify_checksums=True):
        key, value = entry if values else (entry, b"")
        sys.stdout.buffer.write(struct.pack("<QQ", len(key), len(value)))
        sys.stdout.buffer.write(key)
        sys.stdout.buffer.write(value)
except plyvel.Error as error:
    sys.exit(error.args[0].decode() if isinstance(error.args[0], bytes) else str(error))
"""
SIZES = struct.Struct("<QQ")


def _fragments(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bool]]:
    """Where each fragment of a log's records lies: start, length, and whether the record ends with it.

    Raises ValueError unless they fill the file: LevelDB takes a log that is cut off for that of a writer that died, and
    says nothing. It compares their checksums.
    """
    size, at, inside = os.fstat(file.fileno()).st_size, 0, False
    while at < size:
        left = min(BLOCK - at % BLOCK, size - at)
        file.seek(at)
        header = file.read(min(HEADER, left))
        if left < HEADER and at + left < size and not any(header):  # the end of a block
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", header) if len(header) == HEADER else (0, 0, 0)
        if kind not in ((MIDDLE, LAST) if inside else (FULL, FIRST)) or HEADER + length > left:
            raise ValueError(f"'{path.name}' is cut off or damaged at byte {at}")
        inside = kind in (FIRST, MIDDLE)
        yield at + HEADER, length, not inside
        at += HEADER + length
    if inside:
        raise ValueError(f"'{path.name}' is cut off at its end")


def _number(record: bytes | bytearray, at: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, lowest first, and where it ends."""
    value, shift = 0, 0
    while shift < 64:
        value |= (record[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if record[at - 1] < 128:
            break
    return value, at


def _numbers(manifest: Path) -> tuple[int, int]:
    """Of the log that has what is in no table, and from which on LevelDB gives numbers to files that it writes."""
    record, found = bytearray(), dict[int, int]()
    with files.opened(manifest) as file:
        for start, length, ends in _fragments(manifest, file):
            file.seek(start)
            record += file.read(length)
            at = 0
            while ends and at < len(record):
                tag, at = _number(record, at)
                for part in EDITS[tag]:
                    value, at = _number(record, at)
                    at += value if part == "t" else 0
                    found[tag] = value
            if ends:
                record.clear()
    return found[LOG_NUMBER], found[NEXT_NUMBER]


@contextlib.contextmanager
def _linked(path: Path) -> Iterator[str]:
    """LevelDB writes to its folder even where it only reads: it gets one with links to what it never changes.

    Tables of a compaction that was stopped are left out: LevelDB would give their numbers to others, and write to them.
    """
    current = files.read(path / "CURRENT", LARGEST_NAME)
    manifest = current.decode("ascii").rstrip("\n")
    if not re.fullmatch(r"MANIFEST-\d+", manifest):
        raise ValueError("its file CURRENT names no manifest")
    log_number, next_number = _numbers(path / manifest)
    numbered = {file: int(file.stem) for file in path.iterdir() if file.stem.isdecimal() and file.is_file()}
    logs = {file: number for file, number in numbered.items() if file.suffix == ".log"}
    if log_number not in logs.values():  # also where the manifest's last records are missing
        raise ValueError(f"its log {log_number:06}.log is missing, which has its last images")
    for log in logs:
        with files.opened(log, LARGEST_LOG) as opened:
            deque(_fragments(log, opened), 0)
    tables = [file for file, number in numbered.items() if file.suffix in TABLES and number < next_number]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "CURRENT").write_bytes(current)
        (Path(name) / manifest).write_bytes(files.read(path / manifest))
        for file in [*logs, *tables]:
            (Path(name) / file.name).symlink_to(file.resolve())
        yield name


def _entries(path: Path, what: str = "values") -> Generator[tuple[bytes, bytes], None, None]:
    """Keys and values in the order of the keys; with `what` "keys", values are not read."""
    if not find_spec("plyvel"):
        raise UserError(f"'{path}' is a LevelDB: pip install plyvel, or convert it into an LMDB")
    if not (path / "CURRENT").is_file():
        raise UserError(f"'{path}' is not a LevelDB: it has no file CURRENT")
    with files.reading(f"the LevelDB '{path}'"), _linked(path) as name:
        command = [sys.executable, "-c", PROGRAM, name, what]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout and process.stderr
            try:
                while sizes := process.stdout.read(SIZES.size):
                    for size in SIZES.unpack(sizes):
                        check_size(size, f"'{path}'")
                    key, value = map(process.stdout.read, SIZES.unpack(sizes))
                    yield key, value
                reason = process.stderr.read().decode(errors="replace")
            except BaseException:  # also who reads no further
                process.kill()
                raise
        if process.returncode:
            raise ValueError(reason or "LevelDB cannot read it")


def count(path: Path) -> int:
    """Images in the database."""
    return sum(1 for _ in _entries(path, "keys"))


def holds_features(path: Path) -> bool:
    """Whether the first Datum has float_data with values that are not pixels."""
    with contextlib.closing(_entries(path)) as entries:
        return any(has_features(parse_datum(value, place_of(path, key))) for key, value in itertools.islice(entries, 1))


def read(
    path: Path, wanted: Sequence[int], crop: Crop = whole, in_memory: float = math.inf, decode: Decoder = PLAIN
) -> tuple[Images, np.ndarray]:
    """The images (N, C, H, W) at those of the wanted positions (ascending) that there are, and their labels (N,).

    uint8, or float32 where they are features. Those that take more bytes than `in_memory` stay in a temporary file,
    since a LevelDB is read from its beginning. Raises UserError where the database is missing, damaged or empty, or its
    images differ in shape.
    """
    gathering, labels, places = Gathering(crop, in_memory, decode), list[int](), list[tuple[int, int]]()
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with contextlib.closing(_entries(path)) as entries:
        for position, (key, value) in enumerate(entries):
            if len(labels) == len(wanted) or position > wanted[-1]:
                break
            place = bisect.bisect_left(wanted, position)
            if place == len(wanted) or wanted[place] != position:
                continue
            where = place_of(path, key)
            datum = parse_datum(value, where)
            gathering.add(decode(datum, where), where)
            labels.append(datum.label)
            if in_memory < math.inf:
                try:
                    places.append((copy.tell(), copy.write(value)))
                except OSError as error:
                    folder = tempfile.gettempdir()
                    raise UserError(
                        f"cannot copy '{path}' to '{folder}': {error.strerror}; --memory may help"
                    ) from error
    if not labels:
        raise UserError(f"the LevelDB '{path}' holds no images")
    again = Datums(copy, f"'{path}'", np.array(places), crop, decode)
    return gathering.images(again), np.array(labels, np.int32)
