"""Scores of boxes, of masks of instances, and of panoptic segments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dinoneck.data.listed_images import Crowd
from dinoneck.detection.detector import Detector
from dinoneck.detection.evaluation import (
    IouType,
    coco_results,
    mask_results,
    predict_boxes,
    predict_masks,
    score_boxes,
    score_masks,
    score_segments,
)
from dinoneck.detection.paired import precision_intervals
from dinoneck.evaluation.models import cost_of, count_trained_on
from dinoneck.inference.predictor import Predictor
from dinoneck.version import versions


def evaluate_objects(
    models: Mapping[str, Predictor | Detector], truth: Any, images: Any, *, crowd: Crowd
) -> dict[str, Any]:
    """Score models on the objects of a COCO file.

    Args:
        models: name -> model, all detectors or all heads; the first is compared with the others.
        truth: a COCO file; or the folder and the COCO file of panoptic segments.
        images: their folder; None = that of the COCO file.
        crowd: whether entries with ``iscrowd`` count for nothing, or are objects.

    Raises:
        DataError: if a model predicts no such objects, a file cannot be used, or no image has an
            object.
        ImportError: if pycocotools is missing.
    """
    objects_of_models = {}
    cost = {}
    for name, model in models.items():
        begin = time.perf_counter()
        if isinstance(truth, list | tuple):
            objects = _score_segments(model, truth, images, crowd)
        elif isinstance(model, Detector):
            objects = _score_boxes(model, truth, images, crowd)
        else:
            objects = _score_masks(model, truth, images, crowd)
        seconds = time.perf_counter() - begin
        objects_of_models[name] = objects
        cost[name] = cost_of(model, seconds / objects.scores["images"])
    scores = {name: objects.scores for name, objects in objects_of_models.items()}
    first = next(iter(objects_of_models.values()))
    report = {first.key: scores, "cost": cost, "versions": versions()}
    report |= count_trained_on(models, first.dataset.paths)
    if len(models) > 1 and first.iou_type is not None:
        comparisons = _compare_with_first(objects_of_models, first.iou_type)
        report[first.key] = _with_intervals(scores, comparisons)
        report["verdict"] = "\n".join(comparison.verdict for comparison in comparisons.values())
    return report


@dataclass(frozen=True)
class _ScoredObjects:
    """The objects that a model predicts, and their scores.

    Attributes:
        key: of the scores in the report.
        dataset: the images and their true objects.
        scores: of :mod:`dinoneck.detection.evaluation`.
        results: COCO results; none of segments.
        iou_type: what the IoU of pycocotools is of; None of segments, whose quality has no
            intervals.
    """

    key: Literal["boxes", "masks", "segments"]
    dataset: Any
    scores: dict[str, Any]
    results: list[dict[str, Any]]
    iou_type: IouType | None


def _score_boxes(detector: Detector, truth: Any, images: Any, crowd: Crowd) -> _ScoredObjects:
    dataset, boxes = predict_boxes(detector, truth, images, crowd=crowd)
    return _ScoredObjects(
        key="boxes",
        dataset=dataset,
        scores=score_boxes(dataset, boxes),
        results=coco_results(boxes, dataset),
        iou_type="bbox",
    )


def _score_masks(predictor: Predictor, truth: Any, images: Any, crowd: Crowd) -> _ScoredObjects:
    dataset, objects = predict_masks(predictor, truth, images, crowd=crowd)
    return _ScoredObjects(
        key="masks",
        dataset=dataset,
        scores=score_masks(dataset, objects),
        results=mask_results(objects, dataset),
        iou_type="segm",
    )


def _score_segments(model: Any, truth: Any, images: Any, crowd: Crowd) -> _ScoredObjects:
    """The scores of a predictor; of a detector, ``predict_masks`` raises an error."""
    dataset, segments = predict_masks(model, truth, images, crowd=crowd)
    return _ScoredObjects(
        key="segments",
        dataset=dataset,
        scores=score_segments(dataset, segments),
        results=[],
        iou_type=None,
    )


@dataclass(frozen=True)
class _Comparison:
    """The first model next to another one.

    Attributes:
        intervals: of AP and AP50 of the first minus those of the other; None if they predict
            other classes.
        verdict: in words.
    """

    intervals: dict[str, list[float] | None] | None
    verdict: str


def _compare_with_first(
    objects_of_models: Mapping[str, _ScoredObjects], iou_type: IouType
) -> dict[str, _Comparison]:
    """Compare the first model with each other one, by name of the other."""
    first_name, *other_names = objects_of_models
    first = objects_of_models[first_name]
    comparisons = {}
    for name in other_names:
        other = objects_of_models[name]
        if {*other.dataset.classes} != {*first.dataset.classes}:
            verdict = (
                f"{first_name} and {name} predict the classes {first.dataset.classes} and "
                f"{other.dataset.classes}; their AP is not compared"
            )
            comparisons[name] = _Comparison(None, verdict)
            continue
        intervals = precision_intervals(first.dataset, first.results, other.results, iou_type)
        difference = f"AP of {first_name} minus AP of {name}"
        verdict = _verdict(difference, intervals["AP"], first.scores["images"])
        comparisons[name] = _Comparison(intervals, verdict)
    return comparisons


def _verdict(difference: str, ends: list[float] | None, images: int) -> str:
    """Whether a difference is clear.

    Args:
        difference: in words.
        ends: of its interval; None where there is none.
        images: how many there are.
    """
    if ends is None:
        return f"{difference}: {images} images are too few for an interval"
    if ends[0] <= 0 <= ends[1]:
        clear = "not clear: the interval includes 0"
    else:
        clear = "clear: the interval excludes 0"
    return f"{difference} is {ends[0]:+.3f} ... {ends[1]:+.3f} over {images} images, {clear}"


def _with_intervals(
    scores: Mapping[str, dict[str, Any]], comparisons: Mapping[str, _Comparison]
) -> dict[str, dict[str, Any]]:
    """The scores of all models, with ``head_minus`` where a model is compared with the first one."""
    with_intervals = {}
    for name, model_scores in scores.items():
        with_intervals[name] = model_scores
        if name in comparisons and comparisons[name].intervals is not None:
            with_intervals[name] = model_scores | {"head_minus": comparisons[name].intervals}
    return with_intervals
