"""Which arguments of a configuration a head has: for several heads of one configuration, and for ``--hidden-dim``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck import registry
from dinoneck.configured import fields_of
from dinoneck.errors import ConfigError
from dinoneck.registry import import_modules
from dinoneck.training.config import AnyConfig, TrainConfig, head_description
from dinoneck.training.masks import map_kind
from dinoneck.training.new_head import head_type

# parameters of heads, necks and pyramids that --hidden-dim sets: the first that a class has
_WIDTHS = ("fpn_dim", "hidden_dim", "out_channels")
# names of folders on every system, which no shell has to quote
_PLAIN_NAME = re.compile(r"[\w.=-]{1,100}")


@dataclass(frozen=True)
class ComparedHead:
    """A head of a comparison.

    Attributes:
        name: of its folder, and in tables.
        head: ``{"type": NAME, ...}`` with the arguments of its constructor.
        left_out: arguments of the configuration that it does not have.
    """

    name: str
    head: Mapping[str, Any]
    left_out: Sequence[str] = ()


def width_argument(type_name: str) -> str | None:
    """Return the argument that is the width of a registered head, neck or pyramid; None if it has none."""
    parameters = fields_of(registry.resolve(type_name))
    for name in _WIDTHS:
        if name in parameters:
            return name
    return None


def head_with_width(config: AnyConfig, hidden_dim: int) -> dict[str, Any]:
    """Return the head of a config with its width, or that of its neck or pyramid.

    Args:
        config: any training.
        hidden_dim: the width, whatever the head calls it.

    Raises:
        RegistryError: if the head is not registered.
    """
    import_modules(config.imports)
    width = width_argument(_type_name(config)) or "hidden_dim"  # which the head then refuses
    return {**config.head, width: hidden_dim}


def _type_name(config: AnyConfig) -> str:
    """The registered name of the head, neck or pyramid of any training, or of its default."""
    if isinstance(config, TrainConfig):
        return head_type(config, map_kind(config))
    return str(config.head.get("type") or config.default_head)


def compared_heads(
    heads: Sequence[str | Mapping[str, Any]],
    common: Mapping[str, Any],
    hidden_dim: int | None = None,
) -> list[ComparedHead]:
    """Return the heads of a comparison with their arguments and names.

    A head that is described as ``{"type": NAME, ...}`` has these arguments alone. One that is only
    named has those of the configuration: all of them if the configuration is of this type, else those that
    its constructor has. Its name is its type; several heads of one type have the arguments in their
    names that are not the same in all of them, such as ``fpn-fpn_dim=64``, or else are numbered.

    Args:
        heads: registered names, or descriptions.
        common: the head of the configuration, with or without a type.
        hidden_dim: width of every head that has one.

    Raises:
        ConfigError: for fewer than two heads, one that stands twice, a description without a type,
            or an argument that no head has.
        RegistryError: for a name that is not registered.
    """
    descriptions: list[dict[str, Any]] = []
    left_out: list[list[str]] = []
    for entry in heads:
        description = head_description(entry)
        _check_type(description)
        unused: list[str] = []
        if len(description) == 1:  # it is named alone
            description, unused = _with_common(description["type"], common)
        if hidden_dim is not None:
            width = width_argument(description["type"])
            if width is None:
                unused.append("hidden_dim")
            else:
                description[width] = hidden_dim
        descriptions.append(description)
        left_out.append(unused)

    _check_each_once(descriptions)
    if "type" not in common or hidden_dim is not None:
        _check_used(descriptions, left_out)
    names = _names(descriptions)
    compared = []
    for name, description, unused in zip(names, descriptions, left_out, strict=True):
        compared.append(ComparedHead(name, description, unused))
    return compared


def _check_type(description: Mapping[str, Any]) -> None:
    """Raise ConfigError for a head without a type, and RegistryError for one that is not registered."""
    type_name = description.get("type")
    if not isinstance(type_name, str):
        raise ConfigError(
            f"the head {dict(description)} names no type; expected {{type: NAME, ...}}"
        )
    registry.resolve(type_name)


def _with_common(type_name: str, common: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A head that is named, with the arguments of the configuration; and those that it does not have."""
    parameters = fields_of(registry.resolve(type_name))
    description: dict[str, Any] = {"type": type_name}
    unused = []
    for name, value in common.items():
        if name == "type":
            continue
        # an unknown argument of the configuration's own head is refused when that is built
        if name in parameters or common.get("type") == type_name:
            description[name] = value
        else:
            unused.append(name)
    return description, unused


def _check_each_once(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for fewer than two heads, or two that are equal."""
    distinct: list[Mapping[str, Any]] = []
    for description in descriptions:
        if description not in distinct:
            distinct.append(description)
    if len(distinct) < max(len(descriptions), 2):
        shown = ", ".join(description["type"] for description in descriptions)
        raise ConfigError(f"heads are {shown}; expected two or more, each once")


def _check_used(
    descriptions: Sequence[Mapping[str, Any]], left_out: Sequence[Sequence[str]]
) -> None:
    """Raise ConfigError for an argument that all heads leave out."""
    for name in left_out[0]:
        if all(name in unused for unused in left_out):
            types = ", ".join(description["type"] for description in descriptions)
            raise ConfigError(f"none of the heads {types} has an argument {name!r}; leave it out")


def _names(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of heads: their types, and where several have one, what differs between these."""
    names: dict[int, str] = {}
    for type_name in dict.fromkeys(description["type"] for description in descriptions):
        positions = []
        for position, description in enumerate(descriptions):
            if description["type"] == type_name:
                positions.append(position)
        of_type = [type_name]
        if len(positions) > 1:
            of_type = _names_of_one_type([descriptions[position] for position in positions])
        names.update(zip(positions, of_type, strict=True))
    return [names[position] for position in range(len(descriptions))]


def _names_of_one_type(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of several heads of one type: by the arguments that differ, or by their numbers.

    They are numbered if an argument is a text or a list that no folder should be called by.
    """
    arguments: list[str] = []
    for description in descriptions:
        arguments += [name for name in description if name not in arguments]
    differing = []
    for name in arguments:
        values = [description.get(name) for description in descriptions]
        is_in_all = all(name in description for description in descriptions)
        if not is_in_all or any(value != values[0] for value in values):
            differing.append(name)
    names = []
    for description in descriptions:
        words = [str(description["type"])]
        words += [f"{name}={description[name]}" for name in differing if name in description]
        names.append("-".join(words))
    is_plain = all(_PLAIN_NAME.fullmatch(name) for name in names)
    if is_plain and len({*names}) == len(names):
        return names
    return [f"{description['type']}-{number}" for number, description in enumerate(descriptions, 1)]
