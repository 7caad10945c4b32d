"""The feature store: size, reads, loaders, rounding and training next to npz files; its index and openings as it grows.

    python -m benchmarks store [--images 8] [--size 480x480] [--rounds 15] [--device cpu]
    python -m benchmarks store --only growth batches [--growth 10000 1000000] [--records 320 2000]

The same features (3600 patches of 1280 channels, four views per image; ``store_files`` has them)
lie in compressed float32 npz (the source), in plain float16 npz (its layout fixed), and in a
float16 and an int8 store. Reads are one random view of one random image, and every byte that comes
back is summed up; their CPU time is that of the process. "as stored" is ``batch(..., dtype=None)``
or ``quantised(...)``. Growth: images of one patch x 8 channels, 34 in a shard, written directly. A
process opens the store without an index and builds it, others open it later; memory is what the
opening adds to the process. Batches: 16 random images (4 layers x 605 tokens x 384, fp16) from the
page cache, by a ``DataLoader`` with so many workers, next to LMDB and HF datasets where they are
installed (``pip install lmdb datasets``); with check="first" the reads of an image after the first
one in a process are not compared. With --device cuda batches of the loaders go there, and the
training runs there; the rest is the host's and left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.measure import Row, cpu, is_gpu, per_sample, ratios, synchronizer, turns
from benchmarks.store_files import (
    CHANNELS,
    GRID,
    PATTERNS,
    Files,
    NpzDataset,
    large,
    prepare,
    write_store,
)
from benchmarks.store_peers import PEERS, ReadBatch, from_store
from dinoneck import CLSGatingHead, FeatureStore, PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.store import MemoryStore, StoreDataset
from dinoneck.store.encoding import quantise

ROUNDS = 15
PEER, LABEL = "npz, compressed float32", "× npz"
BATCH = 32
IN_A_SHARD, SMALL, LARGE, RANDOM_BATCH = 34, (1, 1, 8), (4, 605, 384), 16
Rows = dict[str, Row]
Read = Callable[[str, int], Iterable[Any]]

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


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", default="480x480")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per batch of the loaders")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="numbers of ids"
    )
    parser.add_argument(
        "--records", type=int, nargs="*", default=[320, 2000], help="images of the random batches"
    )


def sizes(files: Files) -> Rows:
    """Bytes on disk, indices and headers included."""
    folders = {
        PEER: files.npz,
        "npz, float16": files.half,
        "fp16 store": files.root / "fp16",
        "int8 store": files.root / "int8",
    }
    count = len(files.ids) * PATTERNS
    total = {
        k: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        for k, folder in folders.items()
    }
    return {
        name: {"MiB": size / count / 2**20, "times smaller": total[PEER] / size}
        for name, size in total.items()
    }


def touch(arrays: Iterable[Any]) -> int:
    """Read every byte."""
    raw = [a.numpy() if isinstance(a, Tensor) else a for a in arrays]
    return sum(
        int(a.reshape(-1).view(np.uint64 if a.nbytes % 8 == 0 else np.uint8).sum()) for a in raw
    )


def readers(files: Files) -> dict[str, Read]:
    """Name -> what reads one view of one image."""

    def npz(folder: Path, image_id: str, view: int) -> list[Any]:
        with np.load(folder / f"{image_id}.npz") as content:
            return [content[f"cls_{view}"], content[f"patches_{view}"]]

    def as_float32(store: FeatureStore, image_id: str, view: int) -> list[Tensor]:
        return [*store[image_id, view].sequence]

    def as_stored(store: FeatureStore, image_id: str, view: int) -> list[Tensor]:
        if store.dtype != "int8":
            return [*store.batch([image_id], [view], dtype=None).sequence]
        read = store.quantised([image_id], [view])
        return [read.prefix[0], read.scale[0], read.q[0]]

    chosen: dict[str, Read] = {
        PEER: functools.partial(npz, files.npz),
        "npz, float16": functools.partial(npz, files.half),
    }
    for dtype in ("fp16", "int8"):
        chosen[f"{dtype} store, float32"] = functools.partial(as_float32, files.store(dtype))
        chosen[f"{dtype} store, as stored"] = functools.partial(as_stored, files.store(dtype))
    return chosen


def reads(files: Files, rounds: int, *, cold: bool) -> Rows:
    """One random view of one image: CPU time from the page cache, or wall time with that cache dropped."""

    def runner(read: Read) -> Callable[[], int]:
        draw = random.Random(0)
        return lambda: touch(read(draw.choice(files.ids), draw.randrange(PATTERNS)))

    variants = {name: runner(read) for name, read in readers(files).items()}
    if not cold:
        return ratios(turns(variants, rounds=rounds, timer=cpu), PEER, LABEL)
    os.sync()
    every = [
        p
        for name in ("npz", "npz16", "fp16", "int8")
        for p in (files.root / name).rglob("*")
        if p.is_file()
    ]
    return ratios(turns(variants, rounds=rounds, before=lambda: forget(every)), PEER, LABEL)


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rates(passes: dict[str, Callable[[], int]], peer: str, rounds: int, label: str = LABEL) -> Rows:
    """Samples per second; each pass returns how many it saw."""
    rows = ratios(turns(passes, rounds=rounds, timer=per_sample), peer, label)
    return {name: {"samples / s": 1e3 / row.pop("ms"), **row} for name, row in rows.items()}


def seen_by(loader: DataLoader[Any], step: Callable[[Any], object] = lambda _: None) -> int:
    """Go through a loader once."""
    count = 0
    for batch in loader:
        first = batch["cls_token"] if isinstance(batch, dict) else batch[1]
        step(batch)
        count += len(first)
    return count


def loaders(files: Files, workers: int, size: int, rounds: int, device: str = "cpu") -> Rows:
    """Whole batches through a ``DataLoader`` to a device: a quarter as many for npz, which is slow."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    many = [image_id for _ in range(8 * size) for image_id in files.ids][: 8 * size]
    few = many[: 2 * size]
    chosen: dict[str, DataLoader[Any]] = {
        PEER: DataLoader(NpzDataset(files.npz, few), batch_size=size, **options),
        "npz, float16": DataLoader(NpzDataset(files.half, few), batch_size=size, **options),
    }
    for dtype in ("fp16", "int8"):
        store = files.store(dtype)
        chosen[f"{dtype} store, float32"] = StoreDataset(store, many).loader(size, **options)
    wait = synchronizer(device)

    def sent(batch: Any) -> None:
        for part in batch.values() if isinstance(batch, dict) else batch[:1]:
            part.to(device)
        wait()

    return rates(
        {name: functools.partial(seen_by, loader, sent) for name, loader in chosen.items()},
        PEER,
        rounds,
    )


