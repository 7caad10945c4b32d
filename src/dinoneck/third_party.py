"""Heads of other packages: found by entry point, imported only when a file names one and the caller allows it.

A package offers heads in the entry-point group ``dinoneck.heads`` (name -> ``module:Class``). In files they are called
``<distribution>.<name>``, the distribution's name in lower case with ``_``: nobody can speak in another's name. Finding
out what is offered reads the packages' metadata and imports nothing. Imports no torch.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from importlib import metadata
from typing import Any

from dinoneck.errors import CheckpointError, RegistryError

GROUP = "dinoneck.heads"


class _Everybody(tuple[str, ...]):
    """Told apart by identity: nobody outside can spell it."""

    __slots__ = ()


ANY: tuple[str, ...] = _Everybody(("*",))
_NAME = re.compile(r"([a-z0-9][a-z0-9_]{0,63})\.([a-z][a-z0-9_]{0,63})")
_PATTERN = re.compile(r"[a-z0-9][a-z0-9_]{0,63}\.(\*|[a-z][a-z0-9_]{0,63})")
_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed third-party heads", default=())


def is_third_party(name: object) -> bool:
    """Whether this is spelled like the name of another package's head."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def spelled(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of heads that a caller allows, one by one; nobody can spell :data:`ANY`.

    Raises:
        CheckpointError: if they are none.
    """
    expected = "expected names such as 'vendor.*' or 'vendor.head'"
    if not isinstance(names, Iterable):
        raise CheckpointError(f"allow= is {names!r}; {expected}, or ()", step="registry")
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if not isinstance(name, str) or not _PATTERN.fullmatch(name):
            raise CheckpointError(f"allow= names {name!r}; {expected}", step="registry")
    return given


@contextlib.contextmanager
def allowing(names: Sequence[str]) -> Iterator[None]:
    """Allow third-party heads inside the block, in this thread: ``"vendor.name"`` or ``"vendor.*"``.

    Raises:
        CheckpointError: if an entry is spelled otherwise; ``"*"`` alone would trust everybody.
    """
    token = _allowed.set(names if names is ANY else spelled(names))
    try:
        yield
    finally:
        _allowed.reset(token)


def resolve(name: str) -> type[Any]:
    """Import and return the class that a package offers under this name.

    Raises:
        RegistryError: if it is not allowed, not offered, offered twice or cannot be imported.
    """
    vendor, _, own = name.partition(".")
    allowed = {name, f"{vendor}.*"} & set(_allowed.get()) or _allowed.get() is ANY
    known = _offers(vendor)
    offers = [entry for entry in known if entry.name == own]
    package = vendor.replace("_", "-")
    if not offers:
        raise RegistryError(
            f"head_type {name!r} is not registered: it would be a head of a package {package!r}, which is not "
            f"installed or does not offer it (it offers {', '.join(sorted({entry.name for entry in known})) or 'none'})"
        )
    if len(homes := sorted({entry.value for entry in offers})) > 1:
        raise RegistryError(
            f"head_type {name!r} is offered twice by {package!r}: {', '.join(homes)}; one installation is broken"
        )
    if not allowed:
        raise RegistryError(
            f"head_type {name!r} is code of the installed package {package!r}, not of dinoneck; it is imported only if "
            f"you allow it: allow=({vendor + '.*'!r},), on the command line --allow {vendor + '.*'!r}"
        )
    return _loaded(offers[0], name, package)


def name_of(cls: type) -> str | None:
    """Return the name under which a package offers this class; None if none does. Imports nothing."""
    home = f"{cls.__module__}:{cls.__qualname__}"
    for entry in metadata.entry_points(group=GROUP):
        module, _, attribute = entry.value.partition(":")
        there = getattr(sys.modules.get(module.strip()), attribute.strip(), None)
        name = f"{_vendor(entry.dist.name)}.{entry.name}" if entry.dist is not None else ""
        if (entry.value == home or there is cls) and is_third_party(name):
            return name
    return None


def offered() -> tuple[str, ...]:
    """Return the names of all heads that installed packages offer. Imports nothing."""
    names = {f"{_vendor(entry.dist.name)}.{entry.name}" for entry in metadata.entry_points(group=GROUP) if entry.dist}
    return tuple(sorted(name for name in names if is_third_party(name)))


def _offers(vendor: str) -> list[metadata.EntryPoint]:
    """What the installed packages of this name offer: usually one package, several where the path holds copies."""
    found = []
    for package in metadata.distributions(name=vendor):
        if _vendor(package.metadata["Name"] or "") == vendor:
            found += [entry for entry in package.entry_points if entry.group == GROUP]
    return found


def _loaded(entry: metadata.EntryPoint, name: str, package: str) -> type[Any]:
    try:
        cls = entry.load()
    except Exception as error:  # whatever another package's import raises
        raise RegistryError(
            f"head_type {name!r} of the package {package!r} cannot be imported from {entry.value!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(cls, type) or not callable(getattr(cls, "from_config", None)) or not hasattr(cls, "config"):
        raise RegistryError(
            f"head_type {name!r}: {entry.value!r} of the package {package!r} is no module with a configuration; it has "
            "to mix in dinoneck.configured.Configured"
        )
    return cls


def _vendor(distribution: str) -> str:
    return re.sub(r"[-_.]+", "_", distribution).lower()
