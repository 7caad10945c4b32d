"""Intervals of differences of AP: a draw of images has the AP that pycocotools gives of these images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit

from dinoneck import STAPyramid, evaluate
from dinoneck.data import BoxImages
from dinoneck.detection import DetectionHead, Detector, coco_results, score_boxes
from dinoneck.detection.coco_evaluation import coco_evaluation
from dinoneck.detection.paired import class_results, drawn_precision, precision_intervals

pytest.importorskip("pycocotools")

IMAGES = 8


def write(folder: Path, copies: list[int] | None = None) -> BoxImages:
    """Images with four boxes each, an image as often as ``copies`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = copies or [1] * IMAGES
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image, count in enumerate(counts):
        for copy in range(count):
            image_id = 100 * image + copy + 1
            name = f"{image_id}.png"
            Image.new("RGB", (60, 60)).save(folder / name)
            images.append({"id": image_id, "file_name": name, "width": 60, "height": 60})
            for number in range(4):
                left, top = 25 * (number % 2), 25 * (number // 2)
                # the last image has no box of the second class
                category = 2 if number % 2 and image < IMAGES - 1 else 1
                box = [left, top, 20, 20]
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": box,
                    }
                )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    plain = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(plain))
    return BoxImages(folder / "truth.json", folder)


def predictions(data: BoxImages, noise: float, seed: int = 0) -> dict[int, dict[str, Any]]:
    """Boxes moved by up to ``noise`` px and boxes from nowhere; of copies of an image the same ones."""
    found = {}
    for image_id in data.ids:
        image = (image_id - 1) // 100
        generator = torch.Generator().manual_seed(1000 * seed + image)
        corners = torch.tensor([[25 * (n % 2), 25 * (n // 2)] for n in range(4)]).float()
        boxes = torch.cat((corners, corners + 20), dim=1)
        boxes = boxes + noise * (torch.rand(boxes.shape, generator=generator) - 0.5)
        labels = torch.tensor([n % 2 if image < IMAGES - 1 else 0 for n in range(4)])
        extra = torch.tensor([[5.0, 40.0, 18.0, 58.0]])
        found[image_id] = {
            "boxes": torch.cat((boxes, extra)),
            "labels": torch.cat((labels, torch.tensor([1]))),
            "scores": torch.rand(5, generator=generator),
        }
    return found


def test_a_draw_has_the_ap_of_its_images(tmp_path: Path) -> None:
    data = write(tmp_path / "all")
    results = coco_results(predictions(data, noise=9.0), data)
    classes = class_results(coco_evaluation(data, results, "bbox"))
    draws = np.array([[1] * IMAGES, [2, 0, 3, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 2, 2, 2]])
    found = drawn_precision(classes, draws)
    for row, (draw, ap) in enumerate(zip(draws, found, strict=True)):
        copies = write(tmp_path / f"draw{row}", draw.tolist())
        expected = score_boxes(copies, predictions(copies, noise=9.0))
        assert ap.mean() == pytest.approx(expected["AP"])
        assert ap[0] == pytest.approx(expected["AP50"])
    assert 0.1 < found[0].mean() < 0.9


def test_a_draw_without_any_object_is_no_number(tmp_path: Path) -> None:
    data = write(tmp_path)
    results = coco_results(predictions(data, noise=1.0), data)
    classes = class_results(coco_evaluation(data, results, "bbox"))
    assert np.isnan(drawn_precision(classes, np.zeros((1, IMAGES), int))).all()


def test_equal_models_have_an_interval_of_nothing(tmp_path: Path) -> None:
    data = write(tmp_path)
    results = coco_results(predictions(data, noise=9.0), data)
    assert precision_intervals(data, results, results, "bbox") == {"AP": [0, 0], "AP50": [0, 0]}


def test_a_better_model_has_an_interval_above_0_around_its_difference(tmp_path: Path) -> None:
    data = write(tmp_path)
    better, worse = predictions(data, noise=4.0), predictions(data, noise=12.0, seed=1)
    found = precision_intervals(data, coco_results(better, data), coco_results(worse, data), "bbox")
    for score in ("AP", "AP50"):
        low, high = found[score]
        difference = score_boxes(data, better)[score] - score_boxes(data, worse)[score]
        assert 0 < low < difference < high


def test_few_images_have_no_interval(tmp_path: Path) -> None:
    data = write(tmp_path, [1, 1, 1, 1])
    results = coco_results(predictions(data, noise=9.0), data)
    assert precision_intervals(data, results, results, "bbox") == {"AP": None, "AP50": None}


def test_a_model_that_finds_nothing_is_compared_too(tmp_path: Path) -> None:
    data = write(tmp_path)
    found = precision_intervals(data, coco_results(predictions(data, noise=0.5), data), [], "bbox")
    assert found["AP50"] is not None and found["AP50"][0] > 0.5


def test_evaluate_compares_the_first_detector_with_the_others(tmp_path: Path) -> None:
    write(tmp_path)
    detectors = {}
    for name in ("one", "two"):
        torch.manual_seed(len(detectors))
        head = DetectionHead("fcos", ("a", "b"), STAPyramid(64, 32))
        detectors[name] = Detector(head, kit.backbone(), size=(64, 64)).eval()
    found = evaluate(detectors, tmp_path, tmp_path / "truth.json")
    low, high = found["boxes"]["two"]["head_minus"]["AP"]
    difference = found["boxes"]["one"]["AP"] - found["boxes"]["two"]["AP"]
    assert low <= difference <= high
    assert "head_minus" not in found["boxes"]["one"]
    assert found["verdict"].startswith("AP of one minus AP of two is ")
    assert f"over {IMAGES} images" in found["verdict"]


def test_detectors_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path)
    detectors = {}
    for name, classes in (("one", ("a", "b")), ("two", ("a",))):
        head = DetectionHead("fcos", classes, STAPyramid(64, 32))
        detectors[name] = Detector(head, kit.backbone(), size=(64, 64)).eval()
    found = evaluate(detectors, tmp_path, tmp_path / "truth.json")
    assert "head_minus" not in found["boxes"]["two"]
    assert "their AP is not compared" in found["verdict"]
