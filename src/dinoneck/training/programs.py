"""Which of several trainings nested plain values describe, and whether their keys are those of that training.

The trainings themselves are :data:`dinoneck.training.config.PROGRAMS`. No torch is imported here.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from dinoneck.errors import ConfigError
from dinoneck.training.recipe import Config

AnyClass = TypeVar("AnyClass", bound=Config)


@dataclass(frozen=True)
class Program:
    """A training.

    Attributes:
        config: the class that describes it.
        function: the function that does it.
        learns: what it learns.
        data_keys: keys of ``data`` of which one names its data, and no other training has; none: the
            training of values without such keys.
        missing: the message for values without these keys.
    """

    config: type[Config]
    function: str
    learns: str
    data_keys: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Programs:
    """Several trainings, of which the keys of ``data`` choose one.

    Attributes:
        default: the training of values without the data of the others.
        others: in the order in which their data decides.
    """

    default: Program
    others: tuple[Program, ...]

    @property
    def all(self) -> tuple[Program, ...]:
        """All trainings, the default first."""
        return (self.default, *self.others)

    def program_of(self, data_keys: Iterable[str]) -> Program:
        """Return the training that keys of ``data`` describe."""
        named = set(data_keys)
        for program in self.others:
            if named.intersection(program.data_keys):
                return program
        return self.default

    def described(self, values: Mapping[str, Any]) -> Program:
        """Return the training that nested plain values describe."""
        return self.program_of(_named_data(values))

    def with_key(self, key: str) -> list[Program]:
        """Return the trainings that have a key, or a group."""
        having = []
        for program in self.all:
            keys = keys_of(program.config)
            if key in keys or any(name.startswith(f"{key}.") for name in keys):
                having.append(program)
        return having

    def check_class(self, config: object, expected: type[AnyClass]) -> AnyClass:
        """Return a config of the class that a function takes.

        Raises:
            ConfigError: naming the class that it is of, and the function that takes it.
        """
        if isinstance(config, expected):
            return config
        name = expected.__name__
        for program in self.all:
            if isinstance(config, program.config):
                raise ConfigError(
                    f"config is a {type(config).__name__}, which {program.function} takes; expected a "
                    f"{name}"
                )
        raise ConfigError(
            f"config is {type(config).__name__}; expected a {name}: {name}.from_dict, or {name}.read "
            "for a YAML file"
        )

    def check_program(self, values: Mapping[str, Any], config: type[Config], where: str) -> None:
        """Refuse the values of another training than a class describes, and values that other trainings use.

        Args:
            values: nested plain values, such as those of a training file.
            config: the class.
            where: what they are, for the message.

        Raises:
            ConfigError: naming the class and the function of the other training, or the key.
        """
        program = next(program for program in self.all if program.config is config)
        described = self.described(values)
        named_data = _named_data(values)
        if described is not program and described is self.default:
            raise ConfigError(f"{where}: {program.missing}")
        if described is not program:
            key = next(key for key in described.data_keys if key in named_data)
            raise ConfigError(
                f"{where}: data.{key} is {named_data[key]!r}, which a {described.config.__name__} "
                f"describes, for {described.function}"
            )
        for key, value in self._keys_of_others(values, config).items():
            if self._is_default(key, value):
                continue
            if program is self.default:
                raise ConfigError(
                    f"{where}: {key} is {value!r}, and needs {self._data_of(key)}; or leave it out"
                )
            data_key = next(name for name in program.data_keys if name in named_data)
            raise ConfigError(
                f"{where}: {key} is {value!r}, and has no effect with data.{data_key}; leave it out"
            )

    def without_void_keys(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a training without keys of other trainings that hold their defaults.

        Reports and unfinished runs of version 0.3 hold the keys of all trainings.
        """
        config = self.described(values).config
        void = set()
        for key, value in self._keys_of_others(values, config).items():
            if self._is_default(key, value):
                void.add(key)
        kept: dict[str, Any] = {}
        for group, content in values.items():
            if group in void:
                continue
            if not isinstance(content, Mapping):
                kept[group] = content
                continue
            kept_keys = {}
            for key, value in content.items():
                if f"{group}.{key}" not in void:
                    kept_keys[key] = value
            is_of_others = group not in config.__struct_fields__ and self.with_key(group)
            if kept_keys or not is_of_others:
                kept[group] = kept_keys
        return kept

    def _keys_of_others(self, values: Mapping[str, Any], config: type[Config]) -> dict[str, Any]:
        """The keys that other trainings have and this one has not, and their values."""
        of_others: dict[str, Any] = {}
        for program in self.all:
            of_others |= keys_of(program.config)
        for key in keys_of(config):
            del of_others[key]
        found: dict[str, Any] = {}
        for group, content in values.items():
            if "." in str(group):  # unknown, such as "optim.lr" in the place of a group
                continue
            if group in of_others:
                found[group] = content
            elif isinstance(content, Mapping):
                for name, value in content.items():
                    if f"{group}.{name}" in of_others:
                        found[f"{group}.{name}"] = value
            elif group not in config.__struct_fields__ and self.with_key(group):
                found[group] = content
        return found

    def _is_default(self, key: str, value: Any) -> bool:
        """Whether a run without the key is the same: it holds its default, or nothing."""
        if value is None:
            return True
        for program in self.with_key(key):
            default = keys_of(program.config).get(key)
            if _as_list(value) == _as_list(default):
                return True
        return False

    def _data_of(self, key: str) -> str:
        """The data that a key needs, and its flags, in words."""
        names: list[str] = []
        for program in self.with_key(key):
            names += program.data_keys
        flags = " or ".join(f"--{name}" for name in names)
        return f"{' or '.join(f'data.{name}' for name in names)} ({flags})"


def keys_of(config: type[Config]) -> dict[str, Any]:
    """Return the keys of a training file with their plain defaults, ``GROUP.KEY`` where they are in a group.

    A key without a default has :data:`msgspec.NODEFAULT`.
    """
    hints = typing.get_type_hints(config)
    keys: dict[str, Any] = {}
    for field in msgspec.structs.fields(config):
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, Config):
            for key, default in keys_of(kind).items():
                keys[f"{field.name}.{key}"] = default
        elif field.default_factory is not msgspec.NODEFAULT:
            keys[field.name] = field.default_factory()
        elif field.default is msgspec.NODEFAULT:
            keys[field.name] = field.default
        else:
            keys[field.name] = msgspec.to_builtins(field.default)
    return keys


def _named_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``data`` that hold something."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return {}
    return {key: value for key, value in data.items() if value is not None}


def _as_list(value: Any) -> Any:
    """A value as YAML and JSON hold it: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value
