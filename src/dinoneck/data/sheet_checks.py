"""Rows and columns of a spreadsheet that may not be what they seem: sums, twins, merged cells.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from dinoneck.data.folder_texts import listed
from dinoneck.data.folder_words import part_of
from dinoneck.text import counted, some_of

_SHOWN = 5  # names in a message
# what people call the rows below their data, in lower case
_SUMMARIES_OF_LANGUAGES = (
    "total totals sum sums mean average avg median min max stdev count",  # English
    "summe gesamt mittel mittelwert durchschnitt anzahl",  # German
    "somme moyenne médiane",  # French
    "suma media promedio somma totale totaal gemiddelde",  # Spanish, Italian, Dutch
)
_SUMMARIES = frozenset(" ".join(_SUMMARIES_OF_LANGUAGES).split())
_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}$", re.IGNORECASE)
_LONGEST_ENDING = 6  # with its dot
# rows whose image has another kind of name than all others; more of them are a kind of their own
_MOST_ODD_ROWS = 3
# filled cells that show how merged cells are saved
_FEWEST_MERGED = 3
# the number that pandas (y.1) and R (y...2) give a repeated name
_NUMBER_OF_TWIN = re.compile(r"(?:\.|\.\.\.)\d+")
CellsOf = Callable[[int], Iterable[object]]
"""Returns the cells of the column with this index in the header."""

logger = logging.getLogger(__name__)


def warn_of_rows_without_image(
    name: str, image_names: Sequence[str], row_numbers: Sequence[int]
) -> None:
    """Name rows of sums, comments and units, which have no image although their cell is filled in.

    They are called ``Total``, begin with ``#`` or ``*``, or have no file ending where all others do.

    Args:
        name: what messages call the table.
        image_names: of all rows.
        row_numbers: of these rows.
    """
    without_ending = []
    odd = []
    for index, image_name in enumerate(image_names):
        if image_name.startswith(("#", "*")):
            odd.append(index)
        elif _ENDING.search(image_name[-_LONGEST_ENDING:]):
            continue
        elif image_name.strip(" :").casefold() in _SUMMARIES:
            odd.append(index)
        else:
            without_ending.append(index)
    with_ending = len(image_names) - len(without_ending) - len(odd)
    if len(without_ending) <= min(_MOST_ODD_ROWS, with_ending // 2):
        odd = sorted(odd + without_ending)
    if odd:
        further = ""
        if len(odd) > 1:
            further = f", and {len(odd) - 1} more"
        logger.warning(
            "%s: the image of row %d is %r, unlike those of other rows%s. Remove rows that have no "
            "image, such as sums, units and comments",
            name,
            row_numbers[odd[0]],
            image_names[odd[0]],
            further,
        )


def warn_of_twin_columns(
    name: str,
    header: Sequence[str],
    columns: Sequence[str],
    cells_of: CellsOf,
) -> None:
    """Name columns with nearly the name of one that is read, and other cells: ``Y`` and ``y.1`` next to ``y``.

    Args:
        name: what messages call the table.
        header: the names of all columns.
        columns: those that are read.
        cells_of: returns what they are compared by.
    """
    for column in columns:
        twins = []
        for index, other in enumerate(header):
            if other in columns or not _are_twins(column, other):
                continue
            other_cells = list(cells_of(index))
            if other_cells != list(cells_of(header.index(column))):
                twins.append(repr(other))
        if twins:
            logger.warning(
                "%s has %s next to %r, with other cells; %r is read",
                name,
                some_of(twins, _SHOWN),
                column,
                column,
            )


def warn_of_unread_parts(
    name: str,
    header: Sequence[str],
    columns: Sequence[str],
    cells_of: CellsOf,
) -> None:
    """Name a column whose cells say train, val and test, where no column is read for the folds.

    The arguments are those of :func:`warn_of_twin_columns`.
    """
    for index, column in enumerate(header):
        if column in columns:
            continue
        parts = _parts_among(cells_of(index))
        if parts is not None:
            logger.warning(
                "%s: the column %r names the parts %s, and is not read: all rows are trained on or "
                "held out in turn. To keep the parts, name it in fold_column= (--fold-column)",
                name,
                column,
                listed(sorted(parts)),
            )


def _parts_among(values: Iterable[object]) -> set[str] | None:
    """The words for parts of a data set in a column that holds nothing else; None for other columns."""
    words = set[str]()
    parts = set[str]()
    for value in values:
        if not isinstance(value, str):
            return None
        if value in words:
            continue
        part = part_of(value.strip())
        if part is None:
            return None
        words.add(value)
        parts.add(part)
    if len(parts) < 2 or "train" not in parts:
        return None
    return {word.strip() for word in words}


def _are_twins(column: str, other: str) -> bool:
    """Whether names differ in case and blanks, or in the number that pandas and R give a repeated name."""
    if _without_blanks(column) == _without_blanks(other):
        return True
    return other.startswith(column) and bool(_NUMBER_OF_TWIN.fullmatch(other[len(column) :]))


def _without_blanks(name: str) -> str:
    return "".join(name.split()).casefold()


def warn_of_merged_cells(what: str, texts: Sequence[str]) -> None:
    """Name a column whose cells look merged: of these, a spreadsheet saves the first row alone.

    The first row is filled in, and no two filled rows follow each other.

    Args:
        what: what messages call the column.
        texts: its cells, empty where they are missing.
    """
    filled = [index for index, text in enumerate(texts) if text]
    if len(filled) < _FEWEST_MERGED or filled[0] != 0:
        return
    for first, second in pairwise(filled):
        if second == first + 1:
            return
    logger.warning(
        "%s is filled in %s of %d, with empty cells after each of them, which are read as missing: "
        "merged cells are saved so. If these were merged, fill in their value in all rows",
        what,
        counted(len(filled), "row"),
        len(texts),
    )
