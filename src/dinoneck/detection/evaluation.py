"""Average precision by COCO's rules and panoptic quality, from predictions in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dinoneck.checks import check_minimum
from dinoneck.data.boxes import BoxImages
from dinoneck.data.cells import PathLike
from dinoneck.data.coco_entries import Crowd
from dinoneck.data.listed_images import (
    UNKNOWN,
    ListedImages,
    ObjectMap,
    object_map_of,
    scored_part,
)
from dinoneck.data.panoptic import PanopticImages
from dinoneck.detection.coco_evaluation import IouType, PrecisionCurves, precision_curves
from dinoneck.detection.detector import Detector
from dinoneck.errors import DataError
from dinoneck.extras import check_installed, check_scores_of_boxes
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.results import coco_objects, predict_many
from dinoneck.metrics import (
    KnownRegions,
    as_number,
    best_f1,
    best_threshold,
    class_panoptic_quality,
    class_recognition_quality,
    class_segmentation_quality,
    mean_absolute_error,
    mean_defined,
    segment_terms,
    value_terms,
)
from dinoneck.runtime.exported import ExportedDetector, ExportedPredictor
from dinoneck.task_facts import TaskFacts
from dinoneck.training.token_sources import in_batches

Prediction = Mapping[str, Any]
# image id -> as dinoneck.inference.coco_objects returns them
Objects = Mapping[Any, Sequence[Mapping[str, Any]]]
Array = np.ndarray[Any, Any]
Begin = Callable[[Any], None]
"""What is called with the first image before any is predicted, such as to take the time."""
BoxModel = Detector | ExportedDetector
"""A detector, also in an exported file."""
HeadModel = Predictor | ExportedPredictor
"""Heads with their backbone, also in an exported file."""
PanopticTruth = list[PathLike] | tuple[PathLike, ...]
"""The folder and the COCO file of panoptic segments."""
NAME_SEGMENTS = "name the folder of their PNG files and their COCO file (--truth FOLDER FILE)"
"""The remedy in messages about a truth that lacks one of both."""

_BOX_KEYS = ("boxes", "scores", "labels")  # of a prediction


# boxes


def evaluate_boxes(
    detector: BoxModel,
    coco_json: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 8,
    crowd: Crowd = "ignore",
) -> dict[str, Any]:
    """Predict the images of a COCO file and compare the boxes with those of the file.

    Args:
        detector: a Detector, or an exported file of one that is open; its classes and those of the
            COCO file are matched by their names; of classes that this does not list nothing counts.
        coco_json: the boxes: a COCO file, a ``data.yaml`` of YOLO or the folder ``Annotations`` of
            VOC, of which the part val is scored, else test, else all.
        images: the folder of the images; None = the file's, or ``images`` in it.
        batch_size: images in a forward pass; an exported file takes one at a time.
        crowd: whether entries with ``iscrowd`` are ignored, or are objects, as of
            :class:`dinoneck.data.BoxImages`.

    Returns:
        As :func:`score_boxes`.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
        DataError: if the file or an image cannot be used, or no image has a box.
        ImportError: if faster-coco-eval and pycocotools are missing.
    """
    dataset, predictions = predict_boxes(
        detector, coco_json, images, batch_size=batch_size, crowd=crowd
    )
    return score_boxes(dataset, predictions)


def predict_boxes(
    detector: BoxModel,
    coco_json: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    *,
    batch_size: int = 8,
    crowd: Crowd = "ignore",
    begin: Begin | None = None,
) -> tuple[BoxImages, dict[Any, Prediction]]:
    """Return the images of a file, and image id -> the boxes of all scores.

    Args:
        detector: as of :func:`evaluate_boxes`.
        coco_json: as of :func:`evaluate_boxes`.
        images: as of :func:`evaluate_boxes`.
        batch_size: as of :func:`evaluate_boxes`.
        crowd: as of :func:`evaluate_boxes`.
        begin: is called with the first image before any is predicted.

    Raises:
        ConfigError, DataError, ImportError: as :func:`evaluate_boxes`.
    """
    check_minimum(1, batch_size=batch_size)
    check_scores_of_boxes()  # before the first image is predicted
    bits = detector.preprocess.bits
    dataset = BoxImages(
        coco_json,
        images,
        part=scored_part(coco_json),
        classes=detector.classes,
        crowd=crowd,
        bits=bits,
        allow_unlisted=True,
    )
    detector.expect_images(len(dataset))
    if begin is not None:
        begin(_as_taken(detector, dataset.original(0)[0]))
    options = {"batch_size": batch_size}
    if isinstance(detector, ExportedDetector):
        options = {}  # it takes one image at a time
    predictions: dict[Any, Prediction] = {}
    for rows in in_batches(range(len(dataset)), batch_size):
        batch = [_as_taken(detector, dataset.original(row)[0]) for row in rows]
        batch_predictions = detector.predict(batch, min_score=0.0, **options)
        for row, prediction in zip(rows, batch_predictions, strict=True):
            predictions[dataset.ids[row]] = prediction
    return dataset, predictions


def _as_taken(detector: BoxModel, image: Tensor) -> Any:
    """An image (3, H, W) as a detector takes it: an exported file takes no tensors."""
    if isinstance(detector, ExportedDetector):
        return image.permute(1, 2, 0).numpy()
    return image


def score_boxes(dataset: BoxImages, predictions: Mapping[Any, Prediction]) -> dict[str, Any]:
    """Compare the boxes of a dataset with the predictions of any detector.

    An image without an entry counts as one without detections. At most 100 boxes count per image
    and class, or as many as the image with the most true ones of a class has: those with the highest
    scores.

    Args:
        dataset: the images with their true boxes; boxes that it skipped do not count, and crowd
            regions are ignored.
        predictions: image id -> ``boxes`` (n, 4) XYXY in pixels of the image itself, ``scores``
            (n,) and ``labels`` (n,) from 0.

    Returns:
        ``AP`` (mean over IoU 0.50, 0.55 ... 0.95), ``AP50``, ``AP75``, ``AR100``, and
        ``per_class``: name -> ``AP``, ``AP50``, None for a class without boxes; ``images``, their
        number; ``F1``, the best over all scores of the boxes of all classes at an IoU of 0.50, and
        ``min_score``, the score that it begins at (None where no box is found); ``thresholds``: name
        -> the score from which on the boxes of the class have the best F1, None for a class with
        fewer than five true boxes, or without a right one.

    Raises:
        DataError: if an id is unknown, or a prediction has another form, or no image has a box.
        ImportError: if faster-coco-eval and pycocotools are missing.
    """
    return _coco_scores(dataset, coco_results(predictions, dataset), iou_type="bbox")


def coco_results(predictions: Mapping[Any, Prediction], dataset: BoxImages) -> list[dict[str, Any]]:
    """Return predictions as COCO results for a JSON file: a dict per box, with the category ids of the dataset.

    Boxes of classes that its file does not list are left out.

    Raises:
        DataError: as :func:`score_boxes`.
    """
    _check_images(dataset, predictions)
    entries = []
    for image_id, prediction in predictions.items():
        name = f"the prediction for image {image_id}"
        boxes = _ScoredBoxes.checked(prediction, name)
        labels = boxes.labels.tolist()
        _check_labels(labels, name, dataset)
        corners = boxes.corners.tolist()
        scores = boxes.scores.tolist()
        for (left, top, right, bottom), score, label in zip(corners, scores, labels, strict=True):
            if label in dataset.unlisted:
                continue
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                }
            )
    return entries


def _check_labels(labels: Sequence[int], name: str, dataset: BoxImages) -> None:
    """Raise a DataError for a label that is none of a dataset's classes."""
    num_classes = len(dataset.classes)
    for label in labels:
        if not 0 <= label < num_classes:
            raise DataError(
                f"{name} has the label {label}; expected 0 ... {num_classes - 1}, 0-based, as in "
                f"the dataset's classes {dataset.classes}"
            )


