"""COCO files that are read as they are, although their author seems to mean something else: each is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck.data import BoxImages

NUM_IMAGES = 6
HEIGHT, WIDTH = 30, 40
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def messages_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[BoxImages, list[str]]]:
    """Open a file of two boxes in each of six images after a change of its content."""

    def open_changed(change: Change, **options: Any) -> tuple[BoxImages, list[str]]:
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "van"}],
        }
        for i in range(NUM_IMAGES):
            pixels = np.full((HEIGHT, WIDTH, 3), 30 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            content["images"].append({"id": i, "file_name": f"{i}.png"})
            for category in (1, 2):
                box = {"id": 2 * i + category, "image_id": i, "category_id": category}
                content["annotations"].append(box | {"bbox": [i + 9 * category, 3, 7, 12]})
        change(content)
        file = tmp_path / "boxes.json"
        file.write_text(json.dumps(content))
        with caplog.at_level(logging.WARNING, "dinoneck"):
            data = BoxImages(file, **options)
        lines = [line for line in caplog.messages if "repaired" not in line]
        return data, lines

    return open_changed


def rename_car(name: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = name

    return change


# Classes
# ------------------------------------------------------------------------------------------------

NO_CLASSES = [
    "DontCare",
    "ignored regions",
    "Ignored_Region",
    "void",
    "__background__",
    "Unlabeled",
]


@pytest.mark.parametrize("name", NO_CLASSES)
def test_a_class_that_is_called_as_no_object_is_named(name: str, messages_of: Any) -> None:
    data, [line] = messages_of(rename_car(name))
    assert f"the category {name!r} is a class like the others, with 6 of 12 objects" in line
    assert data.class_counts == {name: 6, "van": 6}


def test_without_such_a_class_nothing_is_named(messages_of: Any) -> None:
    data, lines = messages_of(rename_car("DontCare"), classes=["van"])
    assert not any("DontCare" in line and "like the others" in line for line in lines)
    assert data.class_counts == {"van": 6}


@pytest.mark.parametrize("name", ["others", "backgroundlight", "misc"])
def test_other_names_are_of_classes(name: str, messages_of: Any) -> None:
    _, lines = messages_of(rename_car(name))
    assert lines == []


def test_such_a_class_without_objects_is_not_named(messages_of: Any) -> None:
    def add_background(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 0, "name": "background"})

    _, lines = messages_of(add_background)
    assert lines == []


# Images
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["split", "subset", "set"])
def test_images_of_several_parts_are_named(key: str, messages_of: Any) -> None:
    def state_parts(content: dict[str, Any]) -> None:
        for i, image in enumerate(content["images"]):
            image[key] = ["train", "train", "val"][i % 3]

    data, [line] = messages_of(state_parts)
    assert f"its images are of several parts ({key}: 4 train, 2 val)" in line
    assert len(data) == NUM_IMAGES


@pytest.mark.parametrize("words", [["train"], ["north", "south"]], ids=["one part", "places"])
def test_images_of_one_part_are_not_named(words: list[str], messages_of: Any) -> None:
    def state_parts(content: dict[str, Any]) -> None:
        for i, image in enumerate(content["images"]):
            image["split"] = words[i % len(words)]

    _, lines = messages_of(state_parts)
    assert lines == []


def test_boxes_that_all_are_on_one_of_several_images_are_named(messages_of: Any) -> None:
    def put_on_first(content: dict[str, Any]) -> None:
        for box in content["annotations"]:
            box["bbox"][1] += 2 * box["image_id"]
            box["image_id"] = 0

    data, [line] = messages_of(put_on_first)
    assert "all 12 boxes are on the image 0, and the other 5 images have none" in line
    assert data.numbers[0] == 12


def test_boxes_of_merged_files_on_the_images_of_the_first_are_named(messages_of: Any) -> None:
    def merge(content: dict[str, Any]) -> None:
        for box in content["annotations"][NUM_IMAGES:]:
            box["id"] -= NUM_IMAGES
            box["image_id"] -= NUM_IMAGES // 2
            box["bbox"][1] += 10

    data, [line] = messages_of(merge)
    assert "6 of 12 boxes have the id of an earlier one, and 3 of 6 images have no box" in line
    assert data.without_boxes == NUM_IMAGES // 2


def test_repeated_ids_of_boxes_on_their_own_images_are_not_named(messages_of: Any) -> None:
    def restart_ids(content: dict[str, Any]) -> None:
        for box in content["annotations"][NUM_IMAGES:]:
            box["id"] -= NUM_IMAGES

    _, lines = messages_of(restart_ids)
    assert lines == []


# Boxes
# ------------------------------------------------------------------------------------------------


def cover_images(count: int) -> Change:
    """Make so many boxes as large as their images."""

    def change(content: dict[str, Any]) -> None:
        for box in content["annotations"][:count]:
            box["bbox"] = [0, 0, WIDTH, HEIGHT]

    return change


def test_boxes_that_cover_their_images_are_named(messages_of: Any) -> None:
    _, lines = messages_of(cover_images(12))
    assert any("12 of 12 boxes cover their whole image, such as [0, 0, 40, 30]" in x for x in lines)


def test_some_boxes_that_cover_their_images_are_not_named(messages_of: Any) -> None:
    _, lines = messages_of(cover_images(9))
    assert not any("cover their whole image" in line for line in lines)
