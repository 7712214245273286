# SPDX-License-Identifier: Apache-2.0
"""What a text file calls the classes."""

from __future__ import annotations

from pathlib import Path

from caffe_to_cmsis_nn import files
from caffe_to_cmsis_nn.errors import UserError


def read(path: Path, classes: int) -> tuple[str, ...]:
    """From a file with a name on each line; raises UserError where it has another number of them."""
    with files.reading(f"the classes' names '{path}'"):
        names = tuple(line.strip() for line in files.read(path).decode().splitlines() if line.strip())
    if len(names) != classes:
        raise UserError(f"--classes '{path}' has {len(names)} names, the network has {classes} classes")
    return names
