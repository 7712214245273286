# SPDX-License-Identifier: Apache-2.0
"""Releases can be checked: equal sources give equal wheels, and what is pinned can be listed, with its licences."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT, missing, run

BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "nn_quantizer.py", "code_gen.py")


def test_two_builds_of_the_wheel_are_equal(tmp_path: Path) -> None:
    """Of copies in other folders, with files of other ages, in other time zones."""
    if not (find_spec("hatchling") and find_spec("hatch_requirements_txt")):
        missing("hatchling and hatch-requirements-txt are not installed")
    wheels = []
    for name, age, zone in (("one", 10**9, "UTC"), ("another", 1.5 * 10**9, "Asia/Tokyo")):
        folder = tmp_path / name
        shutil.copytree(ROOT / "caffe_to_cmsis_nn", folder / "caffe_to_cmsis_nn", symlinks=False)
        shutil.copytree(ROOT / "templates", folder / "templates", dirs_exist_ok=True)
        for source in SOURCES:
            shutil.copy(ROOT / source, folder)
        for path in folder.rglob("*"):
            os.utime(path, (age, age))
        done = run(sys.executable, "-c", BUILD, tmp_path, cwd=folder, env={**os.environ, "TZ": zone})
        assert done.returncode == 0, done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        wheels.append(wheel.read_bytes())
        wheel.unlink()
    assert wheels[0] == wheels[1]


def _names(lines: str) -> set[str]:
    """Of requirements, one on each line, as PyPI compares them."""
    return {name.lower().replace("_", "-") for name in re.findall(r"^([A-Za-z][\w.-]*)", lines, re.M)}


@pytest.mark.slow
def test_the_bill_of_materials_lists_what_is_pinned() -> None:
    """As docs/developing.md makes it."""
    command = "requirements", "--output-reproducible", "--of", "JSON", "requirements.lock"
    if not find_spec("cyclonedx_py"):
        missing("cyclonedx-bom is not installed")
    done = run(sys.executable, "-m", "cyclonedx_py", *command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "cyclonedx-py " + " ".join(command) in (ROOT / "docs" / "developing.md").read_text()
    bill = json.loads(done.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    pinned = re.findall(r"^([a-z][\w.-]*)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    listed = {(part["name"].lower().replace("_", "-"), part["version"]) for part in bill["components"]}
    assert {(name.lower().replace("_", "-"), version) for name, version in pinned} == listed
    assert all(part["hashes"] if "hashes" in part else part["externalReferences"] for part in bill["components"])


def test_licences_of_all_dependencies_are_listed() -> None:
    table = (ROOT / "docs" / "licences.md").read_text()
    listed = dict(re.findall(r"^\| ([\w.-]+)(?: \(optional\))? \| ([^|]+) \|$", table, re.M))
    listed.pop("package")
    assert _names("\n".join(listed)) == _names((ROOT / "requirements.txt").read_text()) | {"plyvel"}
