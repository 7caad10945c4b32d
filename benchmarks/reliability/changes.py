"""Changes of a head's metadata, or of an ensemble's list, behind a right digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from benchmarks.reliability.attempts import of_folder, of_forged
from benchmarks.reliability.forge import relisted
from benchmarks.reliability.modes import Case
from benchmarks.reliability.subjects import Subject, plain
from dinoneck.checkpoint.header import LISTING

Meta, State = dict[str, Any], dict[str, Tensor]
GONE = object()
TASK = ("config", "tasks", 0)


def spell(value: object) -> str:
    """A value in a case's name."""
    return "missing" if value is GONE else f"{value!r:.30}"


def put(place: tuple[Any, ...], value: Any) -> Callable[[Meta, State], None]:
    """Put a value somewhere in the metadata; a task's entry stands in two places."""

    def change(meta: Meta, state: State) -> None:
        _put(meta, place, value)
        if place[:2] == ("config", "tasks") and len(place) > 2:
            _put(meta, place[1:], value)

    return change


def _put(inside: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        inside = inside[key]
    if value is GONE:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value


def wrong(
    step: str, place: tuple[Any, ...], value: Any, message: str = "", subject: Subject = plain, name: str = ""
) -> Case:
    """Another value in the metadata is refused."""
    where = ".".join(map(str, place))
    owner = "" if subject is plain else f"{subject.__name__}: "
    return of_forged(
        name or f"{owner}{where} {spell(value)}", step, subject, put(place, value), message, digest=place != ("digest",)
    )


def each(
    step: str, place: tuple[Any, ...], values: tuple[Any, ...], message: str = "", subject: Subject = plain
) -> Iterator[Case]:
    """Several values in one place."""
    return (wrong(step, place, value, message, subject) for value in values)


def listed(name: str, step: str, change: Callable[[dict[str, Any]], object], message: str = "") -> Case:
    """An ensemble's list after a change; its digest is right."""
    return of_folder(f"{LISTING}: {name}", step, lambda folder: relisted(folder, change), message)


def member_type(name: str) -> Callable[[Meta, State], None]:
    """An ensemble whose first member has this type; the versions say so too."""

    def change(meta: Meta, state: State) -> None:
        meta["config"]["members"][0]["type"] = name
        meta["versions"] = {"ensemble": 1, "patch_mean": 1, name: 1}

    return change


def neck_type(name: str) -> Callable[[Meta, State], None]:
    """A head whose neck has this type; the versions say so too."""

    def change(meta: Meta, state: State) -> None:
        meta["config"]["neck"]["type"] = name
        meta["versions"] = {"pyramid": 1, name: 1}

    return change
