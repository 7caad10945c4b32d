"""Columns of words as people and spreadsheets write them: classes, groups and folds.

Words are never joined or left out: what looks like a mistake is named in a warning. Neither pandas
nor torch is imported.
"""

from __future__ import annotations

import html
import logging
import os
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from dinoneck.data.cells import LARGEST, MISSING_WORDS, is_number, label_of
from dinoneck.data.dates import CLOCK, MONTH_NAME, is_compact_day, is_date
from dinoneck.data.not_numbers import is_unit, unit_of, word_before
from dinoneck.text import counted, some_of

_SHOWN = 5  # names in a message
# how spreadsheets in their languages write true and false, and how people write yes and no
_TRUTH_WORDS_OF_LANGUAGES = (
    "true false t f yes no y n",  # English
    "wahr falsch ja nein",  # German
    "vrai faux oui non",  # French
    "verdadero verdadeiro vero falso",  # Spanish, Portuguese, Italian
    "waar onwaar prawda fałsz sant falskt",  # Dutch, Polish, Swedish
)
_TRUTH_WORDS = frozenset(" ".join(_TRUTH_WORDS_OF_LANGUAGES).split())
# what people write for "not known", in lower case; it may be a class
_UNKNOWN_WORDS = frozenset(
    ("n.d.", "n.d", "nd", "n/d", "k.a.", "k. a.", "?", "??", "-", "--", "unknown", "missing")
)
_OTHER_BLANK = re.compile(r"(?<!\d)[\s_]+|[\s_]+(?!\d)")
# between letters, a dash is a blank: tall-grass
_DASH_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_BLANK_BETWEEN_DIGITS = re.compile(r"[\s_]+")
# Unicode categories: all dashes are one, and formatting characters, which no one sees, are nothing
_DASH_OF = {"Pd": "-", "Cf": ""}
# quotes, the full stop of abbreviations, and marks that stayed from a longer list
_AROUND_WORDS = "'\"\u2018\u2019\u201c\u201d\u201e.,;:?!* "
# letters of Cyrillic and Greek that look like Latin ones
_LATIN_OF = str.maketrans("аеорсухіѕјԁԛԝοαν", "aeopcyxisjdqwoav")
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
# those of P01; not those of decimals, 1.05 m
_ZEROS_OF_NAME = re.compile(r"(?<![\d.,])0+(?=\d)")
_BETWEEN_THOUSANDS = re.compile("[ \u00a0\u2009\u202f'\u2019]")
_THOUSANDS = re.compile(rf"\d{{1,3}}(?:{_BETWEEN_THOUSANDS.pattern}\d{{3}})+")
# a whole number with points or commas between thousands, or one with three decimals
_MARKED_THOUSANDS = re.compile(r"[1-9]\d{0,2}([.,])\d{3}(?:\1\d{3})*")
# a number with letters of significance or of a direction after it: 1.5 ab, 47.5N
_NUMBER_WITH_LETTERS = re.compile(r"[-+]?\d+([.,]\d+)?\s?[^\W\d_]{1,3}")
_NUMBER_WITH_DECIMALS = re.compile(r"[-+]?\d*[.,]\d")
# a day with its year, and what differs between two ways to write it
_DAY = re.compile(
    r"(?:19|20)\d\d([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:(?:19|20)\d\d|\d\d)"
)
_YEAR = re.compile(r"\d{4}")
_SHORT_NUMBER = re.compile(r"(?<!\d)\d{1,2}(?!\d)")
# Excel's number of a day, of the years 1982 to 2036, which is a day where other names are
_DAY_OF_EXCEL = re.compile(r"[34]\d{4}")
# names of which Excel makes dates, 3-5 and 13/24, and what it makes of them
_PAIR = re.compile(r"\d{1,2}[-/.]\d{1,2}")
_MIDNIGHT = re.compile(r"[ T]00:00(:00(\.0+)?)?$")
# numbers without an exponent, and the end of those that are whole
_PLAIN = re.compile(r"[-+]?\d+(?:\.\d*)?")
_ZERO_DECIMALS = re.compile(r"\.0*$")
# between the labels of an image with several
_LIST_MARKS = (";", ",", "|", "+", "&", "/", " and ")
# those that are in no name of a single label
_SURE_LIST_MARKS = (";", "|")
# lists and objects of Python and JSON: ['weed', 'crop'], {"choices": ["weed"]}
_LIST_AS_TEXT = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)", re.DOTALL)
# a number and what follows it: 058Y, 3 of 10
_NUMBER_AND_REST = re.compile(r"[-+]?\d+(?:[.,]\d+)?\s*(\D.*)")
# so many numbers with the same rest are measured, even where many rows share each
_MANY_NUMBERS = 20
_FEWEST_NUMBERS = 3
# what programs write for a letter that they cannot read
_LOST_LETTER = "\ufffd"
# a number of so many digits is the result of a calculation: 0.1 + 0.2 is 0.30000000000000004
_DIGITS_OF_NOISE = 15
# digits that are right of such a number, in float64 and float32
_DIGITS_OF_FLOAT64 = 12
_DIGITS_OF_FLOAT32 = 6
# a class of so few rows may be a typing error of one that has so many, where both are long words
_ROWS_OF_TYPO = 2
_ROWS_OF_COMMON = 20
_SHORTEST_WORD = 4
_POWER_OF_TEN = re.compile(r"[-+]?[\d.,]+[eE][-+]?\d+")
# scikit-learn's DBSCAN and PredefinedSplit, and tables without missing values
_NO_GROUP = ("-1", "-9", "-99", "-999", "-9999")
_SIGN_OF_POWER = re.compile(r"[.,]|[eE][-+]")

