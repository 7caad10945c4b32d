"""Values of constructor arguments to their JSON form and back.

``normal`` converts a value to the one normal form that its annotation allows: a list becomes a tuple, a NumPy integer
an int. ``encode`` writes the normal form as JSON: tuples are lists, ``dict[int, ...]`` is a list of pairs, a dataclass
is a dict with its class name under ``"$"``, a module is ``{"type": its registered name, "config": {...}}``. ``normal``
reads that form too. Numbers that are not finite are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from dinoneck import registry
from dinoneck.errors import ConfigError, RegistryError, did_you_mean

TAG = "$"


def encode(value: Any) -> Any:
    """Return the JSON form of a value in normal form, the inverse of :func:`normal`."""
    if value is None or isinstance(value, str | int | float):
        return value
    if _is_configured(value):
        return {"type": registry.name_of(type(value)), "config": value.config}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TAG: type(value).__name__, **entries}
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return [[key, encode(item)] for key, item in value.items()]
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def normal(annotation: Any, value: Any, where: str) -> Any:
    """Bring ``value`` to the one normal form that ``annotation`` allows.

    Args:
        annotation: a resolved type: int, float, str, bool, None, Any, Literal, unions, ``tuple[...]``,
            ``list`` and ``Sequence`` (both become tuples), ``dict[str | int, ...]``, dataclasses, classes of modules.
        value: a Python value or its JSON form.
        where: what the value is, for messages.

    Raises:
        ConfigError: if the value does not fit.
    """
    if annotation in _SCALARS:
        return _scalar(annotation, value, where)
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return _json_value(value, where)
    members = typing.get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)
    kinds = tuple(kind for kind in members if isinstance(kind, type) and hasattr(kind, "load_state_dict"))
    if kinds and (is_part(value) or hasattr(value, "load_state_dict") or len(kinds) == len(members)):
        return _module(kinds, value, where)
    if origin in (Union, types.UnionType):
        return _union(annotation, value, where)
    if origin is Literal:
        if value not in typing.get_args(annotation) or isinstance(value, bool):
            raise _mismatch(annotation, value, where, did_you_mean(value, map(str, typing.get_args(annotation))))
        return value
    if annotation in (None, type(None)):
        if value is not None:
            raise _mismatch(annotation, value, where)
        return None
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _dataclass(annotation, value, where)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(annotation, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(annotation, value, where)
    raise TypeError(f"{where}: the codec does not know the annotation {annotation!r}")


def normalize_fields(record: Any, where: str | None = None, /, **given: Any) -> None:
    """Bring the fields of a frozen dataclass to the normal form of their annotations.

    Args:
        record: the dataclass, in its ``__post_init__``.
        where: what the record is, for messages; None = its class.
        **given: values that replace those of the record.

    Raises:
        ConfigError: naming the first field that does not fit.
    """
    cls: type = type(record)
    for name, annotation in _hints_of(cls).items():
        value = given.get(name, getattr(record, name))
        object.__setattr__(record, name, normal(annotation, value, f"{where or cls.__name__}: {name}"))


def is_part(value: Any) -> bool:
    """Whether this is the JSON form of a module."""
    return isinstance(value, Mapping) and set(value) == {"type", "config"} and isinstance(value["config"], Mapping)


def _is_configured(value: Any) -> bool:
    """Whether this is a module that records its constructor arguments, see :class:`dinoneck.configured.Configured`."""
    return hasattr(type(value), "from_config")


def _module(kinds: tuple[type, ...], value: Any, where: str) -> Any:
    """A module as it is; one in JSON form is built."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    if is_part(value):
        try:
            cls: Any = registry.resolve(value["type"])
        except RegistryError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not issubclass(cls, kinds):
            raise ConfigError(f"{where} is {value['type']!r} ({cls.__name__}); expected a registered {expected}")
        return cls.from_config(value["config"])
    if not (isinstance(value, kinds) and _is_configured(value)):
        raise ConfigError(
            f"{where} is {str(value)[:80]!r} ({type(value).__name__}); expected a registered {expected}, or its "
            "{'type': ..., 'config': {...}}"
        )
    return value


_SCALARS: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real, bool: bool, str: str}


def _scalar(annotation: Any, value: Any, where: str) -> Any:
    if not isinstance(value, _SCALARS[annotation]) or (isinstance(value, bool) and annotation is not bool):
        raise _mismatch(annotation, value, where)
    try:
        number = annotation(value)
    except OverflowError:  # an integer beyond any float
        number = math.inf
    if annotation is float and not math.isfinite(number):
        raise ConfigError(f"{where} is {value}; a finite number was expected")
    return number


def _union(annotation: Any, value: Any, where: str) -> Any:
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if value is None and type(None) in typing.get_args(annotation):
        return None
    for member in sorted(members, key=lambda member: member is float):  # an integer stays one where both are allowed
        try:
            return normal(member, value, where)
        except ConfigError:
            if len(members) == 1:
                raise
    raise _mismatch(annotation, value, where)


def _sequence(annotation: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise _mismatch(annotation, value, where)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise _mismatch(annotation, value, where)
        return tuple(
            normal(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
        )
    return tuple(normal(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))


def _mapping(annotation: Any, value: Any, where: str) -> dict[Any, Any]:
    key_type, item_type = typing.get_args(annotation)
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        pairs = list(value)
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise _mismatch(annotation, value, where)
    result = {normal(key_type, key, f"{where} key"): normal(item_type, v, f"{where}[{key!r}]") for key, v in pairs}
    if len(result) != len(pairs):
        raise ConfigError(f"{where} names a key twice")
    return result


def _dataclass(cls: type, value: Any, where: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping) or value.get(TAG) != cls.__name__:
        raise _mismatch(cls, value, where)
    hints = _hints_of(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    given = {key: item for key, item in value.items() if key != TAG}
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: {cls.__name__} has no field {key!r}.{did_you_mean(key, known)}")
    try:
        return cls(**{key: normal(hints[key], item, f"{where}.{key}") for key, item in given.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _json_value(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _scalar(float, value, where)
    if isinstance(value, tuple | list):
        return [_json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json_value(item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    raise ConfigError(f"{where} is {value!r}; a plain value (number, string, list, dict) was expected")


def _mismatch(annotation: Any, value: Any, where: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{where} is {value!r} ({type(value).__name__}); expected {_spell(annotation)}.{hint}")


def _spell(annotation: Any) -> str:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return "None" if annotation is type(None) else annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("dinoneck.", "")


def at_least(minimum: int, **values: int) -> None:
    """Check that every named number is ``minimum`` or more.

    Raises:
        ConfigError: naming the first that is not.
    """
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{name} is {value}; expected {minimum} or more")
