"""Lazy names (PEP 562): a package lists its public names and imports a file when its name is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, homes: Mapping[str, str], packages: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build ``__getattr__`` and ``__dir__`` for ``package``; its other names are not public.

    Args:
        package: ``__name__`` of the package.
        homes: public name -> full name of the module that defines it.
        packages: sub-packages that are imported on first use as attributes.
    """

    def __getattr__(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")  # noqa: TID251 - names of our own tables
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)  # noqa: TID251 - names of our own tables
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        special = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted({*special, *homes, *packages})

    return __getattr__, __dir__


def homes(package: str, **files: Sequence[str]) -> dict[str, str]:
    """Return the table for :func:`attach` from the public names of each file of a package.

    Args:
        package: ``__name__`` of the package.
        **files: name of a file, without its suffix -> the public names that it defines.
    """
    table = {}
    for file, names in files.items():
        for name in names:
            table[name] = f"{package}.{file}"
    return table