@dataclass(frozen=True)
class _ScoredBoxes:
    """The boxes of an image as tensors on the CPU.

    Attributes:
        corners: float64 (n, 4), XYXY in pixels.
        scores: float64 (n,).
        labels: int64 (n,).
    """

    corners: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def checked(cls, prediction: Prediction, name: str) -> Self:
        """Read a prediction.

        Args:
            prediction: as of :func:`score_boxes`.
            name: what messages call it.

        Raises:
            DataError: if it has another form, or numbers that are no boxes.
        """
        if not isinstance(prediction, Mapping) or not set(_BOX_KEYS) <= set(prediction):
            raise DataError(
                f"{name} is {type(prediction).__name__}; expected a dict with {', '.join(_BOX_KEYS)}"
            )
        corners = torch.as_tensor(prediction["boxes"]).detach().cpu()
        scores = torch.as_tensor(prediction["scores"]).detach().cpu()
        labels = torch.as_tensor(prediction["labels"]).detach().cpu()
        shapes = [tuple(corners.shape), tuple(scores.shape), tuple(labels.shape)]
        if shapes != [(len(scores), 4), (len(scores),), (len(scores),)]:
            raise DataError(
                f"{name} has boxes, scores and labels of shapes {shapes}; expected (n, 4), (n,) "
                "and (n,)"
            )
        if labels.is_floating_point() and labels.numel():
            raise DataError(f"{name} has {labels.dtype} labels; expected whole numbers, 0-based")
        if not (corners.isfinite().all() and scores.isfinite().all()):
            raise DataError(
                f"{name} has a box or a score that is not finite; check the training loss"
            )
        if (corners[:, 2:] < corners[:, :2]).any():
            raise DataError(
                f"{name} has a box whose right or bottom lies before its left or top; expected "
                "XYXY in pixels"
            )
        return cls(corners=corners.double(), scores=scores.double(), labels=labels.long())


