# SPDX-License-Identifier: Apache-2.0
"""Runs leave nothing behind but their outputs: libraries would report to their makers from the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests import tiny
from tests.support import ROOT, run, tool


def test_a_run_writes_its_outputs_alone(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    arguments = tiny.write(work)
    before = {*work.iterdir()}
    places = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ended = run(sys.executable, "nn_quantizer.py", *arguments, cwd=ROOT, env={**environment, **places})
    assert ended.returncode == 0, ended.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert {path.name for path in {*work.iterdir()} - before} == {"net.pkl", "quantized_net.caffemodel"}


def test_a_run_opens_no_socket(tmp_path: Path) -> None:
    """Native code of libraries neither: the system calls are watched."""
    arguments = [*tiny.write(tmp_path), "-q"]
    trace = [tool("strace"), "-f", "-qq", "-e", "trace=socket,connect", "-o", str(tmp_path / "calls")]
    ended = run(*trace, sys.executable, "nn_quantizer.py", *arguments, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert "AF_INET" not in calls and "AF_UNIX" not in calls, calls
