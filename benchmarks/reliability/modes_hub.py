"""Failure modes 74 to 79: heads that come from the Hugging Face hub, here one on loopback, and folders of heads."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from tests.hub_server import READER, WRITER

from benchmarks.reliability.children import in_child, without_rights
from benchmarks.reliability.forge import relisted
from benchmarks.reliability.hub_world import ACTION, FILE, NAME, World, every, there
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.modes_ensemble import ENSEMBLES
from benchmarks.reliability.saving import head
from dinoneck.checkpoint import EnsembleFolder, Member, save_ensemble
from dinoneck.checkpoint.hub import download
from dinoneck.errors import CheckpointError


def load(here: World) -> None:
    here.load()


def move(here: World) -> None:
    here.move()


def offline(here: World) -> None:
    here.offline()


def stop(here: World) -> None:
    here.served.stop()


def busy(here: World) -> None:
    here.served.down = 503


# -- 74: without a network --------------------------------------------------------------------------------------------


def first_by(revision: str) -> ACTION:
    """The commit that was fetched, by its name or its branch's."""
    return lambda here: here.reported(here.first, {"commit": here.first}.get(revision, revision))


def never_fetched(here: World) -> None:
    here.load(name="me/never")


def by_environment(here: World) -> None:
    """``HF_HUB_OFFLINE=1`` in the environment of a process: the client reads it when it is imported."""
    asked = len(here.served.requests)

    def process() -> None:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(here.cache), "HF_ENDPOINT": here.served.url}
        importlib.reload(huggingface_hub.constants)
        here.reported(here.first)
        here.move()
        here.reported(here.first)
        never_fetched(here)

    try:
        in_child(process)
    finally:
        if len(here.served.requests) != asked:
            raise Missed("the hub was asked")


# -- 75: downloads that break off --------------------------------------------------------------------------------------


def cut(*sizes: int) -> ACTION:
    return lambda here: setattr(here.served, "cuts", list(sizes))


def short(here: World) -> None:
    here.served.short = True


def works_again(here: World) -> None:
    """After a broken download the next one is whole."""
    try:
        here.load()
    except CheckpointError as error:
        if error.step != "hub" or "broke off" not in str(error):
            raise
    here.served.cuts, here.served.short = [], False
    here.load()


def foreign_beginning(here: World) -> None:
    """What an earlier download left is not this file's beginning: not used, or found by the digest and told."""
    blobs = here.cache / "models--me--one" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(here.content[0]).hexdigest()}.incomplete").write_bytes(b"x" * 100)
    try:
        here.load()
    except CheckpointError as error:
        as_told(here, error)


def as_told(here: World, error: CheckpointError) -> None:
    """The advice of a refusal helps: delete the file that it names, and load again."""
    place = re.search(r"delete (\S+) and load again", str(error))
    if place is None:
        raise error
    Path(place[1]).unlink()
    here.load()


# -- 76: refused -------------------------------------------------------------------------------------------------------


def asking_for(name: str = NAME, token: str | None = None, revision: str | None = None, **options: bool) -> ACTION:
    """Load what is not there, or not for this one."""

    def act(here: World) -> None:
        if options:
            here.served.repo(name, {FILE: here.content[0]}, **options)
        if token is not None:
            here.log_in(token)
        here.load(name=name, revision=revision)

    return act


def answering(status: int) -> ACTION:
    def act(here: World) -> None:
        here.log_in(WRITER)
        here.served.down = status
        here.load()

    return act


def holding(**files: int | None) -> ACTION:
    """A repository of other files: heads by their seed, None is text."""

    def act(here: World) -> None:
        contents = {name: b"text" if seed is None else here.content[seed] for name, seed in files.items()}
        here.served.repo("me/two", contents)
        here.load(name="me/two")

    return act


def out_of_the_cache(here: World) -> None:
    """A name in the repository that leads out of the cache."""
    here.served.repo("me/evil", {"../../../../out.safetensors": here.content[0]})
    try:
        here.load(name="me/evil")
    finally:
        if list(here.folder.rglob("out.safetensors")):
            raise Missed("a file was written outside the cache")


# -- 77: moved branches ------------------------------------------------------------------------------------------------


def both_told(here: World) -> None:
    """Loading tells the commit; the pinned one gives the old bits, the branch the new ones."""
    here.reported(here.first)
    second = here.move()
    here.reported(second, seed=1)
    here.reported(second, "main", 1)
    here.reported(here.first, here.first)


