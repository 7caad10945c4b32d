"""Average precision by COCO's rules (pycocotools) and panoptic quality, from predictions in memory."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.checks import check_minimum
from dinoneck.data.boxes import BoxImages
from dinoneck.data.listed_images import UNKNOWN, Crowd
from dinoneck.data.panoptic import PanopticImages
from dinoneck.errors import DataError
from dinoneck.extras import check_installed, missing_extra
from dinoneck.inference.results import coco_objects, predict_many
from dinoneck.metrics import (
    KnownRegions,
    as_number,
    best_f1,
    class_panoptic_quality,
    class_recognition_quality,
    class_segmentation_quality,
    mean_absolute_error,
    mean_defined,
    segment_terms,
    value_terms,
)
from dinoneck.tasks import OBJECTS
from dinoneck.training.token_sources import in_batches

if TYPE_CHECKING:
    from dinoneck.detection.detector import Detector
    from dinoneck.inference.predictor import Predictor

Prediction = Mapping[str, Any]
# image id -> as dinoneck.inference.coco_objects returns them
Objects = Mapping[Any, Sequence[Mapping[str, Any]]]
Array = np.ndarray[Any, Any]

KEYS = ("boxes", "scores", "labels")
_MOST_BOXES = (1, 10, 100)


def evaluate_boxes(
    detector: Detector,
    coco_json: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 8,
    crowd: Crowd = "ignore",
) -> dict[str, Any]:
    """Predict the images of a COCO file and compare the boxes with those of the file.

    Args:
        detector: its classes and those of the file are matched by their names; of classes that
            the file does not list nothing counts.
        coco_json: the boxes.
        images: the folder of the images; None = the file's, or ``images`` in it.
        batch_size: images in a forward pass.
        crowd: whether entries with ``iscrowd`` count for nothing, or are objects, as of
            :class:`dinoneck.data.BoxImages`.

    Returns:
        As :func:`score_boxes`.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
        DataError: if the file or an image cannot be used, or no image has a box.
        ImportError: if pycocotools is missing.
    """
    dataset, predictions = predict_boxes(
        detector, coco_json, images, batch_size=batch_size, crowd=crowd
    )
    return score_boxes(dataset, predictions)


def predict_boxes(
    detector: Detector,
    coco_json: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    *,
    batch_size: int = 8,
    crowd: Crowd = "ignore",
) -> tuple[BoxImages, dict[Any, Prediction]]:
    """Return the images of a file, and image id -> the boxes of all scores.

    Raises:
        ConfigError, DataError, ImportError: as :func:`evaluate_boxes`.
    """
    check_minimum(1, batch_size=batch_size)
    check_installed("pycocotools", "detection")  # the scores need it: named before the first image
    bits = detector.preprocess.bits
    dataset = BoxImages(
        coco_json,
        images,
        classes=detector.classes,
        crowd=crowd,
        bits=bits,
        allow_unlisted=True,
    )
    dataset.warn_of_turned_images()
    predictions: dict[Any, Prediction] = {}
    for rows in in_batches(range(len(dataset)), batch_size):
        batch = [dataset.original(row)[0] for row in rows]
        batch_predictions = detector.predict(batch, min_score=0.0, batch_size=batch_size)
        for row, prediction in zip(rows, batch_predictions, strict=True):
            predictions[dataset.ids[row]] = prediction
    return dataset, predictions


def _check_images(dataset: Any, predictions: Mapping[Any, Any]) -> None:
    """Reject predictions of images that a dataset does not have."""
    unknown = list(predictions.keys() - set(dataset.ids))
    if unknown:
        raise DataError(
            f"there is a prediction for image {unknown[0]!r}, which is not in {dataset.file}"
        )


def score_boxes(dataset: BoxImages, predictions: Mapping[Any, Prediction]) -> dict[str, Any]:
    """Compare the boxes of a dataset with the predictions of any detector.

    An image without an entry counts as one without detections. At most 100 boxes count per image
    and class, those with the highest scores.

    Args:
        dataset: the images with their true boxes; boxes that it skipped do not count, and crowd
            regions are ignored.
        predictions: image id -> ``boxes`` (n, 4) XYXY in pixels of the image itself, ``scores``
            (n,) and ``labels`` (n,) from 0.

    Returns:
        ``AP`` (mean over IoU 0.50, 0.55 ... 0.95), ``AP50``, ``AP75``, ``AR100``, and
        ``per_class``: name -> ``AP``, ``AP50``, None for a class without boxes; ``images``, their
        number; ``F1``, the best over all scores of the boxes of all classes at an IoU of 0.50, and
        ``min_score``, the score that it begins at (None where no box is found).

    Raises:
        DataError: if an id is unknown, or a prediction has another form, or no image has a box.
        ImportError: if pycocotools is missing.
    """
    return _scores(dataset, coco_results(predictions, dataset), "bbox")


def known_objects(
    truth: Any,
    images: Any = None,
    classes: Sequence[str] | None = None,
    crowd: Crowd = "ignore",
    *,
    allow_unlisted: bool = False,
) -> Any:
    """Return the images of a COCO file of masks; of a folder and a COCO file, those of panoptic segments."""
    options: dict[str, Any] = {
        "classes": classes,
        "crowd": crowd,
        "allow_unlisted": allow_unlisted,
    }
    if isinstance(truth, str | os.PathLike):
        return BoxImages(truth, images, masks=True, **options)
    if len(truth) != 2:
        raise DataError(
            f"the truth is {truth}; expected a file, or the folder and the file of panoptic "
            "segments"
        )
    folder, file = truth
    return PanopticImages(file, folder, images, **options)


def evaluate_masks(
    predictor: Predictor,
    coco_json: Any,
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
    dataset, objects = predict_masks(predictor, coco_json, images, crowd=crowd)
    if isinstance(dataset, PanopticImages):
        return score_segments(dataset, objects)
    return score_masks(dataset, objects)


def predict_masks(
    predictor: Predictor,
    coco_json: Any,
    images: str | os.PathLike[str] | None,
    *,
    crowd: Crowd = "ignore",
) -> tuple[Any, dict[Any, Any]]:
    """Return the images of a file, and image id -> the objects predicted in it.

    Raises:
        DataError, ImportError: as :func:`evaluate_masks`.
    """
    kind = "instances" if isinstance(coco_json, str | os.PathLike) else "panoptic"
    tasks: Any = getattr(predictor, "tasks", [])
    if isinstance(tasks, Mapping):
        tasks = []  # of keyed heads, of which none can be told to be that of the file
    task = next((task for task in tasks if task.kind == kind), None)
    if task is None:
        names = ", ".join(task.name for task in tasks) or "boxes, or tasks of several keys,"
        raise DataError(
            f"{coco_json} holds objects, and {names} are predicted; give a head of kind {kind}"
        )
    check_installed("pycocotools", "masks")
    dataset: Any = known_objects(coco_json, images, task.labels, crowd, allow_unlisted=True)
    dataset.warn_of_turned_images()
    min_score = 0.0 if kind == "instances" else None
    predict = partial(predictor, min_score=min_score)
    rows = predict_many(predict, [*dataset.paths], at_once=predictor.batch_size)
    objects = {dataset.ids[i]: coco_objects(row[task.name]) for i, row in rows.items()}
    return dataset, objects


def score_masks(dataset: BoxImages, objects: Objects) -> dict[str, Any]:
    """Compare the masks of a dataset with those that were predicted, by COCO's rules.

    Args:
        dataset: the images with their true masks; what lies in crowd regions counts for nothing.
        objects: image id -> the objects of the image, as :func:`dinoneck.inference.coco_objects`
            returns them.

    Returns:
        As :func:`score_boxes`, of masks; and ``count_error``, the mean absolute difference between
        the numbers of known objects and of predicted ones with ``min_score`` or more.

    Raises:
        DataError: if an id is unknown, or no image has an object.
        ImportError: if pycocotools is missing.
    """
    _check_images(dataset, objects)
    objects = _of_listed_classes(objects, dataset)
    scores = _scores(dataset, mask_results(objects, dataset), "segm")
    return {**scores, "count_error": count_error(dataset, objects, scores["min_score"] or 0.0)}


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


def _of_listed_classes(objects: Objects, dataset: Any) -> dict[Any, Sequence[Mapping[str, Any]]]:
    """The objects without those of classes that the file of a dataset does not list."""
    listed: dict[Any, Sequence[Mapping[str, Any]]] = {}
    for image_id, image_objects in objects.items():
        listed[image_id] = [
            entry for entry in image_objects if entry["category_id"] not in dataset.unlisted
        ]
    return listed


def score_segments(dataset: PanopticImages, objects: Objects) -> dict[str, Any]:
    """Compare the segments of a dataset with those that were predicted, by panoptic quality.

    A predicted segment and a known one of its class are a pair where their IoU is above 0.5;
    unknown pixels count for nothing. A segment without a pair counts as wrong, unless more than
    half of it is unknown or a crowd region of its class.

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
    objects = _of_listed_classes(objects, dataset)
    num_classes = len(dataset.classes)
    terms = []
    for i, image_id in enumerate(dataset.ids):
        segments = objects.get(image_id, ())
        terms.append(_segment_terms(dataset.pixels(i), segments, num_classes))
    sums: Array = np.sum(terms, axis=0)  # (3, K)
    scores = {
        "PQ": class_panoptic_quality(sums),
        "SQ": class_segmentation_quality(sums),
        "RQ": class_recognition_quality(sums),
    }
    per_class = {}
    for label, name in enumerate(dataset.classes):
        per_class[name] = {key: as_number(values[label]) for key, values in scores.items()}
    is_stuff = np.isin(np.arange(num_classes), [*dataset.stuff])
    return {
        "PQ": as_number(mean_defined(scores["PQ"])),
        "SQ": as_number(mean_defined(scores["SQ"])),
        "RQ": as_number(mean_defined(scores["RQ"])),
        "PQ_things": as_number(mean_defined(scores["PQ"][~is_stuff])),
        "PQ_stuff": as_number(mean_defined(scores["PQ"][is_stuff])),
        "per_class": per_class,
        "images": len(dataset),
        "count_error": count_error(dataset, objects, 0.0),
    }


