"""Tables of images as pandas DataFrames, from CSV files or DataFrames.

The index of a table holds the images' ids: file names as text, stripped and composed (NFC). Its
columns are

* ``images``: the file of each image, or an image in memory;
* the targets and auxiliary values by their names: numbers are float64, NaN = missing; classes are
  categorical;
* columns of several words in a cell: a tuple of words, in the order of ``attrs["label_names"]``;
* ``group`` and ``fold``: text; rows of one group stay in one fold;
* ``labels``: the file of each dense label, or an array; None = unknown.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data import cells
from dinoneck.data.cells import (
    FOLD,
    FRAME_NAME,
    GROUP,
    IMAGES,
    LABELS,
    MISSING_WORDS,
    PathLike,
    cell_text,
    is_missing,
    is_number,
)
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.column_kinds import holds_numbers, is_word
from dinoneck.data.csv_files import CsvFile, check_has_rows, check_header, read_csv_file
from dinoneck.data.dates import is_date
from dinoneck.data.label_words import are_indicators, as_indicators, read_label_cells
from dinoneck.data.name_pairs import shared_affixes
from dinoneck.data.not_numbers import (
    is_error_value,
    is_spreadsheet_error,
)
from dinoneck.data.number_cells import (
    COMMA,
    POINT,
    Notation,
    NumberError,
    doubtful_thousands,
    read_numbers,
)
from dinoneck.data.odd_numbers import (
    are_class_numbers,
    are_compact_days,
    begins_with_zero,
    days_among,
    is_small_code,
    sentinels_of,
)
from dinoneck.data.sheet_checks import (
    warn_of_merged_cells,
    warn_of_rows_without_image,
    warn_of_twin_columns,
    warn_of_unread_parts,
)
from dinoneck.data.sources import find_files, refuse_own_labels
from dinoneck.data.table import LABEL_NAMES
from dinoneck.data.word_cells import (
    warn_of_class_names,
    warn_of_dates,
    warn_of_joined_numbers,
    warn_of_no_group,
    warn_of_powers_of_ten,
    warn_of_thousands,
    warn_of_typos,
    warn_of_words,
)
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import counted, did_you_mean, some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

Names = Sequence[str] | str
_SHOWN = 5  # examples in a message
_MOST_LISTED = 20  # classes in a message that lists what there is
# a number with decimals and without an exponent
_DECIMAL = re.compile(r"-?\d+\.\d+")

logger = logging.getLogger(__name__)


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

    A column with numbers gives numbers, one with words classes. An empty cell and ``nan`` are
    missing, of a DataFrame also None, NaN, NaT and NA; among numbers also the words NA, N/A, NULL
    and None. Groups, folds and classes are compared as numbers where all cells are, else as text.

    The numbers of a column are read in the one notation that fits all of them: a decimal point or a
    decimal comma, with or without separators of thousands. What was read although a plain CSV file
    does not have it, such as UTF-16 or separators of thousands, is listed in one warning for the
    table. Other warnings name classes and groups that may be one, such as ``weed`` and
    ``Weed``, and classes without a row.

    Args:
        source: a pandas DataFrame, or a CSV file: UTF-8 (UTF-16 with a byte order mark), header
            row, ``,``, ``;`` or tab between the cells.
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
        numbers: targets and auxiliary columns that hold numbers, so that words in them are errors
            even where most cells are words, or the column of a DataFrame is categorical. A column
            in ``classes`` holds classes in any case.
        multilabel: column of several words in a cell -> the names of all labels in their order,
            which admit no others; empty = those that occur. ``;`` or ``|`` separates the words, but
            not what separates the cells of the file. The word ``none`` says that an image has no
            label; an empty cell is unknown. A column as those of ``indicators`` holds numbers.
        indicators: targets and auxiliary columns of one label each: 1 or ``true`` where an image has
            it, 0 or ``false`` where it has not, in any case; they are read as numbers.

    Raises:
        DataError: if a column, a file, a group or a fold is missing, or an image or a column is
            named twice. If a cell does not fit, or the numbers of a column are written in two ways
            or have two meanings. If the dense label of an image is the image itself, or is named
            after another image.
    """
    roles = _Roles(
        targets=_as_tuple(targets),
        auxiliary=_as_tuple(auxiliary),
        group=_as_tuple(group),
        folds=_as_tuple(fold_column),
        masks=_as_tuple(labels),
    )
    return _read(
        source,
        images,
        roles,
        image_column=image_column,
        classes=classes,
        number_columns=_as_tuple(numbers),
        label_columns=multilabel,
        indicator_columns=_as_tuple(indicators),
        remedy_of_empty_classes="Leave it out of the classes, or add rows of it",
    )


def read_truth(
    source: Any,
    images: PathLike | None,
    targets: Names,
    *,
    group: Names,
    image_column: str,
    labels: str | None,
    classes: Mapping[str, Sequence[str]],
    numbers: Names,
    multilabel: Mapping[str, Sequence[str]],
    indicators: Names,
) -> pd.DataFrame:
    """Read a table to compare predictions with, as :func:`read_table` does.

    The classes are those of the models. A class without a row can therefore not be left out, and the
    warning about it states its score instead.
    """
    roles = _Roles(
        targets=_as_tuple(targets),
        auxiliary=(),
        group=_as_tuple(group),
        folds=(),
        masks=_as_tuple(labels),
        is_truth=True,
    )
    return _read(
        source,
        images,
        roles,
        image_column=image_column,
        classes=classes,
        number_columns=_as_tuple(numbers),
        label_columns=multilabel,
        indicator_columns=_as_tuple(indicators),
        remedy_of_empty_classes="Its F1 is unknown, or 0 where the class is predicted",
    )


