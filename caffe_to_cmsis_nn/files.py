# SPDX-License-Identifier: Apache-2.0
"""Finds files, and replaces them atomically, one run at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from caffe_to_cmsis_nn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None  # type: ignore[no-redef]

T = TypeVar("T")


def find(path: str, beside: Path, what: str, maker: str = "") -> Path:
    """Finds a file or folder: `path` as given, then relative to the folder `beside`, then its last part in that folder.

    Raises UserError if there is none; the message ends with `maker`.
    """
    # Texts, since lists have a million names; os.path.exists takes names that are too long, or have a null in them.
    if path and os.path.exists(path):
        return Path(path)
    for name in (path, os.path.basename(path)) if path else ():
        if os.path.exists(candidate := os.path.join(beside, name)):
            return Path(candidate)
    raise UserError(f"{what} '{path}' does not exist (looked in the current directory and in '{beside}'){maker}")


LARGEST = 1 << 26  # bytes of a file to read as a whole; more than the float weights of any microcontroller network


def _open_at_once(path: str, flags: int) -> int:
    """Opens without blocking, as opening a pipe would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def opened(path: Path, most: float = LARGEST) -> BinaryIO:
    """Opens a file for reading; raises UserError for devices, pipes and sockets, and for more than `most` bytes."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= most:
        return file
    file.close()
    regular = stat.S_ISREG(status.st_mode)
    raise UserError(f"'{path}' " + (f"has {status.st_size} bytes, allowed are {most}" if regular else "is not a file"))


def beginning(path: Path) -> bytes:
    """The first bytes of a file; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, UserError), opened(path) as file:
        return file.read(1 << 16)
    return b""


def read(path: Path, most: float = LARGEST) -> bytes:
    """The contents of a file; raises UserError as `opened` does, and if the file changes meanwhile."""
    with opened(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) != size:
        raise UserError(f"'{path}' was changed while it was read: run again when nothing writes to it")
    return content


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; raises UserError as `opened` does."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(1 << 20):  # weights may be large
            digest.update(block)
    return digest.hexdigest()


def _status(path: Path, *fields: str) -> tuple[int, ...]:
    """Fields of a path's status; empty if it does not exist."""
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        return tuple(getattr(status, f"st_{field}") for field in fields)
    return ()


VERSION = ("ino", "size", "mtime_ns")


def read_hashed(path: Path, read: Callable[[Path], T]) -> tuple[T, str]:
    """The result of `read` for a file, and the file's hexadecimal SHA-256.

    Raises UserError if the file changes meanwhile.
    """
    before = _status(path, *VERSION)
    content = read(path)
    with reading(f"'{path}'"):
        digest = sha256(path)
    if _status(path, *VERSION) != before:
        raise UserError(f"'{path}' was changed while it was read: run again when nothing writes to it")
    return content, digest


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns any exception, which damaged bytes may cause in a library, into a UserError about `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        no_access = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
        if isinstance(error, OSError) and (no_access or error.filename):  # opening failed, contents are unknown
            raise UserError(f"cannot read {what}: {error.strerror}") from error
        reason = " ".join(str(error).split())[:300]
        reason = reason if reason and not isinstance(error, KeyError) else repr(error)
        raise UserError(f"{what} is truncated, damaged or of another kind: {reason}") from error


def _followed(path: Path) -> Path:
    """The target of a link, so that writing keeps the link itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def writable(path: Path) -> bool:
    """Whether `path` is missing or a file, and its folder, or the nearest that exists, is writable.

    Devices do not count as writable, since a file must not replace them.
    """
    with contextlib.suppress(OSError):  # a name that is too long
        path = _followed(path)
        if path.exists():
            return path.is_file() and os.access(path.parent, os.W_OK | os.X_OK)
        folder = next(folder for folder in path.parents if folder.exists())
        return not path.is_symlink() and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return False


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises UserError where an output is one of the files that the run reads, by whatever path or link."""
    there = {status: path for path in outputs if (status := _status(path, "dev", "ino"))}
    for status in (_status(path, "dev", "ino") for path in inputs) if there else ():
        if status in there:
            raise UserError(f"cannot write '{there[status]}': it is also an input")


# --- replacing --------------------------------------------------------------------------------------------------------

UNFINISHED = ".q7-unfinished-"  # prefix of folders with content that is not in its place yet
PATIENCE = 10.0  # seconds to wait for another run that writes to the same folder


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Locks a folder against other runs, and creates it if missing; leaves no lock file.

    Yields whether it is locked: Windows and some file systems do not support this. The system unlocks it if the run is
    killed. Raises UserError if another run holds the lock for too long.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield False
        return
    with _writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"another run is writing to '{folder}'") from None
            time.sleep(0.01)
        except OSError:
            return False


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A new folder within a locked one; removes folders that killed runs have left there."""
    with locked(folder) as alone:
        for left in folder.glob(f"{UNFINISHED}*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)
        with _writing(folder):
            stage = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths that replace `paths` if the block succeeds, and are removed if it fails.

    A path stays unchanged if its temporary file is not written. Files keep their permissions, and links point to the
    new file. Concurrent runs wait for each other. Raises UserError if a folder is not writable.
    """
    paths = tuple(_followed(path) for path in paths)
    with contextlib.ExitStack() as stack:
        folders = {os.path.realpath(path.parent): path.parent for path in paths}
        # The same order in all runs avoids deadlocks.
        stages = {key: stack.enter_context(_staged(folder)) for key, folder in sorted(folders.items())}
        temporary = [stages[os.path.realpath(path.parent)] / path.name for path in paths]
        with _writing(paths[0]):
            yield temporary
        written = [(new, path) for new, path in zip(temporary, paths) if new.exists()]
        for new, path in written:
            with _writing(path):
                if os.path.lexists(path) and not path.is_file():
                    raise UserError(f"cannot write '{path}': it is not a file")
                with open(new, "rb+") as file:  # a full disk may only be noticed now
                    os.fsync(file.fileno())
                os.chmod(new, *(_status(path, "mode") or (0o666 & ~_umask(),)))
        for new, path in written:
            with _writing(path):
                os.replace(new, path)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read(path) == content
    except (OSError, UserError):
        return False


def write_all(contents: Mapping[Path, bytes], read: Iterable[Path] = ()) -> list[Path]:
    """Replaces files after all new ones are written, unless their contents are equal; returns the replaced ones.

    Raises UserError if one of them is among the input files `read`.
    """
    refuse_overwriting(contents, read)
    replaced = []
    with replacing(*contents) as temporary:
        for new, (path, content) in zip(temporary, contents.items()):
            with _writing(path):
                if not _holds(path, content):
                    new.write_bytes(content)
                    replaced.append(path)
    return replaced


def write(path: Path, content: bytes) -> bool:
    """Replaces one file unless its contents are equal; returns whether it did."""
    return bool(write_all({path: content}))