# masks of instances, and panoptic segments


def evaluate_masks(
    predictor: HeadModel,
    coco_json: str | os.PathLike[str] | PanopticTruth,
    images: str | os.PathLike[str] | None = None,
    *,
    crowd: Crowd = "ignore",
) -> dict[str, Any]:
    """Predict the images of a COCO file and compare the objects with the masks of the file.

    Args:
        predictor: of a head whose classes are matched with those of the file by their names, as
            by :func:`evaluate_boxes`; of instances objects of all scores count.
        coco_json: the COCO file of masks; or the folder and the COCO file of panoptic segments.
        images: the folder of the images; None = the file's, or ``images`` in it.
        crowd: as of :func:`evaluate_boxes`.

    Returns:
        As :func:`score_masks`, or of panoptic segments :func:`score_segments`.

    Raises:
        DataError: if the head predicts no such objects, a file cannot be used, or no image has an
            object.
        ImportError: if pycocotools is missing.
    """
    if isinstance(coco_json, str | os.PathLike):
        instance_images, objects = predict_instances(predictor, coco_json, images, crowd=crowd)
        return score_masks(instance_images, objects)
    panoptic_images, segments = predict_segments(predictor, coco_json, images, crowd=crowd)
    return score_segments(panoptic_images, segments)


def predict_instances(
    model: HeadModel | BoxModel,
    coco_json: PathLike,
    images: PathLike | None,
    *,
    crowd: Crowd = "ignore",
    begin: Begin | None = None,
) -> tuple[BoxImages, Objects]:
    """Return the images of a COCO file of masks, and the instances predicted in them, of all scores.

    Raises:
        DataError, ImportError: as :func:`evaluate_masks`; of a detector that predicts boxes alone.
    """
    if isinstance(model, BoxModel):
        if not model.has_masks:
            raise _no_task_of_kind("instances", (), coco_json)
        return _predict_masks(model, coco_json, images, crowd=crowd, begin=begin)
    task = _task_of_kind("instances", model, coco_json)
    check_installed("pycocotools", "masks")
    dataset = BoxImages(
        coco_json,
        images,
        part=scored_part(coco_json),
        classes=task.labels,
        crowd=crowd,
        masks=True,
        allow_unlisted=True,
    )
    # average precision ranks objects of all scores
    return dataset, _predict_objects(model, task, dataset, min_score=0.0, begin=begin)


