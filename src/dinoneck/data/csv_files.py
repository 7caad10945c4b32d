"""CSV files as rows of text. Neither pandas nor torch is imported.

A CSV file is UTF-8, or UTF-16 with a byte order mark. Its first row is the header; a line ``sep=;``
above it is read. Comma, semicolon or tab separates the cells: the one that gives the header the
columns that are read. Blank rows are left out; all other rows have as many cells as the header.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from dinoneck.atomic import read_regular
from dinoneck.data.cells import PathLike, check_unique, composed, stripped
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, reason_of, some_of

_SEPARATORS = (",", ";", "\t")
_SEPARATOR_LINES = {f"sep={separator}": separator for separator in _SEPARATORS}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SHOWN = 10  # columns in a message


@dataclass(frozen=True)
class CsvFile:
    """The cells of a CSV file, without blanks at their ends.

    Attributes:
        name: of the file.
        header: names of the columns, composed (NFC).
        rows: of cells as they are written, as many as the header has.
        lines: of the file that the rows end at, from 1.
        separator: between the cells.
    """

    name: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str

    def column(self, name: str) -> list[str]:
        """Return the cells of a column as they are written."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]


def read_csv_file(
    path: PathLike, columns: Sequence[str] = (), image_column: str | None = None
) -> CsvFile:
    """Read a CSV file, of one row or more.

    Args:
        path: the file.
        columns: which it must have, once.
        image_column: the one among them that holds the names of images.

    Raises:
        DataError: if it cannot be read, has a row of another length than the header, no rows, or
            not the columns.
    """
    text = _text_of(path)
    first_line, _, rest = text.partition("\n")
    separator = _SEPARATOR_LINES.get(first_line.strip("\r").lower())
    first = 0
    if separator is not None:
        text = rest
        first = 1
    else:
        separator = _separator_of(text, columns)
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            row = [stripped(cell) for cell in cells]
            line = first + reader.line_num
            if not any(row):
                continue
            if rows and len(row) != len(rows[0]):
                raise DataError(
                    f"{path}: line {line} has {len(row)} cells, and the header {len(rows[0])}, "
                    f"separated by {separator!r}; expected as many: put a cell that holds the "
                    "separator in quotes"
                )
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        line = first + reader.line_num
        raise DataError(f"{path}: line {line} is no row of a CSV file: {error}") from error
    header = [composed(cell) for cell in rows[0]] if rows else []
    check_header(str(path), header, columns, image_column)
    check_has_rows(str(path), len(rows[1:]))
    return CsvFile(str(path), header, rows[1:], lines[1:], separator)


def _text_of(path: PathLike) -> str:
    """The text of a file, with its own ends of lines."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the name") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    codec = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not {codec[:6].rstrip('-').upper()} in line {line}; save it as CSV in UTF-8 "
            "(in Excel: 'CSV UTF-8')"
        ) from error


def _separator_of(text: str, columns: Sequence[str]) -> str:
    """The separator that gives the header most of the columns; among equals, most cells."""
    best = _SEPARATORS[0]
    most = (-1, -1)
    for separator in _SEPARATORS:
        header = _header_of(text, separator)
        counts = (len(set(columns).intersection(header)), len(header))
        if counts > most:
            best = separator
            most = counts
    return best


def _header_of(text: str, separator: str) -> list[str]:
    """The first row that is not blank; empty if there is none."""
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            row = [composed(cell) for cell in cells]
            if any(row):
                return row
    except csv.Error:  # of a cell without an end, which reading the file names
        pass
    return []


def check_header(
    name: str, header: Sequence[str], columns: Sequence[str], image_column: str | None = None
) -> None:
    """Check that a table has each of the columns once.

    Args:
        name: of the table, for messages.
        header: names of its columns.
        columns: which it must have.
        image_column: the one among them that holds the names of images.

    Raises:
        DataError: naming the column.
    """
    used = [column for column in header if column in columns]
    check_unique(used, f"{name}: the column", "rename one of them")
    for column in columns:
        if column in header:
            continue
        remedy = did_you_mean(column, header)
        if column == image_column:
            remedy += " image_column= (--image-column) names the column of file names."
        raise DataError(
            f"{name} has no column {column!r}; there are {some_of(header, _SHOWN) or 'none'}.{remedy}"
        )


def check_has_rows(name: str, num_rows: int) -> None:
    """Raise a DataError for a table without rows."""
    if not num_rows:
        raise DataError(f"{name} has no rows")