def _read(
    source: Any,
    images: PathLike | None,
    roles: _Roles,
    *,
    image_column: str,
    classes: Mapping[str, Sequence[str]],
    number_columns: Sequence[str],
    label_columns: Mapping[str, Sequence[str]],
    indicator_columns: Sequence[str],
    remedy_of_empty_classes: str,
) -> pd.DataFrame:
    """Read the table of :func:`read_table`.

    ``remedy_of_empty_classes`` ends the warning about classes without a row.
    """
    _check_roles(roles, classes)
    _check_label_columns(roles, label_columns)
    sheet = _read_sheet(source, image_column, roles)
    if images is None:  # otherwise find_files raises an error for a row without a file
        warn_of_rows_without_image(sheet.name, list(sheet.ids), sheet.row_numbers)
    files = find_files(sheet.image_names, images, f"images named in {sheet.name}", outside=True)
    table = pd.DataFrame({IMAGES: files}, sheet.ids, dtype=object)
    label_names = {}
    for column in roles.values:
        if column in label_columns:
            words = _read_labels(sheet, column, label_columns[column])
            if words is not None:
                table[column] = words.cells
                label_names[column] = words.names
                continue
        table[column] = _read_values(
            sheet,
            column,
            class_names=classes.get(column),
            must_be_numbers=column in number_columns,
            is_indicator=column in indicator_columns or column in label_columns,
            remedy_of_empty_classes=remedy_of_empty_classes,
        )
    if label_names:
        table.attrs[LABEL_NAMES] = label_names
    if roles.group:
        table[GROUP] = _read_group_names(sheet, roles.group, GROUP)
    if roles.folds:
        table[FOLD] = _read_group_names(sheet, roles.folds, FOLD)
    for column in roles.masks:  # one, or none
        table[LABELS] = _find_mask_files(sheet, column, images)
        refuse_own_labels(table[IMAGES], table[LABELS], sheet.name)
        _check_labels_of_others(table[IMAGES], table[LABELS], f"{sheet.name}: {column}")
    if sheet.repairs:
        logger.warning("%s: %s", sheet.name, "; ".join(sheet.repairs))
    return table


