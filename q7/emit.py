# SPDX-License-Identifier: Apache-2.0
"""Writes a network as C++: weights.h, parameter.h, test_images.h and main.cpp, from the templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import q7
from q7 import files
from q7.errors import Q7Error
from q7.kernel import Array, CNames, consider
from q7.known_answers import KnownAnswers
from q7.memory import MemoryPlan
from q7.qformat import Api, Core, Rounding, Target
from q7.record import QuantizedNetwork
from q7.summary import columns

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
TARGETS = ("mbed", "keil", "mps2", "host")
PORTABLE = ("mps2", "host")  # where our portable kernels come along
KERNELS = {Api.Q7: "portable", Api.S8: "portable_s8"}  # their folders
BOARDS = {Core.DSP: "cortex-m4", Core.PLAIN: "cortex-m3", Core.MVE: "cortex-m55"}  # that mps2 code is run on
LINE = 112  # characters of a generated line, indentation aside


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """A C identifier for each layer name, lower case and unique also in upper case; the first name is the input's.

    Macros are the identifier in upper case and a suffix, arrays the identifier and a suffix, so that no keyword or
    other name can be met.
    """
    taken: dict[str, str] = {}
    for i, name in enumerate(names):
        base = "data" if i == 0 else re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "layer"
        base = f"layer_{base}" if base[0].isdigit() else base
        identifier, number = base, 2
        while identifier in taken.values():
            identifier, number = f"{base}_{number}", number + 1
        taken[name] = identifier
    return taken


def _lines(items: Iterable[str], width: int) -> list[str]:
    """Items with commas between them, as many on a line as fit."""
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) >= width:
            lines.append("")
        lines[-1] += f"{item}, "
    return [line.rstrip() for line in lines[:-1]] + [lines[-1].rstrip(", ")]


def c_array(values: np.ndarray) -> str:
    """A brace initializer, broken into continued lines of a macro; uint32 values are hexadecimal."""
    number = "0x{:08x}u" if values.dtype == np.uint32 else "{}"
    lines = _lines(map(number.format, values.ravel().tolist()), LINE)
    return "{ \\\n" + " \\\n".join(f"    {line}" for line in lines) + " \\\n}"


def c_statement(call: str) -> str:
    """A call, or an initializer, broken at its commas outside inner braces, aligned behind the opening bracket."""
    start = min(call.index(bracket) for bracket in "({" if bracket in call) + 1
    arguments = re.split(r", (?![^{]*})", call[start:-1])
    return call[:start] + ("\n" + " " * (4 + start)).join(_lines(arguments, LINE - start + 1)) + call[-1]


def comment(text: str) -> str:
    """Text that cannot end or continue a comment: other than printable ASCII becomes '?', and so does a backslash.

    Spaces come between * and /, and into the trigraph that stands for a backslash.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text.replace("\\", "?").replace("*/", "* ?").replace("/*", "? *").replace("??/", "?? /")


@dataclass(frozen=True)
class Options:
    """What code_gen.py was asked for."""

    target: str = TARGETS[0]
    profile: bool = False
    weights_in_ram: bool = False  # weights and biases, but not the mean, which each pixel meets once


@dataclass(frozen=True)
class Step:
    """One layer in the generated code."""

    identifier: str
    comment: str
    defines: Mapping[str, int]
    calls: Sequence[str]
    arrays: Sequence[Array]
    storage: str  # of the arrays
    bytes: int  # of its output

    @property
    def macro(self) -> str:
        return self.identifier.upper()


