"""An epoch of ``fit`` on stored tokens next to a plain loop, and what a step copies to a device that logs it.

    python -m benchmarks training_loop [--rounds 9]

Both train the same head on the same float16 tokens in memory, batches of 32, AdamW with a cosine:
``plain`` casts and standardises each batch, as ``fit`` does; ``float32`` keeps a standardised copy,
twice as large, and only picks rows. An epoch is the median of a run's epochs but the first. The
counts are those of the pretend device of the tests, per step of an epoch; ``wait`` is how often the
host waits. ``live`` is an epoch of JPEG files through a backbone at every step, whose images are
decoded ahead, next to one whose images are decoded within the step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tests.pretend_device import NAME, pretend_device
from torch import Tensor, nn
from torchvision.io import write_jpeg

from benchmarks.measure import Row, ratios, turns
from dinoneck import PatchMeanHead, Task, load_backbone
from dinoneck.tasks import TargetTransform
from dinoneck.tokens import Tokens
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, TokenSource, fit

ROUNDS = 9
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
        [
            nn.Sequential(nn.Linear(CHANNELS, 128), nn.LeakyReLU(), nn.Linear(128, 1))
            for _ in range(targets.shape[1])
        ]
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


def fitted(
    source: TokenSource, targets: Tensor, epochs: int = EPOCHS, device: str = "cpu", **options: Any
) -> Any:
    """Return the seconds of the epochs of ``fit``."""
    width = source.batch(source.ids[:1]).sequence[0].shape[2]
    tasks = [
        Task(f"t{k}", transform=TargetTransform().fit(column)) for k, column in enumerate(targets.T)
    ]
    values = {
        f"t{k}": dict(zip(source.ids, column.tolist(), strict=True))
        for k, column in enumerate(targets.T)
    }
    moments: list[float] = []
    head, recipe = (
        PatchMeanHead(width, tasks).to(device),
        Recipe(epochs=epochs, **{"batch_size": BATCH, **options}),
    )
    fit(
        head,
        source,
        targets=values,
        recipe=recipe,
        callbacks=[lambda *_: moments.append(time.perf_counter())],
    )
    return [end - begin for begin, end in itertools.pairwise(moments)]


def counts(source: MemoryTokens, targets: Tensor, **options: Any) -> dict[str, float]:
    """Return the copies, reads and waits per step of one more epoch on the pretend device."""
    events = []
    for epochs in (1, 2):
        with pretend_device() as device:
            fitted(source, targets, epochs, NAME, **options)
            events.append(Counter(device.events))
    return {
        name: (events[1][name] - events[0][name]) / (IMAGES // BATCH) for name in sorted(events[1])
    }


class InTheStep:
    """Live tokens behind another class, which is read when its step has begun."""

    def __init__(self, source: LiveTokens) -> None:
        self.ids, self.batch = source.ids, source.batch


def live(folder: Path, rounds: int) -> dict[str, Row]:
    """Return the times of an epoch of live tokens of JPEG files, and of one that reads each batch in its step."""
    generator, files = (
        torch.Generator().manual_seed(0),
        [folder / f"{i}.jpg" for i in range(LIVE_IMAGES)],
    )
    for file in files:
        coarse = torch.randint(0, 256, (1, 3, 75, 100), generator=generator, dtype=torch.uint8)
        write_jpeg(F.interpolate(coarse, (1200, 1600), mode="bilinear")[0], str(file), quality=90)
    backbone = load_backbone("dinoneck_tiny")
    source = LiveTokens(
        backbone, files, IDS[:LIVE_IMAGES], backbone.preprocess.changed(size=(224, 288))
    )
    targets = torch.linspace(-1, 1, LIVE_IMAGES)[:, None]
    sources: dict[str, TokenSource] = {"in the step": InTheStep(source), "ahead": source}
    runs = {name: partial(fitted, read, targets, batch_size=4) for name, read in sources.items()}
    return ratios(
        turns(runs, rounds=rounds, warmup=0, timer=median_epoch), "in the step", "× in the step"
    )


def median_epoch(run: Callable[[], list[float]]) -> float:
    """Return the median seconds of a run's epochs."""
    return statistics.median(run())


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the counts of a step, epochs on stored tokens and epochs on files."""
    whole = torch.randn(IMAGES, 1 + GRID[0] * GRID[1], CHANNELS).half()
    source = MemoryTokens(
        IDS, Tokens.from_patches(whole[:, 1:], grid=GRID, patch_size=16, cls_token=whole[:, 0])
    )
    targets = whole[:, 1:].float().mean(dim=1)[:, :2] * 10
    targets = (targets - targets.mean(dim=0)) / targets.std(dim=0)
    # before any other gradient: autograd counts the kinds of devices when it starts
    yield (
        "a step on the pretend device",
        {
            "float32": counts(source, targets),
            "bf16": counts(source, targets, amp="bf16"),
            "mixup": counts(source, targets, mixup_alpha=0.5, mixup_off_last=0.0),
        },
    )
    variants: dict[str, Callable[[], list[float]]] = {
        "plain loop": lambda: plain(whole, targets, in_float32=False)[1:],
        "plain loop, standardised float32 copy": lambda: plain(whole, targets, in_float32=True)[1:],
        "fit": lambda: fitted(source, targets),
        "fit, ema_decay=0.997": lambda: fitted(source, targets, ema_decay=0.997),
    }
    yield (
        "an epoch",
        ratios(
            turns(variants, rounds=options.rounds, timer=median_epoch), "plain loop", "× plain loop"
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        yield "an epoch of JPEG files", live(Path(folder), options.rounds)
