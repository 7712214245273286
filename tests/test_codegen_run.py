# SPDX-License-Identifier: Apache-2.0
"""Generated programs: built without a warning, run on this computer and on emulated boards, compared bit for bit."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import code_gen
from caffe_to_cmsis_nn.caffe_io.prototxt import read_prototxt
from caffe_to_cmsis_nn.data.source import data_source
from caffe_to_cmsis_nn.emit import projects
from caffe_to_cmsis_nn.errors import UserError
from caffe_to_cmsis_nn.network.from_caffe import parse_network
from caffe_to_cmsis_nn.plan import lowering, memory
from caffe_to_cmsis_nn.target import LIBRARIES, Q7, S8, Core, Library, Rounding, Target
from tests import small, standin_library
from tests.generated import (
    PORTABLE,
    PORTABLE_S8,
    STRICT,
    array,
    cross_compile,
    flip_first_value,
    generate,
    macros,
    made,
    make,
    network,
    on_host,
    predicted,
    printed_logits,
    printed_ticks,
    share_kernels,
    stored_images,
)
from tests.networks import TARGETS
from tests.support import FULL_SIZE, prototxt, run, shared, tool

CORES = {"cortex-m3": Core.PLAIN, "cortex-m4": Core.DSP, "cortex-m7": Core.DSP, "cortex-m55": Core.MVE}
EMULATED_IMAGES, HOST_IMAGES = (17, 10_000) if FULL_SIZE else (2, 100)
RAM = ("fast", "least")


@pytest.fixture(scope="module")
def small_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return small.save(small.quantized(folder), folder / "small.pkl")


def need_host_compiler() -> None:
    for names in (("make",), ("cc", "gcc"), ("c++", "g++")):
        tool(*names)


def need_emulator() -> None:
    for name in ("make", "arm-none-eabi-g++", "qemu-system-arm"):
        tool(name)


def checksums(text: str) -> list[str]:
    return re.findall(r"^image \d+: layer \w+: checksum [0-9a-f]{8}$", text, re.M)


def test_the_program_prints_the_checksums_of_a_dump(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of chosen images, each layer of each; and the files hold what the checksums are of."""
    need_host_compiler()
    flags = ("--target", "host", "--images", "17,3", "--dump", str(tmp_path / "dump"))
    folder = generate(small_pickle, tmp_path / "code", *flags)
    expected = checksums(capsys.readouterr().out)
    quantized = network(small_pickle)
    assert len(expected) == 2 * len(quantized.graph.layers)
    assert (tmp_path / "dump" / "checksums.txt").read_text().splitlines() == expected
    assert checksums(make(folder, "run")) == []
    monkeypatch.setenv("CPPFLAGS", "-DNN_PRINT_CHECKSUMS")
    printed = make(folder, "-B", "run")
    assert checksums(printed) == expected
    assert "PASS: every layer as predicted for 2 of 2 images" in printed

    images = stored_images(quantized, small_pickle, 18)[[17, 3]]
    np.testing.assert_array_equal(np.load(tmp_path / "dump" / "pixels.npy"), np.moveaxis(images, 1, -1))
    files = sorted((tmp_path / "dump").glob("[0-9]*.npy"))
    assert [path.stem for path in files][:2] == ["00_data", "01_conv1"]
    outputs = [np.load(path) for path in files]
    rows = [f"{zlib.crc32(output[i].tobytes()):08x}" for i in range(2) for output in outputs]
    assert rows == [line[-8:] for line in expected]
    np.testing.assert_array_equal(outputs[-1], predicted(quantized, images))


