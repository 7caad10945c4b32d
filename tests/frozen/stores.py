"""Frozen feature stores: every dtype, views, layers, sizes, and tokens that came from other programs.

Tokens are read back exactly as they are stored, so tests compare them without a tolerance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck import FeatureStore
from dinoneck.data import Views
from tests import kit
from tests.frozen.folder import VersionFolder, is_frozen

FOLDER = "stores"
INDEX = "index.sqlite"
# Stores keep the folder, size and time of the files that they were made of, so these are fixed.
SOURCES = Path(tempfile.gettempdir()) / "dinoneck-frozen"
SOURCE_TIME = 1_700_000_000
SIZES = {"a.png": (40, 60), "plot/b.png": (24, 50)}  # images (height, width)


@dataclass(frozen=True)
class StoreToFreeze:
    """A store that is written once.

    Attributes:
        name: of its folder.
        write: makes it at a path.
        with_index: False: the index is removed, as in a store whose shards alone were copied.
    """

    name: str
    write: Callable[[Path], None]
    with_index: bool = True

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}"


@contextlib.contextmanager
def empty_sources() -> Iterator[None]:
    """Make the folder ``SOURCES``, empty, and remove it in the end."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    SOURCES.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(SOURCES)


def extract(path: Path, *, layers: int = 1, **options: Any) -> None:
    """Extract the images at 32 x 48 pixels."""
    backbone = kit.backbone(layers=layers)
    store = FeatureStore.create(path, backbone=backbone, image_size=kit.SIZE, **options)
    images = write_images()
    store.extract(images, images)


def extract_own_sizes(path: Path) -> None:
    """Extract three layers without the final norm from images of their own sizes, each into a shard of its own."""
    store = FeatureStore.create(
        path,
        backbone=kit.backbone(layers=[1, 3, 5], norm=False),
        image_size=None,
        resize="pad",
        pad_to="center",
        interpolation="bicubic",
        blur=3,
    )
    images = write_images()
    store.extract(images, images, batch_size=1, shard_bytes=1)


def write_images() -> Path:
    """Write two images, one of them in a subfolder, and return their folder."""
    folder = SOURCES / "images"
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        kit.write_images(folder, [name], height, width, seed)
        os.utime(folder / name, (SOURCE_TIME, SOURCE_TIME))
    return folder


def convert_npz(path: Path) -> None:
    """Convert files of another program, with CLS and patch tokens of two views."""
    folder = SOURCES / "npz"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.npz", "b.npz"):
        arrays = {}
        for view in range(2):
            arrays[f"cls_{view}"] = random.standard_normal(8).astype(np.float32)
            arrays[f"patches_{view}"] = random.standard_normal((6, 8)).astype(np.float32)
        np.savez(folder / name, **arrays)
        os.utime(folder / name, (SOURCE_TIME, SOURCE_TIME))
    views = Views([{}, {"horizontal": True}])
    FeatureStore.from_npz(folder, path, grid=(2, 3), patch_size=14, views=views)


def convert_pt(path: Path) -> None:
    """Convert tensors (C, rows, cols) of another program."""
    folder = SOURCES / "pt"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, cols in (("a.pt", 3), ("b.pt", 4)):
        torch.save(torch.randn(8, 2, cols, generator=generator).half(), folder / name)
        os.utime(folder / name, (SOURCE_TIME, SOURCE_TIME))
    FeatureStore.from_pt(folder, path, patch_size=14, dtype="bf16")


EVERY_CHANGE = {
    "horizontal": True,
    "vertical": True,
    "turns": 1,
    "brightness": (0.9, 1.1),
    "contrast": (0.9, 1.1),
    "saturation": (0.8, 1.2),
    "hue": (-0.05, 0.05),
    "gamma": (0.9, 1.1),
}

STORES = (
    StoreToFreeze("fp16", lambda path: extract(path, layers=2)),
    StoreToFreeze("int8", lambda path: extract(path, layers=2, dtype="int8")),
    StoreToFreeze(
        "bf16-flips", lambda path: extract(path, dtype="bf16", views="flips4"), with_index=False
    ),
    StoreToFreeze(
        "fp16-every-change",
        lambda path: extract(path, views=Views([{}, EVERY_CHANGE])),
        with_index=False,
    ),
    StoreToFreeze("fp16-own-sizes", extract_own_sizes),
    StoreToFreeze("fp16-of-npz", convert_npz, with_index=False),
    StoreToFreeze("bf16-of-pt", convert_pt, with_index=False),
)


def freeze(folder: VersionFolder) -> None:
    """Write the stores that no version has written, and record the tokens that they hold."""
    for entry in STORES:
        if is_frozen(entry.file):
            continue
        path = folder.new_path(entry.file)
        with empty_sources():
            entry.write(path)
        if not entry.with_index:
            (path / INDEX).unlink()
        record(folder, entry.file)


def record(folder: VersionFolder, name: str) -> None:
    """Record what a store says and holds; a copy is read, as reading may write an index."""
    with tempfile.TemporaryDirectory() as temporary:
        store = FeatureStore.open(shutil.copytree(folder.path / name, Path(temporary, "store")))
        folder.record(name, describe(store), read_tokens(store))


def describe(store: FeatureStore) -> dict[str, Any]:
    """Return what a store says."""
    shards = sorted({store.shard_of(image_id) for image_id in store.ids})
    return {
        "ids": list(store.ids),
        "dtype": store.dtype,
        "views": store.views.record(),
        "preprocess": asdict(store.preprocess),
        "backbone": store.backbone_record,
        "shards": shards,
    }


def read_tokens(store: FeatureStore) -> dict[str, Tensor]:
    """Return the tokens of every image, view and layer, ``ID/VIEW/LAYER``, in the dtype of the store."""
    found = {}
    for image_id in store.ids:
        for view in range(len(store.views)):
            tokens = store.batch([image_id], [view], dtype=None)
            for number, sequence in enumerate(tokens.sequence):
                found[f"{image_id}/{view}/{number}"] = sequence[0]
    return found