def _steps(network: QuantizedNetwork, plan: MemoryPlan, options: Options) -> list[Step]:
    names = identifiers(layer.name for layer in network.graph.layers)
    steps = []
    for layer, integer in zip(network.graph.layers, network.layers):
        identifier, kernel = names[layer.name], integer.kernel
        macro, scratch = identifier.upper(), plan.scratch.get(layer.name)
        c = CNames(
            prefix=macro,
            inputs=tuple(f"{names[name]}_out" for name in layer.inputs) or ("image",),
            output=f"{identifier}_out",
            scratch=f"(arena + {macro}_SCRATCH)" if scratch else "NULL",
            scratch_bytes=scratch.size if scratch else 0,
            weights=f"{identifier}_wt",
            bias=f"{identifier}_bias",
            in_place=layer.name in plan.in_place,
        )
        offsets = {"OFFSET": plan.outputs[layer.name].offset}
        if scratch:
            offsets["SCRATCH"] = scratch.offset
        steps.append(
            Step(
                identifier,
                comment(f"{layer.name}: {layer.caffe_type}, {layer.describe()}, {network.formats[layer.name].y}"),
                {**layer.defines(), **integer.defines(), **offsets},
                kernel.calls(layer, c),
                kernel.arrays(layer, integer.integers, c),
                "static" if options.weights_in_ram and layer.weighted else "static const",
                layer.out_size,
            )
        )
    return steps


def _origin(network: QuantizedNetwork) -> list[str]:
    """The lines that say what a generated file was made of."""
    lines = [f"Generated by code_gen.py {q7.__version__} for {network.target}."]
    lines += [
        f"{what}: {Path(source['name']).name}, sha256 {source['sha256']}" for what, source in network.sources.items()
    ]
    for layer in network.graph.layers:
        formats = network.formats[layer.name]
        named = {"weights": formats.w, "bias": formats.b, "output": formats.y}
        lines.append(f"{layer.name}: " + ", ".join(f"{what} {q}" for what, q in named.items() if q))
    return [comment(line) for line in lines]