logger = logging.getLogger(__name__)


def lookalike_key(text: str) -> str:
    """Return what is equal for words that a reader takes for one.

    Words lose case, blanks, accents, widths of letters, kinds of dashes, and quotes and marks
    around them. Latin letters take the place of others that look like them, and of those that
    another encoding made. Numbers are compared by their value, without the last digits of a
    calculation; they may have a decimal comma, or blanks between thousands. Numbers in names and
    dates lose leading zeros, and dates lose midnight. A blank between two digits is kept: the plots
    ``1_11`` and ``11_1`` are not one.
    """
    if _THOUSANDS.fullmatch(text):
        text = _BETWEEN_THOUSANDS.sub("", text)
    with_point = text.replace(",", ".", 1)
    if is_number(with_point):
        return _without_noise(label_of(with_point))
    date = _MIDNIGHT.sub("", text)
    if is_date(date):
        return _LEADING_ZEROS.sub("", date).casefold()
    if "&" in text:
        text = html.unescape(text)
    text = text.strip(_AROUND_WORDS)
    if not text.isascii():
        text = in_right_encoding(text) or text
    text = text.casefold()
    if not text.isascii():
        text = _without_accents(unicodedata.normalize("NFKC", text).casefold())
        text = "".join(
            _DASH_OF.get(unicodedata.category(character), character) for character in text
        )
        text = text.translate(_LATIN_OF)
    text = _DASH_BETWEEN_LETTERS.sub("", text)
    text = _ZEROS_OF_NAME.sub("", text)
    return _BLANK_BETWEEN_DIGITS.sub(" ", _OTHER_BLANK.sub("", text))


def _without_noise(label: str) -> str:
    """A number without the last digits, where a calculation or float32 made them: 0.30000001192092896."""
    digits = label.lstrip("-0.").replace(".", "")
    if "." not in label or len(digits) < _DIGITS_OF_NOISE:
        return label
    number = float(label)
    right_digits = _DIGITS_OF_FLOAT64
    if abs(number) <= LARGEST and struct.unpack("f", struct.pack("f", number))[0] == number:
        right_digits = _DIGITS_OF_FLOAT32
    return label_of(f"{number:.{right_digits}g}")


