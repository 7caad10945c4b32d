"""A JSON that is called after one part of a data set is not read with the images of another part."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import BoxImages, PanopticImages
from dinoneck.data.json_parts import part_in, part_of_json

HEIGHT, WIDTH = 6, 8


def frames(folder: Path, count: int, seed: int) -> Path:
    """Write images ``0.png`` ... of noise, which other seeds write differently."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def boxes_of(file: Path, count: int, prefix: str = "") -> Path:
    """Write a JSON of the images ``0.png`` ... with a box each."""
    images = []
    boxes = []
    for i in range(count):
        name = f"{prefix}{i}.png"
        images.append({"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT})
        boxes.append({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 3, 2]})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param("instances_val2017", "val", id="COCO"),
        pytest.param("test_boxes", "test", id="a word before"),
        pytest.param("ValidationSet", "val", id="a word in camel case"),
        pytest.param("_annotations.coco", None, id="Roboflow"),
        pytest.param("trainval", None, id="a union"),
        pytest.param("train_without_val", None, id="two parts"),
        pytest.param("latest", None, id="a word that ends like one"),
    ],
)
def test_the_words_of_a_name_state_a_part(name: str, part: str | None) -> None:
    assert part_in(name) == part


def test_the_name_of_a_json_counts_before_its_folder(tmp_path: Path) -> None:
    assert part_of_json(tmp_path / "train" / "val.json") == "val"
    assert part_of_json(tmp_path / "valid" / "_annotations.coco.json") == "val"


@pytest.mark.parametrize(
    ("json_name", "right", "wrong"),
    [
        pytest.param("annotations/instances_val.json", "val2017", "train2017", id="COCO"),
        pytest.param("valid/_annotations.coco.json", "valid", "train", id="Roboflow"),
        pytest.param("val.json", "val/images", "train/images", id="images in the parts"),
        pytest.param("val.json", "val_images", "train_images", id="words beside the part"),
    ],
)
def test_boxes_of_one_part_are_not_read_with_frames_of_another(
    json_name: str, right: str, wrong: str, tmp_path: Path
) -> None:
    file = boxes_of(tmp_path / json_name, count=2)
    frames(tmp_path / right, count=2, seed=0)
    frames(tmp_path / wrong, count=4, seed=1)

    with pytest.raises(DataError) as error:
        BoxImages(file, tmp_path / wrong)

    assert f"{file} is called after the part val" in str(error.value)
    assert f"such as {tmp_path / wrong}/0.png; {tmp_path / right}/0.png is" in str(error.value)
    assert "--val-images" in str(error.value)
    assert BoxImages(file, tmp_path / right).paths[1] == tmp_path / right / "1.png"


def test_parts_that_are_drawn_from_one_folder_are_read(tmp_path: Path) -> None:
    """As of a competition, which has images of train and test, and no boxes of test."""
    frames(tmp_path / "train", count=4, seed=0)
    frames(tmp_path / "test", count=4, seed=1)
    file = boxes_of(tmp_path / "val.json", count=4)

    assert BoxImages(file, tmp_path / "train").paths[0] == tmp_path / "train" / "0.png"


def test_a_part_that_lacks_some_of_the_names_is_not_meant(tmp_path: Path) -> None:
    frames(tmp_path / "train", count=4, seed=0)
    frames(tmp_path / "val", count=3, seed=1)
    file = boxes_of(tmp_path / "own_val.json", count=4)

    assert BoxImages(file, tmp_path / "train").paths[0] == tmp_path / "train" / "0.png"


def test_masks_of_a_part_are_not_its_images(tmp_path: Path) -> None:
    frames(tmp_path / "train", count=2, seed=0)
    frames(tmp_path / "masks_val", count=2, seed=1)
    file = boxes_of(tmp_path / "own_val.json", count=2)

    assert BoxImages(file, tmp_path / "train").paths[0] == tmp_path / "train" / "0.png"


def test_the_same_files_in_two_parts_are_read(tmp_path: Path) -> None:
    frames(tmp_path / "train", count=4, seed=0)
    frames(tmp_path / "val", count=2, seed=0)
    file = boxes_of(tmp_path / "val.json", count=2)

    assert BoxImages(file, tmp_path / "train").paths[0] == tmp_path / "train" / "0.png"


def test_a_folder_that_the_names_state_is_read(tmp_path: Path) -> None:
    frames(tmp_path / "train", count=4, seed=0)
    frames(tmp_path / "val", count=4, seed=1)
    file = boxes_of(tmp_path / "val.json", count=2, prefix="train/")

    assert BoxImages(file, tmp_path).paths[0] == tmp_path / "train" / "0.png"


def test_a_folder_around_json_and_images_states_nothing(tmp_path: Path) -> None:
    frames(tmp_path / "train" / "images", count=2, seed=0)
    frames(tmp_path / "val" / "images", count=2, seed=1)
    file = boxes_of(tmp_path / "train" / "own_val.json", count=2)

    assert BoxImages(file).paths[0] == tmp_path / "train" / "images" / "0.png"


@pytest.mark.parametrize("part", ["train", "val"])
def test_of_parts_with_equal_names_the_json_chooses(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Datumaro writes its images so."""
    frames(tmp_path / "images" / "train", count=2, seed=0)
    frames(tmp_path / "images" / "val", count=2, seed=1)
    file = boxes_of(tmp_path / "annotations" / f"instances_{part}.json", count=2)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(file)

    assert data.paths[0] == tmp_path / "images" / part / "0.png"
    [line] = caplog.messages
    assert f"names below '{part}/': 2 of 2 found in {tmp_path}/images" in line


def test_of_parts_with_equal_names_a_json_that_states_none_chooses_none(tmp_path: Path) -> None:
    frames(tmp_path / "images" / "train", count=2, seed=0)
    frames(tmp_path / "images" / "val", count=2, seed=1)
    file = boxes_of(tmp_path / "annotations" / "instances.json", count=2)

    with pytest.raises(DataError, match=r"'0\.png' may be .*train/0\.png and .*val/0\.png"):
        BoxImages(file)


def test_segments_of_one_part_are_not_read_with_png_files_of_another(tmp_path: Path) -> None:
    frames(tmp_path / "val", count=1, seed=0)
    for part, segment_id in {"train": 5, "val": 7}.items():
        colour = (segment_id, 0, 0)
        folder = tmp_path / f"panoptic_{part}"
        folder.mkdir()
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(folder / "0.png")
    segment = {"id": 7, "category_id": 1}
    content = {
        "images": [{"id": 0, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"image_id": 0, "file_name": "0.png", "segments_info": [segment]}],
        "categories": [{"id": 1, "name": "a", "isthing": 1}],
    }
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))

    with pytest.raises(
        DataError, match=r"panoptic_val/0\.png is another file of that name.*folder="
    ):
        PanopticImages(file, tmp_path / "panoptic_train", tmp_path / "val")

    assert len(PanopticImages(file, tmp_path / "panoptic_val", tmp_path / "val")) == 1
