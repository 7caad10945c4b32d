"""Failure modes 66, 67 and 71 to 73: others at work on the file at the same moment, and reads that are cut up."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.reliability.children import child, in_child
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.saving import as_it_was, good_file, head, is_head, leaves, side_by_side
from dinoneck import HeadCheckpoint
from dinoneck.atomic import write_whole
from dinoneck.checkpoint import Member, ensemble_folder, load_ensemble, save_ensemble
from dinoneck.checkpoint import head_checkpoint as saving
from dinoneck.checkpoint import header as headers
from dinoneck.errors import CheckpointError

Run = Callable[[Path], None]
Event = Callable[[Path], object]
load = HeadCheckpoint.load


# -- 66, 67: others at the same time ----------------------------------------------------------------------------------


def eight_writers(folder: Path) -> None:
    """Each saves its own head several times over the others' in one file."""
    path = good_file(folder)

    def writer(seed: int) -> Callable[[], None]:
        mine = head(seed)
        return lambda: [mine.save(path) for _ in range(5)] and None

    side_by_side(*(writer(seed) for seed in range(8)))
    is_head(path, *range(8))
    leaves(folder, path.name)


def reader_beside_writers(folder: Path) -> None:
    """Whatever moment a reader comes, it finds one of the heads, whole."""
    path = good_file(folder)
    heads = {seed: head(seed) for seed in range(3)}

    def writer(seed: int) -> Callable[[], None]:
        return lambda: [heads[seed].save(path) for _ in range(15)] and None

    def reader() -> None:
        for _ in range(25):
            is_head(path, *heads)

    side_by_side(writer(1), writer(2), reader, reader)
    leaves(folder, path.name)


# -- 71: replaced while it is read -------------------------------------------------------------------------------------


def just_before(module: object, name: str, event: Callable[[], object], call: int = 0) -> None:
    """Let something happen before a function of a module is called for the n-th time; for a process of its own."""
    real, calls = getattr(module, name), iter(range(1 << 30))

    def late(*arguments: object, **options: object) -> object:
        if next(calls) == call:
            event()
        return real(*arguments, **options)

    setattr(module, name, late)


def meanwhile(moment: str, event: Event, *seeds: int) -> Run:
    """Load a file to which something happens at a moment of reading; what is loaded is one of these heads."""

    def run(folder: Path) -> None:
        path = good_file(folder)

        def work() -> None:
            just_before(headers, moment, lambda: event(path))
            is_head(path, *seeds)

        in_child(work)

    return run


def renamed_over(path: Path) -> None:
    """Another head takes its place, as every save does it."""
    head(1).save(path)


def overwritten(path: Path) -> None:
    """Another head is written into the same file, as no save does it."""
    other = good_content(1)
    with path.open("r+b") as file:
        file.write(other)


def good_content(seed: int) -> bytes:
    return headers.build(head(seed).meta) + b"".join(
        bytes(memoryview(value.numpy()).cast("B")) for _, value in sorted(head(seed).state_dict.items())
    )


def cut_to(share: float) -> Event:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def exchanged_for_a_pipe(folder: Path) -> None:
    """Between the look at a file and its opening: nobody waits for a pipe without a writer."""
    path = good_file(folder)

    def exchange() -> None:
        path.unlink()
        os.mkfifo(path)

    def work() -> None:
        just_before(headers, "_without_waiting", exchange)
        load(path)

    in_child(work)


def member_exchanged(folder: Path) -> None:
    """A sound head takes the place of another after the list of an ensemble was read."""
    save_ensemble(folder / "e", [Member(head(0), "a", 0), Member(head(1), "a", 1)])

    def work() -> None:
        path = folder / "e" / "heads" / "a-fold1.safetensors"
        just_before(ensemble_folder.HeadCheckpoint, "load", lambda: head(2).save(path), call=1)
        load_ensemble(folder / "e")

    in_child(work)


