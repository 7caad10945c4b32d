"""Tables of images as pandas DataFrames, from CSV files or DataFrames.

The index of a table holds the images' ids: file names as text, stripped and composed (NFC). Its
columns are

* ``images``: the file of each image, or an image in memory;
* the targets and auxiliary values by their names: numbers are float64, NaN = missing; classes are
  categorical;
* ``group`` and ``fold``: text; rows of one group stay in one fold;
* ``labels``: the file of each dense label, or an array; None = unknown.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

from dinoneck.atomic import read_regular
from dinoneck.data import cells
from dinoneck.data.cells import (
    FOLD,
    GROUP,
    IMAGES,
    LABELS,
    PathLike,
    cell_text,
    is_missing,
    is_number,
)
from dinoneck.data.sources import find_files
from dinoneck.errors import DataError, counted, did_you_mean, missing_extra, reason_of

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
) -> pd.DataFrame:
    """Read a table with one row per image.

    A column with numbers gives numbers, one with words classes. An empty cell and ``nan`` are
    missing, of a DataFrame also None, NaN, NaT and NA. Groups, folds and classes are compared as
    numbers where all cells are, else as text.

    Args:
        source: a pandas DataFrame, or a CSV file: UTF-8, header row, ``,``, ``;`` or tab (both:
            decimal commas too).
        images: the folder that file names are relative to; None = files are not looked for.
        targets: columns with the values to predict.
        auxiliary: columns that only help training.
        group: columns whose equal values belong in one fold.
        fold_column: the column with the name of each image's fold.
        image_column: the column with the file names; a DataFrame without it has them in its index.
        labels: the column with the file names of dense labels; an image whose cell is empty has
            none.
        classes: column -> class names in their order, which admits no others; empty = those that
            occur, also numbers.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, an image is named twice, or a
            cell does not fit.
    """
    wanted, helping, grouped, folded, masks = (
        _listed(x) for x in (targets, auxiliary, group, fold_column, labels)
    )
    if not wanted and not masks:
        raise DataError("no target columns are named; name them with targets= (--targets)")
    if own := {*wanted, *helping}.intersection(cells.OWN_COLUMNS):
        raise DataError(
            f"a target or auxiliary column is named {min(own)!r}, as a column of the result; "
            "rename it"
        )
    if other := set(classes).difference(wanted, helping):
        raise DataError(
            f"classes= lists those of {min(other)!r}, which is neither a target nor auxiliary"
        )
    name = "the DataFrame" if isinstance(source, pd.DataFrame) else str(source)
    rows = _rows(source, name, image_column, (*wanted, *helping, *grouped, *folded, *masks))
    files = find_files(rows[image_column], images, f"images named in {name}", outside=True)
    table = pd.DataFrame({IMAGES: files}, rows.index, dtype=object)
    for column in (*wanted, *helping):
        values = _values(rows[column], f"{name}: {column}", classes.get(column))
        if values.isna().all():
            raise DataError(f"{name}: the column {column!r} is empty; leave it out, or fill it in")
        table[column] = values
    for role, named in ((GROUP, grouped), (FOLD, folded)):
        if named:
            each = [
                cells.same_labels(rows[own], rows.index, f"{role} in column {own!r}")
                for own in named
            ]
            if len(each) > 1:
                each = [[str(label).replace("|", "||") for label in labels] for labels in each]
            table[role] = [" | ".join(map(str, row)) for row in zip(*each, strict=True)]
    for column in masks:
        if rows[column].map(is_missing).all():
            raise DataError(
                f"{name}: the column {column!r} names no labels; leave it out, or fill in some"
            )
        called = f"labels named in column {column!r} of {name}"
        found = find_files(rows[column], images, called, outside=True)
        table[LABELS] = pd.Series(found, rows.index, dtype=object)
    return table


def read_cells(path: PathLike, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read the cells of a CSV file as text, stripped and composed (NFC).

    Args:
        path: the file: UTF-8, with a header row, separated by ``,``, ``;`` or tabs.
        columns: which it must have.

    Raises:
        DataError: if it cannot be read, a column is missing or occurs twice, there are no rows, or
            a row has another number of cells.
    """
    try:
        text = io.TextIOWrapper(io.BytesIO(read_regular(path)), "utf-8-sig").read()  # any line ends
        header_line = re.sub(r'"[^"]*"', "", text).partition("\n")[0]
        separator = max(",;\t", key=header_line.count)
        lines = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        header, *rows = [[cell_text(cell) for cell in line] for line in lines if line] or [[]]
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; check the name, which is relative to this folder"
        ) from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read; expected a DataFrame or CSV, UTF-8: {reason_of(error)}"
        ) from error
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(
                f"{path} row {number} has {counted(len(row), 'cell')}; the header has {len(header)}"
            )
    table = pd.DataFrame(rows, columns=header, dtype=object)
    _check_header(str(path), table, columns)
    table.attrs["decimal"] = "." if separator == "," else ","
    return table


