"""The public names of the package with their signatures.

One per line, as ``public_api.txt`` holds them.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from dinoneck.configured import Configured
from tests.house.source import lazy_packages

FILE = Path(__file__).with_name("public_api.txt")

# written by Python, dataclasses and NamedTuple for every class of their kind, or listed with the
# class itself (its constructor); they differ between versions of Python
MACHINERY = {
    "__init__",
    "__new__",
    "__post_init__",
    "__init_subclass__",
    "__annotate__",
    "__annotate_func__",
    "__replace__",
    "__getnewargs__",
    "__delattr__",
    "__subclasshook__",
}


def public_api() -> str:
    """Every public name with its signature, and every method of a public class, one per line."""
    values = {}
    for package, module in sorted(lazy_packages().items()):
        for name in sorted(module.HOMES):
            values[f"{package}.{name}"] = getattr(module, name)
    values["dinoneck.configured.Configured"] = Configured
    classes = {value for value in values.values() if inspect.isclass(value)}
    lines = []
    for address, value in values.items():
        if inspect.isclass(value):
            lines += class_lines(address, value, classes)
        elif inspect.isfunction(value):
            lines.append(f"{address}{signature(value)}")
        else:
            lines.append(f"{address}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def class_lines(address: str, cls: type, listed_classes: set[type]) -> list[str]:
    """A class with the names of its listed bases, then its methods and properties.

    Special methods such as ``__len__`` and ``__contains__`` are among them: ``id in store`` is as
    public as ``store.ids``. What a class inherits is listed at its base if that is listed itself,
    and here otherwise. Bases of other packages, such as ``nn.Module``, are left out.
    """
    base_names = []
    members: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.partition(".")[0] != "dinoneck":
            continue
        if owner is not cls and owner in listed_classes:
            base_names.append(owner.__name__)
        else:
            members |= {name: value for name, value in vars(owner).items() if is_public(name)}
    heading = f"{address}{signature(cls)}"
    if base_names and not issubclass(cls, Exception):
        heading += f" of {', '.join(sorted(base_names))}"
    lines = [heading]
    for name, value in sorted(members.items()):
        function = getattr(value, "__func__", value)  # of a classmethod or staticmethod
        if inspect.isfunction(function):
            lines.append(f"{address}.{name}{signature(function)}")
        elif isinstance(value, property | cached_property):
            lines.append(f"{address}.{name}: property")
    return lines


def is_public(name: str) -> bool:
    """Whether a member of a class is for users: no name of its own parts, no machinery."""
    if name.startswith("__") and name.endswith("__"):
        return name not in MACHINERY
    return not name.startswith("_")


def signature(value: Any) -> str:
    """The parameters of a function or of a class's constructor, or the bases of an error class."""
    if inspect.isclass(value):
        if issubclass(value, Exception):
            return f"({', '.join(base.__name__ for base in value.__bases__)})"
        if getattr(value.__init__, "__module__", "").startswith("torch."):
            return ""  # torch's own, which changes with its version
    found = inspect.signature(value)
    parameters = []
    for parameter in found.parameters.values():
        parameters.append(parameter.replace(annotation=spelled(parameter.annotation)))
    text = str(found.replace(parameters=parameters))
    return re.sub(r"<factory>|0x[0-9a-f]+", "...", text)


class Spelled:
    """An annotation that a signature shows as this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def spelled(annotation: Any) -> Any:
    """Return an annotation that every version of Python shows alike; texts and plain classes stay."""
    if isinstance(annotation, str | type) and typing.get_origin(annotation) is None:
        return annotation
    return Spelled(type_text(annotation))


def type_text(annotation: Any) -> str:
    """Spell a type: unions with bars, no ``typing.``."""
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    if annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:  # of a tuple of any length
        return "..."
    if isinstance(annotation, list):  # the parameters of a Callable
        return f"[{', '.join(type_text(part) for part in annotation)}]"
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if origin is typing.Annotated:
        annotated_type, *notes = arguments
        # tyro's notes print another text with every version of it
        limits = [repr(note) for note in notes if isinstance(note, msgspec.Meta)]
        if not limits:
            return type_text(annotated_type)
        texts = ", ".join([type_text(annotated_type), *limits])
        return f"Annotated[{texts}]"
    if origin is None or origin is typing.Literal:
        return inspect.formatannotation(annotation).replace("typing.", "")
    texts = [type_text(argument) for argument in arguments]
    return f"{type_text(origin)}[{', '.join(texts)}]"
