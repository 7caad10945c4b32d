"""Columns of numbers as people and spreadsheets write them.

A column is read in the one notation that fits all of its cells: a decimal point or a decimal comma,
with or without separators of thousands. Two notations that give different numbers are an error.
Neither pandas nor torch is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from dinoneck.data.cells import LARGEST, MISSING_WORDS, as_decimal

POINT, COMMA = ".", ","
# the decimal mark that goes with a separator of cells: a comma between the cells leaves the point,
# and spreadsheets separate by semicolons where the decimal mark is the comma; tabs go with both
_MARK_OF_SEPARATOR = {",": POINT, ";": COMMA}
# blanks (Polish, French, Swedish, ISO 80000) and apostrophes (Swiss) between thousands
_BLANKS = " \u00a0\u2009\u202f'\u2019"
_MINUS_SIGN = "\u2212"
# float64 holds every whole number below it
_FIRST_INEXACT = 2**53
# what programs write for "no data" in a column of numbers: surveys and loggers
_NEGATIVE_CODES = frozenset({-999.0, -999.9, -9999.0, -9999.9, -99999.0, -999999.0})
_POSITIVE_CODES = frozenset({999.0, 999.9, 6999.0, 9999.0, 9999.9, 99999.0, 999999.0})
# a positive code is more than this many times as large as all other values: 9999 among thousands
_LARGER_THAN_CODES = 3
# the ends of int16, uint16, int32 and uint32
_EXTREMES = frozenset(
    {
        -99.0,
        -99.9,
        -32768.0,
        -32767.0,
        32767.0,
        65535.0,
        -2147483648.0,
        -2147483647.0,
        2147483647.0,
        4294967295.0,
    }
)
# the fill values of netCDF and of models, and the ends of float32, which programs write rounded
_HUGE_CODES = (9.969209968386869e36, 1e20, -1e20, 1e30, -1e30, -LARGEST, LARGEST)
_HUGE = 1e19  # all of them are larger
_ROUNDED = 1e-6  # relative
# one of these is more than this many times as large as all other values
_LARGER_THAN_VALUES = 10

# error values of Excel in its languages (#DIV/0!, #WERT!, #NOM?, #N/A, #NV), of LibreOffice and
# Google Sheets, and the ##### of a column that is too narrow, which Excel saves as it shows it
_ERROR_VALUE = re.compile(
    r"#\S+[!?]|#[^\W\d]/[^\W\d]+|#NV|#YOK|#GETTING_DATA|##+|Err:\d+|Loading\.\.\."
)
_FORMULA = re.compile(r"=[\w+(@\"'$-].*", re.DOTALL)
_UNIT = re.compile(r"([-+]?[\d.,]*\d[\d.,]*)\s*([^\W\d_][^\d]*[23]?|%|\N{DEGREE SIGN}.*)")
# words that people write before a number, bounds and currencies
_ABOUT = re.compile(
    r"((?i:ca\.?|circa|approx\.?|about|around|etwa|env\.?|environ)"
    r"|EUR|USD|GBP|CHF|JPY|CNY|INR|BRL|PLN|SEK|NOK|DKK|CZK|AUD|CAD"
    r"|[~\u2248<>=\u2264\u2265]+|[A-Z]{0,2}[$\u20ac\u00a3\u00a5])\s*[-+]?[\d.,]*\d[\d.,]*"
)
_TOLERANCE = re.compile(r"[-+]?[\d.,]+\s*(\u00b1|\+/?-)\s*[\d.,]+.*")
_DIGITS_AND_MARKS = r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)"
# numbers as programs print them, which are no names of classes, and what to write instead
_PRINTED = (
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), "a number in decimal digits, not a hexadecimal one"),
    (
        re.compile(rf"{_DIGITS_AND_MARKS}[dD][-+]\d+|[-+]?\d*[.,]\d*[dD]\d+"),
        "a number with 'e' before its exponent, not 'D' as Fortran writes it",
    ),
    (
        re.compile(rf"{_DIGITS_AND_MARKS}\s*[x*\u00d7\u00b7]\s*10\s*(?:\^|\*\*)\s*[-+\u2212]?\d+"),
        "a number with 'e' before its exponent, such as 1.5e-3",
    ),
    (
        re.compile(
            r"(?:(?:torch\.)?tensor|(?:np|numpy)\.\w+|array|Decimal|Fraction)\(.*\)", re.DOTALL
        ),
        "the number alone, which float() returns: this is how Python prints an object",
    ),
)
# in English, German, French, Spanish, Italian and Dutch, whole and short
_MONTH = (
    r"(?:jan(?:uar[yi]?|v(?:ier)?)?|gen(?:naio)?|ene(?:ro)?"
    r"|feb(?:ruar[yi]?|braio|rero)?|f[e\u00e9]v(?:r(?:ier)?)?"
    r"|m[a\u00e4]r(?:ch|zo?|s|t)?|mrz|mrt|maart|apr(?:ile?)?|a[vb]r(?:il)?"
    r"|mayo?|mai|mei|mag(?:gio)?|jun[ei]?|junio|juin|giu(?:gno)?"
    r"|jul[yi]?|julio|juil(?:let)?|lug(?:lio)?|aug(?:ust(?:us)?)?|ao[u\u00fb]t|ago(?:sto)?"
    r"|sept?(?:ember|embre|iembre)?|set(?:tembre)?|o[ck]t(?:ober|obre|ubre)?|ott(?:obre)?"
    r"|nov(?:ember|embre|iembre)?|d[e\u00e9][cz](?:ember|embre)?|dic(?:embre|iembre)?)\.?"
)
MONTH_NAME = re.compile(rf"(?<![^\W\d_]){_MONTH}(?![^\W\d_])", re.IGNORECASE)
CLOCK = re.compile(r"[ T]\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?\s?(?:Z|[-+]\d\d:?\d\d)?$")
"""A time of the day, at the end of a date."""
_DATE = re.compile(
    rf"\d{{1,4}}[-/]\d{{1,2}}(?:[-/]\d{{1,4}})?|\d{{1,2}}\.\d{{1,2}}\.(?:\d{{2}}|\d{{4}})?"
    rf"|\d{{1,4}}\.?[- ]{_MONTH}(?:[- ]\d{{2,4}})?|{_MONTH}[- ]\d{{1,4}}(?:,? \d{{4}})?"
    r"|(?:\d+\u5e74)?\d{1,2}\u6708(?:\d{1,2}\u65e5)?",
    re.IGNORECASE,
)
# dates without a year (01.05) and codes, which show no decimal mark
_ZERO_BEFORE_DIGIT = re.compile(r"[-+]?0[0-9]")
_DASHES = frozenset("-\u2013\u2014\u2212")
_QUOTES = frozenset("'\"\u2018\u2019\u201c\u201d\u201e")


@dataclass(frozen=True)
class Notation:
    """How numbers are written.

    Attributes:
        decimal: the decimal mark.
        groups: the marks that may be between thousands; empty = none.
    """

    decimal: str
    groups: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What a number in this notation matches as a whole."""
        mark = re.escape(self.decimal)
        number = rf"(?:[0-9]+(?:{mark}[0-9]*)?|{mark}[0-9]+)(?:[eE][-+]?[0-9]+)?"
        if self.groups:
            number = rf"(?:{number}|{_thousands(self.groups)}(?:{mark}[0-9]*)?)"
        return re.compile(rf"[-+]?{number}")

    def fits(self, texts: Iterable[str]) -> bool:
        """Whether all texts are numbers in this notation."""
        return all(map(self.pattern.fullmatch, texts))

    def plain(self, text: str) -> str:
        """Return a number of this notation as Python writes it."""
        for mark in self.groups:
            text = text.replace(mark, "")
        return text.replace(self.decimal, POINT)

    def read(self, texts: Iterable[str]) -> list[float]:
        """Return the numbers that fit this notation."""
        if not self.groups and self.decimal == POINT:
            return [float(text) for text in texts]
        return [float(self.plain(text)) for text in texts]


