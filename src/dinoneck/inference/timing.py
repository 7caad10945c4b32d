"""What images cost, part by part: decoding and resizing, the backbone, the head; rounds in turn, and their medians."""

from __future__ import annotations

import io
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.eval_mode import evaluating
from dinoneck.data.decoding import ImageInput
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError
from dinoneck.version import versions

Part = Literal["prepare", "backbone", "head", "whole"]
Name = TypeVar("Name", str, tuple[str, int])
_COARSE = 24  # pixels of a generated image's blotches
_BYTES_PER_KB = 1 << 10


@dataclass(frozen=True)
class Pipeline:
    """Images on their way to an answer, in the parts that are timed.

    Attributes:
        images: one batch of them, as paths or encoded files for decoding to be part of it.
        preprocess: brings them to the backbone's input.
        backbone: runs on them in its own dtype, on its own device.
        head: reads the tokens with ``predict``, or as a neck by being called; None = the tokens are the answer.
    """

    images: Sequence[ImageInput]
    preprocess: Preprocessing
    backbone: Backbone
    head: nn.Module | None = None

    @torch.no_grad()
    def run(self) -> dict[Part, float]:
        """Send the batch through once; return the seconds of each part, and of all of it."""
        device = next(self.backbone.parameters()).device
        modules = [self.backbone] if self.head is None else [self.backbone, self.head]
        with evaluating(*modules):
            times = [_now(device)]
            images = self.preprocess.prepare(list(self.images)).images.to(device)
            times.append(_now(device))
            tokens = self.backbone(images)
            times.append(_now(device))
            if self.head is not None:
                getattr(self.head, "predict", self.head)(tokens)
                times.append(_now(device))
        names: tuple[Part, ...] = ("prepare", "backbone", "head")
        found = {name: end - begin for name, begin, end in zip(names, times, times[1:], strict=False)}
        return {**found, "whole": times[-1] - times[0]}


@dataclass(frozen=True)
class Timing:
    """What a pipeline took.

    Attributes:
        ms: part -> milliseconds per image, medians over the rounds; those of the parts need not add up to the whole.
        quartiles: the first and third of the whole's milliseconds per image.
        images_per_s: images per second at the median of the whole.
        peak_bytes: most memory that tensors held on a CUDA device meanwhile; None elsewhere.
    """

    ms: dict[Part, float]
    quartiles: tuple[float, float]
    images_per_s: float
    peak_bytes: int | None


def time_in_turn(
    pipelines: Mapping[Name, Pipeline], rounds: int = 7, told: Callable[[int], object] | None = None
) -> dict[Name, Timing]:
    """Time pipelines in turn: every round runs each of them once, in an order drawn for the round.

    What slows a machine down for a while then slows all of them, and medians leave out what hits few rounds. One round
    that does not count goes before.

    Args:
        pipelines: by name.
        rounds: how many count, 2 or more.
        told: called with the number of every round that is done, for a progress bar.

    Returns:
        A timing per pipeline, by its name.

    Raises:
        ConfigError: if ``rounds`` is too small.

    Examples:
        >>> from dinoneck import load_backbone
        >>> backbone = load_backbone("dinoneck_tiny")
        >>> pipeline = Pipeline([sample_image(32, 64)], backbone.preprocess, backbone)
        >>> timing = time_in_turn({"alone": pipeline}, rounds=2)["alone"]
        >>> sorted(timing.ms), timing.ms["whole"] > 0
        (['backbone', 'prepare', 'whole'], True)
    """
    if rounds < 2:
        raise ConfigError(f"rounds is {rounds}; expected 2 or more, for there to be a median")
    seconds: dict[Name, list[dict[Part, float]]] = {name: [] for name in pipelines}
    peaks: dict[Name, int | None] = {}
    drawn = random.Random(0)
    for number in range(rounds + 1):
        for name in drawn.sample(list(pipelines), len(pipelines)):
            _forget_peak(pipelines[name])
            took = pipelines[name].run()
            peaks[name] = max(filter(None, (peaks.get(name), _peak(pipelines[name]))), default=None)
            if number:
                seconds[name].append(took)
        if told is not None:
            told(number)
    return {name: _timing(seconds[name], len(pipeline.images), peaks[name]) for name, pipeline in pipelines.items()}


def sample_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a blotchy image with the noise of a JPEG. A file of it is decoded in every round, the object once.

    Args:
        height: in pixels.
        width: in pixels.
        seed: of its content.

    Examples:
        >>> sample_image(30, 40).size
        (40, 30)
    """
    random_state = np.random.default_rng(seed)
    coarse = random_state.integers(0, 256, (-(-height // _COARSE) + 1, -(-width // _COARSE) + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = random_state.integers(-12, 13, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return Image.open(buffer)


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what numbers were measured on: processor, device, threads, system and versions.

    Args:
        device: where the work ran.

    Examples:
        >>> sorted(machine())
        ['cpu', 'device', 'system', 'threads', 'versions']
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    place = torch.device(device)
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


def peak_process_bytes() -> int | None:
    """Return the most memory that this process has held since it began; None where the system does not report it.

    Examples:
        >>> peak_process_bytes() is None or peak_process_bytes() > 0
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _BYTES_PER_KB


def _timing(rounds: Sequence[Mapping[Part, float]], images: int, peak: int | None) -> Timing:
    ms = {part: statistics.median(took[part] for took in rounds) * 1e3 / images for part in rounds[0]}
    low, _, high = statistics.quantiles([took["whole"] * 1e3 / images for took in rounds], n=4, method="inclusive")
    return Timing(ms, (low, high), 1e3 / ms["whole"], peak)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _forget_peak(pipeline: Pipeline) -> None:
    device = next(pipeline.backbone.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(pipeline: Pipeline) -> int | None:
    device = next(pipeline.backbone.parameters()).device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
