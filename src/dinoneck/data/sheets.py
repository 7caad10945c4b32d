"""Tables as text: the cells of a CSV file or a DataFrame, and the numbers or classes in their columns."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.errors import DataError, did_you_mean
from dinoneck.regular_files import open_regular

logger = logging.getLogger(__name__)

MISSING_CLASS = -1
CSIRO_COLUMNS = ("sample_id", "image_path", "target_name")
_EMPTY = ("", "nan", "na", "n/a", "null", "<na>", "-")
_SURPLUS = "\0 fields beyond the header"

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sheet:
    """The cells of a table as text.

    Attributes:
        name: what messages call the table.
        rows: one mapping per row, column -> cell.
        places: what messages call each row, such as ``row 2``.
    """

    name: str
    rows: list[dict[str, str]]
    places: list[str]

    def cells(self, column: str) -> list[str]:
        """Return the cells of a column."""
        return [row[column] for row in self.rows]


def is_frame(source: Any) -> bool:
    """Whether a table is a DataFrame; pandas itself is not imported."""
    return hasattr(source, "columns") and hasattr(source, "index")


def header_of(source: Any) -> list[str]:
    """Return the columns of a CSV file or a DataFrame."""
    return [str(column) for column in source.columns] if is_frame(source) else csv_header(_path(source))


def read_sheet(source: Any, columns: Sequence[str], image_column: str) -> Sheet:
    """Read the cells of a CSV file or a DataFrame.

    Args:
        source: the path of a CSV file, or a DataFrame.
        columns: the columns that it must have.
        image_column: the column that the index of a DataFrame stands for where it has no such column.

    Raises:
        DataError: if a column is missing or occurs twice, there are no rows, or a row has another number of fields.
    """
    if not is_frame(source):
        rows = csv_rows(_path(source), columns)
        return Sheet(str(source), rows, [f"row {line}" for line in range(2, len(rows) + 2)])
    header = header_of(source)
    cells: dict[str, list[str]] = {}
    if image_column in columns and image_column not in header:
        if not all(isinstance(name, str | os.PathLike) for name in source.index):
            raise DataError(
                f"the DataFrame has no column {image_column!r} and its index holds no file names.{_held(header)}. Name "
                "the column of images with image_column=, or make it the index with set_index()"
            )
        cells[image_column] = [str(name) for name in source.index]
    _check_columns("the DataFrame", header, [column for column in columns if column not in cells])
    labels = dict(zip(header, source.columns, strict=True))
    cells |= {column: [_text(value) for value in source[labels[column]]] for column in columns if column not in cells}
    if not len(source.index):
        raise DataError("the DataFrame has no rows")
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return Sheet("the DataFrame", rows, [f"row {label!r}" for label in source.index])


def column_values(
    sheet: Sheet, column: str, classes: Sequence[str] | None = None, *, gaps: bool = False
) -> tuple[Values, tuple[str, ...]]:
    """Return the values of a column and its class names.

    A column is one of numbers or one of class names; what most of its cells are decides.

    Args:
        sheet: the table.
        column: one of its columns.
        classes: the class names in their order; the column may hold no others. Empty = all cells are class names, also
            numbers; None = decided by the cells.
        gaps: cells may be empty.

    Returns:
        float64 numbers, NaN where empty, and ``()``; or int64 class indices, -1 where empty, and the sorted names.

    Raises:
        DataError: for a cell that does not fit, naming its row, or a column with a single class.
    """
    filled = [_class_name(text) for text in sheet.cells(column) if not _is_empty(text, classes or ())]
    words = [text for text in filled if _is_word(text)]
    if classes is None and len(words) * 2 <= len(filled):
        return numbers(sheet, column, gaps=gaps), ()
    names = tuple(map(str, classes or ())) or tuple(sorted(set(words if classes is None else filled), key=_in_order))
    expected = f"one of {', '.join(names)}" if classes else "a class name"
    values, index_of = [], {_class_name(name): index for index, name in enumerate(names)}
    for i, text in enumerate(map(_class_name, sheet.cells(column))):
        if text not in index_of and not (gaps and _is_empty(text)):
            hint = did_you_mean(text, names) if classes else " List the names with classes= if this is one"
            raise _misfit(sheet, i, column, gaps, expected, "Correct it or remove the row." + hint)
        values.append(index_of.get(text, MISSING_CLASS))
    if len(names) < 2 and filled:
        raise DataError(f"{sheet.name}: {column} holds the class {names[0]!r} alone; expected two classes or more")
    return np.array(values, dtype=np.int64), names


def numbers(sheet: Sheet, column: str, *, gaps: bool = False) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of numbers, float64; NaN where a cell is empty.

    Raises:
        DataError: for a cell that is not a finite number, or is empty without ``gaps``, naming its row.
    """
    values = []
    for i, text in enumerate(sheet.cells(column)):
        value = _as_number(text)
        if (value is None or not math.isfinite(value)) and not (gaps and _is_empty(text)):
            comma = re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text)
            remedy = "Write it with a decimal point" if comma else "Correct it or remove the row"
            hint = "; a column of class names holds no numbers, unless classes= lists them" if _is_word(text) else ""
            raise _misfit(sheet, i, column, gaps, "a finite number", remedy + hint)
        values.append(math.nan if value is None else value)
    return np.array(values, dtype=np.float64)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV text with a header row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def csv_header(path: Path) -> list[str]:
    """Return the columns of a CSV; none where it is empty."""
    try:
        with _opened(path) as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}; save it as UTF-8") from error


