"""A module remembers its constructor arguments; the signature is the schema, and one codec turns it into JSON.

Constructors of :class:`Configured` classes take plain values, plain dataclasses such as Task, and registered modules.
Before the constructor's body runs, arguments are converted to one normal form by their annotations (a list becomes a
tuple, a NumPy integer an int). A value of another type is refused with the argument's name.

In JSON, tuples are lists, ``dict[int, ...]`` is a list of pairs, a dataclass is a dict with its class name under
``"$"``, a module ``{"type": its registered name, "config": {...}}``. Numbers that are not finite are refused.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Union, cast

from dinoneck import registry
from dinoneck.errors import ConfigError, RegistryError, did_you_mean

if TYPE_CHECKING:
    from dinoneck.checkpoint.hub import Pushed

TAG = "$"
Migration = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
Migrations = Mapping[int, Migration]
_FACTORY_ARGUMENTS = frozenset({"self", "device", "dtype"})


class Configured:
    """Mixin that records a class's constructor arguments as JSON-able ``config``.

    ``device`` and ``dtype`` are torch's factory keywords and not part of the configuration.

    Attributes:
        checkpoint_version: of the arguments and the parameters' names, as head files hold them. Increment it when one
            is added, renamed or removed, here or in a class that this one builds; a subclass has its own.
        checkpoint_migrations: version n -> a pure function ``(config, tensors) -> (config, tensors)`` that turns what a
            file of version n holds into version n + 1; tensors by name, LoRA's excluded.
        omitted_arguments: optional arguments of a later version that ``config`` leaves out at their default: a module
            that does not use them has the configuration it had before, and needs no new ``checkpoint_version``.

    Raises:
        ConfigError: at construction, if an argument has the wrong type or is not finite.
    """

    omitted_arguments: ClassVar[tuple[str, ...]] = ()
    checkpoint_version: ClassVar[int] = 1
    checkpoint_migrations: ClassVar[Migrations] = types.MappingProxyType({})
    _config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__dict__["__init__"])  # type: ignore[method-assign]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments in their JSON-able normal form, every default spelled out."""
        return copy.deepcopy(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, device: Any = None, dtype: Any = None) -> Self:
        """Build the object that ``config`` describes.

        Raises:
            ConfigError: if a key is unknown or missing, or a value has the wrong type.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"the configuration of {cls.__name__} is {config!r}; expected a dict")
        known = fields_of(cls)
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"{cls.__name__} has no argument {key!r}.{did_you_mean(key, known)} It takes: {', '.join(known)}"
                )
        missing = [name for name, field in known.items() if field.default is field.empty and name not in config]
        if missing:
            raise ConfigError(f"the configuration of {cls.__name__} lacks {', '.join(missing)}")
        factory = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        return cls(**config, **factory)

    def save_pretrained(self, folder_or_file: str | os.PathLike[str], *, backbone: Any = None, **record: Any) -> None:
        """Save the module in one checked file, see :meth:`dinoneck.HeadCheckpoint.from_module`.

        Args:
            folder_or_file: a folder, which then holds ``head.safetensors``; or a file that ends in ``.safetensors``.
            backbone: the backbone it was trained on, or its record; a head without one warns.
            **record: ``preprocess``, ``training``, ``license``, ``tta`` and ``extra`` as there.

        Raises:
            CheckpointError: if the module cannot be saved, or the file cannot be written.
            RegistryError: if the name of an unregistered class is taken, see :func:`dinoneck.register`.
        """
        from dinoneck.checkpoint import pretrained

        pretrained.save(self, folder_or_file, backbone, record)

    def push_to_hub(self, repo_id: str, *, backbone: Any = None, **options: Any) -> Pushed:
        """Publish the module, with its page, in one commit of a hub repository.

        Args:
            repo_id: ``user/name``.
            backbone: as for :meth:`save_pretrained`.
            **options: the record as there, and the options of :meth:`dinoneck.HeadCheckpoint.push_to_hub`.

        Raises:
            CheckpointError: as there.
        """
        from dinoneck.checkpoint import pretrained

        return pretrained.push(self, repo_id, backbone, options)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike[str], revision: str | None = None) -> Self:
        """Load a module of this class, or of a subclass, in eval mode on the CPU; every byte of the file is checked.

        Args:
            path_or_repo: a folder or file of :meth:`save_pretrained`, or a hub repository ``user/name``.
            revision: branch, tag or commit of a hub repository.

        Raises:
            CheckpointError: if the file is damaged, or holds a module of another class.
        """
        from dinoneck.checkpoint import pretrained

        return cast("Self", pretrained.load(cls, path_or_repo, revision))


def fields_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the configuration arguments of a class: name -> parameter, ``device`` and ``dtype`` left out."""
    parameters = inspect.signature(cls.__init__).parameters.items()  # type: ignore[misc]
    return {name: parameter for name, parameter in parameters if name not in _FACTORY_ARGUMENTS}