def _without_accents(text: str) -> str:
    """A text whose Latin letters have no accents; letters of other scripts keep their marks."""
    letters = []
    is_latin = False
    for letter in unicodedata.normalize("NFD", text):
        is_mark = unicodedata.combining(letter) != 0
        if is_mark and is_latin:
            continue
        if not is_mark:
            is_latin = letter.isascii() and letter.isalpha()
        letters.append(letter)
    return unicodedata.normalize("NFC", "".join(letters))


def in_right_encoding(text: str) -> str | None:
    """Return what was meant by UTF-8 that was read as Windows-1252: ``ü`` for ``Ã¼``; None for other texts."""
    if text.isascii():
        return None
    for encoding in ("cp1252", "latin-1"):
        try:
            return text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return None


def similar_names(
    names: Iterable[str], key: Callable[[str], str] = lookalike_key
) -> list[list[str]]:
    """Return the groups of two names or more whose keys are equal, in the order of their first names."""
    names_of_key: dict[str, list[str]] = {}
    for name in names:
        names_of_key.setdefault(key(name), []).append(name)
    return [similar for similar in names_of_key.values() if len(similar) > 1]


def warn_of_words(what: str, counts: Mapping[str, int], noun: str, remedy: str) -> None:
    """Name words of a column that may be one, or a missing value, or have lost letters.

    Args:
        what: what messages call the column.
        counts: word -> its number of rows.
        noun: what messages call the words, such as ``"groups"``.
        remedy: what to do where a word such as ``NA`` stands for a missing value.
    """
    _warn_of_lookalikes(what, counts, noun)
    _warn_of_lost_letters(what, counts, noun)
    for name, count in counts.items():
        if name.lower() in MISSING_WORDS | _UNKNOWN_WORDS:
            rows = counted(count, "row")
            logger.warning("%s: %r is one of the %s, in %s. %s", what, name, noun, rows, remedy)


def warn_of_typos(what: str, counts: Mapping[str, int]) -> None:
    """Name rare classes that differ from a common one in one letter: ``wede`` in one row, ``weed`` in 20.

    Args:
        what: what messages call the column.
        counts: class -> its number of rows.
    """
    rare = [name for name, count in counts.items() if count <= _ROWS_OF_TYPO and _is_one_word(name)]
    common = [name for name in counts if counts[name] >= _ROWS_OF_COMMON and _is_one_word(name)]
    examples = []
    for name in rare:
        for other in common:
            if _differ_in_a_letter(name.casefold(), other.casefold()):
                rows = counted(counts[name], "row")
                examples.append(f"{name!r} ({rows}) and {other!r} ({counts[other]} rows)")
    if examples:
        logger.warning(
            "%s has rare classes that differ from a common one in a letter: %s. They are not joined; "
            "correct them if they are typing errors",
            what,
            some_of(examples, _SHOWN),
        )


def _is_one_word(name: str) -> bool:
    return name.isalpha() and len(name) >= _SHORTEST_WORD


def _differ_in_a_letter(first: str, second: str) -> bool:
    """Whether words with one initial differ in a letter, which is another one or left out, or in two exchanged."""
    if first == second or first[0] != second[0]:
        return False
    start = len(os.path.commonprefix([first, second]))  # noqa: RUF071 - of letters
    if len(first) == len(second):
        exchanged = second[start + 1 : start + 2] + second[start] + second[start + 2 :]
        return first[start + 1 :] == second[start + 1 :] or first[start:] == exchanged
    shorter, longer = sorted((first, second), key=len)
    return shorter[start:] == longer[start + 1 :]


