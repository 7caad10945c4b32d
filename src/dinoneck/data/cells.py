"""What the cells of a table hold: names, numbers, and nothing. Neither pandas nor torch is imported."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from math import isfinite
from typing import Any

from dinoneck.errors import DataError
from dinoneck.text import some_of

PathLike = str | os.PathLike[str]
IMAGES, LABELS, GROUP, FOLD = "images", "labels", "group", "fold"
OWN_COLUMNS = (IMAGES, LABELS, GROUP, FOLD)
"""Columns of a table that are not its targets, see :func:`dinoneck.data.read_table`."""
FRAME_NAME = "the DataFrame"
"""What messages call a table that is not of a file."""
MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""What pandas reads as a missing value, in lower case."""


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


def composed(text: str) -> str:
    """Return a text in which an é is one character, without blanks at its ends."""
    return unicodedata.normalize("NFC", text.strip())


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty text, None, NaN, NaT or pandas.NA."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or str(value) in ("nan", "NaN", "NaT", "<NA>")


def cell_text(value: Any) -> str:
    """Return a value as a CSV would hold it; empty where it is missing."""
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return composed(str(value))


def cell_texts(values: Iterable[Any]) -> list[str]:
    """Return :func:`cell_text` of each value of a column."""
    return [cell_text(value) for value in values]


def number_of(text: str) -> float | None:
    """Return the finite number that a cell spells, with a decimal point; None if it spells none."""
    try:
        number = float(text) if "_" not in text else float("nan")
    except ValueError:
        return None
    return number if isfinite(number) else None


def is_number(text: str) -> bool:
    """Whether a cell spells a finite number."""
    return number_of(text) is not None


def same_labels(labels: Iterable[Any], row_names: Iterable[Any], what: str) -> list[Hashable]:
    """Return labels of which those that mean the same are equal: 1, 1.0 and 01 if all are numbers.

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
        return [f"{float(text):.15g}" for text in texts]
    return [*texts]
