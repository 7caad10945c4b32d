"""Which training the values of a training file describe, and whether their keys are those of that training.

A key is ``GROUP.KEY``, such as ``optim.lr``, or stands alone, such as ``device``. The trainings
themselves are :data:`dinoneck.training.config.TRAININGS`. No torch is imported here.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from dinoneck.errors import ConfigError
from dinoneck.training.recipe import Config, unknown_key


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        config: the class that describes it.
        function: the function that does it.
        learns: what it learns.
        data_keys: keys of ``data`` that no other training has, of which one names its data; none:
            values without the data keys of other trainings describe it.
        missing: the message for values without these keys.
        data_reader: the function that reads its data alone; empty of heads of images.
    """

    config: type[Config]
    function: str
    learns: str
    data_keys: tuple[str, ...] = ()
    missing: str = ""
    data_reader: str = ""

    def names_in(self, group: str) -> list[str]:
        """Return the names of the keys in a group; with an empty text, those of groups and of keys without one."""
        names: dict[str, None] = {}
        for key in keys_of(self.config):
            first, _, second = key.partition(".")
            if not group:
                names[first] = None
            elif first == group and second:
                names[second] = None
        return list(names)

    def has(self, key: str) -> bool:
        """Return whether it has a key, or a group."""
        group, _, name = key.rpartition(".")
        return name in self.names_in(group)