def _predict_masks(
    detector: BoxModel,
    coco_json: PathLike,
    images: PathLike | None,
    *,
    crowd: Crowd,
    begin: Begin | None,
) -> tuple[BoxImages, Objects]:
    """The images of a COCO file of masks, and the masks of all scores that a detector predicts in them."""
    check_installed("pycocotools", "masks")
    dataset = BoxImages(
        coco_json,
        images,
        part=scored_part(coco_json),
        classes=detector.classes,
        crowd=crowd,
        bits=detector.preprocess.bits,
        masks=True,
        allow_unlisted=True,
    )
    detector.expect_images(len(dataset))
    if begin is not None:
        begin(dataset.paths[0])
    objects = {}
    for image_id, path in zip(dataset.ids, dataset.paths, strict=True):
        [prediction] = detector.predict(path, min_score=0.0)
        objects[image_id] = coco_objects(prediction)
    return dataset, objects


def predict_segments(
    model: HeadModel | BoxModel,
    truth: PanopticTruth,
    images: PathLike | None,
    *,
    crowd: Crowd = "ignore",
    begin: Begin | None = None,
) -> tuple[PanopticImages, Objects]:
    """Return the images of panoptic segments, and the segments predicted in them.

    Raises:
        DataError, ImportError: as :func:`evaluate_masks`; of a detector, which predicts none.
    """
    if isinstance(model, BoxModel):
        raise _no_task_of_kind("panoptic", (), truth)
    task = _task_of_kind("panoptic", model, truth)
    check_installed("pycocotools", "masks")
    dataset = _open_segments(truth, images, classes=task.labels, crowd=crowd, allow_unlisted=True)
    return dataset, _predict_objects(model, task, dataset, min_score=None, begin=begin)


def _predict_objects(
    predictor: HeadModel,
    task: TaskFacts,
    dataset: ListedImages,
    *,
    min_score: float | None,
    begin: Begin | None,
) -> Objects:
    """The objects that a task predicts in the images of a dataset; min_score None = the task's."""
    predictor.expect_images(len(dataset.paths))
    if begin is not None:
        begin(dataset.paths[0])
    predict = partial(predictor, min_score=min_score)
    rows = predict_many(predict, list(dataset.paths), at_once=predictor.batch_size)
    objects = {}
    for i, row in rows.items():
        objects[dataset.ids[i]] = coco_objects(row[task.name])
    return objects


def _task_of_kind(kind: str, predictor: HeadModel, truth: PathLike | PanopticTruth) -> TaskFacts:
    """The task of a predictor that predicts objects.

    Raises:
        DataError: if there is none, or if its heads have keys: none can be told to be that of the
            truth.
    """
    if isinstance(predictor.tasks, Mapping):
        raise _no_task_of_kind(kind, (), truth)
    tasks: Sequence[TaskFacts] = predictor.tasks
    for task in tasks:
        if task.kind == kind:
            return task
    raise _no_task_of_kind(kind, tasks, truth)


def _no_task_of_kind(
    kind: str, tasks: Sequence[TaskFacts], truth: PathLike | PanopticTruth
) -> DataError:
    """The error for a model that predicts other tasks, or none: boxes, or tasks by keys."""
    names = ", ".join(task.name for task in tasks) or "boxes, or tasks of several keys,"
    if isinstance(truth, list | tuple):
        paths = " and ".join(str(path) for path in truth)
        return DataError(
            f"{paths} hold panoptic segments, and {names} are predicted; give a head of kind {kind}"
        )
    segments = [task.name for task in tasks if task.kind == "panoptic"]
    if segments:
        return DataError(
            f"the truth is the file {truth} alone, and {', '.join(segments)} are panoptic segments; "
            f"{NAME_SEGMENTS}"
        )
    return DataError(
        f"{truth} holds objects, and {names} are predicted; give a head of kind {kind}"
    )


