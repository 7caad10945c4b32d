"""Files between backbone and head: training samples per second, the cost of writing, and of an index.

Tokens are those of ``benchmarks.feature_files``: 3600 patches of 1280 channels, four patterns per image.
"""

from __future__ import annotations

import functools
import io
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import devices
from benchmarks.feature_files import CHANNELS, GRID, PATTERNS, Files, NpzDataset, large, prepare
from benchmarks.feature_store import PEER, rates, seen_by
from benchmarks.speed.pipeline_forms import TASKS, PlainHead
from benchmarks.timing import turns
from dinoneck import CLSGatingHead, Tokens, load_backbone
from dinoneck.store import StoreDataset
from dinoneck.store.encoding import Layout, channel_rms, encode
from dinoneck.store.images import ImageFile
from dinoneck.store.index import Entry, by_id, read_journal
from dinoneck.store.writer import Writer

TRAINING, WRITING, INDEX = "training from files", "writing", "index"
BATCH = 8
Rows = dict[str, dict[str, float]]


def head(device: str) -> CLSGatingHead:
    """The head that is trained, the same at every call."""
    torch.manual_seed(0)
    return CLSGatingHead(CHANNELS, TASKS, num_patches=GRID[0] * GRID[1], dropout=0.0).to(device)


def step(module: nn.Module, call: Callable[[], list[Tensor]]) -> float:
    """Forward and backward; the weights are left as they are, so that every round does the same work."""
    for parameter in module.parameters():
        parameter.grad = None
    loss = torch.stack([answer.square().mean() for answer in call()]).sum()
    loss.backward()
    return float(loss.detach())


def steps(own: CLSGatingHead) -> tuple[Callable[[Any], float], Callable[[Any], float]]:
    """What is done with a batch of npz files, and with one of a store: the same head, weighted sum or product."""
    plain, device = PlainHead(own), next(own.parameters()).device

    def source(batch: dict[str, Tensor]) -> float:
        return step(plain, lambda: plain(batch["cls_token"].to(device), batch["patch_tokens"].to(device)))

    def ours(batch: tuple[Tokens, Tensor]) -> float:
        return step(own, lambda: list(own(batch[0].to(device)).values()))

    return source, ours


def training(files: Files, rounds: int, size: int = BATCH, device: str = "cpu") -> Rows:
    """Samples per second of loader and step, in this process and with two workers; all see the same four batches."""
    source, ours = steps(head(device))
    many = [image_id for _ in range(4 * size) for image_id in files.ids][: 4 * size]
    passes: dict[str, Callable[[], int]] = {}
    for workers in (0, 2):
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        for name, folder in ((PEER, files.npz), ("npz, float16", files.half)):
            loader: Any = DataLoader(NpzDataset(folder, many), batch_size=size, **options)
            passes[f"{name}, {workers} workers"] = functools.partial(seen_by, loader, source)
        for dtype in ("fp16", "int8"):
            loader = StoreDataset(files.store(dtype), many).loader(size, **options)
            passes[f"{dtype} store, {workers} workers"] = functools.partial(seen_by, loader, ours)
    return rates(passes, f"{PEER}, 0 workers", rounds)


def writing(files: Files, rounds: int) -> Rows:
    """CPU milliseconds per pattern, bytes and MB of float32 per second of writing what one image has."""
    tokens = large(files.small)[:PATTERNS]
    scale = channel_rms([tokens])
    cls_token, patches = tokens.cls_token[0].numpy(), tokens.patches[0].numpy()
    arrays = {f"cls_{i}": cls_token[i] for i in range(PATTERNS)} | {f"patches_{i}": patches[i] for i in range(PATTERNS)}
    plain_bytes = sum(array.nbytes for array in arrays.values())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def npz(save: Callable[..., None], dtype: type) -> None:
            save(root / "one.npz", **{key: array.astype(dtype, copy=False) for key, array in arrays.items()})

        def store(dtype: Any) -> None:
            place = root / dtype
            for part in ("data", "index"):
                (place / part).mkdir(parents=True, exist_ok=True)
            layout = Layout(dtype, 1, 1, CHANNELS, tokens.grid)
            writer = Writer(place)
            writer.add("one", encode(tokens, layout, scale), layout, ImageFile(1))
            writer.flush()

        runs: dict[str, Callable[[], Any]] = {
            PEER: lambda: npz(np.savez_compressed, np.float32),
            "npz, float16": lambda: npz(np.savez, np.float16),
            "fp16 store": lambda: store("fp16"),
            "int8 store": lambda: store("int8"),
        }
        seconds = turns(runs, rounds=rounds, warmup=1, clock=time.process_time)
        middle = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        name: {"ms": 1e3 * took / PATTERNS, "ratio": middle[PEER] / took, "mb_per_s": plain_bytes / took / 1e6}
        for name, took in middle.items()
    }


def index(count: int) -> Rows:
    """Per image: bytes of its line, microseconds to parse it when a store is opened, bytes it takes in memory."""
    entries = [
        Entry(f"folder/{i:09d}", f"data/w-{i // 20:08d}.safetensors", i << 20, 1 << 20, (1 << 31,) * PATTERNS, GRID, 9)
        for i in range(count)
    ]
    raw = "".join(entry.line() + "\n" for entry in entries).encode()

    class Lines:
        """A journal."""

        def stream(self, name: str, begin: int) -> io.BytesIO:
            return io.BytesIO(raw)

    lines: Any = Lines()
    runs = {"read": lambda: by_id(read_journal(lines, "one.jsonl"), lambda name: True)}
    took = statistics.median(turns(runs, rounds=5, warmup=1, clock=time.process_time)["read"])
    tracemalloc.start()
    kept = by_id(read_journal(lines, "one.jsonl"), lambda name: True)
    held = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    return {
        f"{PATTERNS} patterns": {"line_bytes": len(raw) / count, "parse_us": 1e6 * took / count, "memory_bytes": held}
    }


def measure(short: bool, rounds: int, device: str = "cpu") -> dict[str, Rows]:
    """All of it; ``short`` takes one image. Writing and the index are the host's: a GPU's run leaves them out."""
    torch.manual_seed(0)
    backbone = load_backbone("dinoneck_tiny") if short else load_backbone("vit_small_patch16_dinov3", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(Path(folder), backbone, 1 if short else 2, (480, 480))
        found = {TRAINING: training(files, rounds, device=device)}
        if devices.is_gpu(device):
            return found
        found[WRITING] = writing(files, rounds)
    return {**found, INDEX: index(1000 if short else 20000)}


def tables(report: Mapping[str, Any]) -> list[str]:
    """The lines of the three tables."""
    lines = ["", "**Training from files** (loader, forward and backward of a CLS gating head; wall clock)", ""]
    lines += ["| | samples / s | × compressed npz, 0 workers (range) |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['per_s']:.1f} | {row['ratio']:.1f} ({row['ratio_min']:.1f} … {row['ratio_max']:.1f}) |"
        for name, row in report[TRAINING].items()
    ]
    if WRITING not in report:
        return lines
    lines += ["", "**Writing** (CPU time, 3600 patches of 1280 channels)", ""]
    lines += ["| | ms per pattern | × compressed npz | MB of float32 per s |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['ms']:.0f} | {row['ratio']:.1f} | {row['mb_per_s']:.0f} |"
        for name, row in report[WRITING].items()
    ]
    lines += ["", "**Index** (per image)", ""]
    lines += ["| | bytes on disk | µs to read | bytes in memory |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['line_bytes']:.0f} | {row['parse_us']:.0f} | {row['memory_bytes']:.0f} |"
        for name, row in report[INDEX].items()
    ]
    return lines
