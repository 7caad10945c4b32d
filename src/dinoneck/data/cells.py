"""What single cells and values of a table mean: missing, a number, or a label that equals another one."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from decimal import Context, Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Any

import numpy as np

from dinoneck.errors import DataError, counted

LARGEST = float(np.finfo(np.float32).max)  # predictions are float32
EXACT = 2**53  # above it float64 leaves out integers
_MISSING = ("", "nan")
_SHOWN = 5


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty text, ``nan`` in any case, None, NaN, NaT or pandas.NA."""
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Hashable) and bool(value != value)


def cell_text(value: Any) -> str:
    """Return a value as a CSV would hold it, stripped; empty where it is missing."""
    if is_missing(value):
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() else repr(number)
    return str(value).strip()


def as_number(text: str) -> float | None:
    """Return the number that a cell spells, which may be infinite or NaN; None if it spells something else."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Whether a cell spells a finite number."""
    return _decimal(text) is not None


def label_of(text: str, are_numbers: bool) -> str:
    """Return a label stripped and composed (NFC); of several spellings of a number one, where all are numbers."""
    text = unicodedata.normalize("NFC", text.strip())
    number = _decimal(text) if are_numbers else None
    if number is None:
        return text
    number = number.normalize(Context(prec=len(text)))  # no digit is lost
    return "0" if not number else f"{number:f}" if 0 <= number.adjusted() < 20 else str(number)


def same_labels(labels: Iterable[Any], places: Iterable[Any], what: str) -> list[Hashable]:
    """Return labels of which those that mean the same are equal.

    Texts are stripped and composed (NFC). Where all labels are numbers, also as text, they are compared as numbers:
    ``1``, ``1.0`` and ``01`` are one label.

    Args:
        labels: one per row; texts, numbers or any values that can be hashed.
        places: what messages call the rows.
        what: what messages call a label, such as ``"group"``.

    Raises:
        DataError: for missing labels, naming their rows.
    """
    every = list(labels)
    missing = [str(place) for place, label in zip(places, every, strict=True) if is_missing(label)]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        rows = counted(len(missing), "row")
        raise DataError(f"the {what} is missing in {rows}: {shown}. Fill it in, or remove the rows")
    plain = [cell_text(label) if isinstance(label, str | Real) else label for label in every]
    texts = [label_of(label, False) if isinstance(label, str) else label for label in plain]
    are_numbers = all(isinstance(label, str) and is_number(label) for label in texts)
    return [label_of(label, True) for label in texts] if are_numbers else texts


def as_numbers(what: str, values: Any, ids: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return an array of numbers (n, ...) as float64; NaN = missing.

    Args:
        what: begins the message, such as ``"targets of 'mass'"``.
        values: the array.
        ids: what messages call the n rows.

    Raises:
        DataError: for dates, durations and other things that are not numbers, for values beyond float32, and for
            integers that float64 cannot hold, naming the first row.
    """
    array = np.asarray(values)
    if array.dtype.kind in "mM":
        raise DataError(f"{what} are {array.dtype}; expected numbers: count days or seconds since a date of your own")
    try:
        if array.dtype.kind == "c":
            raise ValueError(f"dtype {array.dtype}")
        found: np.ndarray[Any, np.dtype[np.float64]] = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not numbers ({error}); missing ones are NaN") from error
    far = np.abs(found) > LARGEST
    if array.dtype.kind in "iu" and (np.abs(found) >= EXACT).any():
        far |= np.vectorize(lambda number: int(number) != int(float(number)), otypes=[bool])(array)
    if far.any():
        place = tuple(np.argwhere(far)[0])
        row = f" of {ids[place[0]]!r}" if place else ""
        raise DataError(
            f"{what}: the value{row} is {array[place]}; expected finite numbers within +-3.4e38, and integers that "
            "float64 holds exactly. Missing values are NaN"
        )
    return found


def _decimal(text: str) -> Decimal | None:
    if not text.isascii() or "_" in text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < 308 else None
