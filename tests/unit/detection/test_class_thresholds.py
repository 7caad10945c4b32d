"""Thresholds per class of boxes and masks: those of a plain search, kept in files, used by predictions."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.detection import coloured_boxes
from tests.unit.detection.test_detector import detector_of
from tests.unit.detection.test_train_detector import config_of

from dinoneck import (
    CheckpointError,
    ConfigError,
    HeadCheckpoint,
    MaskHead,
    Predictor,
    PyramidHead,
    STAPyramid,
    Task,
    register,
)
from dinoneck.checkpoint.contents import build_on_meta
from dinoneck.data import BoxImages
from dinoneck.detection import Detector, score_boxes, score_masks, train_detector, training
from dinoneck.detection.evaluation import class_thresholds
from dinoneck.detection.head import DetectionHead
from dinoneck.heads import Head
from dinoneck.heads.instances import decode_centres, decode_instances
from dinoneck.images.recipe import ImageRecipe
from dinoneck.inference.resolution import objects_from_outputs
from dinoneck.necks.neck import Neck
from dinoneck.runtime.description import record_task
from dinoneck.viz.score_tables import all_tables

pytest.importorskip("pycocotools")

Array = np.ndarray[Any, Any]
SIDE = 64
CLASSES = ("leaf", "stone", "rare")  # of the last there are four objects
CATEGORY_IDS = (8, 3, 5)
NUM_IMAGES = 8


def random_rectangle(rng: np.random.Generator) -> list[int]:
    """Left, top, right and bottom, in whole pixels."""
    left, top = rng.integers(0, SIDE - 24, 2)
    width, height = rng.integers(8, 24, 2)
    return [int(left), int(top), int(left + width), int(top + height)]


def write_rectangles(folder: Path, rng: np.random.Generator) -> BoxImages:
    """Images with three leaves and two stones each; every second one has a rare object."""
    images = []
    annotations = []
    for number in range(NUM_IMAGES):
        Image.new("RGB", (SIDE, SIDE)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for label in (0, 0, 0, 1, 1, *([2] if number % 2 else [])):
            left, top, right, bottom = random_rectangle(rng)
            outline = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": [outline],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)
    ]
    file = folder / "truth.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return BoxImages(file, masks=True)


def random_predictions(data: BoxImages, rng: np.random.Generator) -> dict[int, dict[str, Any]]:
    """Moved copies of the objects, two of each, and others; scores have two decimals, so that many are equal."""
    boxes: dict[int, list[list[int]]] = {image_id: [] for image_id in data.ids}
    labels: dict[int, list[int]] = {image_id: [] for image_id in data.ids}
    scores: dict[int, list[float]] = {image_id: [] for image_id in data.ids}
    for annotation in data.ground_truth()["annotations"]:
        left, top, width, height = annotation["bbox"]
        for _ in range(2):
            moved = np.array([left, top, left + width, top + height]) + rng.integers(-3, 4, 4)
            boxes[annotation["image_id"]].append(moved.clip(0, SIDE).astype(int).tolist())
            labels[annotation["image_id"]].append(
                data.category_ids.index(annotation["category_id"])
            )
            scores[annotation["image_id"]].append(round(float(rng.uniform(0.2, 1.0)), 2))
    for image_id in data.ids:
        for _ in range(4):
            boxes[image_id].append(random_rectangle(rng))
            labels[image_id].append(int(rng.integers(len(CLASSES))))
            scores[image_id].append(round(float(rng.uniform(0.1, 0.8)), 2))
    predictions = {}
    for image_id in data.ids:
        predictions[image_id] = {
            "boxes": torch.tensor(boxes[image_id], dtype=torch.float32),
            "labels": torch.tensor(labels[image_id]),
            "scores": torch.tensor(scores[image_id], dtype=torch.float64),
        }
    return predictions


def pixels_of(box: Any) -> Array:
    """A rectangle as a mask."""
    mask = np.zeros((SIDE, SIDE), bool)
    left, top, right, bottom = (round(x) for x in box)
    mask[top:bottom, left:right] = True
    return mask


def overlap(box: Any, other: Any) -> float:
    """The IoU of two rectangles in whole pixels: of their boxes it is that of their masks."""
    one, two = pixels_of(box), pixels_of(other)
    return (one & two).sum() / (one | two).sum()


def plain_matches(
    data: BoxImages, predictions: dict[int, dict[str, Any]], label: int
) -> tuple[list[float], list[bool], int]:
    """Scores of the objects of a class, whether each is a true one, and the number of true ones.

    In each image the object with the highest score takes the true one that it overlaps most, if it
    is free and the IoU is 0.5 or more.
    """
    scores: list[float] = []
    is_right: list[bool] = []
    num_true = 0
    for image_id, prediction in predictions.items():
        free = []
        for annotation in data.ground_truth()["annotations"]:
            if annotation["image_id"] == image_id:
                if annotation["category_id"] == data.category_ids[label]:
                    left, top, width, height = annotation["bbox"]
                    free.append([left, top, left + width, top + height])
        num_true += len(free)
        of_class = (prediction["labels"] == label).nonzero()[:, 0].tolist()
        of_class.sort(key=lambda i: -float(prediction["scores"][i]))  # stable
        for i in of_class:
            ious = [overlap(prediction["boxes"][i].tolist(), true) for true in free]
            best = int(np.argmax(ious)) if ious else 0
            matched = bool(ious) and ious[best] >= 0.5
            if matched:
                del free[best]
            scores.append(float(prediction["scores"][i]))
            is_right.append(matched)
    return scores, is_right, num_true


def plain_f1(threshold: float, scores: list[float], is_right: list[bool], num_true: int) -> float:
    predicted = [right for score, right in zip(scores, is_right, strict=True) if score >= threshold]
    return 2 * sum(predicted) / (len(predicted) + num_true)


def as_coco_objects(predictions: dict[int, dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The rectangles as masks in COCO's form."""
    from pycocotools import mask

    objects = {}
    for image_id, prediction in predictions.items():
        entries = []
        for box, label, score in zip(
            prediction["boxes"].tolist(),
            prediction["labels"].tolist(),
            prediction["scores"].tolist(),
            strict=True,
        ):
            runs = mask.encode(np.asfortranarray(pixels_of(box).astype(np.uint8)))
            entries.append(
                {
                    "category_id": label,
                    "score": score,
                    "segmentation": {**runs, "counts": runs["counts"].decode("ascii")},
                    "bbox": mask.toBbox(runs).tolist(),
                }
            )
        objects[image_id] = entries
    return objects


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_threshold_of_each_class_has_the_f1_of_a_plain_search(
    kind: str, library: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    else:
        pytest.importorskip(library)
    rng = np.random.default_rng(seed)
    data = write_rectangles(tmp_path, rng)
    predictions = random_predictions(data, rng)

    if kind == "boxes":
        scores = score_boxes(data, predictions)
    else:
        scores = score_masks(data, as_coco_objects(predictions))

    thresholds = scores["thresholds"]
    assert list(thresholds) == list(data.classes)
    assert thresholds["rare"] is None, "four objects are too few"
    for name in ("leaf", "stone"):
        matches = plain_matches(data, predictions, data.classes.index(name))
        distinct = sorted(set(matches[0]))
        f1_from = [plain_f1(score, *matches) for score in distinct]
        assert plain_f1(thresholds[name], *matches) == max(f1_from)
        # the highest of the best, as everything below it must not count either
        best = max(i for i, f1 in enumerate(f1_from) if f1 == max(f1_from))
        next_lower = distinct[best - 1] if best else 0.0
        assert thresholds[name] == pytest.approx((distinct[best] + next_lower) / 2, abs=1e-12)


def test_a_class_with_few_objects_has_the_smallest_score_of_all_classes() -> None:
    scores = {"min_score": 0.3, "thresholds": {"red": 0.45, "blue": None}}
    assert class_thresholds(scores, ("red", "blue")) == (0.45, 0.3)
    assert class_thresholds(scores, ("blue", "red")) == (0.3, 0.45)
    nothing = {"min_score": None, "thresholds": {"red": None, "blue": None}}
    assert class_thresholds(nothing, ("red", "blue")) == ()


# detectors


def detector_that_finds(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> Detector:
    """A detector of red and blue whose image has a box of each score, red and blue in turn."""
    detector = detector_of("fcos")
    count = len(scores)
    detections = {
        "boxes": torch.tensor([[8.0 * i, 4.0, 8.0 * i + 6, 20.0] for i in range(count)]),
        "scores": torch.tensor(scores),
        "labels": torch.tensor([i % 2 for i in range(count)]),
    }
    monkeypatch.setattr(
        detector.head, "forward", lambda images, targets: [detections] * len(images)
    )
    return detector


IMAGE = torch.zeros(3, 96, 128)


def test_boxes_reach_the_threshold_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_that_finds(monkeypatch, [0.9, 0.8, 0.6, 0.5, 0.4, 0.35])
    assert len(detector.predict(IMAGE)[0]["scores"]) == 6  # min_score is 0.3

    detector.thresholds = (0.55, 0.4)

    [prediction] = detector.predict(IMAGE)
    assert prediction["names"] == ["red", "blue", "red", "blue"]
    assert prediction["scores"].tolist() == pytest.approx([0.9, 0.8, 0.6, 0.5])
    [stated] = detector.predict(IMAGE, min_score=0.85)
    assert stated["names"] == ["red"]
    [every] = detector.predict(IMAGE, min_score=0.0)
    assert len(every["scores"]) == 6


def test_tiles_are_cut_by_the_threshold_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_that_finds(monkeypatch, [0.9, 0.8, 0.6, 0.5])
    detector.thresholds = (0.7, 0.4)
    large = torch.zeros(3, 96, 240)
    [prediction] = detector.predict(large, tile=(96, 128))
    names = set(zip(prediction["names"], prediction["scores"].tolist(), strict=True))
    assert {(name, round(score, 2)) for name, score in names} == {
        ("red", 0.9),
        ("blue", 0.8),
        ("blue", 0.5),
    }


def test_a_smallest_score_that_is_set_takes_the_place_of_thresholds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = detector_that_finds(monkeypatch, [0.9, 0.8, 0.6, 0.5])
    detector.thresholds = (0.95, 0.95)
    detector.min_score = 0.7
    assert detector.thresholds == ()
    assert len(detector.predict(IMAGE)[0]["scores"]) == 2


class HeadWithoutThresholds(DetectionHead):
    """A head of one's own whose constructor has no thresholds, as those written for 0.3."""

    def __init__(
        self,
        neck: Neck,
        tuned: dict[str, tuple[int, ...]] | None = None,
        min_score: float = 0.3,
        *,
        device: Any = None,
    ) -> None:
        super().__init__(
            "fcos", ("red", "blue"), neck, tuned=tuned, min_score=min_score, device=device
        )


def test_a_head_of_ones_own_needs_no_thresholds_in_its_constructor(tmp_path: Path) -> None:
    register(HeadWithoutThresholds, name="head_without_thresholds")
    head = HeadWithoutThresholds(STAPyramid(64, 32))
    detector = Detector(head, kit.backbone(), (96, 128))
    detector.min_score = 0.7

    detector.save(tmp_path / "own.safetensors")

    loaded = HeadCheckpoint.load(tmp_path / "own.safetensors")
    assert loaded.config["min_score"] == 0.7
    assert "thresholds" not in loaded.config


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 1.5), (0.5, float("nan"))])
def test_thresholds_are_one_score_per_class(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="thresholds are"):
        detector_of("fcos").thresholds = thresholds
    with pytest.raises(ConfigError, match="thresholds"):
        detector_of("fcos", thresholds=thresholds)


