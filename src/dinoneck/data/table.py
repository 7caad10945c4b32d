"""The table of images and their labels as a dataclass: what training and evaluation read of a DataFrame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoneck.data.arrays import codes_among
from dinoneck.data.cells import (
    FOLD,
    GROUP,
    IMAGES,
    LABELS,
    OWN_COLUMNS,
    check_unique,
    is_missing,
)
from dinoneck.data.folders import HELD_OUT, LEFT_OUT
from dinoneck.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = "weights"
"""The entry of ``table.attrs`` that holds the weights of targets in the weighted R²."""
LABEL_NAMES = "label_names"
"""The entry of ``table.attrs`` that holds column of several words in a cell -> the names of its labels."""
# kinds of NumPy's dtypes of which float64 would be made without a word: times and complex numbers
_NO_NUMBERS = ("m", "M", "c")
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column of numbers.

    Attributes:
        values: (n,) float64, NaN = missing.
    """

    values: _Floats

    def take(self, rows: _Ints) -> Numbers:
        """Return the column of these rows."""
        return Numbers(self.values[rows])


@dataclass(frozen=True, eq=False)
class Classes:
    """A column of classes.

    Attributes:
        names: of all classes in the order of the column's categories, also of those without a row.
            They are numbers where the categories are.
        codes: (n,) int64, the index of each row's class in ``names``, -1 = missing.
    """

    names: tuple[Hashable, ...]
    codes: _Ints

    def take(self, rows: _Ints) -> Classes:
        """Return the column of these rows, with all classes."""
        return Classes(self.names, self.codes[rows])

    def counts(self) -> dict[str, int]:
        """Return class -> how many rows have it, of those that have any."""
        counts = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).tolist()
        return {str(name): count for name, count in zip(self.names, counts, strict=True) if count}

    def codes_in(self, classes: Sequence[str], column: str, ids: Sequence[Any]) -> _Ints:
        """Return the index of each row's class in other classes (n,), -1 = missing.

        Raises:
            DataError: for a row of a class that is none of them; it names ``column`` and the row's
                id.
        """
        new_codes = codes_among(self.names, self.codes, ids, name=column, classes=classes)
        return np.array([new_codes[code] if code >= 0 else -1 for code in self.codes], np.int64)


