"""An epoch of ``fit`` on stored tokens next to a plain loop, and what a step copies to a device that logs it.

Both train the same head on the same float16 tokens in memory, batches of 32, AdamW with a cosine: ``plain`` casts and
standardises each batch, as ``fit`` does; ``float32`` keeps a standardised copy, twice as large, and only picks rows.
An epoch is the median of a run's epochs but the first; variants take turns. The counts are those of the pretend device
of the tests, per step of an epoch; ``wait`` is how often the host waits.

Usage: python -m benchmarks.training_loop [--rounds 9] [--out benchmarks/results/training_loop.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.pretend_device import NAME, pretend_device
from torch import Tensor, nn

from benchmarks import timing
from dinoneck import PatchMeanHead, Task
from dinoneck.tasks import TargetTransform
from dinoneck.tokens import Tokens
from dinoneck.training import MemoryTokens, Recipe, fit

IMAGES, GRID, CHANNELS, BATCH, EPOCHS = 256, (10, 20), 384, 32, 4
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


def fitted(source: MemoryTokens, targets: Tensor, epochs: int = EPOCHS, device: str = "cpu", **options: Any) -> Any:
    """Return the seconds of the epochs of ``fit``."""
    tasks = [Task(f"t{k}", transform=TargetTransform().fit(column)) for k, column in enumerate(targets.T)]
    values = {f"t{k}": dict(zip(IDS, column.tolist(), strict=True)) for k, column in enumerate(targets.T)}
    moments: list[float] = []
    head, recipe = PatchMeanHead(CHANNELS, tasks).to(device), Recipe(epochs=epochs, batch_size=BATCH, **options)
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
    result = {
        "machine": {**timing.machine(), "load": os.getloadavg()[0], "threads": torch.get_num_threads()},
        "rounds": arguments.rounds,
        "epoch": timing.ratios(seconds, "plain"),
        "per_step": per_step,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
