"""Classes of a model and of a truth file are matched by their names, whatever the ids and their order are."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck.data import BoxImages, PanopticImages, Preprocessing
from dinoneck.detection import evaluate_boxes, score_boxes, score_masks, score_segments
from dinoneck.detection.training import open_images
from dinoneck.errors import DataError
from dinoneck.inference import coco_objects
from dinoneck.training import TrainDetectorConfig
from dinoneck.viz import ReportEntry
from dinoneck.viz.report import agreement

pytest.importorskip("pycocotools", reason="scores of boxes need pycocotools")

SIDE = 60
NAMES = ("leaf", "bug", "stone", "seed")  # the order of the model
IDS = {"leaf": 31, "bug": 7, "stone": 19, "seed": 2}  # another order than that of the model


def write(folder: Path, ids: dict[str, int], seed: int = 0, images: int = 12) -> Path:
    """Write images and random boxes with rectangular masks; some classes are harder than others."""
    rng = np.random.default_rng(seed)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(images):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        listed.append(
            {"id": number + 3, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
        )
        for name in NAMES:
            for _ in range(rng.integers(0, 3)):
                x, y = rng.integers(0, 40, 2).tolist()
                width, height = rng.integers(8, 20, 2).tolist()
                if name in ids:
                    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                    annotation = {
                        "id": len(annotations) + 1,
                        "image_id": number + 3,
                        "category_id": ids[name],
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                    annotations.append(annotation)
    categories = [{"id": own, "name": name} for name, own in ids.items()]
    file = folder / "truth.json"
    file.write_text(
        json.dumps({"images": listed, "annotations": annotations, "categories": categories})
    )
    return file


def predictions_of(data: Any, seed: int = 1) -> dict[Any, dict[str, Any]]:
    """The known boxes, moved the more the later their class comes in the model, with random scores."""
    rng = np.random.default_rng(seed)
    found = {}
    for image_id, (_, target) in zip(data.ids, data, strict=True):
        labels = target["labels"].numpy()
        moved = rng.normal(size=(len(labels), 4)) * (0.4 + 0.7 * labels[:, None])
        boxes = target["boxes"].numpy().reshape(-1, 4) + moved
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
        found[image_id] = {"boxes": boxes, "labels": labels, "scores": rng.random(len(labels))}
    return found


def official(
    file: Path, results: list[dict[str, Any]], kind: str
) -> dict[int, tuple[float, float]]:
    """Category id -> AP and AP50, of one pycocotools evaluation for each category alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        found = truth.loadRes(results)
        for category in truth.getCatIds():
            test = COCOeval(truth, found, kind)
            test.params.catIds = [category]
            test.evaluate()
            test.accumulate()
            test.summarize()
            scores[category] = (float(test.stats[0]), float(test.stats[1]))
    return scores


@pytest.mark.parametrize(
    "ids",
    [
        IDS,
        {"seed": 1, "leaf": 2, "bug": 3, "stone": 4},
        {"leaf": 1, "bug": 2, "stone": 3, "seed": 4},
        {"stone": 0, "seed": 900, "bug": 12, "leaf": 11},
    ],
)
def test_the_scores_of_each_class_are_those_of_pycocotools(
    tmp_path: Path, ids: dict[str, int]
) -> None:
    data = BoxImages(write(tmp_path, ids), classes=NAMES)
    found = predictions_of(data)
    results = []
    for image_id, own in found.items():
        for box, label, score in zip(own["boxes"], own["labels"], own["scores"], strict=True):
            left, top, right, bottom = box.tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": ids[NAMES[label]],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(score),
                }
            )
    expected = official(data.file, results, "bbox")
    scores = score_boxes(data, found)
    assert list(scores["per_class"]) == list(NAMES)
    for name in NAMES:
        average, at_50 = expected[ids[name]]
        assert scores["per_class"][name]["AP"] == pytest.approx(average, abs=1e-12)
        assert scores["per_class"][name]["AP50"] == pytest.approx(at_50, abs=1e-12)
    averages = [scores["per_class"][name]["AP"] for name in NAMES]
    assert averages == sorted(averages, reverse=True), "boxes of later classes are moved further"
    assert len({*averages}) == len(NAMES)