def warn_of_dates(what: str, counts: Mapping[str, int], noun: str) -> None:
    """Name dates that are written in several ways, so that one day may be several words.

    Names such as ``3-May``, which spreadsheets make of ``3-5``, are named where others are ``3-5``.
    """
    example_of: dict[str, str] = {}
    for name in counts:
        form = _form_of_day(name)
        if form is not None:
            example_of.setdefault(form, name)
    if example_of:
        for name in counts:
            if is_compact_day(name):
                example_of.setdefault("yearmonthday", name)
            elif _DAY_OF_EXCEL.fullmatch(name):
                example_of.setdefault("days since 1900", name)
    if len(example_of) > 1:
        logger.warning(
            "%s has %s that are dates, written in %d ways: %s. A day that is written in two ways "
            "counts as two; write all of them in one way",
            what,
            noun,
            len(example_of),
            some_of(map(repr, example_of.values()), _SHOWN),
        )
    pairs = [name for name in counts if _PAIR.fullmatch(name)]
    made = [name for name in counts if is_date(name) and name not in pairs]
    if pairs and made:
        logger.warning(
            "%s has %s such as %r, and dates such as %r, in %s: spreadsheets make dates of names "
            "such as 3-5, so that one name may be in two spellings, which count as two. Format the "
            "column as text and enter the names again",
            what,
            noun,
            pairs[0],
            made[0],
            counted(sum(counts[name] for name in made), "row"),
        )


def _form_of_day(name: str) -> str | None:
    """How a day with its year is written, with 0 for days and months: ``year-0-0``; None for other names."""
    day = CLOCK.sub("", name)
    has_month_name = _YEAR.search(day) is not None and MONTH_NAME.search(day) is not None
    if not _DAY.fullmatch(day) and not (has_month_name and is_date(day)):
        return None
    return _SHORT_NUMBER.sub("0", _YEAR.sub("year", MONTH_NAME.sub("month", day)))


def warn_of_joined_numbers(what: str, spellings: Mapping[str, Iterable[str]], noun: str) -> None:
    """Name numbers that are one although they are written as names of different things are.

    These are numbers with leading zeros, ``007`` and ``7``, and with zeros after other decimals,
    ``1.10`` and ``1.1``. ``1.0`` and ``1`` are not named.

    Args:
        what: what messages call the column.
        spellings: number -> how it is written.
        noun: what messages call the numbers, such as ``"groups"``.
    """
    examples = []
    for written in spellings.values():
        by_name = {_ZERO_DECIMALS.sub("", text): text for text in written if _PLAIN.fullmatch(text)}
        if len(by_name) > 1:
            examples.append(" and ".join(repr(text) for text in sorted(by_name.values())))
    if examples:
        logger.warning(
            "%s has %s that are one number: %s. They count as one; if they are names of different "
            "things, begin each name of the column with a letter",
            what,
            noun,
            some_of(examples, _SHOWN),
        )


def warn_of_thousands(what: str, counts: Mapping[str, int], noun: str) -> bool:
    """Name words that are one number if their mark is between thousands: ``1.001`` and ``1001``.

    Args:
        what: what messages call the column.
        counts: word, as it is written -> its number of rows.
        noun: what messages call the words, such as ``"groups"``.

    Returns:
        Whether there are such words.
    """
    digits_of = {}
    for text in counts:
        if _MARKED_THOUSANDS.fullmatch(text):
            digits_of[text] = text.replace(".", "").replace(",", "")
    if not digits_of:
        return False
    text_of_key = {lookalike_key(text): text for text in counts}
    examples = []
    for text, digits in digits_of.items():
        if digits in text_of_key:
            whole = text_of_key[digits]
            rows = counted(counts[text], "row")
            whole_rows = counted(counts[whole], "row")
            examples.append(f"{text!r} ({rows}) and {whole!r} ({whole_rows})")
    if examples:
        logger.warning(
            "%s has %s that may be one number: %s. They are not joined; if the mark is between "
            "thousands, write the numbers without it",
            what,
            noun,
            some_of(examples, _SHOWN),
        )
    return len(examples) > 0


