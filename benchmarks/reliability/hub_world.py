"""A hub on loopback, its client, and a reader of all logs, for one case at a time."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from tests.hub_server import READER, WRITER, Hub, point_client_at

from benchmarks.reliability.modes import Missed
from benchmarks.reliability.saving import head
from dinoneck import HeadCheckpoint
from dinoneck.errors import CheckpointError

NAME, FILE = "me/one", "h.safetensors"
_TOKENS = re.compile(rf"{WRITER}|{READER}|Bearer")
_SIGNED = re.compile("s3cr3t")  # in the addresses that the server gives; the client logs those itself


class Reader(logging.Handler):
    """Keeps what is logged, and looks for secrets in it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.ours: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        (self.ours if record.name.startswith("dinoneck") else self.lines).append(record.getMessage())

    def check(self) -> None:
        """Refuse access tokens anywhere, and signed addresses in what is ours.

        Raises:
            Missed: with the line.
        """
        told = [line for line in self.lines + self.ours if _TOKENS.search(line)]
        if told := told + [line for line in self.ours if _SIGNED.search(line)]:
            raise Missed(f"a secret is told: {told[0]}")


class World:
    """A hub with one head, an empty cache, and somebody who asks."""

    def __init__(self, served: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.served, self.patch, self.folder = served, patch, folder
        self.content: list[bytes] = []
        for seed in (0, 1):
            head(seed).save(folder / FILE)
            self.content.append((folder / FILE).read_bytes())
        self.repo = served.repo(NAME, {FILE: self.content[0]})
        self.first = self.repo.branches["main"]
        self.cache = Path(huggingface_hub.constants.HF_HUB_CACHE)

    def load(self, seed: int = 0, revision: str | None = None, name: str = NAME) -> HeadCheckpoint:
        """Load from the hub and see that it is the head of this seed."""
        found = HeadCheckpoint.load(name, revision=revision)
        if found.meta["digest"] != head(seed).meta["digest"]:
            raise Missed("another head was loaded")
        return found

    def reported(self, commit: str, revision: str | None = None, seed: int = 0) -> None:
        """Load and see that the commit is told."""
        if (told := self.load(seed, revision).revision) != commit:
            raise Missed(f"the commit is {commit}, told is {told}")

    def move(self) -> str:
        """The branch goes on to another head."""
        return self.repo.commit({FILE: self.content[1]})

    def offline(self) -> None:
        """As ``HF_HUB_OFFLINE=1``."""
        self.patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def log_in(self, token: str) -> None:
        """Have an access token."""
        self.patch.setenv("HF_TOKEN", token)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """A hub, the client pointed at it for as long, and all logs read: no token may stand in them or in an error."""
    reader, root, own = Reader(), logging.getLogger(), logging.getLogger("dinoneck")
    theirs = logging.getLogger("huggingface_hub")
    before, handlers = own.level, theirs.handlers[:]
    with pytest.MonkeyPatch.context() as patch, Hub() as served:
        point_client_at(served, patch, folder)
        patch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda _: None))  # between two tries
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        root.addHandler(reader)
        theirs.handlers[:] = [reader]  # in place of the one that prints
        own.setLevel(logging.DEBUG)
        try:
            yield World(served, patch, folder)
        except CheckpointError as error:
            reader.ours.append(str(error))
            if not error.__suppress_context__ and (error.__cause__ or error.__context__) is not None:
                raise Missed(f"the error drags along what the client said: {error.__context__!r}") from error
            raise
        finally:
            root.removeHandler(reader)
            own.setLevel(before)
            theirs.handlers[:] = handlers
            reader.check()


ACTION = Callable[[World], object]


def there(action: ACTION) -> Callable[[Path], None]:
    """Do something in a world of its own."""

    def run(folder: Path) -> None:
        with world(folder) as here:
            action(here)

    return run


def every(*actions: ACTION) -> Callable[[Path], None]:
    """Do several things in one world, one after the other."""
    return there(lambda here: [action(here) for action in actions])