def csv_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV that has these columns, once each, and no row of another length."""
    header = csv_header(path)
    _check_columns(str(path), header, columns)
    with _opened(path) as file:
        try:
            rows = list(csv.DictReader(file, restkey=_SURPLUS, restval=None))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}; save it as UTF-8") from error
    if not rows:
        raise DataError(f"{path} has a header and no rows")
    for line, row in enumerate(rows):
        if None in row.values() or _SURPLUS in row:
            raise DataError(f"{path} row {line + 2} has another number of fields than the header ({len(header)})")
    return rows


def _opened(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")


@dataclass(frozen=True)
class Wanted:
    """The rows of a CSIRO ``test.csv``, in its order: what a submission must answer.

    Attributes:
        sample_ids: one per row.
        images: the ``image_path`` of each row.
        targets: the ``target_name`` of each row.
    """

    sample_ids: tuple[str, ...]
    images: tuple[str, ...]
    targets: tuple[str, ...]


def read_csiro_test(path: str | os.PathLike[str]) -> Wanted:
    """Read a CSIRO ``test.csv``: sample_id, image_path, target_name, in its order.

    Raises:
        DataError: if a column is missing or a sample_id occurs twice.
    """
    rows = csv_rows(Path(path), CSIRO_COLUMNS)
    refuse_repeats([row["sample_id"] for row in rows], f"{path}: sample_id", "keep one row for each sample_id")
    return Wanted(*(tuple(row[column] for row in rows) for column in CSIRO_COLUMNS))


def read_column(path: str | os.PathLike[str], column: str) -> tuple[str, ...]:
    """Read one column of a CSV as text.

    Raises:
        DataError: if it is missing or the file is empty.
    """
    return tuple(row[column] for row in csv_rows(Path(path), (column,)))


def is_csiro(path: str | os.PathLike[str]) -> bool:
    """Whether a CSV has the columns of the CSIRO layout."""
    return set(CSIRO_COLUMNS) <= set(csv_header(Path(path)))


def refuse_repeats(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse names of which one stands there twice; ``what`` begins the message."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what} {name!r} stands more than once; {remedy}")
        seen.add(name)


def _path(source: Any) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"a table is {type(source).__name__}; expected the path of a CSV file or a pandas DataFrame")
    return Path(source)


def _check_columns(table: str, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            remedy = " Another column of images is named by image_column= (--image-column)" if column == "image" else ""
            raise DataError(
                f"{table} has no column {column!r}.{did_you_mean(column, header)}{_held(header)}."
                f"{_separator_hint(header) or remedy}"
            )
        if header.count(column) > 1:
            raise DataError(f"{table} has {header.count(column)} columns named {column!r}")


def _held(header: Sequence[str]) -> str:
    return f" It has: {', '.join(header)}" if any(header) else " It has no header"


def _separator_hint(header: Sequence[str]) -> str:
    marks = [mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]]
    return f" Columns seem to be separated by {marks[0]!r}: save the table with commas" if marks else ""


def _text(value: Any) -> str:
    """A cell of a DataFrame as a CSV would hold it; empty where it is missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return "" if math.isnan(number) else f"{number:.0f}" if number.is_integer() else repr(number)
    return str(value)


def _is_empty(text: str, classes: Sequence[str] = ()) -> bool:
    return text.strip().lower() in _EMPTY and text.strip() not in classes


def _is_word(text: str) -> bool:
    return _as_number(text) is None and any(sign.isalpha() for sign in text)


def _class_name(text: str) -> str:
    """The cell without spaces around it; 1.0 is 1, since spreadsheets write both."""
    return re.sub(r"^([-+]?[0-9]+)\.0+$", r"\1", text.strip())


def _in_order(text: str) -> tuple[bool, float, str]:
    """A key that sorts numbers by their size, before words."""
    number = _as_number(text)
    return (True, 0.0, text) if number is None else (False, number, text)


def _as_number(text: str) -> float | None:
    """The number that a cell spells, which may be infinite or NaN; None if it spells something else."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def _misfit(sheet: Sheet, i: int, column: str, gaps: bool, expected: str, remedy: str) -> DataError:
    text = sheet.rows[i][column]
    if _is_empty(text):
        remedy = "Fill it in or remove the row"
        remedy += ". It reads as a missing value: if it is a class, spell it another way" if text.strip() else ""
    place, nothing = sheet.places[i], ", or nothing" if gaps else ""
    return DataError(f"{sheet.name} {place}: {column} is {text!r}; expected {expected}{nothing}. {remedy}")
