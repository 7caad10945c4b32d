"""Failure modes 65, 69 and 70: targets that are no plain files, names, and the folder that names are relative to."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub

from benchmarks.reliability.children import in_child
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.saving import as_it_was, good_file, head, is_head, leaves
from dinoneck import HeadCheckpoint, Predictor, load_head
from dinoneck.atomic import write_whole
from dinoneck.cli.main import main

Run = Callable[[Path], None]


def save(path: str | Path) -> None:
    head(1).save(path)


load = HeadCheckpoint.load


# -- 65: targets that are no plain file -------------------------------------------------------------------------------


def over(make: Callable[[Path], object], then: Callable[[Path], object] | None = None) -> Run:
    """Save to what ``make`` makes of a path; a refusal changes nothing, else ``then`` looks at what came of it."""

    def run(folder: Path) -> None:
        path = folder / "h.safetensors"
        make(path)
        with as_it_was(folder):
            head(1).save(path)
        is_head(path, 1)
        if then is not None:
            then(path)

    return run


def out_of(make: Callable[[Path], object]) -> Run:
    """Load what ``make`` makes of a path."""

    def run(folder: Path) -> None:
        make(folder / "h.safetensors")
        is_head(folder / "h.safetensors", 0)

    return run


def link(path: Path) -> None:
    (path.parent / "far").mkdir()
    path.symlink_to(good_file(path.parent / "far", "real.safetensors"))


def chain(path: Path) -> None:
    link(path.parent / "second")
    path.symlink_to("second")


def is_still_a_link(path: Path) -> None:
    is_head(path.parent / "far" / "real.safetensors", 1)
    if not path.is_symlink():
        raise Missed("the link was replaced by a file")
    leaves(path.parent / "far", "real.safetensors")


def points_at_the_new_file(path: Path) -> None:
    if not path.is_symlink() or not (path.parent / "there.safetensors").is_file():
        raise Missed("the link was not followed")


def hard_link(path: Path) -> None:
    os.link(good_file(path.parent, "other.safetensors"), path)


def other_name_keeps_the_old(path: Path) -> None:
    is_head(path.parent / "other.safetensors", 0)


def kept_rights(path: Path) -> None:
    if path.stat().st_mode & 0o777 != 0o640:
        raise Missed(f"the permission bits are {path.stat().st_mode & 0o777:o}")


def read_only(path: Path) -> None:
    good_file(path.parent, path.name).chmod(0o444)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):  # a socket's name is short
        made.bind(path.name)


def device(action: Callable[[str], object]) -> Run:
    """``/dev/zero`` in place of a file; it stays what it is."""
    return lambda folder: action("/dev/zero")


# -- 69: names ---------------------------------------------------------------------------------------------------------


def named(name: str | bytes) -> Run:
    """Save, replace and load under a name, from its folder; the command line reads it too."""

    def run(folder: Path) -> None:
        own = os.fsdecode(name)

        def work() -> None:
            os.chdir(folder)
            for path, seed in ((own, 0), (Path(own), 1), (folder / own, 2)):
                head(seed).save(path)
                is_head(path, seed)
                load_head(path)
            sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
            for verb in ("inspect", "verify"):
                if main([verb, str(folder / own)]) != 0:
                    raise Missed(f"dinoneck {verb} refuses it")

        in_child(work)
        leaves(folder, own)

    return run


def two_spellings(folder: Path) -> None:
    """An umlaut as one sign and as two are two names, as the file system has them."""
    names = ("gr\u00fcn.safetensors", "gru\u0308n.safetensors")
    for seed, name in enumerate(names):
        head(seed).save(folder / name)
    if len(list(folder.iterdir())) == len(names):
        for seed, name in enumerate(names):
            is_head(folder / name, seed)


def told_in_a_message(name: bytes) -> Run:
    """Such names can be told: the message of an error is printable, on any terminal."""

    def run(folder: Path) -> None:
        path = folder / os.fsdecode(name)
        path.write_bytes(b"no head file")
        try:
            load(path)
        except OSError as error:
            str(error).encode()
            if not str(error).replace("\n", "").isprintable():
                raise Missed(f"a name steers the terminal: {error!r}") from error
            raise

    return run


# -- 70: the folder that names are relative to -------------------------------------------------------------------------


def elsewhere(work: Callable[[], object], name: str = "runs/h.safetensors") -> Run:
    """Save under a relative name, go to another folder, and do something there."""

    def run(folder: Path) -> None:
        (folder / "runs").mkdir()
        (folder / "other").mkdir()

        def inside() -> None:
            huggingface_hub.constants.HF_HUB_OFFLINE = True
            os.chdir(folder)
            head(0).save(name)
            os.chdir("other")
            work()

        in_child(inside)

    return run


def another_of_that_name() -> None:
    """The name means another file there: that one is loaded."""
    Path("runs").mkdir()
    save("runs/h.safetensors")
    is_head("runs/h.safetensors", 1)
    is_head("../runs/h.safetensors", 0)


def goes_while_it_writes() -> None:
    """The process changes its folder in the middle of a write: the file lands where the name meant at first."""

    def content() -> object:
        yield b"first, "
        os.chdir("..")
        yield b"second"

    write_whole("here", content())  # type: ignore[arg-type]
    if Path("here").exists() or Path("other/here").read_bytes() != b"first, second":
        raise Missed("it landed elsewhere")


def loaded_before() -> None:
    """What was loaded needs its file no more."""
    os.chdir("..")
    checkpoint, wanted = load("runs/h.safetensors"), head(0)
    os.chdir("/")
    checkpoint.build()
    if checkpoint.meta["digest"] != wanted.meta["digest"]:
        raise Missed("other bits")


def folder_is_gone(work: Callable[[], object]) -> Callable[[], None]:
    """The process stands in a folder that was removed."""

    def run() -> None:
        Path("../other").rmdir()
        work()

    return run


LONGEST = 255
NAMES: dict[str, str | bytes] = {
    "plain": "h.safetensors",
    "spaces": " a  b .safetensors",
    "umlauts, ideograms, signs of two code units": "größe 草地 🌱.safetensors",
    "right to left": "מרעה.safetensors",
    "255 bytes": "x" * LONGEST,
    "255 bytes of two-byte signs": "ü" * 127 + "x",
    "a newline": "a\nb.safetensors",
    "a tab and a bell": "a\tb\a.safetensors",
    "a dash first": "-rf.safetensors",
    "a dot first": ".h.safetensors",
    "a tilde": "~.safetensors",
    "signs of a shell": "$(x) `y` *?[z] 'q' \"p\" \\.safetensors",
    "signs of an address": "http:%2e%2e;a=b&c#d.safetensors",
    "no UTF-8": b"gr\xfcn.safetensors",
    "no UTF-8, 255 bytes": b"\xff" * LONGEST,
    "no ending": "head",
}

MODES = [
    Mode(65, "a target that is no plain file of its own", (
        Case("a folder", "write", over(Path.mkdir), "is a folder"),
        Case("a link is followed and stays", HARMLESS, over(link, is_still_a_link)),
        Case("a link to nothing yet", HARMLESS,
             over(lambda path: path.symlink_to("there.safetensors"), points_at_the_new_file)),
        Case("a link into a missing folder", "write", over(lambda path: path.symlink_to("no/h")), "does not exist"),
        Case("a link to itself", "write", over(lambda path: path.symlink_to(path.name)), "leads to itself"),
        Case("a link to a folder", "write", over(lambda path: path.symlink_to(".")), "is a folder"),
        Case("a hard link: the other name keeps the old file", HARMLESS, over(hard_link, other_name_keeps_the_old)),
        Case("permission bits are kept", HARMLESS,
             over(lambda path: good_file(path.parent).chmod(0o640), kept_rights)),
        Case("a write-protected file, as root too", "write", over(read_only), "write-protected"),
        Case("a pipe", "write", over(os.mkfifo), "device or pipe"),
        Case("a socket", "write", over(unix_socket), "device or pipe"),
        Case("a device", "write", device(save), "device or pipe"),
        Case("loading a link", HARMLESS, out_of(link)),
        Case("loading a write-protected file", HARMLESS, out_of(read_only)),
        Case("loading a folder", "file", out_of(Path.mkdir), "is a folder"),
        Case("loading a link to nothing", "file", out_of(lambda path: path.symlink_to("no")), "there is no head file"),
        Case("loading a link to itself", "file", out_of(lambda path: path.symlink_to(path.name)), "cannot be opened"),
        Case("loading a pipe", "file", out_of(os.mkfifo), "no regular file"),
        Case("loading a socket", "file", out_of(unix_socket), "no regular file"),
        Case("loading a device", "file", device(load), "no regular file"),
    )),
    Mode(69, "names with other signs than letters", (
        *(Case(kind, HARMLESS, named(name)) for kind, name in NAMES.items()),
        Case("two spellings of one word", HARMLESS, two_spellings),
        Case("256 bytes", "write", lambda folder: save(folder / ("x" * 256)), "File name too long"),
        Case("loading 256 bytes", "file", lambda folder: load(folder / ("x" * 256)), "cannot be opened"),
        Case("a NUL", "write", lambda folder: save(f"{folder}/a\0b"), "null"),
        Case("loading a NUL", "file", lambda folder: load(f"{folder}/a\0b"), "cannot be opened"),
        Case("nothing", "file", lambda folder: save(""), "not empty"),
        Case("loading nothing", "file", lambda folder: load(""), "not empty"),
        Case("a message with a name that is no UTF-8", "header", told_in_a_message(b"gr\xfcn"), "is no head file"),
        Case("a message with a name that clears the screen", "header", told_in_a_message(b"\x1b[2J"), "is no head"),
    )),
    Mode(70, "the working folder changes between save and load", (
        Case("loaded before", HARMLESS, elsewhere(loaded_before)),
        Case("another file of that name", HARMLESS, elsewhere(another_of_that_name)),
        Case("none of that name", "file", elsewhere(lambda: load("runs/h.safetensors")), "there is no head file"),
        Case("none of that name, which may name a repository", "hub", elsewhere(lambda: load("runs/h"), "runs/h"),
             "there is no file or folder runs/h"),
        Case("predicting", "file", elsewhere(lambda: Predictor("runs/h.safetensors")), "there is no head file"),
        Case("saving where there is no such folder", "write", elsewhere(lambda: save("runs/h.safetensors")),
             "does not exist"),
        Case("in the middle of a write", HARMLESS, elsewhere(goes_while_it_writes)),
        Case("the folder was removed: saving", "write", elsewhere(folder_is_gone(lambda: save("h.safetensors")))),
        Case("the folder was removed: loading", "file", elsewhere(folder_is_gone(lambda: load("h.safetensors"))),
             "there is no head file"),
    )),
]  # fmt: skip
