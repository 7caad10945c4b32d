"""Pickles of plain values: the info files of mmdet3d, read so that nothing in them can run.

This is the one file of the project that reads and writes pickles; the info files of ESAM need it.
A file passes three gates before its values are used:

1. ``check_opcodes`` goes through the opcodes without executing any. Opcodes that plain values do
   not need are refused, and so is a file that asks for more memory than it has bytes: a length
   beyond its end, a large place in the memo, or tuples that repeat each other.
2. ``PlainUnpickler.find_class`` returns own stand-ins for the names that numpy writes for arrays,
   dtypes and scalars, and refuses every other name. Nothing is imported.
3. ``plain_value`` replaces the stand-ins by arrays of the announced size and refuses what is no
   dict, list, tuple, text, bytes, number or array of numbers.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.text import reason_of

LARGEST_BYTES = 256 << 20  # ScanNet's own info files have some tens of MB
MOST_OPCODES = 50_000_000  # a value takes up to some 100 bytes of memory
DEEPEST = 32  # containers within each other; info files have 5
PROTOCOL = 4
_COPIES = 2  # of an array's bytes: protocols 0 to 2 hold text, from which bytes are made
MOST_AXES = 32  # of numpy's arrays before version 2

# numbers and text of a fixed width, as numpy spells them; objects ("O8") and records are no match
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}")
_NUMBERS = (bool, int, float)
# what an unpickler raises for bytes that are no pickle, or values that do not fit each other
_DAMAGED = (
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
)

# opcode -> (values it takes from the stack, values it puts there)
_CONSTANT_OPCODES = (
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_DICT"),
    *("EMPTY_TUPLE", "GLOBAL"),
)
_STACK_EFFECT = dict.fromkeys(_CONSTANT_OPCODES, (0, 1)) | {
    "PROTO": (0, 0),
    "FRAME": (0, 0),
    "STOP": (1, 0),
    "APPEND": (1, 0),
    "SETITEM": (2, 0),
    "BUILD": (1, 0),
    "REDUCE": (2, 1),
    "STACK_GLOBAL": (2, 1),
}
# these take all values above the last mark
_MARKED_EFFECT = {"LIST": 1, "DICT": 1, "APPENDS": 0, "SETITEMS": 0}
_TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")


def load_plain(path: Path, largest: int = LARGEST_BYTES) -> Any:
    """Read a pickle of plain values.

    Plain are None, bool, int, float, str, bytes, list, tuple, dict, and numpy's arrays and scalars
    of numbers or text, written by numpy 1 or 2 in protocols 0 to 5.

    Args:
        path: the file.
        largest: bytes of a file that is still read.

    Raises:
        DataError: if the file is missing, larger, damaged, or holds anything else, naming it.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(largest + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    if len(raw) > largest:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes; info files of up to {largest} bytes are read"
        )
    try:
        check_opcodes(raw)
        found = PlainUnpickler(raw).load()
        return plain_value(found)
    except _Refused as error:
        raise DataError(
            f"{path} is refused: {error}; info files hold dict, list, tuple, text, numbers and "
            "numpy arrays of numbers, and nothing of this file was run"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{path} is cut short, damaged or no pickle: {reason_of(error)}") from error


def dump_plain(value: Any) -> bytes:
    """Pickle plain values in protocol 4, so that every numpy since 1.8 reads them.

    Arrays are written by the names ``numpy.ndarray`` and ``numpy.dtype`` alone: what numpy 2 writes
    by itself, ``numpy._core``, is unknown to the environments that read info files. Scalars of
    numpy become Python's numbers.

    Raises:
        DataError: if a value is not plain.
    """
    try:
        content = plain_value(value)
    except _Refused as error:
        raise DataError(f"the values cannot be written as an info file: {error}") from error
    buffer = io.BytesIO()
    _PlainPickler(buffer, protocol=PROTOCOL).dump(content)
    return buffer.getvalue()


class _Refused(ValueError):
    """What is wrong with the values, without the name of the file."""


def check_opcodes(raw: bytes) -> None:
    """Go through the opcodes of a pickle without executing any.

    The stack is followed with the size that each value has when it is written out: tuples that
    hold one tuple many times, level upon level, are small in the file and take for ever to hash.

    Raises:
        ValueError: naming the byte where something is wrong.
    """
    sizes: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    end = -1
    for number, (opcode, argument, position) in enumerate(pickletools.genops(raw)):
        name = opcode.name
        if number > MOST_OPCODES:
            raise _Refused(f"it has more than {MOST_OPCODES} values")
        if name == "MARK":
            marks.append(len(sizes))
        elif name in _PUTS:
            place = len(memo) if argument is None else argument
            if not 0 <= place <= number:
                raise _Refused(f"byte {position} asks for place {place} of the memo")
            memo[place] = sizes[-1]
        elif name in _GETS:
            sizes.append(memo[argument])
        elif name in _TUPLE_LENGTHS or name == "TUPLE":
            start = marks.pop() if name == "TUPLE" else len(sizes) - _TUPLE_LENGTHS[name]
            if start < 0:
                raise ValueError(f"byte {position} takes a value that is not there")
            size = 1 + sum(sizes[start:])
            if size > len(raw):
                raise _Refused(f"byte {position} repeats the same tuples over and over")
            sizes[start:] = [size]
        elif name in _MARKED_EFFECT:
            sizes[marks.pop() :] = [1] * _MARKED_EFFECT[name]
        elif name in _STACK_EFFECT:
            taken, put = _STACK_EFFECT[name]
            start = len(sizes) - taken
            if start < 0:
                raise ValueError(f"byte {position} takes a value that is not there")
            sizes[start:] = [1] * put
        else:
            raise _Refused(f"byte {position} holds {name}, which plain values do not need")
        end = position or 0
    if end + 1 != len(raw):
        raise _Refused(f"the pickle ends at byte {end} and the file goes on")


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows the names numpy writes for arrays, dtypes and scalars, and no other.

    Args:
        raw: the bytes of a pickle that :func:`check_opcodes` passed.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))
        self._budget = _Budget(_COPIES * len(raw))

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name.

        Raises:
            ValueError: for any other name; nothing is imported.
        """
        full_name = f"{module}.{name}"
        # numpy.core before numpy 2, numpy._core since
        known = full_name.replace("numpy._core.", "numpy.core.")
        if known == "numpy.dtype":
            return _DtypeName()
        if known == "numpy.ndarray":
            return _ArrayName(self._budget)
        if known == "numpy.core.multiarray._reconstruct":
            return _Reconstruct(self._budget)
        if known == "numpy.core.multiarray.scalar":
            return _ScalarName()
        if known == "numpy.core.numeric._frombuffer":
            return _FromBuffer(self._budget)
        # protocols 0 to 2 have no bytes: the content of an array is text that is encoded
        if full_name == "_codecs.encode":
            return _EncodeName(self._budget)
        if full_name in ("builtins.bytes", "__builtin__.bytes"):
            return _EmptyBytesName()
        raise _Refused(f"it names {full_name!r}")


@dataclass(slots=True)
class _Budget:
    """Bytes that arrays may still take; all of them together are in the file."""

    left: int

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _Refused("its arrays repeat the same bytes over and over")


class _StandIn:
    """Something that stands for a name of numpy; a pickle cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"it sets the state of {type(self).__name__.strip('_')}")


