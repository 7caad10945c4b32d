"""What a value of a training file may be: each kind says what it expects, and reads the value or refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dinoneck.errors import ConfigError, did_you_mean

CV2_INTERPOLATION = {"INTER_AREA": "area", "INTER_CUBIC": "bicubic", "INTER_LINEAR": "bilinear"}
_LARGE = 10**300
_YAML_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        expected: in words, for messages.
        fits: whether a value is of this kind.
        turned: what is kept of it.
        names: the words it may be, for a hint.
        nullable: ``null`` is a value of its own; elsewhere it means that the file says nothing.
    """

    expected: str
    fits: Callable[[Any], bool]
    turned: Callable[[Any], Any] = lambda value: value
    names: tuple[str, ...] = ()
    nullable: bool = False

    def read(self, where: str, value: Any) -> Any:
        """Return what is kept of ``value``.

        Raises:
            ConfigError: naming the place, the value and what was expected.
        """
        if value is None and self.nullable:
            return None
        if not self.fits(value):
            kind = next((f" ({name})" for type_, name in _YAML_NAMES.items() if type(value) is type_), "")
            hint = did_you_mean(value, self.names) if isinstance(value, str) else ""
            raise ConfigError(f"{where} is {value!r}{kind}; expected {self.expected}.{hint}")
        return self.turned(value)

    def or_null(self) -> Kind:
        """Return the kind that takes ``null`` too."""
        return Kind(f"{self.expected}, or null", self.fits, self.turned, self.names, nullable=True)


def whole(low: int, high: int | None = None) -> Kind:
    """Return the kind of whole numbers from ``low``."""
    return Kind(
        f"a whole number of {low} or more" if high is None else f"a whole number {low} ... {high}",
        lambda value: _is_whole(value) and value >= low and (high is None or value <= high),
    )


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Kind:
    """Return the kind of finite numbers ``low`` ... ``high``; ``above``: ``low`` itself is none of them."""
    words = "a finite number"
    if low > -math.inf:
        words += f" above {low:g}" if above else f" of {low:g} or more"
    words += f", {high:g} at most" if high < math.inf else ""
    return Kind(
        words,
        lambda value: _is_number(value) and low <= value <= high and not (above and value == low),
        float,
    )


def one_of(*names: str) -> Kind:
    """Return the kind of these words."""
    return Kind(f"one of {', '.join(names)}", lambda value: value in names and isinstance(value, str), names=names)


def several(kind: Kind, what: str, *, single: bool = False) -> Kind:
    """Return the kind of lists of values, kept as tuples; ``single``: one value is a list of one."""
    return Kind(
        f"a list of {what}" + (", or one" if single else ""),
        lambda value: (
            all(kind.fits(item) for item in value) and len(value) > 0
            if isinstance(value, list | tuple)
            else single and kind.fits(value)
        ),
        lambda value: tuple(kind.turned(item) for item in (value if isinstance(value, list | tuple) else [value])),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) and abs(value) < _LARGE) or (isinstance(value, float) and math.isfinite(value))


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value]
    return len(sides) in ((2,) if isinstance(value, list | tuple) else (1,)) and all(
        _is_whole(side) and side >= 1 for side in sides
    )


COUNT = whole(1, 1_000_000)
SEED = whole(0, 2**32 - 1)
TEXT = Kind("text", lambda value: isinstance(value, str) and bool(value.strip()))
TEXTS = several(TEXT, "names", single=True)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
SHARE = number(0.0, 1.0)
SIZE = Kind(
    "pixels: one whole number, or [height, width]",
    _is_size,
    lambda value: tuple(value) if isinstance(value, list | tuple) else (value, value),
)
INTERPOLATION = Kind(
    f"one of {', '.join([*CV2_INTERPOLATION, *CV2_INTERPOLATION.values()])}",
    lambda value: isinstance(value, str) and (value in CV2_INTERPOLATION or value in CV2_INTERPOLATION.values()),
    lambda value: CV2_INTERPOLATION.get(value, value),
    (*CV2_INTERPOLATION, *CV2_INTERPOLATION.values()),
)
ANY = Kind("anything", lambda value: True)
