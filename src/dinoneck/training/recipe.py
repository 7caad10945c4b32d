"""The base of configurations, and how a head is trained, in plain values; no torch is imported here.

Python, flags and YAML pass the same check.
"""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo, force_setattr
from tyro.conf import Fixed, Suppress
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.checkpoint.schema import LICENSE_PATTERN
from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean, shorten

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
Scale = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
# of the head's learning rate: that of a backbone that is trained along, where none is given
BACKBONE_RATE = 0.1

STAGE = "(all|none|last:[1-9][0-9]*)"  # what is frozen of a backbone
PATH_PATTERN = r"\S"
PLAN_PATTERN = f"^{STAGE}$"
FREEZE_PATTERN = f"^[0-9]+={STAGE}$"
# what texts of these patterns are, for messages
PATTERNS = {
    PATH_PATTERN: "the name of a file, a folder ('.' for the current one) or a column",
    PLAN_PATTERN: "the stage 'all', 'none' or 'last:N', such as 'last:4'",
    FREEZE_PATTERN: "EPOCH=STAGE with the stage all, none or last:N, such as 10=last:4",
    LICENSE_PATTERN: "the name of a licence, such as MIT: it begins with a letter or a digit, and "
    "others of its characters may be spaces and . + : ( ) _ -",
}
# msgspec's message for a value that does not fit, and its words
_EXPECTED = re.compile("Expected `(?P<types>[^`]+)`(?P<limit>.*)")
_TYPES = {
    "array": "a list",
    "object": "keys with values",
    "str": "text",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "none",
}
_LIMITS = {" >=": "of {} or more", " >": "above {}", " <=": "of at most {}", " <": "below {}"}
_LONGEST_VALUE = 80  # characters of a value in a message
_AnyConfig = TypeVar("_AnyConfig", bound="Config")

OFF = "none"  # on the command line, the value of an option that is switched off


def _or_none(
    read: Callable[[str], Any], metavar: str, choices: tuple[str, ...] | None = None
) -> Any:
    """The form on the command line of an option that can be switched off: its value, or ``none``."""

    def from_words(words: list[str]) -> Any:
        return None if words[0] == OFF else read(words[0])

    def to_words(value: Any) -> list[str]:
        return [OFF if value is None else str(value)]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=from_words,
        is_instance=lambda value: True,
        str_from_instance=to_words,
        choices=choices,
    )


INT_OR_NONE = _or_none(int, "INT|none")
FLOAT_OR_NONE = _or_none(float, "FLOAT|none")
AMP_OR_NONE = _or_none(str, "{bf16,fp16,none}", choices=("bf16", "fp16", OFF))


def converted(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its type and limits hold it: numbers of NumPy become plain ones, lists become tuples.

    A path becomes text.

    Raises:
        ConfigError: if it is of another type, out of range, or not finite.
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, list | tuple):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    try:
        checked = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{name} is {repr(value)[:_LONGEST_VALUE]}; {_in_words(error, value, hint)}"
        ) from None
    if isinstance(checked, float) and not math.isfinite(checked):
        raise ConfigError(f"{name} is {value!r}; expected a finite number")
    return checked


class _ConfigType(msgspec.StructMeta):
    """The type of configs: a call of one names the keyword that is unknown or missing."""

    if not typing.TYPE_CHECKING:  # the signature of a config is that of its fields

        def __call__(cls, *values: Any, **fields: Any) -> Any:
            names = cls.__struct_fields__
            if values:
                raise TypeError(
                    f"{cls.__name__} takes keywords alone, not {shorten(values[0])}, such as "
                    f"{cls.__name__}({names[0]}=...)"
                )
            for name in fields:
                if name not in names:
                    raise TypeError(
                        f"{cls.__name__} has no argument {name!r}.{did_you_mean(name, names)} It "
                        f"takes: {', '.join(names)}"
                    )
            missing = _first_missing(cls, fields)
            if missing:
                raise TypeError(f"{cls.__name__} needs the argument {missing!r}")
            return super().__call__(**fields)


def _first_missing(config: type[Config], values: Mapping[str, Any]) -> str:
    """The first field without a default that values lack; empty if there is none."""
    for field in msgspec.structs.fields(config):
        if field.required and field.name not in values:
            return field.name
    return ""


