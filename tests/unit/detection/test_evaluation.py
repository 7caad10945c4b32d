"""Average precision known beforehand, and the same numbers as pycocotools from files."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import types
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
    """Three images of 30x40 px: four red boxes of 10x10 px in the first, four blue ones in the second.

    The boxes of an image touch each other. The first has the id 0.
    """
    coco = content()
    annotations: list[dict[str, Any]] = []
    for image_id, category_id in ((10, 5), (11, 2)):
        for x, y in ((0, 0), (10, 0), (0, 10), (10, 10)):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, 10, 10],
                }
            )
    coco["annotations"] = annotations
    return BoxImages(write(tmp_path, coco))


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
    """The known boxes of every image, with a score of 0.9."""
    predictions = {}
    for image_id, (_, target) in zip(data.ids, data, strict=True):
        scores = torch.full((len(target["labels"]),), 0.9)
        predictions[image_id] = {
            "boxes": target["boxes"],
            "labels": target["labels"],
            "scores": scores,
        }
    return predictions


def detector_of(data: BoxImages, predict: Any) -> Any:
    """What evaluate_boxes calls of a detector."""
    return types.SimpleNamespace(
        classes=data.classes,
        predict=predict,
        preprocess=Preprocessing(),
        expect_images=lambda count: None,
    )


def test_perfect_boxes_have_scores_of_1(
    data: BoxImages, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = score_boxes(data, perfect(data))

    assert set(totals(scores).values()) == {1.0}
    perfect_class = {"AP": pytest.approx(1), "AP50": pytest.approx(1)}
    assert scores["per_class"] == {"blue": perfect_class, "red": perfect_class}
    assert capsys.readouterr() == ("", "")  # pycocotools prints


def test_the_first_box_counts_though_its_id_is_0(data: BoxImages) -> None:
    """pycocotools takes 0 for 'no match'."""
    first_image = data.take([0])

    scores = score_boxes(first_image, perfect(first_image))

    assert scores["AR100"] == 1.0


def test_a_class_without_boxes_has_no_score(data: BoxImages) -> None:
    without_blue = data.take([0, 2])

    scores = score_boxes(without_blue, perfect(without_blue))

    assert scores["per_class"]["blue"] == {"AP": None, "AP50": None}
    assert scores["AP"] == 1.0


@pytest.mark.parametrize("has_rows", [False, True])
def test_without_predicted_boxes_all_scores_are_0(
    data: BoxImages, has_rows: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions: Predictions = {}
    if has_rows:
        for image_id in data.ids:
            predictions[image_id] = {"boxes": torch.zeros(0, 4), "scores": [], "labels": []}

    scores = score_boxes(data, predictions)

    assert totals(scores) == ZERO
    assert scores["per_class"]["red"] == {"AP": 0.0, "AP50": 0.0}
    assert capsys.readouterr() == ("", "")


def test_boxes_of_all_scores_are_evaluated(data: BoxImages) -> None:
    """The threshold of predictions is for pictures and tables: average precision ranks all boxes."""
    rows = iter(perfect(data).values())
    thresholds = set()

    def predict(
        images: list[Any], min_score: float | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        thresholds.add(min_score)
        return [next(rows) for _ in images]

    scores = evaluate_boxes(detector_of(data, predict), data.file, data.paths[0].parent)

    assert set(totals(scores).values()) == {1.0}
    [threshold] = thresholds
    assert threshold is not None
    assert threshold <= 0.01


@pytest.mark.parametrize(("options", "sizes"), [({}, [3]), ({"batch_size": 2}, [2, 1])])
def test_images_are_read_and_predicted_in_batches(
    data: BoxImages, options: dict[str, int], sizes: list[int]
) -> None:
    rows = iter(perfect(data).values())
    calls = []  # the number of images and the batch size of each

    def predict(images: list[Any], *, batch_size: int, **_: Any) -> list[dict[str, Any]]:
        calls.append((len(images), batch_size))
        return [next(rows) for _ in images]

    detector = detector_of(data, predict)
    scores = evaluate_boxes(detector, data.file, data.paths[0].parent, **options)

    batch_size = options.get("batch_size", 8)
    assert calls == [(size, batch_size) for size in sizes]
    assert scores["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("box", "counts"),
    [
        pytest.param([2, 2, 8, 8], False, id="in the crowd"),
        pytest.param([20, 20, 30, 30], True, id="outside of it"),
    ],
)
def test_a_wrong_box_counts_outside_of_crowds_alone(
    box: list[int], counts: bool, tmp_path: Path
) -> None:
    coco = content()
    of_image = {"image_id": 12, "category_id": 2}
    crowd = {"id": 9, "bbox": [0, 0, 20, 20], "iscrowd": 1, **of_image}
    single = {"id": 10, "bbox": [25, 5, 10, 10], **of_image}
    coco["annotations"] += [crowd, single]
    data = BoxImages(write(tmp_path, coco))
    predictions = perfect(data)
    predictions[12] = {"boxes": [[25, 5, 35, 15], box], "scores": [0.9, 0.99], "labels": [0, 0]}

    scores = score_boxes(data, predictions)

    assert (scores["AP"] < 0.95) == counts


def noisy(data: BoxImages, seed: int) -> Predictions:
    """Predict every known box twice, moved, and twice three boxes where nothing is; of these, keep 60 %.

    A tenth of the boxes have a random class. The scores are random.
    """
    generator = torch.Generator().manual_seed(seed)
    nowhere = [[300.0, 200.0, 60.0, 60.0]] * 3
    xywh_of: dict[int, list[list[float]]] = {image_id: [] for image_id in data.ids}
    labels_of: dict[int, list[int]] = {image_id: [] for image_id in data.ids}
    for annotation in data.ground_truth()["annotations"]:
        label = data.category_ids.index(annotation["category_id"])
        xywh_of[annotation["image_id"]].append(annotation["bbox"])
        labels_of[annotation["image_id"]].append(label)

    predictions: Predictions = {}
    for image_id in data.ids:
        xywh = torch.tensor([*xywh_of[image_id], *nowhere]).repeat(2, 1)
        labels = torch.tensor([*labels_of[image_id], 0, 1, 2]).repeat(2)

        size = xywh[:, 2:].repeat(1, 2)  # (w, h, w, h): noise is a share of the box
        xywh = xywh + 0.06 * size * torch.randn(xywh.shape, generator=generator)
        x1_y1 = xywh[:, :2]
        x2_y2 = x1_y1 + xywh[:, 2:].abs()
        boxes = torch.cat([x1_y1, x2_y2], dim=1)

        keep = torch.rand(len(xywh), generator=generator) < 0.6
        is_mistaken = torch.rand(len(xywh), generator=generator) < 0.1
        random_labels = torch.randint(0, 3, labels.shape, generator=generator)
        labels = torch.where(is_mistaken, random_labels, labels)
        scores = torch.rand(len(xywh), generator=generator)
        predictions[image_id] = {
            "boxes": boxes[keep],
            "scores": scores[keep],
            "labels": labels[keep],
        }
    return predictions


@pytest.mark.slow
def test_real_boxes_score_as_pycocotools_does_from_files(tmp_path: Path) -> None:
    file = DATA / "blood_cells" / "val.json"
    if not file.is_file():
        pytest.skip(f"there is no {file}; set DINONECK_DATA to the folder that holds blood_cells")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = BoxImages(file)
    predictions = noisy(data, seed=0)
    ours = score_boxes(data, predictions)

    (tmp_path / "results.json").write_text(json.dumps(coco_results(predictions, data)))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        test = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        test.evaluate()
        test.accumulate()
        test.summarize()
    official = {  # places in COCOeval.stats
        "AP": test.stats[0],
        "AP50": test.stats[1],
        "AP75": test.stats[2],
        "AR100": test.stats[8],
    }

    assert {name: ours[name] for name in official} == pytest.approx(official, abs=1e-12)
    assert 0.1 < ours["AP"] < ours["AP50"] < 0.9
    for label, name in enumerate(data.classes):
        # of all areas, with up to 100 boxes: (IoU thresholds, recalls)
        precision = test.eval["precision"][:, :, label, 0, 2]
        assert ours["per_class"][name]["AP"] == pytest.approx(precision.mean(), abs=1e-12)
        assert ours["per_class"][name]["AP50"] == pytest.approx(precision[0].mean(), abs=1e-12)


def test_the_best_threshold_is_that_of_a_plain_search(tmp_path: Path) -> None:
    """Every score is tried as the threshold, on boxes that are matched one by one, the highest score first."""
    data = BoxImages(write(tmp_path, content()))
    nowhere = torch.tensor([[0.0, 20.0, 6.0, 28.0], [30.0, 0.0, 38.0, 6.0]])
    known: Predictions = {}
    predictions: Predictions = {}
    for index, image_id in enumerate(data.ids):
        _, target = data[index]
        _, original_boxes = data.original(index)
        known_boxes = original_boxes.as_subclass(torch.Tensor)
        moved = known_boxes + torch.rand(known_boxes.shape) * 2 - 1
        labels = torch.cat([target["labels"], torch.tensor([0, 1])])
        known[image_id] = {"boxes": known_boxes, "labels": target["labels"]}
        predictions[image_id] = {
            "boxes": torch.cat([moved, nowhere]),
            "labels": labels,
            "scores": torch.rand(len(labels)),
        }

    result = score_boxes(data, predictions)

    scores = torch.cat([row["scores"] for row in predictions.values()]).tolist()
    best_f1 = max(f1_at(score, known, predictions) for score in scores)
    assert result["F1"] == pytest.approx(best_f1)
    assert f1_at(result["min_score"], known, predictions) == pytest.approx(best_f1)


def f1_at(threshold: float, known: Predictions, predictions: Predictions) -> float:
    """Return the F1 score of the boxes from a threshold on, over all images and classes."""
    num_known = 0
    num_predicted = 0
    num_matched = 0
    for image_id, target in known.items():
        row = predictions[image_id]
        is_free = torch.ones(len(target["boxes"]), dtype=torch.bool)
        num_known += len(is_free)
        for index in row["scores"].argsort(descending=True).tolist():
            if row["scores"][index] < threshold:
                break
            num_predicted += 1
            ious = torchvision.ops.box_iou(row["boxes"][[index]], target["boxes"])[0]
            is_right = target["labels"] == row["labels"][index]
            candidates = ((ious >= 0.5) & is_right & is_free).nonzero().flatten()
            if len(candidates) > 0:
                num_matched += 1
                is_free[candidates[0]] = False
    return 2 * num_matched / (num_predicted + num_known)


def test_without_boxes_there_is_no_best_threshold(tmp_path: Path) -> None:
    data = BoxImages(write(tmp_path, content()))

    assert score_boxes(data, {})["min_score"] is None
