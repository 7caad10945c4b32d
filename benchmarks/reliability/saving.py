"""What saving and loading have to leave behind: the old file or the new one, whole, and nothing beside it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.reliability.children import child, in_child
from benchmarks.reliability.modes import Missed
from dinoneck import HeadCheckpoint, PatchMeanMLP
from dinoneck.errors import DinoneckError


@functools.cache
def head(seed: int = 0, width: int = 64) -> HeadCheckpoint:
    """A small head; the same for the same seed. Made once: threads must not draw at the same time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HeadCheckpoint.from_module(PatchMeanMLP(width, 16))


def good_file(folder: Path, name: str = "h.safetensors") -> Path:
    """A file with the head of seed 0."""
    head().save(folder / name)
    return folder / name


def is_head(path: str | os.PathLike[str], *seeds: int) -> None:
    """See that a file holds the head of one of these seeds, bit for bit.

    Raises:
        Missed: if it does not.
    """
    found = HeadCheckpoint.load(path)
    for seed in seeds:
        wanted = head(seed)
        if wanted.meta["digest"] == found.meta["digest"]:
            if all(torch.equal(found.state_dict[key], value) for key, value in wanted.state_dict.items()):
                return
            raise Missed(f"{path!r} has the digest of head {seed} and other bits")
    raise Missed(f"{path!r} holds none of the heads {seeds}")


def everything(folder: Path) -> dict[str, object]:
    """What lies in a folder: contents, targets of links, kinds of the rest."""
    found: dict[str, object] = {}
    for place in sorted(folder.rglob("*")):
        if place.is_symlink():
            found[str(place)] = place.readlink()
        else:
            found[str(place)] = place.read_bytes() if place.is_file() else place.stat().st_mode
    return found


@contextlib.contextmanager
def as_it_was(folder: Path) -> Iterator[None]:
    """See that what is refused inside changes nothing in a folder."""
    before = everything(folder)
    try:
        yield
    except DinoneckError as error:
        if everything(folder) != before:
            raise Missed(f"the folder holds other things than before: {sorted(everything(folder))}") from error
        raise


def leaves(folder: Path, *names: str) -> None:
    """See that a folder holds these and nothing else.

    Raises:
        Missed: naming what it holds.
    """
    found = sorted(place.name for place in folder.iterdir())
    if found != sorted(names):
        raise Missed(f"the folder holds {found}, not {sorted(names)}")


def saved_over(prepare: Callable[[], object]) -> Callable[[Path], None]:
    """Save over a good file in a process that is prepared; what is refused has to leave all as it was."""

    def run(folder: Path) -> None:
        path = good_file(folder)

        def work() -> None:
            prepare()
            head(1).save(path)

        with as_it_was(folder):
            in_child(work)
        is_head(path, 1)
        leaves(folder, path.name)

    return run


def side_by_side(*works: Callable[[], object]) -> None:
    """Do several pieces of work at once, a process each, and raise the first error."""
    children = [child(work) for work in works]
    errors: list[BaseException] = []
    for one in children:
        try:
            one.ended()
        except (DinoneckError, Missed) as error:
            errors.append(error)
    if errors:
        raise errors[0]
