# SPDX-License-Identifier: Apache-2.0
"""Reads pickles without Python's unpickler: plain values, and instances of the original tool's class, of limited size.

Only accepts the instructions in pickles of this tool and the original one (protocols 0 to 5, of Python 2 and 3).
Python's pickletools documents them, and reads their arguments. Nothing is imported or called, and only text is hashed.
"""

from __future__ import annotations

import codecs
import pickle
import pickletools
from collections.abc import Callable
from enum import Enum
from typing import IO, Any, BinaryIO, NoReturn

from caffe_to_cmsis_nn import files

LARGEST_TEXT = 1 << 16  # bytes
LARGEST_TEXTS = 1 << 24  # bytes of all texts together
LARGEST_NUMBER = 1 << 8  # bytes of a number's text, or of a name
MOST_VALUES = 1 << 18  # instructions; also values, each counted as often as it is referenced
MOST_DEPTH = 16  # of nested containers; this tool's pickles have 7


class Instance:
    """An instance of the original tool's class."""

    attributes: Any = None


class _Name(Enum):
    """The globals that the original tool's pickles name."""

    RECONSTRUCTOR = "copy_reg._reconstructor"
    OBJECT = "object"
    CLASS = "Caffe_Quantizer"


_NAMES = {
    "copy_reg _reconstructor": _Name.RECONSTRUCTOR,
    "copyreg _reconstructor": _Name.RECONSTRUCTOR,
    "__builtin__ object": _Name.OBJECT,
    "builtins object": _Name.OBJECT,
    "__main__ Caffe_Quantizer": _Name.CLASS,
    "nn_quantizer Caffe_Quantizer": _Name.CLASS,
}
_CALLS = [_Name.RECONSTRUCTOR, (_Name.CLASS, _Name.OBJECT, None)], [_Name.CLASS, ()]  # that make an instance


def _refuse(reason: str) -> NoReturn:
    raise pickle.UnpicklingError(reason)


# --- what instructions do ---------------------------------------------------------------------------------------------


def _named(name: str) -> _Name:
    return _NAMES.get(name) or _refuse(f"it names {name.replace(' ', '.')}, which is not loaded")


def _instance(call: list[Any]) -> Instance:
    return Instance() if call in _CALLS else _refuse("it makes an object of another class")


def _dict(items: list[Any]) -> dict[str, Any]:
    """A dictionary from alternating keys and values."""
    keys = items[::2]
    return dict(zip(keys, items[1::2])) if {*map(type, keys)} <= {str} else _refuse("it has keys that are not texts")


MARK = -1  # all values since the last mark
# Instructions that replace a number of values on the stack by a new value: the number, and a function.
_MAKES: dict[str, tuple[int, Callable[[list[Any]], Any]]] = {
    "NONE": (0, lambda _: None),
    "NEWTRUE": (0, lambda _: True),
    "NEWFALSE": (0, lambda _: False),
    "EMPTY_LIST": (0, list),
    "EMPTY_DICT": (0, dict),
    "EMPTY_TUPLE": (0, tuple),
    "LIST": (MARK, list),
    "DICT": (MARK, _dict),
    "TUPLE": (MARK, tuple),
    "TUPLE1": (1, tuple),
    "TUPLE2": (2, tuple),
    "TUPLE3": (3, tuple),
    "STACK_GLOBAL": (2, lambda names: _named(" ".join(names))),
    "REDUCE": (2, _instance),
    "NEWOBJ": (2, _instance),
}
# Instructions that add a number of values to the value below them on the stack: the number, that value's type, and a
# function.
_ADDS: dict[str, tuple[int, type, Callable[[Any, list[Any]], None]]] = {
    "APPEND": (1, list, list.extend),
    "APPENDS": (MARK, list, list.extend),
    "SETITEM": (2, dict, lambda value, items: value.update(_dict(items))),
    "SETITEMS": (MARK, dict, lambda value, items: value.update(_dict(items))),
    "BUILD": (1, Instance, lambda value, items: setattr(value, "attributes", items[0])),
}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
_ARRAYS = {"BINBYTES", "SHORT_BINBYTES"}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
_SAVES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_OTHERS = {"PROTO", "FRAME", "MARK", "GLOBAL", "STOP"}
_KNOWN = {*_OTHERS, *_MAKES, *_ADDS, *_TEXTS, *_ARRAYS, *_NUMBERS, *_SAVES, *_GETS}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes if opcode.name in _KNOWN}


