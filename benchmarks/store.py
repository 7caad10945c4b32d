"""The feature store next to npz files: size, reads, loaders, rounding, training; and as it grows.

    python -m benchmarks store [--images 8] [--size 480x480] [--rounds 15] [--device cpu]
    python -m benchmarks store --only growth batches [--growth 10000 1000000] [--records 320 2000]

The same features (3600 patches of 1280 channels, four views per image; see ``store_files``) are
in compressed float32 npz (the source), in uncompressed float16 npz (its layout fixed), and in a
float16 and an int8 store. A read is one random view of one random image, and all its bytes are
summed up; the CPU time is that of the process. "as stored" is ``batch(..., dtype=None)`` or
``quantised(...)``. Growth: images of one patch x 8 channels, 34 in a shard, written directly. A
process opens the store without an index and builds it, others open it later; memory is what the
opening adds to the process. Batches: 16 random images (4 layers x 605 tokens x 384, fp16) from the
page cache, by a ``DataLoader`` with 0 to 4 workers, next to LMDB and HF datasets if they are
installed (``pip install lmdb datasets``); with check="first" only the first read of an image in a
process is compared. With --device cuda the loaders send their batches there, and the training runs
there; the other tables measure the host and are left out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
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
    PATCH,
    PATTERNS,
    Files,
    NpzDataset,
    large,
    pairs_of,
    prepare,
    write_store,
)
from benchmarks.store_peers import PEERS, ReadBatch, from_store
from dinoneck import CLSGatingHead, FeatureStore, PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.store import MemoryStore, StoreDataset
from dinoneck.store.encoding import quantise

ROUNDS = 15
PEER = "npz, compressed float32"
HALF_NPZ = "npz, float16"
LABEL = "× npz"
BATCH = 32
BATCHES = 8  # of a pass through a loader
PASSES = 2
RANDOM_BATCH = 16
MIB = 2**20
# images of the growth and of the random batches: layers, tokens, channels
SMALL = (1, 1, 8)
LARGE = (4, 605, 384)
SMALL_SHARD_BYTES = 34 * 16  # an image has 8 channels of 2 bytes
LARGE_SHARD_BYTES = 64 << 20
OF_THE_HOST = ("size", "CPU of a read", "cold read", "rounding")  # left out on a GPU
Rows = dict[str, Row]
Read = Callable[[str, int], Iterable[Any]]

# opens the store of argument 1, looks ids up and prints the times and the memory
_OPENED = """
import json, random, sys, time
from pathlib import Path
from dinoneck.store.feature_store import FeatureStore

def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024

before = resident("VmRSS")
begin = time.perf_counter()
store = FeatureStore.open(sys.argv[1])
row = {"ms": 1e3 * (time.perf_counter() - begin), "MB": resident("VmHWM") - before}
generator = random.Random(0)
times = []
for _ in range(50):
    ids = [f"images/{generator.randrange(len(store)):09d}" for _ in range(16)]
    begin = time.perf_counter()
    store.entries.find(ids)
    times.append(1e3 * (time.perf_counter() - begin))
row["16 look-ups, ms"] = sorted(times)[25]
print(json.dumps(row))
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
    """Measure the bytes on disk, with indices and headers."""
    folders = {
        PEER: files.npz,
        HALF_NPZ: files.half,
        "fp16 store": files.root / "fp16",
        "int8 store": files.root / "int8",
    }
    count = len(files.ids) * PATTERNS
    rows: Rows = {}
    npz_bytes = sum(path.stat().st_size for path in files_in(files.npz))
    for name, folder in folders.items():
        num_bytes = sum(path.stat().st_size for path in files_in(folder))
        rows[name] = {"MiB": num_bytes / count / MIB, "times smaller": npz_bytes / num_bytes}
    return rows


