"""Extraction compared with a plain script: PIL, torchvision's transforms, the same model, one npy file per image.

    OMP_NUM_THREADS=1 python -m benchmarks.extraction FOLDER [--images 64] [--rounds 5] [--out FOLDER]

FOLDER holds the images. The script runs image by image, as most do, or in batches of 16. Variants take turns;
ratios are medians over the rounds, of the wall clock and of the CPU time of the process, with one thread for torch.
Writes benchmarks/results/extraction.json and .md.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.speed.results import RESULTS, save
from benchmarks.timing import machine, ratios
from dinoneck import Backbone, FeatureStore, load_backbone

SIZE = (224, 224)
PEER = "plain script, batch 1"
NAMES = ("dinoneck_tiny", "vit_small_patch16_dinov3")


def plain(backbone: Backbone, paths: Sequence[Path], batch: int, folder: Path) -> None:
    """What a user writes: open, resize, normalise, run, save."""
    recipe = backbone.preprocess
    prepare = transforms.Compose([
        transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(recipe.mean, recipe.std),
    ])  # fmt: skip
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


def measure(name: str, paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Return variant -> ratios to the peer, by the wall clock and by CPU time."""
    backbone = load_backbone(name, pretrained=False, seed=0)
    runs: dict[str, Callable[[Path], None]] = {
        PEER: functools.partial(plain, backbone, paths, 1),
        "plain script, batch 16": functools.partial(plain, backbone, paths, 16),
        "FeatureStore.extract": functools.partial(ours, backbone, paths),
    }
    wall: dict[str, list[float]] = {variant: [] for variant in runs}
    cpu: dict[str, list[float]] = {variant: [] for variant in runs}
    for turn in range(rounds + 1):
        for variant, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                begin, spent = time.perf_counter(), time.process_time()
                run(Path(folder))
                if turn:
                    wall[variant].append(time.perf_counter() - begin)
                    cpu[variant].append(time.process_time() - spent)
    return {"wall": ratios(wall, PEER), "cpu": ratios(cpu, PEER)}


def page(report: dict[str, Any]) -> str:
    """The table."""
    lines = ["| model | variant | × plain script by the wall clock (quartiles) | by CPU time |", "|---|---|---|---|"]
    for name, clocks in report["models"].items():
        for variant, row in clocks["wall"].items():
            spread = f"{row['ratio']:.2f} ({row['ratio_q1']:.2f} … {row['ratio_q3']:.2f})"
            lines.append(f"| {name} | {variant} | {spread} | {clocks['cpu'][variant]['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    paths = paths[: options.images]
    rows = {name: measure(name, paths, options.rounds) for name in options.models}
    report = {"machine": machine(), "images": len(paths), "rounds": options.rounds, "models": rows}
    save(report, options.out, "extraction", page(report))
    print(page(report))


if __name__ == "__main__":
    main()