class Config(
    msgspec.Struct, metaclass=_ConfigType, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Plain values that are checked when they are set, however that happens.

    Numbers of NumPy become plain ones, lists become tuples, mappings become the configs of their
    fields.

    Raises:
        ConfigError: if a value is of another type, out of range, or not finite.
    """

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name in self.__struct_fields__:
            value = _with_configs(name, getattr(self, name), kinds[name])
            force_setattr(self, name, converted(name, value, hints[name]))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the config") -> Self:
        """Return the config of nested plain values, such as those of :meth:`to_dict`; None = the defaults.

        Raises:
            ConfigError: naming ``where`` and the key.
        """
        try:
            return _config_of("", values, cls)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values: what a report keeps and :meth:`from_dict` reads."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values in these fields.

        Raises:
            ConfigError: if a field is unknown, or its value does not fit.
        """
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return _config_of("", values | fields, type(self))


def has_flag(hint: Any) -> bool:
    """Return whether an option of this type, as a config has it, is a flag; others stand in training files alone."""
    return Suppress not in getattr(hint, "__metadata__", ())


def _with_configs(name: str, value: Any, kind: Any) -> Any:
    """The value of a field: a config, or configs by their names, of plain values where it holds these.

    Args:
        name: of the field, for messages.
        value: None: an empty group.
        kind: a config, ``dict[str, CONFIG]``, or another type.
    """
    if _is_config(kind):
        return _config_of(name, value, kind)
    if typing.get_origin(kind) is not dict:
        return value
    value = {} if value is None else value
    _, config = typing.get_args(kind)
    if not _is_config(config) or type(value) is config:
        return value  # a config in the place of several is refused by its type
    _check_keys(name, value, config)
    configs = {}
    for key, plain_values in value.items():
        configs[key] = _config_of(f"{name}.{key}", plain_values, config)
    return configs


def _is_config(kind: Any) -> bool:
    """Whether a type is a class of configs."""
    return isinstance(kind, type) and issubclass(kind, Config)


def _check_keys(name: str, value: Any, config: type[Config]) -> None:
    """Check that the plain values of a config, or of several, are keys with values.

    Args:
        name: of the field that holds them; empty for a whole file.
        value: the values.
        config: the class.
    """
    if isinstance(value, Config):  # such as the recipe of heads for a detector
        raise ConfigError(f"{name} is a {type(value).__name__}; expected a {config.__name__}")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name or 'the file'} is {value!r}; expected keys with values")


def _config_of(name: str, value: Any, config: type[_AnyConfig]) -> _AnyConfig:
    """The config of plain values; a config of this class is returned itself, and of None it has the defaults.

    Args:
        name: of the field that holds them, for messages; empty for a whole file.
        value: the values.
        config: the class.
    """
    if type(value) is config:
        return value
    value = {} if value is None else value
    _check_keys(name, value, config)
    prefix = f"{name}." if name else ""
    fields = config.__struct_fields__
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise ConfigError(unknown_key(name, str(unknown[0]), known=fields, candidates=fields))
    missing = _first_missing(config, value)
    if missing:
        raise ConfigError(f"{prefix}{missing} is missing")
    try:
        return config(**value)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def unknown_key(group: str, name: str, *, known: Sequence[str], candidates: Iterable[str]) -> str:
    """Return the message for an unknown key.

    Args:
        group: that it is in; an empty text for a key without a group.
        name: of the key.
        known: the names that the group has.
        candidates: names that may be meant, of which the nearest is proposed.
    """
    key = f"{group}.{name}" if group else name
    return f"unknown key {key!r}.{did_you_mean(name, candidates)} Known: {', '.join(known)}"


def _in_words(error: Exception, value: Any, hint: Any) -> str:
    """What is expected, of msgspec's message; a choice that is close to the value."""
    if typing.get_origin(hint) is Annotated:  # with notes for the command line
        hint = typing.get_args(hint)[0]
    choices: list[str] = []
    for member in (hint, *typing.get_args(hint)):
        if typing.get_origin(member) is typing.Literal:
            choices += map(str, typing.get_args(member))
    if choices and isinstance(value, str):
        return f"expected one of {', '.join(choices)}.{did_you_mean(value, choices)}"
    message, _, place = str(error).partition(" - at ")
    parts = _EXPECTED.fullmatch(message)
    if parts is None:
        return message
    expected = _limited(parts["types"], parts["limit"])
    if isinstance(value, str) and parts["types"].startswith("array"):
        expected += f", such as {[value]}"
    if place.startswith("`key`"):
        return f"every key must be {expected}"
    if place:
        return f"every item must be {expected}"
    return f"expected {expected}"


