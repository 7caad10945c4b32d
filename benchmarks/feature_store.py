"""The feature store compared with npz files: size, reads, loaders, rounding, training.

    python -m benchmarks.feature_store [--images 8] [--size 480x480] [--rounds 15] [--device cpu]
    python -m benchmarks.feature_store --growth 10000 100000 1000000    # see benchmarks.store_growth

The same features (3600 patches of 1280 channels, four patterns per image; ``benchmarks.feature_files`` says where
they come from) lie in compressed float32 npz (the source), in plain float16 npz (its layout fixed), and in a float16
and an int8 store. Reads are one random pattern of one random image, and every byte that comes back is summed up;
their CPU time is that of the process, with one thread. Loader rates are by the wall clock. "as stored" is
``batch(..., dtype=None)`` or ``quantised(...)``.
With --device cuda batches of the loaders go there, and the training runs there; sizes, reads and rounding are the
host's and are left out. Writes benchmarks/results/feature_store.json and .md; on CUDA feature_store_cuda.json and .md.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import devices, store_growth
from benchmarks.feature_files import (
    CHANNELS,
    GRID,
    PATTERNS,
    Files,
    NpzDataset,
    large,
    prepare,
    read_as_stored,
)
from benchmarks.sources import store
from benchmarks.timing import compare, machine
from dinoneck import CLSGatingHead, FeatureStore, PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.store import MemoryStore, QuantisedTokens, StoreDataset
from dinoneck.store.encoding import quantise

RESULTS = Path(__file__).with_name("results")
PEER = "npz, compressed float32"
BATCH = 32
Rows = dict[str, dict[str, float]]
Read = Callable[[str, int], Iterable[Any]]


def sizes(files: Files) -> Rows:
    """Bytes on disk, indices and headers included."""
    folders = {PEER: files.npz, "npz, float16": files.half, "fp16 store": files.root / "fp16",
               "int8 store": files.root / "int8"}  # fmt: skip
    count = len(files.ids) * PATTERNS
    total = {k: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for k, folder in folders.items()}
    return {name: {"MiB": size / count / 2**20, "ratio": total[PEER] / size} for name, size in total.items()}


def touch(arrays: Iterable[Any]) -> int:
    """Read every byte."""
    raw = [a.numpy() if isinstance(a, Tensor) else a for a in arrays]
    return sum(int(a.reshape(-1).view(np.uint64 if a.nbytes % 8 == 0 else np.uint8).sum()) for a in raw)


def parts(read: Tokens | QuantisedTokens) -> list[Tensor]:
    """The tensors of one layer."""
    return [*read.sequence] if isinstance(read, Tokens) else [read.prefix[0], read.scale[0], read.q[0]]


def readers(files: Files) -> dict[str, Read]:
    """Name -> what reads one pattern of one image."""

    def npz(folder: Path, image_id: str, pattern: int) -> list[Any]:
        with np.load(folder / f"{image_id}.npz") as content:
            return [content[f"cls_{pattern}"], content[f"patches_{pattern}"]]

    def plain(store: FeatureStore, image_id: str, pattern: int) -> list[Tensor]:
        return parts(store[image_id, pattern])

    def stored(store: FeatureStore, image_id: str, pattern: int) -> list[Tensor]:
        return parts(read_as_stored(store, [image_id], [pattern]))

    chosen: dict[str, Read] = {
        PEER: functools.partial(npz, files.npz),
        "npz, float16": functools.partial(npz, files.half),
    }
    for dtype in ("fp16", "int8"):
        chosen[f"{dtype} store, float32"] = functools.partial(plain, files.store(dtype))
        chosen[f"{dtype} store, as stored"] = functools.partial(stored, files.store(dtype))
    return chosen


def reads(files: Files, rounds: int, *, cold: bool) -> Rows:
    """One random pattern of one image: CPU time from the page cache, or wall time with that cache dropped."""

    def runner(read: Read) -> Callable[[], int]:
        draw = random.Random(0)
        return lambda: touch(read(draw.choice(files.ids), draw.randrange(PATTERNS)))

    variants = {name: runner(read) for name, read in readers(files).items()}
    if not cold:
        return compare(variants, peer=PEER, rounds=rounds, clock=time.process_time)
    os.sync()
    every = [p for name in ("npz", "npz16", "fp16", "int8") for p in (files.root / name).rglob("*") if p.is_file()]
    return compare(variants, peer=PEER, rounds=rounds, before=lambda: forget(every))


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rates(passes: dict[str, Callable[[], int]], peer: str, rounds: int) -> Rows:
    """Samples per second; each pass returns how many it saw. One round before does not count."""
    seen: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            begin = time.perf_counter()
            count = run()
            seen[name].append(count / (time.perf_counter() - begin))
    rows = {}
    for name, values in seen.items():
        ratios = [a / b for a, b in zip(values[1:], seen[peer][1:], strict=True)]
        rows[name] = {"per_s": statistics.median(values[1:]), "ratio": statistics.median(ratios),
                      "ratio_min": min(ratios), "ratio_max": max(ratios)}  # fmt: skip
    return rows


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
    wait = devices.waiting(device)

    def sent(batch: Any) -> None:
        for part in batch.values() if isinstance(batch, dict) else batch[:1]:
            part.to(device)
        wait()

    return rates({name: functools.partial(seen_by, loader, sent) for name, loader in chosen.items()}, PEER, rounds)


@torch.no_grad()
def rounding(files: Files) -> Rows:
    """Relative error (norm of the difference / norm) of head outputs against those on the float32 tokens."""
    torch.manual_seed(0)
    exact = large(files.small)
    pairs = [(image_id, pattern) for image_id in files.ids for pattern in range(PATTERNS)]
    q, scale = quantise(exact.patches[0], torch.ones(CHANNELS))
    naive = Tokens.from_patches(q * scale[..., None], grid=GRID, patch_size=16, cls_token=exact.cls_token)
    kinds = {"fp16 store": files.store("fp16"), "int8 store": files.store("int8"), "int8 per token only": naive}
    tasks = [Task("mass", dim=16)]
    errors: dict[str, dict[str, list[float]]] = {}
    for seed in range(3):
        torch.manual_seed(seed + 1)
        gate = CLSGatingHead(CHANNELS, tasks, num_patches=GRID[0] * GRID[1]).eval()
        mean = PatchMeanHead(CHANNELS, tasks).eval()
        for kind, source in kinds.items():
            read = source if isinstance(source, Tokens) else source.batch([i for i, _ in pairs], [p for _, p in pairs])
            given = {
                "tokens": (read.patches[0], exact.patches[0]),
                "CLS gating": (gate(read)["mass"], gate(exact)["mass"]),
                "patch mean": (mean(read)["mass"], mean(exact)["mass"]),
                "patch map": (mean.predict_maps(read)["mass"], mean.predict_maps(exact)["mass"]),
            }
            for what, (a, b) in given.items():
                errors.setdefault(kind, {}).setdefault(what, []).append(float((a - b).norm() / b.norm()))
    return {kind: {what: max(values) for what, values in row.items()} for kind, row in errors.items()}


def training(files: Files, rounds: int, device: str = "cpu") -> Rows:
    """An epoch of one head over the small extraction, from the store and with the backbone in the loop."""
    store, backbone = files.small, files.backbone.to(device)
    width, wait = backbone.embed_dim, devices.waiting(device)
    head = PatchMeanHead(width, [Task("mass")]).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)

    def step(tokens: Tokens) -> None:
        optimizer.zero_grad()
        head(tokens.to(device))["mass"].square().mean().backward()
        optimizer.step()
        wait()

    prepare_photos = store.preprocess

    def live() -> int:
        paths = sorted(files.photos.iterdir())
        with torch.no_grad():
            tokens = backbone(prepare_photos(paths).to(device))
        step(tokens)
        return len(paths)

    ids = [image_id for _ in range(4 * BATCH) for image_id in store.ids][: 4 * BATCH]
    passes: dict[str, Callable[[], int]] = {"live backbone": live}
    for workers in (0, 2):
        loader = StoreDataset(store, ids).loader(BATCH, num_workers=workers, persistent_workers=workers > 0)
        passes[f"fp16 store, {workers} workers"] = functools.partial(seen_by, loader, lambda batch: step(batch[0]))
    kept = MemoryStore(store, device=device)

    def from_memory() -> int:
        for begin in range(0, len(ids), BATCH):
            step(kept.batch(ids[begin : begin + BATCH]))
        return len(ids)

    passes["fp16 store in memory"] = from_memory
    return rates(passes, "live backbone", rounds)


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached, and what was, of the stages that ran."""
    found: list[dict[str, Any]] = []

    def check(what: str, at: tuple[str, str, str], goal: float, *, most: bool = False) -> None:
        stage, row, column = at
        if stage in report:
            value = report[stage][row][column]
            met = value <= goal if most else value >= goal
            found.append({"what": what, "value": value, "goal": goal, "most": most, "met": met})

    for dtype, size, quick, load in (("fp16", 1.8, 100, 12), ("int8", 3.6, 200, 25)):
        check(f"smaller than npz, {dtype}", ("size", f"{dtype} store", "ratio"), size)
        for stage, goal in (("CPU of a read", quick), ("cold read", 1)):
            for how in ("float32", "as stored"):
                check(f"{stage}, {dtype}, {how}", (stage, f"{dtype} store, {how}", "ratio"), goal)
        for stage in ("loader, 0 workers", "loader, 2 workers"):
            check(f"{stage}, {dtype}, float32", (stage, f"{dtype} store, float32", "ratio"), load)
    for what, goal in (("CLS gating", 2e-4), ("patch mean", 2e-4), ("patch map", 1.5e-2)):
        check(f"int8 error, {what}", ("rounding", "int8 store", what), goal, most=True)
    for workers in (0, 2):
        at = ("training", f"fp16 store, {workers} workers", "ratio")
        check(f"head training beside live, {workers} workers", at, 10)
    return found