def open_objects(
    truth: PathLike | PanopticTruth,
    images: PathLike | None = None,
    *,
    classes: Sequence[str] | None = None,
    crowd: Crowd = "ignore",
    allow_unlisted: bool = False,
) -> BoxImages | PanopticImages:
    """Return images and their true objects: masks of a COCO file, or panoptic segments.

    Args:
        truth: what :class:`dinoneck.data.BoxImages` reads, with masks; or the folder and the COCO
            file of panoptic segments.
        images: the folder of the images; None = the file's, or ``images`` in it.
        classes: their names in the order of the labels; None = as in the file.
        crowd: as of :class:`dinoneck.data.BoxImages`.
        allow_unlisted: whether the file may lack some of the classes.

    Raises:
        DataError: if the truth is of another form, or a file cannot be used.
    """
    if isinstance(truth, str | os.PathLike):
        return BoxImages(
            truth,
            images,
            classes=classes,
            crowd=crowd,
            masks=True,
            allow_unlisted=allow_unlisted,
        )
    return _open_segments(
        truth,
        images,
        classes=classes,
        crowd=crowd,
        allow_unlisted=allow_unlisted,
    )


def _open_segments(
    truth: PanopticTruth,
    images: PathLike | None,
    *,
    classes: Sequence[str] | None,
    crowd: Crowd,
    allow_unlisted: bool,
) -> PanopticImages:
    if len(truth) != 2:
        raise DataError(
            f"the truth is {truth}; expected a file, or the folder and the file of panoptic "
            "segments"
        )
    folder, file = truth
    return PanopticImages(
        file,
        folder,
        images,
        classes=classes,
        crowd=crowd,
        allow_unlisted=allow_unlisted,
    )


def score_masks(dataset: BoxImages, objects: Objects) -> dict[str, Any]:
    """Compare the masks of a dataset with those that were predicted, by COCO's rules.

    Args:
        dataset: the images with their true masks; what lies in crowd regions is ignored.
        objects: image id -> the objects of the image, as :func:`dinoneck.inference.coco_objects`
            returns them.

    Returns:
        As :func:`score_boxes`, of masks; and ``count_error``, the mean absolute difference between
        the numbers of known objects and of predicted ones with ``min_score`` or more.

    Raises:
        DataError: if an id is unknown, or no image has an object.
        ImportError: if pycocotools is missing.
    """
    scores = _coco_scores(dataset, mask_results(objects, dataset), iou_type="segm")
    listed = _of_listed_classes(objects, dataset)
    min_score = scores["min_score"] or 0.0
    scores["count_error"] = count_error(dataset, listed, min_score=min_score)
    return scores


def mask_results(objects: Objects, dataset: BoxImages) -> list[dict[str, Any]]:
    """Return objects as COCO results: a dict per mask, with the category ids of the dataset.

    Objects of classes that its file does not list are left out.

    Raises:
        DataError: if an id is unknown.
    """
    _check_images(dataset, objects)
    entries = []
    for image_id, image_objects in _of_listed_classes(objects, dataset).items():
        for entry in image_objects:
            category = dataset.category_ids[entry["category_id"]]
            entries.append({**entry, "image_id": image_id, "category_id": category})
    return entries


