"""Where a save is at any moment: the phase of its disk calls in shared memory, and a kill at one of them.

Built on the wrappers of :mod:`benchmarks.kill_campaign_child`; the library runs unchanged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kill_campaign_child import Trace, trace_disk
from benchmarks.kill_campaign_terms import PHASE
from dinoneck.checkpoint import head_checkpoint

MOVES = ("create folder", "move old folder aside", "move new folder in", "put old folder back", "remove old folder")
PHASES = (
    "between", "create file", "write", "fsync", "read back and check", "chmod", "rename", "flush folder", *MOVES,
)  # fmt: skip
_NAMES = {"write head": "write", "fsync head": "fsync", "rename head": "rename"}


class SaveTrace(Trace):
    """Notes which disk call of a save is running; every file under ``root`` counts."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note a phase."""
        before = self.page[PHASE]
        self.page[PHASE] = PHASES.index(spelled(name))
        try:
            yield
        finally:
            self.page[PHASE] = before

    def kind(self, path: Any) -> str | None:
        """Every file that is written is a part of what is saved."""
        inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)
        return "head" if inside else None


def spelled(name: str) -> str:
    """Return the phase that a disk call belongs to."""
    return "flush folder" if name.startswith("flush folder") else _NAMES.get(name, name)


def begin(page: Path, root: Path, doom: tuple[int, str] | None) -> SaveTrace:
    """Lead this process's disk calls under ``root`` through a trace that dies at ``doom``; the page exists."""
    trace = SaveTrace(page, root, doom)
    trace_disk(trace)
    _trace_rest(trace)
    return trace


def _trace_rest(trace: SaveTrace) -> None:
    """The calls that training and extraction do not make: read back, chmod, and those on folders."""
    check, chmod, rename, mkdir, remove = (
        head_checkpoint._read_back, os.chmod, os.rename, os.mkdir, shutil.rmtree,
    )  # fmt: skip
    create = os.open

    def traced(
        name: str, call: Callable[..., Any], inside: Callable[..., bool] = lambda *_: True
    ) -> Callable[..., Any]:
        def wrapper(*args: Any, **kw: Any) -> Any:
            do = partial(call, *args, **kw)
            return trace.disk(name, do) if inside(*args) else do()

        return wrapper

    def renamed(one: Any, two: Any, **kw: Any) -> None:
        name = "move old folder aside" if ".old-" in str(two) else "move new folder in"
        trace.disk("put old folder back" if ".old-" in str(one) else name, partial(rename, one, two, **kw))

    def opened(path: Any, flags: int, *rest: Any, **kw: Any) -> int:
        do = partial(create, path, flags, *rest, **kw)
        return int(trace.disk("create file", do) if flags & os.O_CREAT and trace.kind(path) else do())

    head_checkpoint._read_back = traced("read back and check", check)
    os.chmod = traced("chmod", chmod)
    os.rename, os.open = renamed, opened
    os.mkdir = traced("create folder", mkdir)
    shutil.rmtree = traced("remove old folder", remove, lambda path, *_: Path(path).exists())
