"""What a single cell of a table holds: nothing, a number, or a text. Neither pandas nor torch is imported."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from decimal import Context, Decimal
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal

from dinoneck.errors import DataError
from dinoneck.text import some_of

PathLike = str | os.PathLike[str]
DecimalMark = Literal[".", ","]
IMAGES, LABELS, GROUP, FOLD = "images", "labels", "group", "fold"
OWN_COLUMNS = (IMAGES, LABELS, GROUP, FOLD)
"""Columns of a table that are not its targets, see :func:`dinoneck.data.read_table`."""
FRAME_NAME = "the DataFrame"
"""What messages call a table that is not of a file."""
_BYTE_ORDER_MARK = "\ufeff"  # of joined files, invisible inside of a text


def check_unique(names: Iterable[Any], what: str, remedy: str) -> None:
    """Check that no name occurs twice; ``what`` calls it in the message.

    Raises:
        DataError: naming the first one that does.
    """
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


def stripped(text: str) -> str:
    """Return a text without blanks and byte order marks at its ends."""
    return text.strip().strip(_BYTE_ORDER_MARK).strip()


def composed(text: str) -> str:
    """Return a text in NFC, where an é is one character, without blanks at its ends."""
    return unicodedata.normalize("NFC", stripped(text))


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: an empty text, None, NaN, NaT or pandas.NA."""
    if isinstance(value, str):
        return not stripped(value)
    return value is None or str(value) in ("nan", "NaN", "NaT", "<NA>")


def cell_text(value: Any) -> str:
    """Return a value as a CSV file holds it, see :func:`composed`; empty where it is missing."""
    if isinstance(value, str):
        return composed(value)
    if is_missing(value):
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() else repr(number)
    return composed(str(value))


def cell_texts(values: Iterable[Any]) -> list[str]:
    """Return :func:`cell_text` of each value of a column."""
    return [cell_text(value) for value in values]


def number_of(text: str, decimal: str = ".") -> float | None:
    """Return the finite number that a cell spells with this decimal mark; None if it spells none."""
    if "_" in text:  # Python reads 1_000
        return None
    if decimal != ".":
        if "." in text:
            return None
        text = text.replace(decimal, ".")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def is_number(text: str) -> bool:
    """Whether a cell spells a finite number with a decimal point."""
    return number_of(text) is not None


def number_text(text: str) -> str:
    """Return one spelling of a number: 1 for 1, 1.0 and 01. No digit is lost.

    Args:
        text: a number, see :func:`is_number`.
    """
    number = Decimal(text).normalize(Context(prec=len(text)))
    return f"{number:f}" if number else "0"


def same_labels(labels: Iterable[Any], row_names: Iterable[Any], what: str) -> list[Hashable]:
    """Return labels as texts of which those that mean the same are equal: 1, 1.0 and 01 if all are numbers.

    Args:
        labels: one per row.
        row_names: what messages call the rows.
        what: what messages call a label, such as ``"group"``.

    Raises:
        DataError: for missing labels, naming their rows.
    """
    texts = cell_texts(labels)
    missing = [str(name) for name, text in zip(row_names, texts, strict=True) if not text]
    if missing:
        raise DataError(
            f"the {what} is missing in {some_of(missing, 5)}. Fill it in, or remove the rows"
        )
    if all(map(is_number, texts)):
        return [number_text(text) for text in texts]
    return [*texts]
