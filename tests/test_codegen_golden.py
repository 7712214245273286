# SPDX-License-Identifier: Apache-2.0
"""The full text of what is generated for a small network: `pytest --update-golden` writes tests/golden/ anew."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.target import LIBRARIES, Target
from caffe_to_cmsis_nn.templating import TEMPLATES
from tests import small
from tests.generated import generate

GOLDEN = Path(__file__).parent / "golden"
BASE = "mbed"  # its files stand in golden/LIBRARY in full; LIBRARY-TARGET.diff says how those of another target differ
OTHERS = [(target, str(project.libraries[0])) for target, project in projects.PROJECTS.items() if target != BASE]
CASES = [(BASE, "q7"), (BASE, "s8"), *OTHERS, ("mps2", "s8")]
S8 = Target(library=LIBRARIES["s8"])


def _read(folder: Path) -> dict[str, str]:
    """The texts of all files; a network in a file of its own is put into the program, where it stands otherwise."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "portable"]
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in paths}
    network = texts.pop("network.c", None)
    if network is not None:
        (program,) = (name for name in texts if name.endswith(("main.cpp", "main.c")))
        before, after = texts.pop(program).split('#include "network.h"\n', 1)
        texts["main.cpp"] = f"{before}{network.split(' */', 1)[1].lstrip()}{after}"
    return texts


def _differences(base: dict[str, str], files: dict[str, str]) -> str:
    """A unified diff without context: its line numbers leave no doubt what the files hold."""
    lines: list[str] = []
    for name in sorted({*base, *files}):
        before, after = (texts.get(name, "").splitlines(keepends=True) for texts in (base, files))
        lines += difflib.unified_diff(before, after, name, name, n=0)
    return "".join(lines)


def _check(golden: dict[Path, str], request: pytest.FixtureRequest) -> None:
    for path, text in golden.items():
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs: if it should, run pytest --update-golden"


@pytest.mark.parametrize("ram", ["fast", "least"])
@pytest.mark.parametrize(("target", "api"), CASES)
def test_generated_text(target: str, api: str, ram: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """From one pickle for both kernel libraries; files that are copied as they are do not count."""
    if ram == "least" and target != BASE:
        return
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    generated = _read(generate(pickle, tmp_path / "code", "--target", target, "--profile", "--api", api, "--ram", ram))
    for path in [*(TEMPLATES / target).iterdir(), *(TEMPLATES / "common").glob("*.h"), *(TEMPLATES / "ops").iterdir()]:
        generated.pop(path.name, None)
    base = GOLDEN / api
    if (target, ram) == (BASE, "fast"):
        golden = {base / name: text for name, text in generated.items()}
    else:
        golden = {GOLDEN / f"{api}-{target if ram == 'fast' else ram}.diff": _differences(_read(base), generated)}
    _check(golden, request)
    assert (target, ram) != (BASE, "fast") or _read(base).keys() == generated.keys()


def test_generated_text_with_kernels_of_our_own(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    kinds = ("cmsis", "own")
    texts = (_read(generate(pickle, tmp_path / kind, "--target", BASE, "--kernels", kind)) for kind in kinds)
    before, after = ({name: text for name, text in files.items() if not name.endswith("q7.h")} for files in texts)
    _check({GOLDEN / "q7-own.diff": _differences(before, after)}, request)


def test_generated_text_with_several_outputs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    quantized = small.quantized(tmp_path)
    networks = {"one": quantized, "three": small.with_outputs(quantized, "ip2", "depthwise", "fast")}
    pickles = (small.save(network, tmp_path / f"{name}.pkl") for name, network in networks.items())
    texts = (_read(generate(pickle, tmp_path / pickle.stem, "--target", "host", "--serve")) for pickle in pickles)
    _check({GOLDEN / "q7-outputs.diff": _differences(*texts)}, request)


@pytest.mark.parametrize(("target", "kernels"), [(S8, "cmsis"), (Target(), "own")], ids=["s8", "q7-own"])
def test_generated_text_with_weights_of_4_bits(
    target: Target, kernels: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    networks = ((bits, small.quantized(tmp_path, target, weight_bits=bits)) for bits in (8, 4))
    pickles = (small.save(quantized, tmp_path / f"{bits}.pkl") for bits, quantized in networks)
    flags = ("--target", BASE, "--kernels", kernels)
    texts = (_read(generate(pickle, tmp_path / pickle.stem, *flags)) for pickle in pickles)
    name = f"{target.library}-{kernels}" if kernels == "own" else str(target.library)
    _check({GOLDEN / f"{name}-4bits.diff": _differences(*texts)}, request)


def test_same_input_gives_the_same_bytes_and_leaves_the_files_alone(tmp_path: Path) -> None:
    pickle = small.save(small.quantized(tmp_path), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "host")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    generate(pickle, folder, "--target", "host")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}


def test_s8_code_checks_the_version(tmp_path: Path) -> None:
    """Only grouped convolutions ask for a later version."""
    for groups in (False, True):
        layers = small.LAYERS.replace("kernel_size: 2 }", "kernel_size: 2 group: 2 }") if groups else small.LAYERS
        pickle = small.save(small.quantized(tmp_path, layers=layers), tmp_path / "small.pkl")
        main = (generate(pickle, tmp_path / "code", "--api", "s8") / "main.cpp").read_text()
        assert "code_gen.py --library q7" in main
        assert ("from version 6 on" in main) == groups
