"""Dates as people and spreadsheets write them.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

MONTHS: Mapping[str, str] = {
    "English": "January February March April May June July August September October November "
    "December",
    "German": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "French": "janvier février mars avril mai juin juillet août septembre octobre novembre "
    "décembre",
    "Spanish": "enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre "
    "noviembre diciembre",
    "Italian": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre "
    "novembre dicembre",
    "Dutch": "januari februari maart april mei juni juli augustus september oktober november "
    "december",
}
_SHORT_MONTHS: Mapping[str, str] = {
    "English": "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec",
    "German": "Jan Feb Mrz Mär Apr Jun Jul Aug Sep Sept Okt Nov Dez",
    "French": "janv févr fév avr juil sept oct nov déc",
    "Spanish": "ene feb mar abr may jun jul ago sep sept oct nov dic",
    "Italian": "gen feb mar apr mag giu lug ago set ott nov dic",
    "Dutch": "jan feb mrt apr mei jun jul aug sep okt nov dec",
}
# the languages whose short names are no other words that people number: set 1, gen 2, mag 3
_NAMES_ALONE = ("English", "German")


def _without_accents(text: str) -> str:
    """A text in letters without accents, which people leave out."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _one_of(lists: Iterable[str]) -> str:
    """The pattern of one of the names in these lists, with or without accents and a full stop."""
    names: set[str] = set()
    for names_of_language in lists:
        for name in names_of_language.split():
            names.add(name.casefold())
            names.add(_without_accents(name).casefold())
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return rf"(?:{'|'.join(longest_first)})\.?"


_WHOLE = list(MONTHS.values())
_ANY_MONTH = _one_of([*_WHOLE, *_SHORT_MONTHS.values()])
# a month that is recognised with a blank between it and a number
_MONTH = _one_of([*_WHOLE, *(_SHORT_MONTHS[language] for language in _NAMES_ALONE)])

MONTH_NAME = re.compile(rf"(?<![^\W\d_]){_ANY_MONTH}(?![^\W\d_])", re.IGNORECASE)
CLOCK = re.compile(
    r"""
    [ T] \d{1,2} : \d\d               # 10:30
    (?: : \d\d (?: [.,]\d+ )? )?      # and seconds, and parts of them
    [ ]? (?: Z | [-+]\d\d:?\d\d )? $  # and a time zone
    """,
    re.VERBOSE,
)
"""A time of the day, at the end of a date."""
_TIME = re.compile(r"\d{1,3}:\d\d(?::\d\d(?:[.,]\d+)?)?(?:\s?[ap]\.?m\.?)?", re.IGNORECASE)
_DATE = re.compile(
    rf"""
      \d{{1,4}} [-/] \d{{1,2}} (?: [-/] \d{{1,4}} )?          # 2024-05-01, 5/1/24, 3-5
    | \d{{1,2}} \. \d{{1,2}} \. (?: \d{{2}} | \d{{4}} )?      # 1.5.2024, 1.5.24, 1.5.
    | \d{{1,4}} \.? [-/] {_ANY_MONTH} (?: [-/ ] \d{{2,4}} )?  # 5-Jan, 05-mag, 05/mai/2024
    | \d{{1,2}} \. {_MONTH} (?: [-. ]? \d{{2,4}} )?           # 01.Mai, 1.Mai 2024
    | \d{{1,4}} \.? [ ] {_MONTH} (?: [- ] \d{{2,4}} )?        # 01. Mai, 3 May 2024
    | {_ANY_MONTH} [-/] \d{{2,4}}                             # Mar-05, août-24
    | {_MONTH} [ ] \d{{2,4}}                                  # Mar 05, May 2024
    | {_MONTH} [ ] \d{{1,2}} ,? [ ] \d{{4}}                   # May 3, 2024
    | (?: \d+ 年 )? \d{{1,2}} 月 (?: \d{{1,2}} 日 )?          # 2024年5月1日, 5月1日
    """,
    re.VERBOSE | re.IGNORECASE,
)
# days in one number, 20240503
_COMPACT_DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")


def is_date(text: str) -> bool:
    """Whether a text is a date, also with a time, or one that a spreadsheet made of a number: ``01. Mai``.

    A month with a number of one digit after it is none: ``Set 1``.
    """
    return _DATE.fullmatch(CLOCK.sub("", text)) is not None


def is_time(text: str) -> bool:
    """Whether a text is a time of the day or a duration: ``10:30``."""
    return _TIME.fullmatch(text) is not None


def is_compact_day(text: str) -> bool:
    """Whether a text is a day in one number: ``20240503``."""
    return _COMPACT_DAY.fullmatch(text) is not None
