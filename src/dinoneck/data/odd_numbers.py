"""Numbers of a column that may not be what they say: codes for "no data", days, and names in digits.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from dinoneck.data.cells import LARGEST, as_decimal
from dinoneck.data.dates import is_compact_day

# what programs write for "no data" in a column of numbers: surveys and loggers
_NEGATIVE_CODES = frozenset({-999.0, -999.9, -9999.0, -9999.9, -99999.0, -999999.0})
_POSITIVE_CODES = frozenset(
    {999.0, 999.9, 999.99, 6999.0, 9999.0, 9999.9, 9999.99, 99999.0, 99999.9, 999999.0}
)
# a positive code is more than this many times as large as all other values: 9999 among thousands
_LARGER_THAN_CODES = 3
# codes of surveys, of weather stations and of well logs, and the ends of int16, uint16, int32 and
# uint32
_EXTREMES = frozenset(
    {
        -9.99,
        -77.0,
        -88.0,
        -98.0,
        -99.99,
        -777.0,
        -888.0,
        -998.0,
        -999.25,
        -999.99,
        -7777.0,
        -7999.0,
        -8888.0,
        -9998.0,
        99.9,
        99.99,
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
# what surveys and scikit-learn write for an unknown count, measure or class. They are named where
# nothing else is negative, and where this many other values show what the column holds
_SMALL_CODES = frozenset({-1.0, -9.0})
_FEWEST_OTHERS = 3
# what surveys write for "refused", "not asked" and "don't know", beside -9 or -8
_SURVEY_NEGATIVES = frozenset({-1.0, -2.0, -3.0, -7.0, -8.0, -9.0})


class _SurveyCodes(NamedTuple):
    """What surveys write for "refused", "not asked" and "don't know", in questions of whole answers.

    Attributes:
        codes: the values.
        largest_answer: of the questions that have these codes.
    """

    codes: frozenset[float]
    largest_answer: float


# beside answers in one digit, and beside those of yes and no
_SURVEY_POSITIVES = (
    _SurveyCodes(frozenset({77.0, 88.0, 98.0, 99.0}), largest_answer=9.0),
    _SurveyCodes(frozenset({9.0}), largest_answer=1.0),
)
_LARGEST_SURVEY_CODE = 99
# the last step of a scale of ratings, -1, 0, 1, 2, ...
_LAST_STEP = 10
# the fill values of netCDF, of models and of Surfer, and the ends of float32, which programs write
# rounded
_HUGE_CODES = (9.969209968386869e36, 1.70141e38, 1e20, -1e20, 1e30, -1e30, -LARGEST, LARGEST)
_HUGE = 1e19  # all of them are larger
_ROUNDED = 1e-6  # relative
# one of these is more than this many times as large as all other values
_LARGER_THAN_VALUES = 10
# ends of float64, also as R's raster writes it; float() makes infinity of the first one rounded up
_ENDS_OF_FLOAT64 = (Decimal("1.7976931348623157e308"), Decimal("1.7e308"))
# numbers of days in spreadsheets, of the years 2000 to 2049
_FIRST_DAY = 36526
_LAST_DAY = 54788
# next to values below it, such a number is a day that a spreadsheet made of a number such as 1.5
_SMALL_VALUES = 366
_WORD = re.compile(r"[^\W\d_]+")
# how columns of classes are called, and words that make a number of one: label_count
_CLASS_WORDS = {"label", "labels", "class", "classes", "category", "categories", "species", "genus"}
_COUNT_WORDS = {"count", "counts", "number", "num", "n", "score", "share", "area", "weight", "mean"}
_BEGINS_WITH_ZERO = re.compile(r"0\d+(?:[.,]\d*)?")


def sentinels_of(values: Sequence[float]) -> list[float]:
    """Return the values that programs write for "no data" and that are unlike all others, sorted.

    Negative codes such as -9999 are below all other values. If these are positive, -99 and the
    smallest integers are too. Else they are far from the others, as positive codes are. -1 and -9
    are named if no other value is negative, unless -1 is the first step of a scale: -1, 0, 1, 2, 3.
    """
    suspects = set((_NEGATIVE_CODES | _POSITIVE_CODES | _EXTREMES).intersection(values))
    if max(map(abs, values), default=0.0) >= _HUGE:
        suspects.update(value for value in values if _is_huge_code(value))
    others = [value for value in values if value not in suspects]
    if not others:
        return []
    lowest = min(others)
    largest = max(map(abs, others))
    unlike = [value for value in suspects if _is_unlike(value, lowest, largest)]
    if lowest in _SURVEY_NEGATIVES:
        unlike += _small_codes(set(others))
    if lowest >= 0 and max(values) <= _LARGEST_SURVEY_CODE:
        unlike += _survey_codes(set(others))
    return sorted(unlike)


def _is_unlike(suspect: float, lowest: float, largest: float) -> bool:
    """Whether a value for "no data" is far from the other values, of which these are the ends."""
    if suspect in _NEGATIVE_CODES:
        return suspect < lowest
    if suspect in _POSITIVE_CODES:
        return largest * _LARGER_THAN_CODES < suspect
    return largest * _LARGER_THAN_VALUES < abs(suspect) or suspect < 0 <= lowest


def _small_codes(values: set[float]) -> list[float]:
    """-1 or -9, or -8 and -9, if no other value is negative, next to several others that exceed 1."""
    negative = [value for value in values if value < 0]
    are_codes = len(negative) == 1 and negative[0] in _SMALL_CODES
    if len(negative) > 1 and min(negative) in (-9.0, -8.0):
        are_codes = _SURVEY_NEGATIVES.issuperset(negative)
    if not are_codes:
        return []
    if len(values) <= _FEWEST_OTHERS or max(values) <= 1:
        return []
    return [] if _are_steps(values) else negative


def _survey_codes(values: set[float]) -> list[float]:
    """99 and the like beside answers of one digit, and 9 beside those of yes and no."""
    for survey in _SURVEY_POSITIVES:
        answers = values - survey.codes
        codes = values & survey.codes
        are_whole = all(value.is_integer() for value in answers)
        if codes and len(answers) > 1 and are_whole and max(answers) <= survey.largest_answer:
            return sorted(codes)
    return []


def _are_steps(values: set[float]) -> bool:
    """Whether values are those of a scale from -1: whole, with 0 and 1, and no large ones."""
    are_whole = all(value.is_integer() for value in values)
    return are_whole and {-1.0, 0.0, 1.0} <= values and max(values) <= _LAST_STEP


def is_small_code(value: float) -> bool:
    """Whether a value of :func:`sentinels_of` is one of those that are named if only they are negative."""
    return value in _SURVEY_NEGATIVES


def _is_huge_code(value: float) -> bool:
    return any(math.isclose(value, code, rel_tol=_ROUNDED) for code in _HUGE_CODES)


def is_end_of_float(text: str) -> bool:
    """Whether a number is the end of float32 or float64, also rounded, which is written for "no data"."""
    number = as_decimal(text)
    if number is None or not number.is_finite():
        return False
    for end in (Decimal(LARGEST), *_ENDS_OF_FLOAT64):
        if abs(abs(number) / end - 1) < Decimal(_ROUNDED):
            return True
    return False


def days_among(values: Sequence[float]) -> list[float]:
    """Return the numbers of days that a spreadsheet made of numbers such as 1.5, sorted.

    They are whole and of the years 2000 to 2049, and all other values are below the days of a year.
    """
    if not values or not _FIRST_DAY <= max(values) <= _LAST_DAY:
        return []
    days = set()
    has_others = False
    for value in values:
        if _FIRST_DAY <= value <= _LAST_DAY and value.is_integer():
            days.add(value)
        elif abs(value) < _SMALL_VALUES:
            has_others = True
        else:
            return []
    return sorted(days) if has_others else []


def are_compact_days(texts: Iterable[str]) -> bool:
    """Whether all texts are days in one number, ``20240503``, and there are two or more."""
    return all(map(is_compact_day, texts)) and len(set(texts)) > 1


def are_class_numbers(column: str, values: Sequence[float]) -> bool:
    """Whether a column of numbers is called as classes are, ``label`` or ``species_id``, and may hold them.

    Its numbers are whole, none is below 0, and some are repeated.
    """
    words = set(_WORD.findall(column.casefold()))
    if not words & _CLASS_WORDS or words & _COUNT_WORDS:
        return False
    distinct = set(values)
    if len(distinct) == len(values) or min(distinct) < 0:
        return False
    return all(value.is_integer() for value in distinct)


def begins_with_zero(text: str) -> bool:
    """Whether a number begins as codes and days without a year do: ``007``, ``01067``, ``01.05``."""
    return text[0] == "0" and _BEGINS_WITH_ZERO.fullmatch(text) is not None
