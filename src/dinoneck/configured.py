"""A module remembers its constructor arguments: the signature is the schema of its configuration.

Constructors of :class:`Configured` classes take plain values, plain dataclasses such as Task, and
registered modules. Before the constructor's body runs, :mod:`dinoneck.codec` converts the arguments
to one normal form by annotation. A value of another type is refused with the argument's name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from dinoneck.codec import encode, normal
from dinoneck.dtypes import float_dtype
from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean

if TYPE_CHECKING:
    from dinoneck.checkpoint.hub import CommitInfo

_FACTORY_ARGUMENTS = frozenset({"self", "device", "dtype"})


class Configured:
    """Mixin that records a class's constructor arguments as JSON-able ``config``.

    The constructor of every subclass is wrapped where the class is defined, so that a class of the
    user's own records its arguments without a decorator that could be forgotten.
    ``device`` and ``dtype`` are torch's factory keywords and not part of the configuration.

    Raises:
        ConfigError: at construction, if an argument has the wrong type or is not finite.
    """

    _config: dict[str, Any]
    _left_out_defaults: ClassVar[tuple[str, ...]] = ()
    """Arguments that the configuration lacks where they have their defaults, so that earlier files keep their bytes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__dict__["__init__"])  # type: ignore[method-assign]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments in their JSON-able normal form.

        Every default is written out, except for arguments that are newer than the files of the
        class.
        """
        return copy.deepcopy(self._config)

    @classmethod
    def current_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration that an earlier version wrote with the arguments of this one.

        A class whose arguments have changed overrides this; :meth:`from_config` calls it.

        Raises:
            ConfigError: if this version has nothing like it.
        """
        return dict(config)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, device: Any = None, dtype: Any = None
    ) -> Self:
        """Build the object that ``config`` describes.

        Raises:
            ConfigError: if a key is unknown or missing, or a value has the wrong type.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"the configuration of {cls.__name__} is {config!r}; expected a dict")
        config = cls.current_config(config)
        parameters = fields_of(cls)
        for key in config:
            if key not in parameters:
                raise ConfigError(
                    f"{cls.__name__} has no argument {key!r}.{did_you_mean(key, parameters)} It "
                    f"takes: {', '.join(parameters)}"
                )
        missing = []
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in config:
                missing.append(name)
        if missing:
            raise ConfigError(f"the configuration of {cls.__name__} lacks {', '.join(missing)}")
        factory = {}
        if device is not None:
            factory["device"] = device
        if dtype is not None:
            factory["dtype"] = dtype
        return cls(**config, **factory)

    def save_pretrained(
        self, folder_or_file: str | os.PathLike[str], *, backbone: Any = None, **record: Any
    ) -> None:
        """Save the module in one checked file, see :meth:`dinoneck.HeadCheckpoint.from_module`.

        Args:
            folder_or_file: a folder, which then holds ``head.safetensors``; or a file that ends in
                ``.safetensors``.
            backbone: the backbone it was trained on, or its record; a head without one warns.
            **record: ``backbone_weights``, ``preprocess``, ``training``, ``license``, ``tta`` and
                ``extra`` as there.

        Raises:
            CheckpointError: if the module cannot be saved, or the file cannot be written.
            RegistryError: if the name of an unregistered class is taken, see
                :func:`dinoneck.register`.
        """
        from dinoneck.checkpoint import pretrained

        pretrained.save(self, folder_or_file, backbone, record)

    def push_to_hub(self, repo_id: str, *, backbone: Any = None, **options: Any) -> CommitInfo:
        """Publish the module, with its page, in one commit of a hub repository.

        Args:
            repo_id: ``user/name``.
            backbone: as for :meth:`save_pretrained`.
            **options: the record as there, and the options of
                :meth:`dinoneck.HeadCheckpoint.push_to_hub`.

        Raises:
            CheckpointError: as there.
        """
        from dinoneck.checkpoint import pretrained

        return pretrained.push(self, repo_id, backbone, options)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], revision: str | None = None
    ) -> Self:
        """Load a module of this class, or of a subclass, in eval mode on the CPU; every byte of the file is checked.

        Args:
            path_or_repo: a folder or file of :meth:`save_pretrained`, or a hub repository
                ``user/name``.
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


def with_defaults(
    cls: type, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a configuration of an earlier version with arguments that the class has since then.

    Args:
        cls: the class, or a subclass, which may have fewer arguments.
        config: as the file has it.
        defaults: new arguments -> their values in the earlier version.
    """
    current = dict(config)
    arguments = fields_of(cls)
    for name, value in defaults.items():
        if name in arguments:
            current.setdefault(name, value)
    return current


def _recording(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wrap the constructor of a class: it checks, normalises and records its arguments.

    Every class in a chain of constructors is wrapped, and each normalises what it is given; only
    the class that is built records its arguments.
    """
    signature = inspect.signature(constructor)

    @functools.cache
    def annotations() -> dict[str, Any]:
        # not before the first call: an annotation may name a class that is defined further down
        return typing.get_type_hints(constructor)

    @functools.wraps(constructor)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        bound.apply_defaults()
        if isinstance(bound.arguments.get("dtype"), str):
            bound.arguments["dtype"] = float_dtype(bound.arguments["dtype"])
        config = _normal_arguments(bound.arguments, annotations(), cls.__name__)
        bound.arguments.update(config)
        constructor(*bound.args, **bound.kwargs)
        if cls.__init__ is __init__:
            _record(self, config)

    return __init__


def _normal_arguments(
    arguments: Mapping[str, Any], annotations: Mapping[str, Any], class_name: str
) -> dict[str, Any]:
    """The arguments of a constructor that are part of its configuration, in their normal form."""
    config = {}
    for name, value in arguments.items():
        if name not in _FACTORY_ARGUMENTS:
            annotation = annotations.get(name, Any)
            config[name] = normal(annotation, value, f"{class_name}({name}=)")
    return config


def _record(module: Any, config: Mapping[str, Any]) -> None:
    """Keep the arguments that a module was built with."""
    cls = type(module)
    recorded = dict(config)
    for name in cls._left_out_defaults:
        # a subclass may lack the argument
        if name in recorded and recorded[name] == fields_of(cls)[name].default:
            del recorded[name]
    object.__setattr__(module, "_config", encode(recorded))
    # of huggingface_hub's ModelHubMixin, which saves it
    if hasattr(type(module), "_hub_mixin_config"):
        module._hub_mixin_config = module.config