def _thousands(marks: str) -> str:
    """The pattern of whole numbers with one of these marks between thousands, the same in all places."""
    choices = [f"[1-9][0-9]{{0,2}}(?:{re.escape(mark)}[0-9]{{3}})+" for mark in marks]
    return f"(?:{'|'.join(choices)})"


NOTATIONS = (
    Notation(POINT),
    Notation(COMMA),
    Notation(POINT, groups=COMMA),
    Notation(COMMA, groups=POINT),
    Notation(POINT, groups=_BLANKS),
    Notation(COMMA, groups=_BLANKS),
)
"""All that are tried; blanks stand for apostrophes too."""
_PLAIN_POINT, _PLAIN_COMMA = NOTATIONS[:2]
# whole numbers with a mark between thousands, which may also be decimals: 1.500
_GROUPED = {mark: re.compile(rf"[-+]?{_thousands(mark)}") for mark in (POINT, COMMA)}


@dataclass(frozen=True)
class Numbers:
    """The numbers of a column.

    Attributes:
        values: one for each text.
        repairs: what was read although a plain CSV file does not have it.
    """

    values: list[float]
    repairs: list[str] = field(default_factory=list)


class NumberError(Exception):  # never leaves dinoneck.data
    """A text of a column that is no number, or not in the notation of another one.

    Args:
        place: of the text in the column.
        expected: what was expected, with the remedy.
        other: the place of a text that it disagrees with.
    """

    def __init__(self, place: int, expected: str, other: int | None = None) -> None:
        super().__init__(expected)
        self.place = place
        self.expected = expected
        self.other = other