def _memory_lines(plan: MemoryPlan) -> list[str]:
    """The arena as text: each buffer's bytes, and a bar of where it lies."""
    width = 64
    lines = [f"{'buffer':24} {'layers':>7} {'offset':>7} {'bytes':>7}  |0{plan.arena_bytes:>{width - 1}}|"]
    for buffer in plan.buffers:
        start = buffer.offset * width // plan.arena_bytes
        end = max(start + 1, -(-buffer.end * width // plan.arena_bytes))
        bar = " " * start + "#" * (end - start)
        lines.append(
            comment(
                f"{buffer.name[:24]:24} {f'{buffer.first}-{buffer.last}':>7} {buffer.offset:7} {buffer.size:7}  "
                f"|{bar:{width}}|"
            )
        )
    return lines


def templates(folder: Path, autoescape: bool, **filters: Callable[..., Any]) -> jinja2.Environment:
    """What renders a folder's templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    environment.filters.update(filters)
    return environment


def definitions(target: Target) -> list[str]:
    """What the preprocessor is told of the core and the rounding on a computer, and by kernels' users."""
    dsp = ["ARM_MATH_DSP"] if target.core is not Core.PLAIN else []
    mve = ["ARM_MATH_MVEI"] if target.core is Core.MVE else []
    return [*dsp, *mve, *(["ARM_NN_TRUNCATE"] if target.rounding is Rounding.TRUNCATE else [])]


def _templates(target: str, with_answers: bool, own: bool) -> list[Path]:
    """The files of a target: templates, except the included ones (_*), and files to copy."""
    paths = [path for folder in ("common", target) for path in sorted((TEMPLATES / folder).iterdir())]
    unwanted = [*([] if with_answers else ["test_images.h.jinja"]), *([] if own else ["own_q7.h"])]
    return [path for path in paths if not path.name.startswith("_") and path.name not in unwanted]


def render(
    network: QuantizedNetwork, plan: MemoryPlan, options: Options, answers: KnownAnswers | None = None
) -> dict[str, str]:
    """The generated files by name."""
    steps = _steps(network, plan, options)
    context: dict[str, Any] = {
        "origin": _origin(network),
        "memory": _memory_lines(plan),
        "steps": steps,
        "arena_bytes": plan.arena_bytes,
        "input_bytes": network.graph.input.out_size,
        "classes": network.graph.classes,
        "output": steps[-1].identifier,
        "scores": "softmax values" if network.graph.output.last_only else "logits",
        "profile": options.profile,
        "answers": answers,
        "sample": "test_pixels" if answers else "nn_input",  # what to time
        "api": network.target.api.value,
        "core": network.target.core.value,
        "board": BOARDS[network.target.core],
        "definitions": definitions(network.target),
        "version": max(i.kernel.least_version(layer) for layer, i in zip(network.graph.layers, network.layers)),
        "own": any(layer.kernel.own for layer in network.layers),
        "truncate": network.target.rounding is Rounding.TRUNCATE,
    }
    environment = templates(TEMPLATES, autoescape=False, c_array=c_array, c_statement=c_statement)
    contents = {}
    for path in _templates(options.target, answers is not None, context["own"]):
        if path.suffix == ".jinja":
            contents[path.stem] = environment.get_template(f"{path.parent.name}/{path.name}").render(context)
        else:
            contents[path.name] = path.read_text()
    if options.target in PORTABLE:
        for path in sorted((TEMPLATES / KERNELS[network.target.api]).iterdir()):
            contents[f"portable/{path.name}"] = path.read_text()
    return contents


def write(out_dir: Path, contents: Mapping[str, str], read: Iterable[Path] = ()) -> list[str]:
    """Replaces the files that changed, together; returns their names. Other files in the folder are left alone.

    Raises Q7Error where a file would overwrite one that the run has `read`.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise Q7Error(f"'{out_dir}' is not a folder")
    paths = {out_dir / name: content.encode() for name, content in contents.items()}
    return [str(path.relative_to(out_dir)) for path in files.write_all(paths, read)]


@dataclass(frozen=True)
class Totals:
    """Of one network: MACs for an image, and bytes that its data takes in flash and RAM (code and stack aside)."""

    macs: int
    flash: int
    ram: int


def constant_bytes(network: QuantizedNetwork) -> list[int]:
    """Bytes of each layer's constants."""
    names = CNames("", ("",), "", "", "", "")
    return [
        sum(array.bytes for array in integer.kernel.arrays(layer, integer.integers, names))
        for layer, integer in zip(network.graph.layers, network.layers)
    ]


def totals(network: QuantizedNetwork, plan: MemoryPlan, options: Options) -> Totals:
    """Weights that lie in RAM take flash as well, which they are copied from at start-up."""
    layers, constants = network.graph.layers, constant_bytes(network)
    weights = sum(size for layer, size in zip(layers, constants) if layer.weighted)
    ram = plan.arena_bytes + (weights if options.weights_in_ram else 0)
    return Totals(sum(layer.macs for layer in layers), sum(constants), ram)


def passed_over(network: QuantizedNetwork) -> list[str]:
    """Why faster kernels were not taken; layers with the same reasons share a line."""
    layers: dict[str, list[str]] = {}
    for layer in network.graph.layers:
        reasons = "; ".join(consider(layer.kernels, layer, network.target)[1])
        if reasons:
            layers.setdefault(reasons, []).append(layer.name)
    return [f"{', '.join(names)}: {reasons}" for reasons, names in layers.items()]


def table(network: QuantizedNetwork, plan: MemoryPlan, options: Options) -> list[str]:
    """Per layer: kernel, MACs, bytes of constants, output and scratch memory; then reasons, arena, totals."""
    rows: list[tuple[str, ...]] = [("layer", "kernel", "MACs", "weights", "output", "scratch")]
    for layer, integer, constants in zip(network.graph.layers, network.layers, constant_bytes(network)):
        scratch = plan.scratch.get(layer.name)
        sizes = (layer.macs, constants, layer.out_size, scratch.size if scratch else 0)
        rows.append((layer.name, integer.kernel.name, *map(str, sizes)))
    reasons = passed_over(network)
    total = totals(network, plan, options)
    return [
        *columns(rows, left=2),
        *(["", "Faster kernels that were passed over:", *reasons] if reasons else []),
        "",
        *_memory_lines(plan),
        "",
        f"Total: {total.macs} MACs, flash {total.flash} bytes of constants, RAM {total.ram} bytes",
    ]
