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
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.cells import EXACT, LARGEST, as_number, cell_text, is_missing, is_number, label_of, same_labels
from dinoneck.errors import DataError, did_you_mean
from dinoneck.regular_files import open_regular

logger = logging.getLogger(__name__)

MISSING_CLASS = -1
CSIRO_COLUMNS = ("sample_id", "image_path", "target_name")
_SURPLUS = "\0 fields beyond the header"
_SHOWN = 5

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sheet:
    """The cells of a table as text without spaces around it.

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
        cells[image_column] = [str(name).strip() for name in source.index]
    _check_columns("the DataFrame", header, [column for column in columns if column not in cells])
    labels = dict(zip(header, source.columns, strict=True))
    cells |= {
        column: [cell_text(value) for value in source[labels[column]]] for column in columns if column not in cells
    }
    if not len(source.index):
        raise DataError("the DataFrame has no rows")
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return Sheet("the DataFrame", rows, [f"row {label!r}" for label in source.index])


def column_values(sheet: Sheet, column: str, classes: Sequence[str] | None = None) -> tuple[Values, tuple[str, ...]]:
    """Return the values of a column and its class names.

    A column is one of numbers or one of class names; what most of its cells are decides. Empty cells are missing.

    Args:
        sheet: the table.
        column: one of its columns.
        classes: the class names in their order; the column may hold no others. Empty = all cells are class names, also
            numbers; None = decided by the cells.

    Returns:
        float64 numbers, NaN where empty, and ``()``; or int64 class indices, -1 where empty, and the sorted names.

    Raises:
        DataError: for a cell that does not fit, naming its row, a column with a single class, or classes that are
            equal.
    """
    filled = [text for text in sheet.cells(column) if not is_missing(text)]
    words = [text for text in filled if _is_word(text)]
    one_word = len(set(words)) == 1 and len(words) < len(filled)  # such as NA among numbers
    if classes is None and (one_word or len(words) * 2 <= len(filled)):
        return numbers(sheet, column), ()
    are_numbers = all(map(is_number, filled))
    found = {label_of(text, are_numbers) for text in (words if classes is None else filled)}
    names = tuple(map(str, classes or ())) or tuple(sorted(found, key=_in_order))
    index_of = {label_of(name, are_numbers): index for index, name in enumerate(names)}
    if len(index_of) < len(names) or any(map(is_missing, names)):
        raise DataError(f"classes= gives {classes!r} for {column!r}; expected names that differ, none empty or nan")
    values, expected = [], f"one of {', '.join(names)}" if classes else "a class name"
    for i, text in enumerate(sheet.cells(column)):
        index = index_of.get(label_of(text, are_numbers), MISSING_CLASS)
        if index == MISSING_CLASS and not is_missing(text):
            hint = did_you_mean(text, names) if classes else " List the names with classes= if this is one"
            raise _misfit(sheet, i, column, expected, "Correct it or remove the row." + hint)
        values.append(index)
    if len(names) < 2 and filled:
        raise DataError(f"{sheet.name}: {column} holds the class {names[0]!r} alone; expected two classes or more")
    return np.array(values, dtype=np.int64), names


def numbers(sheet: Sheet, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of numbers, float64; NaN where a cell is empty.

    Raises:
        DataError: for a cell that is neither empty nor a number within float32, naming its row.
    """
    values = []
    for i, text in enumerate(sheet.cells(column)):
        value = math.nan if is_missing(text) else as_number(text)
        if value is None or abs(value) > LARGEST or (value != value and not is_missing(text)):
            comma = re.fullmatch(r"[-+]?\d+,\d+", text)
            remedy = "Write it with a decimal point" if comma else "Correct it or remove the row"
            hint = "; a column of class names holds no numbers, unless classes= lists them" if _is_word(text) else ""
            expected = "a finite number" + ("" if value is None else " within float32 (+-3.4e38)")
            raise _misfit(sheet, i, column, expected, remedy + hint)
        if abs(value) >= EXACT and re.fullmatch(r"[-+]?\d+", text) and int(text) != int(value):
            raise _misfit(sheet, i, column, "a number that float64 holds exactly", "Subtract an offset")
        values.append(value)
    return np.array(values, dtype=np.float64)