@dataclass(frozen=True)
class Trainings:
    """Several trainings, of which the keys of ``data`` choose one.

    Attributes:
        default: the training of values without the data of the others.
        others: in the order in which their data decides.
    """

    default: Training
    others: tuple[Training, ...]

    @property
    def all(self) -> tuple[Training, ...]:
        """All trainings, the default first."""
        return (self.default, *self.others)

    def of_data(self, data_keys: Iterable[str]) -> Training:
        """Return the training that keys of ``data`` describe."""
        named = set(data_keys)
        for training in self.others:
            if named.intersection(training.data_keys):
                return training
        return self.default

    def of_values(self, values: Mapping[str, Any]) -> Training:
        """Return the training that nested plain values describe."""
        return self.of_data(_named_data(values))

    def of_config(self, config: Config) -> Training:
        """Return the training that a config describes.

        Raises:
            ConfigError: if it describes none, as that of a group.
        """
        for training in self.all:
            if isinstance(config, training.config):
                return training
        names = ", ".join(training.config.__name__ for training in self.all)
        raise ConfigError(f"config is a {type(config).__name__}; expected one of {names}")

    def _of_class(self, config: type[Config]) -> Training:
        """The training that the configs of a class describe."""
        [training] = [item for item in self.all if issubclass(config, item.config)]
        return training

    def with_key(self, key: str) -> list[Training]:
        """Return the trainings that have a key, or a group."""
        return [training for training in self.all if training.has(key)]

    # checks

    def check_class(self, config: object, expected: type[Config]) -> None:
        """Check that a config is of the class that a function takes.

        Raises:
            ConfigError: naming the class that it is of, and the function that takes it.
        """
        if isinstance(config, expected):
            return
        name = expected.__name__
        for training in self.all:
            if isinstance(config, training.config):
                raise ConfigError(
                    f"config is a {type(config).__name__}, which {training.function} takes; expected a "
                    f"{name}"
                )
        raise ConfigError(
            f"config is {type(config).__name__}; expected a {name}: {name}.from_dict, or {name}.read "
            "for a YAML file"
        )

    def check_values(self, values: Mapping[str, Any], config: type[Config], where: str) -> None:
        """Check that nested plain values describe the training of a class, and have no keys of others.

        A key of another training may be there with its default: it is void, as a run without it is
        the same.

        Args:
            values: such as those of a training file.
            config: the class.
            where: what the values are, for the message.

        Raises:
            ConfigError: naming the class and the function of the other training, or the key.
        """
        training = self._of_class(config)
        named_data = _named_data(values)
        described = self.of_values(values)
        if described is not training and described is self.default:
            raise ConfigError(f"{where}: {training.missing}")
        if described is not training:
            key = _first_in(named_data, described.data_keys)
            raise ConfigError(
                f"{where}: data.{key} is {named_data[key]!r}, which a {described.config.__name__} "
                f"describes, for {described.function}"
            )
        for key, value in self._keys_of_others(values, training).items():
            if self._is_void(key, value):
                continue
            if training is self.default:
                raise ConfigError(
                    f"{where}: {key} is {value!r}, and needs {self._data_of(key)}; or leave it out"
                )
            data_key = _first_in(named_data, training.data_keys)
            raise ConfigError(
                f"{where}: {key} is {value!r}, and has no effect with data.{data_key}; leave it out"
            )
        self._check_spelling(values, training, where)

    def _check_spelling(self, values: Mapping[str, Any], training: Training, where: str) -> None:
        """Reject a key that no training has; the message proposes the nearest key of any training."""
        for key in self._flat(values):
            group, _, name = key.rpartition(".")
            known = training.names_in(group)
            if not known or self.with_key(key):
                continue
            candidates = []
            for other in self.all:
                candidates += other.names_in(group)
            message = unknown_key(group, name, known=known, candidates=candidates)
            raise ConfigError(f"{where}: {message}")

    def _data_of(self, key: str) -> str:
        """The data that a key needs, and its flags, in words."""
        names: list[str] = []
        for training in self.with_key(key):
            names += training.data_keys
        flags = " or ".join(f"--{name}" for name in names)
        return f"{' or '.join(f'data.{name}' for name in names)} ({flags})"

    # void keys

    def without_void_keys(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return nested plain values without the void keys of other trainings than the one that they describe.

        Reports and unfinished runs of version 0.3 hold the keys of all trainings.
        """
        values = with_present_keys(values, "the record")
        training = self.of_values(values)
        void = set()
        for key, value in self._keys_of_others(values, training).items():
            if self._is_void(key, value):
                void.add(key)
        kept: dict[str, Any] = {}
        for name, content in values.items():
            if name in void:
                continue
            if not isinstance(content, Mapping):
                kept[name] = content
                continue
            kept_keys = {}
            for key, value in content.items():
                if f"{name}.{key}" not in void:
                    kept_keys[key] = value
            is_of_others = not training.has(name) and bool(self.with_key(name))
            if kept_keys or not is_of_others:  # an empty group of another training is void
                kept[name] = kept_keys
        return kept

    def _keys_of_others(self, values: Mapping[str, Any], training: Training) -> dict[str, Any]:
        """The keys, and what they hold, that other trainings have and this one has not."""
        of_others = {}
        for key, value in self._flat(values).items():
            if not training.has(key) and self.with_key(key):
                of_others[key] = value
        return of_others

    def _is_void(self, key: str, value: Any) -> bool:
        """Whether a run without the key is the same: it holds its default, or nothing."""
        if value is None:
            return True
        for training in self.with_key(key):
            default = keys_of(training.config).get(key)
            if _as_list(value) == _as_list(default):
                return True
        return False

    def _flat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Nested plain values by their keys; ``head``, ``tasks`` and ``compositions`` are no groups."""
        flat: dict[str, Any] = {}
        for name, content in values.items():
            is_group = any(training.names_in(name) for training in self.all)
            if is_group and isinstance(content, Mapping):
                for key, value in content.items():
                    flat[f"{name}.{key}"] = value
            else:
                flat[str(name)] = content
        return flat


def with_present_keys(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return nested plain values with the key ``with_ridge`` of 0.3 under its present name.

    ``with_ridge: true`` is ``predict_with: average``; ``false`` was its default, and is left out.

    Raises:
        ConfigError: if it is neither, or ``predict_with`` is there too.
    """
    if "with_ridge" not in values:
        return values
    with_ridge = values["with_ridge"]
    if not isinstance(with_ridge, bool):
        raise ConfigError(
            f"{where}: with_ridge is {with_ridge!r}; expected true or false. It is called "
            "predict_with now: predict_with: average"
        )
    if values.get("predict_with") is not None:
        raise ConfigError(
            f"{where}: with_ridge is {with_ridge}, and predict_with is "
            f"{values['predict_with']!r}; leave with_ridge out"
        )
    present = {key: value for key, value in values.items() if key != "with_ridge"}
    if with_ridge:
        present["predict_with"] = "average"
    return present


def keys_of(config: type[Config]) -> dict[str, Any]:
    """Return the keys of a training file with their plain defaults.

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


def _first_in(named_data: Mapping[str, Any], data_keys: Iterable[str]) -> str:
    """The first of several keys that named data holds."""
    return next(key for key in data_keys if key in named_data)


def _as_list(value: Any) -> Any:
    """A value as YAML and JSON hold it: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value
