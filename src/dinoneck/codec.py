"""Values of constructor arguments to their JSON form and back.

``normal`` converts a value to the one normal form that its annotation allows: a list becomes a
tuple, a NumPy integer an int. ``encode`` writes the normal form as JSON: tuples are lists, integer
keys are text, a dataclass is a dict with its class name under ``"$"``, a module is
``{"type": its registered name, "config": {...}}``. ``normal`` reads that form too. Numbers that are
not finite are rejected.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

import msgspec

from dinoneck import registry
from dinoneck.errors import ConfigError, RegistryError
from dinoneck.text import did_you_mean

TAG = "$"
OMIT_DEFAULT = types.MappingProxyType({"omit_default": True})
"""The metadata of a field of a dataclass whose default has no JSON: files from before it keep their bytes."""
_EXACT = (str, int, types.NoneType)  # values that are their own normal form
_UNIONS = (Union, types.UnionType)
_LISTS = (Sequence, list, tuple)
_DICTS = (Mapping, dict)
# annotations in the words of messages, for one value and for the items of a list
_ONE = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    types.NoneType: "None",
    Any: "a plain value",
}
_MANY = {bool: "True or False", int: "integers", float: "numbers", str: "texts", Any: "values"}


def encode(value: Any) -> Any:
    """Return the JSON form of a value in normal form, the inverse of :func:`normal`."""
    if hasattr(type(value), "from_config"):
        return {"type": registry.name_of(type(value)), "config": value.config}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {TAG: type(value).__name__}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.metadata.get("omit_default") and item == field.default:
                continue
            record[field.name] = encode(item)
        return record
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def normal(annotation: Any, value: Any, where: str) -> Any:
    """Bring ``value`` to the one normal form that ``annotation`` allows.

    Args:
        annotation: a resolved type that msgspec converts, ``Sequence`` (which becomes a tuple, as
            does a single object where its items are those of a dataclass), dataclasses, classes of
            modules, or a union of these.
        value: a Python value or its JSON form.
        where: what the value is, for messages.

    Raises:
        ConfigError: if the value does not fit.
    """
    members = _members(annotation)
    if members.item_class is not None and isinstance(value, members.item_class):
        value = (value,)
    # by type(), as True is also an int
    if type(value) in members.other_types and isinstance(value, _EXACT):
        return value
    if isinstance(value, members.classes) and (
        hasattr(value, "from_config") or dataclasses.is_dataclass(value)
    ):
        return value
    if isinstance(value, Mapping):
        for cls in members.classes:
            if value.get(TAG) == cls.__name__:
                return _record(cls, value, where)
            if hasattr(cls, "load_state_dict") and is_part(value):
                return _module(cls, value, where)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if members.item_type is not None and is_list:
        item_type = members.item_type
        return tuple(normal(item_type, item, f"{where}[{i}]") for i, item in enumerate(value))
    if members.converted is None:
        raise _unfit(annotation, value, where)
    if annotation is not Any and not _is_plain(value):
        raise _unfit(annotation, value, where)
    # keys of an annotated mapping may be integers; what has no annotation is kept as JSON has it
    keys = str if annotation is Any else str | numbers.Integral
    try:
        return msgspec.convert(_plain(value, where, keys), members.converted, str_keys=True)
    except msgspec.ValidationError:
        raise _unfit(annotation, value, where) from None


def _unfit(annotation: Any, value: Any, where: str) -> ConfigError:
    """The error for a value that an annotation does not allow."""
    message = f"{where} is {repr(value)[:80]}; expected {_in_words(annotation)}"
    allowed_words: list[str] = []
    for member in _union_members(annotation):
        if typing.get_origin(member) is typing.Literal:
            allowed_words.extend(map(str, typing.get_args(member)))
    hint = did_you_mean(value, allowed_words) if isinstance(value, str) else ""
    if hint:
        message += f".{hint}"
    return ConfigError(message)


def _in_words(annotation: Any) -> str:
    """What an annotation allows: ``'auto', or a list of integers, or None``."""
    if annotation in _ONE:
        return _ONE[annotation]
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in _UNIONS:
        return ", or ".join(_in_words(member) for member in arguments)
    if origin is typing.Literal:
        words = ", ".join(repr(word) for word in arguments)
        return words if len(arguments) == 1 else f"one of {words}"
    if origin is tuple and Ellipsis not in arguments:
        if len(set(arguments)) == 1:
            return f"{len(arguments)} {_many_in_words(arguments[0])}"
        return " and ".join(_in_words(item) for item in arguments)
    if origin in _LISTS:
        return f"a list of {_many_in_words(arguments[0])}"
    if origin in _DICTS:
        keys, values = arguments
        if values is Any:
            return "a dict"
        return f"a dict: {_many_in_words(keys)} -> {_many_in_words(values)}"
    name = getattr(annotation, "__name__", str(annotation))
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _many_in_words(annotation: Any) -> str:
    """The items that a list with this annotation of its items holds: ``lists of integers``."""
    if annotation in _MANY:
        return _MANY[annotation]
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in _LISTS and (origin is not tuple or Ellipsis in arguments):
        return f"lists of {_many_in_words(arguments[0])}"
    if isinstance(annotation, type):
        return f"{annotation.__name__} objects"
    return f"items that are {_in_words(annotation)}"


def _is_plain(value: Any) -> bool:
    """Whether a value has a JSON form of its own; its items are not looked at."""
    if isinstance(value, str | numbers.Real | types.NoneType | Sequence | Mapping):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation itself."""
    if typing.get_origin(annotation) in _UNIONS:
        return typing.get_args(annotation)
    return (annotation,)