def score_segments(dataset: PanopticImages, objects: Objects) -> dict[str, Any]:
    """Compare the segments of a dataset with those that were predicted, by panoptic quality.

    A predicted segment and a known one of its class are a pair where their IoU is above 0.5;
    unknown pixels are ignored. A segment without a pair counts as wrong, unless more than half of
    it is unknown or a crowd region of its class.

    Args:
        dataset: the images with their true segments.
        objects: image id -> the segments of the image, as :func:`dinoneck.inference.coco_objects`
            returns them.

    Returns:
        ``PQ``, ``SQ`` (mean IoU of the pairs) and ``RQ`` (F1), means over the classes that there
        are, ``PQ_things`` and ``PQ_stuff``; ``per_class``: name -> ``PQ``, ``SQ``, ``RQ``, None for
        a class that no image has and none was predicted of; ``images``, their number; and
        ``count_error``, the mean absolute difference between the numbers of known and predicted
        things.

    Raises:
        DataError: if an id is unknown.

    Reference: Panoptic Segmentation (arXiv 1801.00868), as in panopticapi. Deviation: all crowd
    regions of a class count, not one.
    """
    _check_images(dataset, objects)
    listed = _of_listed_classes(objects, dataset)
    num_classes = len(dataset.classes)
    terms = []
    for i, image_id in enumerate(dataset.ids):
        segments = listed.get(image_id, [])
        object_map = object_map_of(dataset, i)
        terms.append(_segment_terms(object_map, segments, num_classes=num_classes))
    sums: Array = np.sum(terms, axis=0)  # (3, K)
    panoptic_quality = class_panoptic_quality(sums)
    segmentation_quality = class_segmentation_quality(sums)
    recognition_quality = class_recognition_quality(sums)
    per_class = {}
    for label, name in enumerate(dataset.classes):
        per_class[name] = {
            "PQ": as_number(panoptic_quality[label]),
            "SQ": as_number(segmentation_quality[label]),
            "RQ": as_number(recognition_quality[label]),
        }
    is_stuff = np.isin(np.arange(num_classes), [*dataset.stuff])
    return {
        "PQ": as_number(mean_defined(panoptic_quality)),
        "SQ": as_number(mean_defined(segmentation_quality)),
        "RQ": as_number(mean_defined(recognition_quality)),
        "PQ_things": as_number(mean_defined(panoptic_quality[~is_stuff])),
        "PQ_stuff": as_number(mean_defined(panoptic_quality[is_stuff])),
        "per_class": per_class,
        "images": len(dataset),
        "count_error": count_error(dataset, listed, min_score=0.0),
    }


def _segment_terms(
    true_segments: ObjectMap, segments: Sequence[Mapping[str, Any]], *, num_classes: int
) -> Array:
    """What an image adds to panoptic quality, (3, K).

    Args:
        true_segments: of :class:`dinoneck.data.PanopticImages`.
        segments: COCO results of those that are predicted.
        num_classes: K.
    """
    from pycocotools import mask

    # an image may have more segments of a class than a head's ids can tell apart
    num_segments = len(true_segments.objects)
    per_class = num_segments + 2
    true_ids = true_segments.ids_of_objects(range(num_segments), per_class=per_class)[
        true_segments.rows
    ]
    # a region is all pixels of one id
    ids, region_of_pixel = np.unique(true_ids, return_inverse=True)
    region_of_pixel = region_of_pixel.ravel()
    regions = KnownRegions(
        areas=np.bincount(region_of_pixel),
        labels=np.abs(ids) // per_class - 1,
        is_segment=ids > 0,
        is_crowd=ids < UNKNOWN,
        is_unknown=ids == UNKNOWN,
    )
    shared_pixels = np.zeros((len(segments), len(ids)), np.int64)
    for i, segment in enumerate(segments):
        is_inside = mask.decode(dict(segment["segmentation"])).ravel() > 0
        shared_pixels[i] = np.bincount(region_of_pixel[is_inside], minlength=len(ids))
    labels = np.array([segment["category_id"] for segment in segments], np.int64)
    return segment_terms(shared_pixels, labels, regions, num_classes)


def count_error(dataset: ListedImages, objects: Objects, min_score: float) -> float:
    """Return the mean absolute difference between the numbers of true objects and of predicted ones, without stuff."""
    true_numbers = []
    predicted_numbers = []
    for image_id, number in dataset.numbers.items():
        true_numbers.append(number)
        predicted_numbers.append(count_objects(objects.get(image_id, ()), min_score))
    terms = value_terms(
        np.array(true_numbers, np.float64),
        np.array(predicted_numbers, np.float64),
    )
    return float(mean_absolute_error(terms.sum(axis=0)))


def count_objects(objects: Sequence[Mapping[str, Any]], min_score: float) -> int:
    """Return the number of objects with this score or more, without stuff."""
    number = 0
    for entry in objects:
        is_thing = entry.get("isthing", True)
        if is_thing and entry["score"] >= min_score:
            number += 1
    return number


# objects of any kind


def _check_images(dataset: ListedImages, predictions: Mapping[Any, Any]) -> None:
    """Reject predictions of images that a dataset does not have."""
    unknown_ids = list(predictions.keys() - set(dataset.ids))
    if unknown_ids:
        raise DataError(
            f"there is a prediction for image {unknown_ids[0]!r}, which is not in {dataset.file}"
        )


