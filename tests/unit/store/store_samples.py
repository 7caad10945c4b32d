"""Images and stores that the tests of the store share."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.kit import SIZE as SIZE
from tests.kit import write_images as write_images

from dinoneck import Backbone, FeatureStore


def make(path: Path, backbone: Backbone, **changes: object) -> FeatureStore:
    """Create a small store."""
    options: dict[str, object] = {"views": "flips4", "image_size": SIZE, **changes}
    return FeatureStore.create(path, backbone=backbone, **options)  # type: ignore[arg-type]


def content(store: FeatureStore) -> dict[str, torch.Tensor]:
    """Everything a store holds, as stored."""
    columns = {
        i: store.columns([i] * len(store.views), range(len(store.views)))[0] for i in store.ids
    }
    return {
        f"{i}/{name}/{layer}": x
        for i, parts in columns.items()
        for name, part in parts.items()
        for layer, x in enumerate(part)
    }


def same(first: FeatureStore, second: FeatureStore) -> bool:
    """Whether two stores hold the same bits."""
    one, two = content(first), content(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
