"""What ``benchmarks.store`` reads: the same features in every layout, and stores of many images.

The sizes are those of a published pipeline (3600 patches of 1280 channels). The values imitate
those of a large backbone: a seeded, untrained ViT-S sees generated pasture images, the patches of
four views are joined to one image, and its 384 channels are projected to 1280 with log-normal
scales, six of them twelve times larger.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dinoneck import Backbone, FeatureStore, load_backbone
from dinoneck.data import Pasture, Views
from dinoneck.grid import GridSize
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.store import shards
from dinoneck.store.description import Description, make_folder, write_scale
from dinoneck.store.encoding import channel_rms, encode
from dinoneck.store.files import LocalFiles
from dinoneck.tokens import Tokens

GRID = (60, 60)
CHANNELS = 1280
PATCH = 16
PATTERNS = 4  # of each image: its views
NUM_OUTLIERS = 6  # channels with a larger scale
OUTLIER_SCALE = 12
NUM_REGISTERS = 4
PREFIX = 1 + NUM_REGISTERS
# of an image file in a store's index; they are never compared here
FILE_BYTES = 900_000
FILE_TIME_NS = 10**18


@dataclass
class Files:
    """Folders with the same features.

    Attributes:
        root: the folder with all of them.
        backbone: the backbone of the extraction.
        images: the folder of the images.
        small: the store with the features of the backbone, before they are enlarged.
        ids: of the images.
    """

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
        """Open one of the two stores."""
        return FeatureStore.open(self.root / dtype)


def prepare(root: Path, backbone: Backbone, count: int, size: tuple[int, int]) -> Files:
    """Draw images, extract them, and write the features in every layout."""
    folder = root / "images"
    folder.mkdir()
    pasture = Pasture(seed=0, size=(256, 256))
    for number in range(count):
        image = Image.fromarray(pasture.sample(number).image)
        image.save(folder / f"p{number:03d}.png")
    small = FeatureStore.create(root / "small", backbone=backbone, views="flips4", image_size=size)
    small.extract(folder)
    files = Files(root, backbone, folder, small, small.ids)
    write_npz(files)
    FeatureStore.from_npz(files.npz, root / "fp16", grid=GRID, patch_size=PATCH, views="flips4")
    write_int8(files)
    return files


def large(small: FeatureStore) -> Tokens:
    """Return the float32 features, the same at every call.

    They are a batch over images and, within each, patterns.
    """
    image_ids, patterns = pairs_of(small.ids)
    views = small.batch(image_ids, patterns)
    projection = _projection(views.sequence[0].shape[2])
    patches = views.patches[0] @ projection
    cls_token = views.cls_token[0] @ projection

    # the patches of several views fill the grid of one image
    rows, cols = GRID
    num_patches = rows * cols
    num_joined = math.ceil(num_patches / views.grid.count)
    images = []
    for first in range(len(patches)):
        joined = [patches[(first + number) % len(patches)] for number in range(num_joined)]
        images.append(torch.cat(joined)[:num_patches])
    return Tokens.from_patches(
        torch.stack(images), grid=GRID, patch_size=PATCH, cls_token=cls_token
    )


def pairs_of(ids: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the image and the pattern of every view."""
    image_ids = []
    patterns = []
    for image_id in ids:
        for pattern in range(PATTERNS):
            image_ids.append(image_id)
            patterns.append(pattern)
    return image_ids, patterns


def _projection(width: int) -> Tensor:
    """Return a matrix to more channels, (width, CHANNELS), with log-normal scales and outliers."""
    generator = torch.Generator().manual_seed(0)
    orthogonal, _ = torch.linalg.qr(torch.randn(CHANNELS, width, generator=generator))
    scale = torch.exp(0.5 * torch.randn(CHANNELS, generator=generator))
    outliers = torch.randperm(CHANNELS, generator=generator)[:NUM_OUTLIERS]
    scale[outliers] *= OUTLIER_SCALE
    return orthogonal.T * (CHANNELS / width) ** 0.5 * scale


def write_npz(files: Files) -> None:
    """Write both npz layouts."""
    tokens = large(files.small)
    files.npz.mkdir()
    files.half.mkdir()
    for number, image_id in enumerate(files.ids):
        arrays: dict[str, Any] = {}
        halves: dict[str, Any] = {}
        for pattern in range(PATTERNS):
            view = number * PATTERNS + pattern
            arrays[f"cls_{pattern}"] = tokens.cls_token[0][view].numpy()
            arrays[f"patches_{pattern}"] = tokens.patches[0][view].numpy()
        for name, array in arrays.items():
            halves[name] = array.astype(np.float16)
        np.savez_compressed(files.npz / f"{image_id}.npz", **arrays)
        np.savez(files.half / f"{image_id}.npz", **halves)


def write_int8(files: Files) -> None:
    """Write the int8 store from the float32 features."""
    tokens = large(files.small)
    folder = files.root / "int8"
    make_folder(folder, replace(files.store("fp16").description, dtype="int8"))
    scale = channel_rms([tokens])
    write_scale(LocalFiles(folder), scale)
    writer = shards.Writer(files.store("int8").shards, "/")
    for number, image_id in enumerate(files.ids):
        views = tokens[number * PATTERNS : (number + 1) * PATTERNS]
        record = encode(views, "int8", scale)
        writer.add(image_id, record, tokens.grid, (f"{number:032x}", FILE_BYTES, FILE_TIME_NS))
    writer.flush()


class NpzDataset(Dataset[dict[str, Any]]):
    """Reads one random pattern of each image's file as float32, as a published pipeline does."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder = folder
        self.ids = ids

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
    """Describe a store of (layers, tokens, channels) per image.

    A single token is a patch; of several, five are CLS and registers.
    """
    layers, tokens, channels = shape
    has_prefix = tokens > 1
    record = {
        **load_backbone("dinoneck_tiny").record(),
        "embed_dim": channels,
        "num_cls": 1 if has_prefix else 0,
        "num_registers": NUM_REGISTERS if has_prefix else 0,
        "layers": list(range(layers)),
    }
    return Description(record, Preprocessing(), Views.named("none"), "fp16")


def write_store(folder: Path, count: int, shape: tuple[int, int, int], shard_bytes: int) -> None:
    """Write a store of constant tokens, without flushing every file to the disk."""
    layers, tokens, channels = shape
    described = description(shape)
    make_folder(folder, described)
    folder_shards = shards.Shards(LocalFiles(folder), described.digest, described.parts)
    writer = shards.Writer(folder_shards, "/", shard_bytes)
    grid = GridSize(1, tokens - PREFIX if tokens > 1 else 1)
    with mock.patch.object(shards, "write_whole", _write_without_flush):
        for number in range(count):
            values = torch.full((1, layers, tokens, channels), number % 1000, dtype=torch.float16)
            writer.add(
                f"images/{number:09d}",
                {"tokens": values},
                grid,
                (f"{number:032x}", FILE_BYTES, FILE_TIME_NS + number),
            )
        writer.flush()


def _write_without_flush(path: str | Path, content: bytes, check: object = None) -> None:
    Path(path).write_bytes(content)
