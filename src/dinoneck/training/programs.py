"""Which of the trainings a training file describes, and whether its keys are those of that training.

No torch is imported here.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from dinoneck.errors import ConfigError
from dinoneck.training.config import (
    AnyConfig,
    RunConfig,
    TrainConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
)
from dinoneck.training.recipe import Config
from dinoneck.yaml_file import read_yaml

AnyRun = TypeVar("AnyRun", bound=RunConfig)


class Program(NamedTuple):
    """A training.

    Attributes:
        config: the class that describes it.
        data_keys: keys of ``data`` of which one names its data, and no other training has; none: the
            training of a file without such keys.
        function: the function that does it.
        learns: what it learns.
    """

    config: type[RunConfig]
    data_keys: tuple[str, ...]
    function: str
    learns: str


HEADS = Program(
    TrainConfig,
    data_keys=(),
    function="dinoneck.training.train",
    learns="numbers, classes or masks",
)
INSTANCES = Program(
    TrainInstancesConfig,
    data_keys=("instances", "panoptic"),
    function="dinoneck.detection.train_instances",
    learns="objects",
)
DETECTOR = Program(
    TrainDetectorConfig,
    data_keys=("boxes",),
    function="dinoneck.detection.train_detector",
    learns="boxes",
)
PROGRAMS = (HEADS, INSTANCES, DETECTOR)
_MISSING = {
    TrainInstancesConfig: "data.instances is missing, and so is data.panoptic; expected the COCO file "
    "of objects with masks, or of panoptic segments (--instances or --panoptic)",
    TrainDetectorConfig: "data.boxes is missing; expected the COCO file of the training images "
    "(--boxes)",
}


def program_of(data_keys: Iterable[str]) -> Program:
    """Return the training that keys of ``data`` describe; boxes go before objects."""
    given = set(data_keys)
    for program in (DETECTOR, INSTANCES):
        if given.intersection(program.data_keys):
            return program
    return HEADS


def read_config(path: str | os.PathLike[str]) -> AnyConfig:
    r"""Read a training file; the data that it names decides which training it describes.

    ``data.boxes`` describes a :class:`TrainDetectorConfig`, ``data.instances`` or ``data.panoptic`` a
    :class:`TrainInstancesConfig`, and other data a :class:`TrainConfig`.

    Raises:
        ConfigError: if the file cannot be read, a key is unknown, stands twice or has no effect on
            that training, or a value is wrong.

    Examples:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "run.yaml")
        ...     _ = path.write_text("data: {boxes: boxes.json}\noptim: {epochs: 20, lr: 1e-4}\n")
        ...     config = read_config(path)
        >>> type(config).__name__, config.optim.lr
        ('TrainDetectorConfig', 0.0001)
    """
    return config_of(read_yaml(path), str(path))


def config_of(values: Mapping[str, Any], where: str) -> AnyConfig:
    """Return the config of the training that nested plain values describe.

    Raises:
        ConfigError: naming ``where``, what the values are, and the key.
    """
    program = program_of(_named_data(values))
    config = program.config.from_dict(values, where)
    return typing.cast("AnyConfig", config)


def check_class(config: object, expected: type[AnyRun]) -> AnyRun:
    """Return a config of the class that a function takes.

    Raises:
        ConfigError: naming the class that it is of, and the function that takes it.
    """
    if isinstance(config, expected):
        return config
    name = expected.__name__
    for program in PROGRAMS:
        if isinstance(config, program.config):
            raise ConfigError(
                f"config is a {type(config).__name__}, which {program.function} takes; expected a "
                f"{name}"
            )
    raise ConfigError(
        f"config is {type(config).__name__}; expected a {name}: {name}.from_dict, or {name}.read for "
        "a YAML file"
    )


def check_program(values: Mapping[str, Any], config: type[RunConfig], where: str) -> None:
    """Refuse the values of another training than a class describes, and values that other trainings use.

    Args:
        values: nested plain values, such as those of a training file.
        config: the class.
        where: what they are, for the message.

    Raises:
        ConfigError: naming the class and the function of the other training, or the key.
    """
    named_data = _named_data(values)
    described = program_of(named_data)
    if described.config is not config:
        if described is HEADS:
            raise ConfigError(f"{where}: {_MISSING[config]}")
        key = next(key for key in described.data_keys if key in named_data)
        name = described.config.__name__
        raise ConfigError(
            f"{where}: data.{key} is {named_data[key]!r}, which a {name} describes, for "
            f"{described.function}"
        )
    for key, value in _keys_of_others(values, config).items():
        if _is_default(key, value):
            continue
        if described is HEADS:
            raise ConfigError(
                f"{where}: {key} is {value!r}, and needs {_data_of(key)}; or leave it out"
            )
        named = next(name for name in described.data_keys if name in named_data)
        raise ConfigError(
            f"{where}: {key} is {value!r}, and has no effect with data.{named}; leave it out"
        )


def without_void_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a training without keys of other trainings that hold their defaults.

    Reports and unfinished runs of version 0.3 hold the keys of all trainings.
    """
    config = program_of(_named_data(values)).config
    void = set()
    for key, value in _keys_of_others(values, config).items():
        if _is_default(key, value):
            void.add(key)
    kept: dict[str, Any] = {}
    for group, content in values.items():
        if group in void:
            continue
        if not isinstance(content, Mapping):
            kept[group] = content
            continue
        kept_keys = {key: value for key, value in content.items() if f"{group}.{key}" not in void}
        if kept_keys or not content or group in config.__struct_fields__:
            kept[group] = kept_keys
    return kept


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


def programs_with(key: str) -> list[Program]:
    """Return the trainings that have a key, or a group."""
    having = []
    for program in PROGRAMS:
        keys = keys_of(program.config)
        if key in keys or any(name.startswith(f"{key}.") for name in keys):
            having.append(program)
    return having


def _named_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``data`` that hold something."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return {}
    return {key: value for key, value in data.items() if value is not None}


def _keys_of_others(values: Mapping[str, Any], config: type[RunConfig]) -> dict[str, Any]:
    """The keys that other trainings have and this one has not, and their values."""
    of_others: dict[str, Any] = {}
    for program in PROGRAMS:
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
        elif group not in config.__struct_fields__ and programs_with(group):
            found[group] = content
    return found


def _is_default(key: str, value: Any) -> bool:
    """Whether a run without the key is the same: it holds its default, or is an empty group."""
    if value is None:
        return True
    for program in programs_with(key):
        default = keys_of(program.config).get(key)
        if _as_list(value) == _as_list(default):
            return True
    return False


def _as_list(value: Any) -> Any:
    """A value as YAML and JSON hold it: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value


def _data_of(key: str) -> str:
    """The data that a key needs, and its flags, in words."""
    names: list[str] = []
    for program in programs_with(key):
        names += program.data_keys
    flags = " or ".join(f"--{name}" for name in names)
    return f"{' or '.join(f'data.{name}' for name in names)} ({flags})"
