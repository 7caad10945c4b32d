"""Kill a save, an extraction and a training with SIGKILL; each must go on as if nothing had happened.

Half of the kills come just before a disk call (create, rename, link, remove, flush ...), a quarter within a write (the
kernel ends a process that writes past a limit, with exactly so many bytes written), a quarter by the clock.
Every run and every resumption is a process of its own. The resumption of every fourth run is also timed for a kill,
which comes too late where it ends before.

    python -m tests.faults.kill save 20
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tests.faults.test_training_faults import assert_equal, state_of
from tests.unit.store.store_samples import content, write_images
from tests.unit.training.histories import logged, without_times
from tests.unit.training.noisy_head import noisy_head, noisy_source

from dinoneck import FeatureStore, HeadCheckpoint, PatchMeanMLP, load_backbone
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.training import Recipe, engine, fit

CALLS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR
LIMIT_S = 60
Moment = tuple[str, float]
MARK, KILLED = ".dinoneck-tmp", "killed"


class Job(Protocol):
    """A run in a folder."""

    def __init__(self, data: Path) -> None:
        """Make what all runs share."""

    def begin(self, root: Path) -> None:
        """Make a folder as it is before the run."""

    def run(self, root: Path) -> None:
        """The run."""

    def damage(self, root: Path, whole: Path) -> list[str]:
        """What is wrong with the files after a kill."""

    def difference(self, root: Path, whole: Path) -> list[str]:
        """What differs, once the run has been made again, from one that was never killed."""


class Save:
    """A head of 1 MiB is saved over another one."""

    def __init__(self, data: Path) -> None:
        self.heads, self.contents = [], []
        for seed in (0, 1):
            torch.manual_seed(seed)
            self.heads.append(HeadCheckpoint.from_module(PatchMeanMLP(512, 512)))
            self.heads[seed].save(data / "head")
            self.contents.append((data / "head").read_bytes())

    def begin(self, root: Path) -> None:
        (root / "head").write_bytes(self.contents[0])

    def run(self, root: Path) -> None:
        self.heads[1].save(root / "head")

    def damage(self, root: Path, whole: Path) -> list[str]:
        torn = (root / "head").read_bytes() not in self.contents
        strange = [path.name for path in root.iterdir() if path.name != "head" and not path.name.endswith(MARK)]
        return ["the file is neither the old one nor the new one"] * torn + [f"{name} is left" for name in strange]

    def difference(self, root: Path, whole: Path) -> list[str]:
        left = list(root.glob(f"*{MARK}"))
        for path in left:
            os.utime(path, (0, time.time() - STALE_AFTER_S - 60))
        self.run(root)
        stale = [path for path in left if path.exists()]
        other = (root / "head").read_bytes() != self.contents[1]
        return ["the new head is not there"] * other + ["a leftover of an hour ago stays"] * bool(stale)


class Extract:
    """``FeatureStore.create`` and ``extract``: int8, four views, three images per shard."""

    count = 12

    def __init__(self, data: Path) -> None:
        self.images = data / "images"
        write_images(self.images, [f"{i:02d}.png" for i in range(self.count)])
        self.backbone = load_backbone("dinoneck_tiny")

    def begin(self, root: Path) -> None:
        pass

    def run(self, root: Path) -> None:
        store = FeatureStore.create(
            root / "store", backbone=self.backbone, views="flips4", image_size=(32, 64), dtype="int8"
        )
        store.extract(self.images, batch_size=8, workers=1, shard_bytes=15_000)

    def damage(self, root: Path, whole: Path) -> list[str]:
        if not (root / "store" / "store.json").exists():
            return []
        store = FeatureStore.open(root / "store")
        found, expected = content(store), content(FeatureStore.open(whole / "store"))
        other = [key for key in found if key not in expected or not torch.equal(found[key], expected[key])]
        return [f"{key} has other bits" for key in other] + [f"verify() names {name}" for name in store.verify()]

    def difference(self, root: Path, whole: Path) -> list[str]:
        for path in (root / "store").rglob(".*"):  # a later extraction removes them, when they are old
            os.utime(path, (time.time() - 2 * STALE_AFTER_S,) * 2)
        self.run(root)
        problems, store = self.damage(root, whole), FeatureStore.open(root / "store")
        problems += ["images are missing"] * (len(store) != self.count)
        problems += [f"{path.name} is left" for path in (root / "store").rglob(".*")]
        problems += ["verify() names something"] * bool(store.verify())
        shards = [path.read_bytes() for path in (root / "store" / "data").iterdir()]
        headers = [json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"] for raw in shards]
        stored = [row[0] for header in headers for row in json.loads(header["images"])]
        problems += ["an image is stored twice"] * (len(stored) != self.count)
        names = ("store.json", "channel_scale.safetensors")
        other = [
            name for name in names if (root / "store" / name).read_bytes() != (whole / "store" / name).read_bytes()
        ]
        return problems + [f"{name} differs" for name in other]


class Train:
    """``fit``: dropout, batch statistics, mixup, EMA, the best epoch kept, a state per epoch."""

    def __init__(self, data: Path) -> None:
        self.source = noisy_source(14)

    def begin(self, root: Path) -> None:
        pass

    def run(self, root: Path) -> None:
        engine.SAVE_EVERY_S = 0.0
        head, ids = noisy_head(), self.source.ids
        targets, recipe = {"x": np.linspace(0, 1, len(ids))}, Recipe(mixup_alpha=0.5, patience=8)
        given: dict[str, Any] = {"targets": targets, "target_ids": ids, "ids": ids[:11], "val_ids": ids[11:]}
        history = fit(head, self.source, **given, epochs=8, batch_size=3, lr=1e-2, out=root / "run", recipe=recipe)
        torch.save([head.state_dict(), without_times(history)], root / "result")

    def damage(self, root: Path, whole: Path) -> list[str]:
        state, log = root / "run" / "state.pt", root / "run" / "log.jsonl"
        epoch = torch.load(state, weights_only=True)["epoch"] if state.exists() else 0
        rows = logged(log) if log.exists() else []
        other = logged(whole / "run" / "log.jsonl")[: len(rows)] != rows
        return ["the log has other lines"] * other + ["the log is ahead of the state"] * (len(rows) > epoch)

    def difference(self, root: Path, whole: Path) -> list[str]:
        try:
            assert_equal(*(state_of(each / "run") for each in (root, whole)))
            assert_equal(*({"": torch.load(each / "result")[0]} for each in (root, whole)))
        except AssertionError as error:
            return [f"{error} differs"]
        other = logged(root / "run" / "log.jsonl") != logged(whole / "run" / "log.jsonl")
        return ["the log differs"] * other


JOBS: dict[str, type[Job]] = {"save": Save, "extract": Extract, "train": Train}


class Failed(RuntimeError):
    """A process ended by itself with an error, or was never killed."""


def count_calls(root: Path, act: Callable[[int], None]) -> None:
    """From now on call ``act`` with a number before every disk call of this process in a folder."""
    numbers, flush = itertools.count(), os.fsync

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if (writes or event in CALLS) and str(root) in str(arguments):
            act(next(numbers))

    def flushed(descriptor: int) -> None:
        act(next(numbers))
        flush(descriptor)

    sys.addaudithook(hook)
    os.fsync = flushed


def _arm(root: Path, moment: Moment) -> None:
    """Let this process die at a moment."""
    how, when = moment
    if how == "disk call":
        count_calls(root, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == when else None)
    elif how == "within a write":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(when), resource.RLIM_INFINITY))
    else:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, when)


def begun(work: Callable[[], Any], root: Path | None = None, moment: Moment | None = None) -> tuple[int, int]:
    """Start a piece of work in a process of its own, which dies at its moment; return the process and its result."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            signal.alarm(LIMIT_S)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if root is not None and moment is not None:
                _arm(root, moment)
            result = {"result": work()}
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(result).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    return pid, reading