def read_cells(path: PathLike, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read the cells of a CSV file as text, stripped and composed (NFC).

    Args:
        path: the file: UTF-8 (UTF-16 with a byte order mark), with a header row, separated by
            ``,``, ``;`` or tabs.
        columns: which it must have.

    Raises:
        DataError: if it cannot be read, a column is missing or occurs twice, there are no rows, or
            a row has another number of cells.
    """
    file = read_csv_file(path, columns)
    rows = [[cell_text(cell) for cell in row] for row in file.rows]
    check_header(str(path), file.header, columns)
    check_has_rows(str(path), len(rows))
    return pd.DataFrame(rows, columns=file.header, dtype=object)


# Columns and rows
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Roles:
    """Which columns of a table are used, and for what."""

    targets: tuple[str, ...]
    auxiliary: tuple[str, ...]
    group: tuple[str, ...]
    folds: tuple[str, ...]
    masks: tuple[str, ...]
    is_truth: bool = False

    @property
    def makes_folds(self) -> bool:
        """Whether folds are drawn: the table is one to train on, and no column names them."""
        return not self.is_truth and not self.folds

    @property
    def values(self) -> tuple[str, ...]:
        """Columns of numbers or classes."""
        return self.targets + self.auxiliary

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are used, but for the images."""
        return self.values + self.group + self.folds + self.masks


@dataclass
class _Sheet:
    """The used cells of a CSV file as they are written, or the values of a DataFrame.

    Columns that are read add to ``repairs``; nothing else changes.

    Attributes:
        name: what messages call it.
        ids: of the rows.
        image_names: the file of each row.
        columns: column -> its cells.
        categories: categorical column of a DataFrame -> its categories.
        row_numbers: of the rows, as messages call them.
        file: all cells; None for a DataFrame.
        repairs: what was read although a plain CSV file does not have it.
    """

    name: str
    ids: pd.Index
    image_names: list[Any]
    columns: dict[str, list[Any]]
    categories: dict[str, list[str]]
    row_numbers: Sequence[int]
    file: CsvFile | None
    repairs: list[str]

    def columns_without(self, column: str) -> Iterator[list[str]]:
        """Yield the cells of the file's other columns; nothing for a DataFrame."""
        if self.file is None:
            return
        for index, name in enumerate(self.file.header):
            if name != column:
                yield cells.cell_texts([row[index] for row in self.file.rows])


def _check_roles(roles: _Roles, classes: Mapping[str, Sequence[str]]) -> None:
    if not roles.targets and not roles.masks:
        raise DataError("no target columns are named; name them with targets= (--targets)")
    for column in roles.values:
        if column in cells.OWN_COLUMNS:
            raise DataError(
                f"a target or auxiliary column is named {column!r}, as a column of the result; "
                "rename it"
            )
    cells.check_unique(
        roles.values,
        "the target or auxiliary column",
        "name it once, in one of the two roles",
    )
    for column, names in classes.items():
        if column not in roles.values:
            raise DataError(
                f"classes= lists those of {column!r}, which is neither a target nor auxiliary"
            )
        if isinstance(names, str):
            raise DataError(
                f"classes= gives the text {names!r} for {column!r}; expected a list of names"
            )
        if isinstance(names, set | frozenset):
            raise DataError(
                f"classes= gives a set for {column!r}, whose order differs between processes; "
                "expected a list of names"
            )


def _check_label_columns(roles: _Roles, label_columns: Mapping[str, Sequence[str]]) -> None:
    for column, names in label_columns.items():
        if column not in roles.values:
            raise DataError(
                f"multilabel= lists the labels of {column!r}, which is neither a target nor auxiliary"
            )
        if isinstance(names, str | set | frozenset):
            raise DataError(
                f"multilabel= gives {names!r} for {column!r}; expected a list of names, whose order "
                "is that of the labels"
            )


def _read_sheet(source: Any, image_column: str, roles: _Roles) -> _Sheet:
    columns = roles.columns
    needed = (image_column, *columns)
    if isinstance(source, pd.DataFrame):
        return _sheet_of_frame(source, image_column, needed, makes_folds=roles.makes_folds)
    file = read_csv_file(source, needed)
    name = str(source)
    check_header(name, file.header, needed, image_column)
    check_has_rows(name, len(file.rows))
    image_names = cells.strip_cells(file.column(image_column))
    warn_of_twin_columns(
        name, file.header, columns, lambda index: [cell_text(row[index]) for row in file.rows]
    )
    if roles.makes_folds:
        warn_of_unread_parts(
            name, file.header, needed, lambda index: (row[index] for row in file.rows)
        )
    if image_column in image_names:
        _check_header_not_repeated(name, file, needed, image_names.index(image_column))
    return _Sheet(
        name=name,
        ids=_ids_of(name, image_column, image_names, file.row_numbers),
        image_names=image_names,
        columns={column: file.column(column) for column in columns},
        categories={},
        row_numbers=file.row_numbers,
        file=file,
        repairs=list(file.repairs),
    )


def _check_header_not_repeated(name: str, file: CsvFile, columns: Sequence[str], row: int) -> None:
    """Raise a DataError for a row that holds the names of the columns, as joined files do."""
    if all(cell_text(file.column(column)[row]) == column for column in columns):
        raise DataError(
            f"{name}: row {file.row_numbers[row]} repeats the names of the columns; remove it"
        )


def _sheet_of_frame(
    source: pd.DataFrame, image_column: str, needed: Sequence[str], *, makes_folds: bool
) -> _Sheet:
    name = FRAME_NAME
    if source.columns.nlevels > 1:
        raise DataError(
            f"{name} has columns of {source.columns.nlevels} levels, such as {source.columns[0]!r}; "
            "expected names: join the levels, or take one with droplevel()"
        )
    frame = source.rename(columns=str)
    if image_column not in frame:
        if not all(isinstance(label, str | os.PathLike) for label in frame.index):
            raise DataError(
                f"{name} has no column {image_column!r} and its index holds no file names. Name "
                "the column of images with image_column=, or make it the index with set_index()."
                f"{did_you_mean(image_column, frame.columns)}"
            )
        frame[image_column] = frame.index.map(str)
    check_header(name, list(frame.columns), needed, image_column)
    check_has_rows(name, len(frame))
    warn_of_twin_columns(
        name,
        list(frame.columns),
        needed,
        lambda index: [cell_text(value) for value in frame.iloc[:, index]],
    )
    if makes_folds:
        warn_of_unread_parts(
            name, list(frame.columns), needed, lambda index: iter(frame.iloc[:, index])
        )
    categories = {}
    for column in needed:
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            categories[column] = [str(label) for label in frame[column].dtype.categories]
    image_names = list(frame[image_column])
    return _Sheet(
        name=name,
        ids=_ids_of(name, image_column, image_names, range(len(frame))),
        image_names=image_names,
        columns={column: list(frame[column].astype(object)) for column in needed},
        categories=categories,
        row_numbers=range(len(frame)),
        file=None,
        repairs=[],
    )


def _ids_of(
    name: str, image_column: str, image_names: Sequence[Any], row_numbers: Sequence[int]
) -> pd.Index:
    ids = cells.cell_texts(image_names)
    if "" in ids:
        raise DataError(
            f"{name}: the {image_column} of row {row_numbers[ids.index('')]} is empty; name it, or "
            "remove the row"
        )
    cells.check_unique(
        ids,
        f"{name}: the {image_column}",
        "keep one row for each image. DataFrame.pivot() makes columns of a long table, which has a "
        "row for each value; boxes are written as a COCO file (--boxes)",
    )
    return pd.Index(ids, dtype=object)


def _as_tuple(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, str):
        return (names,)
    return tuple(names)


# Values
# ----------------------------------------------------------------------------------------------------


def _read_values(
    sheet: _Sheet,
    column: str,
    *,
    class_names: Sequence[str] | None,
    must_be_numbers: bool,
    is_indicator: bool,
    remedy_of_empty_classes: str,
) -> pd.Series:
    """Read a column as float64 numbers or as classes.

    Args:
        sheet: the table.
        column: which one.
        class_names: the names that ``classes=`` gives the column, see :func:`_classes`; None = it
            does not name the column.
        must_be_numbers: whether ``numbers=`` names the column. If neither does, the categories of
            a DataFrame are its classes, and of other columns most cells decide.
        is_indicator: whether the column holds the 0 and 1, or true and false, of a label.
        remedy_of_empty_classes: what to do about a class without a row.
    """
    what = f"{sheet.name}: {column}"
    texts = _texts_of(sheet, column)
    filled = _filled(sheet, texts)
    if filled.empty:
        raise DataError(
            f"{sheet.name}: the column {column!r} is empty; leave it out, or fill it in"
        )
    if len(filled) < len(texts):
        warn_of_merged_cells(what, texts)
        missing = len(texts) - len(filled)
        logger.info(
            "%s: %s is missing for %d of %d images", sheet.name, column, missing, len(texts)
        )
    if class_names is not None:
        class_names = list(class_names)
    elif is_indicator:
        filled[:] = as_indicators(filled)
        _check_indicators(what, filled)
        must_be_numbers = True
    if class_names is None and must_be_numbers:
        _check_not_all_words(what, filled)
        numbers = _numbers(filled, what, column, sheet, may_be_classes=False)
        return numbers.reindex(sheet.ids)
    if class_names is None:
        class_names = sheet.categories.get(column)
    if class_names is None and holds_numbers(filled):
        numbers = _numbers(filled, what, column, sheet, may_be_classes=True)
        return numbers.reindex(sheet.ids)
    _state_spellings(sheet, column, sheet.columns[column], texts)
    labels = _classes(filled, what, column, class_names, remedy_of_empty_classes)
    return labels.reindex(sheet.ids)


def _texts_of(sheet: _Sheet, column: str) -> list[str]:
    """The cells of a column as text; empty where they are missing.

    Raises:
        DataError: if a value of a DataFrame is neither a number nor text.
    """
    values = sheet.columns[column]
    if sheet.file is None:
        _check_types(f"{sheet.name}: {column}", sheet.ids, values)
    return cells.cell_texts(values)


def _filled(sheet: _Sheet, texts: Sequence[str]) -> pd.Series:
    """The cells of a column that are not empty, by the ids of their rows."""
    all_texts = pd.Series(texts, sheet.ids, dtype=object)
    return all_texts[[text != "" for text in texts]]


@dataclass(frozen=True)
class _LabelColumn:
    """A column of labels.

    Attributes:
        cells: a tuple of words in every row, NaN = unknown.
        names: of all labels.
    """

    cells: pd.Series
    names: tuple[str, ...]


def _read_labels(sheet: _Sheet, column: str, names: Sequence[str]) -> _LabelColumn | None:
    """Read a column of several words in a cell; None for one of 0 and 1, of true and false, or an empty one."""
    what = f"{sheet.name}: {column}"
    texts = _texts_of(sheet, column)
    filled = _filled(sheet, texts)
    if filled.empty or are_indicators(as_indicators(filled)):
        return None
    if len(filled) < len(texts):
        warn_of_merged_cells(what, texts)
    read = read_label_cells(
        list(filled),
        list(filled.index),
        what=what,
        names=names,
        cell_separator=None if sheet.file is None else sheet.file.separator,
    )
    warn_of_words(
        what, read.counts, noun="labels", remedy="Leave the cell empty where the labels are unknown"
    )
    warn_of_typos(what, read.counts)
    words = pd.Series(index=filled.index, dtype=object)
    for row, words_of_row in enumerate(read.words):
        words.iat[row] = words_of_row
    return _LabelColumn(words.reindex(sheet.ids), read.names)


def _check_types(what: str, ids: pd.Index, values: Sequence[Any]) -> None:
    for image_id, value in zip(ids, values, strict=True):
        # np.timedelta64 is registered as an integer, and np.bool_ is not registered as a number
        is_duration = isinstance(value, np.timedelta64)
        is_readable = isinstance(value, str | Real | Decimal | np.bool_) and not is_duration
        if not (is_readable or is_missing(value)):
            kind = type(value).__name__
            expected = f"a number or text, not {kind}: convert it first"
            raise _cell_error(what, image_id, value, expected)


def _check_indicators(what: str, filled: Sequence[str]) -> None:
    """Raise a DataError if all cells of a column of a label are words."""
    words = sorted(set(filled))
    if all(is_word(word) and word.lower() not in MISSING_WORDS for word in words):
        raise DataError(
            f"{what} holds the words {some_of(map(repr, words), _SHOWN)}; expected 1 or true where an "
            "image has the label, 0 or false where it has not, and an empty cell where that is unknown"
        )


def _check_not_all_words(what: str, filled: Sequence[str]) -> None:
    """Raise a DataError if all cells of a column that must hold numbers are words without a digit."""
    words = sorted(set(filled))
    for word in words:
        has_digit = any(character.isdigit() for character in word)
        if has_digit or not is_word(word) or word.lower() in MISSING_WORDS:
            return
    raise DataError(
        f"{what} holds the words {some_of(map(repr, words), _SHOWN)}; expected numbers, as "
        "numbers=, a task of kind 'regression', or the head says. Name a column of numbers, or leave "
        "numbers= or the kind out"
    )


def _as_classes(column: str) -> str:
    """How a column is read as classes, in Python and in the file of a training."""
    return (
        f"if the column holds classes, name it in read_table(classes={{{column!r}: ()}}), or as "
        f"tasks: {{{column}: {{kind: classification}}}} in the file of a training"
    )


def _numbers(
    texts: pd.Series, what: str, column: str, sheet: _Sheet, *, may_be_classes: bool
) -> pd.Series:
    """Float64 numbers of the filled cells; words that say "missing" are NaN, as the other empty cells."""
    is_unknown = [text.lower() in MISSING_WORDS for text in texts]
    if any(is_unknown):
        words = sorted(set(texts[is_unknown]))
        count = counted(sum(is_unknown), "cell")
        sheet.repairs.append(f"{column}: {', '.join(words)} in {count} read as missing")
        texts = texts[[not unknown for unknown in is_unknown]]
    if texts.empty:
        raise DataError(f"{what} holds no number; leave the column out, or fill it in")
    separator = None if sheet.file is None else sheet.file.separator
    cell_texts = list(texts)
    try:
        numbers = read_numbers(
            cell_texts, separator, other_columns=lambda: sheet.columns_without(column)
        )
    except NumberError as error:
        as_classes = _as_classes(column) if may_be_classes else None
        raise _number_error(what, texts, error, as_classes) from None
    sheet.repairs.extend(f"{column}: {repair}" for repair in numbers.repairs)
    _warn_of_odd_numbers(what, cell_texts, numbers.values)
    if may_be_classes:
        _warn_of_codes(what, column, cell_texts)
        _warn_of_three_values(what, column, numbers.values)
        if are_class_numbers(column, numbers.values):
            logger.warning(
                "%s is called as classes are, holds %d whole numbers and is read as numbers; %s. If "
                "it holds numbers, name it in numbers=, or as {kind: regression} there",
                what,
                len(set(numbers.values)),
                _as_classes(column),
            )
    return pd.Series(numbers.values, texts.index, dtype="float64")


def _warn_of_odd_numbers(what: str, texts: Sequence[str], values: Sequence[float]) -> None:
    """Name numbers that may stand for "no data" or for days."""
    for sentinel in sentinels_of(values):
        logger.warning(
            "%s is %g in %s, %s, and is read as this number. Leave cells empty where the value is "
            "unknown",
            what,
            sentinel,
            counted(values.count(sentinel), "row"),
            _how_unlike(sentinel),
        )
    days = days_among(values)
    if days:
        logger.warning(
            "%s is %s in %s, unlike all other values: these are numbers of days in spreadsheets, "
            "which make dates of numbers such as 1.5. Enter these numbers again",
            what,
            some_of([f"{day:g}" for day in days], _SHOWN),
            counted(sum(value in days for value in values), "row"),
        )
    if are_compact_days(texts):
        logger.warning(
            "%s has days in one number, such as %s, and is read as these numbers, whose differences "
            "are no days. Write numbers such as days since the first one",
            what,
            texts[0],
        )


def _how_unlike(sentinel: float) -> str:
    if is_small_code(sentinel):
        return "below 0 unlike all other values"
    return "unlike all other values"


def _warn_of_three_values(what: str, column: str, values: Sequence[float]) -> None:
    """Warn of a column of -1, 0 and 1: -1 may mean "unknown", or the three may be classes."""
    if set(values) == {-1.0, 0.0, 1.0}:
        logger.warning(
            "%s is -1 in %s and else 0 or 1, and is read as numbers. Leave cells empty if -1 says "
            "that the value is unknown; %s",
            what,
            counted(values.count(-1.0), "row"),
            _as_classes(column),
        )


def _warn_of_codes(what: str, column: str, texts: Sequence[str]) -> None:
    """Name numbers that begin with 0, as names of digits do."""
    codes = [text for text in texts if begins_with_zero(text)]
    if codes:
        logger.warning(
            "%s has numbers that begin with 0, such as %r in %s, as plots, postcodes and days "
            "(01.05) do, and is read as numbers; %s. If it holds numbers, name it in numbers=, or as "
            "{kind: regression} there",
            what,
            codes[0],
            counted(len(codes), "row"),
            _as_classes(column),
        )


def _number_error(
    what: str, texts: pd.Series, error: NumberError, as_classes: str | None
) -> DataError:
    """The error of a column; ``as_classes`` says how it is read as classes, if it may hold these."""
    image_id = texts.index[error.place]
    text = texts.iloc[error.place]
    may_be_class = error.may_be_class and not is_spreadsheet_error(text)
    if error.other is None and as_classes is not None and may_be_class:
        return _cell_error(what, image_id, text, f"{error.expected}; {as_classes}")
    if error.other is None:
        return _cell_error(what, image_id, text, error.expected)
    other_id = texts.index[error.other]
    other_text = texts.iloc[error.other]
    return DataError(
        f"{what} of {other_id!r} is {other_text!r}, and of {image_id!r} {text!r}; expected "
        f"{error.expected}"
    )


def _classes(
    texts: pd.Series,
    what: str,
    column: str,
    class_names: Sequence[str] | None,
    remedy_of_empty_classes: str,
) -> pd.Series:
    """Read the filled cells of a column as classes.

    Args:
        texts: the cells.
        what: what messages call the column.
        column: its name.
        class_names: all that are admitted, in their order; empty = those that occur, also numbers;
            None = those that occur and are words.
        remedy_of_empty_classes: what to do about a class without a row.
    """
    are_listed = bool(class_names)
    may_be_numbers = class_names is None  # the user has not said that the column holds classes
    are_numbers = all(map(is_number, set(texts)))
    to_label = cells.label_of if are_numbers else str
    labels = pd.Series(cells.for_each(to_label, list(texts)), texts.index, dtype=object)
    counts = Counter(labels)
    if class_names:
        names = [str(name) for name in class_names]
    elif may_be_numbers:
        names = _sorted_names([label for label in counts if is_word(label)])
    else:
        names = _sorted_names(counts)
    if not are_listed:
        if are_numbers:
            names = _names_as_written(names, _spellings_of(labels, texts))
        _check_names(what, names, labels, may_be_numbers=may_be_numbers)
        _warn_of_thousands_in_classes(what, Counter(texts))
    if are_numbers:
        _warn_of_numbers_as_classes(what, texts, labels, are_listed=are_listed)
    name_of = _name_of_label(what, names, to_label)
    for image_id, label in labels.items():
        if label not in name_of:
            expected = _expected_class(texts[image_id], names, column, may_be_numbers)
            raise _cell_error(what, image_id, texts[image_id], expected)
    warn_of_empty_classes(
        {name: counts[label] for label, name in name_of.items()},
        noun="row",
        source=what,
        remedy=remedy_of_empty_classes,
    )
    return labels.map(name_of).astype(pd.CategoricalDtype(names))


def _expected_class(text: str, names: Sequence[str], column: str, may_be_numbers: bool) -> str:
    """What is expected in the place of a text that is no class, for the end of a message."""
    hint = did_you_mean(text, names)
    expected = f"one of {some_of(names, _MOST_LISTED)}"
    if may_be_numbers:
        return f"{expected}; {_as_classes(column)}.{hint}".removesuffix(".")
    return f"{expected}.{hint}"


def _name_of_label(
    what: str, names: Sequence[str], to_label: Callable[[str], str]
) -> dict[str, str]:
    """Label -> the name of its class.

    Args:
        what: what messages call the column.
        names: of the classes, as they are listed, or as they occur.
        to_label: makes one label of several spellings.
    """
    name_of: dict[str, str] = {}
    for name in names:
        label = to_label(cell_text(name))
        if label == "":
            raise DataError(
                f"{what}: a class is called {name!r}, which is empty or reads as missing; spell it "
                "another way"
            )
        if label in name_of:
            raise DataError(
                f"{what}: the classes {name_of[label]!r} and {name!r} are one: blanks around them "
                "do not count, and numbers are compared as numbers; expected names that differ"
            )
        name_of[label] = name
    if len(name_of) < 2:
        raise DataError(
            f"{what} has the class {names[0]!r} alone; expected two classes or more: empty cells are "
            "unknown, and no class"
        )
    return name_of


def _warn_of_numbers_as_classes(
    what: str, texts: pd.Series, labels: pd.Series, *, are_listed: bool
) -> None:
    """Warn of numbers that are one class in two spellings, 1.10 and 1.1, or that may mean "no data".

    Args:
        what: what messages call the column.
        texts: its cells.
        labels: number of each cell.
        are_listed: whether all classes are listed, so that no number is unexpected.
    """
    warn_of_joined_numbers(what, _spellings_of(labels, texts), noun="classes")
    if are_listed:
        return
    values = [float(text) for text in texts]
    for sentinel in sentinels_of(values):
        logger.warning(
            "%s is %g in %s, %s, and is a class. Leave cells empty where the class is unknown",
            what,
            sentinel,
            counted(values.count(sentinel), "row"),
            _how_unlike(sentinel),
        )


def _warn_of_thousands_in_classes(what: str, counts: Mapping[str, int]) -> None:
    """Warn of numbers as classes whose point or comma may separate thousands.

    Args:
        what: name of the column in messages.
        counts: class, as it is written -> number of its rows.
    """
    if warn_of_thousands(what, counts, noun="classes"):
        return
    texts = list(counts)
    for mark in (POINT, COMMA):
        notation = Notation(mark)
        if not notation.fits(texts):
            continue
        doubt = doubtful_thousands(texts, notation.read(texts), mark)
        if doubt is not None:
            logger.warning(
                "%s has the class %r next to %r; if the mark is between thousands, write the numbers "
                "without it",
                what,
                doubt.decimal,
                doubt.whole,
            )


def _spellings_of(labels: Iterable[Any], values: Iterable[Any]) -> dict[str, set[str]]:
    """Label -> the texts that it is written as, without numbers of a DataFrame."""
    spellings: dict[str, set[str]] = defaultdict(set)
    pairs = zip(labels, values, strict=True)
    # most cells repeat a pair: each is looked at once
    written = dict.fromkeys((label, value) for label, value in pairs if isinstance(value, str))
    for label, value in written:
        spellings[str(label)].add(cell_text(value))
    return spellings


def _names_as_written(numbers: Sequence[str], spellings: Mapping[str, set[str]]) -> list[str]:
    """Return the names of classes that are numbers.

    If all cells of a class have one spelling, it keeps leading zeros, ``007``. It also keeps trailing
    zeros, ``1.10``, if any class has decimals. Without that, ``1.0`` and ``2.0`` were written by a
    program: they are called 1 and 2.
    """
    any_has_decimals = any("." in number for number in numbers)
    names = []
    for number in numbers:
        if len(spellings[number]) > 1:
            names.append(number)
            continue
        [spelling] = spellings[number]
        keeps_trailing_zeros = any_has_decimals and _DECIMAL.fullmatch(spelling) is not None
        if begins_with_zero(spelling) or keeps_trailing_zeros:
            names.append(spelling)
        else:
            names.append(number)
    return names


def _sorted_names(labels: Iterable[str]) -> list[str]:
    """Numbers before words."""
    return sorted(labels, key=lambda text: (float(text) if is_number(text) else math.inf, text))


def _check_names(
    what: str, names: Sequence[str], labels: pd.Series, *, may_be_numbers: bool
) -> None:
    """Reject class names that are errors of a spreadsheet, and warn of those that may be a mistake.

    Numbers with a unit, and dates, are warned of if ``may_be_numbers``: the user has not said that
    they are classes.
    """
    counts = Counter(labels)
    for label in counts:
        if is_spreadsheet_error(label):
            raise _cell_error(
                what,
                labels.index[list(labels).index(label)],
                label,
                "a class: this is an error value or a formula of a spreadsheet; correct it, and "
                "save the table with values. If it is the name of a class, rename the class",
            )
    if may_be_numbers:  # otherwise an error already names the cells that are no words
        counts = Counter({label: count for label, count in counts.items() if is_word(label)})
    warn_of_words(
        what,
        counts,
        noun="classes",
        remedy="Leave the cell empty where the value is missing",
    )
    warn_of_typos(what, counts)
    if not all(map(is_date, names)):
        warn_of_dates(what, counts, noun="classes")
    warn_of_class_names(what, names, may_be_numbers=may_be_numbers, num_rows=len(labels))


def _state_spellings(
    sheet: _Sheet, column: str, values: Sequence[Any], texts: Sequence[str]
) -> None:
    """Note for which words cells differ in blanks, invisible characters, or composed letters alone."""
    spellings = defaultdict(set)
    pairs = zip(texts, values, strict=True)
    # most cells repeat a pair: each is looked at once
    filled = dict.fromkeys(
        (text, value) for text, value in pairs if text and isinstance(value, str)
    )
    for text, value in filled:
        spellings[text].add(value)
    with_blanks = []
    with_invisible = []
    decomposed = []
    for text, written in spellings.items():
        if len(written) == 1:
            continue
        # each set is smaller than the one before if the step made spellings equal
        without_blanks = {value.strip() for value in written}
        stripped = {cells.strip_cell(value) for value in written}
        if len(without_blanks) < len(written):
            with_blanks.append(repr(text))
        if len(stripped) < len(without_blanks):
            with_invisible.append(repr(text))
        if len(stripped) > 1:
            decomposed.append(repr(text))
    in_some_rows = "which stand in some rows only"
    if with_blanks:
        sheet.repairs.append(
            f"{column}: blanks around {some_of(with_blanks, _SHOWN)} left out, {in_some_rows}"
        )
    if with_invisible:
        sheet.repairs.append(
            f"{column}: invisible characters around {some_of(with_invisible, _SHOWN)} left out, "
            f"{in_some_rows}"
        )
    if decomposed:
        sheet.repairs.append(
            f"{column}: letters and their accents in {some_of(decomposed, _SHOWN)} joined (NFC), "
            "which are apart in some rows only"
        )


def _cell_error(what: str, image_id: Any, value: Any, expected: str) -> DataError:
    return DataError(
        f"{what} of {image_id!r} is {value!r}; expected an empty cell where it is unknown, or {expected}"
    )


# Groups, folds and masks
# ----------------------------------------------------------------------------------------------------


def _read_group_names(sheet: _Sheet, columns: Sequence[str], role: str) -> list[str]:
    """The group or fold of every row; of several columns a text that holds all their names."""
    name_columns = []
    for column in columns:
        what = f"{role} in column {column!r}"
        names = cells.same_labels(sheet.columns[column], sheet.ids, what)
        _check_group_names(sheet, column, f"{role}s", names)
        name_columns.append(names)
    if len(name_columns) == 1:
        return [str(name) for name in name_columns[0]]
    joined = []
    for row_names in zip(*name_columns, strict=True):
        joined.append(" | ".join(str(name).replace("|", "||") for name in row_names))
    return joined


def _check_group_names(sheet: _Sheet, column: str, noun: str, names: Sequence[Any]) -> None:
    """Reject error values of a spreadsheet, and warn of names that may be a mistake."""
    what = f"{sheet.name}: {column}"
    texts = [str(name) for name in names]
    counts = Counter(texts)
    for text in counts:
        if is_error_value(text):
            image_id = sheet.ids[texts.index(text)]
            raise DataError(
                f"{what} of {image_id!r} is {text!r}, the error value of a spreadsheet; correct its "
                "formula, and save the table with values"
            )
    warn_of_words(
        what,
        counts,
        noun=noun,
        remedy="Rows with it are kept together; fill in the right name where it is missing",
    )
    warn_of_dates(what, counts, noun)
    warn_of_no_group(what, counts, noun)
    if all(map(is_number, counts)):
        warn_of_joined_numbers(what, _spellings_of(names, sheet.columns[column]), noun)
    warn_of_thousands(what, Counter(cells.cell_texts(sheet.columns[column])), noun)
    cells_as_written = Counter(cell for cell in sheet.columns[column] if isinstance(cell, str))
    warn_of_powers_of_ten(what, cells_as_written, noun)


def _find_mask_files(sheet: _Sheet, column: str, images: PathLike | None) -> pd.Series:
    names = sheet.columns[column]
    if sheet.file is not None:
        names = _without_missing_words(sheet, column, cells.strip_cells(names), images)
    if all(map(is_missing, names)):
        raise DataError(
            f"{sheet.name}: the column {column!r} names no labels; leave it out, or fill in some"
        )
    what = f"labels named in column {column!r} of {sheet.name}"
    folder = images
    if images is not None and _are_beside_table(sheet, names, images):
        folder = Path(sheet.name).parent
        logger.warning("%s are found next to the table, not in %s", what, images)
    files = find_files(names, folder, what, outside=True, of_labels=True)
    return pd.Series(files, sheet.ids, dtype=object)


def _without_missing_words(
    sheet: _Sheet, column: str, names: Sequence[str], images: PathLike | None
) -> list[str]:
    """Return the names of labels, empty where they say "missing", as ``NA`` does that R writes."""
    words = {name for name in names if name.lower() in MISSING_WORDS}
    if images is not None:
        words = {word for word in words if not (Path(images) / word).is_file()}
    if not words:
        return list(names)
    count = sum(name in words for name in names)
    sheet.repairs.append(
        f"{column}: {', '.join(sorted(words))} in {counted(count, 'cell')} read as missing"
    )
    return ["" if name in words else name for name in names]


def _are_beside_table(sheet: _Sheet, names: Sequence[Any], images: PathLike) -> bool:
    """Whether all files of labels lie below the folder of their table, and none below that of the images."""
    if sheet.file is None:
        return False
    texts = [str(name) for name in names if not is_missing(name)]
    beside = Path(sheet.name).parent
    if any((Path(images) / text).exists() for text in texts):
        return False
    return all((beside / text).is_file() for text in texts)


def _check_labels_of_others(images: pd.Series, labels: pd.Series, what: str) -> None:
    """Raise a DataError for a file of labels that is named after another image; name those of several images.

    One mask of several images is right where a camera stands still, so it is a warning.

    Args:
        images: a file or an image per row.
        labels: a file, an array or nothing per row.
        what: what messages call the column of labels.
    """
    rows_of_label: dict[Path, list[Any]] = defaultdict(list)
    row_of_stem = {file.stem: row for row, file in images.items() if isinstance(file, Path)}
    for row, label in labels.items():
        if not isinstance(label, Path):
            continue
        rows_of_label[label].append(row)
        image = images[row]
        if not isinstance(image, Path) or label.stem == image.stem:
            continue
        if label.stem in row_of_stem:
            raise DataError(
                f"{what} of {row!r} is {label}, which is named after another image, "
                f"{row_of_stem[label.stem]!r}; expected the labels of {row!r}: correct the column, "
                "or rename the files of labels if it is right"
            )
    _warn_of_exchanged_labels(images, labels, what)
    shared = {label: rows for label, rows in rows_of_label.items() if len(rows) > 1}
    if shared:
        example, rows = next(iter(shared.items()))
        logger.warning(
            "%s: %s of several images, such as %s of %r and %r. If an image has no labels, leave "
            "its cell empty",
            what,
            counted(len(shared), "file"),
            example,
            rows[0],
            rows[1],
        )


def _warn_of_exchanged_labels(images: pd.Series, labels: pd.Series, what: str) -> None:
    """Name files of labels that are called as those of other images: ``mask_1`` of ``img_0``, next to ``img_1``.

    Args:
        images: a file or an image per row.
        labels: a file, an array or nothing per row.
        what: what messages call the column of labels.
    """
    stems: dict[str, str] = {}  # of an image -> of its labels
    for image, label in zip(images, labels, strict=True):
        if isinstance(image, Path) and isinstance(label, Path):
            stems[image.stem] = label.stem
    label_stems = set(stems.values())
    affixes = shared_affixes(stems.keys(), label_stems)
    if affixes is None:
        return
    others = []
    for image_stem, label_stem in stems.items():
        if affixes.of_image(image_stem) != affixes.of_mask(label_stem):
            others.append(f"{label_stem!r} of {image_stem!r}")
    if others:
        logger.warning(
            "%s: %d of %d files are called as those of other images, such as %s. If they are "
            "exchanged, correct the column",
            what,
            len(others),
            len(stems),
            others[0],
        )
