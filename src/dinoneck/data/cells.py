"""What single cells of a table mean.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import Context, Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Any, TypeVar

from dinoneck.errors import DataError
from dinoneck.text import some_of

PathLike = str | os.PathLike[str]
LARGEST = 2.0**128 - 2.0**104  # of float32, which predictions are
# float64 holds all numbers between 1e-307 and 1e308 with all of its digits: its largest number is
# 1.8e308, its smallest normal one 2.2e-308
_LARGEST_EXPONENT = 307
IMAGES, LABELS, GROUP, FOLD = "images", "labels", "group", "fold"
OWN_COLUMNS = (IMAGES, LABELS, GROUP, FOLD)
"""Columns of a table that are not its targets, see :func:`dinoneck.data.read_table`."""
FRAME_NAME = "the DataFrame"
"""What messages call a table that is not of a file."""
MISSING_WORDS = frozenset({"na", "n/a", "n.a.", "n.a", "n. a.", "<na>", "null", "\\n", "none", "."})
"""What people, R, pandas, databases, SAS and Stata write for a missing value, in lower case.

In a column of numbers it can be nothing else; in a column of words it may be a name (Namibia), so
there it is a word like any other.
"""
# marks that no one sees, and that copying from Windows, browsers and office programs leaves at the
# ends of a cell: byte order mark, zero width space, word joiner, marks of the writing direction
_INVISIBLE = "\ufeff\u200b\u2060\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# of ASCII, what str.strip() takes off
_ASCII_BLANKS = " \t\n\r\v\f\x1c\x1d\x1e\x1f"
_Result = TypeVar("_Result")


def check_unique(names: Iterable[Any], what: str, remedy: str) -> None:
    """Refuse a name that occurs several times; ``what`` calls it in the message."""
    seen = set[Any]()
    for name in names:
        if name in seen:
            raise DataError(f"{what} {name!r} stands more than once; {remedy}")
        seen.add(name)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV text with a header row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty text, ``nan`` in any case, None, NaN, NaT or pandas.NA."""
    if isinstance(value, str):
        return strip_cell(value).lower() in ("", "nan")
    return value is None or str(value) in ("nan", "NaN", "NaT", "<NA>")


def strip_cell(text: str) -> str:
    """Return a text without blanks and invisible marks at its ends."""
    stripped = text.strip()
    if stripped.isascii():
        return stripped
    while stripped and (stripped[0] in _INVISIBLE or stripped[-1] in _INVISIBLE):
        stripped = stripped.strip(_INVISIBLE).strip()
    return stripped


def cell_text(value: Any) -> str:
    """Return a value as a CSV would hold it, stripped and composed (NFC); empty where it is missing."""
    if isinstance(value, str):
        text = strip_cell(value)
        if text.lower() == "nan":
            return ""
        return text if text.isascii() else unicodedata.normalize("NFC", text)
    if is_missing(value):
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() else repr(number)
    return unicodedata.normalize("NFC", str(value).strip())


def cell_texts(values: Sequence[Any]) -> list[str]:
    """Return :func:`cell_text` of each value of a column."""
    if are_plain(values):
        return list(values)
    return for_each(cell_text, values)


def strip_cells(texts: Sequence[str]) -> list[str]:
    """Return :func:`strip_cell` of each text of a column."""
    if are_plain(texts):
        return list(texts)
    return for_each(strip_cell, texts)


def are_plain(values: Sequence[Any]) -> bool:
    """Whether all values are texts that stay as they are: ASCII without a blank, and no ``nan`` in them.

    All of them are searched as one text, which takes a hundredth of the time of a search in each.
    """
    if set(map(type, values)) != {str}:
        return False
    joined = "".join(values)
    if not joined.isascii() or "nan" in joined.lower():
        return False
    return not any(blank in joined for blank in _ASCII_BLANKS)


def for_each(function: Callable[[Any], _Result], values: Sequence[Any]) -> list[_Result]:
    """Return the result of a function for each value; of equal texts it is called for one."""
    if set(map(type, values)) != {str}:
        return [function(value) for value in values]
    results = {text: function(text) for text in dict.fromkeys(values)}
    return [results[text] for text in values]


def as_decimal(text: str) -> Decimal | None:
    """Return the number that a cell spells, which may be infinite or NaN; None if it spells something else."""
    try:
        return Decimal(text) if text.isascii() and "_" not in text else None
    except InvalidOperation:
        return None


def is_number(text: str) -> bool:
    """Whether a cell spells a number that float64 holds: finite, and neither too large nor too small."""
    number = as_decimal(text)
    if number is None or not number.is_finite():
        return False
    return abs(number.adjusted()) <= _LARGEST_EXPONENT


def label_of(text: str) -> str:
    """Return the same text for all spellings of a number, such as 1, 1.0 and 01; other texts as they are."""
    if not is_number(text):
        return text
    number = Decimal(text).normalize(Context(prec=len(text)))  # no digit is lost
    return f"{number:f}" if number else "0"


def same_labels(labels: Iterable[Any], row_names: Iterable[Any], what: str) -> list[Hashable]:
    """Return labels of which those that mean the same are equal.

    Texts are stripped and composed (NFC). Where all labels are numbers, also as text, they are
    compared as numbers: ``1``, ``1.0`` and ``01`` are one label.

    Args:
        labels: one per row; texts, numbers or any values that can be hashed.
        row_names: what messages call the rows.
        what: what messages call a label, such as ``"group"``.

    Raises:
        DataError: for missing labels, naming their rows.
    """
    labels = list(labels)
    are_missing = for_each(is_missing, labels)
    if any(are_missing):
        missing = []
        for row_name, is_without in zip(row_names, are_missing, strict=True):
            if is_without:
                missing.append(str(row_name))
        raise DataError(
            f"the {what} is missing in {some_of(missing, 5)}. Fill it in, or remove the rows"
        )
    texts = for_each(_label_text, labels)
    if all(for_each(_is_number_as_text, texts)):
        return [*for_each(label_of, texts)]
    return texts


def _label_text(label: Hashable) -> Hashable:
    """A text or a number as a CSV would hold it; other labels as they are."""
    return cell_text(label) if isinstance(label, str | Real) else label


def _is_number_as_text(label: Hashable) -> bool:
    return isinstance(label, str) and is_number(label)
