# SPDX-License-Identifier: Apache-2.0
"""Our own q7 kernels against vectors of Arm's: on this computer and on emulated cores, by several compilers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import code_gen
from caffe_to_cmsis_nn.emit.c_text import c_statement
from caffe_to_cmsis_nn.kernels.base import Bounds, consider
from caffe_to_cmsis_nn.kernels.call import CNames
from caffe_to_cmsis_nn.network.quantized import IntegerLayer
from caffe_to_cmsis_nn.ops.activations import ReLU, Sigmoid, TanH
from caffe_to_cmsis_nn.ops.convolution import Convolution
from caffe_to_cmsis_nn.ops.inner_product import InnerProduct
from caffe_to_cmsis_nn.ops.pooling import MaxPooling
from caffe_to_cmsis_nn.ops.softmax import PowersSoftmax
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.target import OWN, S8, Core, Rounding, Target
from tests import small
from tests.generated import STRICT, arm_compilers, predicted
from tests.support import FULL_SIZE, ROOT, run, tool
from tests.test_device import Vector, _refused, _target, modelled, vectors  # noqa: F401 (a fixture)

OPS, MPS2 = ROOT / "templates" / "ops", ROOT / "templates" / "mps2"
ALL: list[Any] = [
    Convolution.kernels,
    InnerProduct.kernels,
    MaxPooling.kernels,
    ReLU.kernels,
]
ALL += [Sigmoid.kernels, TanH.kernels, PowersSoftmax.kernels]
HEADERS = {kernel.header for kernels in ALL for kernel in kernels if kernel.header}
SOURCES = [OPS / f"{name}.h" for name in ("words_q7", *sorted(HEADERS))]
BUILDS = [
    *(("gcc", core, "-O2") for core in ("cortex-m4", "cortex-m0", "cortex-m3", "cortex-m7")),
    *(("gcc", "cortex-m4", level) for level in ("-O0", "-Og", "-Os")),
    ("clang", "cortex-m4", "-O2"),
]
# Code for Cortex-M0 runs on a Cortex-M3.
MACHINES = {
    "cortex-m0": (Core.PLAIN, "mps2-an385"),
    "cortex-m3": (Core.PLAIN, "mps2-an385"),
    "cortex-m4": (Core.DSP, "mps2-an386"),
    "cortex-m7": (Core.DSP, "mps2-an500"),
}
PROGRAM = """
#include <stdint.h>
#include <stdio.h>
typedef int8_t q7_t;
typedef int16_t q15_t;
typedef int32_t q31_t;
{includes}
static q31_t scratch[1 << 14];
static q7_t out[1 << 16];
static int wrong(const char *name, const q7_t *expected, int size)
{{
    if (memcmp(out, expected, (size_t)size) == 0) {{
        return 0;
    }}
    printf("%s differs\\n", name);
    return 1;
}}
{functions}
int main(void)
{{
    int failed = 0;
{calls}
    printf("{count} compared, %d failed\\n", failed);
    return failed != 0;
}}
"""


def _macros(layer: Any) -> dict[str, int]:
    """What generated code would have in parameter.h."""
    if len(layer.in_shape) == 1:
        return {"IN_DIM": layer.in_shape[0], "OUT_DIM": layer.out_shape[0]}
    pairs = {
        "IN_DIM": layer.in_shape[1:],
        "KER_DIM": layer.window,
        "PAD": layer.pad,
        "STRIDE": layer.stride,
        "OUT_DIM": layer.out_shape[1:],
    }
    sizes = {f"{what}_{axis}": pair[i] for what, pair in pairs.items() for axis, i in (("X", 1), ("Y", 0))}
    return {**sizes, "IN_CH": layer.in_shape[0], "OUT_CH": layer.out_shape[0], "GROUPS": layer.group}


def _array(name: str, values: np.ndarray, kind: str = "q7_t", in_words: bool = False) -> str:
    aligned = "__attribute__((aligned(4))) " if in_words else ""
    return f"    {aligned}static const {kind} {name}[] = {{{', '.join(map(str, values.ravel().tolist()))}}};"


def _narrow(vector: Vector, core: Core) -> Vector:
    """The call with weights of 4 bits; Arm's kernel, as the device model has it, says what it would give."""
    arrays = {name: values >> 4 if "weights" in name else values for name, values in vector.arrays.items()}
    args = {**vector.args, "out_shift": max(vector.args["out_shift"] - 4, 0)}
    narrow = replace(vector, arrays=arrays, args=args)
    return replace(narrow, outputs={core: modelled(narrow, core)})


