# SPDX-License-Identifier: Apache-2.0
"""What a text file calls the classes."""

from __future__ import annotations

from pathlib import Path

from q7 import files
from q7.errors import Q7Error


def read(path: Path, classes: int) -> tuple[str, ...]:
    """From a file with a name on each line; raises Q7Error where it has another number of them."""
    with files.reading(f"the classes' names '{path}'"):
        names = tuple(line.strip() for line in files.read(path).decode().splitlines() if line.strip())
    if len(names) != classes:
        raise Q7Error(f"--classes '{path}' has {len(names)} names, the network has {classes} classes")
    return names