def text(report: dict[str, Any]) -> str:
    """The results as markdown."""
    shown, workload = report["machine"], report["workload"]
    where = shown.get("gpu", shown["cpu"])
    lines = [f"Measured on {where}, {shown['cores']} thread(s), {shown['versions']}; {workload}.", ""]
    lines += ["| goal | wanted | measured | met |", "|---|---|---|---|"]
    for row in report["goals"]:
        sign, form = ("<=", ".1e") if row["most"] else (">=", ".1f")
        lines.append(f"| {row['what']} | {sign} {row['goal']:g} | {row['value']:{form}} | "
                     f"{'yes' if row['met'] else '**no**'} |")  # fmt: skip
    for title, rows in report.items():
        if title in ("machine", "workload", "goals"):
            continue
        numbers = {name: _with_rate(row) for name, row in rows.items()}
        columns = list(next(iter(numbers.values())))
        lines += ["", f"**{title}**", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |" for name, row in numbers.items()]
    return "\n".join(lines) + "\n"


def _with_rate(row: dict[str, float]) -> dict[str, float]:
    """The numbers of a row, with images per second where it is about images."""
    if "per_s" in row:
        return {"images / s": row["per_s"], **{name: value for name, value in row.items() if name != "per_s"}}
    return {**row, "images / s": 1e3 / row["ms"]} if "ms" in row else row


def write(report: dict[str, Any], folder: Path, stem: str = "feature_store") -> None:
    """Write what was measured so far."""
    report["goals"] = goals(report)
    folder.mkdir(parents=True, exist_ok=True)
    store(folder / f"{stem}.json", report)
    (folder / f"{stem}.md").write_text(text(report))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", dest="photos", type=int, default=8)
    parser.add_argument("--size", default="480x480")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per batch of the loaders")
    parser.add_argument("--device", default="cpu", help="of batches, backbone and head")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--growth", type=int, nargs="*", help="measure stores of so many ids instead")
    parser.add_argument("--records", type=int, default=320, help="with --growth: images of the random batches")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4], help="with --growth: of the loaders")
    options = parser.parse_args(arguments)
    if options.growth is not None:
        store_growth.run(options.growth, options.records, options.workers, options.rounds, options.out)
        return
    device, stem = options.device, devices.stem("feature_store", options.device)
    height, width = (int(x) for x in options.size.split("x"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
    told = (
        f"`python -m benchmarks.feature_store --images {options.photos} --size {options.size} --batch {options.batch}"
        f"{f' --device {device}' if devices.is_gpu(device) else ''}`"
    )
    report: dict[str, Any] = {"machine": machine(device), "workload": told}
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(Path(folder), backbone, options.photos, (height, width))
        stages: dict[str, Callable[[], Rows]] = {
            "size": lambda: sizes(files),
            "CPU of a read": lambda: reads(files, options.rounds, cold=False),
            "cold read": lambda: reads(files, options.rounds, cold=True),
            "loader, 0 workers": lambda: loaders(files, 0, options.batch, 2, device),
            "loader, 2 workers": lambda: loaders(files, 2, options.batch, 2, device),
            "rounding": lambda: rounding(files),
            "training": lambda: training(files, 2, device),
        }
        if devices.is_gpu(device):
            stages = {title: stage for title, stage in stages.items() if title.startswith(("loader", "training"))}
        for title, stage in stages.items():
            begin = time.perf_counter()
            report[title] = stage()
            write(report, options.out, stem)
            print(f"{title}: {time.perf_counter() - begin:.0f} s", flush=True)
    print(text(report))


if __name__ == "__main__":
    main()
