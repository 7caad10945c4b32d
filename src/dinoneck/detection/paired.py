"""Is one model's average precision clearly higher than another's? Intervals over images, paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.detection.evaluation import coco_evaluation
from dinoneck.training.scores import FEWEST_GROUPS, RESAMPLES

Array = np.ndarray[Any, Any]
RECALLS = np.linspace(0.0, 1.0, 101)  # of COCO: precision is read at each
AP50_PLACE = 0  # of the IoUs 0.50, 0.55 ... 0.95
INTERVAL = (0.025, 0.975)  # quantiles: 95 % lie between them


@dataclass(frozen=True)
class ClassResults:
    """The ranked objects of one class.

    Attributes:
        image: (P,), the place of each object's image; the surest first.
        right: bool (T, P), whether it is right at each IoU.
        counts: bool (T, P), whether it counts at all: crowd regions are ignored.
        known: (images,), number of true objects per image.
    """

    image: Array
    right: Array
    counts: Array
    known: Array


def precision_intervals(
    dataset: Any,
    first: list[dict[str, Any]],
    other: list[dict[str, Any]],
    kind: str,
) -> dict[str, list[float] | None]:
    """Return 95 % intervals of the first model's AP and AP50 minus those of the other one.

    Images are drawn with replacement, the same ones for both models, and each draw is scored anew;
    objects are matched within images, so that takes no new matching.

    Args:
        dataset: a :class:`dinoneck.data.BoxImages`.
        first: COCO results of its images, as :func:`dinoneck.detection.coco_results` returns them.
        other: the other model's.
        kind: ``bbox`` or ``segm``.

    Returns:
        ``AP`` and ``AP50``: the ends, or None for fewer than five images.
    """
    num_images = len(dataset.ids)
    if num_images < FEWEST_GROUPS:
        return {"AP": None, "AP50": None}
    probabilities = np.full(num_images, 1 / num_images)
    draws = np.random.default_rng(0).multinomial(num_images, probabilities, RESAMPLES)
    drawn = []
    for results in (first, other):
        ranked = class_results(coco_evaluation(dataset, results, kind))
        drawn.append(drawn_precision(ranked, draws))  # (draws, IoUs)
    differences = drawn[0] - drawn[1]
    return {
        "AP": _ends(differences.mean(axis=1)),
        "AP50": _ends(differences[:, AP50_PLACE]),
    }


def _ends(differences: Array) -> list[float] | None:
    """The ends of the 95 % interval, over the draws in which both models have a score."""
    scored = differences[~np.isnan(differences)]
    if not scored.size:
        return None
    low, high = np.quantile(scored, INTERVAL)
    return [float(low), float(high)]


def class_results(evaluation: Any) -> list[ClassResults]:
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
            ClassResults(
                image=np.concatenate(image)[order],
                right=np.concatenate(right, axis=1)[:, order],
                counts=np.concatenate(counts, axis=1)[:, order],
                known=known,
            )
        )
    return classes


def drawn_precision(classes: Sequence[ClassResults], draws: Array) -> Array:
    """Return the AP of draws of images, at each IoU.

    Args:
        classes: the ranked objects.
        draws: (draws, images), how often each image was drawn.

    Returns:
        (draws, IoUs), the mean over the classes that a draw has objects of; NaN where it has none.
    """
    precisions = np.full((len(classes), len(draws), len(classes[0].right)), np.nan)
    for number, results in enumerate(classes):
        for draw, weights in enumerate(draws):
            num_true = float(weights @ results.known)
            if num_true:
                precisions[number, draw] = _precision(results, weights[results.image], num_true)
    is_scored = ~np.isnan(precisions)
    total = np.where(is_scored, precisions, 0.0).sum(axis=0)
    num_classes = is_scored.sum(axis=0)
    return np.where(num_classes > 0, total / np.maximum(num_classes, 1), np.nan)


def _precision(results: ClassResults, weights: Array, num_true: float) -> Array:
    """Return COCO's AP (T,) of a class, with objects that count as often as their images.

    Args:
        results: the ranked objects (P,) of the class.
        weights: (P,), how often the image of each object was drawn.
        num_true: true objects of the images that were drawn.
    """
    right = (results.right & results.counts) * weights  # (T, P)
    wrong = (~results.right & results.counts) * weights
    hits = right.cumsum(axis=1)
    recall = hits / num_true
    precision = hits / np.maximum(hits + wrong.cumsum(axis=1), 1)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    average = np.zeros(len(recall))
    for threshold in range(len(recall)):
        first_object = np.searchsorted(recall[threshold], RECALLS, side="left")
        # a recall that is never reached has a precision of 0
        is_reached = first_object < recall.shape[1]
        reached = best_after[threshold][first_object[is_reached]]
        average[threshold] = reached.sum() / len(RECALLS)
    return average