def test_the_scores_of_the_masks_of_each_class_are_those_of_pycocotools(tmp_path: Path) -> None:
    data: Any = BoxImages(write(tmp_path, IDS), classes=NAMES, masks=True)
    rng = np.random.default_rng(5)
    objects: dict[Any, list[Any]] = {}
    results = []
    for image_id, (_, target) in zip(data.ids, data, strict=True):
        labels = target["labels"]
        shifts = [int(rng.integers(0, 1 + 2 * label)) for label in labels.tolist()]
        masks = [
            torch.roll(mask, shift, dims=1)
            for mask, shift in zip(target["masks"], shifts, strict=True)
        ]
        predicted = {
            "labels": labels,
            "scores": torch.tensor(rng.random(len(labels))),
            "masks": torch.stack(masks) > 0
            if masks
            else torch.zeros(0, SIDE, SIDE, dtype=torch.bool),
            "boxes": target["boxes"],
        }
        objects[image_id] = coco_objects(predicted)
        for own in objects[image_id]:
            category = IDS[NAMES[own["category_id"]]]
            results.append({**own, "image_id": image_id, "category_id": category})
    expected = official(data.file, results, "segm")
    scores = score_masks(data, objects)
    for name in NAMES:
        assert scores["per_class"][name]["AP"] == pytest.approx(expected[IDS[name]][0], abs=1e-12)
    assert len({own["AP"] for own in scores["per_class"].values()}) == len(NAMES)


def detector(data: Any, classes: tuple[str, ...]) -> Any:
    """What predicts the known boxes of a dataset in turn, numbered as its own classes are."""
    rows = iter(
        [
            {
                "boxes": target["boxes"],
                "labels": torch.tensor([classes.index(data.classes[x]) for x in target["labels"]]),
                "scores": torch.full((len(target["labels"]),), 0.9),
            }
            for _, target in data
        ]
    )

    def predict(images: list[Any], **_: Any) -> list[dict[str, Any]]:
        return [next(rows) for _ in images]

    return argparse.Namespace(
        classes=classes,
        predict=predict,
        preprocess=Preprocessing(),
        expect_images=lambda count: None,
    )


def test_classes_that_the_file_does_not_list_count_for_nothing(tmp_path: Path) -> None:
    whole = BoxImages(write(tmp_path, IDS), classes=NAMES)
    model = detector(whole, NAMES)
    part = tmp_path / "part.json"
    content = json.loads(whole.file.read_text())
    content["categories"] = [entry for entry in content["categories"] if entry["name"] != "bug"]
    content["annotations"] = [
        entry for entry in content["annotations"] if entry["category_id"] != IDS["bug"]
    ]
    part.write_text(json.dumps(content))
    scores = evaluate_boxes(model, part)
    assert scores["per_class"]["bug"] == {"AP": None, "AP50": None}
    assert scores["per_class"]["seed"]["AP"] == pytest.approx(1.0)
    assert (scores["AP"], scores["F1"]) == pytest.approx((1.0, 1.0)), "bugs are not false boxes"


def test_a_file_without_any_of_the_classes_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, {"tree": 4, "house": 9})
    model: Any = argparse.Namespace(classes=NAMES, preprocess=Preprocessing())

    with pytest.raises(DataError, match=r"'leaf'.*house, tree|'leaf'.*tree, house"):
        evaluate_boxes(model, file)


@pytest.mark.parametrize(
    "named",
    [
        pytest.param("caf\u00e9", id="one character"),
        pytest.param("cafe\u0301", id="a letter and its accent"),
    ],
)
@pytest.mark.parametrize(
    "listed",
    [
        pytest.param("caf\u00e9", id="listed as one character"),
        pytest.param("cafe\u0301", id="listed as a letter and its accent"),
    ],
)
def test_an_accent_is_spelled_in_one_way(tmp_path: Path, listed: str, named: str) -> None:
    file = write(tmp_path, {"leaf": 5})
    content = json.loads(file.read_text())
    content["categories"].append({"id": 8, "name": listed})
    file.write_text(json.dumps(content))

    data = BoxImages(file, classes=("leaf", named))

    assert data.classes == ("leaf", "caf\u00e9")
    assert data.category_ids == (5, 8)


