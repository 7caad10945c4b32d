"""Is one model's average precision clearly higher than another's? Intervals over images, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinoneck.detection.evaluation import IouType, coco_evaluation
from dinoneck.metrics import (
    RankedObjects,
    average_precision,
    draw_groups,
    interval,
    mean_defined,
)

Array = np.ndarray[Any, Any]
AP50_PLACE = 0  # of the IoUs 0.50, 0.55 ... 0.95


def precision_intervals(
    dataset: Any,
    first: list[dict[str, Any]],
    other: list[dict[str, Any]],
    iou_type: IouType,
) -> dict[str, list[float] | None]:
    """Return 95 % intervals of the first model's AP and AP50 minus those of the other one.

    Images are drawn with replacement, the same ones for both models, and each draw is scored anew;
    objects are matched within images, so that takes no new matching.

    Args:
        dataset: a :class:`dinoneck.data.BoxImages`.
        first: COCO results of its images, as :func:`dinoneck.detection.coco_results` returns them.
        other: the other model's.
        iou_type: whether the IoU is of boxes or of masks.

    Returns:
        ``AP`` and ``AP50``: the ends, or None for fewer than five images.
    """
    draws = draw_groups(len(dataset.ids))  # each image is a group
    if draws is None:
        return {"AP": None, "AP50": None}
    drawn = []
    for results in (first, other):
        ranked = class_results(coco_evaluation(dataset, results, iou_type))
        drawn.append(drawn_precision(ranked, draws))  # (draws, IoUs)
    differences = drawn[0] - drawn[1]
    return {
        "AP": interval(differences.mean(axis=1)),
        "AP50": interval(differences[:, AP50_PLACE]),
    }


def class_results(evaluation: Any) -> list[RankedObjects]:
    """Return the matches of a pycocotools evaluation by class, over boxes of all areas."""
    parameters = evaluation.params
    place_of = {image_id: place for place, image_id in enumerate(parameters.imgIds)}
    by_class: dict[int, list[Any]] = {category: [] for category in parameters.catIds}
    for row in evaluation.evalImgs:
        if row is not None and row["aRng"] == parameters.areaRng[0]:
            by_class[row["category_id"]].append(row)
    thresholds = len(parameters.iouThrs)
    classes = []
    for rows in by_class.values():
        known = np.zeros(len(place_of))
        scores: list[Array] = [np.zeros(0)]
        image: list[Array] = [np.zeros(0, np.int64)]
        right: list[Array] = [np.zeros((thresholds, 0), bool)]
        counts: list[Array] = [np.zeros((thresholds, 0), bool)]
        for row in rows:
            place = place_of[row["image_id"]]
            known[place] = np.sum(np.asarray(row["gtIgnore"]) == 0)
            number = len(row["dtScores"])
            scores.append(np.asarray(row["dtScores"], float))
            image.append(np.full(number, place))
            right.append(np.asarray(row["dtMatches"]).reshape(thresholds, number) > 0)
            counts.append(~np.asarray(row["dtIgnore"], bool).reshape(thresholds, number))
        order = np.argsort(-np.concatenate(scores), kind="mergesort")  # as pycocotools
        classes.append(
            RankedObjects(
                image=np.concatenate(image)[order],
                right=np.concatenate(right, axis=1)[:, order],
                counts=np.concatenate(counts, axis=1)[:, order],
                known=known,
            )
        )
    return classes


def drawn_precision(classes: Sequence[RankedObjects], draws: Array) -> Array:
    """Return the AP of draws of images, at each IoU.

    Args:
        classes: the ranked objects.
        draws: (draws, images), how often each image was drawn.

    Returns:
        (draws, IoUs), the mean over the classes that a draw has objects of; NaN where it has none.
    """
    precisions = np.full((len(classes), len(draws), len(classes[0].right)), np.nan)
    for label, objects in enumerate(classes):
        for draw, times in enumerate(draws):
            precisions[label, draw] = average_precision(objects, times)
    return mean_defined(precisions, axis=0)
