# SPDX-License-Identifier: Apache-2.0
"""Projects compile every file of Arm's library that a network needs, whichever release it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_to_cmsis_nn.ops.registry import ALL_KERNELS
from caffe_to_cmsis_nn.target import Q7, S8, Target
from tests import small, standin_library
from tests.generated import generate, make
from tests.standin_library import RELEASES, library_of
from tests.support import FULL_SIZE, run, tool

CURVES = """
layer { name: "scaled" type: "Power" bottom: "ip2" top: "scaled" power_param { scale: 0.001 } }
layer { name: "curve" type: "Sigmoid" bottom: "scaled" top: "curve" }
layer { name: "logits" type: "InnerProduct" bottom: "curve" top: "logits" inner_product_param { num_output: 6 } }
"""
# Layers beside the small network's that a release can compute, and the bits of its weights.
KINDS = {
    "8 bits": (small.LAYERS + CURVES, 8),
    "groups": (small.LAYERS.replace("kernel_size: 2 }", "kernel_size: 2 group: 2 }") + CURVES, 8),
    "4 bits": (small.LAYERS + CURVES, 4),
}
LEAST = {"8 bits": "4", "groups": "6", "4 bits": "5"}


def _fits(release: str, kind: str) -> bool:
    return library_of(release) is Q7 or release.removeprefix("CMSIS-NN ") >= LEAST[kind]


# Each release with the newest kind that it can compute; the others are slow.
KINDS_OF = {release: [kind for kind in KINDS if _fits(release, kind)] for release in RELEASES}
CASES = [
    (release, kind) if kind == kinds[-1] else pytest.param(release, kind, marks=pytest.mark.slow)
    for release, kinds in KINDS_OF.items()
    for kind in kinds
]


def code(release: str, kind: str, folder: Path, target: str, *flags: str) -> Path:
    layers, bits = KINDS[kind]
    quantized = small.quantized(folder, Target(library=library_of(release)), layers, "logits", weight_bits=bits)
    pickle = small.save(quantized, folder / "small.pkl")
    return generate(pickle, folder / "code", "--target", target, *flags)


# Compiling them all takes long: the oldest and the newest of each library are enough beside the lists of the others.
COMPILED = ("CMSIS 5.9.0", "CMSIS-NN 4.0.0", "CMSIS-NN main")


@pytest.mark.parametrize(
    ("release", "kind"),
    [
        (release, kind)
        if release in COMPILED and kind == kinds[-1]
        else pytest.param(release, kind, marks=pytest.mark.slow)
        for release, kinds in KINDS_OF.items()
        for kind in (kinds if FULL_SIZE else kinds[-1:])
    ],
)
def test_the_makefile_compiles_what_is_needed(release: str, kind: str, tmp_path: Path) -> None:
    """And not those that it does not need, one of which cannot be compiled."""
    for name in ("make", "arm-none-eabi-g++", "qemu-system-arm"):
        tool(name)
    folder = code(release, kind, tmp_path, "mps2", "--softmax" if library_of(release) is Q7 else "--profile")
    for path in (folder / "portable").iterdir():
        path.unlink()
    library = standin_library.write(tmp_path / "library", release)
    assert "PASS" in make(folder, "run", f"CMSIS_PATH={library}", f"CMSIS_CORE_PATH={library}", "OPTIMIZE=-O0")
    (build,) = folder.glob("build-*")
    objects = [path for path in build.glob("*.o") if path.name not in ("main.o", "startup.o")]
    assert standin_library.undefined(objects) & _all_symbols(release) == set()


def _all_symbols(release: str) -> set[str]:
    return {name for file in RELEASES[release] for name in file.defines}


@pytest.mark.parametrize(("release", "kind"), CASES)
def test_cmake_compiles_what_is_needed(release: str, kind: str, tmp_path: Path) -> None:
    """The list is the same for Mbed; its files define every function and table that they name."""
    folder = code(release, kind, tmp_path, "cmake")
    library = standin_library.write(tmp_path / "library", release)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.19)\nproject(list NONE)\ninclude(cmsis_nn.cmake)\n"
        'list(JOIN NN_SOURCES "\\n" lines)\nfile(WRITE list.txt "${lines}")\n'
    )
    done = run(tool("cmake"), "-S", ".", "-B", "build", f"-DCMSIS_NN_PATH={library}", cwd=folder)
    assert done.returncode == 0, done.stderr
    listed = {Path(source).name for source in (folder / "list.txt").read_text().splitlines()}
    files = [file for file in RELEASES[release] if Path(file.name).name in listed]
    assert len(files) == len(listed) > 0
    assert {name for file in files for name in file.names} <= {name for file in files for name in file.defines}


def test_the_table_has_every_kernel() -> None:
    """That generated code calls."""
    for library, release in ((Q7, "CMSIS 5.9.0"), (S8, "CMSIS-NN 7.0.0"), (S8, "CMSIS-NN main")):
        names = {k.name for k in ALL_KERNELS if library in k.libraries and k.name.startswith("arm_")}
        assert names <= _all_symbols(release)