# --- reading them -----------------------------------------------------------------------------------------------------


class _Bounded:
    """A file for pickletools that limits the bytes of each argument."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._most = 0
        self._texts = LARGEST_TEXTS  # bytes left

    def read(self, size: int) -> bytes:
        return self._file.read(size) if size <= self._most else _refuse(f"it has a value of {size} bytes")

    def readline(self) -> bytes:
        line = self._file.readline(self._most + 1)
        return line if len(line) <= self._most else _refuse(f"it has a value of more than {self._most} bytes")

    def instruction(self) -> tuple[str, Any]:
        """The next instruction's name and argument."""
        code = self._file.read(1)
        opcode = _OPCODES[code] if code in _OPCODES else _refuse(f"it has the instruction {code!r}")
        self._most = LARGEST_NUMBER
        if opcode.name in _ARRAYS:
            self._most = files.LARGEST
        elif opcode.name in _TEXTS:
            self._most = min(LARGEST_TEXT, self._texts)
        if opcode.arg is None:
            return opcode.name, None
        file: Any = self
        argument = _read_bytes_in_quotes(file) if opcode.name == "STRING" else opcode.arg.reader(file)
        if opcode.name in _TEXTS:
            self._texts -= len(argument)
        return opcode.name, argument


def _read_bytes_in_quotes(file: IO[bytes]) -> str:
    """A string of Python 2, which pickletools would read as ASCII."""
    return str(codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0], "latin-1")


class _Machine:
    """The stack and memo that instructions work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # lengths of the stack
        self._memo: dict[int, Any] = {}

    def _pop(self, count: int) -> list[Any]:
        start = self._marks.pop() if count == MARK else len(self.stack) - count
        if start < 0:
            _refuse("it takes values that are not there")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def do(self, name: str, argument: Any) -> None:
        if name in _MAKES:
            count, make = _MAKES[name]
            self.stack.append(make(self._pop(count)))
        elif name in _ADDS:
            count, kind, add = _ADDS[name]
            items = self._pop(count)
            if type(self.stack[-1]) is not kind:
                _refuse(f"it adds to a value that is not of type {kind.__name__}")
            add(self.stack[-1], items)
        elif name in _SAVES:
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name == "GLOBAL":
            self.stack.append(_named(argument))
        elif name not in ("PROTO", "FRAME"):
            self.stack.append(argument)


def _check(value: Any) -> None:
    """Refuses values that are not plain, and too many values, counting shared ones each time."""
    pending, left = [(value, 0)], MOST_VALUES
    while pending:
        item, depth = pending.pop()
        if type(item) in (dict, list, tuple):
            left -= len(item) + 1
            if left < 0 or depth > MOST_DEPTH:
                _refuse("it has too many values")
            pending.extend((value, depth + 1) for value in (item.values() if type(item) is dict else item))
        elif type(item) not in (str, bytes, int, float, bool, type(None)) or (type(item) is int and abs(item) >> 63):
            _refuse(f"it holds a value of type {type(item).__name__} that no network has")


def load(file: BinaryIO) -> Any:
    """The pickled value, or an `Instance` with its attributes; raises UnpicklingError, or others for damaged bytes."""
    source, machine = _Bounded(file), _Machine()
    for _ in range(MOST_VALUES):
        name, argument = source.instruction()
        if name == "STOP":
            value = machine.stack.pop()
            _check(value.attributes if type(value) is Instance else value)
            return value
        machine.do(name, argument)
    _refuse("it has too many values")