@dataclass(slots=True)
class _PendingDtype:
    """A dtype whose byte order follows."""

    code: str
    order: str = "="

    def __setstate__(self, state: Any) -> None:
        is_plain = (
            isinstance(state, tuple)
            and len(state) >= 5
            and state[0] == 3
            and state[1] in ("<", ">", "|")
            and state[2:5] == (None, None, None)
        )
        if not is_plain:
            raise _Refused(f"a dtype {self.code} has fields or a form that numpy does not write")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        plain = np.dtype(self.code)
        return plain if self.order in "=|" else plain.newbyteorder(self.order)


@dataclass(slots=True)
class _PendingArray:
    """An array whose content follows."""

    budget: _Budget
    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and state[0] == 1):
            raise _Refused("an array has a form that numpy does not write")
        _, shape, dtype, is_fortran, content = state
        self.value = _array_of(content, dtype, shape, bool(is_fortran), self.budget)


def _array_of(
    content: Any, dtype: Any, shape: Any, is_fortran: bool, budget: _Budget
) -> np.ndarray[Any, Any]:
    """Return an array with memory of its own, after its size has been compared with the bytes there."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _PendingDtype):
        raise _Refused("an array has no bytes or no dtype")
    is_shape = isinstance(shape, tuple) and len(shape) <= MOST_AXES
    if not is_shape or not all(type(side) is int and side >= 0 for side in shape):
        raise _Refused(f"an array has the shape {str(shape)[:80]}")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise _Refused(
            f"an array of {dtype.code} and shape {shape} is announced and {len(content)} bytes are "
            "there"
        )
    budget.take(len(content))
    order = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype.dtype, buffer=content, order=order).copy(order="K")


class _DtypeName(_StandIn):
    __slots__ = ()

    def __call__(self, code: Any, *rest: Any) -> _PendingDtype:
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise _Refused(f"an array has the dtype {str(code)[:20]!r}, which is not of numbers")
        return _PendingDtype(code)


@dataclass(slots=True)
class _ArrayName(_StandIn):
    budget: _Budget

    def __call__(self, shape: Any, dtype: Any) -> _PendingArray:
        """What ``dump_plain`` writes: an empty array, whose state follows."""
        if shape != (0,) or not isinstance(dtype, _PendingDtype):
            raise _Refused("numpy.ndarray is called with more than an empty shape and a dtype")
        return _PendingArray(self.budget)


@dataclass(slots=True)
class _Reconstruct(_StandIn):
    budget: _Budget

    def __call__(self, kind: Any, shape: Any, code: Any) -> _PendingArray:
        if not isinstance(kind, _ArrayName) or shape != (0,):
            raise _Refused("an array is made of another class than numpy.ndarray")
        return _PendingArray(self.budget)


@dataclass(slots=True)
class _FromBuffer(_StandIn):
    budget: _Budget

    def __call__(self, content: Any, dtype: Any, shape: Any, order: Any) -> _PendingArray:
        if order not in ("C", "F"):
            raise _Refused(f"an array has the order {str(order)[:20]!r}")
        value = _array_of(content, dtype, shape, order == "F", self.budget)
        return _PendingArray(self.budget, value)


class _ScalarName(_StandIn):
    __slots__ = ()

    def __call__(self, dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, _PendingDtype) or not isinstance(content, bytes):
            raise _Refused("a number of numpy has no dtype or no bytes")
        if len(content) != dtype.dtype.itemsize:
            raise _Refused(f"a number of {dtype.code} has {len(content)} bytes")
        return np.frombuffer(content, dtype.dtype)[0]


@dataclass(slots=True)
class _EncodeName(_StandIn):
    budget: _Budget

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused("text is encoded in another way than numpy encodes an array")
        self.budget.take(len(text))
        return text.encode("latin1")


class _EmptyBytesName(_StandIn):
    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


@dataclass
class _PlainCopies:
    """The plain copies of containers that occur several times, by the id of the original."""

    made: dict[int, Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # so that no id is given to another object


def plain_value(value: Any) -> Any:
    """Return a copy of plain containers, in which the stand-ins of arrays are arrays.

    A container that occurs twice is copied once, so the copy is as small as the original.

    Raises:
        ValueError: if anything else is in it, or containers lie deeper in each other than
            ``DEEPEST``.
    """
    return _plain(value, _PlainCopies(), depth=0)


def _plain(value: Any, copies: _PlainCopies, depth: int) -> Any:
    kind = type(value)
    if value is None or kind in (*_NUMBERS, str, bytes):
        return value
    if kind is bytearray:
        return bytes(value)
    if kind is _PendingArray and value.value is not None:
        return value.value
    if kind is np.ndarray and _is_plain_dtype(value.dtype):
        return value
    if isinstance(value, np.generic) and _is_plain_dtype(value.dtype):
        return value.item()
    if kind not in (dict, list, tuple):
        raise _Refused(f"a value is {kind.__name__.strip('_')}")
    if depth >= DEEPEST:
        raise _Refused(f"its containers lie more than {DEEPEST} deep in each other")
    if id(value) in copies.made:
        return copies.made[id(value)]
    if kind is dict:
        copy: Any = {}
        for key, content in value.items():
            if key is not None and type(key) not in (*_NUMBERS, str, bytes):
                raise _Refused(f"a key is {type(key).__name__.strip('_')}")
            copy[key] = _plain(content, copies, depth + 1)
    elif kind is list:
        copy = [_plain(content, copies, depth + 1) for content in value]
    else:
        copy = tuple(_plain(content, copies, depth + 1) for content in value)
    copies.made[id(value)] = copy
    copies.kept.append(value)
    return copy


def _is_plain_dtype(dtype: np.dtype[Any]) -> bool:
    return _PLAIN_DTYPE.fullmatch(dtype.str[1:]) is not None


class _PlainPickler(pickle.Pickler):
    """Writes arrays by the names numpy.ndarray and numpy.dtype, which all versions of numpy have."""

    def reducer_override(self, value: Any) -> Any:
        """Return how an array is made again: an empty one, and its state; others as usual."""
        if type(value) is not np.ndarray:
            return NotImplemented
        is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        content = value.tobytes(order="F" if is_fortran else "C")
        state = (1, value.shape, value.dtype, is_fortran, content)
        return np.ndarray, ((0,), np.dtype("b")), state