def _limited(types: str, limit: str) -> str:
    """Types with a limit, in the spelling of msgspec, in words: ``int`` with `` >= 1`` is an integer of 1 or more."""
    for pattern, words in PATTERNS.items():
        if limit == f" matching regex {pattern!r}":
            return words
    words = " or ".join(_TYPES.get(name, name) for name in types.split(" | "))
    limit, _, number = limit.partition(", got ")[0].removesuffix(".0").rpartition(" ")
    if limit == " of length":
        return f"{words} of {number} values"
    if limit == " of length >=":
        return f"{words}, {number} or more"
    if limit == " of length <=":  # texts alone have such a limit
        return f"{words} of at most {number} characters"
    return f"{words} {_LIMITS[limit].format(number)}" if limit else words


# options that came after 0.3: plain values hold them only where they are set, so that they equal
# those of 0.3 and a run that 0.3 began continues
LATER_OPTIONS_OF_OPTIM = ("accumulate", "ema_start", "mixup_per_sample")


def without_unset(
    plain: Mapping[str, Any], config: Config, options: Sequence[str]
) -> dict[str, Any]:
    """Return the plain values of a config without those of these options that have their default."""
    kept = dict(plain)
    for option in msgspec.structs.fields(config):
        if option.name in options and getattr(config, option.name) == _default_of(option):
            del kept[option.name]
    return kept


def _default_of(option: FieldInfo) -> Any:
    """The default of a field of a config."""
    if option.default_factory is not msgspec.NODEFAULT:
        return option.default_factory()
    return option.default