def warn_of_no_group(what: str, counts: Mapping[str, int], noun: str) -> None:
    """Name the group or fold -1 beside 0, 1 and others, which programs write for what is in none."""
    code = next((name for name in counts if name in _NO_GROUP), None)
    if code is None or len(counts) < 2:
        return
    others = [name for name in counts if name != code]
    if all(name.isdecimal() for name in others):
        logger.warning(
            "%s: %s is one of the %s, in %s, unlike the others below 0. Programs write it for rows "
            "of none (DBSCAN), or that are always trained on (PredefinedSplit); name the right one",
            what,
            code,
            noun,
            counted(counts[code], "row"),
        )


def warn_of_powers_of_ten(what: str, counts: Mapping[str, int], noun: str) -> None:
    """Name cells such as ``1.2E+11``, as which spreadsheets write long numbers, and names like ``1E5``."""
    powers = [text for text in counts if _POWER_OF_TEN.fullmatch(text)]
    if not all(map(is_number, counts)):
        # 16e6 next to 03d1 is a name of hexadecimal digits; spreadsheets write 1.6E+07
        powers = [text for text in powers if _SIGN_OF_POWER.search(text)]
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


def warn_of_class_names(
    what: str,
    names: Sequence[str],
    *,
    may_be_numbers: bool = True,
    num_rows: int | None = None,
) -> None:
    """Name classes that may have been meant as numbers, as true and false, or as several labels.

    Args:
        what: what messages call the column.
        names: the classes.
        may_be_numbers: whether nobody has said that the column holds classes.
        num_rows: of the column; None = the classes are not of a column.
    """
    if may_be_numbers and all(map(is_date, names)):
        logger.warning(
            "%s has dates as classes: %s. Spreadsheets make dates of numbers such as 1.5; if these "
            "were numbers, format the column as numbers and enter it again",
            what,
            some_of(map(repr, names), _SHOWN),
        )
    elif may_be_numbers and (_are_quantities(names) or _share_their_rest(names, num_rows)):
        logger.warning(
            "%s has numbers with a unit, or a word before them, as classes: %s. To learn them as "
            "numbers, write the numbers alone; unit= (--unit) names a unit in training",
            what,
            some_of(map(repr, names), _SHOWN),
        )
    elif may_be_numbers and _have_letters_after(names):
        logger.warning(
            "%s has numbers with letters after them, such as those of significance or of a "
            "direction, as classes: %s. To learn them as numbers, write the numbers alone, and the "
            "letters in a column of their own",
            what,
            some_of(map(repr, names), _SHOWN),
        )
    _warn_of_several_labels(what, names)
    truth_words = {name.casefold() for name in names}
    if len(truth_words) > 2 and truth_words <= _TRUTH_WORDS:
        logger.warning(
            "%s has %d classes that say true or false: %s. Write each of the two in one way",
            what,
            len(names),
            some_of(map(repr, names), len(names)),
        )


def _are_quantities(names: Sequence[str]) -> bool:
    """Whether more than half of the names, and two or more, are numbers with units or words such as "about"."""
    units = [unit for unit in map(unit_of, names) if unit is not None]
    num_with_unit = sum(map(is_unit, units))
    have_decimals = any(_NUMBER_WITH_DECIMALS.match(name) for name in names)
    if have_decimals and len(units) == len(names) and len(set(units)) == 1:
        num_with_unit = len(units)
    num_with_word = sum(word_before(name) is not None for name in names)
    num_prices = sum(map(_is_price, names))
    return 2 * max(num_with_unit, num_with_word, num_prices) > len(names)


def _share_their_rest(names: Sequence[str], num_rows: int | None) -> bool:
    """Whether most names are numbers before the same text, ``058Y``, and too many for classes."""
    if num_rows is None or len(names) < _FEWEST_NUMBERS:
        return False
    if len(names) < _MANY_NUMBERS and 2 * len(names) <= num_rows:
        return False
    rests = Counter[str]()
    for name in names:
        match = _NUMBER_AND_REST.fullmatch(name)
        if match is None:
            return False
        rests[match[1]] += 1
    return 4 * max(rests.values()) >= 3 * len(names)


