# SPDX-License-Identifier: Apache-2.0
"""Generates valid C for any input: identifiers, comments, initializers, calls."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from caffe_to_cmsis_nn.kernels.call import Call, Statement, Value

LINE = 112  # characters in a generated line, without indentation


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """A lower-case C identifier for each layer name, unique also in upper case; the first name is the input's.

    Macros and arrays append a suffix to the identifier, so they cannot clash with keywords or other names.
    """
    found: dict[str, str] = {}
    next_number: dict[str, int] = {}  # by identifier in use: the number for the next layer with that identifier
    for i, name in enumerate(names):
        base = "data" if i == 0 else re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "layer"
        base = f"layer_{base}" if base[0].isdigit() else base
        identifier = base
        while identifier in next_number:
            number = next_number[base]
            identifier, next_number[base] = f"{base}_{number}", number + 1
        found[name] = identifier
        next_number[identifier] = 2
    return found


def _lines(items: Iterable[str], width: int) -> list[str]:
    """Joins items by commas, with as many on a line as fit."""
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) >= width:
            lines.append("")
        lines[-1] += f"{item}, "
    return [line.rstrip() for line in lines[:-1]] + [lines[-1].rstrip(", ")]


def c_array(values: np.ndarray) -> str:
    """A brace initializer as a macro body with line continuations; uint32 values are hexadecimal."""
    number = "0x{:08x}u" if values.dtype == np.uint32 else "{}"
    lines = _lines(map(number.format, values.ravel().tolist()), LINE)
    return "{ \\\n" + " \\\n".join(f"    {line}" for line in lines) + " \\\n}"


def c_string(text: str) -> str:
    """A string literal; special and non-ASCII characters become octal escapes of their UTF-8 bytes."""
    plain = set(range(ord(" "), ord("~") + 1)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _value(value: Value) -> str:
    return value if isinstance(value, str) else f"{{{', '.join(map(_value, value))}}}"


def c_statement(statement: Statement, indent: int = 4) -> str:
    """A call or declaration, wrapped at its outer commas and aligned with the opening bracket.

    If a checked call fails, the surrounding function returns NULL.
    """
    if isinstance(statement, Call):
        values: tuple[Value, ...] = statement.arguments
        start, end = f"{statement.function}(", ");"
        if statement.checked:
            margin = " " * indent
            start, end = f"if ({start}", f") != ARM_CMSIS_NN_SUCCESS) {{\n{margin}    return NULL;\n{margin}}}"
    else:
        values = statement.values
        start, end = f"{statement.type} {statement.name} = {{", "};"
    lines = _lines(map(_value, values), LINE - len(start) + 5 - indent)
    return start + ("\n" + " " * (indent + len(start))).join(lines) + end


def affine(variable: str, factor: int, summand: int) -> str:
    """variable * factor + summand as a C expression."""
    product = variable if factor == 1 else f"{variable} * {factor}"
    return f"{product} {'+' if summand > 0 else '-'} {abs(summand)}" if summand else product


def comment(text: str) -> str:
    """Text that is safe within a C comment.

    Backslashes and everything but printable ASCII become '?'. Spaces separate * from /, and break up the trigraph for a
    backslash.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text.replace("\\", "?").replace("*/", "* ?").replace("/*", "? *").replace("??/", "?? /")
