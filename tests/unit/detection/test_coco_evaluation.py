"""Both libraries compute the same scores of boxes and masks."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import STAPyramid, load_backbone
from dinoneck.data import BoxImages
from dinoneck.detection import DetectionHead, Detector
from dinoneck.detection.coco_evaluation import MOST_OBJECTS, precision_curves
from dinoneck.detection.evaluation import evaluate_boxes, score_boxes, score_masks

pytest.importorskip("pycocotools")
faster_coco_eval = pytest.importorskip("faster_coco_eval")

SIDE = 128
NUM_IMAGES = 9
CATEGORY_IDS = (7, 3, 12, 5)  # of the last there is no object
# pycocotools adds 2.2e-16 to the number of predictions that it divides by
ROUNDING = {"rtol": 0, "atol": 1e-15}


def random_box(rng: np.random.Generator) -> list[float]:
    """X, y, width and height, small, medium or large, inside the image."""
    side = float(rng.choice([8, 40, 110]))
    width, height = side * rng.uniform(0.6, 1.1, 2)
    return [rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height), width, height]


def outline(box: list[float]) -> list[list[float]]:
    """A rhombus in a box, as a polygon."""
    x, y, width, height = box
    middle_x = x + width / 2
    middle_y = y + height / 2
    return [[middle_x, y, x + width, middle_y, middle_x, y + height, x, middle_y]]


def run_lengths(box: list[float]) -> dict[str, Any]:
    """The same rhombus as compressed run lengths."""
    from pycocotools import mask

    runs = mask.merge(mask.frPyObjects(outline(box), SIDE, SIDE))
    return {**runs, "counts": runs["counts"].decode("ascii")}


def write_truth(
    folder: Path, seed: int, image_ids: list[Any], masks: bool, crowd_share: float
) -> BoxImages:
    """Images with up to six objects each, some of them crowds; every third image has none."""
    rng = np.random.default_rng(seed)
    images = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in enumerate(image_ids):
        name = f"{number}.png"
        Image.new("RGB", (SIDE, SIDE)).save(folder / name)
        images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
        if number % 3 == 2:
            continue
        for _ in range(rng.integers(1, 7)):
            box = random_box(rng)
            is_crowd = len(annotations) > 0 and rng.random() < crowd_share
            annotation = {
                "id": len(annotations),
                "image_id": image_id,
                "category_id": int(rng.choice(CATEGORY_IDS[:-1])),
                "iscrowd": int(is_crowd),
                "bbox": box,
                "area": box[2] * box[3],
            }
            if masks:
                annotation["segmentation"] = run_lengths(box) if is_crowd else outline(box)
            annotations.append(annotation)
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORY_IDS]
    file = folder / "truth.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return BoxImages(file, masks=masks)


def random_results(data: BoxImages, seed: int, num_far: int, masks: bool) -> list[dict[str, Any]]:
    """COCO results: moved copies of the objects, one of four of another class, and others far away.

    Scores have one decimal, so that many are equal, within images and across them.
    """
    rng = np.random.default_rng(seed)
    boxes = []
    for annotation in data.ground_truth()["annotations"]:
        for _ in range(3):
            left, top, width, height = annotation["bbox"]
            moves = rng.normal(0, 0.12, 4)
            moved = [
                left + moves[0] * width,
                top + moves[1] * height,
                width * (1 + moves[2]),
                height * (1 + moves[3]),
            ]
            category = annotation["category_id"]
            if rng.random() < 0.25:
                category = int(rng.choice(CATEGORY_IDS))
            boxes.append((annotation["image_id"], category, moved))
    for image_id in data.ids:
        for _ in range(num_far):
            boxes.append((image_id, int(rng.choice(CATEGORY_IDS)), random_box(rng)))
    results = []
    for image_id, category, box in boxes:
        entry = {
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "score": round(float(rng.uniform(0.1, 1)), 1),
        }
        if masks:
            entry["segmentation"] = run_lengths(box)
        results.append(entry)
    return results


@pytest.fixture
def pycocotools_alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call that hides faster-coco-eval from then on."""

    def hide() -> None:
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)

    return hide


