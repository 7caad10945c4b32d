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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tests import kit
from tests.faults.judge import HARMLESS, REFUSED, named
from tests.unit.store.store_samples import content, write_images
from tests.unit.training.histories import logged, without_times
from tests.unit.training.noisy_head import noisy_head, noisy_source

from dinoneck import DinoneckError, FeatureStore, HeadCheckpoint, PatchMeanMLP
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.training import Recipe, engine, fit

CASES = 100  # of every mode
KILL_AGAIN_EVERY = 4  # in one case of so many, the run that goes on is killed too
FORK = multiprocessing.get_context("fork")
# events of sys.addaudithook, next to an open for writing
DISK_CALLS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate")
# exit codes of a run that finished, and of one that raised an error of dinoneck
FINISHED = 0
RAISED = 3


class Job(Protocol):
    """Work that can be interrupted and run again.

    Attributes:
        initial_files: what is in a run's folder at its begin, by name.
    """

    initial_files: dict[str, bytes]

    def run(self, root: Path) -> None:
        """Do the work in a folder, or go on with it."""

    def problems(self, root: Path, reference: Path, finished: bool) -> Iterator[str]:
        """Compare a folder with that of a run which nothing disturbed.

        Args:
            root: the folder of the disturbed run.
            reference: the folder of the other run.
            finished: whether the disturbed run has been made again, to its end.
        """


class Save:
    """Save a head of 1 MiB over another one."""

    def __init__(self, data: Path) -> None:
        path = data / "head"
        old_head = self._head(seed=0)
        old_head.save(path)
        self.old = path.read_bytes()
        self.new_head = self._head(seed=1)
        self.new_head.save(path)
        self.new = path.read_bytes()
        self.initial_files = {"head": self.old}

    def _head(self, seed: int) -> HeadCheckpoint:
        torch.manual_seed(seed)
        return HeadCheckpoint.from_module(PatchMeanMLP(512, 512))

    def run(self, root: Path) -> None:
        self.new_head.save(root / "head")

    def problems(self, root: Path, reference: Path, finished: bool) -> Iterator[str]:
        saved = (root / "head").read_bytes()
        if saved == self.new:
            return
        if finished or saved != self.old:
            yield "the file is neither the old one nor the new one"


class Extract:
    """``FeatureStore.create`` and ``extract``: int8, four views, three images per shard."""

    def __init__(self, data: Path) -> None:
        self.initial_files: dict[str, bytes] = {}
        self.images = data / "images"
        self.backbone = kit.backbone()
        write_images(self.images, [f"{number:02d}.png" for number in range(12)])

    def run(self, root: Path) -> None:
        store = FeatureStore.create(
            root / "store",
            backbone=self.backbone,
            views="flips4",
            image_size=(32, 64),
            dtype="int8",
        )
        store.extract(self.images, batch_size=8, workers=1, shard_bytes=15_000)

    def problems(self, root: Path, reference: Path, finished: bool) -> Iterator[str]:
        folder = root / "store"
        if not (folder / "store.json").exists() and not finished:
            return
        store = FeatureStore.open(folder)
        reference_store = FeatureStore.open(reference / "store")

        stored = ids_in_shards(folder)
        if len(stored) != len(set(stored)):
            yield "an image is stored twice"
        if finished and set(stored) != set(reference_store.ids):
            yield "images are missing"

        reference_records = content(reference_store)
        for key, record in content(store).items():
            if key not in reference_records or not torch.equal(record, reference_records[key]):
                yield "records have other bits"
                break
        for name in store.verify():
            yield f"verify() names {name}"
        if finished:
            for name in ("store.json", "channel_scale.safetensors"):
                if (folder / name).read_bytes() != (reference / "store" / name).read_bytes():
                    yield f"{name} differs"


def ids_in_shards(store: Path) -> list[str]:
    """Return the images that the headers of a store's shards name."""
    ids = []
    for path in (store / "data").glob("*.safetensors"):
        raw = path.read_bytes()
        header_size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + header_size])
        rows = json.loads(header["__metadata__"]["images"])
        ids += [row[0] for row in rows]
    return ids


RECIPES = {
    "adamw": Recipe(mixup_alpha=0.5, patience=8, ema_decay=0.9),
    "sam": Recipe(optimizer="sam"),
    "bf16": Recipe(amp="bf16"),
}