def _of_listed_classes(
    objects: Objects, dataset: ListedImages
) -> dict[Any, list[Mapping[str, Any]]]:
    """The objects without those of classes that the file of a dataset does not list."""
    listed = {}
    for image_id, image_objects in objects.items():
        listed[image_id] = [
            entry for entry in image_objects if entry["category_id"] not in dataset.unlisted
        ]
    return listed


# average precision by COCO's rules


def _coco_scores(
    dataset: BoxImages, results: list[dict[str, Any]], iou_type: IouType
) -> dict[str, Any]:
    """The scores of COCO results."""
    curves = precision_curves(dataset, results, iou_type)
    iou_percents = [round(100 * iou) for iou in curves.iou_thresholds]
    at_50 = curves.precision[iou_percents.index(50)]
    at_75 = curves.precision[iou_percents.index(75)]
    f1, min_score = best_f1(curves.scores, curves.is_right, int(curves.num_known.sum()))
    return {
        "AP": _mean_without_missing(curves.precision),
        "AP50": _mean_without_missing(at_50),
        "AP75": _mean_without_missing(at_75),
        "AR100": _mean_without_missing(curves.recall),
        "per_class": _precision_by_class(dataset, curves.precision, at_50, curves.category_ids),
        "images": len(dataset.ids),
        "F1": f1,
        "min_score": min_score,
        "thresholds": _thresholds_by_class(dataset, curves),
    }


def _thresholds_by_class(dataset: BoxImages, curves: PrecisionCurves) -> dict[str, float | None]:
    """The score of each class from which on its F1 is best; None for one with few objects, or without a right one."""
    thresholds: dict[str, float | None] = {}
    for name, category_id in zip(dataset.classes, dataset.category_ids, strict=True):
        if category_id is None:
            thresholds[name] = None
            continue
        column = curves.category_ids.index(category_id)
        is_of_class = curves.columns == column
        thresholds[name] = best_threshold(
            curves.scores[is_of_class],
            curves.is_right[is_of_class],
            int(curves.num_known[column]),
        )
    return thresholds


def class_thresholds(scores: Mapping[str, Any], classes: Sequence[str]) -> tuple[float, ...]:
    """Return the smallest score of the objects of each class, as a file keeps them.

    A class without a threshold has ``min_score``, that of all classes.

    Args:
        scores: of held-out objects, by :func:`score_boxes` or :func:`score_masks`.
        classes: names of the labels.

    Returns:
        One per class; empty where no class has a threshold.
    """
    thresholds = scores["thresholds"]
    if all(thresholds[name] is None for name in classes):
        return ()
    smallest = []
    for name in classes:
        threshold = thresholds[name]
        smallest.append(scores["min_score"] if threshold is None else threshold)
    return tuple(smallest)


def _mean_without_missing(values: Array) -> float | None:
    """The mean over what is defined; a class without boxes is marked by -1."""
    defined = values[values > -1]
    if not defined.size:
        return None
    return float(defined.mean())


def _precision_by_class(
    dataset: BoxImages, precision: Array, precision_at_50: Array, category_ids: Sequence[int | str]
) -> dict[str, dict[str, float | None]]:
    """The AP and AP50 of each class; None for one that the file does not list.

    Args:
        dataset: the truth.
        precision: (IoUs, recalls, classes).
        precision_at_50: (recalls, classes).
        category_ids: of these classes; pycocotools sorts them, so that they are in another order
            than the labels.
    """
    column_of_id = {category_id: column for column, category_id in enumerate(category_ids)}
    by_class: dict[str, dict[str, float | None]] = {}
    for name, category_id in zip(dataset.classes, dataset.category_ids, strict=True):
        if category_id is None:
            by_class[name] = {"AP": None, "AP50": None}
            continue
        column = column_of_id[category_id]
        by_class[name] = {
            "AP": _mean_without_missing(precision[:, :, column]),
            "AP50": _mean_without_missing(precision_at_50[:, column]),
        }
    return by_class
