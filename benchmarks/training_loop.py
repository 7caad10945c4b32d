"""An epoch of ``fit`` on stored tokens next to a plain loop, and the copies to a device in a step.

    python -m benchmarks training_loop [--rounds 9]

Both train the same head on the same float16 tokens in memory, in batches of 32, by AdamW with a
cosine schedule. The plain loop casts and standardises each batch, as ``fit`` does; its float32
variant keeps a standardised copy, twice as large, and only selects rows. An epoch is the median of
a run's epochs without the first. The counts are those of the pretend device of the tests, per step
of an epoch; ``wait`` is how often the host waits. The last table is an epoch of JPEG files through
a backbone at every step, with images decoded ahead or within the step.
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
IMAGES = 256
GRID = (10, 20)
CHANNELS = 384
BATCH = 32
EPOCHS = 4
STEPS = IMAGES // BATCH  # of an epoch
LIVE_IMAGES = 16
LIVE_BATCH = 4
IDS = [f"image{i}" for i in range(IMAGES)]


def plain_loop(tokens: Tensor, targets: Tensor, *, in_float32: bool) -> list[float]:
    """Return the seconds of the epochs of a loop as one writes it by hand."""
    patches = tokens[:, 1:]
    in_full = patches.float()
    mean = in_full.mean(dim=(0, 1))
    std = in_full.std(dim=(0, 1))
    if in_float32:
        patches = (in_full - mean) / std
    del in_full
    heads = nn.ModuleList()
    for _ in range(targets.shape[1]):
        heads.append(nn.Sequential(nn.Linear(CHANNELS, 128), nn.LeakyReLU(), nn.Linear(128, 1)))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)
    times = [time.perf_counter()]
    for _ in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(IMAGES).split(BATCH):
            batch = patches[rows]
            if not in_float32:
                batch = (batch.float() - mean) / std
            predicted = torch.cat([head(batch).mean(dim=1) for head in heads], dim=1)
            loss = nn.functional.mse_loss(predicted, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        times.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(times)]


def run_fit(
    source: TokenSource, targets: Tensor, epochs: int = EPOCHS, device: str = "cpu", **options: Any
) -> list[float]:
    """Return the seconds of the epochs of ``fit`` without the first."""
    width = source.batch(source.ids[:1]).sequence[0].shape[2]
    tasks = []
    values = {}
    for number, column in enumerate(targets.T):
        name = f"t{number}"
        tasks.append(Task(name, transform=TargetTransform().fit(column)))
        values[name] = dict(zip(source.ids, column.tolist(), strict=True))
    head = PatchMeanHead(width, tasks).to(device)
    recipe = Recipe(epochs=epochs, **{"batch_size": BATCH, **options})
    times: list[float] = []

    def keep_time(*_: Any) -> None:
        times.append(time.perf_counter())

    fit(head, source, targets=values, recipe=recipe, callbacks=[keep_time])
    return [end - begin for begin, end in itertools.pairwise(times)]


def count_events(source: MemoryTokens, targets: Tensor, **options: Any) -> dict[str, float]:
    """Return the copies, reads and waits per step of one more epoch on the pretend device."""
    with pretend_device() as device:
        run_fit(source, targets, epochs=1, device=NAME, **options)
        of_one_epoch = Counter(device.events)
    with pretend_device() as device:
        run_fit(source, targets, epochs=2, device=NAME, **options)
        of_two_epochs = Counter(device.events)
    per_step = {}
    for name in sorted(of_two_epochs):
        per_step[name] = (of_two_epochs[name] - of_one_epoch[name]) / STEPS
    return per_step


class InTheStep:
    """Live tokens behind another class, whose images ``fit`` does not decode ahead."""

    def __init__(self, source: LiveTokens) -> None:
        self.ids = source.ids
        self.batch = source.batch


def epoch_of_files(folder: Path, rounds: int) -> dict[str, Row]:
    """Return the times of an epoch of JPEG files, decoded ahead or within the step."""
    generator = torch.Generator().manual_seed(0)
    files = [folder / f"{number}.jpg" for number in range(LIVE_IMAGES)]
    for file in files:
        coarse = torch.randint(0, 256, (1, 3, 75, 100), generator=generator, dtype=torch.uint8)
        pixels = F.interpolate(coarse, (1200, 1600), mode="bilinear")[0]
        write_jpeg(pixels, str(file), quality=90)
    backbone = load_backbone("dinoneck_tiny")
    preprocess = backbone.preprocess.changed(size=(224, 288))
    source = LiveTokens(backbone, files, IDS[:LIVE_IMAGES], preprocess)
    targets = torch.linspace(-1, 1, LIVE_IMAGES)[:, None]
    runs = {
        "in the step": partial(run_fit, InTheStep(source), targets, batch_size=LIVE_BATCH),
        "ahead": partial(run_fit, source, targets, batch_size=LIVE_BATCH),
    }
    seconds = turns(runs, rounds=rounds, warmup=0, timer=median_epoch)
    return ratios(seconds, "in the step", "× in the step")


def median_epoch(run: Callable[[], list[float]]) -> float:
    """Return the median seconds of a run's epochs."""
    return statistics.median(run())


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the counts of a step, epochs on stored tokens and epochs on files."""
    rows, cols = GRID
    sequence = torch.randn(IMAGES, 1 + rows * cols, CHANNELS).half()
    tokens = Tokens.from_patches(
        sequence[:, 1:], grid=GRID, patch_size=16, cls_token=sequence[:, 0]
    )
    source = MemoryTokens(IDS, tokens)
    targets = sequence[:, 1:].float().mean(dim=1)[:, :2] * 10
    targets = (targets - targets.mean(dim=0)) / targets.std(dim=0)

    # before any other gradient: autograd counts the kinds of devices when it starts
    events = {
        "float32": count_events(source, targets),
        "bf16": count_events(source, targets, amp="bf16"),
        "mixup": count_events(source, targets, mixup_alpha=0.5, mixup_off_last=0.0),
    }
    yield "a step on the pretend device", events

    variants: dict[str, Callable[[], list[float]]] = {
        "plain loop": lambda: plain_loop(sequence, targets, in_float32=False)[1:],
        "plain loop, standardised float32 copy": lambda: plain_loop(
            sequence, targets, in_float32=True
        )[1:],
        "fit": lambda: run_fit(source, targets),
        "fit, ema_decay=0.997": lambda: run_fit(source, targets, ema_decay=0.997),
    }
    seconds = turns(variants, rounds=options.rounds, timer=median_epoch)
    yield "an epoch", ratios(seconds, "plain loop", "× plain loop")

    with tempfile.TemporaryDirectory() as folder:
        yield "an epoch of JPEG files", epoch_of_files(Path(folder), options.rounds)
