# SPDX-License-Identifier: Apache-2.0
"""The rooms of q7/ use those below them only: the contract in pyproject.toml."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support import ROOT, missing, run


def test_imports_go_down() -> None:
    found = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if found is None:
        if sys.version_info < (3, 10):  # import-linter has ended there
            return
        missing("lint-imports is not installed")
    done = run(found, "--no-cache", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
