"""From a JPEG to a tensor and to predictions, next to a script of PIL, torchvision and timm.

    python -m benchmarks images [--image FILE] [--batch 32] [--rounds 7] [--only PART]

Both sides resize to 224 x 224 px and run ViT-S with the same seeded random weights; the script
keeps PIL's bicubic resize of timm's configuration. Images are generated, of 12 and of 2 megapixels,
unless FILE is given. Ratios are of the wall clock, with one thread of torch and with one per core.
dinoneck decodes in one thread per core either way.

PART is script; runtimes: predictions of generated images in every runtime and precision, with one
and two threads; or detectors: one photo of 2 megapixels to the boxes of RF-DETR, next to the pipeline
of transformers.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks import detectors, runtime_speed
from benchmarks.measure import Row, Variants, ratios, turns
from benchmarks.runtime_speed import (
    SETTINGS,
    Setting,
    Work,
    backbones_of,
    fastest_products,
    operations_of,
)
from dinoneck import Backbone, PatchMeanHead, Predictor, Task, load_backbone, save_head
from dinoneck.data import Preprocessing

ROUNDS = 7
SIZE = (224, 224)  # of the images that the model gets: height, width
GRID = (14, 14)  # patches of 16 px of such an image
SIDES = ((4000, 3000), (1632, 1224))  # of the files: width, height
PEER = "plain script"
THREADS = (1, 2)  # of torch and OpenVINO, for the runtimes
PARTS = ("script", "runtimes", "detectors")
RF_DETRS = ("rf_detr_nano", "rf_detr_small")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--image", type=Path)
    parser.add_argument("--batch", type=int, default=32)


def generated(path: Path, width: int, height: int) -> Path:
    """Write a JPEG with coarse and fine structure."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    coarse = coarse.resize((width, height))
    fine = generator.normal(0, 12, (height, width, 1))
    pixels = (np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def script_of(preprocess: Preprocessing) -> transforms.Compose:
    """Return the transforms by which a plain script prepares an image."""
    return transforms.Compose(
        [
            transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )


def prediction_script(
    model: Any, prepare: transforms.Compose, head: PatchMeanHead
) -> Callable[[Sequence[Path]], torch.Tensor]:
    """Return what a user writes by hand to predict from files."""

    @torch.inference_mode()
    def script(paths: Sequence[Path]) -> torch.Tensor:
        images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
        patches = model.forward_features(images)[:, model.num_prefix_tokens :]
        maps = patches.unflatten(1, GRID).permute(0, 3, 1, 2)
        mass: torch.Tensor = head(maps)["mass"]
        return mass

    return script


def variants_of(image: Path, folder: Path, batch: int) -> dict[str, Variants]:
    """Return the variants of every row."""
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
    model: Any = backbone.adapter.model
    preprocess = backbone.preprocess.changed(size=SIZE)
    preprocess_by_area = preprocess.changed(interpolation="area")
    prepare = script_of(preprocess)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")]).eval()
    head_file = folder / "head.safetensors"
    save_head(head_file, head, backbone=backbone, preprocess=preprocess)
    predictor = Predictor(head_file, backbone)

    script = prediction_script(model, prepare, head)
    many = [image] * batch
    return {
        "JPEG to tensor": {
            PEER: lambda: prepare(Image.open(image).convert("RGB")),
            "Preprocessing": lambda: preprocess(image),
            "Preprocessing, area": lambda: preprocess_by_area(image),
        },
        "one image to prediction": {
            PEER: lambda: script([image]),
            "Predictor": lambda: predictor(image),
        },
        f"{batch} images to predictions": {
            PEER: lambda: script(many),
            "Predictor": lambda: predictor(many),
        },
    }


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per size of image and number of threads, those of the runtimes, and those of detectors."""
    parts = options.only or PARTS
    if "script" in parts:
        yield from measure_script(options)
    if "runtimes" in parts:
        yield from measure_runtimes(options)
    if "detectors" in parts:
        yield from measure_detectors(options)


def measure_script(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per size of image and number of threads."""
    sides = SIDES
    if options.short:
        sides = SIDES[-1:]  # the smaller
    if options.image:
        sides = SIDES[-1:]  # one table; the file has its own size
    for width, height in sides:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            image = options.image or generated(folder / "image.jpg", width, height)
            with Image.open(image) as opened:
                megapixels = opened.width * opened.height / 1e6
            batch = 2 if options.short else options.batch
            variants = variants_of(image, folder, batch)
            for threads in dict.fromkeys([os.cpu_count() or 1, 1]):
                torch.set_num_threads(threads)
                table = ratios_to_script(variants, options.rounds)
                yield f"{megapixels:.0f} megapixels, {threads} threads", table


def ratios_to_script(variants: dict[str, Variants], rounds: int) -> dict[str, Row]:
    """Return the rows of a table, without those of the script itself."""
    table = {}
    for title, variants_of_row in variants.items():
        seconds = turns(variants_of_row, rounds=rounds)
        for variant, row in ratios(seconds, PEER, f"× {PEER}").items():
            if variant != PEER:
                table[f"{title}: {variant}"] = row
    return table


def measure_runtimes(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the fastest products, and a table per size of image and number of threads."""
    table, peaks = fastest_products()
    yield "products of matrices, 1 threads", table
    backbones = backbones_of("vit_small_patch16_dinov3")
    batch = 2 if options.short else options.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small = SIDES
        image_sets = {
            f"{batch} images of 2 megapixels": [generated(folder / "2.jpg", *small)] * batch
        }
        if not options.short:
            image_sets["one image of 12 megapixels"] = [generated(folder / "12.jpg", *large)]
        for title, paths in image_sets.items():
            works = works_of(backbones, paths, folder)
            for threads in THREADS:
                torch.set_num_threads(threads)
                rows = runtime_speed.compare(works, peaks, peer=PEER, rounds=options.rounds)
                yield f"runtimes, {title}, {threads} threads", rows


def measure_detectors(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per RF-DETR, of one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = options.image or generated(folder / "photo.jpg", *SIDES[-1])
        for detector in RF_DETRS[:1] if options.short else RF_DETRS:
            rows = detectors.compare(detector, image, folder, options.rounds)
            yield f"one photo to boxes, {detector}, 1 threads", rows


def works_of(
    backbones: Mapping[Setting, Backbone], paths: Sequence[Path], folder: Path
) -> dict[str, Work]:
    """Return the script and, for every runtime and precision, the predictor of a head."""
    backbone = backbones[SETTINGS[0]]
    preprocess = backbone.preprocess.changed(size=SIZE)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")]).eval()
    head_file = folder / "head.safetensors"
    save_head(head_file, head, backbone=backbone, preprocess=preprocess)
    script = prediction_script(backbone.adapter.model, script_of(preprocess), head)
    operations = len(paths) * operations_of(backbone, SIZE)
    works = {PEER: Work(functools.partial(script, paths), operations, torch.float32)}
    for setting, setting_backbone in backbones.items():
        predictor = Predictor(head_file, setting_backbone)
        works[setting.title] = Work(functools.partial(predictor, paths), operations, setting.dtype)
    return works
