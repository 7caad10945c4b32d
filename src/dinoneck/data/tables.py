"""Tables of images as pandas DataFrames, from CSV files or DataFrames.

The index holds the images' ids: file names as text. The columns are

* ``images``: the file of each image, or an image in memory;
* the targets and auxiliary values: numbers are float64, NaN = missing; classes are categorical;
* columns of several words in a cell: tuples of words, in the order of ``attrs["label_names"]``;
* ``group`` and ``fold``: text; rows of one group stay in one fold;
* ``labels``: the file of each dense label, or an array; None = unknown.

A column holds numbers if all of its cells are numbers, and classes if none is: what is neither is
an error. What the numbers mean is shown by :class:`dinoneck.data.summary.DataSummary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.cells import (
    FOLD,
    FRAME_NAME,
    GROUP,
    IMAGES,
    LABELS,
    MISSING,
    OWN_COLUMNS,
    PathLike,
    cell_texts,
    check_unique,
    number_of,
    same_labels,
)
from dinoneck.data.csv_files import check_has_rows, check_header, read_csv_file
from dinoneck.data.names import find_files
from dinoneck.data.table import LABEL_NAMES
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

Names = Sequence[str] | str
_INDICATORS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


@dataclass(frozen=True)
class _Sheet:
    """The cells of a table.

    Attributes:
        name: what messages call it.
        cells: a column for each name, as text or as values of a DataFrame.
        ids: of the rows, text.
        files: the names of the images, or images.
        separator: between the cells of a file.
    """

    name: str
    cells: pd.DataFrame
    ids: list[str]
    files: list[Any]
    separator: str = ","

    def texts(self, column: str) -> list[str]:
        """Return the cells of a column as text, empty = missing."""
        return cell_texts(self.cells[column])


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
) -> pd.DataFrame:
    """Read a table with one row per image.

    Args:
        source: a pandas DataFrame, or a CSV file: UTF-8 (UTF-16 with a byte order mark), header
            row, ``,``, ``;`` or tab between the cells.
        images: the folder that file names are relative to; None = files are not looked for.
        targets: columns with the values to predict.
        auxiliary: columns that only help training.
        group: columns whose equal values belong in one fold.
        fold_column: the column with the name of each image's fold.
        image_column: the column with the file names; a DataFrame without it has them in its index.
        labels: the column with the file names of dense labels; an empty cell = there is none.
        classes: column -> class names in their order, which admits no others; empty = those that
            occur, also numbers.
        numbers: columns that hold numbers, so that any word in them is an error.
        multilabel: column of several words in a cell -> the names of all labels; empty = those that
            occur. ``;`` or ``|`` separates the words, ``none`` says that there is none.
        indicators: columns of one label each, of 1 and 0 or ``true`` and ``false``.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, an image is named twice, or a
            cell does not fit; it names the file, the row, the value and the remedy.
    """
    targets, auxiliary, group = map(_as_tuple, (targets, auxiliary, group))
    values = targets + auxiliary
    masks = _as_tuple(labels)
    _check_roles(values, masks, [*classes, *multilabel])
    needed = (*values, *group, *_as_tuple(fold_column), *masks)
    sheet = _read_sheet(source, image_column, needed)
    files = find_files(sheet.files, images, f"images named in {sheet.name}")
    table = pd.DataFrame({IMAGES: files}, sheet.ids, dtype=object)
    for column in values:
        if column in multilabel and not _are_indicators(sheet.texts(column)):
            words, names = _read_words(sheet, column, multilabel[column])
            table[column] = words
            table.attrs.setdefault(LABEL_NAMES, {})[column] = names
        elif column in indicators or column in multilabel:
            table[column] = _read_indicators(sheet, column)
        elif column in classes:
            table[column] = _read_classes(sheet, column, classes[column])
        else:
            table[column] = _read_values(sheet, column, must_be_numbers=column in numbers)
    if group:
        table[GROUP] = _joined([_read_names(sheet, column, GROUP) for column in group])
    if fold_column is not None:
        table[FOLD] = _read_names(sheet, fold_column, FOLD)
    for column in masks:  # one, or none
        table[LABELS] = _read_masks(sheet, column, images)
        _check_masks(table, sheet.name)
    return table


read_truth = read_table


def read_cells(path: PathLike, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read the cells of a CSV file as text.

    Raises:
        DataError: if it cannot be read, lacks a column or has no rows.
    """
    file = read_csv_file(path, columns)
    check_has_rows(str(path), len(file.rows))
    return pd.DataFrame(file.rows, columns=file.header, dtype=object)


