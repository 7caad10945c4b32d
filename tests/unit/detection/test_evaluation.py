"""Average precision known beforehand, and the same numbers as pycocotools from files."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tests.conftest import DATA
from tests.unit.data.box_samples import content, write

from dinoneck import STAPyramid, load_backbone
from dinoneck.data import BoxImages, Preprocessing
from dinoneck.detection import (
    DetectionHead,
    Detector,
    coco_results,
    evaluate_boxes,
    score_boxes,
)

pytest.importorskip("pycocotools")

Predictions = dict[int, dict[str, Any]]
ZERO = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AR100": 0.0}


def totals(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(found[name], 6) for name in ZERO}


@pytest.fixture
def data(tmp_path: Path) -> BoxImages:
    """Three images of 30x40 px: red and blue boxes of 10x10 px, four of each, ten pixels apart."""
    plain = content()
    places = [(10 * i, 10 * j) for j in range(2) for i in range(2)]
    boxes = [(image, category, place) for image, category in ((10, 5), (11, 2)) for place in places]
    plain["annotations"] = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [*place, 10, 10]}
        for n, (image, category, place) in enumerate(boxes)
    ]
    return BoxImages(write(tmp_path, plain))


def test_a_missing_extra_is_named_before_an_image_is_predicted(
    data: BoxImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[Any] = []
    for library in ("pycocotools", "faster_coco_eval"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(Detector, "predict", lambda *_, **__: predicted.append(1))
    head = DetectionHead("fcos", data.classes, STAPyramid(64, 32))
    detector = Detector(head, load_backbone("dinoneck_tiny"), (32, 64))
    with pytest.raises(ImportError, match=r"pycocotools is not installed.*dinoneck\[detection\]"):
        evaluate_boxes(detector, data.file, data.paths[0].parent)
    assert predicted == []


def perfect(data: BoxImages) -> Predictions:
    return {
        image_id: {
            **{key: own[key] for key in ("boxes", "labels")},
            "scores": torch.full((len(own["labels"]),), 0.9),
        }
        for image_id, (_, own) in zip(data.ids, data, strict=True)
    }


def test_scores_known_beforehand(data: BoxImages, capsys: pytest.CaptureFixture[str]) -> None:
    """Perfect boxes, also the first, whose id is 0: pycocotools takes it for 'no match'; no boxes; a missing class."""
    whole, first, last = score_boxes(data, perfect(data)), data.take([0]), data.take([0, 2])
    assert set(totals(whole).values()) == {1.0}
    assert whole["per_class"] == {
        name: {"AP": pytest.approx(1), "AP50": pytest.approx(1)} for name in ("blue", "red")
    }
    assert score_boxes(first, perfect(first))["AR100"] == 1.0
    part = score_boxes(last, perfect(last))
    assert part["per_class"]["blue"] == {"AP": None, "AP50": None} and part["AP"] == 1.0
    empty = {"boxes": torch.zeros(0, 4), "scores": [], "labels": []}
    for found in ({}, dict.fromkeys(data.ids, empty)):
        nothing = score_boxes(data, found)
        assert totals(nothing) == ZERO and nothing["per_class"]["red"] == {"AP": 0.0, "AP50": 0.0}
    assert capsys.readouterr() == ("", "")


def test_boxes_of_low_scores_count(data: BoxImages) -> None:
    """The threshold of predictions is for pictures and tables: average precision ranks all boxes."""
    rows = iter(perfect(data).values())

    def predict(
        images: list[Any], min_score: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        found = [next(rows) for _ in images]
        if min_score is not None and min_score <= 0.01:
            return found
        return [{key: value[:0] for key, value in row.items()} for row in found]

    unsure = argparse.Namespace(
        classes=data.classes,
        predict=predict,
        preprocess=Preprocessing(),
        expect_images=lambda count: None,
    )
    assert set(totals(evaluate_boxes(unsure, data.file, data.paths[0].parent)).values()) == {1.0}


@pytest.mark.parametrize(("options", "sizes"), [({}, [3]), ({"batch_size": 2}, [2, 1])])
def test_as_many_images_as_asked_for_are_in_memory_and_in_a_pass(
    data: BoxImages, options: dict[str, int], sizes: list[int]
) -> None:
    rows = iter(perfect(data).values())
    calls = []

    def predict(images: list[Any], *, batch_size: int, **_: Any) -> list[dict[str, Any]]:
        calls.append((len(images), batch_size))
        return [next(rows) for _ in images]

    detector: Any = argparse.Namespace(
        classes=data.classes,
        predict=predict,
        preprocess=Preprocessing(),
        expect_images=lambda count: None,
    )
    scores = evaluate_boxes(detector, data.file, data.paths[0].parent, **options)
    assert calls == [(size, options.get("batch_size", 8)) for size in sizes]
    assert scores["AP"] == pytest.approx(1.0)


def test_a_box_in_a_crowd_counts_for_nothing(tmp_path: Path) -> None:
    plain, own = content(), {"image_id": 12, "category_id": 2}
    plain["annotations"].append({"id": 9, "bbox": [0, 0, 20, 20], "iscrowd": 1, **own})
    plain["annotations"].append({"id": 10, "bbox": [25, 5, 10, 10], **own})
    data = BoxImages(write(tmp_path, plain))
    for box, counts in (([2, 2, 8, 8], False), ([20, 20, 30, 30], True)):
        extra = {"boxes": [[25, 5, 35, 15], box], "scores": [0.9, 0.99], "labels": [0, 0]}
        assert (score_boxes(data, {**perfect(data), 12: extra})["AP"] < 0.95) == counts


def noisy(data: BoxImages, seed: int) -> Predictions:
    """Known boxes, moved, some gone, some twice, some of another class, and boxes from nowhere; scores at random."""
    generator = torch.Generator().manual_seed(seed)
    found: Predictions = {}
    truth: dict[int, list[Any]] = {i: [] for i in data.ids}
    for box in data.ground_truth()["annotations"]:
        truth[box["image_id"]].append((box["bbox"], data.category_ids.index(box["category_id"])))
    for image_id, known in truth.items():
        rows = torch.tensor([box for box, _ in known] + [[300.0, 200.0, 60.0, 60.0]] * 3).repeat(
            2, 1
        )
        labels = torch.tensor([label for _, label in known] + [0, 1, 2]).repeat(2)
        rows = rows + 0.06 * rows[:, 2:].repeat(1, 2) * torch.randn(rows.shape, generator=generator)
        keep = torch.rand(len(rows), generator=generator) < 0.6
        other = torch.rand(len(rows), generator=generator) < 0.1
        labels = torch.where(other, torch.randint(0, 3, labels.shape, generator=generator), labels)
        boxes = torch.cat((rows[:, :2], rows[:, :2] + rows[:, 2:].abs()), dim=1)
        scores = torch.rand(len(rows), generator=generator)
        found[image_id] = {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
    return found


@pytest.mark.slow
def test_real_boxes_score_as_pycocotools_does_from_files(tmp_path: Path) -> None:
    file = DATA / "blood_cells" / "val.json"
    if not file.is_file():
        pytest.skip(f"there is no {file}; set DINONECK_DATA to the folder that holds blood_cells")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = BoxImages(file)
    found = noisy(data, 0)
    ours = score_boxes(data, found)
    (tmp_path / "results.json").write_text(json.dumps(coco_results(found, data)))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        test = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        test.evaluate()
        test.accumulate()
        test.summarize()
    official = {
        name: test.stats[place]
        for name, place in (("AP", 0), ("AP50", 1), ("AP75", 2), ("AR100", 8))
    }
    assert {name: ours[name] for name in official} == pytest.approx(official, abs=1e-12)
    assert 0.1 < ours["AP"] < ours["AP50"] < 0.9
    for k, name in enumerate(data.classes):
        precision = test.eval["precision"][:, :, k, 0, 2]
        assert ours["per_class"][name]["AP"] == pytest.approx(precision.mean(), abs=1e-12)
        assert ours["per_class"][name]["AP50"] == pytest.approx(precision[0].mean(), abs=1e-12)


def test_the_best_threshold_is_that_of_a_plain_search(tmp_path: Path) -> None:
    """Every score is tried as the threshold, on boxes that are matched one by one, the highest score first."""
    data, truth, found = BoxImages(write(tmp_path, content())), {}, {}
    far = torch.tensor([[0.0, 20.0, 6.0, 28.0], [30.0, 0.0, 38.0, 6.0]])
    for i, image_id in enumerate(data.ids):
        true = data.original(i)[1].as_subclass(torch.Tensor)
        labels = torch.cat([data[i][1]["labels"], torch.tensor([0, 1])])
        boxes = torch.cat([true + torch.rand(true.shape) * 2 - 1, far])
        truth[image_id] = true, data[i][1]["labels"]
        found[image_id] = {"boxes": boxes, "labels": labels, "scores": torch.rand(len(labels))}
    result = score_boxes(data, found)

    def f1(threshold: float) -> float:
        matched = predicted = 0
        for image_id, (true, labels) in truth.items():
            own, free = found[image_id], torch.ones(len(true), dtype=torch.bool)
            for place in own["scores"].argsort(descending=True).tolist():
                if own["scores"][place] >= threshold:
                    predicted += 1
                    ious = torchvision.ops.box_iou(own["boxes"][[place]], true)[0]
                    fits = ((ious >= 0.5) & (labels == own["labels"][place]) & free).nonzero()[
                        :1, 0
                    ]
                    matched += len(fits)
                    free[fits] = False
        return 2 * matched / (predicted + 4)

    scores = torch.cat([own["scores"] for own in found.values()]).tolist()
    assert result["F1"] == pytest.approx(max(map(f1, scores)))
    assert f1(result["min_score"]) == pytest.approx(result["F1"])
    assert score_boxes(data, {})["min_score"] is None