def _rows(source: Any, name: str, image_column: str, columns: Sequence[str]) -> pd.DataFrame:
    """The cells of a CSV file, or the values of a DataFrame, by ids; its index may stand for the column of images."""
    frame = source.rename(columns=str) if isinstance(source, pd.DataFrame) else read_cells(source)
    if image_column not in frame and all(isinstance(own, str | os.PathLike) for own in frame.index):
        frame[image_column] = frame.index.map(str)
    _check_header(name, frame, (image_column, *columns))
    ids = [cell_text(value) for value in frame[image_column]]
    if "" in ids:
        raise DataError(
            f"{name}: the {image_column} of row {ids.index('') + 2} is empty; name it, or remove "
            "the row"
        )
    cells.check_unique(ids, f"{name}: the {image_column}", "keep one row for each image")
    return frame.set_axis(pd.Index(ids, dtype=object), axis=0)


def _check_header(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    header = list(table.columns)
    for column in columns:
        if (count := header.count(column) or "no") != 1:
            hint = (
                did_you_mean(column, header)
                or " image_column= (--image-column) names that of file names."
            )
            raise DataError(
                f"{name} has {count} columns named {column!r} of {header}, expected one.{hint}"
            )
    if table.empty:
        raise DataError(f"{name} has no rows")


def _values(column: pd.Series, what: str, listed: Sequence[str] | None) -> pd.Series:
    """Float64 numbers, or classes; what most cells are decides where no classes are listed."""
    for row, value in column.items():
        if not (is_missing(value) or isinstance(value, str | Real | Decimal)):
            raise _misfit(
                what, row, value, f"a number or text, not {type(value).__name__}: convert it first"
            )
    if listed is None and isinstance(column.dtype, pd.CategoricalDtype):
        listed = [str(name) for name in column.dtype.categories]
    texts = column.astype(object).map(cell_text)
    filled = texts[texts != ""]
    words = [
        text
        for text in filled
        if cells.as_decimal(text) is None and any(sign.isalpha() for sign in text)
    ]
    if listed is None and len(words) * 2 <= len(filled):
        return _numbers(filled, what, column.attrs.get("decimal", ".")).reindex(column.index)
    return _classes(filled, words, what, listed).reindex(column.index)


def _numbers(texts: pd.Series, what: str, decimal: str) -> pd.Series:
    has_commas = decimal == "," and not texts.str.contains(".", regex=False).any()
    numbers = texts.str.replace(",", ".", regex=False) if has_commas else texts
    for (row, text), number in zip(texts.items(), numbers, strict=True):
        is_exact = not number.lstrip("+-").isdigit() or int(number) == float(number)
        if not (is_number(number) and is_exact and abs(float(number)) <= cells.LARGEST):
            raise _misfit(
                what,
                row,
                text,
                "a number within +-3.4e38 that float64 holds, or a class of classes=",
            )
    return numbers.astype("float64")


def _classes(
    texts: pd.Series, words: Sequence[str], what: str, listed: Sequence[str] | None
) -> pd.Series:
    """Classes by their names: those that are listed, else all that occur; an empty list admits numbers too."""
    same = cells.label_of if all(map(is_number, texts)) else str
    labels, occurring = texts.map(same), {*map(same, words if listed is None else texts)}
    names = list(map(str, listed or ()))  # else numbers before words
    names = names or sorted(
        occurring, key=lambda text: (float(text) if is_number(text) else math.inf, text)
    )
    name_of = {same(cell_text(name)): name for name in names}
    if len(name_of) < max(len(names), 2) or "" in name_of:
        raise DataError(
            f"{what}: the classes are {names}; expected two or more that differ, none empty or nan"
        )
    for row, label in labels.items():
        if label not in name_of:
            hint = did_you_mean(texts[row], names)
            raise _misfit(what, row, texts[row], f"one of {', '.join(names)}.{hint}")
    return labels.map(name_of).astype(pd.CategoricalDtype(names))


def _misfit(what: str, row: Any, value: Any, expected: str) -> DataError:
    return DataError(
        f"{what} of {row!r} is {value!r}; expected an empty cell where it is unknown, or {expected}"
    )


def _listed(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
