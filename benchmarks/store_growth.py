"""How a feature store grows: its index and its openings by the number of ids, and random batches next to peers.

    python -m benchmarks.feature_store --growth 10000 100000 1000000 [--records 320] [--workers 0 1 2 4]

* Growth: images of one patch x 8 channels, 34 in a shard, written directly. A process opens the store without an index
  and builds it, others open it later; memory is what the opening adds to the process. Look-ups are random ids.
* Batches of 16 random images (4 layers x 605 tokens x 384, fp16) through a ``DataLoader``, from the page cache: the
  store with ``check=`` first, always and never, LMDB and HF datasets (extra ``bench``) where they are installed.

Rates are medians of rounds in which all take turns. Writes benchmarks/results/store_growth.json and .md.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.sources import store
from benchmarks.timing import machine
from dinoneck import FeatureStore, load_backbone
from dinoneck.data import Views
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.grid import GridSize
from dinoneck.store import shards
from dinoneck.store.description import Description, make_folder
from dinoneck.store.files import LocalFiles

IN_A_SHARD, SMALL, LARGE, BATCH, BATCHES = 34, (1, 1, 8), (4, 605, 384), 16, 8
Rows = dict[str, dict[str, float]]

_OPENED = """
import json, random, sys, time
from pathlib import Path
from dinoneck.store.feature_store import FeatureStore

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}

before, begin = resident(), time.perf_counter()
store = FeatureStore.open(sys.argv[1])
row = {"ms": 1e3 * (time.perf_counter() - begin), "MB": resident()["VmHWM"] - before["VmRSS"]}
draw, times = random.Random(0), []
for _ in range(50):
    ids = [f"images/{draw.randrange(len(store)):09d}" for _ in range(16)]
    begin = time.perf_counter()
    store.entries.find(ids)
    times.append(1e3 * (time.perf_counter() - begin))