class Train:
    """``fit`` three times: AdamW with mixup, EMA and the best epoch, SAM, and bfloat16.

    The head has dropout and batch norm. A state is saved after every epoch.
    """

    def __init__(self, data: Path) -> None:
        self.initial_files: dict[str, bytes] = {}
        self.source = noisy_source(14)

    def run(self, root: Path) -> None:
        engine.SAVE_EVERY_S = 0.0  # after every epoch
        ids = self.source.ids
        for name, recipe in RECIPES.items():
            head = noisy_head()
            fit(
                head,
                self.source,
                targets={"x": np.linspace(0, 1, len(ids))},
                target_ids=ids,
                ids=ids[:11],
                val_ids=ids[11:],
                lr=1e-2,
                epochs=4,
                batch_size=3,
                recipe=recipe,
                out=root / name,
            )
            torch.save(head.state_dict(), root / name / "head")

    def problems(self, root: Path, reference: Path, finished: bool) -> Iterator[str]:
        if not finished:
            return
        for name in RECIPES:
            run = root / name
            reference_run = reference / name
            if logged(run / "log.jsonl") != logged(reference_run / "log.jsonl"):
                yield f"the log of {name} differs"
            if not kit.same(state_of(run), state_of(reference_run)):
                yield f"the state of {name} differs"
            if not kit.same(head_of(run), head_of(reference_run)):
                yield f"the head of {name} differs"


def state_of(run: Path) -> dict[str, Any]:
    """Return the state of a training without its times."""
    state: dict[str, Any] = torch.load(run / "state.pt", weights_only=True)
    state["history"] = without_times(state["history"])
    return state


def head_of(run: Path) -> dict[str, Any]:
    """Return the weights that a training ended with."""
    weights: dict[str, Any] = torch.load(run / "head", weights_only=True)
    return weights


def count_calls(root: Path, act: Callable[[int], None]) -> None:
    """From now on call ``act`` with a number before every disk call of this process in a folder."""
    numbers = itertools.count()
    flush = os.fsync

    def before_call(event: str, arguments: tuple[Any, ...]) -> None:
        is_call = event in DISK_CALLS
        if event == "open":
            _, _, flags = arguments
            is_call = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if is_call and str(root) in str(arguments):
            act(next(numbers))

    def counted_flush(descriptor: int) -> None:
        act(next(numbers))
        flush(descriptor)

    sys.addaudithook(before_call)
    os.fsync = counted_flush


def killed_before(root: Path, call: int) -> None:
    """Let this process die before its n-th disk call."""

    def die_at(number: int) -> None:
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    count_calls(root, die_at)


