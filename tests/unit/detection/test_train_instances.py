"""Training heads of objects from a COCO file: scores, numbers, files, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.kit import cli

from dinoneck import ConfigError, DataError, HeadCheckpoint, Predictor, evaluate
from dinoneck.data import BoxImages
from dinoneck.detection import score_masks, train_instances
from dinoneck.inference import coco_objects
from dinoneck.training import BackboneConfig, DataConfig, FoldsConfig, Recipe, TrainConfig, run

pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
# pycocotools with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HEIGHT, WIDTH = 96, 128
COLOURS = ((220, 40, 40), (40, 60, 220))


def scenes(folder: Path, count: int) -> Path:
    """Write images of red discs and blue squares, and their COCO file."""
    folder.mkdir(parents=True)
    rng, entries, objects = np.random.default_rng(0), [], []
    for i in range(count):
        image = Image.fromarray(rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        for k in range(1 + i % 3):
            kind, x, y, r = int(rng.integers(2)), 22 + 40 * k, int(rng.integers(24, 72)), int(rng.integers(10, 16))
            corners = [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
            if kind == 0:
                angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
                corners = [(x + r * np.cos(a), y + r * np.sin(a)) for a in angles]
            ImageDraw.Draw(image).polygon(corners, fill=COLOURS[kind])
            about = {"id": len(objects) + 1, "image_id": i + 5, "category_id": (9, 4)[kind], "iscrowd": 0}
            polygon = np.ravel(corners).tolist()
            objects.append({**about, "bbox": [x - r, y - r, 2 * r, 2 * r], "segmentation": [polygon]})
        image.save(folder / f"{i}.png")
        entries.append({"id": i + 5, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
    names = [{"id": 9, "name": "disc"}, {"id": 4, "name": "square"}]
    file = folder / "objects.json"
    file.write_text(json.dumps({"images": entries, "annotations": objects, "categories": names}))
    return file


def config_of(file: Path, epochs: int = 2, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"data": DataConfig(instances=str(file)), "folds": FoldsConfig(count=2)}
    settings["optim"] = Recipe(epochs=epochs, batch_size=4, lr=3e-3, seed=0)
    settings["backbone"] = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5))
    settings["head"] = {"type": "dpt_neck", "out_channels": 16}
    return TrainConfig(**settings | changes)


def test_true_masks_have_the_best_scores_and_numbers(tmp_path: Path) -> None:
    data, every = BoxImages(scenes(tmp_path / "s", 4), masks=True), dict[int, list[dict[str, Any]]]()
    for i, image_id in enumerate(data.ids):
        labels, masks = data[i][1]["labels"], data[i][1]["masks"].numpy() > 0
        every[image_id] = coco_objects(
            {"masks": masks, "labels": labels, "scores": torch.linspace(0.9, 0.6, len(labels))}
        )
    found = score_masks(data, every)
    assert (found["AP"], found["F1"], found["count_error"]) == (1.0, 1.0, 0.0)
    assert found["min_score"] == pytest.approx(0.6)
    del every[7]
    assert score_masks(data, every)["count_error"] == 3 / 4, "an image without an entry has no objects"
    every[6] = [{**own, "category_id": 1 - own["category_id"]} for own in every[6]]
    assert score_masks(data, every)["F1"] < 1.0, "a mask of another class is not found"
    with pytest.raises(DataError, match="99"):
        score_masks(data, every | {99: every[5]})


@pytest.mark.parametrize("head", [None, {"type": "mask", "num_blocks": 1, "dim": 32}], ids=["pyramid", "mask"])
def test_a_run_has_scored_folds_and_a_head_of_all_images(head: dict[str, Any] | None, tmp_path: Path) -> None:
    file, out = scenes(tmp_path / "s", 6), tmp_path / "run"
    report = train_instances(config_of(file, **({} if head is None else {"head": head})), out)
    scores = report["masks"]["head"]
    assert scores["images"] == report["images"] == 6 and 0 <= scores["AP"] <= 1
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(path.name for path in (out / "heads").iterdir()) == ["fold-0.safetensors", "fold-1.safetensors"]
    [task] = HeadCheckpoint.load(out).meta["tasks"]
    assert (task["kind"], task["labels"]) == ("instances", ["square", "disc"]), "by ascending category id"
    assert task["minimum"] == scores["min_score"] and not (out / "unfinished").exists()
    with (out / "out_of_fold.csv").open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    assert {row["image"]: int(row["objects"]) for row in rows} == {f"{i}.png": 1 + i % 3 for i in range(6)}
    errors = [abs(int(row["objects"]) - int(row["objects (head)"])) for row in rows]
    assert np.mean(errors) == pytest.approx(scores["count_error"])
    for kept in Predictor(out)([file.parent / "0.png", file.parent / "2.png"]):
        assert all(score >= (task["minimum"] or 0.0) for score in kept["objects"]["scores"].tolist())


def test_a_fold_that_is_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, real, calls = config_of(scenes(tmp_path / "s", 4)), run.fit, list[int]()
    whole = train_instances(config, tmp_path / "a")

    def stops(*given: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **settings)

    monkeypatch.setattr(run, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        train_instances(config, tmp_path / "b")
    assert train_instances(config, tmp_path / "b")["masks"] == whole["masks"]
    assert len(calls) == 4, "the first fold once, the second twice, all images once"
    one, two = (HeadCheckpoint.load(tmp_path / name).state_dict for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_finished_heads_are_scored_over_all_scores(tmp_path: Path) -> None:
    file, out = scenes(tmp_path / "s", 3), tmp_path / "run"
    words = ["train", "--instances", file, "--images", file.parent, "--backbone", "dinoneck_tiny", "--layers", *"1245"]
    head = "{type: dpt_neck, out_channels: 16}"
    assert cli(*words, "--head", head, "--folds", 1, "--epochs", 1, "--out", out).code == 0
    predictor = Predictor(out)
    data = BoxImages(file, masks=True, classes=predictor.tasks[0].labels)
    rows = zip(data.ids, predictor([*data.paths], min_score=0.0), strict=True)
    every = {image_id: coco_objects(row["objects"]) for image_id, row in rows}
    assert evaluate(out, file.parent, file)["masks"]["head"] == score_masks(data, every)


def test_one_fold_is_scored_on_its_own_images(tmp_path: Path) -> None:
    report = train_instances(
        config_of(scenes(tmp_path / "s", 4), epochs=1, folds=FoldsConfig(count=2, only=1)), tmp_path / "r"
    )
    with (tmp_path / "r" / "out_of_fold.csv").open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    scores = report["masks"]["head"]
    assert scores["images"] == len(rows) == 2
    errors = [abs(int(row["objects"]) - int(row["objects (head)"])) for row in rows]
    assert scores["count_error"] == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"with_ridge": True}, "with_ridge"), ({"data": DataConfig(instances="s", csv="t.csv")}, "data.csv")],
)
def test_options_without_effect_are_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        train_instances(config_of(tmp_path, **changes), tmp_path / "run")


@pytest.mark.slow
def test_objects_of_held_out_scenes_are_found_and_counted(tmp_path: Path) -> None:
    config = config_of(scenes(tmp_path / "s", 24), epochs=60, head={"type": "dpt_neck", "out_channels": 32})
    scores = train_instances(config, tmp_path / "run")["masks"]["head"]
    assert scores["F1"] > 0.4 and scores["count_error"] < 0.5, "of random features, with 12 training images"
