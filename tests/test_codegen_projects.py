# SPDX-License-Identifier: Apache-2.0
"""Project descriptions: their keys are documented ones, what they name is there, and CMake builds them.

Mbed OS, Zephyr and Arm's kernels are not here: small ones of the same interface stand for them, and the programs run on
this computer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import code_gen
from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.target import LIBRARIES, Q7, S8, Core, Library, Rounding, Target
from tests import small, standin_library
from tests.generated import PORTABLE_S8, arm_compilers, generate
from tests.support import run, tool

RELEASES = {Q7: "CMSIS 5.9.0", S8: "CMSIS-NN 7.0.0"}
yaml = pytest.importorskip("yaml")
kconfiglib = pytest.importorskip("kconfiglib")

CMAKE = """
cmake_minimum_required(VERSION 3.19)
project(app C)
add_subdirectory(first)
add_subdirectory(second)
add_executable(app app.c)
target_link_libraries(app first second)
"""
APP = """
#include <stdio.h>
#include "first.h"
#include "second.h"
int main(void)
{
    printf("%d %d\\n", first_classify(first_run(first_input)), second_classify(second_run(second_input)));
    return 0;
}
"""


@pytest.fixture(scope="module")
def small_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return small.save(small.quantized(folder), folder / "small.pkl")


def cmake(folder: Path, *flags: str, env: dict[str, str] | None = None) -> str:
    """Configures and builds a project, and gives what was printed; both must succeed."""
    printed = ""
    for command in (["-S", ".", "-B", "build", *flags], ["--build", "build", "--verbose"]):
        done = run(tool("cmake"), *command, cwd=folder, env={**os.environ, **(env or {})})
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    return printed


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
@pytest.mark.parametrize("rounding", Rounding)
def test_cmake_builds_and_tests_the_network(library: Library, rounding: Rounding, tmp_path: Path) -> None:
    if rounding not in library.roundings:
        return
    pickle = small.save(small.quantized(tmp_path, Target(Core.DSP, rounding, library)), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "cmake")
    cmake(folder, "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    done = run(tool("ctest"), "--test-dir", "build", cwd=folder)
    assert (done.returncode, "100% tests passed" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize(
    ("library", "compiler"),
    [
        (Q7, "gcc"),
        (S8, "clang"),
        pytest.param(Q7, "clang", marks=pytest.mark.slow),
        pytest.param(S8, "gcc", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cmake_builds_arms_kernels_for_a_board(
    library: Library, compiler: str, small_pickle: Path, tmp_path: Path
) -> None:
    """Of the library, what the network calls; and no program."""
    folder = generate(small_pickle, tmp_path / "code", "--target", "cmake", "--api", library.name, "--name", "kws")
    program, *options = arm_compilers()[compiler]
    flags = " ".join(["-mcpu=cortex-m4", "-mthumb", *options])
    standin_library.write(tmp_path / "library", RELEASES[library])
    board = [
        "-DCMAKE_SYSTEM_NAME=Generic",
        "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
        f"-DCMAKE_C_FLAGS={flags}",
    ]
    board += [f"-DCMAKE_C_COMPILER={program}"]
    printed = cmake(folder, *board, f"-DCMSIS_NN_PATH={tmp_path / 'library'}")
    assert (folder / "build" / "libkws.a").exists()
    assert "arm_relu_q7.c" in printed if library is Q7 else "arm_convolve_s8.c" in printed
    assert "arm_convolve_f16" not in printed
    assert not (folder / "build" / "kws_test").exists()


def test_a_cmake_project_holds_two_networks(small_pickle: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        generate(small_pickle, tmp_path / name, "--target", "cmake", "--name", name)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "app.c").write_text(APP)
    cmake(tmp_path)
    first, second = run(tmp_path / "build" / "app").stdout.split()
    assert first == second


# What Mbed CE's build system offers.
MBED = {
    "mbed-os/tools/cmake/mbed_toolchain_setup.cmake": "list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})\n",
    "mbed-os/tools/cmake/mbed_project_setup.cmake": """
if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${MBED_APP_JSON_PATH})
    message(FATAL_ERROR "no ${MBED_APP_JSON_PATH}")
endif()
function(mbed_set_post_build target)
    message(STATUS "post build of ${target}")
endfunction()
""",
    "mbed-os/CMakeLists.txt": """
