# SPDX-License-Identifier: Apache-2.0
"""What the documents show is what happens: their programs are built and run as they stand there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.support import ROOT, run, tool


def blocks(document: Path, heading: str, language: str) -> list[str]:
    """The code under a heading, in order."""
    section = document.read_text().split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_a_program_of_your_own(lenet_pickle: Path, tmp_path: Path) -> None:
    """On this computer it runs; for Cortex-M4 it links, with the constants in flash."""
    for name in ("gcc", "g++", "arm-none-eabi-gcc", "arm-none-eabi-g++", "bash"):
        tool(name)
    document, heading = ROOT / "docs" / "firmware.md", "### A program of your own"
    (program,), (commands, *_) = (blocks(document, heading, language) for language in ("cpp", "bash"))
    (tmp_path / "app.cpp").write_text(program)
    (tmp_path / "models").mkdir()
    shutil.copy(lenet_pickle, tmp_path / "models")
    commands = commands.replace("python code_gen.py", f"{sys.executable} {ROOT / 'code_gen.py'}")
    done = run("bash", "-euc", commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "class 1\n" in done.stdout
    flash, data, zeros = map(int, done.stdout.splitlines()[-1].split()[:3])
    assert flash > 400_000 and data < 5_000 and zeros > 12_000
