"""A YAML file of settings -> {dotted key: value}: no key twice, no key unknown, and 1e-4 is a number."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.plain_yaml import PlainLoader

_PLAIN_MAP = "tag:yaml.org,2002:map"
_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")


class _Loader(PlainLoader):
    """The plain loader, and ``1e-4`` is a number as YAML 1.2 has it (PyYAML alone reads text)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_flat_yaml(path: str | os.PathLike[str], known: Collection[str]) -> dict[str, Any]:
    """Read settings, nested (``a: {b: 1}``) or dotted (``a.b: 1``).

    Args:
        path: the file, UTF-8.
        known: every key that may stand there; a mapping under a known key is its value. A section that is left
            empty says nothing.

    Returns:
        Dotted key -> value, in the file's order.

    Raises:
        ConfigError: if the file cannot be read, is no YAML, or a key is unknown or stands twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path} holds no settings; expected keys such as {next(iter(known))}")
    flat: dict[str, Any] = {}
    for key, node in _leaves(path, tree, known):
        if key in flat:
            raise ConfigError(f"{path}: key {key!r} stands twice")
        try:
            flat[key] = _Loader("").construct_document(node)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ConfigError(f"{path}: the value of {key!r} cannot be read: {error}") from error
    return flat


def unknown_key(key: str, known: Collection[str]) -> str:
    """Say that a dotted key is unknown, which one may be meant, and which there are beside it."""
    last, section = key.rpartition(".")[2], key.partition(".")[0]
    same = [name for name in known if name.rpartition(".")[2] == last]
    hint = f" Did you mean {same[0]!r}?" if same else did_you_mean(key, known)
    beside = [name for name in known if name.partition(".")[0] == section]
    sections = dict.fromkeys(name.partition(".")[0] for name in known)
    shown = f"Known: {', '.join(beside)}" if beside else f"Known sections: {', '.join(sections)}"
    return f"unknown key {key!r}.{hint} {shown}"


def _leaves(
    path: str | os.PathLike[str], node: yaml.MappingNode, known: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in node.value:
        name = f"{prefix}{getattr(key, 'value', key)}"
        is_section = any(full.startswith(f"{name}.") for full in known)
        if name in known:
            yield name, value
        elif is_section and isinstance(value, yaml.MappingNode) and value.tag == _PLAIN_MAP:
            yield from _leaves(path, value, known, f"{name}.")
        elif is_section and value.tag == "tag:yaml.org,2002:null":
            continue
        elif is_section:
            raise ConfigError(
                f"{path}: {name} is {value.value!r}; expected keys below it, such as {_first(known, name)}"
            )
        else:
            raise ConfigError(f"{path}: {unknown_key(_full(name, value), known)}")


def _full(name: str, value: yaml.Node) -> str:
    """The name of the first leaf below an unknown section, so that it can be looked for."""
    for _ in range(4):
        if not isinstance(value, yaml.MappingNode) or not value.value:
            break
        key, value = value.value[0]
        name = f"{name}.{getattr(key, 'value', key)}"
    return name


def _first(known: Collection[str], section: str) -> str:
    return next(name for name in known if name.startswith(f"{section}."))