def moves_meanwhile(here: World) -> None:
    """The branch moves between the list of its files and their download."""
    download = huggingface_hub.hf_hub_download

    def late(*arguments: Any, **options: Any) -> str:
        here.repo.commit({FILE: None, "renamed.safetensors": here.content[1]})
        return str(download(*arguments, **options))

    here.patch.setattr(huggingface_hub, "hf_hub_download", late)
    here.reported(here.first)


def ensemble_moves_meanwhile(here: World) -> None:
    """No mixture of two commits: all heads are of the one whose list was read."""
    for name, seeds in (("before", (0, 1)), ("after", (2, 3))):
        save_ensemble(here.folder / name, [Member(head(seed), "a", fold) for fold, seed in enumerate(seeds)])
    repo = here.served.repo("me/many", files_in(here.folder / "before"))
    first, download = repo.branches["main"], huggingface_hub.hf_hub_download

    def late(*arguments: Any, **options: Any) -> str:
        repo.commit(dict(files_in(here.folder / "after")))
        return str(download(*arguments, **options))

    here.patch.setattr(huggingface_hub, "hf_hub_download", late)
    found = EnsembleFolder.load("me/many")
    if found.revision != first or digests_of(found) != [head(seed).meta["digest"] for seed in (0, 1)]:
        raise Missed("heads of two commits were mixed")


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def digests_of(ensemble: EnsembleFolder) -> list[str]:
    return [member.checkpoint.meta["digest"] for member in ensemble.members]


# -- 78: the cache ----------------------------------------------------------------------------------------------------


def closed(work: ACTION) -> ACTION:
    """The cache may be read and not written, by a process for which rights count."""

    def act(here: World) -> None:
        def limited() -> None:
            without_rights()
            work(here)

        here.cache.mkdir(exist_ok=True)
        folders = [here.cache, *(path for path in here.cache.rglob("*") if path.is_dir() and not path.is_symlink())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            in_child(limited)
        except CheckpointError as error:
            raise CheckpointError(str(error), step=error.step) from None
        finally:
            for folder in folders:
                folder.chmod(0o755)

    return act


def damaged(here: World) -> None:
    """A bit of the cached file flips."""
    place = download(NAME).resolve()
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)


def damaged_and_deleted(here: World) -> None:
    damaged(here)
    try:
        here.load()
    except CheckpointError as error:
        as_told(here, error)
    else:
        raise Missed("the damaged file was loaded")


def no_folder(here: World) -> None:
    """The cache is to be where a file is."""
    (here.folder / "file").write_text("")
    here.patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here.folder / "file"))
    here.load()


def note_lost(here: World) -> None:
    """What the cache knows of a branch is no commit."""
    (here.cache / "models--me--one" / "refs" / "main").write_text("../../../../etc")
    here.offline()
    here.load()


def bad_copy(here: World) -> None:
    """A repository with a damaged file: the message says where it comes from."""
    here.served.repo("me/bad", {FILE: here.content[0][:-1] + b"\0"})
    here.load(name="me/bad")


# -- 79: ensembles ---------------------------------------------------------------------------------------------------


def pushed(change: Callable[[Path], object]) -> ACTION:
    """Push a folder of heads after a change in it."""

    def act(here: World) -> None:
        save_ensemble(here.folder / "e", [Member(head(seed), "a", seed) for seed in range(3)])
        change(here.folder / "e")
        here.served.repo("me/many", files_in(here.folder / "e"))
        found = EnsembleFolder.load("me/many")
        if digests_of(found) != [head(seed).meta["digest"] for seed in range(3)]:
            raise Missed("other heads were loaded")

    return act


def exchanged(folder: Path) -> None:
    one, other = (folder / "heads" / f"a-fold{fold}.safetensors" for fold in (0, 1))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def leads_out(folder: Path) -> None:
    relisted(folder, lambda listing: listing["members"][0].update(file="../../../../etc/passwd"))