add_library(mbed-os INTERFACE)
target_include_directories(mbed-os INTERFACE .)
target_compile_definitions(mbed-os INTERFACE ARM_MATH_DSP)
""",
    "mbed-os/mbed.h": "namespace mbed { class Timer {}; }\nusing namespace mbed;\n",
}


@pytest.mark.parametrize(
    ("library", "name"),
    [
        (Q7, ""),
        (S8, "kws"),
        pytest.param(Q7, "kws", marks=pytest.mark.slow),
        pytest.param(S8, "", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_mbed_builds(library: Library, name: str, small_pickle: Path, tmp_path: Path) -> None:
    named = ["--name", name] if name else []
    folder = generate(small_pickle, tmp_path / "code", "--target", "mbed", "--api", library.name, *named)
    for path, text in MBED.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    standin_library.write(tmp_path / "library", RELEASES[library])
    cmake(folder, f"-DCMSIS_NN_PATH={tmp_path / 'library'}")
    assert "PASS" in run(folder / "build" / (name or "network")).stdout
    done = run(tool("cmake"), "-S", ".", "-B", "without", cwd=folder)
    assert "give -DCMSIS_NN_PATH=FOLDER" in done.stderr
    settings = json.loads((folder / "mbed_app.json5").read_text())
    assert settings["target_overrides"]["*"]["platform.stdio-baud-rate"] == 115200


# What Zephyr's build system offers, and what Kconfig of its module for CMSIS-NN says.
ZEPHYR = """
project(zephyr C)
add_library(app STATIC)
add_library(everything INTERFACE)
target_include_directories(everything INTERFACE ${CMAKE_CURRENT_LIST_DIR}/include ${CMAKE_CURRENT_LIST_DIR}/cmsis-nn)
target_compile_definitions(everything INTERFACE ARM_MATH_DSP)
target_link_libraries(app everything)
function(zephyr_include_directories)
    foreach(folder IN LISTS ARGN)
        get_filename_component(absolute ${folder} ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
        target_include_directories(everything INTERFACE ${absolute})
    endforeach()
endfunction()
macro(zephyr_library)
    add_library(module STATIC)
    target_link_libraries(module everything)
endmacro()
macro(zephyr_library_sources)
    target_sources(module PRIVATE ${ARGN})
endmacro()
include(${CMAKE_CURRENT_LIST_DIR}/config.cmake)
foreach(module IN LISTS ZEPHYR_EXTRA_MODULES)
    add_subdirectory(${module}/${MODULE_CMAKE} module)
endforeach()
add_executable(zephyr ${CMAKE_CURRENT_LIST_DIR}/cmsis-nn/arm_nnfunctions.c)
target_link_libraries(zephyr app module everything)
"""
KCONFIG = """
config CPU_CORTEX_M
	def_bool y
config MAIN_STACK_SIZE
	int "stack"
menuconfig CMSIS_NN
	bool "CMSIS-NN Library Support"
	depends on CPU_CORTEX_M
if CMSIS_NN
"""
GROUPS = "ACTIVATION BASICMATH CONCATENATION CONVOLUTION FULLYCONNECTED NNSUPPORT POOLING RESHAPE SOFTMAX SVD LSTM"


@pytest.mark.parametrize("name", ["", "kws"])
def test_zephyr_builds(name: str, small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a q7 pickle: its kernels are the s8 ones."""
    named = ["--name", name] if name else []
    folder = generate(small_pickle, tmp_path / "code", "--target", "zephyr", "--profile", *named)
    module = yaml.safe_load((folder / "zephyr" / "module.yml").read_text())
    assert module.keys() == {"name", "build"}
    assert module["build"].keys() == {"cmake", "kconfig", "depends"}
    assert module["build"]["depends"] == ["cmsis-nn"]

    groups = "".join(f"config CMSIS_NN_{group}\n\tbool\n" for group in GROUPS.split())
    kconfig = tmp_path / "Kconfig"
    kconfig.write_text(f'{KCONFIG}{groups}endif\nsource "{folder / module["build"]["kconfig"]}"\n')
    settings = kconfiglib.Kconfig(str(kconfig), warn_to_stderr=False)
    settings.load_config(str(folder / "prj.conf"))
    assert settings.warnings == []
    values = {symbol.name: symbol.str_value for symbol in settings.unique_defined_syms}
    symbol = f"NN_{(name or 'network').upper()}"
    on = {group for group in GROUPS.split() if values[f"CMSIS_NN_{group}"] == "y"}
    assert on == {"CONVOLUTION", "FULLYCONNECTED", "POOLING", "NNSUPPORT"}
    assert values[symbol] == "y"

    base = tmp_path / "base"
    (base / "include" / "zephyr").mkdir(parents=True)
    (base / "cmsis-nn").mkdir()
    (base / "include" / "zephyr" / "kernel.h").write_text("static unsigned k_cycle_get_32(void) { return 0; }\n")
    for path in PORTABLE_S8.iterdir():
        (base / "cmsis-nn" / path.name).write_text(path.read_text())
    (base / "ZephyrConfig.cmake").write_text(ZEPHYR)
    (base / "config.cmake").write_text("".join(f"set(CONFIG_{name} {value})\n" for name, value in values.items()))
    cmake(folder, f"-DMODULE_CMAKE={module['build']['cmake']}", env={"ZEPHYR_BASE": str(base)})
    assert "PASS" in run(folder / "build" / "zephyr").stdout


# Keys of the CMSIS-Toolbox's YAML format that are used here, with those that must be there first.
SOLUTION: dict[str, Any] = {
    "solution": {
        "target-types": [{"type": str, "device": str}],
        "projects": [{"project": str}],
        "created-for": str,
        "cdefault": type(None),
        "compiler": str,
        "packs": [{"pack": str}],
        "build-types": [{"type": str, "optimize": str, "debug": bool}],
        "define": [str],
    }
}
LAYERED: dict[str, Any] = {
    "groups": [{"group": str, "files": [{"file": str}]}],
    "components": [{"component": str}],
}
PROJECT: dict[str, Any] = {"project": {**LAYERED, "layers": [{"layer": str, "type": str}]}}
LAYER: dict[str, Any] = {"layer": {**LAYERED, "type": str, "description": str, "add-path": [str]}}


def conforms(value: Any, form: Any) -> bool:
    """Whether every key of a YAML document is known, and every value of the type that goes with it."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in form and conforms(v, form[key]) for key, v in value.items())
    if isinstance(form, list):
        return isinstance(value, list) and bool(value) and all(conforms(item, form[0]) for item in value)
    return isinstance(value, form)


@pytest.mark.parametrize("name", ["", "kws"])
@pytest.mark.parametrize("target", [Target(core, library=lib) for core in Core for lib in (Q7, S8)], ids=str)
def test_keils_files_are_whole(target: Target, name: str, tmp_path: Path) -> None:
    """Documented keys, and the files, folders and devices that they name."""
    pickle = small.save(small.quantized(tmp_path, target), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "keil", *(["--name", name] if name else []))
    solution = yaml.safe_load((folder / "net.csolution.yml").read_text())
    assert conforms(solution, SOLUTION)
    project = yaml.safe_load((folder / solution["solution"]["projects"][0]["project"]).read_text())
    assert conforms(project, PROJECT)
    place = folder / project["project"]["layers"][0]["layer"]
    layer = yaml.safe_load(place.read_text())
    assert conforms(layer, LAYER)
    assert project["project"]["layers"][0]["type"] == layer["layer"]["type"] == "AI"
    devices = [entry["device"] for entry in solution["solution"]["target-types"]]
    assert devices == [f"ARM::{device}" for device in projects.DEVICES[target.core]]
    packs = [entry["pack"] for entry in solution["solution"]["packs"]]
    components = [entry["component"] for part in (project["project"], layer["layer"]) for entry in part["components"]]
    named = {component.split(":")[2] for component in components if "::" in component}
    assert {"CMSIS", "CMSIS-Compiler"} <= named
    assert ("ARM::CMSIS@5.9.0" in packs) == (target.library is Q7)
    assert ("ARM::CMSIS:NN Lib@>=4.0.0" in components) == (target.library is S8)
    tools = json.loads((folder / "vcpkg-configuration.json").read_text())
    assert "arm:tools/open-cmsis-pack/cmsis-toolbox" in tools["requires"]
    listed = [place.parent / entry["file"] for entry in layer["layer"]["groups"][0]["files"]]
    listed += [folder / entry["file"] for entry in project["project"]["groups"][0]["files"]]
    assert all(path.is_file() for path in listed)
    written = {path.name for path in folder.iterdir() if path.suffix in (".c", ".cpp", ".h")}
    assert written - {path.name for path in listed} <= {
        f"{name}_test_images.h" if name else "test_images.h",
    }


def test_truncating_kernels_are_defined_for_the_whole_solution(tmp_path: Path) -> None:
    pickle = small.save(small.quantized(tmp_path, Target(rounding=Rounding.TRUNCATE)), tmp_path / "small.pkl")
    solution = generate(pickle, tmp_path / "code", "--target", "keil") / "net.csolution.yml"
    assert yaml.safe_load(solution.read_text())["solution"]["define"] == ["ARM_NN_TRUNCATE"]


def test_zephyr_has_no_q7_kernels(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(small_pickle), "--target", "zephyr", "--api", "q7", "--out_dir", str(tmp_path / "x")]
    assert code_gen.main(command) == 2
    assert capsys.readouterr().err.endswith("code_gen: --target zephyr works with --library s8 or own, not with q7\n")