def _have_letters_after(names: Sequence[str]) -> bool:
    """Whether all names are numbers with one to three letters, and most of the numbers have decimals."""
    num_decimals = 0
    for name in names:
        match = _NUMBER_WITH_LETTERS.fullmatch(name)
        if match is None:
            return False
        num_decimals += match[1] is not None
    return 2 * num_decimals > len(names)


def _warn_of_several_labels(what: str, names: Sequence[str]) -> None:
    """Name classes that hold several labels, ``a;b`` next to ``a`` and ``b``: an image has one class."""
    remedy = "If it means several labels, write a column of 0 and 1 for each label (--multilabel)"
    lists = [name for name in names if _LIST_AS_TEXT.fullmatch(name)]
    if lists:
        logger.warning(
            "%s has lists as classes, %d of %d, such as %r: an image has one class, and each list is "
            "one of its own. %s",
            what,
            len(lists),
            len(names),
            lists[0],
            remedy,
        )
        return
    joined = _joined_labels(names)
    if joined is not None:
        name, parts = joined
        logger.warning(
            "%s has the class %r, next to %s: an image has one class, and this is one of "
            "its own. %s",
            what,
            name,
            some_of(map(repr, parts), _SHOWN),
            remedy,
        )


def _joined_labels(names: Sequence[str]) -> tuple[str, list[str]] | None:
    """A name that joins labels, and what else shows that it does: its parts, or another such name."""
    known = set(names)
    for name in names:
        for mark in _LIST_MARKS:
            parts = [part.strip() for part in name.split(mark)]
            if len(parts) > 1 and known.issuperset(parts):
                return name, parts
    for mark in _SURE_LIST_MARKS:
        name_of_part: dict[str, str] = {}
        for name in names:
            parts = [part.strip() for part in name.split(mark) if part.strip()]
            if len(parts) < 2:
                continue
            for part in parts:
                other = name_of_part.setdefault(part, name)
                if other != name:
                    return name, [other]
    # between labels that have no blank: "scab rust" next to "scab" and "rust", but not "clay loam"
    # next to "sandy loam"
    with_blank = [name for name in names if " " in name]
    if with_blank and all(known.issuperset(name.split()) for name in with_blank):
        return with_blank[0], with_blank[0].split()
    return None


def _is_price(name: str) -> bool:
    """Whether a name has a sign of a currency next to a number: ``R$ 5,00``."""
    has_sign = any(unicodedata.category(character) == "Sc" for character in name)
    return has_sign and any(character.isdigit() for character in name)


def _warn_of_lost_letters(what: str, names: Iterable[str], noun: str) -> None:
    """Name words that were read in another encoding than they were written in: ``GrÃ¼n``."""
    examples = []
    for name in names:
        meant = in_right_encoding(name)
        if _LOST_LETTER in name:
            examples.append(repr(name))
        elif meant is not None:
            examples.append(f"{name!r}, which was {meant!r}")
    if examples:
        logger.warning(
            "%s has %s with letters of another encoding: %s. Save the table as UTF-8 from the "
            "program that shows them right",
            what,
            noun,
            some_of(examples, _SHOWN),
        )


def _warn_of_lookalikes(what: str, counts: Mapping[str, int], noun: str) -> None:
    groups = []
    for names in similar_names(counts):
        rows = [f"{name!r} ({counted(counts[name], 'row')})" for name in sorted(names)]
        groups.append(" and ".join(rows))
    if groups:
        logger.warning(
            "%s has %s that may be one: %s. They differ only in case, blanks, dashes, quotes or marks, "
            "accents or letters that look alike, or in how a number or date is written, and are not "
            "joined; write them alike if they are one",
            what,
            noun,
            some_of(groups, _SHOWN),
        )
