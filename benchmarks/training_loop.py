"""An epoch of ``fit`` on stored tokens next to a plain loop, and the copies to a device in a step.

    python -m benchmarks training_loop [--rounds 9]

Both train the same head on the same float16 tokens in memory, in batches of 32, by AdamW with a
cosine schedule. The plain loop casts and standardises each batch, as ``fit`` does; its float32
variant keeps a standardised copy, twice as large, and only selects rows. Tokens "as they are" are
not standardised. An epoch is the median of a run's epochs without the first. A whole run has its
first epoch too, and what comes before it: the mean and the deviation of the channels, and what
``fit`` checks. Times are CPU time with one thread. The counts are those of the pretend device of
the tests, per step of an epoch, and per batch that the scale of the tokens is measured on; ``wait``
is how often the host waits. The last table is an epoch of JPEG files through a backbone at every
step, with images decoded ahead or within the step, by the wall clock.
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


def plain_loop(
    tokens: Tensor, targets: Tensor, *, in_float32: bool = False, standardises: bool = True
) -> list[float]:
    """Return the seconds of the epochs of a loop as one writes it by hand; the first has the preparation."""
    clock = clock_of_loops()
    times = [clock()]
    patches = tokens[:, 1:]
    if standardises:
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
    for _ in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(IMAGES).split(BATCH):
            batch = patches[rows]
            if not in_float32:
                batch = batch.float()
                if standardises:
                    batch = (batch - mean) / std
            predicted = torch.cat([head(batch).mean(dim=1) for head in heads], dim=1)
            loss = nn.functional.mse_loss(predicted, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        times.append(clock())
    return [end - begin for begin, end in itertools.pairwise(times)]


def clock_of_loops() -> Callable[[], float]:
    """Return the clock of a loop over stored tokens: CPU time with one thread, else the wall clock."""
    if torch.get_num_threads() == 1:
        return time.process_time
    return time.perf_counter


def run_fit(
    source: TokenSource,
    targets: Tensor,
    *,
    clock: Callable[[], float],
    epochs: int = EPOCHS,
    device: str = "cpu",
    **options: Any,
) -> list[float]:
    """Return the seconds of the epochs of ``fit``; the first has what comes before it."""
    width = source.batch(source.ids[:1]).sequence[0].shape[2]
    tasks = []
    values = {}
    for number, column in enumerate(targets.T):
        name = f"t{number}"
        tasks.append(Task(name, transform=TargetTransform().fit(column)))
        values[name] = dict(zip(source.ids, column.tolist(), strict=True))
    head = PatchMeanHead(width, tasks).to(device)
    recipe = Recipe(epochs=epochs, **{"batch_size": BATCH, **options})
    times = [clock()]

    def keep_time(*_: Any) -> None:
        times.append(clock())

    fit(head, source, targets=values, recipe=recipe, callbacks=[keep_time])
    return [end - begin for begin, end in itertools.pairwise(times)]


def events_of(source: MemoryTokens, targets: Tensor, **options: Any) -> Counter[str]:
    """Return the copies, reads and waits of a run on the pretend device."""
    with pretend_device() as device:
        run_fit(source, targets, clock=time.perf_counter, device=NAME, **options)
        return Counter(device.events)


def count_per_step(source: MemoryTokens, targets: Tensor, **options: Any) -> dict[str, float]:
    """Return the events per step of one more epoch."""
    of_one_epoch = events_of(source, targets, epochs=1, **options)
    of_two_epochs = events_of(source, targets, epochs=2, **options)
    return difference_per_step(of_two_epochs, of_one_epoch)


def count_of_scale(source: MemoryTokens, targets: Tensor) -> dict[str, float]:
    """Return the events per batch that the scale of the tokens is measured on, before the first step."""
    without = events_of(source, targets, epochs=1, standardise_tokens=False)
    measured = events_of(source, targets, epochs=1)
    return difference_per_step(measured, without)


def difference_per_step(events: Counter[str], fewer: Counter[str]) -> dict[str, float]:
    """Return by how much two runs differ, per step of an epoch."""
    return {name: (events[name] - fewer[name]) / STEPS for name in sorted(events)}


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
    options: dict[str, Any] = {"batch_size": LIVE_BATCH, "clock": time.perf_counter}
    runs = {
        "in the step": partial(run_fit, InTheStep(source), targets, **options),
        "ahead": partial(run_fit, source, targets, **options),
    }
    seconds = turns(runs, rounds=rounds, warmup=0, timer=median_epoch)
    return ratios(seconds, "in the step", "× in the step")


def median_epoch(run: Callable[[], list[float]]) -> float:
    """Return the median seconds of a run's epochs without the first."""
    return statistics.median(run()[1:])


def whole_run(run: Callable[[], list[float]]) -> float:
    """Return the seconds of all epochs of a run."""
    return sum(run())


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
        "float32": count_per_step(source, targets),
        "bf16": count_per_step(source, targets, amp="bf16"),
        "mixup": count_per_step(source, targets, mixup_alpha=0.5, mixup_off_last=0.0),
        "scale of the tokens": count_of_scale(source, targets),
    }
    yield "a step on the pretend device", events

    clock = clock_of_loops()
    loops: dict[str, Callable[[], list[float]]] = {
        "plain loop": lambda: plain_loop(sequence, targets),
        "plain loop, tokens as they are": lambda: plain_loop(sequence, targets, standardises=False),
        "fit": lambda: run_fit(source, targets, clock=clock),
        "fit, standardise_tokens=False": lambda: run_fit(
            source, targets, clock=clock, standardise_tokens=False
        ),
    }
    more_loops: dict[str, Callable[[], list[float]]] = {
        "plain loop, standardised float32 copy": lambda: plain_loop(
            sequence, targets, in_float32=True
        ),
        "fit, ema_decay=0.997": lambda: run_fit(source, targets, clock=clock, ema_decay=0.997),
        'fit, amp="bf16"': lambda: run_fit(source, targets, clock=clock, amp="bf16"),
    }
    seconds = turns(loops | more_loops, rounds=options.rounds, timer=median_epoch)
    yield "an epoch", ratios(seconds, "plain loop", "× plain loop")
    seconds = turns(loops, rounds=options.rounds, timer=whole_run)
    yield f"a whole run of {EPOCHS} epochs", ratios(seconds, "plain loop", "× plain loop")

    with tempfile.TemporaryDirectory() as folder:
        yield "an epoch of JPEG files", epoch_of_files(Path(folder), options.rounds)
