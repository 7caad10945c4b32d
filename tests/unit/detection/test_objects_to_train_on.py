"""What training says of files whose objects are crowd regions, or that lack objects of a class."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests import kit
from tests.unit.detection import coloured_boxes

from dinoneck import ConfigError, DataError
from dinoneck.data import BoxImages
from dinoneck.detection.objects import train_instances
from dinoneck.detection.training import open_images
from dinoneck.training import TrainConfig, TrainDetectorConfig, TrainInstancesConfig

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")
# pycocotools 2.0.11 with NumPy 2


def written(folder: Path, crowd: int, masks: bool = False) -> Path:
    """Write three images with five boxes, of which the first ``crowd`` are marked iscrowd=1."""
    file = coloured_boxes.write(folder)
    content = json.loads(file.read_text())
    for entry in content["annotations"][:crowd]:
        entry["iscrowd"] = 1
    if masks:
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            right = x + width
            bottom = y + height
            entry["segmentation"] = [[x, y, right, y, right, bottom, x, bottom]]
    file.write_text(json.dumps(content))
    return file


def detector_config(file: Path, **data: Any) -> TrainDetectorConfig:
    groups = {"data": {"boxes": str(file), "size": [96, 128], **data}, "folds": {"count": 3}}
    return TrainDetectorConfig.from_dict(groups)


def mask_config(file: Path, **data: Any) -> TrainInstancesConfig:
    groups = {
        "data": {"instances": str(file), **data},
        "backbone": {"name": "dinoneck_tiny"},
        "folds": {"count": 2},
    }
    return TrainInstancesConfig.from_dict(groups)


def test_a_detector_is_not_trained_on_crowd_regions_alone(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=5)

    with pytest.raises(DataError) as refused:
        open_images(detector_config(file))

    assert "all 5 objects are marked iscrowd=1" in str(refused.value)
    assert "set iscrowd to 0" in str(refused.value)
    assert "--crowd objects" in str(refused.value)


def test_a_detector_is_trained_on_crowd_regions_that_are_objects(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=5)

    train, val = open_images(detector_config(file, crowd="objects"))

    assert sum(train.numbers.values()) + sum(val.numbers.values()) == 5
    assert train.crowd == "objects"
    assert val.crowd == "objects"


def test_held_out_boxes_are_read_like_those_that_are_trained_on(tmp_path: Path) -> None:
    file = written(tmp_path / "train", crowd=0)
    held_out = written(tmp_path / "val", crowd=5)
    config = detector_config(
        file, val_boxes=str(held_out), val_images=str(held_out.parent), crowd="objects"
    )

    _, val = open_images(config)

    assert sum(val.numbers.values()) == 5


def test_instances_are_not_trained_on_crowd_regions_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "data", crowd=5, masks=True)

    with pytest.raises(DataError, match="all 5 objects are marked iscrowd=1"):
        train_instances(mask_config(file), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_without_an_object_is_refused_with_what_was_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=0)
    data = BoxImages(file, classes=["blue"])
    content = json.loads(file.read_text())
    content["annotations"] = [e for e in content["annotations"] if e["category_id"] == 1]
    file.write_text(json.dumps(content))
    without = BoxImages(file, classes=["blue"])

    data.check_trainable("box")
    with pytest.raises(DataError) as refused:
        without.check_trainable("box")

    assert "none of the 3 images has one box of the classes blue" in str(refused.value)
    assert "left out: 3 other class" in str(refused.value)


def test_another_word_for_crowd_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=0)

    with pytest.raises(ConfigError, match="crowd is 'keep'; expected one of ignore, objects"):
        BoxImages(file, crowd="keep")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="crowd"):
        detector_config(file, crowd="keep")


def test_crowd_without_a_coco_file_is_refused() -> None:
    data = {"csv": "t.csv", "targets": ["y"], "crowd": "objects"}

    with pytest.raises(ConfigError, match=r"data\.crowd is 'objects', and needs data\.boxes"):
        TrainConfig.from_dict({"data": data})


def test_a_record_without_crowd_equals_those_of_earlier_versions(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=0)

    assert "crowd" not in detector_config(file).to_dict()["data"]
    assert detector_config(file, crowd="objects").to_dict()["data"]["crowd"] == "objects"


def test_boxes_that_are_all_held_out_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, crowd=0)
    _, val = open_images(detector_config(file))
    content = json.loads(file.read_text())
    box = {"id": 99, "image_id": val.ids[0], "category_id": 1, "bbox": [3, 4, 20, 10]}
    content["annotations"] = [box]
    file.write_text(json.dumps(content))

    with pytest.raises(DataError, match=r"trained on have no box: all 1 are in held-out images"):
        open_images(detector_config(file))


def test_held_out_boxes_may_lack_a_class(tmp_path: Path) -> None:
    file = written(tmp_path / "train", crowd=0)
    held_out = written(tmp_path / "val", crowd=0)
    content = json.loads(held_out.read_text())
    dropped = content["categories"].pop()
    content["annotations"] = [
        entry for entry in content["annotations"] if entry["category_id"] != dropped["id"]
    ]
    held_out.write_text(json.dumps(content))
    config = detector_config(file, val_boxes=str(held_out), val_images=str(held_out.parent))

    train, val = open_images(config)

    assert val.classes == train.classes
    assert val.class_counts[dropped["name"]] == 0


def yolo_config(root: Path, **values: Any) -> TrainDetectorConfig:
    """A data.yaml with two training images and one held-out image of one box each."""
    for name in ("train/a", "train/b", "val/c"):
        kit.write_images(root / "images", [f"{name}.png"], height=96, width=128)
        label = root / "labels" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.25\n")
    file = root / "data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [red]\n")
    return detector_config(file, **values)


def test_the_held_out_part_of_a_yaml_file_is_held_out(tmp_path: Path) -> None:
    train, val = open_images(yolo_config(tmp_path))

    assert [path.name for path in train.paths] == ["a.png", "b.png"]
    assert [path.name for path in val.paths] == ["c.png"]
    assert train.class_counts == {"red": 2}


def test_held_out_images_that_are_named_twice_are_refused(tmp_path: Path) -> None:
    other = written(tmp_path / "other", crowd=0)

    with pytest.raises(ConfigError, match="boxes.json.*data.yaml.*--val-boxes"):
        open_images(yolo_config(tmp_path, val_boxes=str(other)))


def test_nothing_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, crowd=2)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        open_images(detector_config(file))

    assert not caplog.messages