def test_one_class_in_two_spellings_of_an_accent_is_named_twice(tmp_path: Path) -> None:
    file = write(tmp_path, IDS)

    with pytest.raises(DataError, match="the name 'caf\u00e9' stands more than once"):
        BoxImages(file, classes=("caf\u00e9", "cafe\u0301"))


def test_two_classes_that_differ_in_case_are_two_classes(tmp_path: Path) -> None:
    file = write(tmp_path, {"leaf": 5, "bug": 3, "Leaf": 1})
    data = BoxImages(file, classes=("leaf", "Leaf", "bug"))
    assert data.category_ids == (5, 1, 3)


def test_held_out_boxes_of_a_training_are_matched_by_their_names(tmp_path: Path) -> None:
    for part, ids in {"train": IDS, "val": {"stone": 1, "leaf": 2}}.items():
        (tmp_path / part).mkdir()
        write(tmp_path / part, ids, seed=len(part))
    data = {
        "boxes": str(tmp_path / "train" / "truth.json"),
        "val_boxes": str(tmp_path / "val" / "truth.json"),
        "images": str(tmp_path / "train"),
        "val_images": str(tmp_path / "val"),
        "size": [64, 64],
    }
    train, held_out = open_images(TrainDetectorConfig.from_dict({"data": data}))
    assert train.classes == held_out.classes == ("seed", "bug", "stone", "leaf")
    assert held_out.category_ids == (None, None, 1, 2)
    assert held_out.unlisted == {0, 1}


def test_segments_of_classes_that_the_file_does_not_list_count_for_nothing(tmp_path: Path) -> None:
    ids = np.kron(np.array([[8, 8, 5], [5, 5, 5]]), np.ones((6, 6), np.int64))
    Image.fromarray(np.zeros((*ids.shape, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "png").mkdir()
    colours = np.stack([ids, 0 * ids, 0 * ids], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "png" / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": ids.shape[0], "width": ids.shape[1]}
    segments = [
        {"id": 8, "category_id": 6, "iscrowd": 0},
        {"id": 5, "category_id": 1, "iscrowd": 0},
    ]
    categories = [
        {"id": 6, "name": "bird", "isthing": 1},
        {"id": 1, "name": "lawn", "isthing": 0},
    ]
    file = tmp_path / "segments.json"
    entry = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    content = {"images": [image], "annotations": [entry], "categories": categories}
    file.write_text(json.dumps(content))
    data = PanopticImages(
        file, tmp_path / "png", classes=("bird", "pond", "lawn"), allow_unlisted=True
    )
    predicted = ids.copy()
    predicted[6:, :6] = 3  # a pond on the lawn
    rows = [
        {"id": 8, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 3, "category_id": 1, "isthing": False, "score": 0.9},
        {"id": 5, "category_id": 2, "isthing": False, "score": 0.9},
    ]
    scores = score_segments(data, {1: coco_objects((predicted, rows))})
    assert scores["per_class"]["pond"] == {"PQ": None, "SQ": None, "RQ": None}
    assert scores["per_class"]["bird"]["PQ"] == pytest.approx(1.0)
    assert scores["per_class"]["lawn"]["PQ"] == pytest.approx(3 / 4)
    assert scores["PQ"] == pytest.approx(7 / 8)


def test_a_report_compares_boxes_of_the_known_classes_alone() -> None:
    near = [10.0, 10.0, 30.0, 30.0]
    far = [50.0, 50.0, 60.0, 60.0]
    result = {"boxes": np.array([near, far]), "names": ["bug", "leaf"], "scores": np.ones(2)}
    known = {"boxes": np.array([near]), "names": ["leaf"], "classes": ["leaf", "stone"]}
    counts = agreement([ReportEntry("a", result, known=known)], ())
    assert counts["leaf"] == {"known": 1, "predicted": 1, "found": 0}
    assert counts["bug"] == {"known": None, "predicted": 1, "found": None}
