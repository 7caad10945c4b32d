"""Detectors keep the units of boxes through every library, and a file gives the same boxes back."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.hub_server import WRITER, Hub
from tests.unit.detection import coloured_boxes
from tests.unit.store.store_samples import write_images

from dinoneck import HeadCheckpoint, SpatialTuningAdapter, STAPyramid, load_backbone
from dinoneck.data import BoxImages, box_transforms
from dinoneck.detection import DetectionHead, Detector
from dinoneck.errors import DataError

OTHERS = ("dfine", "rtdetrv2", "retinanet", "fasterrcnn")
KINDS = ("fcos", *OTHERS)
SIZE = (96, 128)
TARGETS = [
    {"boxes": torch.tensor([[8.0, 16.0, 72.0, 80.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


def detector_of(
    kind: str, neck: Any = None, size: tuple[int, int] = SIZE, **changes: Any
) -> Detector:
    torch.manual_seed(0)
    neck = SpatialTuningAdapter(64, 32) if neck is None else neck
    own = {"variant": "tiny", "queries": 20 if kind in ("dfine", "rtdetrv2") else None, **changes}
    head = DetectionHead(kind, ("red", "blue"), neck, **own)
    return Detector(head, load_backbone("dinoneck_tiny", layers=(1, 3, 5)), size)


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        torch.equal(a[key], b[key]) for a, b in pairs for key in ("boxes", "scores", "labels")
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", *OTHERS])
def test_a_file_gives_the_same_boxes_with_the_backbone_as_it_was_trained(
    kind: str, tmp_path: Path
) -> None:
    detector = detector_of(kind)
    images = [torch.rand(3, 96, 128), torch.rand(3, 150, 70)]
    detector.save(tmp_path / "frozen.safetensors")
    before = detector.predict(images, min_score=0.0)
    detector.backbone.unfreeze_last(1)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01).add_(0.01)
    detector.note_trained()
    detector.backbone.freeze()  # trained before, frozen now: still a part of the file
    detector.save(tmp_path / "d.safetensors", license="MIT")
    checkpoint = HeadCheckpoint.load(tmp_path / "d.safetensors")
    assert (checkpoint.head_type, checkpoint.meta["license"]) == ("detector", "MIT")
    again = Detector.load(tmp_path / "d.safetensors")
    assert alike(detector.predict(images, min_score=0.0), again.predict(images, min_score=0.0))
    assert alike(
        before, Detector.load(tmp_path / "frozen.safetensors").predict(images, min_score=0.0)
    )
    again.save(tmp_path / "e.safetensors", license="MIT")
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_with_an_empty_image_and_reach_neck_and_detector(kind: str) -> None:
    detector = detector_of(kind, STAPyramid(64, 32)).train()
    total = sum(detector(torch.rand(2, 3, *SIZE), TARGETS).values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in detector.head.levels.neck.parameters())
    assert all(p.grad is None for p in detector.backbone.parameters())


def test_detr_targets_are_centres_and_sizes_as_shares_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector, seen = detector_of("dfine"), []

    def model(pixel_values: torch.Tensor, labels: Any) -> Any:
        seen.extend([pixel_values, labels])
        parts = {"loss_vfl": 1.0, "loss_bbox": 2.0, "loss_vfl_aux_0": 10.0, "loss_bbox_dn_1": 100.0}
        return argparse.Namespace(
            loss_dict={name: torch.tensor(value) for name, value in parts.items()}
        )

    monkeypatch.setattr(detector.head.model, "forward", model)
    mean = torch.tensor(detector.preprocess.mean)[:, None, None].expand(1, 3, *SIZE)
    assert {name: float(x) for name, x in detector(mean, TARGETS[:1]).items()} == {
        "loss_vfl": 11.0,
        "loss_bbox": 102.0,
    }
    assert seen[0].abs().max() < 1e-6
    assert torch.allclose(
        seen[1][0]["boxes"], torch.tensor([[40 / 128, 48 / 96, 64 / 128, 64 / 96]])
    )


def test_detr_boxes_are_those_of_the_library_in_pixels() -> None:
    from transformers import RTDetrImageProcessor

    detector, images = detector_of("dfine").eval(), torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        found = detector(images)
        mean, std = (
            torch.tensor(each)[:, None, None]
            for each in (detector.preprocess.mean, detector.preprocess.std)
        )
        outputs = detector.head.model(pixel_values=(images - mean) / std)
    wanted = RTDetrImageProcessor().post_process_object_detection(
        outputs, threshold=-1.0, target_sizes=[SIZE] * 2
    )
    assert alike(found, wanted)


def test_faster_rcnn_keeps_its_background_label(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = detector_of("fasterrcnn"), []
    monkeypatch.setattr(
        detector.head.model, "forward", lambda images, targets: seen.append(targets) or {}
    )
    detector(torch.rand(2, 3, *SIZE), TARGETS)
    assert seen[0][0]["labels"].tolist() == [2]


@pytest.mark.slow
def test_predictions_are_in_the_pixels_of_each_image(tmp_path: Path) -> None:
    """Prepared as in training, inside the image, the surest first; above a threshold."""
    detector, file = detector_of("dfine"), coloured_boxes.write(tmp_path / "images")
    data = BoxImages(file, transform=box_transforms(SIZE, train=False, mean=None, std=None))
    with torch.no_grad():
        [seen] = detector.eval()(data[0][0][None])
    [found] = detector.predict(tmp_path / "images" / "0.png", min_score=0.0)
    assert torch.allclose(found["scores"], seen["scores"], atol=1e-5)
    large = np.asarray(
        Image.open(tmp_path / "images" / "0.png").resize((256, 192), Image.Resampling.NEAREST)
    )
    [one] = detector.predict(large, min_score=0.0)
    assert len(one["boxes"]) == 20 and one["names"] == [
        ("red", "blue")[label] for label in one["labels"]
    ]
    assert (one["boxes"][:, 2:] <= torch.tensor([256.0, 192.0])).all() and (one["boxes"] >= 0).all()
    limit = float(one["scores"][2]) - 1e-4
    [kept] = detector.predict(large, min_score=limit)
    assert len(kept["scores"]) >= 3 and kept["scores"].min() >= limit


def test_boxes_over_the_edge_are_cut_there(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_of("fcos")
    height, width = detector.size
    boxes = torch.tensor([[-5.0, -6.0, width + 7.0, height + 8.0], [10.0, 20.0, 30.0, 40.0]])
    detections = {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([1, 0]),
    }
    monkeypatch.setattr(detector.head, "forward", lambda images, targets: [detections])
    image = torch.rand(3, 2 * height, 3 * width)

    [prediction] = detector.predict(image)

    whole_image = [0, 0, 3 * width, 2 * height]
    assert prediction["boxes"].tolist() == [whole_image, [30, 40, 90, 80]]
    assert prediction["names"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("options", "count"), [({}, 100), ({"max_boxes": 7}, 7), ({"max_boxes": 500}, 120)]
)
def test_the_best_hundred_boxes_are_predicted_or_as_many_as_asked_for(
    options: dict[str, int], count: int
) -> None:
    """A D-FINE of 120 queries: a count of more than a hundred objects needs ``max_boxes``."""
    detector, image = detector_of("dfine", queries=120), torch.rand(3, *SIZE)
    [every] = detector.predict(image, min_score=0.0, max_boxes=120)
    [best] = detector.predict(image, min_score=0.0, **options)
    assert len(best["boxes"]) == len(best["names"]) == count
    assert torch.equal(best["scores"], every["scores"][:count])
    assert best["scores"].tolist() == sorted(best["scores"].tolist(), reverse=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two detectors, whose scores reach 0.3, images, and a file that is not one."""
    monkeypatch.chdir(tmp_path)
    detector = detector_of("fcos")
    with torch.no_grad():
        detector.head.model.head.classification_head.cls_logits.bias.fill_(2.0)
    detector.save("d.safetensors")
    with torch.no_grad():
        detector.head.model.head.classification_head.cls_logits.bias.fill_(1.0)
    detector.save("other.safetensors")
    for i, size in enumerate([(120, 200), (60, 50)]):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (*size, 3), np.uint8)).save(
            f"{i}.png"
        )
    Path("bad.png").write_bytes(b"not an image")
    return tmp_path


