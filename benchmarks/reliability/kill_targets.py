"""What is saved while the process is killed: a head over a good file, an ensemble over a good folder."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import torch

from dinoneck import HeadCheckpoint, PatchMeanHead, PatchMeanMLP, Task
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.checkpoint import EnsembleFolder, Member

MARK = ".dinoneck-tmp"
MEMBERS = 3


class Target(Protocol):
    """Two states that are saved over one another.

    Attributes:
        root: the folder that everything lies in.
    """

    root: Path

    def save(self, which: int) -> None:
        """Save state 0 or 1 the way a user does."""

    def found(self) -> tuple[int, bool]:
        """Return which state is there bit for bit, and whether it lies aside under a hidden name; -1 if neither."""

    def strays(self) -> list[Path]:
        """Return what a killed save left behind."""

    def clear(self, stray: Path) -> None:
        """Remove it."""


class FileTarget:
    """Two heads of about 8 MiB that are saved to one path."""

    def __init__(self, root: Path, width: int = 2048) -> None:
        self.root, self.path = root, root / "head.safetensors"
        self.heads, self.contents = [], []
        for seed in (1, 0):
            torch.manual_seed(seed)
            self.heads.insert(0, HeadCheckpoint.from_module(PatchMeanMLP(width, 1024)))
            self.save(0)
            self.contents.insert(0, self.path.read_bytes())

    def save(self, which: int) -> None:
        """Save one of the heads."""
        self.heads[which].save(self.path)

    def found(self) -> tuple[int, bool]:
        """Compare every byte."""
        content = self.path.read_bytes() if self.path.exists() else b""
        return (self.contents.index(content) if content in self.contents else -1), False

    def strays(self) -> list[Path]:
        """Temporary files beside it."""
        return sorted(self.root.glob(f".*{MARK}"))

    def clear(self, stray: Path) -> None:
        """Remove a file."""
        stray.unlink()


class FolderTarget:
    """Two ensembles of three heads that are saved to one folder with ``overwrite=True``."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "ensemble"
        self.ensembles, self.contents = [ensemble(seed) for seed in (0, 1)], []
        for which in (1, 0):
            self.save(which)
            self.contents.insert(0, contents(self.path))

    def save(self, which: int) -> None:
        """Save one of the ensembles."""
        self.ensembles[which].save(self.path, overwrite=True)

    def found(self) -> tuple[int, bool]:
        """Compare every byte of every file; where the folder is missing, those of the one that was moved aside.

        That one is moved back, as a person would.
        """
        there = contents(self.path)
        if there:
            return (self.contents.index(there) if there in self.contents else -1), False
        whole = [stray for stray in self.strays() if ".old-" in stray.name and contents(stray) in self.contents]
        if not whole:
            return -1, False
        whole[0].rename(self.path)
        return self.contents.index(contents(self.path)), True

    def strays(self) -> list[Path]:
        """Folders beside it, unfinished or moved aside."""
        return sorted(self.root.glob(f".*{MARK}"))

    def clear(self, stray: Path) -> None:
        """Remove a folder."""
        shutil.rmtree(stray)


def ensemble(seed: int) -> EnsembleFolder:
    """Three small heads whose weights only this seed has."""
    members = []
    for fold in range(MEMBERS):
        torch.manual_seed(100 * seed + fold)
        head = PatchMeanHead(64, [Task("total")], hidden_dim=16)
        members.append(Member(HeadCheckpoint.from_module(head), "total", fold))
    return EnsembleFolder(members)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder by its path; nothing if there is none."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cleaned(target: Target, strays: list[Path]) -> dict[str, int]:
    """Save once over fresh leftovers and once over the same an hour later; count what is still there."""
    which = target.found()[0]
    target.save(which)
    fresh = sum(stray.exists() for stray in strays)
    for stray in strays:
        os.utime(stray, (0, time.time() - STALE_AFTER_S - 60))
    target.save(which)
    return {"left": len(strays), "kept_while_fresh": fresh, "kept_after_an_hour": sum(s.exists() for s in strays)}