@torch.no_grad()
def rounding(files: Files) -> Rows:
    """Relative error (norm of the difference / norm) of head outputs against those on the float32 tokens."""
    torch.manual_seed(0)
    exact = large(files.small)
    pairs = [(image_id, pattern) for image_id in files.ids for pattern in range(PATTERNS)]
    q, scale = quantise(exact.patches[0], torch.ones(CHANNELS))
    naive = Tokens.from_patches(
        q * scale[..., None], grid=GRID, patch_size=16, cls_token=exact.cls_token
    )
    kinds = {
        "fp16 store": files.store("fp16"),
        "int8 store": files.store("int8"),
        "int8 per token only": naive,
    }
    tasks = [Task("mass", dim=16)]
    errors: dict[str, dict[str, list[float]]] = {}
    for seed in range(3):
        torch.manual_seed(seed + 1)
        gate = CLSGatingHead(CHANNELS, tasks, num_patches=GRID[0] * GRID[1]).eval()
        mean = PatchMeanHead(CHANNELS, tasks).eval()
        for kind, source in kinds.items():
            read = (
                source
                if isinstance(source, Tokens)
                else source.batch([i for i, _ in pairs], [p for _, p in pairs])
            )
            given = {
                "tokens": (read.patches[0], exact.patches[0]),
                "CLS gating": (gate(read)["mass"], gate(exact)["mass"]),
                "patch mean": (mean(read)["mass"], mean(exact)["mass"]),
                "patch map": (mean.predict_maps(read)["mass"], mean.predict_maps(exact)["mass"]),
            }
            for what, (a, b) in given.items():
                errors.setdefault(kind, {}).setdefault(what, []).append(
                    float((a - b).norm() / b.norm())
                )
    return {
        kind: {what: max(values) for what, values in row.items()} for kind, row in errors.items()
    }


