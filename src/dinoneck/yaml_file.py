"""YAML files from other people: plain values that are written out, no larger in memory than the text makes them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from dinoneck.atomic import read_regular
from dinoneck.errors import ConfigError
from dinoneck.text import reason_of

_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")

_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")  # YAML 1.1 reads 010 as 8 and 20:30 as 1230


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without anchors and repeated keys, and with the numbers of YAML 1.2.

    ``1e-4`` is a number and ``010`` is text. Anchors are refused because ten lines of aliases
    merged into each other fill any memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, unless it defines or uses an anchor."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        name = getattr(event, "anchor", None)
        if name is not None:
            problem = (
                f"anchors and aliases (&{name}, *{name}) are not read; write the value out "
                "where it is needed"
            )
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping, unless a key is repeated."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in counts.most_common(1):
            if count > 1:
                raise ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_INT_TAG = "tag:yaml.org,2002:int"


def _resolvers_without_integers() -> dict[Any, list[tuple[str, Any]]]:
    """First character -> (tag, pattern) of PyYAML's resolvers, without that of YAML 1.1's integers."""
    resolvers = {}
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        resolvers[first] = [(tag, pattern) for tag, pattern in pairs if tag != _INT_TAG]
    return resolvers


PlainLoader.yaml_implicit_resolvers = _resolvers_without_integers()
PlainLoader.add_implicit_resolver(_INT_TAG, _WHOLE, list("-+0123456789"))
PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_plain(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        YAMLError: if it is not valid YAML, has anchors or aliases, or a key is repeated.
        ValueError: if a value is not valid, such as a date with a month 13.
        RecursionError: if it is nested too deep.
    """
    return PlainLoader(text).get_single_data()


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: if the file cannot be read, is not valid YAML, a key is repeated, or it holds
            no mapping.
    """
    try:
        values = read_plain(read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason_of(error)}; expected a YAML file in UTF-8"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or error
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not valid YAML: {problem}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings; expected sections such as data: and head:")
    return values
