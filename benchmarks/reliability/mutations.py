"""Random damage: more than a million mutations of head files' bytes, and random forgeries behind the digest.

    python -m benchmarks.reliability.mutations --repeat "bytes/flip/LoRA/123"   # one of them once more

Every mutation follows from its name alone: table, kind, seed file and number.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import math
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.reliability.damage import KINDS, STACKED, damaged
from benchmarks.reliability.forgeries import CHANGES, forged
from benchmarks.reliability.mutation_seeds import BEHIND, BYTES, WEIGHTS, content_of, seed_files, twin
from benchmarks.reliability.processes import CONTEXT
from dinoneck import Backbone, HeadCheckpoint, Predictor, Tokens, load_backbone
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.read import read_file
from dinoneck.errors import CheckpointError, DinoneckError

SEED = 0
EACH = {BYTES: 160_000, BEHIND: 20_000}
"""Mutations of each kind at share 1."""
CHUNK, WORKERS, IN_PROCESS = 1000, 2, 20_000
LIMIT_S, ROOM = 10.0, 4 << 30
UNCHANGED, WHOLE, SILENT = "unchanged", "a whole head", "silent"
_SHOWN = 20
_tools: list[Workbench] = []


class TooLong(BaseException):
    """One read took longer than any honest one; no ``except Exception`` may swallow it."""


class Workbench:
    """Makes mutations, puts them into one file and judges what the reader makes of it."""

    def __init__(self, folder: Path, seeds: dict[str, bytes]) -> None:
        self.path, self.saved = folder / f"head-{os.getpid()}", folder / f"saved-{os.getpid()}"
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.seeds, self.contents, self.known = seeds, {}, {}
        for name, content in seeds.items():
            self.put(content)
            self.contents[name] = content_of(self.path)
        self.donors = [*seeds.values(), *(twin(*content) for content in self.contents.values())]
        for content in self.donors:
            self.put(content)
            self.known[content] = read_file(self.path)
        signal.signal(signal.SIGVTALRM, _too_long)

    def put(self, content: bytes) -> None:
        """Make the file these bytes."""
        os.pwrite(self.descriptor, content, 0)
        os.ftruncate(self.descriptor, len(content))

    def made(self, name: str) -> bytes:
        """The mutation of this name."""
        table, kind, seed, _ = name.split("/")
        rng = Random(f"{SEED}/{name}")
        if table == BYTES:
            return damaged(rng, kind, self.seeds[seed], self.donors)
        return forged(rng, kind, self.contents[seed], list(self.contents.values()))

    def outcome(self, table: str, content: bytes) -> tuple[str, float]:
        """What comes of reading these bytes, and the milliseconds of the processor it takes."""
        self.put(content)
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
        begun = time.process_time()
        try:
            found = self._damage(content) if table == BYTES else self._forgery(content)
        except CheckpointError as error:
            found = error.step
        except (Exception, TooLong) as error:
            found = f"uncaught {type(error).__name__}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return found, 1e3 * (time.process_time() - begun)

    def _damage(self, content: bytes) -> str:
        header, state = read_file(self.path)
        if content not in self.known:
            return SILENT
        meta, tensors = self.known[content][0].meta, self.known[content][1]
        alike = header.meta == meta and state.keys() == tensors.keys()
        return UNCHANGED if alike and all(torch.equal(state[key], tensors[key]) for key in state) else SILENT

    def _forgery(self, content: bytes) -> str:
        head = HeadCheckpoint.load(self.path)
        older = head.file_digest != head.meta["digest"] or headers.read_header(self.path).meta != head.meta
        try:
            _predict(head)
            head.save(self.saved)
            if older:  # brought to the present form: that one has to stay as it is
                content = self.saved.read_bytes()
                HeadCheckpoint.load(self.saved).save(self.saved)
        except Exception as error:  # accepted once, so nothing may fail from here on
            return f"uncaught {type(error).__name__} of a loaded head"
        return WHOLE if self.saved.read_bytes() == content else SILENT

    def run(self, job: tuple[str, str, str, int, int]) -> dict[str, Any]:
        """Try one chunk of mutations."""
        table, kind, seed, first, last = job
        found: Counter[str] = Counter()
        problems, slowest = [], (0.0, "")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with mock.patch.object(os, "fsync", lambda descriptor: None):  # of files that are not to last
            for number in range(first, last):
                name = f"{table}/{kind}/{seed}/{number}"
                outcome, ms = self.outcome(table, self.made(name))
                found[outcome] += 1
                slowest = max(slowest, (ms, name))
                if outcome == SILENT or outcome.startswith("uncaught"):
                    problems.append(f'{outcome}: python -m benchmarks.reliability.mutations --repeat "{name}"')
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        return {"job": job, "found": found, "slowest": slowest, "grown": grown, "problems": problems[:_SHOWN]}

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


def _predict(head: HeadCheckpoint) -> None:
    """Predict with an accepted head, on a backbone and on tokens of its record; it may refuse with a reason."""
    module: Any = head.build()
    if not head.meta["tasks"]:
        return
    record = head.meta["backbone"] or {}
    layers = record.get("layers") or [5]
    patches = [torch.zeros(1, 4, module.embed_dim) for _ in layers]
    with warnings.catch_warnings(), contextlib.suppress(DinoneckError):
        warnings.simplefilter("ignore")
        Predictor(head, _backbone())(torch.zeros(3, 32, 32))
    with contextlib.suppress(DinoneckError):
        tokens = Tokens.from_patches(
            patches, grid=(2, 2), patch_size=16, cls_token=[x[:, 0] for x in patches], layers=layers
        )
        module.predict(tokens.to(dtype=next(module.parameters()).dtype))


@functools.cache
def _backbone() -> Backbone:
    return load_backbone("dinoneck_tiny")


def _too_long(*_: object) -> None:
    raise TooLong


def _begin(folder: Path, seeds: dict[str, bytes]) -> None:
    """Ready a process of the pool, with a bound on its memory."""
    torch.set_num_threads(1)
    _tools.append(Workbench(folder, seeds))
    gc.freeze()  # else a walk through all that is imported would be the slowest read
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _work(job: tuple[str, str, str, int, int]) -> dict[str, Any]:
    return _tools[0].run(job)


def jobs(share: float) -> list[tuple[str, str, str, int, int]]:
    """All mutations in chunks: table, kind, seed file, first number and the one after the last."""
    chunks = []
    for table, kinds in ((BYTES, (*KINDS, STACKED)), (BEHIND, tuple(CHANGES))):
        for kind in kinds:
            for seed, weight in WEIGHTS[table].items():
                count = math.ceil(EACH[table] * share * weight)
                chunks += [(table, kind, seed, first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return chunks


def _results(work: Path, seeds: dict[str, bytes], chunks: list[Any], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        bench = Workbench(work, seeds)
        yield from map(bench.run, chunks)
        bench.close()
        return
    with ProcessPoolExecutor(workers, CONTEXT, initializer=_begin, initargs=(work, seeds)) as pool:
        yield from pool.map(_work, chunks)


def measure(work: Path, share: float, workers: int | None = None) -> dict[str, Any]:
    """Try all mutations; small shares in this process."""
    begun, seeds, chunks = time.monotonic(), seed_files(), jobs(share)
    total = sum(last - first for *_, first, last in chunks)
    tables: dict[str, dict[str, Counter[str]]] = {BYTES: {}, BEHIND: {}}
    files = {
        name: {"bytes": len(content), "tried": 0, "slowest_ms": 0.0, "slowest": ""} for name, content in seeds.items()
    }
    problems, grown = [], 0.0
    with tqdm(total=total, desc="mutations", unit_scale=True, disable=None) as bar:
        for result in _results(work, seeds, chunks, workers or (WORKERS if total > IN_PROCESS else 1)):
            table, kind, seed, first, last = result["job"]
            tables[table].setdefault(kind, Counter()).update(result["found"])
            files[seed]["tried"] += last - first
            if result["slowest"][0] > files[seed]["slowest_ms"]:
                files[seed]["slowest_ms"], files[seed]["slowest"] = round(result["slowest"][0], 2), result["slowest"][1]
            problems += result["problems"]
            grown = max(grown, result["grown"])
            bar.update(last - first)
    return {
        "failed": sum(_bad(row) for rows in tables.values() for row in rows.values()),
        "tried": {table: sum(row.total() for row in rows.values()) for table, rows in tables.items()},
        "changed": sum(row.total() - row[UNCHANGED] for row in tables[BYTES].values()),
        "tables": {
            table: {kind: dict(sorted(row.items())) for kind, row in rows.items()} for table, rows in tables.items()
        },
        "files": files,
        "most_memory_mib": round(grown, 1),
        "problems": sorted(problems)[:_SHOWN],
        "predicts": True,
        "seed": SEED,
        "seconds": round(time.monotonic() - begun),
    }  # fmt: skip


def _bad(row: dict[str, int]) -> int:
    return sum(count for name, count in row.items() if name == SILENT or name.startswith("uncaught"))


def _table(rows: dict[str, dict[str, int]], passed: str) -> str:
    steps = [step for step in ("file", "header", "json", "schema", "registry", "config", "tensors", "digest", "finite")
             if any(step in row for row in rows.values())]  # fmt: skip
    lines = [f"| kind | tried | {' | '.join(f'`{step}`' for step in steps)} | {passed} | silent | uncaught |"]
    lines.append("|---" * (len(steps) + 5) + "|")
    for kind, row in rows.items():
        uncaught = sum(count for name, count in row.items() if name.startswith("uncaught"))
        cells = [
            sum(row.values()),
            *(row.get(step, 0) for step in steps),
            row.get(passed, 0),
            row.get(SILENT, 0),
            uncaught,
        ]
        lines.append(f"| {kind} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The section of the page."""
    files = result["files"]
    slow = max(files.values(), key=lambda row: row["slowest_ms"])
    told = [
        f"| {name} | {row['bytes']:,} | {row['tried']:,} | {row['slowest_ms']:.1f} |" for name, row in files.items()
    ]
    troubles = "".join(f"\n- `{line}`" for line in result["problems"])
    damages, behind, changed = (f"{n:,}" for n in (result["tried"][BYTES], result["tried"][BEHIND], result["changed"]))
    outcome, note = "it predicts or refuses to with a reason, ", ""
    if "predicts" not in result:
        outcome, note = (
            "",
            "\nThe numbers were measured before the campaign predicted with every such file, as it does now.",
        )
    loaded = sum(row.get(SILENT, 0) for row in result["tables"][BYTES].values())
    return f"""\
{damages} times the bytes of a head file were damaged at random and read; {changed} of them then differed from
the sound file, and {loaded:,} of those loaded. What was refused, by step; *unchanged* are those whose damage left the
bytes of a sound file (a block swapped with its equal), which load with the same bits. *Silent* would be a file that
loads with other bytes, *uncaught* any exception but `CheckpointError`, a lack of memory or a read of more than
{LIMIT_S:.0f} seconds.

{_table(result["tables"][BYTES], UNCHANGED)}

The checksum sees what the spelling lets pass. So in {behind} more files it was computed again after a random change
of the metadata or the tensors, in canonical spelling. What is not refused has to be a whole head: it loads, it builds,
{outcome}and saved again it has the same bytes (*silent*: other bytes).{note}

{_table(result["tables"][BEHIND], WHOLE)}

| seed file | bytes | tried | slowest, ms |
|---|---|---|---|
{chr(10).join(told)}

The slowest, `{slow["slowest"]}`, took {slow["slowest_ms"]:.1f} ms of processor time, with all that is done to
judge it; a thousand of them never took more than {result["most_memory_mib"]:.0f} MiB more memory than those before. All
of it took {result["seconds"]:,} seconds. Every mutation follows from its name:
`python -m benchmarks.reliability.mutations --repeat NAME` does one again. A hypothesis target does the same with what
it thinks of: `DINONECK_FUZZ=100000 python -m pytest tests/faults/test_fuzz_head_file.py` tries so many examples of each
test in place of a few, others each time.{troubles}
"""


def repeat(name: str) -> None:
    """Do one mutation again and show what comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(Path(folder), seed_files())
        content = bench.made(name)
        print(len(content), "bytes:", content[:4000])
        print(*bench.outcome(name.split("/")[0], content), "ms")
        try:
            print(HeadCheckpoint.load(bench.path).build())
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", required=True, metavar="NAME")
    repeat(parser.parse_args().repeat)