def _as_tuple(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _check_roles(values: Sequence[str], masks: Sequence[str], described: Sequence[str]) -> None:
    if not values and not masks:
        raise DataError("no target columns are named; name them with targets= (--targets)")
    check_unique(values, "the target or auxiliary column", "name it once, in one of the two roles")
    for column in values:
        if column in OWN_COLUMNS:
            raise DataError(f"a target is named {column!r}, as a column of the result; rename it")
    for column in described:
        if column not in values:
            raise DataError(f"classes= or multilabel= names {column!r}, which is no target")


def _read_sheet(source: Any, image_column: str, columns: Sequence[str]) -> _Sheet:
    if not isinstance(source, pd.DataFrame):
        file = read_csv_file(source)
        check_header(file.name, file.header, (image_column, *columns), image_column)
        check_has_rows(file.name, len(file.rows))
        cells = pd.DataFrame(file.rows, columns=file.header, dtype=object)
        names = file.column(image_column)
        check_unique(names, f"{file.name}: the image", "give each image one row")
        return _Sheet(file.name, cells, names, names, file.separator)
    check_has_rows(FRAME_NAME, len(source))
    check_header(FRAME_NAME, [*map(str, source.columns)], columns)
    files = list(source[image_column] if image_column in source else source.index)
    ids = [cell_texts([file])[0] if isinstance(file, str | Path) else None for file in files]
    if None in ids:  # images in memory
        ids = cell_texts(source.index)
    check_unique(ids, f"{FRAME_NAME}: the image", "give each image one row")
    return _Sheet(FRAME_NAME, source, ids, files)


def _read_values(sheet: _Sheet, column: str, *, must_be_numbers: bool) -> Any:
    """A column of numbers or of classes, whichever all of its cells are."""
    cells = sheet.cells[column]
    if hasattr(cells, "cat") and not must_be_numbers:
        return pd.Categorical(cells, categories=cells.cat.categories)
    if cells.dtype.kind in "mM":
        raise DataError(
            f"{sheet.name}: {column} is {cells.dtype}; expected numbers or classes: convert it, of "
            "dates such as to days since the first one"
        )
    texts = sheet.texts(column)
    numbers = _numbers_of(texts, sheet.separator)
    is_filled = [text.lower() not in MISSING for text in texts]
    words = [row for row, number in enumerate(numbers) if number is None and is_filled[row]]
    has_numbers = any(number is not None for number in numbers)
    if words and not has_numbers and not must_be_numbers:
        return _read_classes(sheet, column, ())
    if words:
        row = words[0]
        raise DataError(
            f"{sheet.name}: {column} of {sheet.ids[row]!r} is {texts[row]!r}, and other cells are "
            "numbers; expected a number in every cell, an empty one where it is unknown, or name "
            "the column as one of classes (--classes)"
        )
    if not has_numbers:
        raise DataError(f"{sheet.name}: all cells of {column} are empty; fill it, or leave it out")
    return np.array([np.nan if number is None else number for number in numbers])


def _numbers_of(texts: Sequence[str], separator: str) -> list[float | None]:
    """The numbers that cells spell; in a file with ``;`` between the cells also with a decimal comma."""
    numbers = [number_of(text) for text in texts]
    if separator != ";":
        return numbers
    is_word = [number is None for number in numbers]
    has_comma = [text.count(",") == 1 for text in texts]
    with_points = any("." in text for text in texts)
    if with_points or not any(map(all, zip(is_word, has_comma, strict=True))):
        return numbers
    return [number_of(text.replace(",", ".")) for text in texts]


def _read_classes(sheet: _Sheet, column: str, names: Sequence[str]) -> pd.Categorical:
    """A column of classes, which ``names`` admits if there are any."""
    texts = sheet.texts(column)
    if texts and all(number_of(text) is not None for text in texts if text):
        texts = [f"{float(text):.15g}" if text else "" for text in texts]
    known = list(names) or sorted({text for text in texts if text})
    for row, text in enumerate(texts):
        if text and text not in known:
            raise DataError(
                f"{sheet.name}: {column} of {sheet.ids[row]!r} is {text!r}; expected one of "
                f"{some_of(known, 20)}"
            )
    return pd.Categorical([text or None for text in texts], categories=known)


def _are_indicators(texts: Sequence[str]) -> bool:
    return all(text.lower() in _INDICATORS for text in texts if text)


def _read_indicators(sheet: _Sheet, column: str) -> Any:
    """A column of 1 where an image has a label, 0 where it has not, NaN where that is unknown."""
    values = []
    for image_id, text in zip(sheet.ids, sheet.texts(column), strict=True):
        if text and text.lower() not in _INDICATORS:
            raise DataError(
                f"{sheet.name}: {column} of {image_id!r} is {text!r}; expected 1 or 0, true or false, "
                "or an empty cell where it is unknown"
            )
        values.append(_INDICATORS.get(text.lower(), np.nan))
    return np.array(values)


def _read_words(
    sheet: _Sheet, column: str, names: Sequence[str]
) -> tuple[list[tuple[str, ...] | None], tuple[str, ...]]:
    """The words of each row, and all words."""
    separator = "|" if sheet.separator == ";" else ";"
    rows: list[tuple[str, ...] | None] = []
    for text in sheet.texts(column):
        words = [word.strip() for word in text.replace("|", separator).split(separator)]
        has_none = [word.lower() for word in words] == ["none"]
        rows.append(None if not text else () if has_none else tuple(filter(None, words)))
    occurring = {word for words in rows if words for word in words}
    known = tuple(names) or tuple(sorted(occurring))
    for image_id, words in zip(sheet.ids, rows, strict=True):
        for word in words or ():
            if word not in known:
                raise DataError(
                    f"{sheet.name}: {column} of {image_id!r} has {word!r}; expected labels among "
                    f"{some_of(known, 20)}"
                )
    return rows, known


def _read_names(sheet: _Sheet, column: str, role: str) -> list[Any]:
    return same_labels(sheet.cells[column], sheet.ids, f"{role} in column {column!r}")


def _joined(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """The names of a group: of several columns, joined."""
    if len(columns) == 1:
        return list(columns[0])
    return [" / ".join(map(str, names)) for names in zip(*columns, strict=True)]


def _read_masks(sheet: _Sheet, column: str, images: PathLike | None) -> list[Any]:
    cells = list(sheet.cells[column])
    rows = [row for row, cell in enumerate(cells) if not isinstance(cell, str) or cell]
    rows = [row for row in rows if cells[row] is not None]
    found = find_files([cells[row] for row in rows], images, f"labels named in {sheet.name}")
    masks: list[Any] = [None] * len(cells)
    for row, file in zip(rows, found, strict=True):
        masks[row] = file
    return masks


def _check_masks(table: pd.DataFrame, name: str) -> None:
    """Refuse a mask that is the file of an image."""
    images = {file for file in table[IMAGES] if isinstance(file, Path)}
    for mask in table[LABELS]:
        if isinstance(mask, Path) and mask in images:
            raise DataError(f"{name}: the label {mask} is an image; write labels with their folder")
