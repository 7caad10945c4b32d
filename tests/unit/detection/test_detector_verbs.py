"""The verbs on a detector: what they write, and what they refuse."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.hub_server import WRITER, Hub
from tests.unit.detection.test_detector import alike, detector_of

from dinoneck.detection import Detector


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
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (*size, 3), np.uint8)).save(f"{i}.png")
    Path("bad.png").write_bytes(b"not an image")
    return tmp_path


def test_predict_writes_the_boxes_of_the_detector(folder: Path) -> None:
    arguments = ["predict", "0.png", "bad.png", "1.png", "--heads", "d.safetensors", "--out", "boxes.csv"]
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
        assert [str(box[key]) if key in ("image", "name") else f"{box[key]:.6g}" for key in row] == [*row.values()]
    for name, each in zip(("0.png", "1.png"), own, strict=True):
        found = [row for row in rows if row["image"] == name]
        boxes = np.array([[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in found])
        assert len(boxes) and np.allclose(boxes, each["boxes"].numpy(), atol=0.01)
        assert [row["name"] for row in found] == list(each["names"])
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0.jpg", "1.jpg"]
    middle = sorted(float(row["score"]) for row in rows)[len(rows) // 2]
    kept = kit.cli(*arguments, "--min-score", middle + 5e-5).json["predictions"]
    assert kept == [box for box in result["predictions"] if box["score"] > middle]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_pushed_detector_gives_the_same_boxes(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
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