def training(files: Files, rounds: int, device: str = "cpu") -> Rows:
    """An epoch of one head over the small extraction, from the store and with the backbone in the loop."""
    store, backbone = files.small, files.backbone.to(device)
    width, wait = backbone.embed_dim, synchronizer(device)
    head = PatchMeanHead(width, [Task("mass")]).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)

    def step(tokens: Tokens) -> None:
        optimizer.zero_grad()
        head(tokens.to(device))["mass"].square().mean().backward()
        optimizer.step()
        wait()

    def live() -> int:
        paths = sorted(files.images.iterdir())
        with torch.no_grad():
            tokens = backbone(store.preprocess(paths).to(device))
        step(tokens)
        return len(paths)

    ids = [image_id for _ in range(4 * BATCH) for image_id in store.ids][: 4 * BATCH]
    passes: dict[str, Callable[[], int]] = {"live backbone": live}
    for workers in (0, 2):
        loader = StoreDataset(store, ids).loader(
            BATCH, num_workers=workers, persistent_workers=workers > 0
        )
        passes[f"fp16 store, {workers} workers"] = functools.partial(
            seen_by, loader, lambda batch: step(batch[0])
        )
    kept = MemoryStore(store, device=device)

    def from_memory() -> int:
        for begin in range(0, len(ids), BATCH):
            step(kept.batch(ids[begin : begin + BATCH]))
        return len(ids)

    passes["fp16 store in memory"] = from_memory
    return rates(passes, "live backbone", rounds, "× live backbone")


def opened(folder: Path) -> dict[str, float]:
    """Open a store in a process of its own."""
    shown = subprocess.run(
        [sys.executable, "-c", _OPENED, folder], capture_output=True, text=True, check=True
    ).stdout
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

    def __init__(self, read: ReadBatch, count: int) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> list[Tensor]:
        draw = random.Random(f"{number} {os.urandom(8).hex()}")
        return self.read([draw.randrange(self.count) for _ in range(RANDOM_BATCH)])


def batches(folder: Path, count: int, rounds: int) -> Rows:
    """Random batches per second, by what is checked, and of the peers that are installed."""
    write_store(folder / "store", count, LARGE, 64 << 20)
    FeatureStore.open(folder / "store").refresh(write=True)
    reads: dict[str, ReadBatch] = {
        f'check="{check}"': functools.partial(from_store, folder / "store", check)
        for check in ("never", "first", "always")
    }
    for name, (write, read) in PEERS.items():
        try:
            write(folder / name, count, LARGE)
        except ModuleNotFoundError as error:  # a peer that is not installed
            print(f"skipped: {name} ({error})")
        else:
            reads[name] = functools.partial(read, folder / name, LARGE)
    rows: Rows = {}
    # last in this process: what it opens, a worker cannot open again after a fork
    for workers in (1, 2, 4, 0):
        options: dict[str, Any] = {
            "batch_size": None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
        }
        loaders = {
            name: DataLoader(Batches(read, count), **options) for name, read in reads.items()
        }  # type: ignore[arg-type]
        passes = {
            name: functools.partial(lambda loader: sum(1 for _ in loader), loader)
            for name, loader in loaders.items()
        }
        seconds = turns(passes, rounds=rounds, timer=per_sample, warmup=3)
        for name, row in ratios(seconds, 'check="first"', "×").items():
            rates = {
                f"{workers} workers, batches / s": 1e3 / row["ms"],
                f"× first, {workers}": row["×"],
            }
            rows.setdefault(name, {}).update(rates)
    return rows


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Yield a table per stage."""
    device, rounds = options.device, options.rounds
    images, size = (
        (1, "96x96") if options.short and not is_gpu(device) else (options.images, options.size)
    )
    batch, counts, records = (
        (2, [3000], [20]) if options.short else (options.batch, options.growth, options.records)
    )
    stages: dict[str, Callable[[Files], Rows]] = {
        "size": sizes,
        "CPU of a read": lambda files: reads(files, rounds, cold=False),
        "cold read": lambda files: reads(files, rounds, cold=True),
        "loader, 0 workers": lambda files: loaders(files, 0, batch, 2, device),
        "loader, 2 workers": lambda files: loaders(files, 2, batch, 2, device),
        "rounding": rounding,
        "training": lambda files: training(files, 2, device),
    }
    host = ("size", "CPU of a read", "cold read", "rounding") if is_gpu(device) else ()
    wanted = options.only or [
        title for title in (*stages, "growth", "batches") if title not in host
    ]
    if any(title in stages for title in wanted):
        backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
        height, width = (int(x) for x in size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            files = prepare(Path(folder), backbone, images, (height, width))
            for title in (title for title in stages if title in wanted):
                yield title, stages[title](files)
    if "growth" in wanted and not is_gpu(device):
        with tempfile.TemporaryDirectory() as folder:
            yield "growth", growth(Path(folder), counts)
    if "batches" in wanted and not is_gpu(device):
        for count in records:
            with tempfile.TemporaryDirectory() as folder:
                yield f"batches of {count} images", batches(Path(folder), count, rounds)
