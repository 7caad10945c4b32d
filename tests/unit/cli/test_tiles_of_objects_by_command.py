"""``predict``, ``evaluate`` and ``serve`` cut images for heads of objects as a Predictor does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.detection import test_train_instances
from tests.unit.detection.test_panoptic import write_scenes
from tests.unit.inference.test_image_resolution import head_of

from dinoneck import MaskHead, Predictor, Task
from dinoneck.detection import evaluate_masks
from dinoneck.inference import coco_objects
from dinoneck.serve import models
from dinoneck.serve.settings import Settings

TILE = (32, 48)
KINDS = ["mask", "centres", "panoptic"]


@pytest.mark.parametrize("kind", KINDS)
def test_predict_writes_the_objects_of_tiles(kind: str, tmp_path: Path) -> None:
    [image] = kit.write_images(tmp_path, ["images/a.png"], 80, 120)
    head = kit.saved_head(tmp_path / "h.safetensors", head_of(kind), TILE)
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    result = kit.cli(
        *words, "--tile", "32x48", "--overlap", "12", "--overlay", tmp_path / "o", "--json"
    )

    assert result.code == 0, result.err
    [row] = result.json["predictions"]
    [expected] = Predictor(head, tile=TILE, overlap=12)(image)
    assert row["plant objects"] == coco_objects(expected["plant"])
    assert row["plant objects"]
    assert (tmp_path / "o" / "a.jpg").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_answers_with_the_objects_of_tiles(kind: str, tmp_path: Path) -> None:
    head = kit.saved_head(tmp_path / "h.safetensors", head_of(kind), TILE)
    [image] = kit.images(1, 80, 120)

    model = models.open_model(head, Settings(tile=TILE, runtime="torch"))
    answer = model.predict(image, "none")

    [expected] = Predictor(head, tile=TILE)(image)
    assert answer["values"]["plant"] == coco_objects(expected["plant"])
    assert model.facts["overlap"] == 0.2


def sure_head(names: tuple[str, ...], **things: Any) -> MaskHead:
    """A head whose random queries are sure of their classes."""
    torch.manual_seed(3)
    kind: Any = "panoptic" if things else "instances"
    task = Task("plant", dim=len(names), kind=kind, labels=names, **things)
    head = MaskHead(64, [task], 1, num_queries=6, num_blocks=1, dim=16)
    head.classes.weight.data *= 400
    head.queries.weight.data *= 40
    return head.eval()


@pytest.mark.slow
def test_evaluate_scores_the_instances_of_tiles(tmp_path: Path) -> None:
    truth = test_train_instances.scenes(tmp_path / "scenes", 3)
    module = sure_head(("disc", "square"))
    head = kit.saved_head(tmp_path / "h.safetensors", module, TILE)
    words = ("evaluate", truth.parent, "--heads", head, "--truth", truth, "--json")

    result = kit.cli(*words, "--tile", "32x48")

    assert result.code == 0, result.err
    expected = evaluate_masks(Predictor(head, tile=TILE), truth)
    whole = evaluate_masks(Predictor(head), truth)
    [scores] = result.json["masks"].values()
    assert scores["AP"] == pytest.approx(expected["AP"], abs=1e-6)
    assert scores["count_error"] == pytest.approx(expected["count_error"], abs=1e-6)
    assert expected["count_error"] != whole["count_error"]


def test_evaluate_scores_the_segments_of_tiles(tmp_path: Path) -> None:
    files = write_scenes(tmp_path / "scenes", 3)
    module = sure_head(("disc", "square", "soil"), things=("disc", "square"))
    head = kit.saved_head(tmp_path / "h.safetensors", module, TILE)
    images = files.file.parent
    truth = [files.folder, files.file]

    result = kit.cli(
        "evaluate", images, "--heads", head, "--truth", *truth, "--json", "--tile", "32x48"
    )

    assert result.code == 0, result.err
    expected = evaluate_masks(Predictor(head, tile=TILE), truth)
    [scores] = result.json["segments"].values()
    assert scores["PQ"] == pytest.approx(expected["PQ"], abs=1e-6)
    assert scores["count_error"] == pytest.approx(expected["count_error"], abs=1e-6)
