"""The base of configurations: Python, flags and YAML pass the same check. No torch is imported here."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from dinoneck.errors import ConfigError, did_you_mean

_PLAIN = {
    "`": "",
    "float": "number",
    "int": "whole number",
    "str": "text",
    "array": "list",
    "object": "keys with values",
    "null": "none",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plain values that are checked when they are set, however that happens.

    Numbers of NumPy become plain ones, lists become tuples.

    Raises:
        ConfigError: if a value is of another type, out of range, or not finite.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            value = value.item() if getattr(value, "ndim", None) == 0 else value
            try:
                checked = msgspec.convert(value, hint)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{name} is {value!r}: {_in_words(error, value, hint)}") from None
            if isinstance(checked, float) and not math.isfinite(checked):
                raise ConfigError(f"{name} is {value!r}; expected a finite number")
            msgspec.structs.force_setattr(self, name, checked)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the config") -> Self:
        """Return the config of nested plain values, such as those of :meth:`to_dict`; None = the defaults.

        Raises:
            ConfigError: naming ``where`` and the key.
        """
        try:
            made: Self = _read(cls, values, "")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values: what a report keeps and :meth:`from_dict` reads."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values in these fields.

        Raises:
            ConfigError: if a field is unknown, or its value does not fit.
        """
        _check_keys(type(self), fields, "")
        return type(self)(**{name: getattr(self, name) for name in self.__struct_fields__} | fields)


def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _read(cls: type[Any], values: Any, prefix: str) -> Any:
    """A config of nested values; keys are named with those of the groups above them."""
    if values is None:
        return cls()
    _check_keys(cls, values, prefix)
    fields = {}
    for key, value in values.items():
        hint, name = typing.get_type_hints(cls)[key], f"{prefix}{key}"
        group, is_table = _group_of(hint)
        if value is None and typing.get_origin(hint) is dict:  # an empty section of a file
            continue
        if group is not None and is_table:
            if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value):
                raise ConfigError(f"{name} is {value!r}; expected texts as keys, such as {name}: {{NAME: {{...}}}}")
            fields[key] = {entry: _read(group, own, f"{name}.{entry}.") for entry, own in value.items()}
        else:
            fields[key] = value if group is None else _read(group, value, f"{name}.")
    try:
        return cls(**fields)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _check_keys(cls: type[Any], values: Any, prefix: str) -> None:
    known = _hints(cls)
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{name} is {values!r}; expected keys with values, such as {name}: {{KEY: VALUE}}")
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ConfigError(f"unknown key {f'{prefix}{key}'!r}.{hint} Known: {', '.join(known)}")


def _group_of(hint: Any) -> tuple[type[Config] | None, bool]:
    """The config that a field holds, and whether it holds several by name."""
    last = typing.get_args(hint)[-1] if typing.get_origin(hint) is dict else hint
    is_group = isinstance(last, type) and issubclass(last, Config)
    return (last, last is not hint) if is_group else (None, False)


def _in_words(error: Exception, value: Any, hint: Any) -> str:
    """What is expected, of msgspec's message; a choice that is close to the value."""
    choices = [word for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is typing.Literal
               for word in typing.get_args(part)]  # fmt: skip
    if choices and isinstance(value, str):
        return f"expected one of {', '.join(map(str, choices))}.{did_you_mean(value, map(str, choices))}"
    if isinstance(value, str) and not value.strip():
        return "expected a text that is not blank"
    text = str(error).partition(" - at ")[0]
    for word, plain in _PLAIN.items():
        text = text.replace(word, plain)
    return text[:1].lower() + text[1:]
