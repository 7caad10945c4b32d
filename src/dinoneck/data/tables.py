"""Tables of images as pandas DataFrames, from files of tables or DataFrames.

The index holds the images' ids: file names as text. The columns are

* ``images``: the file of each image, or an image in memory;
* the targets and auxiliary values: numbers are float64, NaN = missing; classes are categorical;
* columns of several labels in a cell: tuples of words, in the order of ``attrs["label_names"]``;
* ``group`` and ``fold``: text; rows of one group stay in one fold;
* ``labels``: the file of each dense label, or an array; None = unknown.

Values of a DataFrame become the text that a CSV file would hold, so that all sources are read by one
rule, that of :mod:`dinoneck.data.columns`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dinoneck.data.cells import (
    FOLD,
    FRAME_NAME,
    GROUP,
    IMAGES,
    LABELS,
    OWN_COLUMNS,
    DecimalMark,
    PathLike,
    cell_text,
    cell_texts,
    check_unique,
    is_missing,
    same_labels,
    stripped,
)
from dinoneck.data.columns import (
    Column,
    are_indicators,
    decimal_mark,
    read_classes,
    read_indicators,
    read_labels,
    read_numbers,
)
from dinoneck.data.csv_files import check_has_rows, check_header, read_csv_file
from dinoneck.data.listing import MASK_SUFFIXES
from dinoneck.data.names import find_files
from dinoneck.data.table import LABEL_NAMES
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import missing_extra
from dinoneck.text import reason_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

Names = Sequence[str] | str


def read_table(
    source: Any,
    images: PathLike | None = None,
    targets: Names = (),
    *,
    auxiliary: Names = (),
    group: Names = (),
    fold_column: str | None = None,
    image_column: str = "image",
    labels: str | None = None,
    classes: Mapping[str, Sequence[str]] = {},
    numbers: Names = (),
    multilabel: Mapping[str, Sequence[str]] = {},
    indicators: Names = (),
    decimal: DecimalMark | None = None,
) -> pd.DataFrame:
    """Read a table with one row per image.

    A column is numbers if every filled cell is one, and classes if none is; else it is refused.
    Digits alone, of which a cell begins with 0 (``007``), are classes. An empty cell is missing;
    among numbers also NA, N/A, NaN, NULL and None. Classes are compared exactly, without blanks at
    their ends. Groups, folds, and numbers as classes are compared as numbers: ``1`` is ``1.0``.

    Args:
        source: a pandas DataFrame; a CSV file: UTF-8 (UTF-16 with a byte order mark), header row,
            ``,``, ``;`` or tab between the cells; or a Parquet or XLSX file (its first sheet),
            which pandas' own engines read.
        images: the folder that file names are relative to, see
            :func:`dinoneck.data.names.find_files`; None = files are not looked for. The command
            ``train`` passes the table's folder where no other is named.
        targets: columns with the values to predict.
        auxiliary: columns that only help training.
        group: columns whose equal values belong in one fold.
        fold_column: the column with the name of each image's fold.
        image_column: the column with the file names; a DataFrame without it has them in its index.
        labels: the column with the file names of dense labels, which may also be relative to the
            folder of the table; an image whose cell is empty has none.
        classes: column -> class names in their order, which admits no others; empty = those that
            occur, also numbers.
        numbers: columns that hold numbers, so that a column of words, or of codes, is not read as
            classes. A column in ``classes`` holds classes in any case.
        multilabel: column of several labels in a cell -> the names of all labels in their order,
            which admit no others; empty = those that occur. ``;`` or ``|`` separates the labels,
            ``none`` says that there is none; an empty cell is unknown. A column as those of
            ``indicators`` holds numbers.
        indicators: columns of one label each: 1 or ``true`` where an image has it, 0 or ``false``
            where it has not; they are read as numbers.
        decimal: the decimal mark of all numbers of a CSV file; None = a point, or in a file that
            ``;`` separates, the one that its numbers have. Separators of thousands are not read.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, an image is named twice, or a
            cell does not fit; it names the file, the row, the value and the remedy.
        ConfigError: if ``decimal`` is stated for what is no CSV file.
        ImportError: naming the package that pandas needs to read a Parquet or XLSX file.
    """
    targets = _as_tuple(targets)
    auxiliary = _as_tuple(auxiliary)
    group = _as_tuple(group)
    numbers = _as_tuple(numbers)
    indicators = _as_tuple(indicators)
    values = targets + auxiliary
    _check_roles(values, labels)
    _check_described(values, "classes", classes)
    _check_described(values, "multilabel", multilabel)
    needed = (*values, *group, *_as_tuple(fold_column), *_as_tuple(labels))
    sheet = _open(source, needed, image_column)
    columns = {name: _column(sheet, name) for name in values}
    if decimal is None:
        may_be_numbers = [
            column
            for name, column in columns.items()
            if name not in classes and name not in multilabel and name not in indicators
        ]
        decimal = decimal_mark(may_be_numbers, sheet.separator)
    elif sheet.separator is None:
        raise ConfigError(
            f"decimal is {decimal!r}, and {sheet.name} is no CSV file, whose numbers have a decimal "
            "mark; leave it out"
        )
    files = _files_of(sheet.files, images, f"images named in {sheet.name}")
    table = pd.DataFrame({IMAGES: files}, pd.Index(sheet.ids, dtype=object), dtype=object)
    label_names: dict[str, tuple[str, ...]] = {}
    for name, column in columns.items():
        column = replace(column, decimal=decimal)
        if name in multilabel and not are_indicators(column.texts):
            words, label_names[name] = read_labels(column, multilabel[name])
            table[name] = pd.Series(words, table.index, dtype=object)
        elif name in classes:
            table[name] = _categorical(column, classes[name])
        elif name in multilabel or name in indicators:
            table[name] = np.array(read_indicators(column))
        elif name in numbers:
            table[name] = np.array(read_numbers(column))
        elif name in sheet.categories:
            table[name] = _categorical(column, sheet.categories[name])
        elif column.has_codes() or column.has_words_alone():
            table[name] = _categorical(column, ())
        else:
            table[name] = np.array(read_numbers(column))
    if label_names:
        table.attrs[LABEL_NAMES] = label_names
    if group:
        table[GROUP] = _joined([_names_of(sheet, name, GROUP) for name in group])
    if fold_column is not None:
        table[FOLD] = _names_of(sheet, fold_column, FOLD)
    if labels is not None:
        masks = _read_masks(sheet, labels, images)
        _check_no_images(masks, files, sheet.name)
        table[LABELS] = pd.Series(masks, table.index, dtype=object)
    return table


def read_cells(
    source: Any, columns: Sequence[str] = (), image_column: str | None = None
) -> pd.DataFrame:
    """Return the cells of a table: of a CSV or XLSX file as text, else as they are.

    Args:
        source: as of :func:`read_table`.
        columns: which a file must have.
        image_column: the one among them that holds the names of images.

    Raises:
        DataError: if it cannot be read, has no rows, or lacks a column.
    """
    if isinstance(source, pd.DataFrame):
        return source
    read = _reader_of(source)
    if read is None:
        file = read_csv_file(source, columns, image_column)
        texts = [cell_texts(row) for row in file.rows]
        return pd.DataFrame(texts, columns=file.header, dtype=object)
    cells = _read_frame(source, read)
    check_has_rows(str(source), len(cells))
    check_header(str(source), [str(label) for label in cells.columns], columns, image_column)
    return cells


def _as_tuple(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _check_roles(values: Sequence[str], labels: str | None) -> None:
    if not values and labels is None:
        raise DataError("no target columns are named; name them with targets= (--targets)")
    check_unique(values, "the target or auxiliary column", "name it once, in one of the two roles")
    for column in values:
        if column in OWN_COLUMNS:
            raise DataError(f"a target is named {column!r}, as a column of the result; rename it")


def _check_described(
    values: Sequence[str], argument: str, names_of_columns: Mapping[str, Sequence[str]]
) -> None:
    """Check what ``classes=`` or ``multilabel=`` says of columns."""
    for column, names in names_of_columns.items():
        if column not in values:
            raise DataError(
                f"{argument}= names {column!r}, which is neither a target nor auxiliary"
            )
        if isinstance(names, str | set | frozenset):
            raise DataError(
                f"{argument}= gives {names!r} for {column!r}; expected a list of names in their order"
            )


# Rows
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sheet:
    """The used cells of a table.

    Attributes:
        name: what messages call it.
        ids: of the rows.
        files: the file name of each row, or an image in memory.
        cells: column -> its cells, as text or values of a DataFrame.
        categories: categorical column of a DataFrame -> its categories, also those of no row.
        separator: between the cells of a CSV file; None = it is none.
        folder: of the file; None = it is a DataFrame.
    """

    name: str
    ids: list[str]
    files: list[Any]
    cells: Mapping[str, Sequence[Any]]
    categories: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    separator: str | None = None
    folder: Path | None = None


def _open(source: Any, columns: Sequence[str], image_column: str) -> _Sheet:
    """Return the sheet of a table that has these columns."""
    if isinstance(source, pd.DataFrame):
        return _sheet_of_frame(FRAME_NAME, source, columns, image_column)
    read = _reader_of(source)
    if read is not None:
        sheet = _sheet_of_frame(str(source), _read_frame(source, read), columns, image_column)
        return replace(sheet, folder=Path(source).parent)
    file = read_csv_file(source, (image_column, *columns), image_column)
    names = file.column(image_column)
    ids = cell_texts(names)
    _check_ids(file.name, ids, [f"line {line}" for line in file.lines])
    return _Sheet(
        name=file.name,
        ids=ids,
        files=names,
        cells={column: file.column(column) for column in columns},
        separator=file.separator,
        folder=Path(source).parent,
    )


def _read_xlsx(path: PathLike) -> pd.DataFrame:
    """The cells of the first sheet of a workbook as text, without blank rows."""
    # without a header pandas renames no column that has the name of another
    rows = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    texts = [cell_texts(row) for row in rows.itertuples(index=False)]
    filled = [row for row in texts if any(row)]
    header = filled[0] if filled else []
    return pd.DataFrame(filled[1:], columns=header, dtype=object)


_Reader = Callable[[PathLike], pd.DataFrame]
_READERS: Mapping[str, _Reader] = {".parquet": pd.read_parquet, ".xlsx": _read_xlsx}
"""Suffix of a file -> what reads it; all other files are CSV."""


def _reader_of(source: Any) -> _Reader | None:
    """What reads the file of a table; None = it is CSV.

    Raises:
        DataError: for what is no path.
    """
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"a table is {type(source).__name__}; expected a pandas DataFrame, or the path of a CSV, "
            "Parquet or XLSX file"
        )
    return _READERS.get(Path(source).suffix.lower())


def _read_frame(path: PathLike, read: _Reader) -> pd.DataFrame:
    """The cells of a file that is no CSV."""
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist; check the name")
    try:
        return read(path)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error


def _sheet_of_frame(
    name: str, source: pd.DataFrame, columns: Sequence[str], image_column: str
) -> _Sheet:
    check_has_rows(name, len(source))
    frame = source.set_axis([str(label) for label in source.columns], axis="columns")
    has_names_in_index = all(isinstance(label, str | os.PathLike) for label in frame.index)
    if image_column in frame or not has_names_in_index:
        check_header(name, list(frame.columns), (image_column, *columns), image_column)
        files = list(frame[image_column])
    else:
        check_header(name, list(frame.columns), columns)
        files = list(frame.index)
    ids = []
    for file, label in zip(files, frame.index, strict=True):
        is_in_memory = not _is_name(file) and not is_missing(file)
        ids.append(cell_text(label if is_in_memory else file))
    _check_ids(name, ids, [f"row {row}" for row in range(1, len(ids) + 1)])
    cells = {column: list(frame[column].astype(object)) for column in columns}
    categories = {}
    for column in columns:
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            categories[column] = list(frame[column].dtype.categories)
    return _Sheet(name=name, ids=ids, files=files, cells=cells, categories=categories)


def _check_ids(name: str, ids: Sequence[str], row_names: Sequence[str]) -> None:
    """Check that each row has an image of its own."""
    if "" in ids:
        row_name = row_names[ids.index("")]
        raise DataError(f"{name}: {row_name} names no image; fill it in, or remove the row")
    check_unique(ids, f"{name}: the image", "keep one row for each image")


# Columns
# ----------------------------------------------------------------------------------------------------


def _column(sheet: _Sheet, name: str) -> Column:
    """Return the cells of a column of values.

    Raises:
        DataError: for a value of a DataFrame that is neither a number nor text, such as a date.
    """
    for row_id, value in zip(sheet.ids, sheet.cells[name], strict=True):
        if isinstance(value, str | Real | Decimal | np.bool_) or is_missing(value):
            continue
        raise DataError(
            f"{sheet.name}: {name} of {row_id!r} is {value!r}, of the type {type(value).__name__}; "
            "expected a number or text: convert it, dates such as to days since the first one"
        )
    return Column(name, sheet.name, cell_texts(sheet.cells[name]), sheet.ids)


def _categorical(column: Column, names: Sequence[Any]) -> pd.Categorical:
    codes, class_names = read_classes(column, names)
    return pd.Categorical.from_codes(codes, class_names)


def _names_of(sheet: _Sheet, column: str, role: str) -> list[str]:
    """The group or fold of each row."""
    names = same_labels(sheet.cells[column], sheet.ids, f"{role} in column {column!r}")
    return [str(name) for name in names]


def _joined(columns: Sequence[Sequence[str]]) -> list[str]:
    """The group of each row; of several columns their names, joined so that none is taken for another."""
    if len(columns) == 1:
        return list(columns[0])
    return [
        " | ".join(name.replace("|", "||") for name in names)
        for names in zip(*columns, strict=True)
    ]


def _files_of(names: Sequence[Any], folder: PathLike | None, what: str) -> list[Any]:
    """Return the file of each name; images in memory as they are. Without a folder none is looked for."""
    if folder is not None:
        return find_files(names, folder, what)
    return _paths_of(names)


def _paths_of(names: Sequence[Any]) -> list[Any]:
    """The names as paths, which are not looked for; images in memory as they are."""
    files: list[Any] = []
    for name in names:
        if isinstance(name, str):
            files.append(Path(stripped(name)))  # as it is written, also if it is not composed
        elif _is_name(name):
            files.append(Path(cell_text(name)))
        else:
            files.append(name)
    return files


def _is_name(value: Any) -> bool:
    """Whether a value names a file, and is no image in memory."""
    return isinstance(value, str | os.PathLike | Real)


def _read_masks(sheet: _Sheet, column: str, images: PathLike | None) -> list[Any]:
    """The file of each dense label, or an array; None where the cell is empty."""
    masks = [None if is_missing(cell) else cell for cell in sheet.cells[column]]
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        raise DataError(
            f"{sheet.name}: all cells of {column!r} are empty; fill some in, or leave it out"
        )
    names = [masks[row] for row in rows]
    if images is None:
        files = _paths_of(names)
    else:
        what = f"labels named in {sheet.name}"
        files = find_files(names, images, what, MASK_SUFFIXES, beside=sheet.folder)
    for row, file in zip(rows, files, strict=True):
        masks[row] = file
    return masks


def _check_no_images(masks: Sequence[Any], images: Sequence[Any], name: str) -> None:
    """Refuse a dense label that is the file of an image."""
    image_files = {_absolute(image) for image in images if isinstance(image, Path)}
    for mask in masks:
        if isinstance(mask, Path) and _absolute(mask) in image_files:
            raise DataError(
                f"{name}: {mask} is an image of the table, and a label of one; expected two files: "
                "write names with their folders, such as masks/0.png"
            )


def _absolute(path: Path) -> str:
    """A path by which a file is compared: ``a/../b`` is ``b``."""
    return os.path.abspath(path)  # noqa: PTH100 - links are not followed