def unit_of(text: str) -> str | None:
    """Return what follows the number in a text such as ``1.5 kg`` or ``1a``; None without both."""
    match = _UNIT.fullmatch(text)
    return None if match is None else match[2]


def word_before(text: str) -> str | None:
    """Return what is before the number in a text such as ``ca. 3`` or ``EUR 3``; None without both."""
    match = _ABOUT.fullmatch(text)
    return None if match is None else match[1]


def is_printed_number(text: str) -> bool:
    """Whether a text is a number in the notation of programs: ``0x1F``, ``1.5D-03``, ``tensor(1.5)``."""
    return any(pattern.fullmatch(text) for pattern, _ in _PRINTED)


def is_date(text: str) -> bool:
    """Whether a text is a date, also with a time, or one that a spreadsheet made of a number: ``01. Mai``."""
    return _DATE.fullmatch(CLOCK.sub("", text)) is not None


def is_error_value(text: str) -> bool:
    """Whether a text is an error value of a spreadsheet, such as ``#N/A``."""
    return _ERROR_VALUE.fullmatch(text) is not None


def is_spreadsheet_error(text: str) -> bool:
    """Whether a text is an error value such as ``#N/A``, or a formula instead of its value."""
    return is_error_value(text) or _FORMULA.fullmatch(text) is not None


def read_numbers(
    texts: Sequence[str],
    separator: str | None = None,
    other_columns: Callable[[], Iterable[Iterable[str]]] = tuple,
) -> Numbers:
    """Read a column of numbers.

    Args:
        texts: its cells, stripped, none of them empty.
        separator: what separates the cells of its file; None = it is not of a file.
        other_columns: returns the cells of the file's other columns, which show its decimal mark
            where the column alone does not.

    Raises:
        NumberError: if a text is no number, two texts have no notation in common, a column means
            different numbers in two notations, or a number is too large.
    """
    repairs: list[str] = []
    if any(_MINUS_SIGN in text for text in texts):
        texts = [text.replace(_MINUS_SIGN, "-") for text in texts]
        repairs.append("the minus sign U+2212 read as '-'")
    notation = _PLAIN_POINT
    if not _PLAIN_POINT.fits(texts) or _may_be_thousands(texts, POINT):
        notation = _find_notation(texts, separator, other_columns)
    values = notation.read(texts)
    _check_sizes(texts, notation, values)
    repair = _repair_of(texts, notation, separator)
    if repair is not None:
        repairs.append(repair)
    return Numbers(values, repairs)


