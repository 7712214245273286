# SPDX-License-Identifier: Apache-2.0
"""Packages import only those below them: the contract in pyproject.toml. No modules need each other."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, missing, run


def test_imports_go_down() -> None:
    found = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if found is None:
        if sys.version_info < (3, 10):  # import-linter has ended there
            return
        missing("lint-imports is not installed")
    done = run(found, "--no-cache", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_cycles() -> None:
    if sys.version_info < (3, 10):
        return
    grimp = pytest.importorskip("grimp", reason="grimp, which import-linter brings, is not installed")
    graph = grimp.build_graph("caffe_to_cmsis_nn", cache_dir=None)
    left = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules - {"caffe_to_cmsis_nn"}}
    while floor := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in floor}
    assert not left
