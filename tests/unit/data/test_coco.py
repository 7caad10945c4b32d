"""COCO JSON: one fact is read in each of the ways that exporters write it; what refers to nothing is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.box_samples import HEIGHT, WIDTH, content, write

from dinoneck import DataError
from dinoneck.data import BoxImages

Change = Callable[[dict[str, Any]], Any]
BOXES = [[2, 3, 12, 11], [20, 10, 32, 22.5]]  # of the first image: red, blue


def made(folder: Path, change: Change, **options: Any) -> BoxImages:
    plain = content()
    change(plain)
    return BoxImages(write(folder, plain), **options)


def every(list_name: str, key: str, change: Callable[[Any], Any]) -> Change:
    """Change a value of every entry of a list; None takes it away."""

    def rewrite(content: dict[str, Any]) -> None:
        for entry in content[list_name]:
            value = change(entry.pop(key))
            if value is not None:
                entry[key] = value

    return rewrite


def first(list_name: str, **values: Any) -> Change:
    return lambda content: content[list_name][0].update(values)


def ids(change: Callable[[int], Any]) -> Change:
    """Change every id of an image, and what refers to it."""

    def rewrite(content: dict[str, Any]) -> None:
        every("images", "id", change)(content)
        every("annotations", "image_id", change)(content)

    return rewrite


FORMS = [
    pytest.param(every("annotations", "image_id", str), id="image_id as text"),
    pytest.param(every("annotations", "image_id", float), id="image_id with a point"),
    pytest.param(every("annotations", "category_id", str), id="category_id as text"),
    pytest.param(every("categories", "id", lambda number: f"{number}.0"), id="text with a point"),
    pytest.param(every("annotations", "id", lambda _: None), id="no annotation ids"),
    pytest.param(every("annotations", "id", lambda _: 1), id="equal annotation ids"),
    pytest.param(every("annotations", "iscrowd", lambda _: False), id="iscrowd false"),
    pytest.param(every("annotations", "iscrowd", lambda _: "0"), id="iscrowd as text"),
    pytest.param(first("annotations", iscrowd=None), id="iscrowd null"),
    pytest.param(every("annotations", "bbox", lambda box: [*map(str, box)]), id="bbox as text"),
    pytest.param(every("images", "width", float), id="width with a point"),
    pytest.param(every("images", "width", lambda _: None), id="no width"),
    pytest.param(first("images", width=None, height=None), id="sides null"),
    pytest.param(first("images", width=0, height=0), id="sides 0"),
    pytest.param(
        lambda content: content["categories"].append({"id": 0, "name": "red"}),
        id="a category without objects that is called like a class",
    ),
]


@pytest.mark.parametrize("change", FORMS)
def test_what_exporters_write_otherwise_is_read(change: Change, tmp_path: Path) -> None:
    data = made(tmp_path, change)

    assert data.ids == (10, 11, 12)
    assert data.sizes == [(HEIGHT, WIDTH)] * 3
    assert data.classes == ("blue", "red")
    assert data.corners(0).tolist() == BOXES
    assert data.labels(0).tolist() == [1, 0]
    assert data.num_crowds == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(ids(str), (10, 11, 12), id="numbers"),
        pytest.param(ids(lambda number: f"0{number}"), ("010", "011", "012"), id="codes"),
        pytest.param(ids("img_{}".format), ("img_10", "img_11", "img_12"), id="words"),
    ],
)
def test_ids_that_are_no_numbers_stay_text(
    change: Change, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    data = made(tmp_path, change)

    assert data.ids == expected
    assert list(data.numbers.values()) == [2, 2, 0]


def test_names_of_classes_are_composed_text(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = " Gra\u0308ser"
        content["categories"][1]["name"] = 7

    assert made(tmp_path, rename).classes == ("7", "Gr\u00e4ser")


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = write(tmp_path, content())
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")

    assert len(BoxImages(file)) == 3


def test_a_bbox_that_is_missing_is_that_of_the_polygon(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        entry = content["annotations"][0]
        del entry["bbox"]
        entry["segmentation"] = [[2, 3, 12, 3, 12, 11]]

    assert made(tmp_path, change).corners(0).tolist() == BOXES


def appended(list_name: str, **values: Any) -> Change:
    """Repeat the first entry of a list with other values."""
    return lambda content: content[list_name].append({**content[list_name][0], **values})


REFUSED = [
    pytest.param(first("images", id=11), ["images", "11"], id="an image id twice"),
    pytest.param(first("images", id=None), ["images[0].id"], id="no image id"),
    pytest.param(first("images", file_name="1.png"), ["1.png"], id="a file twice"),
    pytest.param(first("images", width=40.5), ["images[0].width", "40.5"], id="half a pixel"),
    pytest.param(first("categories", id=2), ["categories", "2"], id="a category id twice"),
    pytest.param(first("categories", name="blue"), ["'blue'"], id="a category twice, with objects"),
    pytest.param(
        first("categories", name=" "), ["categories[0].name"], id="a category without name"
    ),
    pytest.param(first("annotations", image_id=9), ["annotations[0]", "9"], id="an unknown image"),
    pytest.param(first("annotations", category_id=9), ["annotations[0]", "9"], id="unknown class"),
    pytest.param(first("annotations", iscrowd=2), ["annotations[0].iscrowd", "2"], id="iscrowd 2"),
    pytest.param(first("annotations", score=0.9), ["annotations[0]", "score"], id="predictions"),
    pytest.param(
        first("annotations", bbox=[1, 2, 3]), ["annotations[0]", "[1.0"], id="three numbers"
    ),
    pytest.param(first("annotations", bbox=[1, 2, 3, 4, 30]), ["30"], id="a turned box"),
    pytest.param(first("annotations", bbox=[1, 2, -3, 4]), ["-3"], id="a negative side"),
    pytest.param(first("annotations", bbox=["nan", 2, 3, 4]), ["nan"], id="not finite"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_what_no_right_file_has_is_refused(
    change: Change, named: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, change)

    for word in ["boxes.json", *named]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(json.dumps(content())[:97], id="cut"),
        pytest.param('{"images": NaN}', id="NaN"),
        pytest.param("[]", id="a list, as of predictions"),
        pytest.param("{}", id="without lists"),
        pytest.param("[" * 10_000, id="deep"),
        pytest.param('{"images": [], "annotations": [], "categories": []}', id="without images"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="boxes.json"):
        BoxImages(write(tmp_path, text))


def test_an_image_of_another_size_than_stated_is_refused(tmp_path: Path) -> None:
    data = made(tmp_path, first("images", width=WIDTH + 1))

    with pytest.raises(DataError, match=r"0\.png.* 30x40 px .* 30x41"):
        data[0]
