"""Failure modes 62 to 73, of the file system; here a save that is killed, or has no room, no right or no rename."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability import kills
from benchmarks.reliability.children import child, in_child, with_files_of, without_rights
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.modes_meanwhile import MODES as MEANWHILE
from benchmarks.reliability.modes_paths import MODES as PATHS
from benchmarks.reliability.saving import as_it_was, good_file, head, is_head, leaves, saved_over
from dinoneck import HeadCheckpoint, Predictor
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.checkpoint import Member, load_ensemble, save_ensemble

Run = Callable[[Path], None]
MARK = ".dinoneck-tmp"


def nothing() -> None:
    """Prepare nothing."""


# -- 62: kills --------------------------------------------------------------------------------------------------------


def a_hundred_kills(folder: Path) -> None:
    """A tenth of the campaign: a hundred of a file over an old one, ten of a folder."""
    if failed := kills.measure(folder, 0.1)["failed"]:
        raise Missed(f"after kills: {failed}")


def killed_first_saves(folder: Path) -> None:
    """Killed while there is no old file: then there is none, or a whole one."""
    chance, path = random.Random(0), folder / "h.safetensors"
    new = head(1, width=4096)
    for _ in range(25):
        saving = child(lambda: new.save(path))
        time.sleep(chance.random() * 0.03)
        saving.kill()
        saving.ended()
        if path.exists():
            if HeadCheckpoint.load(path).meta["digest"] != new.meta["digest"]:
                raise Missed("a killed save left something else")
            path.unlink()


def leftovers(folder: Path) -> None:
    """What a killed save leaves is cleared by the next one to the same file once it is an hour old, and only that."""
    path = good_file(folder)
    names = {"old": f".{path.name}.00{MARK}", "young": f".{path.name}.11{MARK}", "others": f".other.22{MARK}"}
    for name in names.values():
        (folder / name).write_bytes(b"half")
    past = time.time() - STALE_AFTER_S - 60
    for kind in ("old", "others"):
        os.utime(folder / names[kind], (past, past))
    head(1).save(path)
    is_head(path, 1)
    leaves(folder, path.name, names["young"], names["others"])


# -- 63: a full disk --------------------------------------------------------------------------------------------------


def room_for(share: float, short: int = 0) -> Run:
    """A disk that is full after a share of the file."""

    def run(folder: Path) -> None:
        size = good_file(folder).stat().st_size
        saved_over(lambda: with_files_of(int(size * share) - short))(folder)

    return run


def no_room_for_an_ensemble(folder: Path) -> None:
    """The old folder stays, and nothing is beside it."""
    save_ensemble(folder / "e", [Member(head(0), "a", 0), Member(head(1), "a", 1)])

    def work() -> None:
        with_files_of(1000)
        save_ensemble(folder / "e", [Member(head(2), "a", 0), Member(head(3), "a", 1)], overwrite=True)

    with as_it_was(folder):
        in_child(work)


# -- 64: rights -------------------------------------------------------------------------------------------------------


def in_a_folder_of(mode: int, work: Callable[[Path], object], seed: int = 0) -> Run:
    """Do something with a file in a folder of these rights, in a process for which rights count."""

    def run(folder: Path) -> None:
        room = folder / "room"
        room.mkdir()
        path = good_file(room)

        def limited() -> None:
            without_rights()
            os.chdir(folder)
            work(path)

        room.chmod(mode)
        try:
            in_child(limited)
        finally:
            room.chmod(0o755)
            is_head(path, seed)
            leaves(room, path.name)

    return run


def rights_of_the_file(mode: int, work: Callable[[Path], object]) -> Run:
    """Do something with a file of these rights."""

    def run(folder: Path) -> None:
        path = good_file(folder)

        def limited() -> None:
            without_rights()
            work(path)

        path.chmod(mode)
        with as_it_was(folder):
            in_child(limited)

    return run


def ensemble_in_a_closed_folder(folder: Path) -> None:
    save_ensemble(folder / "e", [Member(head(0), "a", 0), Member(head(1), "a", 1)])

    def limited() -> None:
        without_rights()
        load_ensemble(folder / "e")

    (folder / "e" / "heads").chmod(0)
    try:
        in_child(limited)
    finally:
        (folder / "e" / "heads").chmod(0o755)


# -- 68: file systems that do not offer everything --------------------------------------------------------------------


def failing(name: str, code: int, on: Callable[..., bool] = lambda *_: True) -> Callable[[], None]:
    """Let a call of the system fail from now on; for a process of its own."""

    def prepare() -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            if on(*arguments):
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        setattr(os, name, call)

    return prepare


def of_a_folder(descriptor: int, *_: object) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def folder_not_flushed(folder: Path) -> None:
    """The disk fails after the rename: it is told, and the file is the new one, whole."""
    path = good_file(folder)

    def work() -> None:
        failing("fsync", errno.EIO, of_a_folder)()
        head(1).save(path)

    try:
        in_child(work)
    finally:
        is_head(path, 1)
        leaves(folder, path.name)


def no_rename_of_folders(call: int) -> Run:
    """The first or second of the renames that exchange two folders is refused, as overlays of containers do."""

    def run(folder: Path) -> None:
        save_ensemble(folder / "e", [Member(head(0), "a", 0), Member(head(1), "a", 1)])

        def work() -> None:
            calls = iter(range(9))
            failing("rename", errno.EXDEV, lambda *_: next(calls) == call)()
            save_ensemble(folder / "e", [Member(head(2), "a", 0), Member(head(3), "a", 1)], overwrite=True)

        with as_it_was(folder):
            in_child(work)

    return run


def no_wider_rights(folder: Path) -> None:
    """Where permission bits cannot be set, the new file has those it was made with: not more than the old one."""
    path = good_file(folder)
    path.chmod(0o600)

    def work() -> None:
        os.umask(0)
        failing("chmod", errno.EPERM)()
        head(1).save(path)

    in_child(work)
    is_head(path, 1)
    if path.stat().st_mode & 0o077:
        raise Missed(f"the new file may be read by others: {path.stat().st_mode & 0o777:o}")


def save(path: str | Path) -> None:
    head(1).save(path)


SAVED_OVER = (
    ("another device", "replace", errno.EXDEV, "cannot be renamed"),
    ("not supported", "replace", errno.ENOTSUP, "Save to a folder on a local disk"),
    ("not permitted", "replace", errno.EPERM, "cannot be renamed"),
    ("held", "replace", errno.EBUSY, "mounted by itself"),
    ("flushing fails", "fsync", errno.EIO, "Input/output error"),
    ("no room when flushed", "fsync", errno.ENOSPC, "No space left"),
    ("permission bits fail", "chmod", errno.EIO, "Input/output error"),
)
load = HeadCheckpoint.load
NONE_OFFERED = {"not supported": errno.ENOTSUP, "not permitted": errno.EPERM}
MODES = [
    Mode(62, "kill -9 at 100 random instants", (
        Case("a hundred kills", HARMLESS, a_hundred_kills),
        Case("no old file", HARMLESS, killed_first_saves),
        Case("leftovers", HARMLESS, leftovers),
    ), slow=True),
    Mode(63, "a full disk", (
        Case("room enough", HARMLESS, room_for(1)),
        Case("room for all but a byte", "write", room_for(1, 1), "File too large"),
        Case("room for half", "write", room_for(0.5), "File too large"),
        Case("room for a part of the header", "write", room_for(0.02), "File too large"),
        Case("room for nothing", "write", room_for(0), "File too large"),
        Case("an ensemble", "write", no_room_for_an_ensemble, "File too large"),
    )),
    Mode(64, "rights that are missing", (
        Case("all rights", HARMLESS, in_a_folder_of(0o755, save, 1)),
        Case("saving in a folder that may not be written", "write", in_a_folder_of(0o555, save), "Permission denied"),
        Case("saving in a closed folder", "write", in_a_folder_of(0o000, save), "Permission denied"),
        Case("loading from a closed folder", "file", in_a_folder_of(0o000, load), "Permission denied"),
        Case("loading from a closed folder, named like a repository", "file",
             in_a_folder_of(0o000, lambda path: load("room/h")), "Permission denied"),
        Case("predicting from a closed folder", "file", in_a_folder_of(0o000, lambda path: Predictor(path.parent))),
        Case("an ensemble with a closed folder", "file", ensemble_in_a_closed_folder),
        Case("a folder that may not be listed", HARMLESS, in_a_folder_of(0o333, save, 1)),
        Case("loading a file that may not be read", "file", rights_of_the_file(0o000, load), "Permission denied"),
        Case("saving over a file that may not be written", "write", rights_of_the_file(0o455, save), "write-protected"),
    )),
    Mode(68, "a file system without rename, flush or permission bits", (
        Case("one that offers everything", HARMLESS, saved_over(nothing)),
        *(Case(f"{call}: {name}", "write", saved_over(failing(call, code)), message)
          for name, call, code, message in SAVED_OVER),
        *(Case(f"permission bits: {name}", HARMLESS, saved_over(failing("chmod", code)))
          for name, code in NONE_OFFERED.items()),
        *(Case(f"flushing a folder: {name}", HARMLESS, saved_over(failing("fsync", code, of_a_folder)))
          for name, code in {**NONE_OFFERED, "invalid": errno.EINVAL}.items()),
        Case("flushing a folder fails", "write", folder_not_flushed, "is the new file, but its folder could not"),
        Case("no wider rights", HARMLESS, no_wider_rights),
        Case("renaming a folder aside", "write", no_rename_of_folders(0), "cannot be written"),
        Case("renaming a folder into place", "write", no_rename_of_folders(1), "cannot be written"),
    )),
]  # fmt: skip
MODES = sorted([*MODES, *PATHS, *MEANWHILE], key=lambda mode: mode.number)
