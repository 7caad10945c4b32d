"""Info files of mmdet3d (pickles) read without unpickling, and written so that old environments read them.

An info file holds plain values: dict, list, tuple, text, numbers and numpy arrays of numbers. :func:`load_plain` reads
the opcodes itself (``pickletools`` only takes them apart), builds these values and nothing else. There is no call that
a file could make: the six names that numpy writes into a pickle are recognised as a pattern with its arguments, any
other name is refused by name, and nothing is imported. The library reads no pickle at all; this file is the exception
that the info files of ESAM need, and it stays in this example.
"""

from __future__ import annotations

import io
import math
import pickle  # to write; what is read never reaches it
import pickletools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dinoneck.errors import DataError

LARGEST_BYTES = 256 << 20
HIGHEST_PROTOCOL = 5
PROTOCOL = 2  # what mmengine writes
MOST_AXES = 32

_ARRAY, _SCALAR, _BUFFER = "an array", "a number of numpy", "an array in one piece"
_NAMES = {
    "_codecs encode": "bytes as text",
    "builtins bytes": "no bytes",
    "__builtin__ bytes": "no bytes",
    "numpy ndarray": "the class of arrays",
    "numpy dtype": "a dtype",
}
for _home in ("numpy.core", "numpy._core"):  # before numpy 2 and since
    _NAMES |= {f"{_home}.multiarray _reconstruct": _ARRAY, f"{_home}.multiarray scalar": _SCALAR}
    _NAMES |= {f"{_home}.numeric _frombuffer": _BUFFER}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}")

