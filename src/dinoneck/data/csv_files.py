"""CSV files as rows of text: UTF-8 or UTF-16, a header, and a comma, semicolon or tab between cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.cells import PathLike, check_unique, composed
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, reason_of, some_of

_SEPARATORS = ",;\t"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class CsvFile:
    """A table of text.

    Attributes:
        name: of the file.
        header: names of the columns.
        rows: of cells, as many as the header has.
        separator: between the cells.
    """

    name: str
    header: list[str]
    rows: list[list[str]]
    separator: str

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]


def read_csv_file(path: PathLike, columns: Sequence[str] = ()) -> CsvFile:
    """Read a CSV file; cells are stripped and composed (NFC), and empty rows are left out.

    Args:
        path: the file.
        columns: which it must have.

    Raises:
        DataError: if it cannot be read, is not rectangular, or lacks a column.
    """
    text = _text_of(Path(path))
    first_line = text.lstrip().partition("\n")[0]
    separator = max(_SEPARATORS, key=first_line.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        for line in lines:
            cells = [composed(cell) for cell in line]
            if not any(cells):
                continue
            if rows and len(cells) != len(rows[0]):
                raise DataError(
                    f"{path}: line {lines.line_num} has {len(cells)} cells and the header "
                    f"{len(rows[0])}; expected as many (separated by {separator!r}): put a cell that "
                    "holds the separator in quotes"
                )
            rows.append(cells)
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num}: {reason_of(error)}") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a header and one row per image")
    table = CsvFile(str(path), rows[0], rows[1:], separator)
    check_header(str(path), table.header, columns)
    return table


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {encoding} at byte {error.start}; save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error


def check_header(
    name: str, header: Sequence[str], columns: Sequence[str], image_column: str | None = None
) -> None:
    """Refuse a table that lacks a column, or has one twice.

    Raises:
        DataError: naming the column.
    """
    check_unique(
        [column for column in header if column in columns], f"{name}: the column", "rename"
    )
    for column in columns:
        if column not in header:
            option = " (--image-column)" if column == image_column else ""
            raise DataError(
                f"{name} has no column {column!r}{option}; there are {some_of(header, 10)}."
                f"{did_you_mean(column, header)}"
            )


def check_has_rows(name: str, num_rows: int) -> None:
    """Refuse a table without rows."""
    if not num_rows:
        raise DataError(f"{name} has no rows; expected one per image")
