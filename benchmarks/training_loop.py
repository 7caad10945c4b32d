"""An epoch of ``fit`` on stored tokens next to a plain loop, and what a step copies to a device that logs it.

Both train the same head on the same float16 tokens in memory, batches of 32, AdamW with a cosine: ``plain`` casts and
standardises each batch, as ``fit`` does; ``float32`` keeps a standardised copy, twice as large, and only picks rows.
An epoch is the median of a run's epochs but the first; variants take turns. The counts are those of the pretend device
of the tests, per step of an epoch; ``wait`` is how often the host waits. ``live`` is an epoch of JPEG files through a
backbone at every step, whose images are decoded ahead, next to one whose images are decoded within the step.

Usage: python -m benchmarks.training_loop [--rounds 9] [--out benchmarks/results/training_loop.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tests.pretend_device import NAME, pretend_device
from torch import Tensor, nn
from torchvision.io import write_jpeg

from benchmarks import timing
from benchmarks.sources import store
from dinoneck import PatchMeanHead, Task, load_backbone
from dinoneck.tasks import TargetTransform
from dinoneck.tokens import Tokens
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, TokenSource, fit

IMAGES, GRID, CHANNELS, BATCH, EPOCHS = 256, (10, 20), 384, 32, 4
LIVE_IMAGES = 16
IDS = [f"image{i}" for i in range(IMAGES)]


def plain(tokens: Tensor, targets: Tensor, *, in_float32: bool) -> list[float]:
    """Return the seconds of the epochs of a loop as one writes it by hand."""
    patches = tokens[:, 1:]
    wide = patches.float()
    mean, std = wide.mean(dim=(0, 1)), wide.std(dim=(0, 1))
    kept = (wide - mean) / std if in_float32 else patches
    del wide
    heads = nn.ModuleList(
        [nn.Sequential(nn.Linear(CHANNELS, 128), nn.LeakyReLU(), nn.Linear(128, 1)) for _ in range(targets.shape[1])]
    )
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * IMAGES // BATCH)
    moments = [time.perf_counter()]
    for _ in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(IMAGES).split(BATCH):
            batch = kept[rows] if in_float32 else (kept[rows].float() - mean) / std
            predicted = torch.cat([head(batch).mean(dim=1) for head in heads], dim=1)
            loss = nn.functional.mse_loss(predicted, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        moments.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(moments)]


def fitted(source: TokenSource, targets: Tensor, epochs: int = EPOCHS, device: str = "cpu", **options: Any) -> Any:
    """Return the seconds of the epochs of ``fit``."""
    width = source.batch(source.ids[:1]).sequence[0].shape[2]
    tasks = [Task(f"t{k}", transform=TargetTransform().fit(column)) for k, column in enumerate(targets.T)]
    values = {f"t{k}": dict(zip(source.ids, column.tolist(), strict=True)) for k, column in enumerate(targets.T)}
    moments: list[float] = []
    head, recipe = PatchMeanHead(width, tasks).to(device), Recipe(epochs=epochs, **{"batch_size": BATCH, **options})
    fit(head, source, targets=values, recipe=recipe, callbacks=[lambda *_: moments.append(time.perf_counter())])
    return [end - begin for begin, end in itertools.pairwise(moments)]


def counts(source: MemoryTokens, targets: Tensor, **options: Any) -> dict[str, float]:
    """Return the copies, reads and waits per step of one more epoch on the pretend device."""
    events = []
    for epochs in (1, 2):
        with pretend_device() as device:
            fitted(source, targets, epochs, NAME, **options)
            events.append(Counter(device.events))
    return {name: (events[1][name] - events[0][name]) / (IMAGES // BATCH) for name in sorted(events[1])}


class InTheStep:
    """Live tokens behind another class, which is read when its step has begun."""

    def __init__(self, source: LiveTokens) -> None:
        self.ids, self.batch = source.ids, source.batch


def live(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the times of an epoch of live tokens of JPEG files, and of one that reads each batch in its step."""
    generator, files = torch.Generator().manual_seed(0), [folder / f"{i}.jpg" for i in range(LIVE_IMAGES)]
    for file in files:
        coarse = torch.randint(0, 256, (1, 3, 75, 100), generator=generator, dtype=torch.uint8)
        write_jpeg(F.interpolate(coarse, (1200, 1600), mode="bilinear")[0], str(file), quality=90)
    backbone = load_backbone("dinoneck_tiny")
    source = LiveTokens(backbone, files, IDS[:LIVE_IMAGES], backbone.preprocess.changed(size=(224, 288)))
    targets = torch.linspace(-1, 1, LIVE_IMAGES)[:, None]
    seconds: dict[str, list[float]] = {"in the step": [], "ahead": []}
    for order in timing.drawn_order(list(seconds), rounds, seed=0):
        for name in order:
            read: TokenSource = source if name == "ahead" else InTheStep(source)
            seconds[name].append(statistics.median(fitted(read, targets, batch_size=4)))
    return timing.ratios(seconds, "in the step")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_loop.json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    whole = torch.randn(IMAGES, 1 + GRID[0] * GRID[1], CHANNELS).half()
    source = MemoryTokens(IDS, Tokens.from_patches(whole[:, 1:], grid=GRID, patch_size=16, cls_token=whole[:, 0]))
    targets = whole[:, 1:].float().mean(dim=1)[:, :2] * 10
    targets = (targets - targets.mean(dim=0)) / targets.std(dim=0)
    # before any other gradient: autograd counts the kinds of devices when it starts
    per_step = {
        "float32": counts(source, targets),
        "bf16": counts(source, targets, amp="bf16"),
        "mixup": counts(source, targets, mixup_alpha=0.5, mixup_off_last=0.0),
    }
    variants: dict[str, Callable[[], list[float]]] = {
        "plain": lambda: plain(whole, targets, in_float32=False)[1:],
        "float32": lambda: plain(whole, targets, in_float32=True)[1:],
        "fit": lambda: fitted(source, targets),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for order in timing.drawn_order(list(variants), arguments.rounds + 1, seed=0):
        for name in order:
            seconds[name].append(statistics.median(variants[name]()))
    seconds = {name: values[1:] for name, values in seconds.items()}
    with tempfile.TemporaryDirectory() as folder:
        epochs_of_files = live(Path(folder), arguments.rounds)
    result = {
        "machine": {**timing.machine(), "load": os.getloadavg()[0], "threads": torch.get_num_threads()},
        "rounds": arguments.rounds,
        "epoch": timing.ratios(seconds, "plain"),
        "live": epochs_of_files,
        "per_step": per_step,
    }
    store(arguments.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