def _function(number: int, vector: Vector, core: Core, bits: int) -> str | None:
    """A C function that computes a vector with our kernel, and compares; None where we have no such kernel."""
    kernels = next(kernels for kernels in ALL if vector.kernel in kernels)
    target = Target(core, _target(vector, core).rounding, OWN)
    kernel: Any = consider(kernels, vector.layer, target, bits)[0]
    if kernel is None:
        return None
    c = CNames("V", ("in",), "out", "scratch", "wt", "bias", square=False)
    held = IntegerLayer(kernel, vector.integers, Bounds())
    arrays = kernel.arrays(vector.layer, vector.integers, c)
    lines = [_array("in", vector.arrays["input"]), _array("expected", vector.outputs[core])]
    lines += [_array(array.name, array.values, array.type, array.in_words) for array in arrays]
    lines += [f"    {c_statement(statement)}" for statement in kernel.calls(vector.layer, c)]
    lines.append(f'    return wrong("{vector.layer.name}", expected, (int)sizeof expected);')
    macros = {**_macros(vector.layer), **held.defines()}
    defines = [f"#define V_{what} {value}" for what, value in macros.items()]
    undefines = [f"#undef V_{what}" for what in macros]
    return "\n".join([*defines, f"static int case_{number}(void)", "{", *lines, "}", *undefines])


# Instead of a copy of a kernel in each function that calls it: a compiler that does not optimise makes the same code of
# all copies, and takes ten times as long.
SHARED_KERNELS = """#undef INLINE
#define INLINE static inline"""


def _program(
    vectors: list[Vector],  # noqa: F811
    core: Core,
    rounding: Rounding,
    bits: int,
    shared_kernels: bool = False,
) -> tuple[str, int]:
    """With weights of 4 bits, of the kernels that have weights."""
    called = [v for v in vectors if v.truncate == (rounding is Rounding.TRUNCATE) and not _refused(v, core)]
    if bits == 4:
        called = [_narrow(vector, core) for vector in called if "weights" in vector.arrays]
    numbered = ((number, _function(number, vector, core, bits)) for number, vector in enumerate(called))
    functions = [(number, function) for number, function in numbered if function]
    includes = [f'#include "{path}"' for path in SOURCES]
    if rounding is Rounding.TRUNCATE:
        includes.insert(0, "#define ARM_NN_TRUNCATE")
    if shared_kernels:
        includes.insert(-len(SOURCES) + 1, SHARED_KERNELS)
    text = PROGRAM.format(
        includes="\n".join(includes),
        functions="\n".join(function for _, function in functions),
        calls="\n".join(f"    failed += case_{number}();" for number, _ in functions),
        count=len(functions),
    )
    return text, len(functions)