def ended(pid: int, reading: int) -> Any:
    """Wait for a piece of work; return what it returned, KILLED if a signal ended it.

    Raises:
        Failed: with what it raised.
    """
    with open(reading, "rb") as result_file:
        written = result_file.read()
    _, status = os.waitpid(pid, 0)
    if not written and os.WIFSIGNALED(status):
        return KILLED
    result = json.loads(written or f'{{"error": "ended with status {status}"}}')
    if "error" in result:
        raise Failed(result["error"])
    return result["result"]


def forked(work: Callable[[], Any], root: Path | None = None, moment: Moment | None = None) -> Any:
    """What a piece of work returns in a process of its own; KILLED if it was killed at its moment."""
    result = ended(*begun(work, root, moment))
    if result == KILLED and moment is None:
        raise Failed("a process was killed that was not to be")
    return result


class Campaign:
    """All kills of one job, in a folder."""

    def __init__(self, job: str, data: Path) -> None:
        self.data, self.job, self.whole = data, JOBS[job](data), data / "whole"
        self.whole.mkdir()
        self.job.begin(self.whole)
        self.seconds, self.calls = forked(self._measured)
        self.largest = max(path.stat().st_size for path in self.whole.rglob("*") if path.is_file())

    def _measured(self) -> tuple[float, int]:
        calls: list[int] = []
        count_calls(self.whole, calls.append)
        begun = time.monotonic()
        self.job.run(self.whole)
        return time.monotonic() - begun, len(calls)

    def moments(self, kills: int) -> list[Moment]:
        """When to kill, the disk calls spread evenly."""
        rng, half = random.Random(0), kills - kills // 2
        calls = [int((i + rng.random()) * self.calls / half) for i in range(half)]
        others = [("within a write", float(rng.randrange(self.largest))) for _ in range(kills // 4)]
        clock = [("by the clock", self.seconds * rng.random()) for _ in range(kills // 2 - kills // 4)]
        return [("disk call", float(call)) for call in calls] + others + clock

    def case(self, number: int, moment: Moment) -> dict[str, Any]:
        """Kill a run, look at its files, run it again in a new process, and compare."""
        root, run = self.data / str(number), self.job.run
        for _ in range(20):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            self.job.begin(root)
            if forked(partial(run, root), root, moment) == KILLED:
                break
            moment = (moment[0], moment[1] // 2 if moment[0] != "by the clock" else 0.7 * moment[1])
        else:
            raise Failed(f"{moment} never came")
        problems = list(forked(lambda: self.job.damage(root, self.whole)))
        again = ("by the clock", self.seconds * random.Random(number).random() / 2)
        twice = number % 4 == 3 and forked(lambda: self.job.run(root), root, again) == KILLED
        forked(lambda: self.job.run(root))
        problems += forked(lambda: self.job.difference(root, self.whole))
        shutil.rmtree(root)
        return {"how": moment[0], "twice": twice, "problems": problems}


def campaign(job: str, kills: int) -> dict[str, Any]:
    """Kill a job so many times; for a process of its own, which has one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = Campaign(job, Path(folder))
        cases = [runs.case(number, moment) for number, moment in enumerate(runs.moments(kills))]
    hows = ("disk call", "within a write", "by the clock")
    return {
        "runs": kills,
        "disk_calls": runs.calls,
        "kills": {how: sum(case["how"] == how for case in cases) for how in hows},
        "killed_twice": sum(case["twice"] for case in cases),
        "identical": sum(not case["problems"] for case in cases),
        "bad": [f"{case['how']}: {problem}" for case in cases for problem in case["problems"]],
    }


if __name__ == "__main__":
    print(json.dumps(campaign(sys.argv[1], int(sys.argv[2]))))
