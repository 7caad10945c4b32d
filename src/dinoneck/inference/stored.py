"""Stored tokens as the input of heads: whether they fit, which view is which, and batches of one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from dinoneck.checkpoint.pairing import check_records
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.inference.passes import Pass
from dinoneck.inference.sources import difference
from dinoneck.inference.tiles import View

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

_PLACES = {"horizontal", "vertical", "turns"}


def check_store(store: FeatureStore, one: Pass) -> None:
    """Refuse tokens that are not those of this pass.

    Raises:
        CheckpointError: if they are of another backbone, other layers, or of images that were prepared differently.
        ConfigError: if it is not a store; for maps of padded images: a store does not record which patches show the
            image.
    """
    if not hasattr(store, "backbone_record"):
        raise ConfigError(
            f"the store is {store!r:.80}; expected a FeatureStore (FeatureStore.open); for images call the predictor"
        )
    made, own = store.backbone_record, one.backbone.record()
    norm = own["norm"] if made.get("norm") is False else made.get("norm")  # the norm can still be applied
    check_records(own, {**made, "norm": norm}, layers=False)
    if missing := sorted({*one.backbone.layers} - {*(made.get("layers") or ())}):
        raise CheckpointError(
            f"the heads read blocks {one.backbone.layers}; {store.path} holds {made.get('layers')}, without {missing}: "
            "extract a store with them",
            step="pairing",
        )
    if store.preprocess != one.preprocess:
        differ = difference(one.preprocess.record(), store.preprocess.record(), "inputs")
        raise CheckpointError(
            f"the heads need images prepared differently than those of {store.path} ({differ}); extract a store with "
            "the preprocessing of the heads, or pass preprocess=",
            step="pairing",
        )
    tasks = [task.name for reading in one.readings.values() for task in reading.heads.tasks if task.is_map]
    if tasks and store.preprocess.resize == "pad":
        raise ConfigError(
            f"{store.path} holds padded images and does not record which patches are padding, so the mean of the map "
            f"{tasks[0]!r} is not known; predict from the images"
        )


def view_indices(store: FeatureStore, views: Sequence[View]) -> list[int]:
    """Return the index of each view in the store.

    Raises:
        ConfigError: naming a view that is not stored.
    """
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    plain = [i for i, stored in enumerate(store.views.record()) if stored.keys() <= _PLACES]
    indices = []
    for view in views:
        index = next((i for i in plain if torch.equal(view.apply(image), store.views.place(image, i))), None)
        if index is None:
            raise ConfigError(
                f"the view {view.name!r} is not in {store.path}; extract with views='flips4' or 'd6', or predict with "
                "tta='none' (--tta none)"
            )
        indices.append(index)
    return indices


def batches_of(store: FeatureStore, ids: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Yield the ids in their order, in batches of neighbours whose images have one grid.

    Raises:
        DataError: if an id is not in the store.
    """
    grids = [entry.grid for _, entry in store.entries.find(ids)]
    for _, group in groupby(zip(ids, grids, strict=True), key=lambda pair: pair[1]):
        batch = [image_id for image_id, _ in group]
        yield from (batch[begin : begin + at_once] for begin in range(0, len(batch), at_once))
