"""Extraction next to a plain script: PIL, torchvision's transforms, the same model, npy files.

    python -m benchmarks extraction [--images FOLDER] [--count 64] [--rounds 5] [--only PART]

Images are generated, of 0.2 and 12 megapixels, unless FOLDER is given. The script runs image by
image, as most do, or in batches of 16, and writes a file per image. Ratios are of the wall clock
and of the CPU time of the process, with one thread of torch.

PART is script, or runtimes: the extraction of the smaller images in every runtime and precision,
with one and two threads.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import runtime_speed
from benchmarks.images import SIZE, generated, script_of
from benchmarks.measure import Row, ratios, turns_by_both_clocks
from benchmarks.runtime_speed import (
    OF_CPU_TIME,
    SETTINGS,
    Work,
    backbones_of,
    fastest_products,
    operations_of,
)
from dinoneck import Backbone, FeatureStore, load_backbone

ROUNDS = 5
PEER = "plain script, batch 1"
OF_WALL_CLOCK = f"× {PEER}"
MODELS = ("dinoneck_tiny", "vit_small_patch16_dinov3")
RUNTIME_MODELS = (
    "vit_small_patch16_dinov3",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_dinov3",
)
THREADS = (1, 2)  # of torch and OpenVINO, for the runtimes
PARTS = ("script", "runtimes")
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
    variants = {variant: functools.partial(in_new_folder, run) for variant, run in runs.items()}
    wall_clock, cpu_time = turns_by_both_clocks(variants, rounds=rounds)
    rows = ratios(wall_clock.seconds, PEER, OF_WALL_CLOCK)
    by_cpu_time = ratios(cpu_time.seconds, PEER, OF_CPU_TIME)
    for variant, row in rows.items():
        row[OF_CPU_TIME] = by_cpu_time[variant][OF_CPU_TIME]
    return rows


def in_new_folder(run: Callable[[Path], None]) -> None:
    """Run with a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))


def compare_runtimes(
    name: str, paths: Sequence[Path], peaks: Mapping[torch.dtype, float], rounds: int
) -> dict[str, Row]:
    """Return variant -> ratios to the script, for every runtime and precision."""
    backbones = backbones_of(name)
    script_backbone = backbones[SETTINGS[0]]
    operations = len(paths) * operations_of(script_backbone, SIZE)
    script = functools.partial(plain_script, script_backbone, paths, 1)
    works = {PEER: Work(functools.partial(in_new_folder, script), operations, torch.float32)}
    for setting, backbone in backbones.items():
        run = functools.partial(extract, backbone, paths)
        works[setting.title] = Work(
            functools.partial(in_new_folder, run), operations, setting.dtype
        )
    return runtime_speed.compare(works, peaks, peer=PEER, rounds=rounds)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per model and size of images, then one per model and number of threads."""
    count = 2 if options.short else options.count
    parts = options.only or PARTS
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            image_sets = {"own images": sorted(options.images.iterdir())[:count]}
        else:
            image_sets = generated_sets(Path(folder), count)
        if "script" in parts:
            for model in MODELS[:1] if options.short else MODELS:
                for title, paths in image_sets.items():
                    yield f"{model}, {title}", compare(model, paths, options.rounds)
        if "runtimes" in parts:
            yield from measure_runtimes(options, next(iter(image_sets.values())))


def measure_runtimes(
    options: argparse.Namespace, paths: Sequence[Path]
) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the fastest products, and a table per model and number of threads."""
    table, peaks = fastest_products()
    yield "products of matrices, 1 threads", table
    for model in MODELS[:1] if options.short else RUNTIME_MODELS:
        for threads in THREADS:
            torch.set_num_threads(threads)
            rows = compare_runtimes(model, paths, peaks, options.rounds)
            yield f"runtimes, {model}, {len(paths)} images, {threads} threads", rows


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
