"""One data set of the net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A data set, how it is read, and what is right.

    Attributes:
        id: of the case.
        write: writes its files into a folder.
        read: returns what was read of the folder.
        right: what it returns; an exception class is a refusal.
        names: of a refusal: what the message names.
        since: the version that reads it so, "0.4" or "0.5".
        needs: a package that it needs, which may be missing.
    """

    id: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    right: Any
    names: tuple[str, ...] = ()
    since: str = "0.4"
    needs: str = ""
