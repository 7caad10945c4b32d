"""What the cells of one column are together: numbers, classes, or labels. Neither pandas nor torch is imported.

A column is numbers if every filled cell is one, and classes if none is; what is neither is an error,
and so are numbers that all have another decimal mark than the file.
Digits alone, of which a cell of two or more characters begins with 0 (``007``), are codes, and so
classes. Where the filled cells are numbers, NA, N/A, NaN, NULL and None are missing, as empty cells
are; elsewhere these words are classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dinoneck.data.cells import DecimalMark, cell_text, is_number, number_of, number_text
from dinoneck.errors import DataError
from dinoneck.task_facts import NO_LABELS
from dinoneck.text import did_you_mean, some_of

MISSING_NUMBERS = frozenset({"na", "n/a", "nan", "null", "none"})
"""Words that say "missing" among numbers, in lower case."""
_OTHER_MARK: Mapping[DecimalMark, DecimalMark] = {".": ",", ",": "."}
_INDICATORS = {"true": 1.0, "false": 0.0}
_LABEL_SEPARATORS = (";", "|")
_SHOWN = 20  # classes in a message


@dataclass(frozen=True)
class Column:
    """The cells of a column as texts; empty = missing.

    Attributes:
        name: of the column.
        table: what messages call its table.
        texts: the cells, as :func:`dinoneck.data.cells.cell_text` returns them.
        ids: of the rows, for messages.
        decimal: the decimal mark of its numbers.
    """

    name: str
    table: str
    texts: Sequence[str]
    ids: Sequence[str]
    decimal: DecimalMark = "."

    def error(self, row: int, expected: str) -> DataError:
        """Return the error for a cell that does not fit."""
        return DataError(
            f"{self.table}: {self.name} of {self.ids[row]!r} is {self.texts[row]!r}; expected {expected}"
        )

    def check_any(self) -> None:
        """Raise a DataError if all cells are empty."""
        if not any(self.texts):
            raise DataError(
                f"{self.table}: all cells of {self.name!r} are empty; fill some in, or leave it out"
            )

    def number(self, text: str) -> float | None:
        """Return the number that a cell spells; None if it spells none."""
        return number_of(text, self.decimal)

    def has_codes(self) -> bool:
        """Whether the numbers are digits alone, and one of two or more characters begins with 0."""
        filled = [text for text in self.texts if text and text.lower() not in MISSING_NUMBERS]
        if not all(text.isdecimal() for text in filled):
            return False
        return any(len(text) > 1 and text[0] == "0" for text in filled)

    def has_words_alone(self) -> bool:
        """Whether no cell is a number, nor are all of them numbers with the other decimal mark."""
        filled = [text for text in self.texts if text and text.lower() not in MISSING_NUMBERS]
        if any(self.number(text) is not None for text in filled):
            return False
        is_with_other_mark = [
            number_of(text, _OTHER_MARK[self.decimal]) is not None for text in filled
        ]
        return not filled or not all(is_with_other_mark)


def decimal_mark(columns: Sequence[Column], separator: str | None) -> DecimalMark:
    """Return the decimal mark of a table: a point, or in one that ``;`` separates, what its numbers have.

    Args:
        columns: those that may hold numbers.
        separator: between the cells of a CSV file; None = it is none.

    Raises:
        DataError: if some of the numbers have a comma and others a point.
    """
    if separator != ";":
        return "."
    with_point: tuple[Column, int] | None = None
    with_comma: tuple[Column, int] | None = None
    for column in columns:
        for row, text in enumerate(column.texts):
            if "." in text and number_of(text, ".") is not None:
                with_point = with_point or (column, row)
            elif "," in text and number_of(text, ",") is not None:
                with_comma = with_comma or (column, row)
    if with_comma is None:
        return "."
    if with_point is not None:
        column, row = with_comma
        other = f"{column.name} of {column.ids[row]!r} is {column.texts[row]!r}"
        column, row = with_point
        raise column.error(
            row,
            f"one decimal mark in all numbers, and {other}: write them alike, without separators of "
            "thousands",
        )
    return ","


def read_numbers(column: Column) -> list[float]:
    """Return the numbers of a column, NaN = missing.

    Raises:
        DataError: naming the first cell that is none, or if all are empty.
    """
    column.check_any()
    numbers = []
    for row, text in enumerate(column.texts):
        number = column.number(text)
        if number is not None:
            numbers.append(number)
        elif not text or text.lower() in MISSING_NUMBERS:
            numbers.append(math.nan)
        else:
            raise column.error(row, _expected_number(text, column))
    if all(map(math.isnan, numbers)):
        raise DataError(
            f"{column.table}: {column.name!r} holds no number; fill some in, or leave it out"
        )
    return numbers


def _expected_number(text: str, column: Column) -> str:
    """What is expected in the place of a cell that is no number, and how else it is read."""
    expected = "a number, or an empty cell where it is unknown"
    other_mark = _OTHER_MARK[column.decimal]
    if number_of(text, other_mark) is not None:
        return f"{expected}; in a CSV file decimal='{other_mark}' (--decimal {other_mark}) reads it"
    for row_id, other in zip(column.ids, column.texts, strict=True):
        if column.number(other) is not None:
            return (
                f"a number, as {other!r} of {row_id!r}, or an empty cell where it is unknown; if the "
                "column holds classes, name it in classes= of read_table(), or as "
                f"tasks: {{{column.name}: {{kind: classification}}}} in the file of a training"
            )
    return expected


def read_classes(column: Column, names: Sequence[object] = ()) -> tuple[list[int], list[str]]:
    """Return the index of each row's class, -1 = missing, and the names of the classes.

    Texts are compared as they are. Numbers that are neither codes nor all among the names are
    compared as numbers: 1 is 1.0.

    Args:
        column: the cells.
        names: of the classes in their order, which admit no others; empty = those that occur,
            numbers by their size before words by their letters.

    Raises:
        DataError: for a cell that is none of the names, names that are empty or equal, or if all
            cells are empty.
    """
    column.check_any()
    listed = [cell_text(name) for name in names]
    keys = listed
    texts = list(column.texts)
    if _are_numbers(texts):
        unknown = {text for text in texts if text.lower() in MISSING_NUMBERS} - {*listed}
        texts = ["" if text in unknown else text for text in texts]
        are_named = {*texts} - {""} <= {*listed}
        if not are_named and not column.has_codes() and all(map(is_number, listed)):
            texts = [number_text(text) if text else "" for text in texts]
            keys = [number_text(name) for name in listed]
    _check_names(column, keys)
    if not listed:
        listed = sorted({text for text in texts if text}, key=_size_and_letters)
        keys = listed
    index_of = {key: index for index, key in enumerate(keys)}
    codes = []
    for row, text in enumerate(texts):
        if text and text not in index_of:
            hint = did_you_mean(text, listed)
            raise column.error(row, f"one of {some_of(listed, _SHOWN)}.{hint}".removesuffix("."))
        codes.append(index_of[text] if text else -1)
    return codes, listed


def _are_numbers(texts: Sequence[str]) -> bool:
    """Whether all filled cells are numbers, and there is one."""
    filled = [text for text in texts if text and text.lower() not in MISSING_NUMBERS]
    return bool(filled) and all(map(is_number, filled))


def _check_names(column: Column, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not name:
            raise DataError(f"{column.table}: a class of {column.name} has no name; give it one")
        if name in names[:index]:
            raise DataError(
                f"{column.table}: {column.name} has the class {name!r} twice; name each class once"
            )


def _size_and_letters(text: str) -> tuple[float, str]:
    number = number_of(text)
    return (math.inf if number is None else number, text)


def are_indicators(texts: Sequence[str]) -> bool:
    """Whether all filled cells are 1, 0, true, false, or a word that says "missing"."""
    for text in texts:
        if text and text.lower() not in MISSING_NUMBERS and _indicator_of(text) is None:
            return False
    return any(_indicator_of(text) is not None for text in texts)


def _indicator_of(text: str) -> float | None:
    """1.0 or 0.0 of a cell that says whether an image has a label; None for other cells."""
    number = _INDICATORS.get(text.lower(), number_of(text))
    return number if number in (0.0, 1.0) else None


def read_indicators(column: Column) -> list[float]:
    """Return 1 where an image has a label, 0 where it has not, NaN where that is unknown.

    Raises:
        DataError: for another cell than 1, 0, ``true``, ``false``, or if all are empty.
    """
    column.check_any()
    values = []
    for row, text in enumerate(column.texts):
        value = _indicator_of(text)
        if value is None and text and text.lower() not in MISSING_NUMBERS:
            raise column.error(
                row,
                "1 or true where the image has the label, 0 or false where it has not, and an empty "
                "cell where that is unknown",
            )
        values.append(math.nan if value is None else value)
    return values


def read_labels(
    column: Column, names: Sequence[object] = ()
) -> tuple[list[tuple[str, ...] | None], tuple[str, ...]]:
    """Return the labels of each row in the order of their names, None = unknown, and all names.

    ``;`` or ``|`` is between the words of a cell; the word ``none`` says that there is no label.

    Args:
        column: the cells.
        names: of all labels, which admit no others; empty = those that occur, sorted.

    Raises:
        DataError: for a word that is none of the names, ``none`` beside a word, a cell without a
            word, or if no row has a label.
    """
    column.check_any()
    listed = [cell_text(name) for name in names]
    words_of_rows = [_words_of(column, row) for row in range(len(column.texts))]
    occurring: dict[str, int] = {}  # label -> its first row
    for row, words in enumerate(words_of_rows):
        for word in words or ():
            occurring.setdefault(word, row)
    all_names = tuple(listed or sorted(occurring))
    for word, row in occurring.items():
        if word not in all_names:
            hint = did_you_mean(word, all_names)
            raise column.error(
                row, f"labels among {some_of(all_names, _SHOWN)}.{hint}".removesuffix(".")
            )
    if not all_names:
        raise DataError(
            f"{column.table}: {column.name} says {NO_LABELS} in every row; expected the labels of "
            "some images"
        )
    labels: list[tuple[str, ...] | None] = []
    for words in words_of_rows:
        if words is None:
            labels.append(None)
        else:
            labels.append(tuple(name for name in all_names if name in words))
    return labels, all_names


def _words_of(column: Column, row: int) -> set[str] | None:
    """The words of a cell; None for an empty one."""
    text = column.texts[row]
    if not text:
        return None
    for separator in _LABEL_SEPARATORS:
        text = text.replace(separator, _LABEL_SEPARATORS[0])
    words = {word.strip() for word in text.split(_LABEL_SEPARATORS[0])} - {""}
    has_none = any(word.lower() == NO_LABELS for word in words)
    if not words or (has_none and len(words) > 1):
        raise column.error(
            row,
            f"labels with ; or | between them, {NO_LABELS} alone where the image has no label, and an "
            "empty cell where that is unknown",
        )
    return set() if has_none else words