def test_a_file_keeps_the_thresholds_of_a_detector(tmp_path: Path) -> None:
    detector = detector_of("fcos")
    detector.save(tmp_path / "without.safetensors")
    assert "thresholds" not in HeadCheckpoint.load(tmp_path / "without.safetensors").config

    detector.thresholds = (0.25, 0.625)
    detector.save(tmp_path / "with.safetensors")

    again = Detector.load(tmp_path / "with.safetensors")
    assert again.thresholds == (0.25, 0.625)
    shown = kit.cli("inspect", tmp_path / "with.safetensors").out
    assert "thresholds (red 0.25, blue 0.625)" in shown
    again.min_score = detector.head.config["min_score"]
    again.save(tmp_path / "removed.safetensors")
    removed = HeadCheckpoint.load(tmp_path / "removed.safetensors")
    assert removed.meta["config"] == HeadCheckpoint.load(tmp_path / "without.safetensors").config


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 2.0], "high"])
def test_a_file_with_other_thresholds_is_refused(thresholds: Any, tmp_path: Path) -> None:
    checkpoint = detector_of("fcos").checkpoint()
    meta = {**checkpoint.meta, "config": {**checkpoint.config, "thresholds": thresholds}}
    with pytest.raises((CheckpointError, ConfigError), match="thresholds"):
        build_on_meta(meta, "a detector")