def files_in(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def touch(arrays: Iterable[Any]) -> int:
    """Read and sum every byte."""
    total = 0
    for array in arrays:
        if isinstance(array, Tensor):
            array = array.numpy()
        words = np.uint64 if array.nbytes % 8 == 0 else np.uint8
        total += int(array.reshape(-1).view(words).sum())
    return total


def readers(files: Files) -> dict[str, Read]:
    """Return name -> function that reads one view of one image."""

    def npz(folder: Path, image_id: str, view: int) -> list[Any]:
        with np.load(folder / f"{image_id}.npz") as content:
            return [content[f"cls_{view}"], content[f"patches_{view}"]]

    def as_float32(store: FeatureStore, image_id: str, view: int) -> list[Tensor]:
        return [*store[image_id, view].sequence]

    def as_stored(store: FeatureStore, image_id: str, view: int) -> list[Tensor]:
        if store.dtype != "int8":
            return [*store.batch([image_id], [view], dtype=None).sequence]
        quantised = store.quantised([image_id], [view])
        return [quantised.prefix[0], quantised.scale[0], quantised.q[0]]

    by_name: dict[str, Read] = {
        PEER: functools.partial(npz, files.npz),
        HALF_NPZ: functools.partial(npz, files.half),
    }
    for dtype in ("fp16", "int8"):
        by_name[f"{dtype} store, float32"] = functools.partial(as_float32, files.store(dtype))
        by_name[f"{dtype} store, as stored"] = functools.partial(as_stored, files.store(dtype))
    return by_name


def reads(files: Files, rounds: int, *, cold: bool) -> Rows:
    """Measure the read of one random view of one image.

    It is CPU time from the page cache, or, if cold, wall time with that cache dropped.
    """

    def random_reads(read: Read) -> Callable[[], int]:
        generator = random.Random(0)
        return lambda: touch(read(generator.choice(files.ids), generator.randrange(PATTERNS)))

    variants = {name: random_reads(read) for name, read in readers(files).items()}
    if not cold:
        return ratios(turns(variants, rounds=rounds, timer=cpu), PEER, LABEL)
    os.sync()
    paths = []
    for folder in (files.npz, files.half, files.root / "fp16", files.root / "int8"):
        paths += files_in(folder)
    seconds = turns(variants, rounds=rounds, before=lambda: forget(paths))
    return ratios(seconds, PEER, LABEL)


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rates(passes: dict[str, Callable[[], int]], peer: str, rounds: int, label: str = LABEL) -> Rows:
    """Measure samples per second; each pass returns how many it saw."""
    rows: Rows = {}
    seconds = turns(passes, rounds=rounds, timer=per_sample)
    for name, row in ratios(seconds, peer, label).items():
        ms_per_sample = row.pop("ms")
        rows[name] = {"samples / s": 1e3 / ms_per_sample, **row}
    return rows


def go_through(loader: DataLoader[Any], step: Callable[[Any], object]) -> int:
    """Go through a loader once and return the number of samples."""
    count = 0
    for batch in loader:
        # a dictionary of arrays, or tokens and ids
        of_samples = batch["cls_token"] if isinstance(batch, dict) else batch[1]
        step(batch)
        count += len(of_samples)
    return count


def repeat(ids: Sequence[str], length: int) -> list[str]:
    """Return the ids again and again, up to a length."""
    return list(itertools.islice(itertools.cycle(ids), length))


def loaders(files: Files, workers: int, size: int, rounds: int, device: str = "cpu") -> Rows:
    """Measure whole batches through a ``DataLoader`` to a device.

    There are a quarter as many of npz files, which are slow.
    """
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    many = repeat(files.ids, BATCHES * size)
    few = many[: BATCHES // 4 * size]
    by_name: dict[str, DataLoader[Any]] = {
        PEER: DataLoader(NpzDataset(files.npz, few), batch_size=size, **options),
        HALF_NPZ: DataLoader(NpzDataset(files.half, few), batch_size=size, **options),
    }
    for dtype in ("fp16", "int8"):
        dataset = StoreDataset(files.store(dtype), many)
        by_name[f"{dtype} store, float32"] = dataset.loader(size, **options)
    synchronize = synchronizer(device)

    def send(batch: Any) -> None:
        parts = batch.values() if isinstance(batch, dict) else batch[:1]
        for part in parts:
            part.to(device)
        synchronize()

    passes = {}
    for name, loader in by_name.items():
        passes[name] = functools.partial(go_through, loader, send)
    return rates(passes, PEER, rounds)


@torch.no_grad()
def rounding(files: Files) -> Rows:
    """Measure the largest relative error of head outputs against those on the float32 tokens.

    It is the norm of the difference, as a share of the norm.
    """
    torch.manual_seed(0)
    exact = large(files.small)
    q, scale = quantise(exact.patches[0], torch.ones(CHANNELS))
    int8_per_token = Tokens.from_patches(
        q * scale[..., None], grid=GRID, patch_size=PATCH, cls_token=exact.cls_token
    )
    tasks = [Task("mass", dim=16)]
    num_patches = GRID[0] * GRID[1]
    heads = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        gate = CLSGatingHead(CHANNELS, tasks, num_patches=num_patches).eval()
        mean = PatchMeanHead(CHANNELS, tasks).eval()
        heads.append((gate, mean))

    def errors(tokens: Tokens) -> Row:
        largest: Row = {}
        for gate, mean in heads:
            expected = _outputs(exact, gate, mean)
            for name, output in _outputs(tokens, gate, mean).items():
                error = float((output - expected[name]).norm() / expected[name].norm())
                largest[name] = max(error, largest.get(name, 0.0))
        return largest

    image_ids, patterns = pairs_of(files.ids)
    return {
        "fp16 store": errors(files.store("fp16").batch(image_ids, patterns)),
        "int8 store": errors(files.store("int8").batch(image_ids, patterns)),
        "int8 per token only": errors(int8_per_token),
    }


def _outputs(tokens: Tokens, gate: CLSGatingHead, mean: PatchMeanHead) -> dict[str, Tensor]:
    """Return the patches and the outputs of two heads."""
    return {
        "tokens": tokens.patches[0],
        "CLS gating": gate(tokens)["mass"],
        "patch mean": mean(tokens)["mass"],
        "patch map": mean.predict_maps(tokens)["mass"],
    }


def training(files: Files, rounds: int, device: str = "cpu") -> Rows:
    """Measure an epoch of a head over the small extraction, from the store and from the backbone."""
    store = files.small
    backbone = files.backbone.to(device)
    synchronize = synchronizer(device)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")]).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)

    def step(tokens: Tokens) -> None:
        optimizer.zero_grad()
        loss = head(tokens.to(device))["mass"].square().mean()
        loss.backward()
        optimizer.step()
        synchronize()

    def live() -> int:
        paths = sorted(files.images.iterdir())
        with torch.no_grad():
            tokens = backbone(store.preprocess(paths).to(device))
        step(tokens)
        return len(paths)

    ids = repeat(store.ids, 4 * BATCH)
    passes: dict[str, Callable[[], int]] = {"live backbone": live}
    for workers in (0, 2):
        loader = StoreDataset(store, ids).loader(
            BATCH, num_workers=workers, persistent_workers=workers > 0
        )
        passes[f"fp16 store, {workers} workers"] = functools.partial(
            go_through, loader, lambda batch: step(batch[0])
        )
    in_memory = MemoryStore(store, device=device)

    def from_memory() -> int:
        for begin in range(0, len(ids), BATCH):
            step(in_memory.batch(ids[begin : begin + BATCH]))
        return len(ids)

    passes["fp16 store in memory"] = from_memory
    return rates(passes, "live backbone", rounds, "× live backbone")


def open_in_process(folder: Path) -> dict[str, float]:
    """Open a store in a process of its own and return its times and memory."""
    command = [sys.executable, "-c", _OPENED, folder]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def growth(folder: Path, counts: Sequence[int], rounds: int = 5) -> Rows:
    """Measure index bytes, first and later openings, memory and look-ups by the number of ids."""
    rows: Rows = {}
    for count in counts:
        root = folder / str(count)
        write_store(root, count, SMALL, SMALL_SHARD_BYTES)
        os.utime(root / "data", (1e9, 1e9))  # a young folder is listed at each opening
        first = open_in_process(root)
        later = [open_in_process(root) for _ in range(rounds)]
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
        self.read = read
        self.count = count

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, number: int) -> list[Tensor]:
        generator = random.Random(f"{number} {os.urandom(8).hex()}")
        return self.read([generator.randrange(self.count) for _ in range(RANDOM_BATCH)])


def count_batches(loader: DataLoader[Any]) -> int:
    """Go through a loader once and return the number of batches."""
    count = 0
    for _ in loader:
        count += 1
    return count


def batches(folder: Path, count: int, rounds: int) -> Rows:
    """Measure random batches per second, by what is checked, and of the peers that are installed."""
    write_store(folder / "store", count, LARGE, LARGE_SHARD_BYTES)
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
    # 0 workers last: a worker cannot open again after a fork what this process has opened
    for workers in (1, 2, 4, 0):
        passes = {}
        for name, read in reads.items():
            loader = DataLoader(
                Batches(read, count),
                batch_size=None,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            passes[name] = functools.partial(count_batches, loader)
        seconds = turns(passes, rounds=rounds, timer=per_sample, warmup=3)
        for name, row in ratios(seconds, 'check="first"', "×").items():
            columns = rows.setdefault(name, {})
            columns[f"{workers} workers, batches / s"] = 1e3 / row["ms"]
            columns[f"× first, {workers}"] = row["×"]
    return rows


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Yield a table per stage."""
    device = options.device
    on_gpu = is_gpu(device)
    rounds = options.rounds
    images = options.images
    size = options.size
    batch = options.batch
    counts = options.growth
    records = options.records
    if options.short:
        batch = 2
        counts = [3000]
        records = [20]
        if not on_gpu:
            images = 1
            size = "96x96"

    stages: dict[str, Callable[[Files], Rows]] = {
        "size": sizes,
        "CPU of a read": lambda files: reads(files, rounds, cold=False),
        "cold read": lambda files: reads(files, rounds, cold=True),
        "loader, 0 workers": lambda files: loaders(files, 0, batch, PASSES, device),
        "loader, 2 workers": lambda files: loaders(files, 2, batch, PASSES, device),
        "rounding": rounding,
        "training": lambda files: training(files, PASSES, device),
    }
    titles = options.only or [*stages, "growth", "batches"]
    if on_gpu and not options.only:
        titles = [title for title in titles if title not in OF_THE_HOST]
    chosen_stages = [title for title in stages if title in titles]
    if chosen_stages:
        backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
        height, width = size.split("x")
        with tempfile.TemporaryDirectory() as folder:
            files = prepare(Path(folder), backbone, images, (int(height), int(width)))
            for title in chosen_stages:
                yield title, stages[title](files)
    if "growth" in titles and not on_gpu:
        with tempfile.TemporaryDirectory() as folder:
            yield "growth", growth(Path(folder), counts)
    if "batches" in titles and not on_gpu:
        for count in records:
            with tempfile.TemporaryDirectory() as folder:
                yield f"batches of {count} images", batches(Path(folder), count, rounds)
