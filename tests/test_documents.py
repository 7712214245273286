# SPDX-License-Identifier: Apache-2.0
"""What the documents show is what happens: their programs are built and run as they stand there."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import code_gen
import nn_quantizer
from tests.support import ROOT, run, tool

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "models" / "README.md"]


def blocks(document: Path, heading: str, language: str) -> list[str]:
    """The code under a heading, in order."""
    section = document.read_text().split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_a_program_of_your_own(lenet_pickle: Path, tmp_path: Path) -> None:
    """On this computer it runs; for Cortex-M4 it links, with the constants in flash."""
    for name in ("gcc", "g++", "arm-none-eabi-gcc", "arm-none-eabi-g++", "bash"):
        tool(name)
    document, heading = ROOT / "docs" / "firmware.md", "### Your own program"
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


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, fragment = link.partition("#")
        if not re.match("https?:", link):
            target = document.parent / path if path else document
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if fragment else []
            assert not fragment or fragment in map(anchor, headings), link


@pytest.mark.parametrize("script", [nn_quantizer, code_gen])
def test_every_flag_has_its_row(script: Any) -> None:
    section = (ROOT / "docs" / "options.md").read_text().split(f"## {script.__name__}.py\n")[1].split("\n## ")[0]
    told = set(re.findall(r"`(--?\w+)`", "\n".join(line.split("|")[1] for line in section.splitlines() if "|" in line)))
    actions = (a for a in script.build_parser()._actions if a.help != argparse.SUPPRESS)
    flags = {flag for action in actions for flag in action.option_strings}
    assert flags - told == {"-h", "--help", "--version", *({"--verbose", "--quiet"} & flags)}
    assert told <= flags


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
