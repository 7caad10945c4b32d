"""Whether a column holds numbers or words, by its cells.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dinoneck.data.cells import MISSING_WORDS, as_decimal, is_number
from dinoneck.data.not_numbers import is_printed_number, is_unknown_mark, unit_of
from dinoneck.data.number_cells import NOTATIONS


def holds_numbers(filled: Sequence[str]) -> bool:
    """Return whether at most half of the cells are words.

    Cells that say "missing" and marks such as ``?`` do not count. If some cells are numbers, those
    with a unit count as numbers too: ``2``, ``3``, ``1.5 kg``.
    """
    if any(notation.fits(filled) for notation in NOTATIONS):
        return True
    num_words = 0
    num_with_unit = 0
    num_numbers = 0
    num_filled = 0
    num_marks = 0
    for text, count in Counter(filled).items():
        if text.lower() in MISSING_WORDS:
            continue
        if is_unknown_mark(text):
            num_marks += count
            continue
        num_filled += count
        if is_number(text):
            num_numbers += count
        elif is_word(text):
            num_words += count
            if is_measured(text):
                num_with_unit += count
    if num_numbers > 0:
        num_words -= num_with_unit
    if num_filled > 0:
        return num_words * 2 <= num_filled
    # marks such as "?", and words that say "missing": "NA" may be the name of a class, "." may not
    return num_marks > 0 or not any(map(is_word, filled))


def is_measured(text: str) -> bool:
    """Return whether a text is a number with a unit: ``2 kg``, ``1.5kg``; ``2a`` and ``3b`` are names."""
    unit = unit_of(text)
    if unit is None:
        return False
    number = text.removesuffix(unit)
    return number.endswith(" ") or "." in number or "," in number


def is_word(text: str) -> bool:
    """Return whether a text has a letter and is no number, also none as programs print it: ``tensor(1.5)``."""
    if as_decimal(text) is not None or is_printed_number(text):
        return False
    return any(character.isalpha() for character in text)