def without_space(handler: Any, size: int) -> None:
    """Let no file of this process grow beyond a size in bytes.

    Args:
        handler: of the kernel's signal: SIG_DFL ends the process, SIG_IGN lets the write fail.
        size: the limit.
    """
    signal.signal(signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def start_process(work: Callable[[], object], prepare: Callable[[], object] | None = None) -> Any:
    """Start work in a process of its own; it exits with FINISHED, or RAISED for an error of dinoneck."""

    def run() -> None:
        if prepare is not None:
            prepare()
        try:
            work()
        except DinoneckError:
            sys.exit(RAISED)

    process = FORK.Process(target=run)
    process.start()
    return process


def exit_code_of(work: Callable[[], object], prepare: Callable[[], object] | None = None) -> int:
    """Return the exit code of work in a process of its own."""
    process = start_process(work, prepare)
    process.join()
    code: int = process.exitcode
    return code


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb a run.

    Attributes:
        exit_code: of a run that was disturbed so.
        outcome: of a case without a problem.
    """

    exit_code: int
    outcome: str


BEFORE_A_CALL = "killed before a disk call"
WITHIN_A_WRITE = "killed within a write"
FULL_DISK = "the disk is full"
DISTURBANCES = {
    BEFORE_A_CALL: Disturbance(-signal.SIGKILL, HARMLESS),
    WITHIN_A_WRITE: Disturbance(-signal.SIGXFSZ, HARMLESS),
    FULL_DISK: Disturbance(RAISED, REFUSED),
}
JOBS: dict[str, Callable[[Path], Job]] = {"save": Save, "extract": Extract, "train": Train}
WRITERS = "save: four writers and two readers at once"
MODES = (*(f"{job}: {how}" for job in JOBS for how in DISTURBANCES), WRITERS)


class Campaign:
    """All disturbed runs of one job, in a folder."""

    def __init__(self, job: str, folder: Path) -> None:
        self.folder = folder
        self.job = JOBS[job](folder)
        self.reference = folder / "reference"
        self._begin(self.reference)
        self.num_calls = FORK.Value("i")
        code = exit_code_of(lambda: self.job.run(self.reference), self._count_calls)
        if code != FINISHED:
            raise AssertionError(f"the run that nothing disturbs ended with {code}")
        sizes = [path.stat().st_size for path in self.reference.rglob("*") if path.is_file()]
        self.largest_file = max(sizes)

    def _begin(self, root: Path) -> None:
        root.mkdir()
        for name, raw in self.job.initial_files.items():
            (root / name).write_bytes(raw)

    def _count_calls(self) -> None:
        def remember(number: int) -> None:
            self.num_calls.value = number + 1

        count_calls(self.reference, remember)

    def case(self, number: int, how: str, share: float) -> str:
        """Disturb a run, look at its files, make it again in a new process, and compare.

        Args:
            number: of the case.
            how: a key of DISTURBANCES.
            share: of the run before the disturbance, in 0..1.
        """
        root = self.folder / str(number)
        self._begin(root)
        run = partial(self.job.run, root)

        code = exit_code_of(run, self._disturb(root, how, share))
        if code != DISTURBANCES[how].exit_code:
            return f"the run ended with {code}"
        problems = self._problems(root, finished=False)

        if number % KILL_AGAIN_EVERY == KILL_AGAIN_EVERY - 1:
            age_temporary_files(root)
            second_share = random.Random(number).random()
            code = exit_code_of(run, self._disturb(root, BEFORE_A_CALL, second_share))
            if code == RAISED:  # what is left of the run may take fewer calls: it may finish
                problems.append("run again, and to be killed, it raises an error")
        age_temporary_files(root)
        code = exit_code_of(run)
        if code != FINISHED:
            problems.append(f"run again it ends with {code}")
        problems += self._problems(root, finished=True)
        problems += [f"{path.name} is left over" for path in root.rglob(".*")]
        shutil.rmtree(root)
        if problems:
            return "; ".join(problems)
        return DISTURBANCES[how].outcome

    def _problems(self, root: Path, finished: bool) -> list[str]:
        try:
            return [*self.job.problems(root, self.reference, finished=finished)]
        except DinoneckError as error:
            return [f"its files are refused: {error}"]

    def _disturb(self, root: Path, how: str, share: float) -> Callable[[], None]:
        """Return what a process calls to be disturbed after a share of its calls or bytes."""
        if how == BEFORE_A_CALL:
            return partial(killed_before, root, int(share * self.num_calls.value))
        handler = signal.SIG_DFL if how == WITHIN_A_WRITE else signal.SIG_IGN
        return partial(without_space, handler, int(share * self.largest_file))


def age_temporary_files(root: Path) -> None:
    """Let temporary files look old: a later run removes them then."""
    moment = time.time() - 2 * STALE_AFTER_S
    for path in root.rglob(".*"):
        os.utime(path, (moment, moment))


def writers(folder: Path, saves: int) -> Iterator[str]:
    """Four processes save heads of their own to one path again and again; two load it all the time."""
    path = folder / "head"
    torch.manual_seed(0)
    heads = [HeadCheckpoint.from_module(PatchMeanMLP(64, 16)) for _ in range(4)]
    digests = [head.meta["digest"] for head in heads]
    heads[0].save(path)

    def write(head: HeadCheckpoint) -> None:
        for _ in range(saves):
            head.save(path)

    def read() -> None:
        for _ in range(2 * saves):
            if HeadCheckpoint.load(path).meta["digest"] not in digests:
                raise ValueError("another head is read")

    processes = [start_process(partial(write, head)) for head in heads]
    processes += [start_process(read), start_process(read)]
    for process in processes:
        process.join()
        if process.exitcode == FINISHED:
            yield HARMLESS
        else:
            yield f"a process ended with {process.exitcode}"


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode: a job that is disturbed at moments spread over its run, or writers and readers."""
    torch.set_num_threads(1)
    count = max(4, round(share * CASES))
    if mode == WRITERS:
        yield from writers(folder, count)
        return
    job, how = mode.split(": ")
    campaign = Campaign(job, folder)
    rng = random.Random(0)
    for number in range(count):
        share_done = (number + rng.random()) / count
        yield named(f"{number} of {count}", campaign.case(number, how, share_done))
