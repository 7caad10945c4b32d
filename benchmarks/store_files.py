"""What ``benchmarks.store`` reads: the same features in every layout, and stores of many made-up images.

Their size is that of a published pipeline (3600 patches of 1280 channels); their values are a
stand-in for those of a large backbone: a seeded, untrained ViT-S sees generated pasture images, the
patches of four views make one image, and its 384 channels are turned into 1280 whose scales are
log-normal, six of them twelve times larger.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dinoneck import Backbone, FeatureStore, load_backbone
from dinoneck.data import Pasture, Views
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.grid import GridSize
from dinoneck.store import shards
from dinoneck.store.description import Description, make_folder, write_scale
from dinoneck.store.encoding import channel_rms, encode
from dinoneck.store.files import LocalFiles
from dinoneck.tokens import Tokens

GRID = (60, 60)
CHANNELS = 1280
PATCH = 16
PATTERNS = 4


@dataclass
class Files:
    """Folders with the same features, and what the small extraction left."""

    root: Path
    backbone: Backbone
    images: Path
    small: FeatureStore
    ids: tuple[str, ...]

    @property
    def npz(self) -> Path:
        """``np.savez_compressed``, float32, as a published pipeline stores them."""
        return self.root / "npz"

    @property
    def half(self) -> Path:
        """``np.savez``, float16."""
        return self.root / "npz16"

    def store(self, dtype: str) -> FeatureStore:
        """One of the two stores."""
        return FeatureStore.open(self.root / dtype)


def prepare(root: Path, backbone: Backbone, count: int, size: tuple[int, int]) -> Files:
    """Draw images, extract them, and write the features in every layout."""
    folder = root / "images"
    folder.mkdir()
    for i in range(count):
        Image.fromarray(Pasture(seed=0, size=(256, 256)).sample(i).image).save(
            folder / f"p{i:03d}.png"
        )
    small = FeatureStore.create(root / "small", backbone=backbone, views="flips4", image_size=size)
    small.extract(folder)
    files = Files(root, backbone, folder, small, small.ids)
    write_npz(files)
    FeatureStore.from_npz(files.npz, root / "fp16", grid=GRID, patch_size=PATCH, views="flips4")
    write_int8(files)
    return files


def large(small: FeatureStore) -> Tokens:
    """The float32 features as a batch over images and, within each, patterns; the same at every call."""
    pairs = [(image_id, pattern) for image_id in small.ids for pattern in range(PATTERNS)]
    views = small.batch([i for i, _ in pairs], [p for _, p in pairs])
    width, chance = views.sequence[0].shape[2], torch.Generator().manual_seed(0)
    turn = (
        torch.linalg.qr(torch.randn(CHANNELS, width, generator=chance))[0].T
        * (CHANNELS / width) ** 0.5
    )
    scale = torch.exp(0.5 * torch.randn(CHANNELS, generator=chance))
    scale[torch.randperm(CHANNELS, generator=chance)[:6]] *= 12
    patches, cls_token = views.patches[0] @ (turn * scale), views.cls_token[0] @ (turn * scale)
    need, per = GRID[0] * GRID[1], views.grid.count
    shown = [
        torch.cat([patches[(v + j) % len(pairs)] for j in range(-(-need // per))])[:need]
        for v in range(len(pairs))
    ]
    return Tokens.from_patches(torch.stack(shown), grid=GRID, patch_size=PATCH, cls_token=cls_token)


def write_npz(files: Files) -> None:
    """Write both npz layouts."""
    tokens = large(files.small)
    files.npz.mkdir()
    files.half.mkdir()
    for n, image_id in enumerate(files.ids):
        arrays: dict[str, Any] = {}
        for i in range(PATTERNS):
            arrays[f"cls_{i}"] = tokens.cls_token[0][n * PATTERNS + i].numpy()
            arrays[f"patches_{i}"] = tokens.patches[0][n * PATTERNS + i].numpy()
        np.savez_compressed(files.npz / f"{image_id}.npz", **arrays)
        np.savez(
            files.half / f"{image_id}.npz",
            **{key: value.astype(np.float16) for key, value in arrays.items()},
        )


def write_int8(files: Files) -> None:
    """Write the int8 store, which is not made of npz files."""
    tokens, own = large(files.small), replace(files.store("fp16").description, dtype="int8")
    make_folder(files.root / "int8", own)
    scale = channel_rms([tokens])
    write_scale(LocalFiles(files.root / "int8"), scale)
    writer = shards.Writer(files.store("int8").shards, "/")
    for n, image_id in enumerate(files.ids):
        record = encode(tokens[n * PATTERNS : (n + 1) * PATTERNS], "int8", scale)
        writer.add(image_id, record, tokens.grid, (f"{n:032x}", 900_000, 10**18))
    writer.flush()


class NpzDataset(Dataset[dict[str, Any]]):
    """Feed heads as a published pipeline does: one random pattern out of each image's file, as float32."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        pattern = random.randrange(PATTERNS)
        with np.load(self.folder / f"{self.ids[sample]}.npz") as content:
            return {
                "cls_token": torch.tensor(content[f"cls_{pattern}"], dtype=torch.float32),
                "patch_tokens": torch.tensor(content[f"patches_{pattern}"], dtype=torch.float32),
            }


def description(shape: tuple[int, int, int]) -> Description:
    """Describe a store of (layers, tokens, channels) per image; of several tokens 5 are CLS and registers."""
    layers, tokens, channels = shape
    kept = {"embed_dim": channels, "num_cls": int(tokens > 1), "num_registers": 4 * (tokens > 1)}
    record = {**load_backbone("dinoneck_tiny").record(), **kept, "layers": list(range(layers))}
    return Description(record, Preprocessing(), Views.named("none"), "fp16")


def write_store(folder: Path, count: int, shape: tuple[int, int, int], shard_bytes: int) -> None:
    """Write a store of made-up tokens, without flushing every file to the disk."""
    own, (layers, tokens, channels) = description(shape), shape
    make_folder(folder, own)
    writer = shards.Writer(
        shards.Shards(LocalFiles(folder), own.digest, own.parts), "/", shard_bytes
    )
    safe = shards.write_whole
    shards.write_whole = lambda path, content, check=None: Path(path).write_bytes(content)  # type: ignore[assignment]
    try:
        for number in range(count):
            x = torch.full((1, layers, tokens, channels), number % 1000, dtype=torch.float16)
            grid = GridSize(1, tokens - 5 * (tokens > 1))
            writer.add(
                f"images/{number:09d}",
                {"tokens": x},
                grid,
                (f"{number:032x}", 900_000, 10**18 + number),
            )
        writer.flush()
    finally:
        shards.write_whole = safe
