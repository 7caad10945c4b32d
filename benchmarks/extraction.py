"""Extraction next to a plain script: PIL, torchvision's transforms, the same model, npy files.

    python -m benchmarks extraction [--images FOLDER] [--count 64] [--rounds 5]

Images are generated, of 0.2 and 12 megapixels, unless FOLDER is given. The script runs image by
image, as most do, or in batches of 16, and writes a file per image. Ratios are of the wall clock
and of the CPU time of the process, with one thread of torch.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.images import SIZE, generated, script_of
from benchmarks.measure import Row, cpu, ratios, turns
from dinoneck import Backbone, FeatureStore, load_backbone

ROUNDS = 5
PEER = "plain script, batch 1"
OF_WALL_CLOCK = f"× {PEER}"
OF_CPU_TIME = "× by CPU time"
MODELS = ("dinoneck_tiny", "vit_small_patch16_dinov3")
SIDES = {"0.2 megapixels": (480, 360), "12 megapixels": (4000, 3000)}  # width, height


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=64)


def plain_script(backbone: Backbone, paths: Sequence[Path], batch_size: int, folder: Path) -> None:
    """Do what a user writes by hand: open, resize, normalise, run, save."""
    model: Any = backbone.adapter.model
    prepare = script_of(backbone.preprocess)
    for begin in range(0, len(paths), batch_size):
        batch_paths = paths[begin : begin + batch_size]
        with torch.inference_mode():
            images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in batch_paths])
            tokens = model.forward_features(images)
        for path, image_tokens in zip(batch_paths, tokens, strict=True):
            np.save(folder / f"{path.stem}.npy", image_tokens.half().numpy())


def extract(backbone: Backbone, paths: Sequence[Path], folder: Path) -> None:
    """Extract into a store, with the defaults."""
    store = FeatureStore.create(folder / "store", backbone=backbone, image_size=SIZE)
    store.extract(list(paths))


def compare(name: str, paths: Sequence[Path], rounds: int) -> dict[str, Row]:
    """Return variant -> ratios to the peer, by the wall clock and by CPU time."""
    backbone = load_backbone(name, pretrained=False, seed=0)
    runs: dict[str, Callable[[Path], None]] = {
        PEER: functools.partial(plain_script, backbone, paths, 1),
        "plain script, batch 16": functools.partial(plain_script, backbone, paths, 16),
        "FeatureStore.extract": functools.partial(extract, backbone, paths),
    }
    cpu_seconds: dict[str, list[float]] = {variant: [] for variant in runs}

    def in_new_folder(variant: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cpu_seconds[variant].append(cpu(lambda: runs[variant](Path(folder))))

    variants = {variant: functools.partial(in_new_folder, variant) for variant in runs}
    rows = ratios(turns(variants, rounds=rounds), PEER, OF_WALL_CLOCK)
    # the first times are those of the warm-up
    timed = {variant: seconds[-rounds:] for variant, seconds in cpu_seconds.items()}
    by_cpu_time = ratios(timed, PEER, OF_CPU_TIME)
    for variant, row in rows.items():
        row[OF_CPU_TIME] = by_cpu_time[variant][OF_CPU_TIME]
    return rows


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per model and size of images."""
    count = 2 if options.short else options.count
    models = MODELS[:1] if options.short else MODELS
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            image_sets = {"own images": sorted(options.images.iterdir())[:count]}
        else:
            image_sets = generated_sets(Path(folder), count)
        for model in models:
            for title, paths in image_sets.items():
                yield f"{model}, {title}", compare(model, paths, options.rounds)


def generated_sets(folder: Path, count: int) -> dict[str, list[Path]]:
    """Write one image of each size and return links to it, as many as images are asked for."""
    image_sets = {}
    for title, (width, height) in SIDES.items():
        image = generated(folder / f"{title}.jpg", width, height)
        paths = [folder / f"{title} {number}.jpg" for number in range(count)]
        for path in paths:
            path.symlink_to(image)
        image_sets[title] = paths
    return image_sets
