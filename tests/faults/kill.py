"""Kill a save, an extraction and a training, or fill the disk; each must go on as if nothing had happened.

Each run is a process of its own. It is killed before a disk call (create, rename, link, remove,
flush ...), or within a write: the kernel ends a process that writes past a limit, with exactly so
many bytes written. With the same limit and the signal ignored the write fails instead, as on a full
disk; the run must then raise an error of dinoneck. Afterwards the files are looked at, and the run
is made again: in every fourth case it is killed once more before it may finish. The result must be
that of a run which nothing disturbed.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import kit
from tests.faults.judge import HARMLESS, REFUSED
from tests.unit.store.store_samples import content, write_images
from tests.unit.training.histories import logged, without_times
from tests.unit.training.noisy_head import noisy_head, noisy_source

from dinoneck import DinoneckError, FeatureStore, HeadCheckpoint, PatchMeanMLP
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.training import Recipe, engine, fit

KILLS = 100  # of every mode
FORK = multiprocessing.get_context("fork")
CALLS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate")
DONE, FULL = 0, 3
Act = Callable[[], object]


class Save:
    """A head of 1 MiB is saved over another one; ``before`` is what the folder of a run holds at its begin."""

    def __init__(self, data: Path) -> None:
        self.heads, self.contents = [], []
        for seed in (0, 1):
            torch.manual_seed(seed)
            self.heads.append(HeadCheckpoint.from_module(PatchMeanMLP(512, 512)))
            self.heads[seed].save(data / "head")
            self.contents.append((data / "head").read_bytes())
        self.before = {"head": self.contents[0]}

    def run(self, root: Path) -> None:
        self.heads[1].save(root / "head")

    def problems(self, root: Path, whole: Path, finished: bool) -> Iterator[str]:
        if (root / "head").read_bytes() not in self.contents[finished:]:
            yield "the file is neither the old one nor the new one"


class Extract:
    """``FeatureStore.create`` and ``extract``: int8, four views, three images per shard."""

    def __init__(self, data: Path) -> None:
        self.images, self.backbone, self.before = data / "images", kit.backbone(), {}
        write_images(self.images, [f"{i:02d}.png" for i in range(12)])

    def run(self, root: Path) -> None:
        options: dict[str, Any] = {
            "backbone": self.backbone,
            "views": "flips4",
            "image_size": (32, 64),
        }
        store = FeatureStore.create(root / "store", dtype="int8", **options)
        store.extract(self.images, batch_size=8, workers=1, shard_bytes=15_000)

    def problems(self, root: Path, whole: Path, finished: bool) -> Iterator[str]:
        if not (root / "store" / "store.json").exists() and not finished:
            return
        store, sound = (FeatureStore.open(folder / "store") for folder in (root, whole))
        found, expected = content(store), content(sound)
        shards = [path.read_bytes() for path in (root / "store" / "data").glob("*.safetensors")]
        headers = [
            json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
            for raw in shards
        ]
        stored = [row[0] for header in headers for row in json.loads(header["images"])]
        if (finished and sorted(stored) != list(sound.ids)) or len(stored) != len(set(stored)):
            yield "images are missing or stored twice"
        if not found.keys() <= expected.keys() or not all(
            torch.equal(found[key], expected[key]) for key in found
        ):
            yield "records have other bits"
        yield from (f"verify() names {name}" for name in store.verify())
        for name in ("store.json", "channel_scale.safetensors") if finished else ():
            if (root / "store" / name).read_bytes() != (whole / "store" / name).read_bytes():
                yield f"{name} differs"


RECIPES = {
    "adamw": Recipe(mixup_alpha=0.5, patience=8),
    "sam": Recipe(optimizer="sam"),
    "bf16": Recipe(amp="bf16"),
}


class Train:
    """``fit`` by AdamW and by SAM: dropout, batch statistics, mixup, EMA, the best epoch kept, a state per epoch."""

    def __init__(self, data: Path) -> None:
        self.source, self.before = noisy_source(14), {}

    def run(self, root: Path) -> None:
        engine.SAVE_EVERY_S = 0.0
        for name, recipe in RECIPES.items():
            head, ids = noisy_head(), self.source.ids
            given: dict[str, Any] = {
                "targets": {"x": np.linspace(0, 1, len(ids))},
                "target_ids": ids,
                "lr": 1e-2,
            }
            given |= {
                "ids": ids[:11],
                "val_ids": ids[11:],
                "epochs": 4,
                "batch_size": 3,
                "recipe": recipe,
            }
            fit(head, self.source, out=root / name, **given)
            torch.save(head.state_dict(), root / name / "head")

    def problems(self, root: Path, whole: Path, finished: bool) -> Iterator[str]:
        for one, other in ((root / name, whole / name) for name in RECIPES if finished):
            states = [torch.load(each / "state.pt", weights_only=True) for each in (one, other)]
            for state in states:
                state["history"] = without_times(state["history"])
            heads = (torch.load(each / "head", weights_only=True) for each in (one, other))
            if logged(one / "log.jsonl") != logged(other / "log.jsonl"):
                yield f"the log of {one.name} differs"
            if not kit.same(*states) or not kit.same(*heads):
                yield f"the state or the head of {one.name} differs"


def count_calls(root: Path, act: Callable[[int], None]) -> None:
    """From now on call ``act`` with a number before every disk call of this process in a folder."""
    numbers, flush = itertools.count(), os.fsync

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in CALLS) and str(root) in str(arguments):
            act(next(numbers))

    def flushed(descriptor: int) -> None:
        act(next(numbers))
        flush(descriptor)

    sys.addaudithook(hook)
    os.fsync = flushed


def killed_before(root: Path, call: int) -> None:
    """Let this process die before its n-th disk call."""
    count_calls(
        root, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == call else None
    )


def without_space(handler: Any, size: int) -> None:
    """Let no file of this process grow beyond a size: it dies there, or the write fails."""
    signal.signal(signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def begun(work: Act, prepare: Act = int) -> Any:
    """Start work in a process of its own; it ends with 0, or with FULL where it raises an error of dinoneck."""

    def run() -> None:
        prepare()
        try:
            work()
        except DinoneckError:
            sys.exit(FULL)

    process = FORK.Process(target=run)
    process.start()
    return process


def forked(work: Act, prepare: Act = int) -> int:
    """The exit code of a piece of work."""
    process = begun(work, prepare)
    process.join()
    return process.exitcode


JOBS = {"save": Save, "extract": Extract, "train": Train}
HOWS = ("killed before a disk call", "killed within a write", "the disk is full")
CODES = (-signal.SIGKILL, -signal.SIGXFSZ, FULL)
MODES = (
    *(f"{job}: {how}" for job in JOBS for how in HOWS),
    "save: four writers and two readers at once",
)


class Campaign:
    """All disturbed runs of one job, in a folder."""

    def __init__(self, job: str, folder: Path) -> None:
        self.folder, self.job, self.whole = folder, JOBS[job](folder), folder / "whole"
        self._begin(self.whole)
        self.calls = FORK.Value("i")
        assert (
            forked(lambda: self.job.run(self.whole), lambda: count_calls(self.whole, self._count))
            == DONE
        )
        self.largest = max(path.stat().st_size for path in self.whole.rglob("*") if path.is_file())

    def _begin(self, root: Path) -> None:
        root.mkdir()
        for name, raw in self.job.before.items():
            (root / name).write_bytes(raw)

    def _count(self, number: int) -> None:
        self.calls.value = number + 1

    def moment(self, how: str, root: Path, place: float) -> Act:
        """What lets a process meet its disturbance; ``place`` in 0..1."""
        if how == HOWS[0]:
            return partial(killed_before, root, int(place * self.calls.value))
        handler = signal.SIG_DFL if how == HOWS[1] else signal.SIG_IGN
        return partial(without_space, handler, int(place * self.largest))

    def case(self, number: int, how: str, place: float) -> str:
        """Disturb a run, look at its files, make it again in a new process, and compare."""
        root, expected = self.folder / str(number), CODES[HOWS.index(how)]
        self._begin(root)
        run = partial(self.job.run, root)
        if (code := forked(run, self.moment(how, root, place))) != expected:
            return f"the run ended with {code}"
        problems = list(self.job.problems(root, self.whole, finished=False))
        again = [self.moment(HOWS[0], root, random.Random(number).random())] * (number % 4 == 3)
        for prepare in (*again, int):
            for path in root.rglob(".*"):  # a later run removes what is left, when it is old
                os.utime(path, (time.time() - 2 * STALE_AFTER_S,) * 2)
            code = forked(run, prepare)
        problems += [f"run again it ends with {code}"] * (code != DONE)
        problems += [
            *self.job.problems(root, self.whole, finished=True),
            *(str(path) for path in root.rglob(".*")),
        ]
        shutil.rmtree(root)
        return "; ".join(problems) or (REFUSED if how == HOWS[2] else HARMLESS)


def writers(folder: Path, saves: int) -> Iterator[str]:
    """Four processes save heads of their own to one path again and again; two load it all the time."""
    path = folder / "head"
    torch.manual_seed(0)
    heads = [HeadCheckpoint.from_module(PatchMeanMLP(64, 16)) for _ in range(4)]
    heads[0].save(path)

    def write(head: HeadCheckpoint) -> None:
        for _ in range(saves):
            head.save(path)

    def read() -> None:
        for _ in range(2 * saves):
            if HeadCheckpoint.load(path).meta["digest"] not in [
                head.meta["digest"] for head in heads
            ]:
                raise ValueError("another head is read")

    processes = [begun(partial(write, head)) for head in heads] + [begun(read), begun(read)]
    for process in processes:
        process.join()
        yield HARMLESS if process.exitcode == DONE else f"a process ended with {process.exitcode}"


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Disturb a job so many times in one way, at places spread evenly."""
    torch.set_num_threads(1)
    job, how = mode.split(": ")
    count = max(4, round(share * KILLS))
    if how not in HOWS:
        yield from writers(folder, count)
        return
    campaign, rng = Campaign(job, folder), random.Random(0)
    for number in range(count):
        verdict = campaign.case(number, how, (number + rng.random()) / count)
        yield verdict if " " not in verdict else f"{number} of {count}: {verdict}"