def sentinels_of(values: Sequence[float]) -> list[float]:
    """Return the values that programs write for "no data" and that are unlike all others, sorted.

    Negative codes such as -9999 are below all other values. Where these are positive, -99 and the
    smallest integers are too; else they, and positive codes, are far from the others.
    """
    suspects = set((_NEGATIVE_CODES | _POSITIVE_CODES | _EXTREMES).intersection(values))
    suspects.update(value for value in values if _is_huge_code(value))
    others = [value for value in values if value not in suspects]
    if not others:
        return []
    lowest = min(others)
    largest = max(map(abs, others))
    found = []
    for suspect in sorted(suspects):
        if suspect in _NEGATIVE_CODES:
            is_unlike = suspect < lowest
        elif suspect in _POSITIVE_CODES:
            is_unlike = largest * _LARGER_THAN_CODES < suspect
        else:
            is_unlike = largest * _LARGER_THAN_VALUES < abs(suspect)
            is_unlike = is_unlike or suspect < 0 <= lowest
        if is_unlike:
            found.append(suspect)
    return found


def _is_huge_code(value: float) -> bool:
    if abs(value) < _HUGE:
        return False
    return any(math.isclose(value, code, rel_tol=_ROUNDED) for code in _HUGE_CODES)


def _may_be_thousands(texts: Iterable[str], mark: str) -> bool:
    """Whether all marks may be separators of thousands, and there is one."""
    is_anywhere = False
    for text in texts:
        if mark in text:
            if _GROUPED[mark].fullmatch(text) is None:
                return False
            is_anywhere = True
    return is_anywhere


def _find_notation(
    texts: Sequence[str],
    separator: str | None,
    other_columns: Callable[[], Iterable[Iterable[str]]],
) -> Notation:
    readings: dict[Notation, list[float]] = {}
    for notation in NOTATIONS:
        if notation.fits(texts):
            values = notation.read(texts)
            # notations that give the same numbers are one reading
            if values not in readings.values():
                readings[notation] = values
    if not readings:
        raise _no_notation(texts)
    if len(readings) == 1:
        return next(iter(readings))
    return _choose_notation(texts, readings, separator, other_columns)


def _choose_notation(
    texts: Sequence[str],
    readings: dict[Notation, list[float]],
    separator: str | None,
    other_columns: Callable[[], Iterable[Iterable[str]]],
) -> Notation:
    """The notation of numbers such as 1.500.

    It is the usual one of the file, unless the other columns show the other decimal mark alone. In
    a file without a usual one it is that of the decimal mark that the other columns show. A column
    whose numbers all are such as 1.500, next to columns with decimal commas, is an error: it may be
    of another program.
    """
    usual_mark = _usual_mark(separator)
    usual = None
    for notation in readings:
        if notation.decimal == usual_mark and not notation.groups:
            usual = notation
    shown_marks = _decimal_marks(other_columns())
    if usual is not None and (usual.decimal in shown_marks or not shown_marks):
        return usual
    shown = [notation for notation in readings if notation.decimal in shown_marks]
    if usual is None and len(shown) == 1:
        may_be_pasted = shown[0].groups == POINT and all(POINT in text for text in texts)
        if not may_be_pasted:
            return shown[0]
    first, second, *_ = readings
    differs = [a != b for a, b in zip(readings[first], readings[second], strict=True)]
    place = differs.index(True)
    raise NumberError(
        place,
        f"a number with one meaning: with {_name_of(first.decimal)} it is "
        f"{readings[first][place]:.15g}, with {_name_of(second.decimal)} "
        f"{readings[second][place]:.15g}. Write the column without separators of thousands and with "
        "more or fewer than three decimals, or read it with pandas (decimal=, thousands=) and pass "
        "the DataFrame",
    )


def _usual_mark(separator: str | None) -> str | None:
    """The decimal mark of a file with this separator of cells; None = either.

    Texts that are not of a file, whose separator is None, have a point, as Python writes numbers.
    """
    if separator is None:
        return POINT
    return _MARK_OF_SEPARATOR.get(separator)


def _decimal_marks(columns: Iterable[Iterable[str]]) -> set[str]:
    """The decimal marks that columns show beyond doubt."""
    marks = set()
    for texts in columns:
        filled = [text for text in texts if text]
        if any(map(_ZERO_BEFORE_DIGIT.match, filled)):
            continue
        for notation in (_PLAIN_POINT, _PLAIN_COMMA):
            mark = notation.decimal
            has_mark = any(mark in text for text in filled)
            if has_mark and notation.fits(filled) and not _may_be_thousands(filled, mark):
                marks.add(mark)
    return marks


