"""The options of a verb, as the signatures and docstrings of its function and of its groups of options state them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from tyro.conf import Positional, Suppress, UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.training.recipe import PATH_PATTERN

REQUIRED = inspect.Parameter.empty
"""The default of an option that has to be given."""
_ENTRY = re.compile(r" {4}(\w+): (.*)")
_METAVARS: dict[Any, str] = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_Group = type[Any]


@dataclass(frozen=True)
class Option:
    """An option of a verb, or an argument that is known by its place.

    Attributes:
        flag: such as ``--batch-size``; of an argument that is known by its place too.
        hint: its type, with its annotations.
        default: :data:`REQUIRED` if it has to be given.
        text: what the docstring says of it.
        heading: of the group that it is in; empty for those of the function itself.
    """

    flag: str
    hint: Any
    default: Any
    text: str
    heading: str

    @property
    def is_positional(self) -> bool:
        """Whether its value stands without the flag."""
        return Positional in _annotations(self.hint)

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return _plain_type(self.hint) is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes several words after it, and may not be repeated."""
        annotations = _annotations(self.hint)
        if self.is_positional or UseAppendAction in annotations or self.spec is not None:
            return False
        return typing.get_origin(_plain_type(self.hint)) is tuple

    @property
    def spec(self) -> PrimitiveConstructorSpec[Any] | None:
        """How a value that is no plain number or word is read and written; None for others."""
        for annotation in _annotations(self.hint):
            if isinstance(annotation, PrimitiveConstructorSpec):
                return annotation
        return None

    @property
    def values(self) -> str:
        """What stands after the flag, such as ``HEIGHTxWIDTH``."""
        return _metavar(self.hint)


def options_of(owner: Any) -> list[Option]:
    """Return the options of a verb's function, or of the class of a group of options, in their order.

    Args:
        owner: the function, a partial of it whose keywords are its defaults, or the class.
    """
    if isinstance(owner, type):
        return list(_options_of_group(owner, REQUIRED, heading=""))
    function = owner.func if isinstance(owner, functools.partial) else owner
    texts = _entries(inspect.getdoc(function) or "", "Args")
    hints = typing.get_type_hints(function, include_extras=True)
    options: list[Option] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        text = texts.get(name, "")
        options += _options_of_field(name, hints[name], parameter.default, text, heading="")
    return options


def description_of(function: Any) -> str:
    """Return what a docstring says before its section of arguments."""
    if isinstance(function, functools.partial):
        function = function.func
    text, _, _ = (inspect.getdoc(function) or "").partition("\nArgs:")
    return text.strip()


def _options_of_field(
    name: str, hint: Any, default: Any, text: str, heading: str
) -> Iterator[Option]:
    """The option of a parameter or field, or all options of the group that it is."""
    annotations = _annotations(hint)
    if Suppress in annotations:
        return
    flag = name
    for annotation in annotations:
        other_name = getattr(annotation, "name", None)
        if isinstance(other_name, str):  # arg(name="...")
            flag = other_name
            break
    group = _plain_type(hint)
    if not _is_group(group):
        yield Option(f"--{flag.replace('_', '-')}", hint, default, text, heading)
        return
    title = text.rstrip(".")
    if issubclass(group, msgspec.Struct):
        # a group of a training file is called as there; the file itself is no group
        title = f"{flag} ({title})" if flag else heading
    yield from _options_of_group(group, default, title)


def _options_of_group(group: _Group, values: Any, heading: str) -> Iterator[Option]:
    """The options of a group, whose defaults are these values or those of its class."""
    texts: dict[str, str] = {}
    for base in reversed(group.__mro__):
        texts |= _entries(inspect.cleandoc(base.__doc__ or ""), "Attributes")
    hints = typing.get_type_hints(group, include_extras=True)
    for name, default in _defaults(group).items():
        if isinstance(values, group):
            default = getattr(values, name)
        text = texts.get(name, "")
        yield from _options_of_field(name, hints[name], default, text, heading)


def _defaults(group: _Group) -> dict[str, Any]:
    """Field -> its default, in the order of the fields."""
    defaults = {}
    if dataclasses.is_dataclass(group):
        for field in dataclasses.fields(group):
            defaults[field.name] = _default(field, missing=dataclasses.MISSING)
    else:
        for struct_field in msgspec.structs.fields(group):
            defaults[struct_field.name] = _default(struct_field, missing=msgspec.NODEFAULT)
    return defaults


def _default(field: Any, missing: Any) -> Any:
    """The default of a field of a dataclass or struct."""
    if field.default_factory is not missing:
        return field.default_factory()
    if field.default is not missing:
        return field.default
    return REQUIRED


def _entries(docstring: str, section: str) -> dict[str, str]:
    """Name -> text of the entries in a section of a docstring, such as ``Args``."""
    entries: dict[str, str] = {}
    name = ""
    is_inside = False
    for line in docstring.splitlines():
        if not line.startswith(" ") and line:
            is_inside = line == f"{section}:"
        elif is_inside:
            entry = _ENTRY.fullmatch(line)
            if entry is not None:
                name = entry[1]
                entries[name] = entry[2]
            elif name and line:
                entries[name] += f" {line.strip()}"
    return entries


def _annotations(hint: Any) -> tuple[Any, ...]:
    """What a type holds next to the plain type: of an ``Annotated`` one, and of the one inside ``X | None``."""
    if typing.get_origin(hint) is Annotated:
        return (*hint.__metadata__, *_annotations(hint.__origin__))
    inner = _without_none(hint)
    return () if inner is hint else _annotations(inner)


def _plain_type(hint: Any) -> Any:
    """A type without annotations and without None."""
    if typing.get_origin(hint) is Annotated:
        return _plain_type(hint.__origin__)
    inner = _without_none(hint)
    return hint if inner is hint else _plain_type(inner)


def _without_none(hint: Any) -> Any:
    """X of ``X | None``; any other type as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    return choices[0] if len(choices) == 1 else hint


def _is_group(plain_type: Any) -> bool:
    """Whether a type holds several options."""
    if dataclasses.is_dataclass(plain_type):
        return True
    return isinstance(plain_type, type) and issubclass(plain_type, msgspec.Struct)


def _metavar(hint: Any) -> str:
    """What stands for a value of a type in the help."""
    annotations = list(_annotations(hint))
    # a name by arg(...) replaces that of a spec
    annotations.sort(key=lambda annotation: isinstance(annotation, PrimitiveConstructorSpec))
    for annotation in annotations:
        metavar = getattr(annotation, "metavar", None)
        if metavar is not None:
            return str(metavar)
        if getattr(annotation, "pattern", None) == PATH_PATTERN:
            return "PATH"
    plain_type = _plain_type(hint)
    arguments = typing.get_args(plain_type)
    if typing.get_origin(plain_type) is typing.Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    if typing.get_origin(plain_type) is tuple:
        if arguments[-1] is Ellipsis:
            return f"{_metavar(arguments[0])} ..."
        return " ".join(map(_metavar, arguments))
    return _METAVARS[plain_type]
