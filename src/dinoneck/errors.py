"""Everything dinoneck raises on purpose: one family, so that one ``except`` catches it.

Each child also is a builtin exception, so code that knows nothing of dinoneck catches it too. A
message states what was wrong (with the values), what was expected, which argument or file it came
from and what to do.
"""

from __future__ import annotations

import difflib
import importlib.util  # noqa: TID251 - finds a package, and imports none
import sys
from collections.abc import Iterable, Mapping

_LONGEST = 2000  # of messages and of names that are compared
_LONGEST_VALUE = 80  # characters of a value in a message


class DinoneckError(Exception):
    """Parent of every error that dinoneck raises on purpose."""


class GridError(DinoneckError, ValueError):
    """An image size, a patch grid and a number of tokens do not fit together."""


class ShapeError(DinoneckError, ValueError):
    """A tensor has another shape, dtype or content than the module was built for."""


class ConfigError(DinoneckError, ValueError):
    """A constructor argument or a configuration value is unknown, mistyped or out of range."""


class RegistryError(DinoneckError, LookupError):
    """A ``head_type`` is not registered, or cannot be registered."""


class BackboneError(DinoneckError, RuntimeError):
    """A backbone is unknown, cannot be loaded, or its weights do not fit."""


class StoreError(DinoneckError, OSError):
    """A feature store cannot be created, opened, read or written."""


class DataError(DinoneckError, ValueError):
    """An image, a table or a target value cannot be used."""


class BusyError(DinoneckError, RuntimeError):
    """The queue is full or closed; the request itself is valid."""


class CheckpointError(DinoneckError, OSError):
    """A checkpoint cannot be written, or was refused while reading.

    Attributes:
        step: the step of reading or writing that refused, one of ``file, header, json, schema,
            registry, config, tensors, digest, finite, pairing, write, hub``.
    """

    def __init__(self, message: str, *, step: str = "file") -> None:
        super().__init__(_plain(message))
        self.step = step


class Refusal(DinoneckError):
    """A request that the HTTP service refuses.

    Args:
        status: HTTP status.
        code: a fixed word that clients may rely on.
        sentence: the value, what was expected and the remedy.
        retry_after: seconds after which the same request may succeed; None = never.
    """

    def __init__(
        self, status: int, code: str, sentence: str, retry_after: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> dict[str, str]:
        """Return the JSON body."""
        return {"error": str(self), "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return the extra headers."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def missing_extra(package: str, extra: str) -> ImportError:
    """Return the error for a package that an extra brings and that is not installed."""
    return ImportError(
        f"{package} is not installed; it comes with an extra: pip install 'dinoneck[{extra}]'"
    )


def check_installed(package: str, extra: str, module: str | None = None) -> None:
    """Check that a package of an extra is installed, without importing it.

    Args:
        package: its name on the index.
        extra: that brings it.
        module: the name that is imported; None = that of the package.

    Raises:
        ImportError: naming the extra.
    """
    name = module or package
    # None in sys.modules blocks an import, and find_spec raises for it
    is_blocked = name in sys.modules and sys.modules[name] is None
    if is_blocked or importlib.util.find_spec(name) is None:  # noqa: TID251
        raise missing_extra(package, extra)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def reason_of(error: BaseException) -> str:
    """Return the message of an error; of an OSError without its number and path."""
    return getattr(error, "strerror", None) or str(error)


def some_of(names: Iterable[str], shown: int) -> str:
    """Return the first ``shown`` of the sorted names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:shown]) + (
        f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    )


def counted(number: int, what: str) -> str:
    """Return a number of things in words: ``1 image``, ``3 images``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


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
    folded = str(name)[:_LONGEST].casefold()
    near = difflib.get_close_matches(folded, name_of_folded, n=1, cutoff=0.6)
    return f" Did you mean {name_of_folded[near[0]]!r}?" if near else ""


def _plain(message: str) -> str:
    """One line for a message that quotes a file: shortened in the middle, control characters spelled out."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST * 3 // 4]} [...] {message[-_LONGEST // 5 :]}"
    return printable(message)


def printable(text: str, keep: str = "") -> str:
    """Return a text with every sign spelled out that steers a terminal, or hides, but for those to keep."""
    return "".join(
        sign if sign.isprintable() or sign in keep else ascii(sign)[1:-1] for sign in text
    )