print(json.dumps({**row, "16 look-ups, ms": sorted(times)[25]}))
"""


def description(shape: tuple[int, int, int]) -> Description:
    """Describe a store of (layers, tokens, channels) per image; of several tokens 5 are CLS and registers."""
    layers, tokens, channels = shape
    kept = {"embed_dim": channels, "num_cls": int(tokens > 1), "num_registers": 4 * (tokens > 1)}
    record = {**load_backbone("dinoneck_tiny").record(), **kept, "layers": list(range(layers))}
    return Description(record, Preprocessing(), Views.named("none"), "fp16")


def write_store(folder: Path, count: int, shape: tuple[int, int, int], shard_bytes: int) -> None:
    """Write a store of made-up tokens, without flushing every file to the disk."""
    own, (layers, tokens, channels) = description(shape), shape
    make_folder(folder, own)
    writer = shards.Writer(shards.Shards(LocalFiles(folder), own.digest, own.parts), "/", shard_bytes)
    safe = shards.write_whole
    shards.write_whole = lambda path, content, check=None: Path(path).write_bytes(content)  # type: ignore[assignment]
    try:
        for number in range(count):
            x = torch.full((1, layers, tokens, channels), number % 1000, dtype=torch.float16)
            grid = GridSize(1, tokens - 5 * (tokens > 1))
            writer.add(f"images/{number:09d}", {"tokens": x}, grid, (f"{number:032x}", 900_000, 10**18 + number))
        writer.flush()
    finally:
        shards.write_whole = safe


def opened(folder: Path) -> dict[str, float]:
    """Open a store in a process of its own."""
    shown = subprocess.run([sys.executable, "-c", _OPENED, folder], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(shown))


def growth(folder: Path, counts: Sequence[int], rounds: int = 5) -> Rows:
    """Index bytes, first and later opening, memory and look-ups, by the number of ids."""
    rows: Rows = {}
    for count in counts:
        root = folder / str(count)
        write_store(root, count, SMALL, IN_A_SHARD * 16)
        os.utime(root / "data", (1e9, 1e9))  # a young folder is listed at each opening
        first, later = opened(root), [opened(root) for _ in range(rounds)]
        median = {key: statistics.median(row[key] for row in later) for key in first}
        rows[f"{count} ids"] = {
            "index, MB": (root / "index.sqlite").stat().st_size / 1e6,
            "first opening, s": first["ms"] / 1e3,
            "first, MB": first["MB"],
            "later opening, ms": median["ms"],
            "later, MB": median["MB"],
            "16 look-ups, ms": median["16 look-ups, ms"],
        }
    return rows


class Batches:
    """Random batches for a ``DataLoader`` without collation: each item is one whole batch."""

    def __init__(self, read: Callable[[list[int]], list[Tensor]], count: int) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, number: int) -> list[Tensor]:
        draw = random.Random(f"{number} {time.perf_counter_ns()}")
        return self.read([draw.randrange(self.count) for _ in range(BATCH)])


def from_store(root: Path, check: str, numbers: list[int]) -> list[Tensor]:
    """Read a batch from a store, which every process opens once."""
    store = _open(root, check)
    return list(store.batch([f"images/{number:09d}" for number in numbers], dtype=None).sequence)


@functools.cache
def _open(root: Path, check: Any) -> FeatureStore:
    return FeatureStore.open(root, check=check)


def from_lmdb(root: Path, numbers: list[int]) -> list[Tensor]:
    """Read a batch from LMDB: one value per image, copied into a batch."""
    batch = torch.empty(len(numbers), *LARGE, dtype=torch.float16)
    with _environment(root).begin(buffers=True) as transaction:
        for row, number in zip(batch, numbers, strict=True):
            row.copy_(torch.frombuffer(transaction.get(f"{number:09d}".encode()), dtype=torch.float16).view(LARGE))
    return [batch]


@functools.cache
def _environment(root: Path) -> Any:
    import lmdb

    return lmdb.open(str(root), readonly=True, lock=False, readahead=False)


def from_datasets(root: Path, numbers: list[int]) -> list[Tensor]:
    """Read a batch from HF datasets: a column of bytes, copied into a batch."""
    batch = torch.empty(len(numbers), *LARGE, dtype=torch.float16)
    for row, raw in zip(batch, _dataset(root)[numbers]["tokens"], strict=True):
        row.copy_(torch.frombuffer(bytearray(raw), dtype=torch.float16).view(LARGE))
    return [batch]


@functools.cache
def _dataset(root: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(root))


def peers(folder: Path, count: int) -> dict[str, Callable[[list[int]], list[Tensor]]]:
    """Write the same records in every format; return what reads a batch."""
    store = folder / "store"
    write_store(store, count, LARGE, 64 << 20)
    FeatureStore.open(store).refresh(write=True)
    readers = {f"store, check={c}": functools.partial(from_store, store, c) for c in ("first", "always", "never")}

    def records() -> Iterator[bytes]:
        return (torch.full(LARGE, number % 1000, dtype=torch.float16).numpy().tobytes() for number in range(count))

    if importlib.util.find_spec("lmdb"):
        import lmdb

        with lmdb.open(str(folder / "lmdb"), map_size=1 << 40) as environment, environment.begin(write=True) as file:
            for number, raw in enumerate(records()):
                file.put(f"{number:09d}".encode(), raw)
        readers["LMDB"] = functools.partial(from_lmdb, folder / "lmdb")
    if importlib.util.find_spec("datasets"):
        import datasets

        made = datasets.Dataset.from_generator(lambda: ({"tokens": raw} for raw in records()), cache_dir=str(folder))
        made.save_to_disk(str(folder / "datasets"))
        readers["HF datasets"] = functools.partial(from_datasets, folder / "datasets")
    return readers


def batches(folder: Path, count: int, workers: Sequence[int], rounds: int) -> Rows:
    """Random batches per second; all formats take turns in every round."""
    readers, rows = peers(folder, count), dict[str, dict[str, float]]()
    for number in workers:
        options: dict[str, Any] = {"batch_size": None, "num_workers": number, "persistent_workers": number > 0}
        loaders = {name: DataLoader(Batches(read, count), **options) for name, read in readers.items()}  # type: ignore
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for turn in range(rounds + 3):  # three of them read every record once, which compares its checksum
            for name, loader in loaders.items():
                begin = time.perf_counter()
                for _ in loader:
                    pass
                rates[name] += [BATCHES / (time.perf_counter() - begin)] * (turn > 2)
        for name, values in rates.items():
            rows.setdefault(name, {})[f"{number} workers"] = statistics.median(values)
        del loaders
    return rows


def run(counts: Sequence[int], records: int, workers: Sequence[int], rounds: int, out: Path) -> None:
    """Measure, and write what was measured so far."""
    torch.set_num_threads(1)
    command = f"python -m benchmarks.feature_store --growth {' '.join(map(str, counts))} --records {records}"
    stages: dict[str, Callable[[Path], Rows]] = {
        "growth": lambda folder: growth(folder, counts),
        "batches of 16 per second": lambda folder: batches(folder, records, workers, rounds),
    }
    report: dict[str, Rows] = {}
    for title, stage in stages.items():
        with tempfile.TemporaryDirectory() as folder:
            report[title] = stage(Path(folder))
        write(report, command, out)


def write(report: dict[str, Rows], command: str, out: Path) -> None:
    """Write the tables, and print them."""
    about = machine()
    stored = {"machine": about, "command": command, **report}
    store(out / "store_growth.json", stored)
    lines = [f"`{command}`, {about['cpu']}, {about['cores']} cores, {about['versions']}."]
    for title, table in report.items():
        columns = list(next(iter(table.values())))
        lines += ["", f"**{title}**", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |" for name, row in table.items()]
    (out / "store_growth.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