@pytest.mark.slow
def test_predict_writes_the_boxes_of_the_detector(folder: Path) -> None:
    arguments = [
        "predict",
        "0.png",
        "bad.png",
        "1.png",
        "--heads",
        "d.safetensors",
        "--out",
        "boxes.csv",
    ]
    refused = kit.cli(*arguments)
    assert refused.code == 1 and "bad.png" in refused.err
    arguments += ["--skip-unusable", "--json"]
    result = kit.cli(*arguments, "--overlay", "pictures").json
    assert list(result["unusable"]) == ["bad.png"]
    with Path("boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    own = Detector.load("d.safetensors").predict(["0.png", "1.png"])
    assert rows and len(rows) == len(result["predictions"])
    for box, row in zip(result["predictions"], rows, strict=True):
        assert [
            str(box[key]) if key in ("image", "name") else f"{box[key]:.6g}" for key in row
        ] == [*row.values()]
    for name, each in zip(("0.png", "1.png"), own, strict=True):
        found = [row for row in rows if row["image"] == name]
        boxes = np.array([[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in found])
        assert len(boxes) and np.allclose(boxes, each["boxes"].numpy(), atol=0.01)
        assert [row["name"] for row in found] == list(each["names"])
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0.jpg", "1.jpg"]
    middle = sorted(float(row["score"]) for row in rows)[len(rows) // 2]
    kept = kit.cli(*arguments, "--min-score", middle + 5e-5).json["predictions"]
    assert kept == [box for box in result["predictions"] if box["score"] > middle]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_pushed_detector_gives_the_same_boxes(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verbs of heads take a detector, and its file comes back from the Hub byte for byte."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    commit = kit.cli("push", "d.safetensors", "user/cells", "--json").json["commit"]
    held = hub.repos["user/cells"].commits[commit]
    assert held["head.safetensors"] == Path("d.safetensors").read_bytes()
    assert 'Detector.load("user/cells")' in held["README.md"].decode()
    images = ["0.png", "1.png"]
    own = Detector.load("d.safetensors").predict(images)
    assert len(own[0]["scores"]) > 0
    assert alike(own, Detector.load("user/cells", revision=commit).predict(images))
    Detector.load("d.safetensors").push_to_hub("user/again")
    assert alike(own, Detector.load("user/again").predict(images))
    for name, out in (("user/cells", "hub.csv"), ("d.safetensors", "own.csv")):
        assert kit.cli("predict", *images, "--heads", name, "--out", out).code == 0
    assert Path("hub.csv").read_text() == Path("own.csv").read_text()
    assert kit.cli("verify", "d.safetensors", "user/cells").code == 0
    shown = kit.cli("inspect", "d.safetensors").out
    assert all(word in shown for word in ("detector fcos", '["red", "blue"]', "dinoneck_tiny"))


def test_a_folder_is_predicted_image_by_image(tmp_path: Path) -> None:
    detector = detector_of("fcos")
    write_images(tmp_path / "images", ["a.png", "deep/b.png"], 40, 60)
    rows = detector.predict(str(tmp_path / "images"), min_score=0.0)
    files = [tmp_path / "images" / name for name in ("a.png", "deep/b.png")]
    assert all(next(iter(row)) == "image" for row in rows)
    assert [row.pop("image") for row in rows] == [str(file) for file in files]
    assert alike(rows, detector.predict(files, min_score=0.0))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no images"):
        detector.predict(empty)