class DetectorRecipe(Config, frozen=True, kw_only=True):
    """How a detector is trained: the group ``optim`` of its training file; heads have a :class:`Recipe`.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        accumulate: number of parts that the images of a step are computed in, one after the other;
            their gradients add up to that of all images, except in layers that draw at random or
            take statistics of a batch, such as dropout and batch norm. More parts need less memory.
        lr: peak learning rate; cosine with warm-up.
        seed: seed of the split, the initial weights and the order of the samples.
        weight_decay: weight decay of AdamW, for weight matrices only; biases, norms and the loss's
            own parameters have none.
        warmup: share of the steps with a rising learning rate.
        ema_decay: decay of the moving average of the weights, which is validated and saved; None =
            no average.
        ema_start: share of the steps after which the average begins; until then it is the weights
            themselves.
        amp: autocast to bf16 or fp16, losses in float32; None = float32.
        clip_norm: largest norm of the gradients; None = no limit.
        backbone_lr: peak learning rate of a trained backbone; None = a tenth of lr.
        layer_decay: factor of that rate per block of the backbone; None = one rate.
        freeze: EPOCH=STAGE: what is frozen in the backbone from an epoch on: all, last:N (the last
            N blocks are trained) or none; empty = the schedule 0=all 10=last:4, for an RF-DETR that
            init names 0=all.

    Raises:
        ConfigError: if a value is unknown or out of range, or two of them contradict each other.
    """

    epochs: Count = 40
    batch_size: Count = 8
    accumulate: Count = 1
    lr: Positive = 1e-3
    seed: Seed = 42
    weight_decay: NotNegative = 1e-2
    warmup: BelowOne = 0.1
    ema_decay: Annotated[BelowOne | None, FLOAT_OR_NONE] = None
    ema_start: Annotated[BelowOne, Fixed, Suppress] = 0.0
    amp: Annotated[Literal["bf16", "fp16"] | None, AMP_OR_NONE] = None
    clip_norm: Annotated[Positive | None, FLOAT_OR_NONE] = 1.0
    backbone_lr: Annotated[Positive | None, FLOAT_OR_NONE] = None
    layer_decay: Annotated[Scale | None, FLOAT_OR_NONE] = None
    freeze: tuple[Annotated[str, Meta(pattern=FREEZE_PATTERN)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.plan) < len(self.freeze):
            raise ConfigError(f"freeze is {', '.join(self.freeze)}; name each epoch once")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate is {self.accumulate}, and batch_size {self.batch_size}: there are not "
                "so many images to divide; take a larger batch_size, or a smaller accumulate"
            )
        if self.ema_start and self.ema_decay is None:
            raise ConfigError(
                f"ema_start is {self.ema_start}, and needs ema_decay; or leave it out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: what a state keeps and :meth:`from_dict` reads."""
        return without_unset(super().to_dict(), self, LATER_OPTIONS_OF_OPTIM)

    @property
    def plan(self) -> dict[int, str]:
        """``freeze`` as epoch -> stage, for :class:`dinoneck.training.FreezeSchedule`."""
        stages = {}
        for entry in self.freeze:
            epoch, _, stage = entry.partition("=")
            stages[int(epoch)] = stage
        return stages

    def rates(self) -> dict[str, Any]:
        """Return what :func:`dinoneck.training.param_groups` takes of it."""
        rate = BACKBONE_RATE * self.lr if self.backbone_lr is None else self.backbone_lr
        return {
            "lr": self.lr,
            "backbone_lr": rate,
            "weight_decay": self.weight_decay,
            "layer_decay": self.layer_decay,
        }


class Recipe(DetectorRecipe, frozen=True, kw_only=True):
    """How a head is trained: the group ``optim`` of a training file, and what :func:`dinoneck.training.fit` takes.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        accumulate: number of parts that the images of a step are computed in, one after the other;
            their gradients add up to that of all images, except in layers that draw at random or
            take statistics of a batch, such as dropout and batch norm. More parts need less memory.
        lr: peak learning rate; cosine with warm-up.
        seed: seed of the split, the initial weights and the order of the samples.
        optimizer: adamw, or sam: sharpness-aware minimisation with AdamW, at twice the cost.
        rho: neighbourhood size of SAM, in the norm of all trained weights together.
        weight_decay: weight decay of AdamW, for weight matrices only; biases, norms and the loss's
            own parameters have none.
        warmup: share of the steps with a rising learning rate.
        ema_decay: decay of the moving average of the weights, which is validated and saved; None =
            no average.
        ema_start: share of the steps after which the average begins; until then it is the weights
            themselves.
        amp: autocast to bf16 or fp16, losses in float32; None = float32.
        clip_norm: largest norm of the gradients; None = no limit.
        standardise_tokens: measure mean and deviation of every channel on the training images, and
            standardise tokens at the head's entrance, for heads that start with a linear layer or a
            norm.
        mixup_alpha: mix tokens and losses of pairs of images, by shares from Beta(alpha, alpha);
            None = off.
        mixup_per_sample: mix every image by a share of its own with another one of the batch at
            random, not all by one share with the image before.
        mixup_off_last: share of the steps at the end without mixup and CutMix.
        cutmix_alpha: paste parts of images, where the backbone is trained along; None = off. With
            mixup_alpha too, a batch is pasted first, then its tokens are blended.
        patience: epochs without a better validation loss before training stops with the best
            weights; None = keep the last.
        backbone_lr: peak learning rate of a trained backbone; None = a tenth of lr.
        layer_decay: factor of that rate per block of the backbone; None = one rate.
        freeze: EPOCH=STAGE: what is frozen in the backbone from an epoch on: all, last:N (the last
            N blocks are trained) or none; empty = as the backbone is.

    Raises:
        ConfigError: if a value is unknown or out of range, or two of them contradict each other.
    """

    optimizer: Annotated[Literal["adamw", "sam"], Fixed, Suppress] = "adamw"
    rho: Annotated[Positive, Fixed, Suppress] = 0.05
    standardise_tokens: bool = True
    mixup_alpha: Annotated[Positive | None, FLOAT_OR_NONE] = None
    mixup_per_sample: Annotated[bool, Fixed, Suppress] = False
    mixup_off_last: Annotated[Share, Fixed, Suppress] = 0.2
    cutmix_alpha: Annotated[Positive | None, FLOAT_OR_NONE] = None
    patience: Annotated[Count | None, INT_OR_NONE] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "sam" and self.amp == "fp16":
            raise ConfigError(
                "optimizer 'sam' does not work with the loss scale of amp 'fp16'; take amp='bf16'"
            )
        if self.mixup_per_sample and self.mixup_alpha is None:
            raise ConfigError("mixup_per_sample is True, and needs mixup_alpha; or leave it out")
