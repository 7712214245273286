# SPDX-License-Identifier: Apache-2.0
"""Images and labels in LevelDBs of Datums, which Caffe's Data layer reads by default. The only user of plyvel."""

from __future__ import annotations

import bisect
import contextlib
import itertools
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
from typing import Any, BinaryIO

import numpy as np

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.data.image_set import PLAIN, Decoder, has_features, parse_datum, place_of
from caffe_to_cmsis_nn.errors import UserError

TABLES = (".ldb", ".sst")  # files that LevelDB never changes
LARGEST_LOG = 1 << 30  # bytes: Caffe has 256 MB written to the log before it makes a table of them
LARGEST_NAME = 1 << 10  # bytes of CURRENT, which names the manifest
BLOCK, HEADER = 1 << 15, 7  # of logs: fragments of CRC (4), length (2) and type (1) do not go across blocks
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # types of fragments
# What a manifest's records are made of, by tag: numbers (n) and texts (t).
EDITS = {1: "t", 2: "n", 3: "n", 4: "n", 5: "nt", 6: "nn", 7: "nnntt", 9: "n"}
NEXT_NUMBER = 3  # tag: above the numbers of all files


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


def _next_number(manifest: Path) -> int:
    """The number from which on LevelDB gives numbers to files that it writes."""
    record, found = bytearray(), 0
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
                    found = value if tag == NEXT_NUMBER else found
            if ends:
                record.clear()
    return found


@contextlib.contextmanager
def _linked(path: Path) -> Iterator[str]:
    """LevelDB writes to its folder even where it only reads: it gets one with links to what it never changes.

    It would write through a link to a table that its manifest does not know of: such a database is refused.
    """
    current = files.read(path / "CURRENT", LARGEST_NAME)
    manifest = current.decode("ascii").rstrip("\n")
    if not re.fullmatch(r"MANIFEST-\d+", manifest):
        raise ValueError("its file CURRENT names no manifest")
    following = _next_number(path / manifest)
    present = sorted(filter(Path.is_file, path.iterdir()))  # a pipe would have LevelDB wait
    logs = [file for file in present if file.suffix == ".log"]
    if not logs:
        raise ValueError("it has no log (*.log), where its last images are")
    for log in logs:
        with files.opened(log, LARGEST_LOG) as opened:
            deque(_fragments(log, opened), 0)
    tables = [file for file in present if file.suffix in TABLES]
    for table in tables:
        if not (table.stem.isdecimal() and int(table.stem) < following):
            raise ValueError(f"its manifest is older than its table '{table.name}'")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "CURRENT").write_bytes(current)
        (Path(name) / manifest).write_bytes(files.read(path / manifest))
        for file in logs + tables:
            (Path(name) / file.name).symlink_to(file.resolve())
        yield name


def _entries(path: Path, what: str = "values") -> Iterator[tuple[bytes, bytes]]:
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
                    key, value = map(process.stdout.read, SIZES.unpack(sizes))
                    yield key, value
                reason = process.stderr.read().decode(errors="replace")
            except BaseException:  # also who reads no further
                process.kill()
                raise
        if process.returncode:
            raise ValueError(reason or "LevelDB cannot read it")


def _datums(path: Path) -> Generator[tuple[Any, str], None, None]:
    """Datums in the order of their keys, and where each lies."""
    for key, value in _entries(path):
        where = place_of(path, key)
        yield parse_datum(value, where), where


def count(path: Path) -> int:
    """Images in the database."""
    return sum(1 for _ in _entries(path, "keys"))


def holds_features(path: Path) -> bool:
    """Whether the first Datum has float_data that is no pixels."""
    with contextlib.closing(_datums(path)) as datums:
        return any(has_features(datum) for datum, _ in itertools.islice(datums, 1))


def read(path: Path, wanted: Sequence[int], decode: Decoder = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, C, H, W) at those of the wanted positions (ascending) that there are, and their labels (N,).

    uint8, or float32 where they are features. Raises UserError where the database is missing, damaged or empty, or its
    images differ in shape.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    with contextlib.closing(_datums(path)) as datums:
        for position, (datum, where) in enumerate(datums):
            if len(images) == len(wanted) or position > wanted[-1]:
                break
            place = bisect.bisect_left(wanted, position)
            if place == len(wanted) or wanted[place] != position:
                continue
            images.append(decode(datum, where))
            labels.append(datum.label)
            decode.check_shape(images[-1], images[0].shape, where)
    if not images:
        raise UserError(f"the LevelDB '{path}' holds no images")
    return np.stack(images), np.array(labels, np.int32)