@dataclass(frozen=True, eq=False)
class LabelSets:
    """A column of any number of labels in a row.

    Attributes:
        names: of all K labels, also of those without a row.
        words: the labels of each row; None = unknown.
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...] | None, ...]

    def take(self, rows: _Ints) -> LabelSets:
        """Return the column of these rows, with all labels."""
        return LabelSets(self.names, tuple(self.words[row] for row in rows))

    def indicators(self) -> _Floats:
        """Return (n, K), 1 where a row has a label, 0 where it has not, NaN where its labels are unknown."""
        values = np.full((len(self.words), len(self.names)), np.nan)
        for row, words in enumerate(self.words):
            if words is not None:
                values[row] = [float(name in words) for name in self.names]
        return values

    def indicators_of(self, labels: Sequence[str], column: str, ids: Sequence[Any]) -> _Floats:
        """Return the same for other labels (n, len(labels)).

        Raises:
            DataError: for a row with a word that is none of them; it names ``column`` and the row's
                id.
        """
        for row, words in enumerate(self.words):
            for word in words or ():
                if word not in labels:
                    raise DataError(
                        f"{column} of {ids[row]!r} has the word {word!r}; expected labels among "
                        f"{', '.join(labels)}"
                    )
        return LabelSets(tuple(labels), self.words).indicators()


@dataclass(frozen=True, eq=False)
class Unreadable:
    """A column that holds neither numbers nor classes, such as dates.

    Attributes:
        reason: why, for the error of what needs the column.
    """

    reason: str

    def take(self, rows: _Ints) -> Unreadable:
        """Return the same: it has no rows."""
        return self


Column = Numbers | Classes | LabelSets | Unreadable


@dataclass(frozen=True, eq=False)
class Table:
    """Images and what is known of them; n rows.

    Attributes:
        ids: of the images.
        images: files, or images in memory.
        columns: name -> values, in the order of the DataFrame; without the columns of images,
            masks, groups and folds.
        masks: files, or masks in memory, None = this image has none; None = there is no column.
        groups: of the images. Without a column of them, each image has its own: its row.
        has_groups: whether there is a column of groups.
        folds: of the images; None = there is no column.
        has_parts: whether the folds are parts of a data set, such as train and val.
        held_out: the part that is held out; None = each in turn.
        weights: target -> its weight in the weighted R²; empty = all count alike.
        left_out: what was left out of the source, in words -> how many, such as ``files of other
            formats (.heic)``.
    """

    ids: list[Any]
    images: list[Any]
    columns: dict[str, Column]
    masks: list[Any] | None
    groups: list[Hashable]
    has_groups: bool
    folds: list[Hashable] | None
    has_parts: bool
    held_out: str | None
    weights: Mapping[str, float]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Table:
        """Return the table of a DataFrame as :func:`dinoneck.data.read_table` returns it.

        The arrays are copies.

        Raises:
            DataError: if the DataFrame has no column of images, or two columns of one name.
        """
        check_column_names(frame)
        names = list(frame.columns)
        if IMAGES not in frame:
            raise DataError(
                f"the table has no column {IMAGES!r}; make it with read_table(), which finds the "
                "images"
            )
        columns = {name: _column(frame, name) for name in names if name not in OWN_COLUMNS}
        masks = None
        if LABELS in frame:
            masks = [None if is_missing(mask) else mask for mask in frame[LABELS]]
        groups = _own_groups(len(frame))
        if GROUP in frame:
            groups = list(frame[GROUP])
        folds = None
        if FOLD in frame:
            folds = list(frame[FOLD])
        return cls(
            ids=list(frame.index),
            images=list(frame[IMAGES]),
            columns=columns,
            masks=masks,
            groups=groups,
            has_groups=GROUP in frame,
            folds=folds,
            has_parts=HELD_OUT in frame.attrs,
            held_out=frame.attrs.get(HELD_OUT),
            weights=dict(frame.attrs.get(WEIGHTS, {})),
            left_out=dict(frame.attrs.get(LEFT_OUT, {})),
        )

    def take(self, rows: Sequence[int] | _Ints) -> Table:
        """Return the table of these rows, in their order; classes without a row stay.

        Without a column of groups the rows of the new table are the groups.
        """
        indices = np.asarray(rows, np.int64)
        masks = None
        if self.masks is not None:
            masks = [self.masks[row] for row in indices]
        groups = _own_groups(len(indices))
        if self.has_groups:
            groups = [self.groups[row] for row in indices]
        folds = None
        if self.folds is not None:
            folds = [self.folds[row] for row in indices]
        return replace(
            self,
            ids=[self.ids[row] for row in indices],
            images=[self.images[row] for row in indices],
            columns={name: column.take(indices) for name, column in self.columns.items()},
            masks=masks,
            groups=groups,
            folds=folds,
        )

    def class_names(self, column: str) -> tuple[Hashable, ...]:
        """Return the class names of a column; none if it holds no classes."""
        values = self.columns[column]
        return values.names if isinstance(values, Classes) else ()

    def classes(self, column: str) -> Classes:
        """Return the classes of a column.

        Raises:
            DataError: if it holds none.
        """
        values = self.columns[column]
        if not isinstance(values, Classes):
            raise DataError(
                f"the column {column!r} of the table holds no classes; expected a categorical column"
            )
        return values

    def numbers(self, column: str) -> _Floats:
        """Return the numbers of a column (n,) in float64, NaN = missing.

        Raises:
            DataError: for a column of dates, times, complex numbers, or what else is no number.
        """
        values = self.columns[column]
        if isinstance(values, Unreadable):
            raise DataError(values.reason)
        if isinstance(values, LabelSets):
            raise DataError(
                f"the column {column!r} of the table holds several labels in a row; expected numbers"
            )
        if isinstance(values, Classes):
            return _numbers_of_classes(column, values)
        return values.values

    def has_mask(self, row: int) -> bool:
        """Whether an image has a mask."""
        return self.masks is not None and self.masks[row] is not None


def check_column_names(frame: pd.DataFrame) -> None:
    """Check that a table has no two columns of one name.

    Raises:
        DataError: naming the first one that it has twice.
    """
    check_unique(frame.columns, "the column", "give each its own name")


def _own_groups(count: int) -> list[Hashable]:
    """Return a group for each row: its number."""
    return [*range(count)]


def _column(frame: pd.DataFrame, name: str) -> Column:
    values = frame[name]
    if hasattr(values, "cat"):
        codes = np.array(values.cat.codes, np.int64)
        return Classes(tuple(values.cat.categories), codes)
    if values.dtype == object and any(isinstance(value, tuple) for value in values):
        return _label_sets(values, frame.attrs.get(LABEL_NAMES, {}).get(name, ()))
    if values.dtype.kind in _NO_NUMBERS:
        return Unreadable(
            f"the column {name!r} of the table is {values.dtype}; expected numbers: convert it, of "
            "dates such as to days since the first one"
        )
    try:
        return Numbers(np.array(values, np.float64))
    except (TypeError, ValueError) as error:
        return Unreadable(_no_numbers(name, error))


def _label_sets(values: pd.Series, names: Sequence[str]) -> LabelSets:
    """Return a column of tuples of words; without names the labels are those that occur, sorted."""
    words = tuple(value if isinstance(value, tuple) else None for value in values)
    if not names:
        occurring: set[str] = set()
        for words_of_row in words:
            occurring.update(words_of_row or ())
        names = sorted(occurring)
    return LabelSets(tuple(names), words)


def _numbers_of_classes(name: str, classes: Classes) -> _Floats:
    """Return the numbers that the names of classes are.

    Raises:
        DataError: if one is a word.
    """
    values = [np.nan if code < 0 else classes.names[code] for code in classes.codes]
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(_no_numbers(name, error)) from error


def _no_numbers(name: str, error: Exception) -> str:
    return (
        f"the column {name!r} of the table is no column of numbers: {error}; make the table with "
        "read_table()"
    )