@pytest.mark.parametrize("core", [Core.DSP, Core.PLAIN])
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("bits", [8, 4])
def test_on_this_computer(
    vectors: list[Vector],  # noqa: F811
    bits: int,
    core: Core,
    rounding: Rounding,
    tmp_path: Path,
) -> None:
    text, count = _program(vectors, core, rounding, bits, shared_kernels=True)
    assert count >= {8: 200, 4: 100}[bits] * (1 if rounding is Rounding.NEAREST else 0.07)
    (tmp_path / "vectors.c").write_text(text)
    flags = ["-DARM_MATH_DSP"] * (core is Core.DSP) + ["-std=gnu99", "-O0", *STRICT]
    built = run(tool("gcc", "cc"), *flags, tmp_path / "vectors.c", "-o", tmp_path / "vectors")
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "vectors")
    assert done.stdout == f"{count} compared, 0 failed\n"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("compiler", "core", "level", "part"),
    [
        *((*build, part) for part, build in enumerate(BUILDS)),
        *(pytest.param(*build, None, marks=pytest.mark.slow) for build in (BUILDS if FULL_SIZE else BUILDS[:1])),
    ],
)
def test_on_cores(
    vectors: list[Vector],  # noqa: F811
    compiler: str,
    core: str,
    level: str,
    part: int | None,
    bits: int,
    tmp_path: Path,
) -> None:
    """Each vector on one of the builds, each second one also with weights of 4 bits.

    Slow tests have all vectors on the first build, with FULL_SIZE=1 on each.
    """
    path, machine = MACHINES[core]
    step = len(BUILDS) * 8 // bits
    chosen = vectors if part is None else vectors[(part + bits) % step :: step]
    text, count = _program(chosen, path, Rounding.NEAREST, bits)
    (tmp_path / "vectors.c").write_text(text)
    build = [*arm_compilers()[compiler], f"-mcpu={core}", "-mthumb", "-std=gnu99", "-ffunction-sections"]
    for source, flags in ((tmp_path / "vectors.c", (level, *STRICT)), (MPS2 / "startup.c", ("-Os",))):
        built = run(*build, *flags, "-c", source, "-o", tmp_path / f"{source.stem}.o")
        assert built.returncode == 0, built.stderr
    link: list[str | Path] = ["-T", MPS2 / "mps2.ld", "-Wl,--defsym=memory=4M", "-nostartfiles", "--specs=nano.specs"]
    objects = [tmp_path / "vectors.o", tmp_path / "startup.o"]
    linked = run(tool("arm-none-eabi-gcc"), f"-mcpu={core}", "-mthumb", *link, *objects, "-o", tmp_path / "vectors.elf")
    assert linked.returncode == 0, linked.stderr
    quiet = ["-nographic", "-monitor", "none", "-serial", "none", "-semihosting"]
    done = run(tool("qemu-system-arm"), "-M", machine, *quiet, "-kernel", tmp_path / "vectors.elf")
    assert done.stdout == f"{count} compared, 0 failed\n", done.stdout


ZEROS = """
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "r" type: "ReLU" bottom: "p" top: "p" }
layer { name: "ip2" type: "InnerProduct" bottom: "p" top: "ip2" inner_product_param { num_output: 6 } }
"""


@pytest.mark.parametrize(
    ("rows", "columns", "window"),
    [([0], [0], (3, 3)), ([3], [0, 1], (3, 3)), ([0, 3], [], (2, 4)), ([], [2, 3], (4, 2)), ([1], [1], (4, 4))],
)
def test_edges_of_zeros_cost_nothing(
    rows: list[int], columns: list[int], window: tuple[int, int], tmp_path: Path
) -> None:
    """First ones as far as they are padded, and last ones; the maximum's ReLU goes into the convolution."""
    quantized = small.quantized(tmp_path, layers=ZEROS, shape=(3, 12, 12))
    integers = quantized.layers[1].integers
    weights = integers.weights.copy()
    weights[:, :, rows] = 0
    weights[..., columns] = 0
    changed = replace(quantized.layers[1], integers=replace(integers, weights=weights))
    quantized = replace(quantized, layers=(quantized.layers[0], changed, *quantized.layers[2:]))
    lowered = lowering.fuse(lowering.retarget(quantized, Target(library=OWN)))
    assert [layer.name for layer in lowered.graph.layers] == ["data", "c", "p", "ip2"]
    assert lowered.layers[1].bounds.low == 0
    assert lowered.graph.layers[1].weight_shapes()[0][2:] == window
    assert lowered.graph.layers[1].out_shape == quantized.graph.layers[1].out_shape
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 12, 12), dtype=np.uint8)
    np.testing.assert_array_equal(predicted(lowered, images), predicted(quantized, images))


def test_s8_networks_are_declined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = small.save(small.quantized(tmp_path, Target(library=S8)), tmp_path / "small.pkl")
    assert code_gen.main(["--model", str(pickle), "--out_dir", str(tmp_path / "code"), "--kernels", "own"]) == 2
    assert "--library own computes what q7 kernels do, and the network is for s8 kernels" in capsys.readouterr().err
    assert not (tmp_path / "code").exists()
