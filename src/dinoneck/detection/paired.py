"""Is one model's average precision clearly higher than another's? Intervals over images, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.data.boxes import BoxImages
from dinoneck.detection.coco_evaluation import IouType, coco_evaluation
from dinoneck.metrics import (
    RankedObjects,
    average_precision,
    draw_groups,
    interval,
    mean_defined,
)

Array = np.ndarray[Any, Any]
_FIRST_IOU = 0  # index of 0.50 in COCO's IoUs 0.50, 0.55 ... 0.95


def precision_intervals(
    dataset: BoxImages,
    first: list[dict[str, Any]],
    other: list[dict[str, Any]],
    iou_type: IouType,
) -> dict[str, list[float] | None]:
    """Return 95 % intervals of the first model's AP and AP50 minus those of the other one.

    Images are drawn with replacement, the same ones for both models, and each draw is scored anew;
    objects are matched within images, so that takes no new matching.

    Args:
        dataset: the images with their true objects.
        first: COCO results of its images, as :func:`dinoneck.detection.coco_results` returns them.
        other: the other model's.
        iou_type: whether the IoU is of boxes or of masks.

    Returns:
        ``AP`` and ``AP50``: the lower and the upper end, or None for fewer than five images.
    """
    draws = draw_groups(len(dataset.ids))  # each image is a group
    if draws is None:
        return {"AP": None, "AP50": None}
    first_classes = class_results(coco_evaluation(dataset, first, iou_type))
    other_classes = class_results(coco_evaluation(dataset, other, iou_type))
    differences = drawn_precision(first_classes, draws) - drawn_precision(other_classes, draws)
    return {
        "AP": interval(differences.mean(axis=1)),  # over the IoUs
        "AP50": interval(differences[:, _FIRST_IOU]),
    }


def class_results(evaluation: Any) -> list[RankedObjects]:
    """Return the matches of a pycocotools evaluation by class, over boxes of all areas."""
    parameters = evaluation.params
    index_of = {image_id: index for index, image_id in enumerate(parameters.imgIds)}
    all_areas = parameters.areaRng[0]
    matches_of_class: dict[int, list[Any]] = {category: [] for category in parameters.catIds}
    for matches in evaluation.evalImgs:
        if matches is not None and matches["aRng"] == all_areas:
            matches_of_class[matches["category_id"]].append(matches)
    ranked = []
    for image_matches in matches_of_class.values():
        ranked.append(_rank(image_matches, index_of, num_thresholds=len(parameters.iouThrs)))
    return ranked


def _rank(
    image_matches: Sequence[Any], index_of: Mapping[int, int], *, num_thresholds: int
) -> RankedObjects:
    """The objects of one class in all images, those with the highest scores first.

    Args:
        image_matches: pycocotools' matches in each image that has a known or a predicted object of
            the class.
        index_of: id of an image -> its index.
        num_thresholds: IoUs at which objects are matched.
    """
    num_known = np.zeros(len(index_of))
    # the empty ones: a class may have no object at all
    scores: list[Array] = [np.zeros(0)]
    images: list[Array] = [np.zeros(0, np.int64)]
    right: list[Array] = [np.zeros((num_thresholds, 0), bool)]
    counts: list[Array] = [np.zeros((num_thresholds, 0), bool)]
    for matches in image_matches:
        index = index_of[matches["image_id"]]
        num_known[index] = np.sum(np.asarray(matches["gtIgnore"]) == 0)
        num_predicted = len(matches["dtScores"])
        shape = (num_thresholds, num_predicted)
        scores.append(np.asarray(matches["dtScores"], float))
        images.append(np.full(num_predicted, index))
        right.append(np.asarray(matches["dtMatches"]).reshape(shape) > 0)
        counts.append(~np.asarray(matches["dtIgnore"], bool).reshape(shape))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # as pycocotools
    return RankedObjects(
        image=np.concatenate(images)[order],
        right=np.concatenate(right, axis=1)[:, order],
        counts=np.concatenate(counts, axis=1)[:, order],
        known=num_known,
    )


def drawn_precision(classes: Sequence[RankedObjects], draws: Array) -> Array:
    """Return the AP of draws of images, at each IoU.

    Args:
        classes: the ranked objects of each class.
        draws: (draws, images), how often each image was drawn.

    Returns:
        (draws, IoUs), the mean over the classes that a draw has objects of; NaN where it has none.
    """
    num_thresholds = len(classes[0].right)
    precisions = np.full((len(classes), len(draws), num_thresholds), np.nan)
    for label, objects in enumerate(classes):
        for draw, times in enumerate(draws):
            precisions[label, draw] = average_precision(objects, times)
    return mean_defined(precisions, axis=0)