def _segment_terms(truth: Array, predicted: Sequence[Mapping[str, Any]], num_classes: int) -> Array:
    """What an image adds to panoptic quality, (3, K).

    Args:
        truth: the id of every pixel, of :class:`dinoneck.data.PanopticImages`.
        predicted: COCO results of its segments.
        num_classes: K.
    """
    from pycocotools import mask

    ids, region_of_pixel = np.unique(truth, return_inverse=True)
    region_of_pixel = region_of_pixel.ravel()
    known = KnownRegions(
        areas=np.bincount(region_of_pixel),
        labels=np.abs(ids) // OBJECTS - 1,
        is_segment=ids > 0,
        is_crowd=ids < UNKNOWN,
        is_unknown=ids == UNKNOWN,
    )
    shared = np.zeros((len(predicted), len(ids)), np.int64)
    for i, segment in enumerate(predicted):
        is_inside = mask.decode(dict(segment["segmentation"])).ravel() > 0
        shared[i] = np.bincount(region_of_pixel[is_inside], minlength=len(ids))
    labels = np.array([segment["category_id"] for segment in predicted], np.int64)
    return segment_terms(shared, labels, known, num_classes)


def count_error(dataset: Any, objects: Objects, min_score: float) -> float:
    """Return the mean absolute difference between the numbers of known objects and of predicted ones, without stuff."""
    known = []
    predicted = []
    for image_id, number in dataset.numbers.items():
        known.append(number)
        predicted.append(counted(objects.get(image_id, ()), min_score))
    terms = value_terms(np.array(known, np.float64), np.array(predicted, np.float64))
    return float(mean_absolute_error(terms.sum(axis=0)))