def while_saving(event: Event) -> Run:
    """Something happens to the finished temporary file, or around it, before it is read back."""

    def run(folder: Path) -> None:
        path = good_file(folder)

        def work() -> None:
            just_before(saving, "_read_back", lambda: event(folder))
            head(1).save(path)

        try:
            in_child(work)
        finally:
            if path.is_file():
                is_head(path, 0)
                leaves(folder, path.name)

    return run


def lying_disk(folder: Path) -> None:
    """One bit is not what was written."""
    [temporary] = folder.glob("*.dinoneck-tmp")
    content = bytearray(temporary.read_bytes())
    content[-1] ^= 1
    temporary.write_bytes(content)


def a_folder_comes(folder: Path) -> None:
    """Somebody makes a folder where the file is to be."""
    (folder / "h.safetensors").unlink()
    (folder / "h.safetensors").mkdir()


def temporary_is_gone(folder: Path) -> None:
    [temporary] = folder.glob("*.dinoneck-tmp")
    temporary.unlink()


# -- 72: reads in pieces ----------------------------------------------------------------------------------------------


class Pieces(io.FileIO):
    """A file that gives a few bytes at a time, as pipes and network disks may."""

    broken = False

    def readinto(self, buffer: object) -> int:  # type: ignore[override]
        """Read up to seven bytes."""
        if self.broken and self.tell() > 100:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        room = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        return super().readinto(room[: 1 + self.tell() % 7])


class BrokenPieces(Pieces):
    """The same on a disk that fails."""

    broken = True


def in_pieces(kind: type[Pieces]) -> Run:
    def run(folder: Path) -> None:
        path = good_file(folder)

        def work() -> None:
            headers.open_regular = lambda place: io.BufferedReader(kind(place), 16)  # type: ignore[assignment]
            is_head(path, 0)

        in_child(work)

    return run


def interrupted(folder: Path) -> None:
    """Signals arrive all the time, and the system's calls are not restarted by themselves."""
    path = good_file(folder)

    def work() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
        for seed in range(12):
            head(seed % 2).save(path)
            is_head(path, seed % 2)

    in_child(work)


def interrupted_for_good(folder: Path) -> None:
    """Ctrl-C at random moments of a save, each in a process of its own: the old file or the new one, whole."""
    path = good_file(folder)
    chance, heads = random.Random(0), [head(0, width=512), head(1, width=512)]
    known, stopped = {one.meta["digest"] for one in [*heads, head(0)]}, 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def save(number: int, seconds: float) -> None:
        signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            heads[number % 2].save(path)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except BaseException as interruption:  # torch makes other errors of it where it leaves a mode
            raise CheckpointError("interrupted", step="write") from interruption

    for number in range(40):
        try:
            in_child(partial(save, number, 1e-4 + chance.random() * 4e-3))
        except CheckpointError:
            stopped += 1
        if load(path).meta["digest"] not in known:
            raise Missed("an interrupted save left something else")
    if not stopped:
        raise Missed("nothing was interrupted")


def by_descriptor(folder: Path) -> None:
    """A file that is open already, by its number."""
    with good_file(folder).open("rb") as file:
        is_head(f"/dev/fd/{file.fileno()}", 0)


def through_a_pipe(action: Callable[[str], object], stdin: bool = False) -> Run:
    """A pipe is no file: neither read from nor written to."""

    def run(folder: Path) -> None:
        path = good_file(folder)

        def work() -> None:
            reading, writing = os.pipe()
            os.write(writing, path.read_bytes())
            os.close(writing)
            if stdin:
                os.dup2(reading, 0)
            action("/dev/stdin" if stdin else f"/dev/fd/{reading}")

        with as_it_was(folder):
            in_child(work)

    return run


# -- 73: threads and forks --------------------------------------------------------------------------------------------


def make_heads() -> list[HeadCheckpoint]:
    """Make what the threads save before they start: random numbers are drawn by one at a time."""
    return [head(seed) for seed in range(8)]


