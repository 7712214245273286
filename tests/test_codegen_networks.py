# SPDX-License-Identifier: Apache-2.0
"""The network as C: several in one program that share an arena, where its data goes, who looks on, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import code_gen
from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.target import LIBRARIES, S8, Core, Library, Target
from tests import small
from tests.generated import PORTABLE, PORTABLE_S8, STRICT, arm_compilers, generate, made, make, sections
from tests.support import ROOT, run, tool

NAMES = ("first", "second")
IMAGES = 3
OTHER = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 5 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1" inner_product_param { num_output: 6 } }
"""

# Two networks by turns in one arena: how many images each of them has right to the last logit.
PROGRAM = """
#include <stdio.h>
#include <string.h>

#include "first.h"
#include "first_parameter.h"
#include "first_test_images.h"
#include "first_weights.h"
#include "second.h"
#include "second_parameter.h"
#include "second_test_images.h"
#include "second_weights.h"

enum { MOST = FIRST_ARENA_BYTES > SECOND_ARENA_BYTES ? FIRST_ARENA_BYTES : SECOND_ARENA_BYTES };
extern int32_t shared_arena[];
int32_t shared_arena[MOST / sizeof(int32_t)];

int main(void)
{
    int first = 0, second = 0;
    for (int i = 0; i < FIRST_TEST_IMAGES; i++) {
        const int8_t *logits = first_run(first_test_pixels + i * FIRST_INPUT_BYTES);
        first += memcmp(logits, first_test_logits + i * FIRST_CLASSES, FIRST_CLASSES) == 0;
        memcpy(second_input, second_test_pixels + i * SECOND_INPUT_BYTES, SECOND_INPUT_BYTES);
        logits = second_run(second_input);
        second += memcmp(logits, second_test_logits + i * SECOND_CLASSES, SECOND_CLASSES) == 0;
    }
    printf("first %d, second %d\\n", first, second);
    return 0;
}
"""


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two networks that have layers of the same names."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for name, layers, top in zip(NAMES, (small.LAYERS, OTHER), ("ip2", "ip1")):
        (folder / name).mkdir()
        quantized = small.quantized(folder / name, layers=layers, top=top)
        found[name] = small.save(quantized, folder / name / "net.pkl")
    return found


def both(pickles: dict[str, Path], folder: Path, target: str, library: Library, ram: str = "fast") -> list[str]:
    """The files of a program with both networks in one folder, which main.cpp is not of."""
    for name, pickle in pickles.items():
        flags = ("--target", target, "--api", library.name, "--name", name, "--test_images", str(IMAGES))
        generate(pickle, folder, *flags, "--ram", ram)
    (folder / "program.c").write_text(PROGRAM)
    arenas = [f"-D{name.upper()}_ARENA=shared_arena" for name in NAMES]
    return [*arenas, "-Iportable", "first.c", "second.c", "program.c"]


def expect_both(printed: str) -> None:
    assert printed == f"first {IMAGES}, second {IMAGES}\n"


