"""Extraction compared with a plain script: PIL, torchvision's transforms, the same model, one npy file per image.

    python -m benchmarks extraction [--images FOLDER] [--count 64] [--rounds 5]

Images are generated ones of 0.2 and 12 megapixels, unless FOLDER is given. The script runs image by
image, as most do, or in batches of 16. Ratios are of the wall clock and of the CPU time of the
process, with one thread of torch.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.images import SIZE, generated, script_of
from benchmarks.measure import Row, cpu, ratios, turns
from dinoneck import Backbone, FeatureStore, load_backbone

ROUNDS = 5
PEER = "plain script, batch 1"
NAMES = ("dinoneck_tiny", "vit_small_patch16_dinov3")
SIDES = {"0.2 megapixels": (480, 360), "12 megapixels": (4000, 3000)}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=64)


def plain(backbone: Backbone, paths: Sequence[Path], batch: int, folder: Path) -> None:
    """What a user writes: open, resize, normalise, run, save."""
    prepare = script_of(backbone.preprocess)
    for begin in range(0, len(paths), batch):
        some = paths[begin : begin + batch]
        with torch.inference_mode():
            images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in some])
            tokens = backbone.adapter.model.forward_features(images)  # type: ignore[operator]
        for path, own in zip(some, tokens, strict=True):
            np.save(folder / f"{path.stem}.npy", own.half().numpy())


def ours(backbone: Backbone, paths: Sequence[Path], folder: Path) -> None:
    """Extract into a store, with the defaults."""
    FeatureStore.create(folder / "store", backbone=backbone, image_size=SIZE).extract(list(paths))


def compared(name: str, paths: Sequence[Path], rounds: int) -> dict[str, Row]:
    """Return variant -> ratios to the peer, by the wall clock and by CPU time."""
    backbone = load_backbone(name, pretrained=False, seed=0)
    runs: dict[str, Callable[[Path], None]] = {
        PEER: functools.partial(plain, backbone, paths, 1),
        "plain script, batch 16": functools.partial(plain, backbone, paths, 16),
        "FeatureStore.extract": functools.partial(ours, backbone, paths),
    }
    spent: dict[str, list[float]] = {variant: [] for variant in runs}

    def in_new_folder(variant: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            spent[variant].append(cpu(lambda: runs[variant](Path(folder))))

    variants = {variant: functools.partial(in_new_folder, variant) for variant in runs}
    rows = ratios(turns(variants, rounds=rounds), PEER, f"× {PEER}")
    by_cpu = ratios(
        {variant: own[-rounds:] for variant, own in spent.items()}, PEER, "× by CPU time"
    )
    return {
        variant: {**row, "× by CPU time": by_cpu[variant]["× by CPU time"]}
        for variant, row in rows.items()
    }


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per model and size of images."""
    count = 2 if options.short else options.count
    with tempfile.TemporaryDirectory() as name:
        folders = {"own images": sorted(options.images.iterdir())[:count]} if options.images else {}
        for title, sides in {} if options.images else SIDES.items():
            image = generated(Path(name, f"{title}.jpg"), *sides)
            folders[title] = [Path(name, f"{title} {number}.jpg") for number in range(count)]
            for path in folders[title]:
                path.symlink_to(image)
        for model in NAMES[: 1 if options.short else None]:
            for title, paths in folders.items():
                yield f"{model}, {title}", compared(model, paths, options.rounds)
