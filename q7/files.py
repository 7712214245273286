# SPDX-License-Identifier: Apache-2.0
"""Where files are looked for, and how they are replaced: wholly or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from q7.errors import Q7Error


def find(path: str, beside: Path, what: str) -> Path:
    """The file or folder that `path` names: as given, then below the folder `beside`, then by its last part there.

    Raises Q7Error where there is none.
    """
    for candidate in (Path(path), beside / path, beside / Path(path).name):
        with contextlib.suppress(OSError, ValueError):  # a name too long, or with a null in it
            if path and candidate.exists():
                return candidate
    raise Q7Error(f"{what} '{path}' does not exist (looked in the current directory and in '{beside}')")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever damaged bytes make of a library into one Q7Error about `what`."""
    try:
        yield
    except Q7Error:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise Q7Error(f"cannot read {what}: {error.strerror}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        reason = reason if reason and not isinstance(error, KeyError) else repr(error)
        raise Q7Error(f"{what} is truncated, damaged or of another kind: {reason}") from error


def writable(path: Path) -> bool:
    """Whether `path` could be replaced: it is no folder, and its folder, or the next one that exists, takes files."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not path.is_dir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new temporary path beside `path` that takes its place when the block ends well, and vanishes when it fails.

    Raises Q7Error where the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
        yield temporary / path.name
        os.chmod(temporary / path.name, 0o666 & ~_umask())
        os.replace(temporary / path.name, path)
    except OSError as error:
        raise Q7Error(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write(path: Path, content: bytes) -> bool:
    """Replaces a file's content in one step, and leaves it alone where it is the same; says whether it wrote."""
    try:
        if path.read_bytes() == content:
            return False
    except OSError:
        pass
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True