def test_the_verb_predicts_by_thresholds_unless_a_score_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of("fcos")
    with torch.no_grad():
        detector.head.model.head.classification_head.cls_logits.bias.fill_(2.0)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    [every] = detector.predict(pixels)
    assert {"red", "blue"} == set(every["names"])
    detector.thresholds = (1.0, 0.0)  # no red box, and all blue ones
    detector.save(tmp_path / "d.safetensors")
    monkeypatch.chdir(tmp_path)

    command = ["predict", "0.png", "--heads", "d.safetensors", "--json", "--out", "boxes.csv"]
    boxes = kit.cli(*command).json["predictions"]
    stated = kit.cli(*command, "--min-score", "0.3").json["predictions"]

    assert {box["name"] for box in boxes} == {"blue"}
    predictor = Predictor(tmp_path / "d.safetensors")
    assert predictor.one("0.png")["names"] == ["blue"] * len(boxes)
    assert set(predictor.one("0.png", min_score=0.3)["names"]) == {"red", "blue"}
    assert {box["name"] for box in stated} == {"red", "blue"}
    assert len(stated) == len(every["names"])


@pytest.mark.slow
def test_a_training_keeps_the_thresholds_of_its_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = coloured_boxes.write(tmp_path / "images")
    precisions = iter([0.1, 0.5, 0.2])  # of the first weights, then of each epoch
    thresholds = iter([0.9, 0.45, 0.8])
    score = training.score_boxes

    def scripted(*arguments: Any) -> dict[str, Any]:
        by_class = {"red": next(thresholds), "blue": None}
        scores = {"AP": next(precisions), "min_score": 0.35, "thresholds": by_class}
        return score(*arguments) | scores

    monkeypatch.setattr(training, "score_boxes", scripted)

    report = train_detector(config_of(boxes, optim={"epochs": 2}), tmp_path / "run")

    detector = Detector.load(tmp_path / "run" / "detector.safetensors")
    assert (detector.min_score, detector.thresholds) == (0.35, (0.45, 0.35))
    notes = [table.note for table in all_tables(report)]
    assert (
        "Classes with fewer than 5 held-out objects, or of which none is found, keep the smallest "
        "score of all classes (0.350): blue." in notes
    )


