"""COCO's evaluation of boxes and masks, by faster-coco-eval where it is installed, else by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from packaging.version import Version

from dinoneck.data.boxes import BoxImages
from dinoneck.extras import missing_extra

Array = np.ndarray[Any, Any]
IouType = Literal["bbox", "segm"]
"""Whether boxes or masks are compared."""

MOST_OBJECTS = 100
"""How many objects count per image and class, those with the highest scores, as COCO has it.

Images with more known ones of a class, such as mosaics that are predicted in tiles, are scored with
as many as they have.
"""
_OLDEST_FASTER = Version("1.8")  # whose numbers are compared with those of pycocotools


class PrecisionCurves(NamedTuple):
    """Precision and recall of predicted objects, over objects of all areas.

    Attributes:
        iou_thresholds: (T,), 0.50, 0.55 ... 0.95.
        precision: (T, 101 recalls, classes); -1 of a class without objects.
        recall: (T, classes), the highest that is reached; -1 of a class without objects.
        category_ids: of the classes, ascending.
        scores: (P,), of the predicted objects of all classes that count at an IoU of 0.50.
        is_right: bool (P,), whether each is a known object.
        columns: int (P,), its class, an index of ``category_ids``.
        num_known: int (classes,), how many objects there are.
    """

    iou_thresholds: Array
    precision: Array
    recall: Array
    category_ids: list[int | str]
    scores: Array
    is_right: Array
    columns: Array
    num_known: Array


def precision_curves(
    dataset: BoxImages, results: list[dict[str, Any]], iou_type: IouType
) -> PrecisionCurves:
    """Compare COCO results with the objects of a dataset.

    The libraries agree to the last bit but one of a precision: pycocotools adds 2e-16 to the number
    that it divides by.

    Args:
        dataset: the truth.
        results: COCO results of its images.
        iou_type: whether the IoU is of boxes or of masks.

    Raises:
        DataError: if no image has an object.
        ImportError: if neither library is installed.
    """
    faster = _faster_coco_eval()
    if faster is None:
        return _curves_of_pycocotools(coco_evaluation(dataset, results, iou_type))
    return _curves_of_faster(faster, _ground_truth(dataset, iou_type), results, iou_type)


def _faster_coco_eval() -> Any | None:
    """The library faster_coco_eval; None if it is not installed, or too old."""
    try:
        import faster_coco_eval
    except ImportError:
        return None
    if Version(faster_coco_eval.__version__) < _OLDEST_FASTER:
        return None
    return faster_coco_eval


def coco_evaluation(dataset: BoxImages, results: list[dict[str, Any]], iou_type: IouType) -> Any:
    """Return the evaluation of pycocotools over objects of all areas, accumulated.

    Its ``evalImgs`` are the matches within each image, which faster-coco-eval does not give.

    Args:
        dataset: the truth.
        results: COCO results of its images.
        iou_type: whether the IoU is of boxes or of masks.

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
    truth.dataset = {"info": {}, **_ground_truth(dataset, iou_type)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        predicted = truth.loadRes(results) if results else COCO()
        evaluation = COCOeval(truth, predicted, iou_type)
        evaluation.params.imgIds = list(dataset.ids)
        evaluation.params.catIds = [entry["id"] for entry in truth.dataset["categories"]]
        _choose_all_areas(evaluation.params, _most_objects(truth.dataset["annotations"]))
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _ground_truth(dataset: BoxImages, iou_type: IouType) -> dict[str, Any]:
    """The objects of a dataset as a COCO dict; a DataError if there is none."""
    truth = dataset.ground_truth()
    if all(entry["iscrowd"] for entry in truth["annotations"]):
        raise dataset.nothing_to_show("box" if iou_type == "bbox" else "mask")
    return truth


def _most_objects(annotations: Iterable[Mapping[str, Any]]) -> int:
    """How many predicted objects count per image and class: 100, or the most known ones if they are more."""
    counts = Counter((entry["image_id"], entry["category_id"]) for entry in annotations)
    return max(MOST_OBJECTS, *counts.values())


def _choose_all_areas(parameters: Any, most_objects: int) -> None:
    """Leave out what is not reported: small, medium and large objects, and fewer per image."""
    parameters.areaRng = parameters.areaRng[:1]
    parameters.areaRngLbl = parameters.areaRngLbl[:1]
    parameters.maxDets = [most_objects]


def _curves_of_pycocotools(evaluation: Any) -> PrecisionCurves:
    """The curves of an evaluation, and the matches of all images at an IoU of 0.50."""
    scores = []
    is_right = []
    columns = []
    category_ids = list(evaluation.params.catIds)
    num_known = np.zeros(len(category_ids), np.int64)
    for matches in evaluation.evalImgs:  # of an image and a class
        if matches is None:
            continue
        column = category_ids.index(matches["category_id"])
        num_known[column] += np.sum(np.asarray(matches["gtIgnore"]) == 0)
        # the first IoU is 0.50
        does_count = ~np.asarray(matches["dtIgnore"][0], bool)
        scores.append(np.asarray(matches["dtScores"])[does_count])
        is_right.append(np.asarray(matches["dtMatches"][0])[does_count] > 0)
        columns.append(np.full(does_count.sum(), column))
    return PrecisionCurves(
        iou_thresholds=evaluation.params.iouThrs,
        precision=evaluation.eval["precision"][:, :, :, 0, 0],
        recall=evaluation.eval["recall"][:, :, 0, 0],
        category_ids=evaluation.params.catIds,
        scores=np.concatenate(scores),
        is_right=np.concatenate(is_right),
        columns=np.concatenate(columns),
        num_known=num_known,
    )


def _curves_of_faster(
    library: Any, truth: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType
) -> PrecisionCurves:
    """The curves of faster-coco-eval, which takes numbers as ids: those of the images and classes by rank."""
    images = _ranks(image["id"] for image in truth["images"])
    categories = _ranks(category["id"] for category in truth["categories"])
    known = library.COCO(
        {
            "images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
            "annotations": _renumbered(truth["annotations"], images, categories),
            "categories": [{"id": rank} for rank in categories.values()],
        }
    )
    predicted = known.loadRes(_renumbered(results, images, categories))
    evaluation = library.COCOeval_faster(known, predicted, iou_type)
    most_objects = _most_objects(known.dataset["annotations"])
    _choose_all_areas(evaluation.params, most_objects)
    iou_thresholds = evaluation.params.iouThrs
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    recall = evaluation.eval["recall"][:, :, 0, 0]

    # matching once more changes the evaluation: all that is read of it is read before
    matches = _matches_at_half(evaluation)
    counted = _counted(predicted.dataset["annotations"], most_objects)
    crowd_ids = {entry["id"] for entry in known.dataset["annotations"] if entry["iscrowd"]}
    outside_crowds = [entry for entry in counted if matches.get(entry["id"]) not in crowd_ids]
    num_known = np.zeros(len(categories), np.int64)
    for entry in known.dataset["annotations"]:
        if entry["id"] not in crowd_ids:
            num_known[_column_of(entry)] += 1
    return PrecisionCurves(
        iou_thresholds=iou_thresholds,
        precision=precision,
        recall=recall,
        category_ids=list(categories),
        scores=np.array([entry["score"] for entry in outside_crowds], np.float64),
        is_right=np.array([entry["id"] in matches for entry in outside_crowds], bool),
        columns=np.array([_column_of(entry) for entry in outside_crowds], np.int64),
        num_known=num_known,
    )


def _column_of(entry: Mapping[str, Any]) -> int:
    """The column of an entry's class, whose id is its rank, from 1."""
    return int(entry["category_id"]) - 1


def _ranks(ids: Iterable[Any]) -> dict[Any, int]:
    """Id -> its rank from 1, numbers before texts: objects of one score are ordered by their images."""
    ascending = sorted(ids, key=lambda id_: (isinstance(id_, str), id_))
    return {id_: rank for rank, id_ in enumerate(ascending, 1)}


def _renumbered(
    entries: Iterable[Mapping[str, Any]], images: Mapping[Any, int], categories: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """Copies of annotations or results with the ranks of their images and categories."""
    renumbered = []
    for entry in entries:
        image_id = images[entry["image_id"]]
        category_id = categories[entry["category_id"]]
        renumbered.append({**entry, "image_id": image_id, "category_id": category_id})
    return renumbered


def _matches_at_half(evaluation: Any) -> dict[int, int]:
    """Id of a predicted object -> id of the known one that it is matched with at an IoU of 0.50.

    The library tells the pairs of all its thresholds together, so it matches once more at that of
    0.50 alone, with the IoUs of the first time.
    """
    ious = evaluation.ious
    evaluation.computeIoU = lambda image_id, category_id: ious[image_id, category_id]
    evaluation.params.iouThrs = evaluation.params.iouThrs[:1]
    evaluation.params.compute_rle = False
    evaluation.evaluate()
    matches = {}
    for pair in evaluation.eval["matched"]:
        predicted_id, known_id = pair.split("_")
        matches[int(predicted_id)] = int(known_id)
    return matches


def _counted(results: Iterable[dict[str, Any]], most_objects: int) -> list[dict[str, Any]]:
    """The objects that count: those with the highest scores of each image and class."""
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in results:
        groups.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    counted = []
    for entries in groups.values():
        entries.sort(key=lambda entry: float(entry["score"]), reverse=True)
        counted += entries[:most_objects]
    return counted
