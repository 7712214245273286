# SPDX-License-Identifier: Apache-2.0
"""Folders that look like Arm's libraries: the same files with the same functions, which name each other as Arm's do.

Bodies are those of our portable kernels, or empty where these need no such function. So a list of files that lacks one
that the library needs leaves a symbol undefined here, too. tests/data/library_files.txt has the releases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from caffe_to_cmsis_nn.target import Q7, S8, Library
from tests.support import ROOT, run, tool

TABLE = ROOT / "tests" / "data" / "library_files.txt"
PORTABLE = {library: ROOT / "templates" / library.portable for library in (Q7, S8)}
# What tells the releases apart: macros of their headers.
GUARDS = {"4.0": "CH_IN_BLOCK_MVE", "4.1": "ARM_NN_MATH_TYPES_H", "5.0": "ARM_NN_MATH_TYPES_H"}
LATER = "ARM_NNFUNCTIONS_H"


@dataclass(frozen=True)
class File:
    """A source file: the functions and tables that it defines, and those of other files that it names."""

    name: str
    defines: tuple[str, ...]
    names: tuple[str, ...]


def releases() -> dict[str, list[File]]:
    """The files of each release."""
    found: dict[str, list[File]] = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("["):
            files = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            name, defines, names = (part.split() for part in line.split("|"))
            files.append(File(name[0], tuple(defines), tuple(names)))
    return found


RELEASES = releases()


def library_of(release: str) -> Library:
    return Q7 if release.startswith("CMSIS 5") else S8


def _number(release: str) -> str:
    """The first two digits of a release of CMSIS-NN; later ones than 5 look alike."""
    return release.removeprefix("CMSIS-NN ")[:3]


def _implemented(library: Library) -> set[str]:
    """The functions that our portable kernels have."""
    return set(re.findall(r"\b(arm_\w+)[()]", (PORTABLE[library] / "arm_nnfunctions.h").read_text()))


def _body(file: File, library: Library) -> str:
    """Our functions that the file defines; a header, since lists of files are made of the names in sources.

    The others are static, and have other names: compilers leave out those that nothing calls.
    """
    folder, stem = PORTABLE[library], Path(file.name).stem
    others = sorted(_implemented(library) - {*file.defines})
    text = (folder / "arm_nnfunctions.c").read_text()
    includes = re.findall(r'^#include "(.*)"$', text, re.M)
    text = re.sub(r'^#include ".*"$', "", text, flags=re.M)
    text = re.sub(rf"\b({'|'.join(others)})\b", rf"{stem}_has_\1", text)
    text = re.sub(rf"^(?=\w.*\b{stem}_has_\w+\()", "static inline ", text, flags=re.M)
    lines = [f"#define {name} {stem}_declares_{name}" for name in others]
    lines += [f'#include "{folder / name}"' for name in includes]
    lines += [f"#undef {name}" for name in others]
    return "\n".join([*lines, text])


def _text(file: File, library: Library) -> str:
    """C that defines what the file defines, and needs what it names."""
    implemented, stem = _implemented(library), Path(file.name).stem
    lines = [f'#include "bodies/{stem}.h"'] * bool(implemented & {*file.defines})
    lines += [f"void {name}(void);\nvoid {name}(void) {{}}" for name in file.defines if name not in implemented]
    lines += [f"extern const char {name}[];" for name in file.names]
    lines += [f"extern const void *const {stem}_names[];"]
    lines += [f"const void *const {stem}_names[] = {{{', '.join([*file.names, '0'])}}};"]
    return "\n".join(lines) + "\n"


def without_s4(header: str) -> str:
    """A header without the functions that releases before 5 lack."""
    return re.sub(r"arm_cmsis_nn_status arm_\w+_s4\([^;]*;", "", header)


def _headers(release: str) -> dict[str, str]:
    """As the portable kernels have them, with the macros and the functions of the release."""
    library = library_of(release)
    if library is Q7:  # CMSIS-DSP's header includes CMSIS-Core's, where there is a core
        core = '#ifdef __arm__\n#include "cmsis_compiler.h"\n#endif\n'
        math, functions = ((PORTABLE[Q7] / name).read_text() for name in ("arm_math.h", "arm_nnfunctions.h"))
        return {
            "CMSIS/DSP/Include/arm_math.h": core + math,
            "CMSIS/NN/Include/arm_nnfunctions.h": functions,
            "CMSIS/Core/Include/cmsis_compiler.h": "/* nothing */\n",
        }
    number = _number(release)
    functions = (PORTABLE[S8] / "arm_nnfunctions.h").read_text()
    functions = functions.replace(LATER, f"STANDIN_{LATER}") + f"\n#define {GUARDS.get(number, LATER)}\n"
    if number < "5":
        functions = without_s4(functions)
    support = (PORTABLE[S8] / "arm_nnsupportfunctions.h").read_text()
    return {"Include/arm_nnfunctions.h": functions, "Include/arm_nnsupportfunctions.h": support}


def write(folder: Path, release: str) -> Path:
    """The release's tree."""
    library = library_of(release)
    root = "CMSIS/NN/" if library is Q7 else ""
    source = f"{root}Source"
    contents = {f"{source}/{file.name}": _text(file, library) for file in RELEASES[release]}
    for file in RELEASES[release]:
        contents[f"{root}Include/bodies/{Path(file.name).stem}.h"] = _body(file, library)
    contents[f"{source}/ConvolutionFunctions/arm_convolve_f16.c"] = "#error is never built\n"
    for name, text in {**contents, **_headers(release)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def undefined(objects: Iterable[Path]) -> set[str]:
    """Arm's symbols that the objects need and do not have."""
    lines = run(tool("nm"), "-P", *objects).stdout.splitlines()
    kinds = [(words[0], words[1]) for words in map(str.split, lines) if len(words) > 1]
    defined = {name for name, kind in kinds if kind != "U"}
    return {name for name, kind in kinds if kind == "U" and name not in defined and not name.startswith("__")}