@pytest.mark.slow
def test_a_report_shows_boxes_from_the_threshold_of_their_class(tmp_path: Path) -> None:
    boxes = coloured_boxes.write(tmp_path / "images")
    detector = detector_of("fcos")
    with torch.no_grad():
        detector.head.model.head.classification_head.cls_logits.bias.fill_(2.0)
    detector.thresholds = (1.0, 0.0)  # no red box, and all blue ones
    detector.save(tmp_path / "d.safetensors")
    words = ["viz", "report", tmp_path / "d.safetensors", boxes.parent, "--truth", boxes]

    by_class = kit.cli(*words, "--out", tmp_path / "by_class.html", "--json").json["scores"]
    options = ["--min-score", "0.3", "--out", tmp_path / "stated.html", "--json"]
    stated = kit.cli(*words, *options).json["scores"]

    assert by_class["red"]["predicted"] == 0
    assert by_class["blue"]["predicted"] > 0
    page = (tmp_path / "by_class.html").read_text()
    assert "those of the score of their class or more: red 1, blue 0" in page
    assert stated["red"]["predicted"] > 0
    assert "those of a score of 0.3 or more" in (tmp_path / "stated.html").read_text()


# objects

OBJECTS = Task(
    "object", dim=2, kind="instances", labels=("leaf", "stone"), thresholds=(0.7, 0.2), minimum=0.5
)