def saves_and_loads(path: Path, seed: int, times: int) -> None:
    for _ in range(times):
        head(seed).save(path)
        is_head(path, *range(8))
        load(path).build()


def eight_threads(path: Path, times: int) -> None:
    """Each saves its own head and loads whatever is there."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            saves_and_loads(path, seed, times)
        except BaseException as error:  # for the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def threads_alone(folder: Path) -> None:
    path = good_file(folder)
    make_heads()
    in_child(lambda: eight_threads(path, 5))
    leaves(folder, path.name)


def forks_between_threads(folder: Path) -> None:
    """Processes are forked while the threads are in the middle of saving; they write and read too, without torch."""
    path = good_file(folder)
    make_heads()
    content = path.read_bytes()

    def writes_and_reads() -> None:
        for _ in range(2):
            write_whole(path, content)
            headers.read_header(path)

    def work() -> None:
        threads = threading.Thread(target=eight_threads, args=(path, 5))
        threads.start()
        children = [child(writes_and_reads, with_torch=False) for _ in range(6)]
        for one in children:
            one.ended(20)
        threads.join()
        is_head(path, *range(8))

    in_child(work)
    leaves(folder, path.name)


MODES = [
    Mode(66, "eight writers of one file", (Case("five saves each", HARMLESS, eight_writers),)),
    Mode(67, "readers while it is written", (Case("two and two", HARMLESS, reader_beside_writers),)),
    Mode(71, "a file that is replaced, cut or grown while it is read", (
        Case("replaced before the header is read", HARMLESS, meanwhile("parse", renamed_over, 0)),
        Case("replaced before the tensors are read", HARMLESS, meanwhile("read_data", renamed_over, 0)),
        Case("removed before the tensors are read", HARMLESS, meanwhile("read_data", Path.unlink, 0)),
        Case("overwritten before the header is read", HARMLESS, meanwhile("parse", overwritten, 1)),
        Case("overwritten before the tensors are read", "digest", meanwhile("read_data", overwritten), "its digest"),
        Case("emptied before the header is read", "header", meanwhile("parse", cut_to(0))),
        Case("cut before the header is read", "json", meanwhile("parse", cut_to(0.05))),
        Case("cut before the tensors are read", "tensors", meanwhile("read_data", cut_to(0.5)), "ended while"),
        Case("grown before the tensors are read", HARMLESS, meanwhile("read_data", grown, 0)),
        Case("grown before it is opened", "tensors", meanwhile("open_regular", grown, 0), "appended"),
        Case("exchanged for a pipe", "file", exchanged_for_a_pipe, "no regular file"),
        Case("a head of an ensemble", "digest", member_exchanged, "another head than ensemble.json lists"),
        Case("saving: a bit is not what was written", "write", while_saving(lying_disk), "its digest"),
        Case("saving: the temporary file is gone", "write", while_saving(temporary_is_gone)),
        Case("saving: a folder comes in between", "write", while_saving(a_folder_comes), "cannot be renamed"),
    )),
    Mode(72, "interrupted calls, short reads, pipes", (
        Case("a few bytes at a time", HARMLESS, in_pieces(Pieces)),
        Case("a read that fails", "file", in_pieces(BrokenPieces), "Input/output error"),
        Case("signals all the time", HARMLESS, interrupted),
        Case("interrupted for good", HARMLESS, interrupted_for_good),
        Case("/dev/fd/N of a file", HARMLESS, by_descriptor),
        Case("/dev/fd/N of a pipe", "file", through_a_pipe(load), "no regular file"),
        Case("/dev/stdin of a pipe", "file", through_a_pipe(load, stdin=True), "no regular file"),
        Case("saving to /dev/fd/N of a pipe", "write", through_a_pipe(lambda path: head(1).save(path))),
    )),
    Mode(73, "threads and forks", (
        Case("eight threads, one file", HARMLESS, threads_alone),
        Case("forks in the middle", HARMLESS, forks_between_threads),
    )),
]  # fmt: skip
