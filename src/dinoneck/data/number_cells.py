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
from statistics import median

from dinoneck.data.cells import LARGEST
from dinoneck.data.not_numbers import expected_instead_of, is_unit, unit_of
from dinoneck.data.odd_numbers import days_among, is_end_of_float, sentinels_of

POINT, COMMA = ".", ","
# the decimal mark that goes with a separator of cells: a comma between the cells leaves the point,
# and spreadsheets separate by semicolons where the decimal mark is the comma; tabs go with both
_MARK_OF_SEPARATOR = {",": POINT, ";": COMMA}
# blanks (Polish, French, Swedish, ISO 80000) and apostrophes (Swiss) between thousands
_BLANKS = " \u00a0\u2007\u2009\u202f'\u2019"
_MINUS_SIGN = "\u2212"
# float64 holds every whole number below it
_FIRST_INEXACT = 2**53
# dates without a year (01.05) and codes, which show no decimal mark
_ZERO_BEFORE_DIGIT = re.compile(r"[-+]?0[0-9]")


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
        digits = rf"(?: [0-9]+ (?: {mark}[0-9]* )? | {mark}[0-9]+ )"  # 1, 1., 1.5, .5
        number = rf"{digits} (?: [eE][-+]?[0-9]+ )?"
        if self.groups:
            number = rf"(?: {number} | {_thousands(self.groups)} (?: {mark}[0-9]* )? )"
        return re.compile(rf"[-+]? {number}", re.VERBOSE)

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
    choices = [f"[1-9][0-9]{{0,2}} (?: {re.escape(mark)}[0-9]{{3}} )+" for mark in marks]
    return f"(?: {' | '.join(choices)} )"


_PLAIN_POINT = Notation(POINT)
_PLAIN_COMMA = Notation(COMMA)
NOTATIONS = (
    _PLAIN_POINT,
    _PLAIN_COMMA,
    Notation(POINT, groups=COMMA),
    Notation(COMMA, groups=POINT),
    Notation(POINT, groups=_BLANKS),
    Notation(COMMA, groups=_BLANKS),
)
"""All that are tried; blanks stand for apostrophes too."""
# whole numbers with a mark between thousands, which may also be decimals: 1.500
_GROUPED = {mark: re.compile(rf"[-+]? {_thousands(mark)}", re.VERBOSE) for mark in (POINT, COMMA)}
# whole numbers that would be below the first separator of thousands
_HUNDREDS = re.compile(r"[-+]?[1-9][0-9]{2}")
# decimals whose median is so many times below that of whole numbers may be thousands. Next to
# numbers of three digits alone, this is where thousands are the nearer reading: the root of 1000
_FAR_BELOW = 100
_FAR_BELOW_HUNDREDS = math.sqrt(1000)
_IF_THOUSANDS = "; if the mark is between thousands, write the numbers without it"


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
        may_be_class: whether the text may be the name of a class.
    """

    def __init__(
        self, place: int, expected: str, other: int | None = None, *, may_be_class: bool = True
    ) -> None:
        super().__init__(expected)
        self.place = place
        self.expected = expected
        self.other = other
        self.may_be_class = may_be_class


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
    if repair is None:
        repair = _doubt_of(texts, values, notation)
    if repair is not None:
        repairs.append(repair)
    return Numbers(values, repairs)


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
        without_groups = Notation(notation.decimal)
        if without_groups in readings:
            # no text has a mark between thousands, so that this notation gives the same numbers
            continue
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
    whose numbers all are such as 1.500 is of a program that writes three decimals if no column shows
    a mark, and an error next to columns with decimal commas: it may be of another program.
    """
    usual_mark = _usual_mark(separator)
    all_have_point = all(POINT in text for text in texts)
    usual = None
    for notation in readings:
        if notation.decimal == usual_mark and not notation.groups:
            usual = notation
    shown_marks = _decimal_marks(other_columns())

    # the usual notation of the file, unless the other columns show another mark
    if usual is not None and (usual.decimal in shown_marks or not shown_marks):
        return usual
    if usual is not None:
        raise _two_meanings(readings)

    # no notation is usual: that of the mark that the other columns show
    shown = [notation for notation in readings if notation.decimal in shown_marks]
    if len(shown) == 1:
        # 1.500 in all cells, next to decimal commas: it may come from another program
        is_from_elsewhere = shown[0].groups == POINT and all_have_point
        if not is_from_elsewhere:
            return shown[0]
    # no column shows a mark: a program that writes three decimals
    if not shown_marks and all_have_point and _PLAIN_POINT in readings:
        return _PLAIN_POINT
    raise _two_meanings(readings)


