"""A process of benchmarks.kill_campaign: does one run and tells, in a shared page of memory, what it is about.

The library runs unchanged; only in this process its disk calls and the parts of a run go through wrappers that note
where it is. A page of a mapped file outlives the process, so what it says after a kill is where the kill fell.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.kill_campaign_jobs import JOBS, digest
from benchmarks.kill_campaign_terms import (
    BEGUN,
    COUNT,
    DECODING,
    FINISHED,
    LIMIT_S,
    MOMENT,
    MOMENTS,
    PAGE,
    PHASE,
    PHASES,
    RUNNING,
)
from benchmarks.timing import machine
from dinoneck.backbones.backbone import Backbone
from dinoneck.store import extraction, writer
from dinoneck.training import ema, loop, run_files
from dinoneck.training.run_state import load_state


class Trace:
    """Notes where the process is, and ends it at one disk call if told so.

    Args:
        path: of the shared page, which exists.
        root: of the run's files.
        doom: (number of the disk call, moment): ``before``, ``halfway`` through (a write) or ``after`` it.
    """

    def __init__(self, path: Path, root: Path, doom: tuple[int, str] | None) -> None:
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), PAGE)
        self.root, self.doom = str(root), doom
        self.main = threading.get_ident()
        self.events: list[str] = []
        self.names: dict[int, str] = {}
        self.steps: dict[int, str] = {}
        self.states: dict[str, int] = {}

    def count(self, number: int) -> None:
        """Note how many photos or steps are done."""
        self.page[COUNT] = number.to_bytes(4, "little")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note a phase; photos are decoded by another thread."""
        place = PHASE if threading.get_ident() == self.main else DECODING
        before = self.page[place]
        self.page[place] = PHASES.index(name)
        yield
        self.page[place] = before

    def disk(self, name: str, call: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do one disk call; die before, halfway or after it if it is the one."""
        number, moment = self.doom or (-1, "")
        is_it = number == len(self.events)
        self.events.append(name)
        with self.phase(name):
            if is_it and moment == "halfway" and half is not None:
                half()
            if is_it and moment != "after":
                self._die(moment)
            result = call()
            if is_it:
                self._die(moment)
        return result

    def _die(self, moment: str) -> None:
        self.page[MOMENT] = MOMENTS.index(moment)
        os.kill(os.getpid(), signal.SIGKILL)

    def kind(self, path: Any) -> str | None:
        """What a file of the run is; None for any other file."""
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.root):
            return None
        name, folder = Path(path).name, Path(path).parent.name
        known = {"store.json": "store.json", "channel_scale": "channel scale", "last": "state", "log": "log"}
        by_name = next((kind for part, kind in known.items() if name.lstrip(".").startswith(part)), None)
        return {"data": "shard", "index": "index"}.get(folder, by_name)


class TracedFile:
    """A file whose writes go to the system at once."""

    def __init__(self, file: Any, trace: Trace, name: str) -> None:
        self.file, self.trace, self.name = file, trace, name

    def __enter__(self) -> TracedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> None:
        """Write, as one disk call."""
        self.trace.disk(self.name, partial(self._put, data), partial(self._put, data[: len(data) // 2]))

    def writelines(self, lines: Any) -> None:
        """Write all lines, as one disk call."""
        if text := "".join(lines):
            self.write(text)

    def _put(self, data: Any) -> None:
        self.file.write(data)
        self.file.flush()


def trace_disk(trace: Trace) -> None:
    """Lead the disk calls of the run's files through the trace."""
    do_open, do_fdopen, do_fsync, do_write = os.open, os.fdopen, os.fsync, os.write
    do_replace, do_link, path_open = os.replace, os.link, Path.open
    last = [""]

    def traced_open(path: Any, flags: int, *rest: Any, **kw: Any) -> int:
        descriptor = do_open(path, flags, *rest, **kw)
        kind = trace.kind(path)
        if Path(path).is_dir() and os.fspath(path).startswith(trace.root):
            trace.names[descriptor] = f"flush folder of {last[0]}"
        elif kind is not None:
            trace.names[descriptor] = f"fsync {kind}"
            last[0] = kind
        else:
            trace.names.pop(descriptor, None)
        return descriptor

    def traced_fdopen(descriptor: int, *rest: Any, **kw: Any) -> Any:
        file, name = do_fdopen(descriptor, *rest, **kw), trace.names.get(descriptor)
        return file if name is None else TracedFile(file, trace, name.replace("fsync", "write"))

    def traced_fsync(descriptor: int) -> None:
        name = trace.names.get(descriptor)
        call = partial(do_fsync, descriptor)
        call() if name is None else trace.disk(name, call)

    def traced_write(descriptor: int, data: bytes) -> int:
        name = trace.names.get(descriptor)
        if name is None:
            return do_write(descriptor, data)
        call, torn = partial(do_write, descriptor, data), partial(do_write, descriptor, data[: len(data) // 2])
        return int(trace.disk(name.replace("fsync", "append"), call, torn))

    def traced_path_open(path: Path, mode: str = "r", *rest: Any, **kw: Any) -> Any:
        file, kind = path_open(path, mode, *rest, **kw), trace.kind(path)
        return TracedFile(file, trace, f"append {kind}") if kind is not None and "a" in mode else file

    def traced_move(operation: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def moved(one: Any, two: Any, *rest: Any, **kw: Any) -> Any:
            kind = trace.kind(two)
            do = partial(call, one, two, *rest, **kw)
            return do() if kind is None else trace.disk(f"{operation} {kind}", do)

        return moved

    patches = {"open": traced_open, "fdopen": traced_fdopen, "fsync": traced_fsync, "write": traced_write}
    for name, traced in patches.items():
        setattr(os, name, traced)
    os.replace, os.link = traced_move("rename", do_replace), traced_move("link", do_link)
    Path.open = traced_path_open  # type: ignore[assignment, method-assign]


def trace_work(trace: Trace) -> None:
    """Note the parts of a run."""

    def within(owner: Any, name: str, phase: str) -> None:
        call = getattr(owner, name)

        def traced(*args: Any, **kw: Any) -> Any:
            with trace.phase(phase):
                return call(*args, **kw)

        setattr(owner, name, traced)

    within(extraction, "prepare", "read photo")
    within(Backbone, "forward", "backbone")
    within(extraction, "encode", "encode")
    within(writer, "remove_leftovers", "look for leftovers")
    within(writer, "take_in_orphans", "look for leftovers")
    within(loop.Loop, "_read", "read tokens")
    within(loop.Loop, "_loss", "forward and backward")
    within(torch.Tensor, "backward", "forward and backward")
    within(loop.Loop, "_descend", "optimizer step")
    within(ema.EMA, "update", "EMA")
    within(loop.Loop, "_validated", "validation")
    within(run_files, "save_state", "state to bytes")


def count_work(trace: Trace) -> None:
    """Note how many photos are encoded, and how many steps are done."""
    add, step, done = writer.Writer.add, loop.Loop._step, [0]

    def added(self: writer.Writer, *args: Any) -> None:
        done[0] += 1
        trace.count(done[0])
        add(self, *args)

    def stepped(self: loop.Loop, batch: Any) -> None:
        step(self, batch)
        trace.count(self.progress.step)

    writer.Writer.add, loop.Loop._step = added, stepped  # type: ignore[method-assign, assignment]


def note_steps(trace: Trace) -> None:
    """Keep a digest of all that a step leaves behind, and of every state that is written."""
    step, save = loop.Loop._step, run_files.save_state

    def noted(self: loop.Loop, batch: Any) -> None:
        step(self, batch)
        average = None if self.ema is None else self.ema.state_dict()
        weights, optimizer = self.problem.learner.weights(), self.optimizer.state_dict()
        drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        left = [batch.rows, batch.patterns, weights, average, optimizer, self.scheduler.state_dict(), drawn]
        trace.steps[self.progress.step] = digest(left)

    def saved(path: Any, state: Any) -> None:
        save(path, state)
        trace.states[digest(load_state(path))] = state["progress"]["step"]

    loop.Loop._step = noted  # type: ignore[method-assign]
    run_files.save_state = saved


def child(job: str, folder: Path, data: Path, number: int, doom: tuple[int, str] | None, digests: bool) -> None:
    """Check what an earlier process left in ``folder``, run the job there, check its result; tell in a file.

    Args:
        job: its name.
        folder: of this case; the run's files lie in it, and the page.
        data: photos, and the uninterrupted runs by the name of the job.
        number: of this process in the case; it tells ``told-NUMBER.json``.
        doom: see :class:`Trace`.
        digests: keep those of every step, which takes longer than the steps.
    """
    signal.alarm(LIMIT_S)
    tqdm.set_lock(threading.RLock())  # its own lock counts processes too, and would outlive a kill
    torch.set_num_threads(1)
    whole, own, reference = data / job, JOBS[job], data / job / "told-0.json"
    expected = json.loads(reference.read_text()) if reference.exists() else None
    before = own.seen(folder)
    problems = [] if expected is None else own.damage(folder, whole, expected) + _lost(folder / "seen.json", before)
    trace = Trace(folder / "page", folder, doom)
    run = own.prepare(folder, data)
    trace_disk(trace)
    trace_work(trace)
    count_work(trace)
    if digests:
        note_steps(trace)
    trace.page[RUNNING] = BEGUN
    done = run()
    trace.page[RUNNING] = FINISHED
    told: dict[str, Any] = {**done, "before": before, "events": trace.events, "states": trace.states}
    told["machine"] = machine()
    told["left"] = sum(1 for _ in folder.rglob(".*"))
    told["steps"] = {str(step): value for step, value in trace.steps.items()} if digests else None
    if expected is not None:
        problems += _lost(folder / "seen.json", own.seen(folder)) + own.difference(folder, whole, expected, told)
    (folder / f"told-{number}.json").write_text(json.dumps({**told, "problems": problems}))


def _lost(path: Path, seen: dict[str, Any]) -> list[str]:
    """What an earlier look saw and this one does not; from now on this look counts."""
    older = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(seen))
    return [f"{key}: {old} became {seen.get(key)}" for key, old in older.items() if _is_lost(old, seen.get(key))]


def _is_lost(old: Any, new: Any) -> bool:
    """Whether an image is no longer where it was, or a state is older than it was."""
    return new is None or (new < old if isinstance(old, int) else new != old)
