# SPDX-License-Identifier: Apache-2.0
"""Text output: templates, and tables with aligned columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).resolve().parent
# Within the package once it is installed, else beside it.
TEMPLATES = next(folder for folder in (_HERE / "templates", _HERE.parent / "templates") if folder.is_dir())


def templates(folder: Path, autoescape: bool, **filters: Callable[..., Any]) -> jinja2.Environment:
    """The environment for a folder's templates."""
    import jinja2  # here, since many runs do not need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    environment.filters.update(filters)
    return environment


def columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of cells as aligned lines, the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
