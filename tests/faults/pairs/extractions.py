"""Pairs of options of ``dinoneck extract``; the reference are the tokens of every image and view by hand."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests import kit
from tests.faults.pairs.options import (
    Differs,
    Option,
    Settings,
    check_same,
    judged,
    pairs,
    raise_refusal,
)

from dinoneck import FeatureStore

NAMES = ("a.png", "b.png", "c.png")
OPTIONS = (
    Option("images", "8 bits", ["12 bits", "of several sizes"]),
    Option("size", "32x48", ["48x32", "32x32"]),
    Option("resize", None, ["crop", "pad", "keep"]),
    Option("pad-to", None, ["center"]),
    Option("interpolation", None, ["bicubic", "area"]),
    Option("blur", None, [5]),
    Option("bits", None, [12, 16]),
    Option("layers", None, ["1 4", "5 2"]),
    Option("no-norm", None, ["on"]),
    Option("views", None, ["flips4", "d6"]),
    Option("dtype", None, ["bf16", "int8"]),
    Option("backbone-seed", None, [3]),
    Option("batch-size", None, [1]),
    Option("workers", None, [2]),
    Option("shard", None, ["both", "interrupted"]),
)
CASES = [*pairs(OPTIONS)]
TOLERANCE = {None: 2e-3, "bf16": 1e-2, "int8": 3e-2}
MIRRORED: list[tuple[tuple[int, ...], int]] = [((), 0), ((-1,), 0), ((-2,), 0), ((-2, -1), 0)]
VIEWS = {None: MIRRORED[:1], "flips4": MIRRORED, "d6": [*MIRRORED, ((), 1), ((), 3)]}
PASSED_ON = (
    "resize",
    "pad-to",
    "interpolation",
    "blur",
    "bits",
    "views",
    "dtype",
    "backbone-seed",
    "batch-size",
    "workers",
)


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: extract, and compare every view of every image."""
    return judged(cases, OPTIONS, functools.partial(check, folder=folder))


def check(settings: Settings, folder: Path) -> None:
    """Extract, then compare with tokens by hand."""
    images = write_images(settings["images"], folder)
    extract(settings, images, folder / "store")
    store = FeatureStore.open(folder / "store")
    if sorted(store.ids) != ["a", "b", "c"]:
        raise Differs(f"the store holds {sorted(store.ids)}")
    turns = VIEWS[settings["views"]]
    for name in NAMES:
        right = tokens_by_hand(settings, images / name)
        for view, tokens in enumerate(right):
            found = store[name.partition(".")[0], view]
            if tuple(found.grid) != tuple(tokens.grid):
                raise Differs(f"view {view} of {name} has grid {found.grid}, not {tokens.grid}")
            for number, layer in enumerate(tokens.sequence):
                check_same(
                    found.sequence[number].float().numpy(),
                    layer.numpy(),
                    f"layer {number} of view {view} of {name}",
                    TOLERANCE[settings["dtype"]],
                )
    if len(store.views.views) != len(turns):
        raise Differs(f"the store has {len(store.views.views)} views, not {len(turns)}")


def write_images(kind: str, folder: Path) -> Path:
    """Write three images of a kind, once."""
    images = folder / f"images {kind}"
    if images.exists():
        return images
    images.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        height, width = (40, 60) if kind != "of several sizes" else (40 + 8 * number, 60)
        if kind == "12 bits":
            grey = rng.integers(0, 4096, (height // 4, width // 4))
            Image.fromarray(grey.astype(np.uint16).repeat(4, 0).repeat(4, 1)).save(images / name)
        else:
            coarse = rng.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
            Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(images / name)
    return images


def extract(settings: Settings, images: Path, store: Path) -> None:
    """Run the command; in two shards, or twice where the first run did a part only."""
    shutil.rmtree(store, ignore_errors=True)
    words: list[object] = ["--size", settings["size"], "--backbone", "dinoneck_tiny"]
    for name in PASSED_ON:
        if settings[name] is not None:
            words += [f"--{name}", settings[name]]
    if settings["layers"] is not None:
        words += ["--layers", *settings["layers"].split()]
    if settings["no-norm"] is not None:
        words += ["--no-norm"]
    rounds: list[list[object]] = [[]]
    if settings["shard"] == "both":
        rounds = [["--shard", "0/2"], ["--shard", "1/2"]]
    elif settings["shard"] == "interrupted":
        rounds = [["--shard", "1/2"], []]
    for shard in rounds:
        ran = kit.cli("extract", images, "--out", store, *words, *shard)
        raise_refusal(ran)


@torch.no_grad()
def tokens_by_hand(settings: Settings, image: Path) -> list[Any]:
    """The tokens of every view of an image, float32."""
    height, width = map(int, settings["size"].split("x"))
    layers = settings["layers"]
    backbone = kit.backbone(
        seed=settings["backbone-seed"] or 0,
        layers=None if layers is None else [*map(int, layers.split())],
        norm=settings["no-norm"] is None,
    )
    recipe = backbone.preprocess.changed(
        size=(height, width),
        resize=settings["resize"] or "stretch",
        pad_to=settings["pad-to"] or "corner",
        interpolation=settings["interpolation"] or "bilinear",
        blur=settings["blur"],
        bits=settings["bits"],
    )
    prepared = recipe.prepare([image]).images
    tokens = []
    for axes, turns in VIEWS[settings["views"]]:
        tokens.append(backbone(torch.rot90(prepared.flip(axes), turns, (-2, -1))))
    return tokens