WITHOUT: dict[str, ACTION] = {"offline": offline, "hub down": stop, "hub busy": busy}
GONE = "is not in the local cache"
MODES = [
    Mode(74, "no network, with and without a cache", (
        Case("online", HARMLESS, there(load)),
        Case("HF_HUB_OFFLINE=1 in the environment, then another head", "hub", every(load, by_environment), GONE),
        *(Case(f"{name}, {what} cached", HARMLESS, every(load, move, way, first_by(what)))
          for name, way in WITHOUT.items() for what in ("main", "commit")),
        *(Case(f"{name}, nothing cached", "hub", every(way, load), GONE) for name, way in WITHOUT.items()),
        Case("offline, another cached", "hub", every(load, offline, never_fetched), GONE),
        Case("offline, another branch cached", "hub", every(load, offline, asking_for(revision="v9")), GONE),
        Case("a cache whose note of the branch is no commit", "hub", every(load, note_lost), GONE),
    )),
    Mode(75, "a download that breaks off", (
        Case("cut and resumed", HARMLESS, every(cut(1000), works_again)),
        Case("cut at the first byte", HARMLESS, every(cut(0), works_again)),
        Case("cut many times, whole the next time", HARMLESS, every(cut(*[100] * 40), works_again)),
        Case("shorter than announced", "hub", every(short, load), "broke off"),
        Case("shorter than announced, whole the next time", HARMLESS, every(short, works_again)),
        Case("a beginning left by another", HARMLESS, there(foreign_beginning)),
    )),
    Mode(76, "404, 401, 403", (
        Case("public, with a token", HARMLESS, there(asking_for(token=READER))),
        Case("private, with the owner's token", HARMLESS, there(asking_for("me/p", WRITER, private=True))),
        Case("no such repository, no token", "hub", there(asking_for("me/gone")), "you are not logged in"),
        Case("no such repository, with a token", "hub", there(asking_for("me/gone", READER)), "there is no hub"),
        Case("private, no token", "hub", there(asking_for("me/p", private=True)), "you are not logged in"),
        Case("private, another's token", "hub", there(asking_for("me/p", READER, private=True)), "your account may"),
        Case("gated, no token", "hub", there(asking_for("me/g", gated=True)), "is gated: accept its owner's terms"),
        Case("gated, another's token", "hub", there(asking_for("me/g", READER, gated=True)), "is gated"),
        Case("a token that is not accepted", "hub", there(asking_for(token="hf_" + "x" * 32)), "does not accept your"),
        Case("no such revision", "hub", there(asking_for(revision="v9")), "no branch, tag or commit 'v9'"),
        *(Case(f"every answer is {status}", "hub", there(answering(status)), str(status) if status != 404 else "")
          for status in (401, 403, 404, 410, 418, 429, 500, 503)),
        Case("no head in it", "hub", there(holding(text=None)), "holds no head file"),
        Case("two heads in it", "hub", there(holding(**{"a.safetensors": 0, "b.safetensors": 1})), "holds 2"),
        Case("a name that leads out of the cache", "hub", there(out_of_the_cache)),
    )),
    Mode(77, "a branch that moves", (
        Case("the commit is told and may be pinned", HARMLESS, there(both_told)),
        Case("between listing and download", HARMLESS, there(moves_meanwhile)),
        Case("an ensemble between listing and download", HARMLESS, there(ensemble_moves_meanwhile)),
    )),
    Mode(78, "a cache that may not be written, or is damaged", (
        Case("read-only, with the head", HARMLESS, every(load, closed(load))),
        Case("read-only, with the head's commit", HARMLESS, every(load, move, closed(first_by("commit")))),
        Case("read-only, without", "hub", there(closed(load)), "cannot be written to the local cache"),
        Case("read-only, with an older head", "hub", every(load, move, closed(load)), "cannot be written to the"),
        Case("no folder", "hub", there(no_folder), "set HF_HUB_CACHE"),
        Case("a flipped bit", "digest", every(load, damaged, load), "and load again"),
        Case("a flipped bit, and the advice", HARMLESS, every(load, damaged_and_deleted)),
        Case("damaged before it was pushed", "digest", there(bad_copy), "me/bad at "),
    )),
    Mode(79, "an ensemble with a head that is missing, another or too many", (
        *ENSEMBLES,
        Case("from the hub", HARMLESS, there(pushed(lambda _: None))),
        Case("from the hub, one missing", "file",
             there(pushed(lambda folder: (folder / "heads" / "a-fold1.safetensors").unlink())), "lacks heads/a-fold1"),
        Case("from the hub, two exchanged", "digest", there(pushed(exchanged)), "another head than"),
        Case("from the hub, a path that leads out", "schema", there(pushed(leads_out)), "expected 'heads/"),
    )),
]  # fmt: skip
