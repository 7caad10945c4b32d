"""What people and programs write in the place of numbers, and what to write instead.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dinoneck.data.cells import MISSING_WORDS, as_decimal
from dinoneck.data.dates import is_date, is_time

_DIGITS = r"[-+]?[\d.,]*\d[\d.,]*"
_DIGITS_AND_MARK = r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)"
# error values of Excel in its languages (#DIV/0!, #WERT!, #NOM?, #N/A, #NV), of LibreOffice and
# Google Sheets, and the ##### of a column that is too narrow, which Excel saves as it shows it
_ERROR_VALUE = re.compile(
    r"""
      \#\S+[!?]                # #DIV/0!, #WERT!, #NOM?
    | \#[^\W\d]/[^\W\d]+       # #N/A
    | \#NV | \#YOK | \#GETTING_DATA
    | \#\#+
    | Err:\d+
    | Loading\.\.\.
    """,
    re.VERBOSE,
)
_FORMULA = re.compile(r"=[\w+(@\"'$-].*", re.DOTALL)
_UNIT = re.compile(
    rf"""
    ({_DIGITS}) \s*
    (
        [^\W\d_] [^\d]* [23]?     # kg, g/m2, a
      | [%\N{{EURO SIGN}}$\N{{POUND SIGN}}\N{{YEN SIGN}}]
      | \N{{DEGREE SIGN}} .*
    )
    """,
    re.VERBOSE,
)
_ABOUT = re.compile(
    rf"""
    (
        (?i: ca\.? | circa | approx\.? | about | around | etwa | env\.? | environ )
      | EUR | USD | GBP | CHF | JPY | CNY | INR | BRL | PLN | SEK | NOK | DKK | CZK | AUD | CAD
      | [~\N{{ALMOST EQUAL TO}}<>=\N{{LESS-THAN OR EQUAL TO}}\N{{GREATER-THAN OR EQUAL TO}}]+
      | [A-Z]{{0,2}} [$\N{{EURO SIGN}}\N{{POUND SIGN}}\N{{YEN SIGN}}]    # R$, US$
    )
    \s* {_DIGITS}
    """,
    re.VERBOSE,
)
_TOLERANCE = re.compile(r"[-+]?[\d.,]+\s*(\N{PLUS-MINUS SIGN}|\+/?-)\s*[\d.,]+.*")
_HEXADECIMAL = re.compile(r"[-+]?0[xX][0-9a-fA-F]+")
_EXPONENT_OF_FORTRAN = re.compile(
    rf"{_DIGITS_AND_MARK}[dD][-+]\d+ | [-+]?\d*[.,]\d*[dD]\d+", re.VERBOSE
)
_POWER_OF_TEN = re.compile(
    rf"""
    {_DIGITS_AND_MARK} \s*
    [x*\N{{MULTIPLICATION SIGN}}\N{{MIDDLE DOT}}] \s*
    10 \s* (?: \^ | \*\* ) \s* [-+\N{{MINUS SIGN}}]? \d+
    """,
    re.VERBOSE,
)
_OBJECT_OF_PYTHON = re.compile(
    r"(?:(?:torch\.)?tensor|(?:np|numpy)\.\w+|array|Decimal|Fraction)\(.*\)", re.DOTALL
)
_NAN_OF_WINDOWS = re.compile(r"[-+]?1\.#(?:IND|QNAN|SNAN|INF)0*")
_DASHES = frozenset("-\u2013\u2014\u2212")
_DASH_FOR_MINUS = re.compile(rf"[{''.join(_DASHES - {'-'})}]{_DIGITS}")
# an apostrophe before a number, with which spreadsheets keep it as text
_KEPT_AS_TEXT = re.compile(rf"['\u2018\u2019]{_DIGITS}")
_DEGREES_AND_MINUTES = re.compile(rf"{_DIGITS}\s*\N{{DEGREE SIGN}}\s*\d.*")
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_WITH_SUPERSCRIPT = re.compile(rf"({_DIGITS})\s*([{_SUPERSCRIPTS}]+)")
# letters that are taken for digits: 1O, l.5. A small L at the end is a litre
_DIGIT_OF_LETTER = {"O": "0", "o": "0", "I": "1", "l": "1"}
_WITH_LETTER_FOR_DIGIT = re.compile(r"[-+]?[\d.,OoIl]*\d[\d.,OoIl]*")
_QUOTES = frozenset("'\"\u2018\u2019\u201c\u201d\u201e")
# a column of words, most of which are a number with one of these units, was meant as numbers
_UNITS_OF_QUANTITIES = (
    "ng ug µg μg mg g kg t lb lbs oz",  # masses
    "nm um µm μm mm cm dm m km in ft",  # lengths
    "ml cl dl l ha m² cm² m³",  # volumes and areas
    "ms s sec min h hrs days",  # times
    "ppm ppb hz khz kpa hpa ° °c °f %",
    "eur usd gbp chf k mio \N{EURO SIGN} $ \N{POUND SIGN} \N{YEN SIGN}",  # amounts of money
)
_UNITS = frozenset(" ".join(_UNITS_OF_QUANTITIES).split())

# numbers as programs print them, which are no names of classes, and what to write instead
_PRINTED: tuple[tuple[re.Pattern[str], str], ...] = (
    (_HEXADECIMAL, "a number in decimal digits, not a hexadecimal one"),
    (_EXPONENT_OF_FORTRAN, "a number with 'e' before its exponent, not 'D' as Fortran writes it"),
    (_POWER_OF_TEN, "a number with 'e' before its exponent, such as 1.5e-3"),
    (
        _OBJECT_OF_PYTHON,
        "the number alone, which float() returns: this is how Python prints an object",
    ),
    (_NAN_OF_WINDOWS, "a number: this is how programs on Windows print NaN and infinity"),
)


def unit_of(text: str) -> str | None:
    """Return what follows the number in a text such as ``1.5 kg`` or ``1a``; None without both."""
    match = _UNIT.fullmatch(text)
    return None if match is None else match[2]


def is_unit(text: str) -> bool:
    """Whether a text is a unit of the list, or a quotient or power of such: ``kg/ha``, ``m2``, ``°30'N``."""
    if text.startswith("\N{DEGREE SIGN}"):
        return True
    for part in text.casefold().split("/"):
        unit = part.strip()
        if unit not in _UNITS and unit.rstrip("23^") not in _UNITS:
            return False
    return True