def _no_notation(texts: Sequence[str]) -> NumberError:
    """Why no notation fits all texts: one is no number, or two are written in two ways."""
    fitting_notations = []
    for place, text in enumerate(texts):
        fitting = frozenset(notation for notation in NOTATIONS if notation.fits([text]))
        if not fitting:
            return NumberError(place, _expected_instead_of(text))
        fitting_notations.append(fitting)
    # the notations that fit a text and all before it
    in_common: Iterable[frozenset[Notation]] = accumulate(fitting_notations, frozenset.intersection)
    place = list(in_common).index(frozenset())
    return NumberError(
        place,
        "one notation for the whole column: write all of its numbers with a decimal point, or all "
        "with a decimal comma",
        other=_first_it_disagrees_with(fitting_notations, place),
    )


def _first_it_disagrees_with(fitting_notations: Sequence[frozenset[Notation]], place: int) -> int:
    """The first text before ``place`` that shares no notation with the text there.

    Where each earlier text shares one with it, and only all of them together do not, it is the
    first text of the column.
    """
    for earlier in range(place):
        if not fitting_notations[place] & fitting_notations[earlier]:
            return earlier
    return 0


def _expected_instead_of(text: str) -> str:
    """What to write instead of a text that is no number."""
    unit = unit_of(text)
    before = word_before(text)
    tolerance = _TOLERANCE.fullmatch(text)
    for pattern, expected in _PRINTED:
        if pattern.fullmatch(text):
            return expected
    if _ERROR_VALUE.fullmatch(text):
        return "a number: this is the error value of a spreadsheet; correct its formula"
    if _FORMULA.fullmatch(text):
        return "a number: this is a formula; save the table with values instead of formulas"
    if text in _DASHES:
        return "a number: write 0 if the dash stands for zero"
    if (
        text[0] in _DASHES
        and text[0] != "-"
        and _PLAIN_COMMA.fits([text[1:].replace(POINT, COMMA)])
    ):
        return f"a number with the minus sign '-' in the place of {text[0]!r}"
    if text.lower() in MISSING_WORDS or text == "?":
        return "a number"
    if is_date(text):
        return (
            "a number, not a date, a range or a fraction. Spreadsheets make dates of numbers such "
            "as 1.5: format the column as numbers and enter it again. Of dates write a number, "
            "such as days since the first one"
        )
    if unit is not None:
        return f"the number without {unit!r}, a unit that training names by unit= (--unit)"
    if before is not None:
        return f"the number without {before!r}"
    if tolerance is not None:
        return f"the number without {tolerance[1]!r} and what follows"
    if text[0] in _QUOTES:
        return f"a number without {text[0]!r}, and no blank between a separator and a quote"
    if as_decimal(text) is not None:
        return "a finite number"
    if any(character.isdigit() and not character.isascii() for character in text):
        return "a number in the digits 0-9"
    return "a number; correct it"


def _check_sizes(texts: Sequence[str], notation: Notation, values: Sequence[float]) -> None:
    if all(abs(value) < _FIRST_INEXACT for value in values):
        return
    for place, value in enumerate(values):
        if not abs(value) <= LARGEST:
            raise NumberError(place, "a number within +-3.4e38")
        digits = notation.plain(texts[place]).lstrip("+-")
        if digits.isdigit() and int(digits) != abs(value):
            raise NumberError(
                place,
                "a number that float64 holds exactly",
            )


def _repair_of(texts: Sequence[str], notation: Notation, separator: str | None) -> str | None:
    """How the first text that shows it was read, where the notation is unusual for the separator."""
    marks = notation.groups
    if notation.decimal == COMMA and separator in (None, ","):
        marks += COMMA
    if notation.decimal != _usual_mark(separator) and _may_be_thousands(texts, notation.decimal):
        marks += notation.decimal
    for text in texts:
        if any(mark in text for mark in marks):
            return f"{text!r} read as {float(notation.plain(text)):.15g}"
    return None


def _name_of(mark: str) -> str:
    return "a decimal point" if mark == POINT else "a decimal comma"