def test_instances_reach_the_threshold_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(1, 40, 3, generator=generator) * 3
    masks = torch.randn(1, 40, 8, 8, generator=generator) * 4
    [every] = decode_instances(classes, masks, (16, 16), min_score=0.0)
    least = torch.tensor([0.7, 0.2])[every["labels"]]
    is_sure = every["scores"] >= least
    assert 0 < is_sure.sum() < len(is_sure)

    [instances] = decode_instances(classes, masks, (16, 16), min_score=(0.7, 0.2))

    for name, values in every.items():
        assert torch.equal(instances[name], values[is_sure])


def test_centres_reach_the_threshold_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 6, 12, 12, generator=generator)
    maps[:, 0] -= 2.0
    [every] = decode_centres(maps, (24, 24), min_score=0.0)
    median = float(every["scores"].median())
    is_sure = (every["labels"] == 1) | (every["scores"] >= median)
    assert 0 < is_sure.sum() < len(is_sure)

    [instances] = decode_centres(maps, (24, 24), min_score=(median, 0.0))

    assert torch.equal(instances["scores"], every["scores"][is_sure])
    assert torch.equal(instances["masks"], every["masks"][is_sure])


def test_thresholds_are_of_labels_and_instances() -> None:
    assert OBJECTS.least_score == (0.7, 0.2)
    assert replace(OBJECTS, thresholds=()).least_score == 0.5
    with pytest.raises(ConfigError, match="only kinds 'multilabel' and 'instances' have them"):
        replace(OBJECTS, kind="panoptic")
    with pytest.raises(ConfigError, match="one for each of 2 labels"):
        replace(OBJECTS, thresholds=(0.5,))


def head_named(name: str, task: Task) -> Head:
    """A head of queries, or of centres."""
    if name == "queries":
        return kit.randomised(MaskHead(64, [task], 1, 12, 1, 2, 8), std=0.4)
    neck = {"type": "simple_pyramid", "out_channels": 8}
    return kit.randomised(PyramidHead(64, [task], neck))


@pytest.mark.parametrize("name", ["queries", "centres"])
def test_a_head_of_objects_predicts_by_the_thresholds_of_its_file(
    name: str, tmp_path: Path
) -> None:
    backbone = kit.backbone(layers=[0])
    image = (kit.images(1, 80, 96)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    head = head_named(name, replace(OBJECTS, thresholds=(), minimum=0.0))
    checkpoint = HeadCheckpoint.from_module(head, backbone=backbone, preprocess=backbone.preprocess)
    every = Predictor(checkpoint, backbone).one(image)["object"]
    assert len(every["scores"]) > 1
    thresholds = [0.0, 0.0]  # of the class of the last object it lies between the two last scores
    thresholds[every["labels"][-1]] = float(every["scores"][-2:].mean())

    checkpoint.with_thresholds({"object": thresholds}).save(tmp_path / "head.safetensors")

    predictor = Predictor(tmp_path / "head.safetensors", backbone)
    np.testing.assert_array_equal(predictor.one(image)["object"]["scores"], every["scores"][:-1])
    stated = predictor.one(image, min_score=0.0)["object"]
    np.testing.assert_array_equal(stated["scores"], every["scores"])
    shown = kit.cli("inspect", tmp_path / "head.safetensors").out
    assert "thresholds: leaf" in shown


def test_an_exported_head_of_objects_states_its_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs: dict[Any, Array] = {
        "classes": (torch.randn(40, 3, generator=generator) * 3).numpy(),
        "masks": (torch.randn(40, 8, 8, generator=generator) * 4).numpy(),
    }
    arguments: dict[str, Any] = {"size": (16, 16), "recipe": ImageRecipe(patch_size=16)}
    every = objects_from_outputs(outputs, record_task(OBJECTS), min_score=0.0, **arguments)

    objects = objects_from_outputs(outputs, record_task(OBJECTS), min_score=None, **arguments)

    least = np.array([0.7, 0.2])[every["labels"]]
    np.testing.assert_array_equal(objects["scores"], every["scores"][every["scores"] >= least])
