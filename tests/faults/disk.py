"""A disk that is full while a head is saved, and many processes that save and read one file at once.

python -m tests.faults.disk 20 10    # limits, saves of each writer
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.faults.kill import begun, ended, forked

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP

WRITERS, READERS = 4, 2


def heads(count: int, width: int = 64) -> list[HeadCheckpoint]:
    """So many heads of one shape."""
    torch.manual_seed(0)
    return [HeadCheckpoint.from_module(PatchMeanMLP(width, 16)) for _ in range(count)]


def full_disk(folder: Path, count: int) -> dict[str, Any]:
    """Save over a good file while no file may grow beyond a limit, from nothing to all that is needed."""
    old, new = heads(2)
    path = folder / "head"
    new.save(path)
    whole = path.read_bytes()
    old.save(path)
    kept, bad, outcomes = path.read_bytes(), [], Counter[str]()
    size, header = len(whole), 8 + int.from_bytes(whole[:8], "little")
    limits = {0, 7, 8, 9, header - 1, header, header + 1, size - 1, size} | {size * i // count for i in range(count)}
    for limit in sorted(limits):

        def save(limit: int = limit) -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                new.save(path)
            except CheckpointError as error:
                return error.step
            return "saved"

        outcome = forked(save)
        outcomes[outcome] += 1
        if outcome != ("write" if limit < size else "saved"):
            bad.append(f"{limit} of {size} bytes: {outcome}")
        if path.read_bytes() != (kept if limit < size else whole) or len(list(folder.iterdir())) > 1:
            bad.append(f"{limit} of {size} bytes: another file, or more than one, is there")
    return {"limits": len(limits), "outcomes": dict(outcomes), "bad": bad}


def writers(folder: Path, saves: int) -> dict[str, Any]:
    """Writers save heads of their own to one path again and again; readers load it all the time."""
    path, mine = folder / "head", heads(WRITERS)
    known = [head.meta["digest"] for head in mine]
    mine[0].save(path)

    def write(number: int) -> list[str]:
        for _ in range(saves):
            mine[number].save(path)
        return []

    def read() -> list[str]:
        seen = [HeadCheckpoint.load(path).meta["digest"] for _ in range(2 * saves)]
        return sorted(set(seen))

    works = [partial(write, number) for number in range(WRITERS)] + [read] * READERS
    found = [ended(*process) for process in [begun(work) for work in works]]
    bad = [str(digest) for each in found for digest in each if digest not in known]
    bad += ["another file is there in the end"] * (HeadCheckpoint.load(path).meta["digest"] not in known)
    bad += [f"{left.name} is left" for left in folder.iterdir() if left != path]
    return {"writers": WRITERS, "saves": WRITERS * saves, "reads": READERS * 2 * saves, "bad": bad}


def campaign(limits: int, saves: int) -> dict[str, Any]:
    """Both; for a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return {"full_disk": full_disk(Path(one), limits), "writers": writers(Path(other), saves)}


if __name__ == "__main__":
    print(json.dumps(campaign(int(sys.argv[1]), int(sys.argv[2]))))