def counted(objects: Sequence[Mapping[str, Any]], min_score: float) -> int:
    """Return the number of objects with this score or more, without stuff."""
    return sum(entry["score"] >= min_score and entry.get("isthing", True) for entry in objects)


def _scores(dataset: BoxImages, results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The scores of COCO results; ``kind`` is ``bbox`` or ``segm``."""
    test = coco_evaluation(dataset, results, kind)
    # (IoUs, recalls, classes), of boxes of all areas
    precision = test.eval["precision"][..., 0, -1]
    index_of_iou = {round(100 * iou): i for i, iou in enumerate(test.params.iouThrs)}
    at_50 = precision[index_of_iou[50]]
    at_75 = precision[index_of_iou[75]]
    # pycocotools sorts the ids; the order of the labels is another one
    index_of_id = {category_id: i for i, category_id in enumerate(test.params.catIds)}
    classes: dict[str, dict[str, float | None]] = {}
    for name, category_id in zip(dataset.classes, dataset.category_ids, strict=True):
        if category_id is None:
            classes[name] = {"AP": None, "AP50": None}
            continue
        i = index_of_id[category_id]
        classes[name] = {"AP": _mean(precision[:, :, i]), "AP50": _mean(at_50[:, i])}
    return {
        "AP": _mean(precision),
        "AP50": _mean(at_50),
        "AP75": _mean(at_75),
        "AR100": _mean(test.eval["recall"][..., 0, -1]),
        "per_class": classes,
        "images": len(dataset.ids),
        **_best_threshold(test),
    }


def coco_evaluation(dataset: BoxImages, results: list[dict[str, Any]], kind: str) -> Any:
    """Return the evaluation of pycocotools, accumulated.

    Args:
        dataset: the truth.
        results: COCO results of its images.
        kind: ``bbox`` or ``segm``.

    Raises:
        DataError: if no image has an object.
        ImportError: if pycocotools is missing.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("pycocotools", "detection") from error
    truth = COCO()
    # pycocotools 2.0.10 fails without "info"
    truth.dataset = {"info": {}, **dataset.ground_truth()}
    if all(box["iscrowd"] for box in truth.dataset["annotations"]):
        raise dataset.nothing_to_show("box" if kind == "bbox" else "mask")
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        test = COCOeval(truth, truth.loadRes(results) if results else COCO(), kind)
        test.params.imgIds = list(dataset.ids)
        test.params.catIds = [entry["id"] for entry in truth.dataset["categories"]]
        test.params.maxDets = list(_MOST_BOXES)
        test.evaluate()
        test.accumulate()
    return test


def _best_threshold(test: Any) -> dict[str, float | None]:
    """The score from which boxes have the best F1 at an IoU of 0.50, of an evaluation by pycocotools."""
    rows = []
    for row in test.evalImgs:
        if row is not None and row["aRng"] == test.params.areaRng[0]:  # boxes of all areas
            rows.append(row)
    num_known = sum(int(np.sum(np.asarray(row["gtIgnore"]) == 0)) for row in rows)
    counts = ~np.concatenate([np.asarray(row["dtIgnore"][0], bool) for row in rows])
    scores = np.concatenate([row["dtScores"] for row in rows])[counts]
    is_right = np.concatenate([row["dtMatches"][0] for row in rows])[counts] > 0
    f1, min_score = best_f1(scores, is_right, num_known)
    return {"F1": f1, "min_score": min_score}


def coco_results(predictions: Mapping[Any, Prediction], dataset: BoxImages) -> list[dict[str, Any]]:
    """Return predictions as COCO results for a JSON file: a dict per box, with the category ids of the dataset.

    Boxes of classes that its file does not list are left out.

    Raises:
        DataError: as :func:`score_boxes`.
    """
    _check_images(dataset, predictions)
    entries = []
    for image_id, prediction in predictions.items():
        checked = _checked(prediction, f"the prediction for image {image_id}")
        boxes, scores, labels = (tensor.tolist() for tensor in checked)
        wrong = [label for label in labels if not 0 <= label < len(dataset.classes)]
        if wrong:
            raise DataError(
                f"the prediction for image {image_id} has the label {wrong[0]}; expected 0 ... "
                f"{len(dataset.classes) - 1}, 0-based, as in the dataset's classes "
                f"{dataset.classes}"
            )
        for (left, top, right, bottom), score, label in zip(boxes, scores, labels, strict=True):
            if label in dataset.unlisted:
                continue
            box = [left, top, right - left, bottom - top]
            category = dataset.category_ids[label]
            entries.append(
                {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            )
    return entries


def _checked(prediction: Prediction, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 boxes (n, 4), float64 scores (n,) and int64 labels (n,), checked."""
    if not isinstance(prediction, Mapping) or not set(KEYS) <= set(prediction):
        raise DataError(
            f"{name} is {type(prediction).__name__}; expected a dict with {', '.join(KEYS)}"
        )
    boxes, scores, labels = (torch.as_tensor(prediction[key]).detach().cpu() for key in KEYS)
    shapes = [tuple(boxes.shape), tuple(scores.shape), tuple(labels.shape)]
    if shapes != [(len(scores), 4), (len(scores),), (len(scores),)]:
        raise DataError(
            f"{name} has boxes, scores and labels of shapes {shapes}; expected (n, 4), (n,) and "
            "(n,)"
        )
    if labels.is_floating_point() and labels.numel():
        raise DataError(f"{name} has {labels.dtype} labels; expected whole numbers, 0-based")
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise DataError(f"{name} has a box or a score that is not finite; check the training loss")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(
            f"{name} has a box whose right or bottom lies before its left or top; expected XYXY "
            "in pixels"
        )
    return boxes.double(), scores.double(), labels.long()


def _mean(values: Array) -> float | None:
    """The mean over what is defined; pycocotools marks a class without boxes by -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