def _two_meanings(readings: dict[Notation, list[float]]) -> NumberError:
    """The error for a column that means other numbers in two notations, by the first such number."""
    first, second = list(readings)[:2]
    numbers = readings[first]
    other_numbers = readings[second]
    place = 0
    while numbers[place] == other_numbers[place]:
        place += 1
    return NumberError(
        place,
        f"a number with one meaning: with {_name_of(first.decimal)} it is "
        f"{numbers[place]:.15g}, with {_name_of(second.decimal)} "
        f"{other_numbers[place]:.15g}. Write the column without separators of thousands and with "
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
        fitting_marks = {notation.decimal for notation in NOTATIONS if notation.fits(filled)}
        if len(fitting_marks) == 1:
            marks |= fitting_marks
    return marks


def _no_notation(texts: Sequence[str]) -> NumberError:
    """Why no notation fits all texts: one is no number, or two are written in two ways."""
    fitting_notations = []
    for place, text in enumerate(texts):
        fitting = frozenset(notation for notation in NOTATIONS if notation.fits([text]))
        if not fitting:
            return _two_units(texts, place) or NumberError(place, expected_instead_of(text))
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


def _two_units(texts: Sequence[str], place: int) -> NumberError | None:
    """The error for a number with a unit next to one in another unit: 500 g and 1 kg, 10% and 0.1.

    Args:
        texts: of the column.
        place: of the number with a unit.
    """
    unit = unit_of(texts[place])
    if unit is None or not is_unit(unit):
        return None
    for other_place, other in enumerate(texts):
        other_unit = unit_of(other)
        if unit == "%" and _is_share(other):
            return NumberError(
                place,
                "percent in all cells or shares in all cells: convert them, and write the numbers "
                "without '%'",
                other=other_place,
            )
        if other_unit is None or not is_unit(other_unit):
            continue
        if other_unit.casefold() != unit.casefold():
            return NumberError(
                place,
                "one unit in the whole column: convert the numbers, and write them alone",
                other=other_place,
            )
    return None


def _is_share(text: str) -> bool:
    """Whether a text is a number between 0 and 1, which are shares as well as percent."""
    for notation in (_PLAIN_POINT, _PLAIN_COMMA):
        if notation.fits([text]):
            return 0 < notation.read([text])[0] < 1
    return False


def _first_it_disagrees_with(fitting_notations: Sequence[frozenset[Notation]], place: int) -> int:
    """The first text before ``place`` that shares no notation with the text there.

    Where each earlier text shares one with it, and only all of them together do not, it is the
    first text of the column.
    """
    for earlier in range(place):
        if not fitting_notations[place] & fitting_notations[earlier]:
            return earlier
    return 0


def _check_sizes(texts: Sequence[str], notation: Notation, values: Sequence[float]) -> None:
    if all(abs(value) < _FIRST_INEXACT for value in values):
        return
    for place, value in enumerate(values):
        text = notation.plain(texts[place])
        if not abs(value) <= LARGEST:
            if is_end_of_float(text):
                raise NumberError(
                    place,
                    "a number within +-3.4e38: programs write this one, the end of float32 or "
                    "float64, for 'no data'",
                    may_be_class=False,
                )
            raise NumberError(place, "a number within +-3.4e38")
        digits = text.lstrip("+-")
        is_inexact = digits.isdigit() and int(digits) != abs(value)
        # the end of float32 in all of its digits is named as a value for "no data"
        if is_inexact and not is_end_of_float(text):
            raise NumberError(place, "a number that float64 holds exactly")


@dataclass(frozen=True)
class DoubtfulThousands:
    """A number whose mark may be between thousands, and why.

    Attributes:
        decimal: the number as it is written, such as 1.234.
        whole: a whole number of the column that suggests thousands, such as 987.
    """

    decimal: str
    whole: str


def doubtful_thousands(
    texts: Sequence[str], values: Sequence[float], mark: str
) -> DoubtfulThousands | None:
    """Return a decimal that may be a number in thousands, with a whole number that suggests it.

    Programs that write 1.250 with its last zero write 999.000 too, and 1.25 without it. Next to 987
    and 640, 1.234 is nearer to the others if the mark is between thousands. Values for "no data"
    and days are not compared: they are named for themselves.

    Args:
        texts: the numbers as they are written.
        values: what they are if the mark is the decimal mark.
        mark: ``"."`` or ``","``.

    Returns:
        The two; None where nothing suggests thousands.
    """
    if not any(mark in text for text in texts) or not _may_be_thousands(texts, mark):
        return None
    odd_values = {0.0, *sentinels_of(values), *days_among(values)}
    marked: dict[str, float] = {}
    whole: dict[str, float] = {}
    hundreds = []
    for text, value in zip(texts, values, strict=True):
        if mark in text:
            marked[text] = abs(value)
            continue
        if _HUNDREDS.fullmatch(text):
            hundreds.append(text)
        if value not in odd_values:
            whole[text] = abs(value)
    ends_in_zero = [text for text in marked if text.endswith("0")]
    if ends_in_zero and hundreds:
        return DoubtfulThousands(decimal=ends_in_zero[0], whole=hundreds[0])
    if whole and _are_nearer_as_thousands(list(marked.values()), list(whole.values())):
        return DoubtfulThousands(decimal=next(iter(marked)), whole=next(iter(whole)))
    return None


def _are_nearer_as_thousands(decimals: Sequence[float], whole: Sequence[float]) -> bool:
    """Whether decimals such as 1.234 are far below the whole numbers of their column."""
    are_hundreds = all(100 <= value < 1000 for value in whole) and len(set(whole)) > 1
    farther = _FAR_BELOW_HUNDREDS if are_hundreds else _FAR_BELOW
    return median(whole) > farther * median(decimals)


def _doubt_of(texts: Sequence[str], values: Sequence[float], notation: Notation) -> str | None:
    """How decimals were read that may be thousands: 1.234 next to 987, which has no decimals."""
    mark = notation.decimal
    if notation.groups:
        return None
    doubt = doubtful_thousands(texts, values, mark)
    if doubt is None:
        return None
    num_marked = sum(mark in text for text in texts)
    others = "" if num_marked == 1 else f" (and {num_marked - 1} more with three decimals)"
    number = float(notation.plain(doubt.decimal))
    return (
        f"{doubt.decimal!r} read as {number:.15g}{others}, next to {doubt.whole!r}{_IF_THOUSANDS}"
    )


def _repair_of(texts: Sequence[str], notation: Notation, separator: str | None) -> str | None:
    """How the first text that shows it was read, where the notation is unusual for the separator."""
    marks = notation.groups
    if notation.decimal == COMMA and separator in (None, ","):
        marks += COMMA
    doubt = ""
    if notation.decimal != _usual_mark(separator) and _may_be_thousands(texts, notation.decimal):
        marks += notation.decimal
        doubt = _IF_THOUSANDS
    for text in texts:
        if any(mark in text for mark in marks):
            return f"{text!r} read as {float(notation.plain(text)):.15g}{doubt}"
    return None


def _name_of(mark: str) -> str:
    return "a decimal point" if mark == POINT else "a decimal comma"
