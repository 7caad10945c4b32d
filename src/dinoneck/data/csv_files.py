"""CSV files as spreadsheets, pandas and R write them: from bytes to rows of text.

What is exact is read, and stated as a repair: UTF-16 with a byte order mark, a first line
``sep=;``, blank rows, empty cells after the last column, texts that are written as the formula
``="007"``. Everything else is an error with its row. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from dinoneck.atomic import read_regular
from dinoneck.data.cells import PathLike, cell_text
from dinoneck.errors import DataError
from dinoneck.text import counted, did_you_mean, reason_of

SEPARATORS = (",", ";", "\t")
# rows that are read to find out what separates the cells: titles and units of a spreadsheet are
# above its numbers, in fewer rows than this
_ROWS_TO_TRY = 20
_SEPARATOR_LINE = re.compile(r'"?sep=(\\t|[^"\w\n])"?[;,\t]*\s*', re.IGNORECASE)
_TEXT_FORMULA = re.compile(r'="((?:[^"]|"")*)"')


@dataclass(frozen=True)
class _Encoding:
    """An encoding of texts.

    Attributes:
        name: in messages.
        codec: its name in Python.
        mark: the byte order mark that a file begins with.
    """

    name: str
    codec: str
    mark: bytes = b""


_UTF_8 = _Encoding("UTF-8", "utf-8")
# the mark of UTF-32 begins with that of UTF-16, so UTF-32 is tried first
_ENCODINGS_WITH_MARK = (
    _Encoding("UTF-8", "utf-8-sig", codecs.BOM_UTF8),
    _Encoding("UTF-32", "utf-32", codecs.BOM_UTF32_LE),
    _Encoding("UTF-32", "utf-32", codecs.BOM_UTF32_BE),
    _Encoding("UTF-16", "utf-16", codecs.BOM_UTF16_LE),
    _Encoding("UTF-16", "utf-16", codecs.BOM_UTF16_BE),
)
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a workbook of Excel, LibreOffice or Numbers, or another zip file"),
    (b"\xd0\xcf\x11\xe0", "an .xls workbook of Excel"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"{\\rtf", "a document in rich text format"),
    (b"ARROW1", "a Feather file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x02", "a pickle of Python"),
    (b"\x80\x03", "a pickle of Python"),
    (b"\x80\x04", "a pickle of Python"),
    (b"\x80\x05", "a pickle of Python"),
    (b"\x93NUMPY", "a file of NumPy"),
    (b"BZh91AY", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"7z\xbc\xaf", "a 7z file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"$FL2", "a file of SPSS"),
    (b"<stata_dta>", "a file of Stata"),
)
# an object, which may be the first one of a list or of lines: {"image":
_JSON_OBJECT = re.compile(
    rb"""
    \s* (?: \[ \s* )?
    \{ \s* (?: "[^"]*" \s* : | \} )
    """,
    re.VERBOSE,
)
# lists, texts or numbers in a list, or an empty list; the first cell of a CSV file may begin so too
_JSON_LIST = re.compile(rb'\s*\[\s*[\[\]"\d-]')
_KEY_OF_COCO = b'"annotations"'
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_MARKUP = re.compile(rb"\s*<(\?xml|!doctype|html|table|workbook)", re.IGNORECASE)
_MOST_LISTED = 20  # columns in a message that lists what there is
_WHOLE_NUMBER = re.compile(r"\s*[-+]?\d+")
_POINT_NUMBER = re.compile(r"\s*[-+]?\d*\.\d+\s*")
_DIGITS = re.compile(r"\d+")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_SAVE_AS = (
    "save the table as CSV in UTF-8 (Excel: 'CSV UTF-8'; LibreOffice: character set 'Unicode "
    "(UTF-8)'), or read it with pandas and pass the DataFrame"
)


@dataclass
class CsvFile:
    """The cells of a CSV file as they are written: neither stripped nor composed.

    Cells such as ``="007"`` are replaced by their text while the file is read, and added to
    ``repairs``.

    Attributes:
        header: the names of its columns, stripped and composed (NFC).
        rows: its rows, each with as many cells as the header.
        row_numbers: the numbers of these rows in a spreadsheet, where the first row is 1.
        separator: what separates its cells.
        repairs: what was read although a plain CSV file in UTF-8 does not have it.
    """

    header: list[str]
    rows: list[list[str]]
    row_numbers: list[int]
    separator: str
    repairs: list[str] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, which the header must have."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def read_csv_file(path: PathLike, columns: Sequence[str] = ()) -> CsvFile:
    """Read a CSV file with a header row, separated by ``,``, ``;`` or tabs.

    Args:
        path: the file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        columns: names that its header probably has; they help to tell what separates the cells.

    Raises:
        DataError: if the file does not exist, is no text in these encodings, or a row has another
            number of cells than the header.
    """
    repairs: list[str] = []
    text = _decode(path, _read_bytes(path), repairs)
    separator, text = _take_separator_line(text, repairs)
    if separator is None:
        separator = _find_separator(text, columns)
    elif columns:
        _check_separator_line(path, text, separator, columns)
    _check_first_row(path, _first_rows(text, separator), columns)
    _check_one_separator(path, text, separator)
    table = _parse(path, text, separator, repairs)
    if '="' in text or '=""' in text:
        _unwrap_formulas(table)
    return table


def check_header(
    name: str, header: Sequence[str], columns: Sequence[str], image_column: str | None = None
) -> None:
    """Reject a table that lacks a column, or has it twice.

    Args:
        name: of the table, for messages.
        header: the names of its columns.
        columns: which it must have.
        image_column: that of file names, if one is read.

    Raises:
        DataError: naming the column.
    """
    for column in columns:
        count = header.count(column)
        if count > 1:
            raise DataError(f"{name} has {count} columns named {column!r}; rename one of them")
        if count == 1:
            continue
        hint = did_you_mean(column, header)
        if not hint and column in (image_column, "image"):
            hint = " Another column of file names is named by image_column= (--image-column)."
        shown = ", ".join(repr(label) for label in header[:_MOST_LISTED])
        raise DataError(
            f"{name} has no column {column!r}.{hint} It has "
            f"{counted(len(header), 'column')}: {shown}"
        )


def check_has_rows(name: str, num_rows: int) -> None:
    """Raise a DataError for a table without rows."""
    if num_rows == 0:
        raise DataError(f"{name} has no rows; expected one for each image")


def _read_bytes(path: PathLike) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; check the name, which is relative to this folder"
        ) from None
    except TypeError:
        raise DataError(
            f"a table is {type(path).__name__}; expected a pandas DataFrame or the path of a CSV "
            "file"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error


def _decode(path: PathLike, content: bytes, repairs: list[str]) -> str:
    """The text of a file, with one newline character at the end of each line."""
    for start, kind in _OTHER_FORMATS:
        if content.startswith(start):
            raise DataError(f"{path} is {kind}, not a CSV file; {_SAVE_AS}")
    if content.startswith(_GIT_LFS):
        raise DataError(
            f"{path} is a pointer of Git LFS, not the file that it stands for; fetch that with "
            "'git lfs pull'"
        )
    if _is_json(content):
        hint = ""
        if _KEY_OF_COCO in content:
            hint = ". COCO files are named as boxes= or instances= of a training (--boxes, --instances)"
        raise DataError(f"{path} is a JSON file, not a CSV file; {_SAVE_AS}{hint}")
    if _MARKUP.match(content):
        raise DataError(f"{path} is a page of HTML or XML, not a CSV file; {_SAVE_AS}")
    encoding = _encoding_of(content)
    try:
        text = content.decode(encoding.codec)
    except UnicodeDecodeError as error:
        raise _not_in_encoding(path, content, encoding.name, error) from None
    if "\0" in text:
        raise DataError(
            f"{path} holds NUL characters, as UTF-16 without a byte order mark does; {_SAVE_AS}"
        )
    if encoding.name != _UTF_8.name:
        repairs.append(f"the file is {encoding.name}")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _encoding_of(content: bytes) -> _Encoding:
    """The encoding that the first bytes of a file state; UTF-8 without such."""
    for encoding in _ENCODINGS_WITH_MARK:
        if content.startswith(encoding.mark):
            return encoding
    return _UTF_8


def _is_json(content: bytes) -> bool:
    """Whether a file is JSON; one that begins as a list is parsed to tell it from a CSV file."""
    text = content.removeprefix(codecs.BOM_UTF8)
    if _JSON_OBJECT.match(text):
        return True
    if not _JSON_LIST.match(text):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _not_in_encoding(
    path: PathLike, content: bytes, encoding_name: str, error: UnicodeDecodeError
) -> DataError:
    if encoding_name != _UTF_8.name:
        return DataError(
            f"{path} begins as {encoding_name} and cannot be read as such after "
            f"{counted(error.start, 'byte')} of {len(content)}; copy it again, or {_SAVE_AS}"
        )
    before = content[: error.start].decode("utf-8")
    line = before.count("\n") + 1
    beginning = before.rpartition("\n")[2][-40:]
    byte = content[error.start]
    return DataError(
        f"{path} is not UTF-8: line {line} has the byte 0x{byte:02x} after {beginning!r}, as files "
        f"in Windows-1252, Shift-JIS or another older encoding do; {_SAVE_AS}"
    )


def _take_separator_line(text: str, repairs: list[str]) -> tuple[str | None, str]:
    """The separator that a first line such as ``sep=;`` names, and the text without this line."""
    first_line, _, rest = text.partition("\n")
    match = _SEPARATOR_LINE.fullmatch(first_line)
    if match is None:
        return None, text
    repairs.append(f"its first line is {first_line.strip()!r}")
    separator = match[1].replace("\\t", "\t")
    return separator, rest


def _check_separator_line(
    path: PathLike, text: str, separator: str, columns: Sequence[str]
) -> None:
    """Raise a DataError where another separator than that of the first line gives the columns."""
    other = _find_separator(text, columns)
    if not _has_columns(text, separator, columns) and _has_columns(text, other, columns):
        raise DataError(
            f"{path}: its first line says that {separator!r} is between the cells, and they are "
            f"separated by {other!r}; correct or remove the line"
        )


def _has_columns(text: str, separator: str, columns: Sequence[str]) -> bool:
    """Whether the first row has these columns, if it is cut at the separator."""
    rows = _first_rows(text, separator)
    if not rows:
        return not columns
    return _holds_names(rows[0], columns)


def _holds_names(row: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a row holds the names of columns."""
    return set(columns).issubset(map(cell_text, row))


class _Fit(NamedTuple):
    """How well a separator fits the first rows of a file; the larger of two fits better.

    Attributes:
        has_columns: whether the header has the columns that are read; this counts most.
        is_even: whether the header and all rows have the same number of cells, two or more.
        num_cells: of the header.
    """

    has_columns: bool
    is_even: bool
    num_cells: int


def _find_separator(text: str, columns: Sequence[str]) -> str:
    """The separator that fits the first rows best."""
    best = SEPARATORS[0]
    best_fit = _Fit(has_columns=False, is_even=False, num_cells=0)
    for separator in SEPARATORS:
        rows = _first_rows(text, separator)
        if not rows:  # nothing but this separator
            return separator
        num_cells = len(rows[0])
        fit = _Fit(
            has_columns=_holds_names(rows[0], columns),
            is_even=num_cells > 1 and all(len(row) == num_cells for row in rows),
            num_cells=num_cells,
        )
        if fit > best_fit:
            best = separator
            best_fit = fit
    return best


def _check_first_row(path: PathLike, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Reject a first row that is not the header although a later one is, or that is one cell for several."""
    if not columns or not rows:
        return
    if _holds_names(rows[0], columns):
        return
    for row in rows[1:]:
        if _holds_names(row, columns):
            raise DataError(
                f"{path} begins with {rows[0][0]!r}, above the row with the names of the columns; "
                "remove the rows above the names, and rows without an image below them"
            )
    first_row = [cell_text(cell) for cell in rows[0]]
    names_in_cell = [column for column in columns if column in first_row[0]]
    if len(first_row) == 1 and len(names_in_cell) == len(columns) > 1:
        raise DataError(
            f"{path}: the first row is one cell, {first_row[0]!r}; expected cells that are "
            "separated by commas, semicolons or tabs, without quotes around whole rows"
        )


def _check_one_separator(path: PathLike, text: str, separator: str) -> None:
    """Reject names between commas above rows between semicolons or tabs, whose decimal marks are commas.

    Each row would be cut at its decimal mark: ``image,y`` above ``a;1,5``.
    """
    lines = [line for line in text.split("\n", _ROWS_TO_TRY)[:_ROWS_TO_TRY] if line.strip()]
    if separator != "," or len(lines) < 2:
        return
    header = lines[0]
    rows = lines[1:]
    if not any(_DECIMAL_COMMA.search(row) for row in rows):
        return
    for other in SEPARATORS:
        if other == separator or other in header:
            continue
        num_separators = {row.count(other) for row in rows}
        has_other_commas = any("," in _DECIMAL_COMMA.sub("", row) for row in rows)
        if num_separators == {header.count(separator)} and not has_other_commas:
            raise DataError(
                f"{path}: the names of the columns are separated by {separator!r}, and the cells by "
                f"{other!r}: {rows[0]!r}; write {other!r} between the names too"
            )


def _first_rows(text: str, separator: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=separator):
            if not _is_blank(row):
                rows.append(row)
            if len(rows) == _ROWS_TO_TRY:
                break
    except csv.Error:  # a cell of more than 131072 characters, from a quote that is not closed
        pass
    return rows


def _parse(path: PathLike, text: str, separator: str, repairs: list[str]) -> CsvFile:
    """Read the rows of a text; rows that differ from the header in empty cells alone are fitted to it.

    Raises:
        DataError: if a row has another number of cells, or the text cannot be cut into cells.
    """
    header: list[str] = []
    rows: list[list[str]] = []
    row_numbers: list[int] = []
    blank_rows = 0
    cut_rows = 0
    num_named = 0
    # the first row whose cells may be the halves of a number
    halved: DataError | None = None
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            if not row or (not row[0].strip() and _is_blank(row)):
                # an empty line is no row of cells, and not worth a word
                blank_rows += len(row) > 0
                continue
            if not header:
                header = row
                num_named = _num_filled(header)
                continue
            if halved is None and separator == "," and len(row) > num_named:
                halved = _halved_number(path, number, row, header)
            fitted_row = _fit_to_header(row, header)
            if len(fitted_row) != len(header):
                raise _wrong_length(path, number, fitted_row, header, separator)
            cut_rows += len(fitted_row) < len(row)
            rows.append(fitted_row)
            row_numbers.append(number)
    except csv.Error as error:
        raise DataError(
            f'{path} row {number + 1} cannot be read ({error}); a cell with a quote " is written '
            'in quotes, with "" for each quote inside'
        ) from error
    if not header:
        raise DataError(f"{path} is empty; expected a header row and a row for each image")
    if halved is not None and not _shows_decimal_point(rows):
        raise halved
    if blank_rows:
        repairs.append(f"{counted(blank_rows, 'blank row')} skipped")
    if cut_rows:
        repairs.append(f"empty cells after the last column in {counted(cut_rows, 'row')} left out")
    names = [cell_text(name) for name in header]
    return CsvFile(names, rows, row_numbers, separator, repairs)


def _fit_to_header(row: list[str], header: Sequence[str]) -> list[str]:
    """A row with as many cells as the header, if they differ in empty cells at the end alone; else as it is."""
    if len(row) > len(header) and _is_blank(row[len(header) :]):
        return row[: len(header)]
    if len(row) < len(header) and _is_blank(header[len(row) :]):
        # the header ends in separators: it has no names for the cells that the row lacks
        return row + [""] * (len(header) - len(row))
    return row


def _is_blank(row: Sequence[str]) -> bool:
    return not "".join(row).strip()


def _halved_number(
    path: PathLike, number: int, row: Sequence[str], header: Sequence[str]
) -> DataError | None:
    """The error for a row that may hold a number with a decimal comma, which would be two cells.

    It has more cells than columns with a name, and two numbers next to each other of which the
    second is made of digits: ``1,5,`` below ``y,note``. Where the header ends in as many separators
    as the row, the row has one reading.
    """
    num_named = _num_filled(header)
    row_ends_as_header = len(row) == len(header) and _is_blank(row[num_named:])
    if len(row) <= num_named or row_ends_as_header:
        return None
    for first, second in pairwise(row[: _num_filled(row)]):
        if _WHOLE_NUMBER.fullmatch(first) and _DIGITS.fullmatch(second):
            return DataError(
                f"{path} row {number} has {counted(len(row), 'cell')} below "
                f"{counted(num_named, 'column')} with a name, and {first.strip()},{second} may be "
                "one number with a decimal comma, or two cells; write such numbers in quotes, or "
                "';' between the cells, and leave out separators at the end of rows"
            )
    return None


def _num_filled(row: Sequence[str]) -> int:
    """The number of cells up to the last one that holds something."""
    count = len(row)
    while count > 0 and not row[count - 1].strip():
        count -= 1
    return count


def _shows_decimal_point(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a cell is a number with a decimal point: the comma is none then."""
    return any(_POINT_NUMBER.fullmatch(cell) for row in rows for cell in row)


def _wrong_length(
    path: PathLike, number: int, row: Sequence[str], header: Sequence[str], separator: str
) -> DataError:
    problem = (
        f"{path} row {number} has {counted(len(row), 'cell')}; the header has {len(header)}: "
        f"{row[0]!r}, ..."
    )
    if len(row) < len(header):
        return DataError(
            f"{problem} Complete the row; Excel leaves out empty cells at its end, which a last "
            "column without gaps avoids"
        )
    if separator == "," and any(re.fullmatch(r"\s*-?\d+", cell) for cell in row):
        return DataError(
            f"{problem} Numbers with a decimal comma are written in quotes, or with ';' between "
            "the cells. R's write.table needs row.names=FALSE"
        )
    return DataError(
        f"{problem} A cell that holds {separator!r} is written in quotes. R's write.table needs "
        "row.names=FALSE"
    )


def _unwrap_formulas(table: CsvFile) -> None:
    """Read ``="007"``, which keeps a spreadsheet from making a number of it, as the text that it is."""
    count = 0
    for row in table.rows:
        for place, cell in enumerate(row):
            match = _TEXT_FORMULA.fullmatch(cell.strip())
            if match is not None:
                row[place] = match[1].replace('""', '"')
                count += 1
    if count:
        table.repairs.append(f'{counted(count, "cell")} written as ="text" read as the text')
