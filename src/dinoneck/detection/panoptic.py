"""Panoptic quality of segments that were predicted, and the numbers of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.data.panoptic import UNKNOWN, PanopticImages
from dinoneck.errors import DataError
from dinoneck.tasks import OBJECTS

Objects = Mapping[int, Sequence[Mapping[str, Any]]]
Array = np.ndarray[Any, Any]


def score_segments(dataset: PanopticImages, objects: Objects) -> dict[str, Any]:
    """Compare the segments of a dataset with those that were predicted, by panoptic quality.

    A predicted segment and a known one of its class are a pair where their IoU is above 0.5; unknown pixels count for
    nothing. A segment without a pair counts as wrong, unless more than half of it is unknown or a crowd region of its
    class.

    Args:
        dataset: the images with their true segments.
        objects: image id -> the segments of the image, as :func:`dinoneck.inference.coco_objects` returns them.

    Returns:
        ``PQ``, ``SQ`` (mean IoU of the pairs) and ``RQ`` (F1), means over the classes that there are, ``PQ_things`` and
        ``PQ_stuff``; ``per_class``: name -> ``PQ``, ``SQ``, ``RQ``, None for a class that no image has and none was
        predicted of; ``images``, their number; and ``count_error``, the mean absolute difference between the numbers of
        known and predicted things.

    Raises:
        DataError: if an id is unknown.

    Reference: Panoptic Segmentation (arXiv 1801.00868), as in panopticapi. Deviation: all crowd regions of a class
    count, not one.
    """
    if unknown := [*objects.keys() - {*dataset.ids}]:
        raise DataError(f"there are segments of image {unknown[0]!r}, which is not in {dataset.file}")
    count = len(dataset.classes)
    pairs = [_pairs(dataset.pixels(i), objects.get(image_id, ()), count) for i, image_id in enumerate(dataset.ids)]
    iou, found, alone = np.sum(pairs, axis=0)  # (K,) each
    with np.errstate(invalid="ignore"):
        recognised: Array = found / (found + alone / 2)  # NaN of a class that is not there
    scores = {"PQ": recognised * iou / found.clip(1), "SQ": iou / found.clip(1) + 0 * recognised, "RQ": recognised}
    is_stuff = np.isin(np.arange(count), [*dataset.stuff])
    return {
        **{name: _mean(values) for name, values in scores.items()},
        "PQ_things": _mean(scores["PQ"][~is_stuff]),
        "PQ_stuff": _mean(scores["PQ"][is_stuff]),
        "per_class": {
            name: {key: _mean(values[label, None]) for key, values in scores.items()}
            for label, name in enumerate(dataset.classes)
        },
        "images": len(dataset),
        "count_error": count_error(dataset, objects, 0.0),
    }


def _pairs(truth: Array, found: Sequence[Mapping[str, Any]], classes: int) -> Array:
    """Of an image by class (3, K): the sum of the IoU of pairs, their number, and that of segments without a pair."""
    from pycocotools import mask

    ids, places = np.unique(truth, return_inverse=True)  # m known ids, and that of every pixel by its place
    masks = [mask.decode(dict(own["segmentation"])).ravel() > 0 for own in found]
    # (n, m): pixels that each predicted segment shares with each known id
    shared = np.array([np.bincount(places.ravel()[own], minlength=len(ids)) for own in masks]).reshape(-1, len(ids))
    labels, own_labels = np.abs(ids) // OBJECTS - 1, np.array([own["category_id"] for own in found], np.int64)
    same, areas = own_labels[:, None] == labels, shared.sum(axis=1)
    unknown, crowd = shared @ (ids == UNKNOWN), (shared * same) @ (ids < UNKNOWN)
    iou = shared / (areas[:, None] + np.bincount(places.ravel()) - shared - unknown[:, None])
    # above 0.5 a segment has one partner at most
    iou = np.where(same & (ids > 0) & (iou > 0.5), iou, 0.0)
    wrong = (iou.max(axis=1, initial=0) == 0) & (2 * (unknown + crowd) <= areas)
    missed = iou.max(axis=0, initial=0) == 0
    sums = np.zeros((3, classes))
    np.add.at(sums[0], own_labels, iou.sum(axis=1))
    np.add.at(sums[1], own_labels, (iou > 0).sum(axis=1))
    np.add.at(sums[2], own_labels[wrong], 1)
    np.add.at(sums[2], labels[missed & (ids > 0)], 1)
    return sums


def count_error(dataset: Any, objects: Objects, min_score: float) -> float:
    """Return the mean absolute difference between the numbers of known objects and of predicted ones, without stuff."""
    errors = [abs(number - counted(objects.get(i, ()), min_score)) for i, number in dataset.numbers.items()]
    return float(np.mean(errors))


def counted(objects: Sequence[Mapping[str, Any]], min_score: float) -> int:
    """Return the number of objects with this score or more, without stuff."""
    return sum(own["score"] >= min_score and own.get("isthing", True) for own in objects)


def _mean(values: Array) -> float | None:
    """The mean over the classes that there are, which are not NaN."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
