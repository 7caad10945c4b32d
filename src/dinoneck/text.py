"""Words of messages: names joined, counted, shortened, escaped, and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_LONGEST_MESSAGE = 2000  # characters
_LONGEST_NAME = 2000  # characters of a name that is compared with known ones
_LONGEST_VALUE = 80  # characters of a value in a message
_LONGEST_LINE = 200  # characters of another library's message


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its type where it has none."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line[:_LONGEST_LINE]


def reason_of(error: BaseException) -> str:
    """Return the message of an error; of an OSError without its number and path."""
    return getattr(error, "strerror", None) or str(error)


def some_of(names: Iterable[str], shown: int) -> str:
    """Return the first ``shown`` of the sorted names, and how many more there are."""
    ordered = sorted(names)
    text = ", ".join(ordered[:shown])
    if len(ordered) > shown:
        text += f" and {len(ordered) - shown} more"
    return text


def counted(number: int, what: str) -> str:
    """Return a number of things in words: ``1 image``, ``3 images``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def counted_first(count: int, words: str) -> str:
    """Return a number of things in words that begin with a plural: ``1 file of other formats``."""
    things, _, rest = words.partition(" ")
    if count == 1:
        things = things.removesuffix("s")
    return f"{count} {things} {rest}".rstrip()


def in_words(counts: Mapping[str, int]) -> str:
    """Return counted reasons as text: ``3 outside, 1 too small``."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def shorten(value: object) -> str:
    """Return a value for a message, at most 80 characters long."""
    text = repr(value)
    if len(text) > _LONGEST_VALUE:
        return text[: _LONGEST_VALUE - 4] + " ..."
    return text


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``name`` in any case, or an empty string."""
    name_of_folded: dict[str, str] = {}
    for known_name in map(str, known):
        name_of_folded.setdefault(known_name.casefold(), known_name)
    folded = str(name)[:_LONGEST_NAME].casefold()
    near = difflib.get_close_matches(folded, name_of_folded, n=1, cutoff=0.6)
    return f" Did you mean {name_of_folded[near[0]]!r}?" if near else ""


def message_line(message: str) -> str:
    """Return a message that quotes a file as one printable line, shortened in the middle."""
    if len(message) > _LONGEST_MESSAGE:
        beginning = message[: _LONGEST_MESSAGE * 3 // 4]
        end = message[-_LONGEST_MESSAGE // 5 :]
        message = f"{beginning} [...] {end}"
    return printable(message)


def printable(text: str, keep: str = "") -> str:
    """Escape control and invisible characters, except those in ``keep``."""
    characters = []
    for character in text:
        if character.isprintable() or character in keep:
            characters.append(character)
        else:
            characters.append(ascii(character)[1:-1])
    return "".join(characters)