def test_the_program_prints_the_classes_names(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in them; a picture's label is not known."""
    need_host_compiler()
    names = ["cat", 'a "dog"', "50% \\n", "ünder", "??/", "frog"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    flags = ["--target", "host", "--classes", str(tmp_path / "names.txt")]
    text = make(generate(small_pickle, tmp_path / "code", *flags, "--test_images", "30"), "run")
    printed = re.findall(r"^image \d+: label (\d) \((.*)\), class (\d) \((.*)\), logits", text, re.M)
    assert len(printed) == 30
    assert len({label for label, *_ in printed}) == len(names)
    for label, name, found, found_name in printed:
        assert (name, found_name) == (names[int(label)], names[int(found)])
    text = make(generate(small_pickle, tmp_path / "red", *flags, "--image", str(tmp_path / "red.png")), "run")
    assert re.search(r"label -1 \(unknown\), class", text)
    (tmp_path / "names.txt").write_text("cat\n")
    capsys.readouterr()
    assert code_gen.main(["--model", str(small_pickle), "--out_dir", str(tmp_path / "no"), *flags]) == 2
    assert "has 1 names, the network has 6 classes" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# --- on this computer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library", "ram"),
    [
        ("lenet_pickle", S8, "least"),
        ("arm_m4_pickle", Q7, "fast"),
        pytest.param("lenet_pickle", Q7, "least", marks=pytest.mark.slow),
        pytest.param("arm_m4_pickle", S8, "fast", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_host_computes_what_the_model_predicts(
    name: str, library: Library, ram: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """For all test images with FULL_SIZE=1."""
    need_host_compiler()
    pickle = request.getfixturevalue(name)
    quantized = lowering.retarget(network(pickle), Target(library=library))
    assert quantized.outcome
    images = stored_images(quantized, pickle, min(quantized.outcome.images, HOST_IMAGES))
    folder = generate(pickle, tmp_path, "--target", "host", "--api", library.name, "--ram", ram)
    assert make(folder, "run", "CFLAGS=-O1").splitlines()[-1].startswith("PASS")
    np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_core_and_rounding(target: Target, tmp_path: Path) -> None:
    need_host_compiler()
    quantized = small.quantized(tmp_path, target)
    pickle = small.save(quantized, tmp_path / "small.pkl")
    images = stored_images(quantized, pickle, small.IMAGES)
    folder = generate(pickle, tmp_path / "code", "--target", "host", "--profile")
    text = make(folder, "run")
    assert "PASS: every layer as predicted for 1 of 1 images" in text
    assert set(printed_ticks(text)) >= {"data", "conv1", "ip2", "all"}
    np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))


@pytest.mark.parametrize(
    ("api", "weight_bits", "kernels", "ram"),
    [
        ("q7", 8, "cmsis", "fast"),
        ("q7", 8, "cmsis", "least"),
        ("q7", 8, "own", "least"),
        ("q7", 4, "own", "fast"),
        ("s8", 8, "cmsis", "least"),
        ("s8", 4, "cmsis", "least"),
    ],
)
def test_sanitizers_find_nothing(api: str, weight_bits: int, kernels: str, ram: str, tmp_path: Path) -> None:
    need_host_compiler()
    quantized = small.quantized(tmp_path, Target(library=LIBRARIES[api]), weight_bits=weight_bits)
    pickle = small.save(quantized, tmp_path / "small.pkl")
    images = stored_images(quantized, pickle, small.IMAGES)
    flags = ["--target", "host", "--test_images", "3", "--profile", "--ram", ram, "--kernels", kernels]
    folder = generate(pickle, tmp_path / "code", *flags)
    share_kernels(folder)
    sanitize = "-O0 -fsanitize=address,undefined -fsanitize-undefined-trap-on-error"
    make(folder, "run", f"CFLAGS={sanitize}", f"CXXFLAGS={sanitize}")
    np.testing.assert_array_equal(on_host(folder, images), predicted(quantized, images))


WATCH_ARENA = """
#include <string.h>
#include <stdio.h>
#define NN_NO_MAIN
#include "main.cpp"
#include "test_images.h"

struct range { int layer, begin, end; };
static const range allowed[] = { RANGES };
static uint8_t before[sizeof(guarded)];

static void watch(void *bad, int layer, const int8_t *, int)
{
    uint8_t *const now = (uint8_t *)&guarded;
    for (const range &r : allowed) {
        if (r.layer == layer) {
            memcpy(before + sizeof(guarded.before) + r.begin, (uint8_t *)arena + r.begin, r.end - r.begin);
        }
    }
    if (memcmp(before, now, sizeof(guarded)) != 0 && *(int *)bad < 0) {
        *(int *)bad = layer;
    }
    memcpy(before, now, sizeof(guarded));
}

int main()
{
    int bad = -1;
    memset(&guarded, 0xa5, sizeof(guarded));
    memcpy(before, &guarded, sizeof(guarded));
    run_nn_observed(test_pixels, watch, &bad);
    printf("%d\\n", bad);
}
"""


@pytest.mark.parametrize("promised_only", [False, True])
@pytest.mark.parametrize("target", [target for target in TARGETS if target.rounding is Rounding.NEAREST], ids=str)
def test_layers_write_their_own_memory_only(target: Target, promised_only: bool, tmp_path: Path) -> None:
    """Canaries around the arena, and every byte in it, change only where the layer that runs may write."""
    compiler = tool("c++", "g++")
    quantized = small.quantized(tmp_path, target)
    pickle = small.save(quantized, tmp_path / "small.pkl")
    quantized = lowering.fuse(quantized)
    flags = ["--no-inplace-pooling"] if promised_only else []
    folder = generate(pickle, tmp_path / "code", "--target", "host", *flags)
    plan = memory.plan(quantized.graph, quantized.layers, quantized.target, promised_only)
    ranges = []
    for index, layer in enumerate(quantized.graph.layers):
        buffers = [plan.outputs[name] for name in (layer.name, *layer.inputs)]  # pooling overwrites its input
        buffers += [plan.scratch[layer.name]] if layer.name in plan.scratch else []
        ranges += [f"{{{index}, {buffer.offset}, {buffer.end}}}" for buffer in buffers]
    main = (folder / "main.cpp").read_text()  # with more than its own guards
    arena = "static int32_t guarded_words["
    assert arena in main
    guarded = "static struct { q31_t before[64], words[NN_ARENA_BYTES / sizeof(q31_t)], after[64]; } guarded;\n"
    words = "#define arena_words (guarded_words + NN_GUARD_WORDS)"
    main = main.replace(words, "#define arena_words guarded.words").replace(arena, guarded + arena)
    main = main.replace("    guard_arena(1);\n", "").replace("    guard_arena(0);\n", "")
    (folder / "main.cpp").write_text(
        main.replace("static void guard_arena", "[[maybe_unused]] static void guard_arena")
    )
    (folder / "watch.cpp").write_text(WATCH_ARENA.replace("RANGES", ", ".join(ranges)))
    make(folder, "arm_nnfunctions.o")
    defines = [f"-D{name}" for name in projects.definitions(target)]
    command = [compiler, *defines, "-Iportable", *STRICT, "watch.cpp", "arm_nnfunctions.o", "-o", "watch"]
    built = run(*command, cwd=folder)
    assert built.returncode == 0, built.stderr
    assert run("./watch", cwd=folder).stdout == "-1\n"


def test_host_program_names_the_layer_that_differs(small_pickle: Path, tmp_path: Path) -> None:
    need_host_compiler()
    folder = generate(small_pickle, tmp_path, "--target", "host", "--test_images", "2")
    flip_first_value(folder / "weights.h", "TALL_WT")
    done = made(folder, "run")
    assert done.returncode != 0
    assert done.stdout.count("FAIL: layer tall is the first that differs") == 2
    assert "PASS" not in done.stdout


# --- on emulated boards -----------------------------------------------------------------------------------------------


# Each core with each kind of kernels; plans in turn. The slow ones have LeNet, whose many weights take long to compile.
BOARDS = [
    (core, kernels, RAM[(i // 2 + k // 2) % 2], "arm_m4_pickle" if (i + k) % 2 else "lenet_pickle")
    for i, core in enumerate(CORES)
    for k, kernels in enumerate(("q7", "s8", "own"))
]


@pytest.mark.parametrize(
    ("core", "kernels", "ram", "name"),
    [one if one[3] == "arm_m4_pickle" else pytest.param(*one, marks=pytest.mark.slow) for one in BOARDS],
)
def test_boards_compute_what_the_model_predicts(
    name: str, core: str, kernels: str, ram: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    need_emulator()
    library = S8 if kernels == "s8" else Q7
    count = EMULATED_IMAGES  # few: the Cortex-M55's 512 KB of code memory hold LeNet and 80 images
    quantized = small.retarget(network(request.getfixturevalue(name)), Target(CORES[core], library=library))
    pickle = small.save(quantized, tmp_path / "network.pkl")
    images = stored_images(quantized, request.getfixturevalue(name), count)
    flags = ["--test_images", str(count), "--ram", ram, "--kernels", "own" if kernels == "own" else "cmsis"]
    folder = generate(pickle, tmp_path / "code", "--target", "mps2", *flags)
    text = make(folder, "run", f"CORE={core}")
    assert f"PASS: every layer as predicted for {count} of {count} images" in text
    np.testing.assert_array_equal(printed_logits(text), predicted(quantized, images))


BUILT = [("cortex-m4", "-O3"), ("cortex-m3", "-Os"), ("cortex-m55", "-Os")]  # the others are slow


@pytest.mark.parametrize(
    ("core", "level"),
    [
        pytest.param(core, level, marks=[] if (core, level) in BUILT else [pytest.mark.slow])
        for core in CORES
        for level in ("-O3", "-Os")
    ],
)
def test_boards_compute_the_same_however_they_are_built(core: str, level: str, tmp_path: Path) -> None:
    """With our own kernels, of which the compiler makes other code on each level."""
    need_emulator()
    quantized = small.quantized(tmp_path, Target(CORES[core]))
    flags = ("--target", "mps2", "--kernels", "own", "--ram", "least" if level == "-Os" else "fast")
    folder = generate(small.save(quantized, tmp_path / "small.pkl"), tmp_path / "code", *flags)
    assert "PASS: every layer as predicted" in make(folder, "run", f"CORE={core}", f"OPTIMIZE={level}")


@pytest.mark.parametrize(
    ("library", "kernels", "core", "ram"),
    [
        pytest.param(library, kernels, core, RAM[(i + k + 1) % 2], marks=[] if (i + k) % 2 else [pytest.mark.slow])
        for i, core in enumerate(CORES)
        for k, (library, kernels) in enumerate(((S8, "cmsis"), (Q7, "own")))
    ],
    ids=str,
)
def test_boards_compute_with_weights_of_4_bits(
    library: Library, kernels: str, core: str, ram: str, tmp_path: Path
) -> None:
    """Beside Arm's q7 kernels, our own take such weights."""
    need_emulator()
    quantized = small.quantized(tmp_path, Target(CORES[core], library=library), weight_bits=4)
    pickle = small.save(quantized, tmp_path / "small.pkl")
    flags = ("--target", "mps2", "--test_images", str(small.IMAGES), "--ram", ram, "--kernels", kernels)
    text = make(generate(pickle, tmp_path / "code", *flags), "run", f"CORE={core}")
    assert f"PASS: every layer as predicted for {small.IMAGES} of {small.IMAGES} images" in text
    images = stored_images(quantized, pickle, small.IMAGES)
    np.testing.assert_array_equal(printed_logits(text), predicted(quantized, images))


@pytest.mark.parametrize(("core", "library"), [("cortex-m3", Q7), ("cortex-m55", S8)], ids=str)
def test_boards_compute_leaky_relus(core: str, library: Library, tmp_path: Path) -> None:
    """Beside test_codegen_random, which runs them on this computer."""
    need_emulator()
    leaky = small.LAYERS.replace('type: "ReLU"', 'type: "ReLU" relu_param { negative_slope: 0.3 }')
    quantized = small.quantized(tmp_path, Target(CORES[core], library=library), leaky)
    folder = generate(small.save(quantized, tmp_path / "leaky.pkl"), tmp_path / "code", "--target", "mps2")
    assert macros(folder / "weights.h").keys() >= {"RELU_1_TABLE", "RELU2_TABLE"}
    assert "PASS: every layer as predicted" in make(folder, "run", f"CORE={core}")


@pytest.mark.parametrize("target", [Target(core, library=lib) for core, lib in zip(Core, (Q7, S8, S8))], ids=str)
def test_boards_default_core_follows_the_network(target: Target, tmp_path: Path) -> None:
    need_emulator()
    pickle = small.save(small.quantized(tmp_path, target), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "mps2")
    assert "PASS" in make(folder, "run")
    assert (folder / f"build-{projects.BOARDS[target.core]}").is_dir()


def test_board_names_the_layer_that_differs(arm_m4_pickle: Path, tmp_path: Path) -> None:
    need_emulator()
    folder = generate(arm_m4_pickle, tmp_path, "--target", "mps2")
    flip_first_value(folder / "weights.h", "CONV2_WT")
    done = made(folder, "run")
    assert done.returncode != 0
    assert "FAIL: layer conv2 is the first that differs" in done.stdout
    assert "PASS" not in done.stdout


@pytest.mark.parametrize("core", [core for core in CORES if CORES[core] is not Core.MVE])
def test_boards_trap_unaligned_access(core: str, tmp_path: Path) -> None:
    """So all programs that pass on them are free of it."""
    need_emulator()
    pickle = small.save(small.quantized(tmp_path, Target(CORES[core])), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "mps2")
    for offset, printed in ((0, "PASS"), (1, "FAULT: unaligned access at 0x")):
        main = (folder / "main.cpp").read_text()
        before, after = main.split("int main(void)\n{\n")
        access = f"volatile uintptr_t at = (uintptr_t)arena_words + {offset};\n*(volatile uint32_t *)at = 0;\n"
        (folder / "main.cpp").write_text(f"{before}int main()\n{{\n{access}{after}")
        done = made(folder, "run", f"CORE={core}")
        assert printed in done.stdout
        assert (done.returncode == 0) == (offset == 0)
        (folder / "main.cpp").write_text(main)


def test_a_board_of_the_other_core_is_refused(small_pickle: Path, tmp_path: Path) -> None:
    need_emulator()
    folder = generate(small_pickle, tmp_path, "--target", "mps2")
    done = made(folder, "CORE=cortex-m3")
    assert done.returncode != 0
    assert "code_gen.py --core plain" in done.stderr


def test_profile_counts_instructions_and_kernels_take_nearly_all(arm_m4_pickle: Path, tmp_path: Path) -> None:
    need_emulator()
    folder = generate(arm_m4_pickle, tmp_path, "--target", "mps2", "--profile")
    times = printed_ticks(make(folder, "run"))
    assert times == printed_ticks(make(folder, "run"))
    total, reading = times.pop("all"), times.pop("data")
    assert sum(times.values()) + reading <= total
    assert total - sum(times.values()) <= total / 100


def test_each_library_has_objects_of_its_own(small_pickle: Path, tmp_path: Path) -> None:
    need_emulator()
    folder = generate(small_pickle, tmp_path / "code", "--target", "mps2")
    for name in ("a", "b"):
        standin_library.write(tmp_path / name, "CMSIS 5.9.0")
        assert "PASS" in make(folder, "run", f"CMSIS_PATH={tmp_path / name}", "OPTIMIZE=-O0")
    assert len([*folder.glob("build-*")]) == 2
    done = made(folder, f"CMSIS_PATH={tmp_path / 'nowhere'}")
    assert (done.returncode, "there are no kernels in" in done.stderr) == (2, True)


# --- for boards that are not here -------------------------------------------------------------------------------------

STUBS = {
    "mbed": {
        "mbed.h": "namespace mbed { class Timer {}; }\nusing namespace mbed;\n",
        "hal/us_ticker_api.h": """#include <stdint.h>
extern "C" { struct ticker_data_t; const ticker_data_t *get_us_ticker_data(void);
uint32_t ticker_read(const ticker_data_t *); }
""",
    },
    "keil": {
        "RTE_Components.h": '#define CMSIS_device_header "device.h"\n',
        "device.h": """#include <stdint.h>
#define __CORTEX_M 7
#define DWT_CTRL_CYCCNTENA_Msk 1u
#define CoreDebug_DEMCR_TRCENA_Msk (1u << 24)
struct DWT_Type { volatile uint32_t CTRL, CYCCNT, LAR; };
struct CoreDebug_Type { volatile uint32_t DEMCR; };
#define DWT ((DWT_Type *)0xE0001000u)
#define CoreDebug ((CoreDebug_Type *)0xE000EDF0u)
""",
    },
}


def write_stubs(folder: Path, board: str) -> Path:
    for name, text in STUBS[board].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("standard", ["c++98", "c++17"])
@pytest.mark.parametrize(
    ("flags", "board", "library"),
    [
        ([], "mbed", Q7),
        (["--profile"], "keil", Q7),
        (["--test_images", "0"], "keil", S8),
        (["--test_images", "0", "--profile"], "mbed", S8),
        (["--ram", "least", "--profile"], "mbed", Q7),
    ],
    ids=str,
)
def test_board_code_compiles(
    board: str, library: Library, flags: list[str], standard: str, small_pickle: Path, tmp_path: Path
) -> None:
    folder = generate(small_pickle, tmp_path / "code", "--target", board, "--api", library.name, *flags)
    includes: list[str | Path] = [
        "-I",
        write_stubs(tmp_path / "stubs", board),
        "-I",
        PORTABLE if library is Q7 else PORTABLE_S8,
    ]
    flags = ["-mcpu=cortex-m7", f"-std={standard}", *STRICT]
    for source in [folder / "main.cpp", *folder.glob("*.c")]:
        cross_compile(source, tmp_path / "object.o", *flags, *includes)


# What tells the releases of CMSIS-NN apart: the guards of their headers.
RELEASES = {
    "7": "#define ARM_NNFUNCTIONS_H\n",
    "5": "#define ARM_NN_MATH_TYPES_H\n",
    "4.1": "#define ARM_NN_MATH_TYPES_H\n",
    "4": "#define CH_IN_BLOCK_MVE (124)\n",
    "CMSIS 5.9.0": "",
}


@pytest.mark.parametrize(("layers", "weight_bits", "oldest"), [("", 8, 4), ("group: 2", 8, 6), ("", 4, 5)])
@pytest.mark.parametrize("release", RELEASES)
def test_releases_that_do_not_fit_are_refused(
    release: str, layers: str, weight_bits: int, oldest: int, tmp_path: Path
) -> None:
    changed = small.LAYERS.replace("kernel_size: 2 }", f"kernel_size: 2 {layers} }}")
    quantized = small.quantized(tmp_path, Target(library=S8), changed, weight_bits=weight_bits)
    pickle = small.save(quantized, tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "mps2", "--test_images", "0")
    for header in ("arm_nnfunctions.h", "arm_nnsupportfunctions.h"):
        (folder / header).write_text(f'#include "portable/{header}"\n#undef ARM_NNFUNCTIONS_H\n{RELEASES[release]}')
    if release < "5":
        declared = (folder / "portable" / "arm_nnfunctions.h").read_text()
        (folder / "portable" / "arm_nnfunctions.h").write_text(standin_library.without_s4(declared))
    compiler = [tool("arm-none-eabi-g++"), "-mcpu=cortex-m4", "-mthumb", "-fsyntax-only"]
    done = run(*compiler, folder / "main.cpp")
    s8 = not release.startswith("CMSIS")
    assert (done.returncode == 0) == (s8 and float(release) >= oldest), done.stderr
    if release == "4.1" and weight_bits == 4:  # its headers' macros are those of version 5
        assert "weights_of_4_bits_need_cmsis_nn_5" in done.stderr
    elif done.returncode:
        assert (f"computes from version {oldest} on" if s8 else "code_gen.py --library q7") in done.stderr


def test_q7_code_says_where_its_kernels_are_gone(small_pickle: Path, tmp_path: Path) -> None:
    folder = generate(small_pickle, tmp_path / "code", "--target", "mps2", "--test_images", "0")
    (folder / "arm_nnfunctions.h").write_text("#define ARM_NNFUNCTIONS_H\n")
    compiler = [tool("arm-none-eabi-g++"), "-mcpu=cortex-m4", "-mthumb", "-fsyntax-only"]
    done = run(*compiler, "-I", folder / "portable", folder / "main.cpp")
    assert done.returncode != 0
    assert "or generate this code with code_gen.py --library s8" in done.stderr


DSP, MVE, TRUNCATE = "-DARM_MATH_DSP", "-DARM_MATH_MVEI", "-DARM_NN_TRUNCATE"
# What the code is generated for, what the preprocessor is told, and what it says then: nothing where it fits.
GUARDS = [
    (Target(Core.DSP), [DSP], ""),
    (Target(Core.DSP), [], "ARM_MATH_DSP is not defined: define it for Cortex-M4, M7 or M33, else generate with "),
    (Target(Core.DSP), [DSP, MVE], "ARM_MATH_MVEI is defined, but this code is for Cortex-M4, M7 or M33: generate it "),
    (Target(Core.PLAIN), [], ""),
    (Target(Core.PLAIN), [DSP], "ARM_MATH_DSP is defined, but this code is for cores without it: generate it with "),
    (Target(Core.MVE), [DSP, MVE], ""),
    (Target(Core.DSP), [DSP, TRUNCATE], "ARM_NN_TRUNCATE is defined: do without it, or quantize with nn_quantizer.py "),
    (
        Target(Core.DSP, Rounding.TRUNCATE),
        [DSP],
        "ARM_NN_TRUNCATE is not defined: define it for all files, or quantize",
    ),
    (Target(Core.DSP, Rounding.TRUNCATE), [DSP, TRUNCATE], ""),
    (Target(Core.DSP, library=S8), [DSP], ""),
    (
        Target(Core.DSP, library=S8),
        [],
        "ARM_MATH_DSP is not defined: define it for Cortex-M4, M7 or M33, else generate ",
    ),
    (Target(Core.DSP, library=S8), [DSP, MVE], "ARM_MATH_MVEI is defined, but this code is for Cortex-M4, M7 or M33"),
    (Target(Core.PLAIN, library=S8), [], ""),
    (
        Target(Core.PLAIN, library=S8),
        [DSP],
        "ARM_MATH_DSP is defined, but this code is for cores without it: generate ",
    ),
    (Target(Core.MVE, library=S8), [DSP], "ARM_MATH_MVEI is not defined: build for a core with MVE, or generate with "),
    (Target(Core.MVE, library=S8), [DSP, MVE], ""),
]


@pytest.mark.parametrize(("target", "told", "error"), GUARDS)
def test_the_build_says_where_core_or_rounding_do_not_fit(
    target: Target, told: list[str], error: str, small_pickle: Path, tmp_path: Path
) -> None:
    pickle = small.save(small.retarget(network(small_pickle), target), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "host", "--test_images", "0")
    done = run(tool("g++"), "-fsyntax-only", *told, "-I", folder / "portable", folder / "main.cpp")
    errors = re.findall(r"error: #error \"(.*)\"", done.stderr)
    assert [text[: len(error)] for text in errors] == ([error] if error else [])
    assert (done.returncode == 0) == (not error)
    assert all(re.search(r"(code_gen|nn_quantizer)\.py --(core|rounding) \w", text) for text in errors)


def test_keil_profile_needs_a_cycle_counter(tmp_path: Path) -> None:
    pickle = small.save(small.quantized(tmp_path, Target(Core.PLAIN)), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "keil", "--profile")
    stubs = write_stubs(tmp_path / "stubs", "keil")
    (stubs / "device.h").write_text("#include <stdint.h>\n#define __CORTEX_M 0\n")
    flags = ["-mcpu=cortex-m0", "-mthumb", "-o", str(tmp_path / "main.o")]
    done = run(tool("arm-none-eabi-g++"), *flags, "-I", stubs, "-I", PORTABLE, "-c", folder / "main.cpp")
    assert done.returncode != 0
    assert "needs the cycle counter" in done.stderr


# --- test images ------------------------------------------------------------------------------------------------------


def test_number_of_test_images(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (generate(small_pickle, tmp_path / "0", "--test_images", "0") / "test_images.h").exists()
    assert macros(generate(small_pickle, tmp_path / "1") / "test_images.h")["TEST_IMAGES"] == "1"
    assert macros(generate(small_pickle, tmp_path / "3", "--test_images", "3") / "test_images.h")["TEST_IMAGES"] == "3"
    command = ["--model", str(small_pickle), "--out_dir", str(tmp_path / "x"), "--test_images"]
    for count, message in (
        (str(small.IMAGES + 1), "holds 40 images, fewer than the requested 41"),
        ("-1", "must be 0 or more"),
    ):
        capsys.readouterr()
        assert code_gen.main([*command, count]) == 2
        assert message in capsys.readouterr().err


def test_missing_dataset(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = small.save(replace(network(small_pickle), dataset="nowhere_lmdb"), tmp_path / "small.pkl")
    folder = generate(pickle, tmp_path / "code")
    captured = capsys.readouterr()
    assert captured.err.startswith("code_gen: no known-answer test: the test LMDB 'nowhere_lmdb' does not exist")
    assert len(captured.err.splitlines()) == 1
    assert not (folder / "test_images.h").exists()
    assert code_gen.main(["--model", str(pickle), "--out_dir", str(tmp_path / "x"), "--test_images", "1"]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_picture(order: str, small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_host_compiler()
    pixels = np.random.default_rng(3).integers(0, 256, small.SHAPE, dtype=np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    flags = ["--image", str(tmp_path / "exact.png"), "--channel_order", order]
    folder = generate(small_pickle, tmp_path / "code", "--target", "host", *flags)
    header = (folder / "test_images.h").read_text()
    expected = pixels[..., ::-1] if order == "bgr" else pixels
    values = re.search(r"test_pixels\[.*\] = (\{[^}]*\})", header)
    assert values
    np.testing.assert_array_equal(array(values.group(1).replace("\\\n", " ")), expected.ravel())
    assert f"resized to 9x9, channels {order}" in capsys.readouterr().out
    assert "image 0: label -1, class" in make(folder, "run")


def test_picture_of_another_shape_is_cut_about_its_centre(small_pickle: Path, tmp_path: Path) -> None:
    wide = np.zeros((18, 54, 3), np.uint8)
    wide[:, 14:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    folder = generate(small_pickle, tmp_path / "code", "--image", str(tmp_path / "wide.png"))
    values = re.search(r"test_pixels\[.*\] = (\{[^}]*\})", (folder / "test_images.h").read_text())
    assert values
    assert set(array(values.group(1).replace("\\\n", " "))) == {200}


def test_bad_pictures(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("text.png", "text.png' is truncated, damaged"), ("missing.png", "cannot read the picture")):
        command = ["--model", str(small_pickle), "--out_dir", str(tmp_path / "x"), "--image", str(tmp_path / name)]
        assert code_gen.main(command) == 2
        assert message in capsys.readouterr().err


# --- limits -----------------------------------------------------------------------------------------------------------

LARGE = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 20 stride: 20 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 6 } }
"""


def test_sizes_beyond_16_bits_take_several_calls(tmp_path: Path) -> None:
    need_host_compiler()
    quantized = small.quantized(tmp_path, layers=LARGE, top="ip1", shape=(3, 200, 200))
    pickle = small.save(quantized, tmp_path / "large.pkl")
    folder = generate(pickle, tmp_path / "code", "--target", "host")
    assert "PASS" in make(folder, "run")
    text = (folder / "main.cpp").read_text()
    values = {name: int(value.removesuffix("u"), 0) for name, value in macros(folder / "parameter.h").items()}
    sizes = []
    for call in re.findall(r"\b(arm_\w+\([^;]*\));", text):
        for argument in call[call.index("(") + 1 : -1].split(","):
            factors = [values.get(factor.strip(), factor.strip()) for factor in argument.split("*")]
            if all(str(factor).isdigit() for factor in factors):
                sizes.append(int(np.prod([int(factor) for factor in factors])))
    assert len(re.findall(r"arm_relu_q7\(", text)) == 2
    assert max(sizes) == 65535


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (
            'layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 2'
            " kernel_size: 1 } }",
            (1, 2, 32768),
            "at most 32767",
        ),
        (
            'layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 2'
            " kernel_size: 1 stride: 32768 } }",
            (1, 2, 2),
            "at most 32767",
        ),
        (
            'layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 2 } }',
            (1, 256, 256),
            "at most 65535 inputs",
        ),
    ],
)
def test_sizes_beyond_an_index_are_declined(
    layers: str, shape: tuple[int, int, int], message: str, tmp_path: Path
) -> None:
    definition = read_prototxt(prototxt(tmp_path, layers, "a"))
    with pytest.raises(UserError, match=message):
        parse_network(definition, "accuracy", data_source(definition), shape)


# --- Arm's own files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code from Arm's own pickle and quantized weights."""
    folder = tmp_path_factory.mktemp("published")
    mean = shared("data", "cifar10", "mean.binaryproto")
    flags = ["--mean", str(mean), "--target", "host", "--test_images", "0"]
    return generate(shared("data", "arm_m4", "cifar10_m4.pkl"), folder, *flags)


def test_weights_are_the_published_ones(published: Path) -> None:
    ours = macros(published / "weights.h")
    with np.load(shared("data", "arm_m4", "published_weights.npz")) as theirs:
        assert set(theirs) == {name for name in ours if ours[name].startswith("{")}
        for name in set(theirs) - {"MEAN_DATA"}:
            np.testing.assert_array_equal(array(ours[name]), theirs[name], err_msg=name)


def test_parameters_are_the_published_ones(published: Path) -> None:
    ours = macros(published / "parameter.h")
    theirs = json.loads(shared("data", "arm_m4", "published_parameters.json").read_text())
    assert {name: int(ours[name]) for name in theirs} == theirs