def _recording(original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.cache
    def annotations() -> dict[str, Any]:
        return typing.get_type_hints(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{owner}: {error}") from None
        bound.apply_defaults()
        hints = annotations()
        plain = {
            name: normal(hints.get(name, Any), value, f"{owner}({name}=)")
            for name, value in bound.arguments.items()
            if name not in _FACTORY_ARGUMENTS
        }
        factory = {name: bound.arguments[name] for name in ("device", "dtype") if name in bound.arguments}
        original(self, **plain, **factory)
        if type(self).__init__ is __init__:  # only the outermost constructor records its arguments
            default = {name: signature.parameters[name].default for name in self.omitted_arguments if name in plain}
            written = {name: value for name, value in plain.items() if name not in default or value != default[name]}
            object.__setattr__(self, "_config", {name: encode(value) for name, value in written.items()})
            if hasattr(type(self), "_hub_mixin_config"):  # of huggingface_hub's ModelHubMixin, which saves it
                self._hub_mixin_config = self.config

    return __init__


def encode(value: Any) -> Any:
    """Return the JSON form of a value in normal form."""
    if isinstance(value, Configured):
        return {"type": registry.name_of(type(value)), "config": value.config}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {TAG: type(value).__name__, **{own.name: encode(getattr(value, own.name)) for own in _written(value)}}
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return [[key, encode(item)] for key, item in value.items()]
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def _written(value: Any) -> list[dataclasses.Field[Any]]:
    """The fields that are written; later ones with ``omit_default`` only where they differ from their default.

    So what does not use them is written as before, and has one form.
    """
    return [
        own
        for own in dataclasses.fields(value)
        if not (own.metadata.get("omit_default") and getattr(value, own.name) == own.default)
    ]


def decode(annotation: Any, value: Any, where: str = "value") -> Any:
    """Return the normal form of a JSON value, the inverse of :func:`encode`."""
    return normal(annotation, value, where)


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
    if annotation in _SCALARS:
        return _scalar(annotation, value, where)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _dataclass(annotation, value, where)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(annotation, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(annotation, value, where)
    raise TypeError(f"{where}: the codec does not know the annotation {annotation!r}")


def is_part(value: Any) -> bool:
    """Whether this is the JSON form of a module."""
    return isinstance(value, Mapping) and set(value) == {"type", "config"} and isinstance(value["config"], Mapping)


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
    if not (isinstance(value, kinds) and isinstance(value, Configured)):
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
    members = typing.get_args(annotation)
    if value is None and type(None) in members:
        return None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int in members:
        return int(value)  # an integer stays one where the annotation allows both
    reasons = []
    for member in members:
        try:
            return normal(member, value, where)
        except ConfigError as error:
            reasons.append(error)
    if len([member for member in members if member is not type(None)]) == 1 and value is not None:
        raise next(error for member, error in zip(members, reasons, strict=True) if member is not type(None))
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


def at_most(maximum: int, **values: int) -> None:
    """Check that every named number is ``maximum`` or less.

    Raises:
        ConfigError: naming the first that is not.
    """
    for name, value in values.items():
        if value > maximum:
            raise ConfigError(f"{name} is {value}; expected {maximum} or less")
