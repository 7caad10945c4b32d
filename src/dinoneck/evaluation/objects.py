"""Scores of boxes, of masks of instances, and of panoptic segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dinoneck.data.boxes import BoxImages
from dinoneck.data.cells import PathLike
from dinoneck.data.coco_entries import Crowd
from dinoneck.data.listed_images import ListedImages
from dinoneck.data.summary import summarise
from dinoneck.detection.coco_evaluation import IouType
from dinoneck.detection.evaluation import (
    BoxModel,
    HeadModel,
    PanopticTruth,
    coco_results,
    mask_results,
    predict_boxes,
    predict_instances,
    predict_segments,
    score_boxes,
    score_masks,
    score_segments,
)
from dinoneck.detection.paired import precision_intervals
from dinoneck.evaluation.models import Stopwatch, cost_of, count_trained_on
from dinoneck.metrics import FEWEST_GROUPS
from dinoneck.text import counted
from dinoneck.version import versions


def evaluate_objects(
    models: Mapping[str, HeadModel | BoxModel],
    truth: PathLike | PanopticTruth,
    images: PathLike | None,
    *,
    crowd: Crowd,
) -> dict[str, Any]:
    """Score models on the objects of a COCO file.

    Args:
        models: name -> model, all detectors or all heads; the first is compared with the others.
        truth: a COCO file; or the folder and the COCO file of panoptic segments.
        images: their folder; None = that of the COCO file.
        crowd: whether entries with ``iscrowd`` are ignored, or are objects.

    Raises:
        DataError: if a model predicts no such objects, a file cannot be used, or no image has an
            object.
        ImportError: if pycocotools is missing.
    """
    if isinstance(truth, list | tuple):
        return _evaluate_segments(models, truth, images, crowd=crowd)
    return _evaluate_precision(models, truth, images, crowd=crowd)


def _evaluate_segments(
    models: Mapping[str, HeadModel | BoxModel],
    truth: PanopticTruth,
    images: PathLike | None,
    *,
    crowd: Crowd,
) -> dict[str, Any]:
    """The report of panoptic quality; of a detector, ``predict_segments`` raises an error."""
    scores = {}
    cost = {}
    datasets = []
    for name, model in models.items():
        watch = Stopwatch(model)
        dataset, segments = predict_segments(model, truth, images, crowd=crowd, begin=watch.begin)
        seconds = watch.seconds()
        scores[name] = score_segments(dataset, segments)
        datasets.append(dataset)
        cost[name] = cost_of(model, seconds / len(dataset))
    return _report("segments", scores, cost=cost, models=models, dataset=datasets[0])


def _evaluate_precision(
    models: Mapping[str, HeadModel | BoxModel],
    truth: PathLike,
    images: PathLike | None,
    *,
    crowd: Crowd,
) -> dict[str, Any]:
    """The report of average precision: of masks where a model predicts them, else of boxes."""
    scored_models = {}
    cost = {}
    for name, model in models.items():
        if isinstance(model, BoxModel) and not model.has_masks:
            scored = _score_boxes(model, truth, images, crowd=crowd)
        else:
            scored = _score_masks(model, truth, images, crowd=crowd)
        scored_models[name] = scored
        cost[name] = cost_of(model, scored.seconds / len(scored.dataset))
    first_name, *other_names = scored_models
    first = scored_models[first_name]
    scores = {name: scored.scores for name, scored in scored_models.items()}
    report = _report(first.key, scores, cost=cost, models=models, dataset=first.dataset)
    verdicts = []
    for name in other_names:
        comparison = _compare(first_name, first, other_name=name, other=scored_models[name])
        verdicts.append(comparison.verdict)
        if comparison.intervals is not None:
            scores[name]["head_minus"] = comparison.intervals
        if comparison.no_interval:
            scores[name]["no_interval"] = comparison.no_interval
    if verdicts:
        report["verdict"] = "\n".join(verdicts)
    return report


def _report(
    key: Literal["boxes", "masks", "segments"],
    scores: Mapping[str, Mapping[str, Any]],
    *,
    cost: Mapping[str, Mapping[str, float]],
    models: Mapping[str, HeadModel | BoxModel],
    dataset: ListedImages,
) -> dict[str, Any]:
    """What a report holds of objects of any kind.

    Args:
        key: of the scores.
        scores: name of a model -> its scores.
        cost: name of a model -> what it costs.
        models: name -> model.
        dataset: the images and their true objects.
    """
    data = summarise(dataset).to_dict()
    report: dict[str, Any] = {"data": data, key: scores, "cost": cost, "versions": versions()}
    trained_on = count_trained_on(models, dataset.paths)
    if trained_on:
        report["trained_on"] = trained_on
    return report


@dataclass(frozen=True)
class _ScoredModel:
    """The boxes or masks that a model predicts, and their scores.

    Attributes:
        key: of the scores in the report.
        iou_type: what the IoU of pycocotools is of.
        dataset: the images and their true objects, with the classes of the model.
        scores: of :func:`dinoneck.detection.score_boxes`, or of masks.
        results: what is predicted, as COCO results.
        seconds: that the predictions of all images took.
    """

    key: Literal["boxes", "masks"]
    iou_type: IouType
    dataset: BoxImages
    scores: dict[str, Any]
    results: list[dict[str, Any]]
    seconds: float


def _score_boxes(
    detector: BoxModel, truth: PathLike, images: PathLike | None, *, crowd: Crowd
) -> _ScoredModel:
    watch = Stopwatch(detector)
    dataset, boxes = predict_boxes(detector, truth, images, crowd=crowd, begin=watch.begin)
    seconds = watch.seconds()
    return _ScoredModel(
        key="boxes",
        iou_type="bbox",
        dataset=dataset,
        scores=score_boxes(dataset, boxes),
        results=coco_results(boxes, dataset),
        seconds=seconds,
    )


def _score_masks(
    model: HeadModel | BoxModel, truth: PathLike, images: PathLike | None, *, crowd: Crowd
) -> _ScoredModel:
    watch = Stopwatch(model)
    dataset, objects = predict_instances(model, truth, images, crowd=crowd, begin=watch.begin)
    seconds = watch.seconds()
    return _ScoredModel(
        key="masks",
        iou_type="segm",
        dataset=dataset,
        scores=score_masks(dataset, objects),
        results=mask_results(objects, dataset),
        seconds=seconds,
    )


@dataclass(frozen=True)
class _Comparison:
    """The first model next to another one.

    Attributes:
        intervals: of AP and AP50 of the first minus those of the other; None if they predict
            other classes.
        verdict: in words.
        no_interval: why there is no interval; empty if there is one.
    """

    intervals: dict[str, list[float] | None] | None
    verdict: str
    no_interval: str = ""


def _compare(
    first_name: str, first: _ScoredModel, *, other_name: str, other: _ScoredModel
) -> _Comparison:
    """Compare the average precision of two models."""
    if {*other.dataset.classes} != {*first.dataset.classes}:
        verdict = (
            f"{first_name} and {other_name} predict the classes {first.dataset.classes} and "
            f"{other.dataset.classes}; their AP is not compared"
        )
        return _Comparison(
            intervals=None, verdict=verdict, no_interval="the models predict other classes"
        )
    intervals = precision_intervals(
        first.dataset,
        first=first.results,
        other=other.results,
        iou_type=first.iou_type,
    )
    verdict = _verdict(
        f"AP of {first_name} minus AP of {other_name}",
        interval=intervals["AP"],
        num_images=len(first.dataset),
    )
    no_interval = ""
    if intervals["AP"] is None:
        images = counted(len(first.dataset), "image")
        no_interval = f"{images}, and an interval needs {FEWEST_GROUPS}"
    return _Comparison(intervals=intervals, verdict=verdict, no_interval=no_interval)


def _verdict(difference: str, *, interval: list[float] | None, num_images: int) -> str:
    """Whether a difference is clear.

    Args:
        difference: in words.
        interval: its lower and upper end; None = there are too few images.
        num_images: how many there are.
    """
    if interval is None:
        return f"{difference}: {num_images} images are too few for an interval"
    low, high = interval
    if low <= 0 <= high:
        clear = "not clear: the interval includes 0"
    else:
        clear = "clear: the interval excludes 0"
    return f"{difference} is {low:+.3f} ... {high:+.3f} over {num_images} images, {clear}"