@pytest.mark.parametrize("ram", ["fast", "least"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
def test_two_networks_share_an_arena(library: Library, ram: str, pickles: dict[str, Path], tmp_path: Path) -> None:
    files = both(pickles, tmp_path, "host", library, ram)
    checked = ("-O0", "-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DARM_MATH_DSP")
    done = run(tool("gcc"), *checked, *STRICT, *files, "-x", "c", "-w", "portable/arm_nnfunctions.c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expect_both(run("./a.out", cwd=tmp_path).stdout)


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
def test_a_board_runs_two_networks(library: Library, pickles: dict[str, Path], tmp_path: Path) -> None:
    files = both(pickles, tmp_path, "mps2", library)
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O2", "-T", "mps2.ld", "-Wl,--defsym=memory=4M", "-nostartfiles"]
    others = ["--specs=nano.specs", "startup.c", "portable/arm_nnfunctions.c"]
    done = run(tool("arm-none-eabi-gcc"), *flags, *STRICT[:2], "-Werror", *files, *others, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    board = ["-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none", "-semihosting"]
    expect_both(run(tool("qemu-system-arm"), *board, "-kernel", "a.out", cwd=tmp_path).stdout)


@pytest.mark.parametrize("target", ["host", "mps2"])
def test_a_named_network_has_its_own_program(target: str, pickles: dict[str, Path], tmp_path: Path) -> None:
    folder = generate(pickles["first"], tmp_path, "--target", target, "--name", "kws", "--profile")
    assert "PASS" in make(folder, "run")
    names = {path.name for path in folder.iterdir() if path.suffix in (".c", ".h", ".cpp")} - {"startup.c"}
    names -= {path.name for path in (ROOT / "templates" / "ops").iterdir()}
    assert names == {"kws.c", "kws.h", "kws_parameter.h", "kws_weights.h", "kws_test_images.h", "main.cpp"}
    for header in ("kws.h", "kws_parameter.h", "kws_weights.h", "kws_test_images.h"):
        assert all(name.startswith("KWS_") for name in re.findall(r"#define (\w+)", (folder / header).read_text()))
    symbols = run(tool("nm"), "-g", "--defined-only", folder / "kws.o").stdout if target == "host" else "T kws_run"
    assert all(line.split()[-1].startswith("kws_") for line in symbols.splitlines())


@pytest.mark.parametrize("name", ["KWS", "1st", "a-b", "a b", "main", "string", "convolution_q7"])
def test_names_that_cannot_be(name: str, pickles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_gen.main(["--model", str(pickles["first"]), "--name", name]) == 2
    reason = "is the name of another file" if name in projects.TAKEN_NAMES else "is not a lower-case C identifier"
    assert capsys.readouterr().err == f"code_gen: --name '{name}' {reason}\n"


@pytest.mark.parametrize("ram", ["fast", "least"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=str)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_network_is_c(compiler: str, library: Library, ram: str, pickles: dict[str, Path], tmp_path: Path) -> None:
    generate(pickles["first"], tmp_path, "--api", library.name, "--name", "kws", "--ram", ram)
    portable = PORTABLE if library.name == "q7" else PORTABLE_S8
    for standard in ("c99", "c17", "c++98", "c++17"):
        language = ["-x", "c++" if "+" in standard else "c", f"-std={standard}", *STRICT]
        flags = ["-mcpu=cortex-m4", "-mthumb", "-O2", "-isystem", str(portable), *language, "-fsyntax-only"]
        done = run(*arm_compilers()[compiler], *flags, "kws.c", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def run_nn(folder: Path, *flags: str) -> str:
    """The instructions of run_nn in the built main.cpp of a folder."""
    options = ["-mcpu=cortex-m4", "-mthumb", "-DNN_NO_MAIN", "-Iportable", *flags, "-c", "main.cpp"]
    done = run(tool("arm-none-eabi-g++"), *options, "-o", "n.o", cwd=folder)
    assert done.returncode == 0, done.stderr
    listing = run(tool("arm-none-eabi-objdump"), "-d", "--no-show-raw-insn", "n.o", cwd=folder).stdout
    return listing[listing.index("<run_nn>:") :].split("\n\n")[0].split(":", 1)[1]


@pytest.mark.parametrize("optimise", ["-Os", "-O2"])
@pytest.mark.parametrize("ram", ["fast", "least"])
def test_nothing_is_left_of_an_observer_that_is_not_there(
    ram: str, optimise: str, pickles: dict[str, Path], tmp_path: Path
) -> None:
    folder = generate(pickles["first"], tmp_path, "--target", "mps2", "--ram", ram)
    built = run_nn(folder, optimise)
    text = (folder / "main.cpp").read_text()
    bare, count = re.subn(r"^ *tell\(.*\);\n", "", text, flags=re.M)
    assert count > 9
    (folder / "main.cpp").write_text(bare.replace("INLINE void tell", "INLINE __attribute__((unused)) void tell"))
    assert built == run_nn(folder, optimise)


WHERE = {"WEIGHTS": ".qspi", "ARENA": ".bss.dtcm"}


def test_data_goes_where_it_is_told_to(pickles: dict[str, Path], tmp_path: Path) -> None:
    folder = generate(pickles["first"], tmp_path, "--target", "mps2", "--name", "kws")
    places = [f'-DKWS_{what}_SECTION=__attribute__((section("{name}")))' for what, name in WHERE.items()]
    options = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-Iportable", *STRICT, *places, "-c", "kws.c", "-o", "kws.o"]
    done = run(tool("arm-none-eabi-gcc"), *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = sections(folder / "kws.o")
    arena = re.search(r"KWS_ARENA_BYTES (\d+)", (folder / "kws.h").read_text())
    assert arena
    assert found[".bss.dtcm"] == int(arena.group(1))
    assert found[".qspi"] >= 855
    assert found.get(".bss", 0) == found.get(".data", 0) == 0


def test_a_kernel_that_refuses_is_named(pickles: dict[str, Path], tmp_path: Path) -> None:
    """s8 kernels say so where an argument is wrong; the layers after them are not run."""
    folder = generate(pickles["first"], tmp_path, "--target", "host", "--api", "s8")
    kernels = folder / "portable" / "arm_nnfunctions.c"
    call = "return pool(ctx, pool_params, input_dims, input_data, filter_dims, output_dims, 0, output_data);"
    assert call in kernels.read_text()
    refused = call.replace("return ", "") + " return ARM_CMSIS_NN_ARG_ERROR;"
    kernels.write_text(kernels.read_text().replace(call, refused))
    done = made(folder, "run")
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("a kernel refused its arguments")
    assert lines[1].startswith("FAIL: layer pool1 is the first that differs")


def test_an_m55_boards_memory_is_known_before(pickles: dict[str, Path], tmp_path: Path, lenet_pickle: Path) -> None:
    """512 KB of code memory do not hold LeNet with 100 images."""
    command = ["--model", str(lenet_pickle), "--target", "mps2", "--core", "mve", "--out_dir", str(tmp_path)]
    assert code_gen.main([*command, "--test_images", "100"]) == 2
    assert not [*tmp_path.iterdir()]
    assert code_gen.main([*command, "--test_images", "80"]) == 0
    make(tmp_path)


def test_additions_take_the_faster_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arm's only on cores with MVE."""
    branches = (
        OTHER
        + """
layer { name: "conv2" type: "Convolution" bottom: "data" top: "conv2"
  convolution_param { num_output: 4 kernel_size: 5 } }
layer { name: "sum" type: "Eltwise" bottom: "conv1" bottom: "conv2" top: "sum" }
layer { name: "ip2" type: "InnerProduct" bottom: "sum" top: "ip2" inner_product_param { num_output: 6 } }
"""
    )
    layers = branches.replace('layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1"', "#")
    for core in Core:
        pickle = small.save(small.quantized(tmp_path, Target(core, library=S8), layers), tmp_path / "sum.pkl")
        main = (generate(pickle, tmp_path / "code", "--target", "mps2") / "main.cpp").read_text()
        assert ("arm_elementwise_add_s8(" in main) == (core is Core.MVE)
        assert ("add_q7(sum_out_operands" in main) == (core is not Core.MVE)
        assert "PASS" in make(tmp_path / "code", "run")
    capsys.readouterr()
