"""Columns of words as people and spreadsheets write them: classes, groups and folds.

Words are never joined or left out: what looks like a mistake is named in a warning. Neither pandas
nor torch is imported.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from dinoneck.data.cells import MISSING_WORDS, is_number, label_of
from dinoneck.data.number_cells import is_date, unit_of
from dinoneck.errors import counted, some_of

_SHOWN = 5  # names in a message
# a column of words whose cells all are a number with one of these units was meant as numbers
_UNITS = frozenset(
    (
        "mg",
        "g",
        "kg",
        "t",
        "lb",
        "oz",
        "mm",
        "cm",
        "dm",
        "m",
        "km",
        "in",
        "ft",
        "ml",
        "l",
        "ha",
        "%",
    )
)
# how spreadsheets in their languages write true and false, and how people write yes and no
_TRUTH_WORDS = frozenset(
    (
        *("true", "false", "yes", "no", "y", "n"),
        *("wahr", "falsch", "ja", "nein"),
        *("vrai", "faux", "oui", "non"),
        *("verdadero", "verdadeiro", "vero", "falso"),
        *("waar", "onwaar", "prawda", "fałsz", "sant", "falskt"),
    )
)
_OTHER_BLANK = re.compile(r"(?<!\d)[\s_]+|[\s_]+(?!\d)")
_BLANK_BETWEEN_DIGITS = re.compile(r"[\s_]+")
# Unicode categories: all dashes are one, and formatting characters, which no one sees, are nothing
_DASH_OF = {"Pd": "-", "Cf": ""}
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
# a day with its year, and what differs between two ways to write it
_DAY = re.compile(
    r"(?:19|20)\d\d([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:(?:19|20)\d\d|\d\d)"
)
_YEAR = re.compile(r"\d{4}")
_SHORT_NUMBER = re.compile(r"(?<!\d)\d{1,2}(?!\d)")
_MIDNIGHT = re.compile(r"[ T]00:00(:00(\.0+)?)?$")
_TIME = re.compile(r"[ T]\d{1,2}:\d\d(:\d\d(\.\d+)?)?$")
_POWER_OF_TEN = re.compile(r"[-+]?[\d.,]+[eE][-+]?\d+")

logger = logging.getLogger(__name__)


def lookalike_key(text: str) -> str:
    """Return what is equal for words that a reader takes for one.

    These are words without case, blanks, kinds of dashes and widths of letters, numbers by their
    value, also with a decimal comma, and dates without leading zeros and without midnight. A blank
    between two digits counts: the plots ``1_11`` and ``11_1`` are not one.
    """
    with_point = text.replace(",", ".", 1)
    if is_number(with_point):
        return label_of(with_point)
    date = _MIDNIGHT.sub("", text)
    if is_date(date):
        return _LEADING_ZEROS.sub("", date).casefold()
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        text = "".join(
            _DASH_OF.get(unicodedata.category(character), character) for character in text
        )
    return _BLANK_BETWEEN_DIGITS.sub(" ", _OTHER_BLANK.sub("", text))


def similar_names(
    names: Iterable[str], key: Callable[[str], str] = lookalike_key
) -> list[list[str]]:
    """Return the groups of two names or more whose keys are equal, in the order of their first names."""
    names_of_key: dict[str, list[str]] = {}
    for name in names:
        names_of_key.setdefault(key(name), []).append(name)
    return [similar for similar in names_of_key.values() if len(similar) > 1]


def warn_of_words(what: str, counts: Mapping[str, int], noun: str, remedy: str) -> None:
    """Name words of a column that may be one, or a missing value.

    Args:
        what: what messages call the column.
        counts: word -> its number of rows.
        noun: what messages call the words, such as ``"groups"``.
        remedy: what to do where a word such as ``NA`` stands for a missing value.
    """
    _warn_of_lookalikes(what, counts, noun)
    for name, count in counts.items():
        if name.lower() in MISSING_WORDS:
            rows = counted(count, "row")
            logger.warning("%s: %r is one of the %s, in %s. %s", what, name, noun, rows, remedy)


def warn_of_dates(what: str, counts: Mapping[str, int], noun: str) -> None:
    """Name dates that are written in several ways, so that one day may be several words."""
    example_of: dict[str, str] = {}
    for name in counts:
        day = _TIME.sub("", name)
        if _DAY.fullmatch(day):
            pattern = _SHORT_NUMBER.sub("0", _YEAR.sub("year", day))
            example_of.setdefault(pattern, name)
    if len(example_of) > 1:
        logger.warning(
            "%s has %s that are dates, written in %d ways: %s. A day that is written in two ways "
            "counts as two; write all of them in one way",
            what,
            noun,
            len(example_of),
            some_of(map(repr, example_of.values()), _SHOWN),
        )


def warn_of_powers_of_ten(what: str, counts: Mapping[str, int], noun: str) -> None:
    """Name cells such as ``1.2E+11``, as which spreadsheets write long numbers, and names like ``1E5``."""
    powers = [text for text in counts if _POWER_OF_TEN.fullmatch(text)]
    if powers:
        logger.warning(
            "%s has %s such as %r, in %s: spreadsheets write long numbers, and names such as 1E5, "
            "in this way, and leave digits out. Names that differed may be one now; format the "
            "column as text and enter it again",
            what,
            noun,
            powers[0],
            counted(sum(counts[text] for text in powers), "row"),
        )


def warn_of_class_names(what: str, names: Sequence[str]) -> None:
    """Name classes that may have been meant as numbers, or that mix two ways to say true and false."""
    units = {unit_of(name) for name in names}
    are_units = None not in units and (len(units) == 1 or units <= _UNITS)
    are_prices = all(map(_is_price, names))
    if all(map(is_date, names)):
        logger.warning(
            "%s has dates as classes: %s. Spreadsheets make dates of numbers such as 1.5; if these "
            "were numbers, format the column as numbers and enter it again",
            what,
            some_of(map(repr, names), _SHOWN),
        )
    elif are_units or are_prices:
        logger.warning(
            "%s has numbers with a unit as classes: %s. To learn them as numbers, write them "
            "without the unit, which unit= (--unit) names",
            what,
            some_of(map(repr, names), _SHOWN),
        )
    truth_words = {name.casefold() for name in names}
    if len(truth_words) > 2 and truth_words <= _TRUTH_WORDS:
        logger.warning(
            "%s has %d classes that say true or false: %s. Write each of the two in one way",
            what,
            len(names),
            some_of(map(repr, names), len(names)),
        )


def _is_price(name: str) -> bool:
    """Whether a name has a sign of a currency next to a number: ``R$ 5,00``."""
    has_sign = any(unicodedata.category(character) == "Sc" for character in name)
    return has_sign and any(character.isdigit() for character in name)


def _warn_of_lookalikes(what: str, counts: Mapping[str, int], noun: str) -> None:
    groups = []
    for names in similar_names(counts):
        rows = [f"{name!r} ({counted(counts[name], 'row')})" for name in sorted(names)]
        groups.append(" and ".join(rows))
    if groups:
        logger.warning(
            "%s has %s that may be one: %s. They differ only in case, blanks or dashes, or in how "
            "a number or date is written, and are not joined; write them alike if they are one",
            what,
            noun,
            some_of(groups, _SHOWN),
        )
