"""Columns with several words in a cell: the labels of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck.data.cells import MISSING_WORDS, is_number
from dinoneck.errors import DataError
from dinoneck.task_facts import NO_LABELS
from dinoneck.text import did_you_mean, some_of

SEPARATORS = (";", "|")
"""What separates the words of a cell; not the one that separates the cells of the table."""
TRUTH_VALUES = {"true": "1", "false": "0"}
"""What pandas and spreadsheets write of a label, in lower case -> the number that it is read as."""
_MOST_LISTED = 20  # labels in a message that lists what there is


@dataclass(frozen=True)
class LabelCells:
    """The words of a column of labels.

    Attributes:
        names: of all labels: those that are listed, or those that occur, sorted.
        words: of each cell, in the order of ``names``.
        counts: label -> the number of cells that have it.
    """

    names: tuple[str, ...]
    words: list[tuple[str, ...]]
    counts: Counter[str]


def are_indicators(texts: Sequence[str]) -> bool:
    """Return whether cells are the numbers 0 and 1 alone, of a single label."""
    return all(is_number(text) and float(text) in (0.0, 1.0) for text in set(texts))


def as_indicators(texts: Sequence[str]) -> list[str]:
    """Return cells with 1 for ``true`` and 0 for ``false``, in any case, if they hold nothing else.

    Words that say "missing" stay. Cells with anything else, also with numbers, are returned as they
    are.
    """
    words = {text.lower() for text in texts}.difference(MISSING_WORDS)
    if not words or not words <= TRUTH_VALUES.keys():
        return list(texts)
    return [TRUTH_VALUES.get(text.lower(), text) for text in texts]


def read_label_cells(
    texts: Sequence[str],
    ids: Sequence[Any],
    *,
    what: str,
    names: Sequence[str],
    cell_separator: str | None,
) -> LabelCells:
    """Return the words of the filled cells of a column of labels.

    Args:
        texts: the cells, stripped.
        ids: of their rows, for messages.
        what: what messages call the column.
        names: of the labels, which admit no other words; empty = those that occur.
        cell_separator: what separates the cells of the table; None = nothing does.

    Raises:
        DataError: for words that are not among the names, cells with two separators or with a comma,
            numbers alone, and ``none`` beside other words.
    """
    separator = _separator_of(texts, ids, what, cell_separator)
    if all(is_number(text) for text in texts):
        raise DataError(
            f"{what} holds the numbers {some_of(sorted(set(texts)), 5)}; expected 0 and 1, or the "
            f"labels of an image as words, separated by {separator!r}"
        )
    listed = [str(name) for name in names]
    words_of_cells = []
    counts: Counter[str] = Counter()
    for image_id, text in zip(ids, texts, strict=True):
        cell = f"{what} of {image_id!r}"
        words = _labels_of_cell(text, cell, separator)
        if listed:
            _check_listed(words, cell, listed, separator)
        else:
            _check_no_comma(words, cell, text, separator)
        counts.update(words)
        words_of_cells.append(words)
    all_names = tuple(listed) or tuple(sorted(counts))
    if not all_names:
        raise DataError(
            f"{what} has {NO_LABELS} in every cell; expected words, the labels of some images"
        )
    ordered = []
    for words in words_of_cells:
        ordered.append(tuple(name for name in all_names if name in words))
    return LabelCells(names=all_names, words=ordered, counts=counts)


def _separator_of(
    texts: Sequence[str], ids: Sequence[Any], what: str, cell_separator: str | None
) -> str:
    """What separates the words of a column."""
    allowed = [mark for mark in SEPARATORS if mark != cell_separator]
    used = [mark for mark in allowed if any(mark in text for text in texts)]
    if len(used) > 1:
        first = next(i for i, text in enumerate(texts) if used[1] in text)
        raise DataError(
            f"{what} of {ids[first]!r} is {texts[first]!r}, and other cells have {used[0]!r} between "
            f"words; expected one of {used[0]!r} and {used[1]!r} in all cells"
        )
    return used[0] if used else allowed[0]


def _words_of(text: str, separator: str) -> list[str]:
    """The words of a cell, each once."""
    words = [word.strip() for word in text.split(separator)]
    return [word for word in dict.fromkeys(words) if word]


def _labels_of_cell(text: str, cell: str, separator: str) -> list[str]:
    """The labels that a cell holds; none if it says so.

    Args:
        text: what it holds.
        cell: what messages call it.
        separator: what is between its words.

    Raises:
        DataError: if it holds no word, or "none" beside labels.
    """
    words = _words_of(text, separator)
    if not words:
        raise DataError(
            f"{cell} is {text!r}, without a word; expected {NO_LABELS} where an "
            "image has no label, and an empty cell where that is unknown"
        )
    lower_words = {word.lower() for word in words}
    if NO_LABELS not in lower_words:
        return words
    if len(lower_words) > 1:
        raise DataError(
            f"{cell} is {text!r}; expected {NO_LABELS} alone where an image has no "
            "label, or its labels without it"
        )
    return []


def _check_listed(words: Sequence[str], cell: str, listed: Sequence[str], separator: str) -> None:
    """Raise a DataError for a word that is none of the labels that are listed."""
    for word in words:
        if word not in listed:
            message = (
                f"{cell} has the word {word!r}; expected labels among "
                f"{some_of(listed, _MOST_LISTED)}, separated by {separator!r}."
                f"{did_you_mean(word, listed)}"
            )
            raise DataError(message.removesuffix("."))


def _check_no_comma(words: Sequence[str], cell: str, text: str, separator: str) -> None:
    """Reject a comma in a word, which probably separates two."""
    if any("," in word for word in words):
        raise DataError(
            f"{cell} is {text!r}; expected labels separated by {separator!r}, and no "
            "comma in a label: write that between words, or rename the label"
        )
