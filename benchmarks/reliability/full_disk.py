"""A disk that is full at every possible moment of a save over a good file.

A limit on the size of a file (``RLIMIT_FSIZE``) ends the write after so many bytes. Where the system lets us mount one,
a small file system in memory is filled as well, so that the true error of a full disk comes.

    python -m benchmarks.reliability.full_disk --in FOLDER   # of a small file system of its own
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.reliability.kill_targets import MARK
from benchmarks.reliability.processes import CONTEXT
from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP

LIMITS, FILLS = 240, 120
MOUNT_MIB, WIDTH = 4, 512
PAGE_BYTES = 4096
_LIMIT_S = 240


class Trial:
    """A good file, and another head of the same size that is saved over it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.old, self.whole = folder / "head.safetensors", b"", b""
        torch.set_num_threads(1)
        heads = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            heads.append(HeadCheckpoint.from_module(PatchMeanMLP(WIDTH, 256)))
            heads[seed].save(self.path)
            self.old, self.whole = self.whole, self.path.read_bytes()
        self.head = heads[1]
        heads[0].save(self.path)

    def edges(self) -> list[int]:
        """Where the header and every tensor end, and one byte before and after."""
        end = 8 + int.from_bytes(self.whole[:8], "little")
        ends = [0, 8, end]
        for name, _, _ in self.head.meta["tensors"]:
            end += self.head.state_dict[name].nbytes
            ends.append(end)
        return sorted({place + step for place in ends for step in (-1, 0, 1) if place + step >= 0})

    def outcome(self, free: Callable[[], object]) -> str:
        """Save, then free the disk; tell what came of it, and what is wrong with it."""
        try:
            self.head.save(self.path)
            told = "saved"
        except CheckpointError as error:
            cause = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            told = f"{error.step}, {errno.errorcode.get(cause or 0, 'no number')}"
        except Exception as error:
            told = f"uncaught {type(error).__name__}"
        free()
        expected = self.whole if told == "saved" else self.old
        if self.path.read_bytes() != expected:
            told += "; another file than it ought to be"
        if left := [path for path in self.path.parent.iterdir() if path.name.endswith(MARK)]:
            told += "; a temporary file is left"
            for path in left:
                path.unlink()
        if told == "saved":
            self.path.write_bytes(self.old)
        return told


def limits(trial: Trial, count: int) -> list[int]:
    """All edges, and sizes spread from nothing to the whole file."""
    spread = {round(len(trial.whole) * i / max(1, count - 1)) for i in range(count)}
    return sorted(spread | set(trial.edges()))


def _limited(folder: Path, count: int) -> dict[str, Any]:
    """Sweep the limit, in a process of its own."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    trial, hard = Trial(folder), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    found: dict[str, int] = {}
    problems = []
    sizes = limits(trial, count)
    for size in tqdm(sizes, desc="full disk", disable=None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        told = trial.outcome(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))
        found[told] = found.get(told, 0) + 1
        if told != ("saved" if size >= len(trial.whole) else "write, EFBIG"):
            problems.append(f"{size} bytes: {told}")
    return {"limits": len(sizes), "edges": len(trial.edges()), "bytes": len(trial.whole), "outcomes": found,
            "problems": problems}  # fmt: skip


def _filled(folder: Path, count: int) -> dict[str, Any]:
    """Fill a small file system, all but so many pages, and save; ``folder`` is its root."""
    trial = Trial(folder)
    pages = -(-len(trial.whole) // PAGE_BYTES)
    found: dict[str, int] = {}
    problems = []
    for free in _spread(pages, count):
        _ballast(folder / "ballast", free)
        told = trial.outcome((folder / "ballast").unlink)
        found[told] = found.get(told, 0) + 1
        if told not in ("saved", "write, ENOSPC") or (told == "saved") != (free >= pages):
            problems.append(f"{free} pages of {pages} free: {told}")
    return {"possible": True, "fills": sum(found.values()), "outcomes": found, "problems": problems}


def _spread(pages: int, count: int) -> Iterator[int]:
    yield from sorted({round(pages * i / max(1, count - 1)) for i in range(count)} | {0, 1, pages - 1, pages})


def _ballast(path: Path, free: int) -> None:
    """A file that leaves so many pages."""
    with path.open("wb", buffering=0) as file:
        room = os.statvfs(path.parent)
        os.posix_fallocate(file.fileno(), 0, max(1, (room.f_bavail - free)) * room.f_frsize)


def _really_full(folder: Path, count: int) -> dict[str, Any]:
    """Mount a file system in memory, in a name space of its own, and fill it there."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return {"possible": False, "why": "unshare and mount are not here", "problems": []}
    again = 'exec "$1" -m benchmarks.reliability.full_disk --in "$0" --fills "$2"'
    inside = f'mount -t tmpfs -o size={MOUNT_MIB}m tmpfs "$0" && {again}'
    command = ["sh", "-c", inside, str(folder), sys.executable, str(count)]
    why = ""
    for flags in ("-rm", "-m"):
        if subprocess.run(["unshare", flags, "true"], capture_output=True).returncode:
            continue
        done = subprocess.run(["unshare", flags, *command], capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "mount" not in why:
            return {"possible": True, "fills": 0, "outcomes": {}, "problems": [f"the trial failed: {why}"]}
    return {"possible": False, "why": why or "no name space of one's own may be made", "problems": []}


def measure(work: Path, share: float) -> dict[str, Any]:
    """Sweep the limit, then fill a file system if one may be mounted."""
    (work / "limited").mkdir()
    (work / "mount").mkdir()
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        limited = pool.submit(_limited, work / "limited", max(8, round(LIMITS * share))).result()
    full = _really_full(work / "mount", max(4, round(FILLS * share)))
    return {"failed": limited["problems"] + full["problems"], "limited": limited, "full": full}


def page(result: dict[str, Any]) -> str:
    """The section of the page."""
    limited, full = result["limited"], result["full"]
    size, sweeps = f"{limited['bytes']:,}", f"{limited['limits']:,}"
    if full["possible"]:
        second = f"""\
A file system in memory of {MOUNT_MIB} MiB was filled as well, so that {full["fills"]:,} times a different number of
pages was free, from none to enough: {_told(full["outcomes"])}."""
    else:
        second = f"A really full file system could not be tried here: {full['why']}."
    troubles = "".join(f"\n- {line}" for line in result["failed"])
    return f"""\
A head of {size} bytes is saved over a good one while the system lets a file have only so many bytes:
{sweeps} limits from none to enough, among them the ends of the header and of every tensor, and a byte to both sides.
What came of it: {_told(limited["outcomes"])}. A refusal is a `CheckpointError` of the step `write`; then the old
file was there bit for bit and no temporary file was left.

{second}{troubles}
"""


def _told(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} × {name}" for name, count in sorted(outcomes.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="folder", type=Path, required=True)
    parser.add_argument("--fills", type=int, default=FILLS)
    options = parser.parse_args()
    print(json.dumps(_filled(options.folder, options.fills)))