def refuse_times(source: Any, columns: Sequence[str]) -> None:
    """Refuse columns of a DataFrame that hold dates or durations, which are neither numbers nor classes.

    Raises:
        DataError: naming the column and its first such row.
    """
    labels = dict(zip(header_of(source), source.columns, strict=True)) if is_frame(source) else {}
    for column in [column for column in columns if column in labels]:
        for label, value in source[labels[column]].items():
            if isinstance(value, date | timedelta | np.datetime64 | np.timedelta64) and not is_missing(value):
                raise DataError(
                    f"the DataFrame row {label!r}: {column} is {value}, a {type(value).__name__}; expected a number or "
                    "a class name. Count days or seconds since a date of your own, or make it text with astype(str)"
                )


def row_labels(sheet: Sheet, columns: Sequence[str], what: str) -> tuple[str, ...] | None:
    """Return the group, or the fold, of each row; of several columns the joined labels; None for no columns.

    Raises:
        DataError: for missing labels, see :func:`dinoneck.data.cells.same_labels`.
    """
    each = [same_labels(sheet.cells(name), sheet.places, f"{what} in column {name!r}") for name in columns]
    if len(columns) < 2:
        return tuple(map(str, each[0])) if each else None
    return tuple(" | ".join(str(label).replace("|", "||") for label in row) for row in zip(*each, strict=True))


def existing_files(names: Sequence[str], folder: str | os.PathLike[str] | None, what: str) -> tuple[Path, ...]:
    """Return the files of these names, below a folder if one is given; ``what`` calls them in messages.

    Raises:
        DataError: if the folder or a file does not exist, or two names are one file.
    """
    if folder is None:
        return tuple(Path(name) for name in names)
    if not Path(folder).is_dir():
        raise DataError(f"the image folder {folder} does not exist")
    files = tuple(Path(folder) / name for name in names)
    missing = [name for name, file in zip(names, files, strict=True) if not file.is_file()]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise DataError(
            f"{len(missing)} of {len(files)} {what} are not in {folder}: {shown}. Check the image folder (names are "
            "relative to it) or remove the rows"
        )
    first: dict[Path, str] = {}
    for name, file in zip(names, files, strict=True):
        other = first.setdefault(file.resolve(), name)
        if other != name:
            raise DataError(f"of the {what}, {other!r} and {name!r} are the same image; keep one row for each image")
    return files


def mask_files(sheet: Sheet, column: str, folder: str | os.PathLike[str] | None) -> tuple[Path | None, ...]:
    """Return the mask of each row; None where the cell is empty.

    Raises:
        DataError: as :func:`existing_files`, and if all cells are empty.
    """
    named = [(row, name) for row, name in enumerate(sheet.cells(column)) if not is_missing(name)]
    if not named:
        raise DataError(f"{sheet.name}: the column {column!r} names no mask; leave it out, or fill in some")
    files = existing_files([name for _, name in named], folder, f"masks named in column {column!r} of {sheet.name}")
    found = dict(zip((row for row, _ in named), files, strict=True))
    if len(found) < len(sheet.rows):
        logger.info("%s: %s names a mask for %d of %d images", sheet.name, column, len(found), len(sheet.rows))
    return tuple(found.get(row) for row in range(len(sheet.rows)))


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
    """Return the stripped cells of a CSV that has these columns, once each, and no row of another length."""
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
    return [{column: text.strip() for column, text in row.items()} for row in rows]


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


def _is_word(text: str) -> bool:
    return as_number(text) is None and any(sign.isalpha() for sign in text)


def _in_order(text: str) -> tuple[bool, float, str]:
    """A key that sorts numbers by their size, before words."""
    number = as_number(text)
    return (True, 0.0, text) if number is None else (False, number, text)


def _misfit(sheet: Sheet, i: int, column: str, expected: str, remedy: str) -> DataError:
    where = f"{sheet.name} {sheet.places[i]}: {column} is {sheet.rows[i][column]!r}"
    return DataError(f"{where}; expected {expected}, or an empty cell where it is unknown. {remedy}")