def word_before(text: str) -> str | None:
    """Return what is before the number in a text such as ``ca. 3`` or ``EUR 3``; None without both."""
    match = _ABOUT.fullmatch(text)
    return None if match is None else match[1]


def is_printed_number(text: str) -> bool:
    """Whether a text is a number in the notation of programs: ``0x1F``, ``1.5D-03``, ``tensor(1.5)``."""
    return any(pattern.fullmatch(text) for pattern, _ in _PRINTED)


def is_error_value(text: str) -> bool:
    """Whether a text is an error value of a spreadsheet, such as ``#N/A``."""
    return _ERROR_VALUE.fullmatch(text) is not None


def is_formula(text: str) -> bool:
    """Whether a text is the formula of a cell instead of its value: ``=SUM(B2:B9)``."""
    return _FORMULA.fullmatch(text) is not None


def is_spreadsheet_error(text: str) -> bool:
    """Whether a text is an error value such as ``#N/A``, or a formula instead of its value."""
    return is_error_value(text) or is_formula(text)


def is_unknown_mark(text: str) -> bool:
    """Whether a text is a mark that people write for "not known" in words and numbers: ``?``, ``--``."""
    return text != "" and (set(text) == {"?"} or _DASHES.issuperset(text))


def letter_for_digit(text: str) -> str | None:
    """Return the letter that is written in the place of a digit, such as ``O`` in ``1O``; None without one."""
    if not _WITH_LETTER_FOR_DIGIT.fullmatch(text):
        return None
    for letter in text.removesuffix("l"):
        if letter in _DIGIT_OF_LETTER:
            return letter
    return None


def _is_dash(text: str) -> bool:
    return text in _DASHES


def _is_missing(text: str) -> bool:
    return text.lower() in MISSING_WORDS or text == "?"


# what a text is, and what to write instead; the first that fits is taken
_EXPECTED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (is_error_value, "a number: this is the error value of a spreadsheet; correct its formula"),
    (is_formula, "a number: this is a formula; save the table with values instead of formulas"),
    (_is_dash, "a number: write 0 if the dash stands for zero"),
    (_is_missing, "a number"),
    (
        is_date,
        "a number, not a date, a range or a fraction. Spreadsheets make dates of numbers such as "
        "1.5: format the column as numbers and enter it again. Of dates write a number, such as "
        "days since the first one",
    ),
    (is_time, "a number, not a time: write it in one unit, such as minutes"),
)


def expected_instead_of(text: str) -> str:
    """Return what to write instead of a text that is no number."""
    for pattern, expected in _PRINTED:
        if pattern.fullmatch(text):
            return expected
    if _DASH_FOR_MINUS.fullmatch(text):
        return f"a number with the minus sign '-' in the place of {text[0]!r}"
    for fits, expected in _EXPECTED:
        if fits(text):
            return expected
    letter = letter_for_digit(text)
    if letter is not None:
        return (
            f"a number in digits: {letter!r} is a letter; write {_DIGIT_OF_LETTER[letter]} if it "
            "stands for that"
        )
    superscript = _WITH_SUPERSCRIPT.fullmatch(text)
    if superscript is not None:
        return (
            f"the number without {superscript[2]!r}: of a power write the value, and mark footnotes "
            "in a column of their own"
        )
    if _DEGREES_AND_MINUTES.fullmatch(text):
        return "degrees with decimals, such as 47.5, not degrees and minutes"
    unit = unit_of(text)
    if unit == "%":
        return (
            "a number without '%': of 10% write 10 in a column of percent, and 0.1 in one of shares"
        )
    if unit is not None and is_unit(unit):
        return f"the number without {unit!r}, a unit that training names by unit= (--unit)"
    if unit is not None:
        return f"the number without {unit!r}; if it is a unit, training names it by unit= (--unit)"
    before = word_before(text)
    if before is not None:
        return f"the number without {before!r}"
    tolerance = _TOLERANCE.fullmatch(text)
    if tolerance is not None:
        return f"the number without {tolerance[1]!r} and what follows"
    if _KEPT_AS_TEXT.fullmatch(text):
        return (
            f"a number without {text[0]!r}, with which spreadsheets keep a number as text; format the "
            "column as numbers"
        )
    if text[0] in _QUOTES:
        return f"a number without {text[0]!r}, and no blank between a separator and a quote"
    if as_decimal(text) is not None:
        return "a finite number"
    if any(character.isdigit() and not character.isascii() for character in text):
        return "a number in the digits 0-9"
    return "a number; correct it"
