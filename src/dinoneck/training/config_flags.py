"""How the fields of a training config that are not plain numbers or words are written on the command line."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import yaml
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.yaml_file import read_plain

OFF = "none"


def _size(words: list[str]) -> tuple[int, int]:
    sides = words[0].lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise ValueError(f"{words[0]!r} is not a size; expected HEIGHTxWIDTH such as 480x960, or one number")
    return int(sides[0]), int(sides[-1])


def _head(words: list[str]) -> dict[str, Any]:
    with suppress(yaml.YAMLError, RecursionError, ValueError):
        value = read_plain(words[0])
        if isinstance(value, str | dict):
            return {"type": value} if isinstance(value, str) else value
    raise ValueError(f"{words[0]!r} is not a head; expected a registered name, or '{{type: NAME, ...}}'")


SIZE: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="HEIGHTxWIDTH",
    instance_from_str=_size,
    is_instance=lambda value: value is None or isinstance(value, int | tuple),
    str_from_instance=lambda value: [OFF if value is None else "x".join(map(str, value))],
)
HEAD: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME",
    instance_from_str=_head,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [yaml.safe_dump(value, default_flow_style=True).strip()],
)
