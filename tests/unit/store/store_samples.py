"""Images and stores that the tests of the store share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinoneck import Backbone, FeatureStore

SIZE = (32, 48)


def write_images(folder: Path, names: list[str], seed: int = 0) -> list[Path]:
    """Write small random images of differing shapes; return their files."""
    paths = []
    for i, name in enumerate(names):
        rng = np.random.default_rng(seed + i)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5 + i % 3, 7, 3)).astype(np.uint8)
        Image.fromarray(small).resize((60, 40 + 8 * (i % 2)), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def make(path: Path, backbone: Backbone, **changes: object) -> FeatureStore:
    """Create a small store."""
    options: dict[str, object] = {"views": "flips4", "image_size": SIZE, **changes}
    return FeatureStore.create(path, backbone=backbone, **options)  # type: ignore[arg-type]


def content(store: FeatureStore) -> dict[str, torch.Tensor]:
    """Everything a store holds, as stored."""
    columns = {i: store.columns([i] * len(store.views), range(len(store.views)))[0] for i in store.ids}
    return {f"{i}/{name}/{layer}": x for i, parts in columns.items() for name, part in parts.items()
            for layer, x in enumerate(part)}  # fmt: skip


def same(first: FeatureStore, second: FeatureStore) -> bool:
    """Whether two stores hold the same bits."""
    one, two = content(first), content(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