def test_boxes_are_evaluated_with_either_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_truth(tmp_path, 0, [0, 1], masks=False, crowd_share=0.0)
    head = DetectionHead("fcos", data.classes, STAPyramid(64, 32))
    detector = Detector(head, load_backbone("dinoneck_tiny"), size=(64, 64)).eval()
    monkeypatch.setitem(sys.modules, "pycocotools", None)

    assert evaluate_boxes(detector, data.file, tmp_path)["images"] == 2

    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pycocotools .* 'dinoneck\[detection\]'"):
        evaluate_boxes(detector, data.file, tmp_path)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("image_ids", "crowd_share", "num_far"),
    [
        pytest.param(list(range(NUM_IMAGES)), 0.0, 2, id="plain"),
        pytest.param(list(range(NUM_IMAGES)), 0.4, 2, id="crowds"),
        pytest.param([2**40 - 7 * i for i in range(NUM_IMAGES)], 0.2, 5, id="ids fall"),
        pytest.param([f"image {i}" for i in range(NUM_IMAGES)], 0.2, 5, id="ids are texts"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_both_libraries_give_the_same_curves(
    tmp_path: Path,
    pycocotools_alone: Any,
    seed: int,
    image_ids: list[Any],
    crowd_share: float,
    num_far: int,
    iou_type: Any,
) -> None:
    masks = iou_type == "segm"
    data = write_truth(tmp_path, seed, image_ids, masks, crowd_share)
    results = random_results(data, seed + 10, num_far, masks)
    fast = precision_curves(data, copy.deepcopy(results), iou_type)
    pycocotools_alone()
    reference = precision_curves(data, copy.deepcopy(results), iou_type)
    np.testing.assert_allclose(fast.precision, reference.precision, **ROUNDING)
    np.testing.assert_array_equal(fast.recall, reference.recall)
    np.testing.assert_array_equal(fast.iou_thresholds, reference.iou_thresholds)
    assert list(fast.category_ids) == list(reference.category_ids) == sorted(CATEGORY_IDS)
    assert fast.num_known.tolist() == reference.num_known.tolist()
    fast_objects = zip(
        fast.columns.tolist(), fast.scores.tolist(), fast.is_right.tolist(), strict=True
    )
    reference_objects = zip(
        reference.columns.tolist(),
        reference.scores.tolist(),
        reference.is_right.tolist(),
        strict=True,
    )
    assert sorted(fast_objects) == sorted(reference_objects)
    assert 0.1 < reference.precision[reference.precision > -1].mean() < 0.9


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("with_results", [True, False], ids=["results", "no results"])
def test_all_twelve_numbers_are_those_of_pycocotools(
    tmp_path: Path, iou_type: Any, with_results: bool
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    masks = iou_type == "segm"
    data = write_truth(tmp_path, 3, list(range(NUM_IMAGES)), masks, crowd_share=0.3)
    results = random_results(data, 4, 3, masks) if with_results else []
    numbers = []
    for coco, evaluator in (
        (COCO, COCOeval),
        (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco()
            truth.dataset = {"info": {}, **data.ground_truth()}
            truth.createIndex()
            predicted = truth.loadRes(copy.deepcopy(results)) if results else coco()
            evaluation = evaluator(truth, predicted, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        numbers.append(evaluation.stats[:12])
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=0, atol=1e-14)
    assert bool(numbers[0].max() > 0.1) is with_results


def test_at_most_100_objects_count_per_image_and_class(
    tmp_path: Path, pycocotools_alone: Any
) -> None:
    """Of 300 boxes of one class the first 99 are wrong, then come two that are right."""
    data = write_truth(tmp_path, 5, [1], masks=False, crowd_share=0.0)
    [known, *_] = data.ground_truth()["annotations"]
    results = []
    for number in range(300):
        is_right = number in (99, 100)
        results.append(
            {
                "image_id": 1,
                "category_id": known["category_id"],
                "bbox": known["bbox"] if is_right else [0.0, 0.0, 1.0, 1.0],
                "score": 1 - number / 1000,
            }
        )
    fast = precision_curves(data, results, "bbox")
    pycocotools_alone()
    reference = precision_curves(data, results, "bbox")
    for curves in (fast, reference):
        assert len(curves.scores) == MOST_OBJECTS
        assert curves.is_right.sum() == 1
    np.testing.assert_array_equal(fast.recall, reference.recall)


def test_the_scores_that_users_read_do_not_depend_on_the_library(
    tmp_path: Path, pycocotools_alone: Any
) -> None:
    data = write_truth(tmp_path, 6, list(range(NUM_IMAGES)), masks=True, crowd_share=0.2)
    objects: dict[Any, list[dict[str, Any]]] = {}
    boxes: dict[Any, dict[str, Any]] = {}
    for entry in random_results(data, 7, 3, masks=True):
        label = data.category_ids.index(entry["category_id"])
        objects.setdefault(entry["image_id"], []).append({**entry, "category_id": label})
    for image_id, entries in objects.items():
        sizes = np.array([entry["bbox"] for entry in entries])
        boxes[image_id] = {
            "boxes": np.concatenate([sizes[:, :2], sizes[:, :2] + sizes[:, 2:]], axis=1),
            "scores": np.array([entry["score"] for entry in entries]),
            "labels": np.array([entry["category_id"] for entry in entries]),
        }
    fast = score_boxes(data, boxes) | {"masks": score_masks(data, objects)}
    pycocotools_alone()
    reference = score_boxes(data, boxes) | {"masks": score_masks(data, objects)}
    assert fast["F1"] == reference["F1"] > 0.2
    assert fast["min_score"] == reference["min_score"]
    assert fast["masks"]["count_error"] == reference["masks"]["count_error"]
    assert ap_numbers(fast) == pytest.approx(ap_numbers(reference), abs=1e-14, rel=0)
    fast_masks = ap_numbers(fast["masks"])
    assert fast_masks == pytest.approx(ap_numbers(reference["masks"]), abs=1e-14, rel=0)


def ap_numbers(scores: dict[str, Any]) -> list[float]:
    """All average precisions and recalls; -1 for None, of a class without objects."""
    numbers = [scores[name] for name in ("AP", "AP50", "AP75", "AR100")]
    for of_class in scores["per_class"].values():
        numbers += [of_class["AP"], of_class["AP50"]]
    return [-1.0 if number is None else number for number in numbers]


def test_an_older_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_truth(tmp_path, 8, [1], masks=False, crowd_share=0.0)
    monkeypatch.setattr(faster_coco_eval, "__version__", "1.7.2")
    monkeypatch.setattr(faster_coco_eval, "COCO", None)
    precision_curves(data, [], "bbox")
    monkeypatch.setattr(faster_coco_eval, "__version__", "1.10")
    with pytest.raises(TypeError, match="not callable"):
        precision_curves(data, [], "bbox")


def test_without_both_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_truth(tmp_path, 9, [1], masks=False, crowd_share=0.0)
    for module in ("faster_coco_eval", "pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pycocotools is not installed.*dinoneck\[detection\]"):
        precision_curves(data, [], "bbox")


@pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
def test_an_image_of_more_than_100_objects_is_scored_with_all_of_them(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that are the truth have an AP of 1."""
    boxes = [[8.0 * (i % 16), 8.0 * (i // 16), 6.0, 6.0] for i in range(150)]
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "mosaic.png")
    annotations = []
    for number, box in enumerate(boxes):
        entry = {"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
        annotations.append({**entry, "bbox": box, "area": 36.0})
    content = {
        "images": [{"id": 1, "file_name": "mosaic.png", "width": SIDE, "height": SIDE}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    dataset = BoxImages(tmp_path / "truth.json", tmp_path)
    corners = np.array(boxes)
    corners[:, 2:] += corners[:, :2]
    prediction = {
        "boxes": corners,
        "scores": np.linspace(0.9, 0.5, 150),
        "labels": np.zeros(150, int),
    }
    if library == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)

    scores = score_boxes(dataset, {1: prediction})

    assert scores["AP"] == pytest.approx(1.0)
    assert scores["F1"] == pytest.approx(1.0)