class _Members(NamedTuple):
    """The members of a union; another annotation is a union of one.

    Attributes:
        classes: those that are dataclasses and modules.
        other_types: all others.
        item_type: of the items of the first ``Sequence`` among the others; None without one.
        item_class: the item type if it is a dataclass, of which a single object is a list of one.
        converted: the union of the others, as which msgspec converts a value; None without others.
    """

    classes: tuple[type, ...]
    other_types: tuple[Any, ...]
    item_type: Any
    item_class: type | None
    converted: Any


@functools.cache
def _members(annotation: Any) -> _Members:
    members = _union_members(annotation)
    classes = []
    others = []
    item_type = None
    for member in members:
        if hasattr(member, "load_state_dict") or dataclasses.is_dataclass(member):
            classes.append(member)
            continue
        others.append(member)
        if item_type is None and typing.get_origin(member) is Sequence:
            item_type = typing.get_args(member)[0]
    item_class = None
    if isinstance(item_type, type) and dataclasses.is_dataclass(item_type):
        item_class = item_type
        # of Task | Sequence[Task] the list is the normal form
        classes = [cls for cls in classes if cls is not item_class]
    union = Union[tuple(others)] if others else None  # noqa: UP007
    return _Members(
        classes=tuple(classes),
        other_types=tuple(others),
        item_type=item_type,
        item_class=item_class,
        converted=union,
    )


def normalize_fields(record: Any, where: str | None = None, /, **replacements: Any) -> None:
    """Bring the fields of a frozen dataclass to the normal form of their annotations.

    Args:
        record: the dataclass, in its ``__post_init__``.
        where: what the record is, for messages; None = its class.
        **replacements: values that replace those of the record.

    Raises:
        ConfigError: naming the first field that does not fit.
    """
    cls: type = type(record)
    for name, annotation in _hints_of(cls).items():
        value = replacements.get(name, getattr(record, name))
        normalized = normal(annotation, value, f"{where or cls.__name__}: {name}")
        object.__setattr__(record, name, normalized)


def restore(record: Any, state: Any) -> None:
    """Set the state of a frozen dataclass that was pickled: its constructor checks what a file claims.

    Raises:
        ConfigError: if the state is not that of this class, or its constructor refuses a value.
    """
    cls = type(record)
    names = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(state, dict) or not set(state) <= set(names):
        content = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ConfigError(
            f"a pickled {cls.__name__} has the state {str(content)[:200]}; expected a dict of "
            f"{', '.join(names)}"
        )
    try:
        record.__init__(**state)
    except TypeError as error:
        raise ConfigError(f"a pickled {cls.__name__} cannot be restored: {error}") from None


def is_part(value: Any) -> bool:
    """Whether this is the JSON form of a module."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"type", "config"}
        and isinstance(value["config"], Mapping)
    )


def current_config(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a class, and of the modules in it, with the arguments of this version.

    Raises:
        ConfigError: see :meth:`dinoneck.configured.Configured.current_config`.
    """
    if hasattr(cls, "current_config"):
        config = cls.current_config(config)
    return {name: _current_value(value) for name, value in config.items()}


def _current_value(value: Any) -> Any:
    if is_part(value):
        try:
            cls = registry.resolve(value["type"])
        except RegistryError:
            return value  # the constructor names it, or takes it as a plain dict
        return {"type": value["type"], "config": current_config(cls, value["config"])}
    if isinstance(value, list):
        return [_current_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _current_value(item) for key, item in value.items()}
    return value


def _module(kind: type, part: Mapping[str, Any], where: str) -> Any:
    try:
        cls: Any = registry.resolve(part["type"])
    except RegistryError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not issubclass(cls, kind):
        raise ConfigError(
            f"{where} is {part['type']!r} ({cls.__name__}); expected a registered {kind.__name__}"
        )
    return cls.from_config(part["config"])


def _record(cls: type, value: Mapping[str, Any], where: str) -> Any:
    hints = _hints_of(cls)
    fields = {}
    for key, item in value.items():
        if key != TAG:
            fields[key] = normal(hints.get(key, Any), item, f"{where}.{key}")
    try:
        return cls(**fields)
    except TypeError as error:  # a field is unknown or missing
        raise ConfigError(f"{where}: {error}") from None


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any, where: str, keys: Any = str) -> Any:
    """The value without types of NumPy, which msgspec does not know, of finite numbers and with keys of these types."""
    if isinstance(value, _EXACT):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; a finite number was expected")
        return float(value)
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{i}]", keys) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, keys) for key in value):
        converted = {}
        for key, item in value.items():
            converted[_plain(key, where)] = _plain(item, f"{where}[{key!r}]", keys)
        return converted
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    raise ConfigError(
        f"{where} is {repr(value)[:80]}; a plain value (number, string, list, dict) was expected"
    )