_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_VALUES = frozenset((*_NUMBERS, *_TEXTS, "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bool, bytes, type(None))  # no tuples: nested ones take for ever to hash


def load_plain(path: Path, largest: int = LARGEST_BYTES) -> Any:
    """Read a pickle of plain values; whatever else is in it is refused, and nothing of it runs.

    Plain are None, bool, int, float, str, bytes, list, tuple, dict with plain keys, and numpy's arrays and scalars of
    numbers or text (pickled by numpy 1 or 2, protocols 0 to 5).

    Args:
        path: the file.
        largest: bytes of a file that is still read; memory stays within some 150 times the file, whatever it holds.

    Raises:
        DataError: if the file is missing, too large, damaged, or holds anything else, naming it.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise DataError(f"{path} has {size} bytes; info files of up to {largest} bytes are read")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pickletools")  # of escapes in names, which are refused anyway
        return _Reader(raw, str(path)).read()


def dump_plain(value: Any) -> bytes:
    """Pickle plain values in protocol 2 with numpy's names of version 1, which every numpy reads.

    numpy 2 by itself writes ``numpy._core``, which the numpy 1.2x of an environment with Python 3.8 does not know.

    Raises:
        DataError: if the values are nested too deeply.
    """
    buffer = io.BytesIO()
    try:
        _Writer(buffer, PROTOCOL).dump(value)
    except RecursionError:
        raise DataError("the values are nested too deeply to be written") from None
    return buffer.getvalue()


class _Writer(pickle._Pickler):
    """Writes numpy's functions under the names that numpy 1 and 2 both know."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", None) == "numpy._core.multiarray":
            self.write(f"cnumpy.core.multiarray\n{name or obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


@dataclass(frozen=True)
class _Name:
    """A name of ``_NAMES`` in the file; it stands for a pattern and is never looked up."""

    kind: str


@dataclass(eq=False)
class _Begun:
    """A dtype or an array whose content follows; ``places`` in the memo refer to it."""

    kind: str
    code: str = ""
    places: list[int] = field(default_factory=list)


class _Arguments(tuple[Any, ...]):
    """A tuple that holds something which is not a plain value, and so is none itself."""

    __slots__ = ()


_INNER = (_Name, _Begun, _Arguments, np.dtype)


class _Reader:
    """A machine for the opcodes that plain values need."""

    def __init__(self, raw: bytes, name: str) -> None:
        self.raw, self.name, self.at = raw, name, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def read(self) -> Any:
        """Return the value in the file."""
        try:
            for opcode, argument, at in pickletools.genops(self.raw):
                self.at = at or 0
                if opcode.name == "STOP":
                    break
                self.step(opcode.name, argument)
            [value] = self.stack
            if self.outer or self.at + 1 != len(self.raw):
                self.refuse("the pickle ends here and the file goes on, or a mark is left")
            return self.plain(value)
        except DataError:
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise DataError(f"{self.name} is cut short, damaged or not a pickle (byte {self.at}: {reason})") from None

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _GET:
            self.stack.append(self.memo[argument])
        elif opcode in _PUT:
            self.remember(len(self.memo) if argument is None else argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _FRESH:
            self.stack.append(_FRESH[opcode]())
        elif opcode in _TUPLES:
            self.stack.append(_tuple([self.stack.pop() for _ in range(_TUPLES[opcode])][::-1]))
        elif opcode == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif (act := getattr(self, f"do_{opcode.lower()}", None)) is not None:
            act(argument)
        else:
            self.refuse(f"the opcode {opcode} is for more than plain values")

    def refuse(self, why: str) -> NoReturn:
        """Say what is wrong, and where."""
        raise DataError(
            f"{self.name} is refused at byte {self.at}: {why}. Info files hold dict, list, tuple, text, numbers and "
            "numpy arrays of them; nothing of this file was run"
        )

    def plain(self, value: Any) -> Any:
        """Return a finished plain value."""
        if isinstance(value, _INNER):
            self.refuse(f"a value is {value.kind if isinstance(value, _Name | _Begun) else 'part of an array'} alone")
        return value

    def remember(self, place: int) -> None:
        """Put what lies on top into the memo."""
        value = self.stack[-1]
        self.memo[place] = value
        if type(value) is _Begun:
            value.places.append(place)

    def marked(self) -> list[Any]:
        """Return what lies above the last mark."""
        values, self.stack = self.stack, self.outer.pop()
        return values

    def do_proto(self, version: int) -> None:
        if version > HIGHEST_PROTOCOL:
            self.refuse(f"protocol {version} is newer than {HIGHEST_PROTOCOL}")

    def do_frame(self, size: int) -> None:
        """Frames do not change values."""

    def do_tuple(self, _: None) -> None:
        values = self.marked()
        self.stack.append(_tuple(values))

    def do_list(self, _: None) -> None:
        values = [self.plain(value) for value in self.marked()]
        self.stack.append(values)

    def do_dict(self, _: None) -> None:
        values = self.marked()
        self.stack.append({})
        self.put(values)

    def do_append(self, _: None) -> None:
        value = self.stack.pop()
        self.extend([value])

    def do_appends(self, _: None) -> None:
        self.extend(self.marked())

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def do_setitems(self, _: None) -> None:
        self.put(self.marked())

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top."""
        target = self.stack[-1]
        if type(target) is not list:
            self.refuse(f"values are appended to {type(target).__name__}")
        target.extend(self.plain(value) for value in values)

    def put(self, values: list[Any]) -> None:
        """Set keys and values, in turn, of the dict on top."""
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            self.refuse(f"keys and values are set in {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in _KEYS:
                self.refuse(f"a key is {type(key).__name__}")
            target[key] = self.plain(value)

    def do_global(self, name: str) -> None:
        if name not in _NAMES:
            self.refuse(f"it names {name.replace(' ', '.', 1)!r}")
        self.stack.append(_Name(_NAMES[name]))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.do_global(f"{module} {name}" if type(name) is str and type(module) is str else "what is no text")

    def do_reduce(self, _: None) -> None:
        """Recognise what numpy writes for bytes, dtypes, arrays and scalars."""
        arguments, name = self.stack.pop(), self.stack.pop()
        kind = name.kind if type(name) is _Name else ""
        match kind, arguments:
            case "bytes as text", (str() as text, "latin1"):
                self.copy(len(text))
                made: Any = text.encode("latin1")
            case "no bytes", ():
                made = b""
            case "a dtype", (str() as code, int(), int()):
                if not _DTYPE.fullmatch(code):
                    self.refuse(f"an array has the dtype {code[:20]!r}; only numbers and text are plain")
                made = _Begun("dtype", code)
            case "an array", (_Name("the class of arrays"), (0,), b"b"):
                made = _Begun("array")
            case "a number of numpy", (np.dtype() as dtype, bytes() as data):
                made = self.array(data, dtype, (), "C")[()]
            case "an array in one piece", (
                (bytes() | bytearray()) as data,
                np.dtype() as dtype,
                tuple() as shape,
                order,
            ):
                made = self.array(data, dtype, shape, order)
            case _:
                self.refuse(f"a call of {kind or type(name).__name__!r} has a form that numpy does not write")
        self.stack.append(made)

    def do_build(self, _: None) -> None:
        """Finish a dtype or an array, here and in the memo."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = target.kind if type(target) is _Begun else type(target).__name__
        match kind, state:
            case "dtype", (3, ("<" | ">" | "|") as order, None, None, None, int(), int(), int()):
                plain = np.dtype(target.code)
                made: Any = plain if order == "|" else plain.newbyteorder(order)
            case "array", (1, tuple() as shape, np.dtype() as dtype, (0 | 1) as fortran, bytes() as data):
                made = self.array(data, dtype, shape, "F" if fortran else "C")
            case _:
                self.refuse(f"a state of {kind} has a form that numpy does not write for numbers and text")
        self.stack[-1] = made
        for place in target.places:
            if self.memo[place] is target:
                self.memo[place] = made

    def array(self, data: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[Any, ...], order: Any) -> Any:
        """Return an array of its own memory."""
        sound = len(shape) <= MOST_AXES and all(type(side) is int and side >= 0 for side in shape)
        if not sound or order not in ("C", "F") or math.prod(shape) * dtype.itemsize != len(data):
            self.refuse(f"{len(data)} bytes do not make the array of {dtype} that is announced")
        self.copy(len(data))
        return np.ndarray(shape, dtype, buffer=data, order=order).copy(order="K")

    def copy(self, size: int) -> None:
        """Count bytes that are copied: values named again and again would fill the memory."""
        self.copied += size
        if self.copied > 3 * len(self.raw):
            self.refuse("its arrays repeat the same bytes over and over")


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return _Arguments(values) if any(isinstance(value, _INNER) for value in values) else tuple(values)
