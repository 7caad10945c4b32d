"""An object that a COCO file holds twice is read once, however its box and its mask are written."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck.data import BoxImages

SIZE = HEIGHT, WIDTH = 60, 80
BBOX = [20, 12, 30, 24]
CORNERS = [20.0, 12.0, 50.0, 36.0]
OUTLINE = [20, 12, 50, 12, 50, 36, 20, 36]
CLOSED = [*OUTLINE, 20, 12]
NOISY = [20.000001, 12, 50, 12.000002, 50, 36, 20, 36]
FROM_ANOTHER_CORNER = [50, 12, 50, 36, 20, 36, 20, 12]
LOWER_LEFT = [20, 12, 50, 36, 20, 36]
UPPER_RIGHT = [20, 12, 50, 12, 50, 36]


def run_lengths() -> dict[str, Any]:
    """The outline as run lengths, which run down the columns."""
    mask = np.zeros(SIZE, int)
    mask[12:36, 20:50] = 1
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0)).tolist()
    return {"size": list(SIZE), "counts": np.diff([0, *changes, mask.size]).tolist()}


def written(folder: Path, entries: list[dict[str, Any]]) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "plot.png")
    annotations = [
        {"id": 30 + i, "image_id": 6, "category_id": 1, "bbox": BBOX, **entry}
        for i, entry in enumerate(entries)
    ]
    sample = {
        "images": [{"id": 6, "file_name": "plot.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "leaf"}, {"id": 2, "name": "stem"}],
    }
    file = folder / "plot.json"
    file.write_text(json.dumps(sample))
    return file


TWINS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("boxes", {}, {}),
    ("float32", {}, {"bbox": [20.000001, 12, 29.999999, 24]}),
    ("two decimals", {"bbox": [20.123, 12, 30, 24]}, {"bbox": [20.12, 12, 30, 24]}),
    ("masks", {"segmentation": [OUTLINE]}, {"segmentation": [OUTLINE]}),
    ("a closed polygon", {"segmentation": [OUTLINE]}, {"segmentation": [CLOSED]}),
    ("a noisy polygon", {"segmentation": [OUTLINE]}, {"segmentation": [NOISY]}),
    (
        "no boxes",
        {"bbox": None, "segmentation": [OUTLINE]},
        {"bbox": None, "segmentation": [OUTLINE]},
    ),
    ("one box", {"segmentation": [OUTLINE]}, {"bbox": None, "segmentation": [CLOSED]}),
    ("zeros", {"segmentation": [OUTLINE]}, {"bbox": [0, 0, 0, 0], "segmentation": [OUTLINE]}),
]
DRAWN_TWINS = [
    ("another corner", {"segmentation": [OUTLINE]}, {"segmentation": [FROM_ANOTHER_CORNER]}),
    ("run lengths", {"segmentation": [OUTLINE]}, {"segmentation": run_lengths()}),
]


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*row[1:], id=row[0]) for row in TWINS + DRAWN_TWINS]
)
def test_an_object_that_is_there_twice_counts_once(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")

    data = BoxImages(written(tmp_path, [first, second]))

    assert data.skipped == {"twice": 1}
    assert data[0][1]["boxes"].tolist() == [pytest.approx(CORNERS, abs=0.2)]


@pytest.mark.parametrize(("first", "second"), [pytest.param(*row[1:], id=row[0]) for row in TWINS])
def test_twins_are_found_without_pycocotools(
    first: dict[str, Any],
    second: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)

    data = BoxImages(written(tmp_path, [first, second]))

    assert data.skipped == {"twice": 1}


TWO_OBJECTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("a pixel beside", {}, {"bbox": [21, 12, 30, 24]}),
    ("a tenth of a pixel wider", {}, {"bbox": [20, 12, 30.1, 24]}),
    ("halves of a box", {"segmentation": [LOWER_LEFT]}, {"segmentation": [UPPER_RIGHT]}),
    ("half of the other", {"segmentation": [OUTLINE]}, {"segmentation": [UPPER_RIGHT]}),
    ("not a number", {"bbox": [20, 12, 30, 24]}, {"bbox": [20, 12, 30, float("nan")]}),
]


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*row[1:], id=row[0]) for row in TWO_OBJECTS]
)
def test_objects_that_differ_both_count(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")

    data = BoxImages(written(tmp_path, [first, second]))

    assert data.skipped["twice"] == 0


def test_one_of_two_twins_may_be_marked_as_crowd_where_crowds_are_objects(tmp_path: Path) -> None:
    file = written(tmp_path, [{"iscrowd": 0}, {"iscrowd": 1}])

    regions = BoxImages(file)
    objects = BoxImages(file, crowd="objects")

    assert regions.skipped == {"crowd": 1}
    assert objects.skipped == {"twice": 1}
    assert objects.numbers == {6: 1}


def test_a_crowd_region_that_is_there_twice_counts_as_crowd(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, [{"iscrowd": 1}, {"iscrowd": 1}]))

    assert data.skipped == {"crowd": 2}


def test_twins_are_found_among_many_boxes_in_one_column(tmp_path: Path) -> None:
    entries = [{"bbox": [10, y / 2, 8, 6]} for y in range(60)]
    entries += [{"bbox": [10.000001, y / 2, 8, 6]} for y in range(0, 60, 2)]

    data = BoxImages(written(tmp_path, entries))

    assert data.skipped == {"twice": 30}
    assert data.numbers == {6: 60}


def test_many_equal_boxes_take_little_memory(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, [{}] * 20_000))

    assert data.skipped == {"twice": 19_999}


def test_of_very_many_equal_boxes_masks_that_differ_in_their_numbers_are_two(
    tmp_path: Path,
) -> None:
    entries = [{"segmentation": [[20, 12, 50, 12, 50, 36, 20, 36 - i / 1000]]} for i in range(310)]

    data = BoxImages(written(tmp_path, entries))

    assert data.numbers == {6: 310}


def test_very_many_boxes_of_one_column_are_compared(tmp_path: Path) -> None:
    entries = [{"bbox": [10, i / 10, 8, 6]} for i in range(310)]

    data = BoxImages(written(tmp_path, entries))

    assert data.numbers == {6: 310}


def test_equal_boxes_with_masks_that_cannot_be_read_stay_two_objects(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"segmentation": "?"}, {"segmentation": "!"}]

    data = BoxImages(written(tmp_path, entries))

    assert data.numbers == {6: 2}


def test_two_classes_of_one_place_are_named_though_their_numbers_differ_a_little(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{}, {"bbox": [20.000001, 12, 30, 24], "category_id": 2}]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, entries))

    [line] = caplog.messages
    assert "1 of 2 boxes are in the place of a box of another class" in line
    assert data.numbers == {6: 2}


# Objects that are there twice with other numbers
# ------------------------------------------------------------------------------------------------

APART = [[3 + 25 * (i % 3), 1 + 19 * (i // 3), 22, 18] for i in range(9)]
SMALL = [[3 + 25 * (i % 3), 1 + 19 * (i // 3), 4, 5] for i in range(9)]


def by_a_third_of_a_pixel(bbox: list[int]) -> list[float]:
    return [bbox[0] + 0.3, bbox[1] + 0.3, *bbox[2:]]


def with_the_last_pixel(bbox: list[int]) -> list[float]:
    return [*bbox[:2], bbox[2] + 1, bbox[3] + 1]


@pytest.mark.parametrize("change", [by_a_third_of_a_pixel, with_the_last_pixel])
@pytest.mark.parametrize("objects", [APART, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("in_turns", [False, True])
def test_many_objects_that_are_there_twice_with_other_numbers_are_counted(
    in_turns: bool,
    objects: list[list[int]],
    change: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if in_turns:
        bboxes = [written_box for bbox in objects for written_box in (bbox, change(bbox))]
    else:
        bboxes = [*objects, *map(change, objects)]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, [{"bbox": bbox} for bbox in bboxes]))

    [line] = caplog.messages
    twin = 31 if in_turns else 39
    assert "18 of 18 boxes overlap another one of their image and class by 90 % or more" in line
    assert f"annotations[0] (id 30) and annotations[{twin - 30}] (id {twin})" in line
    assert data.numbers == {6: 18}


OTHERS: list[tuple[str, list[dict[str, Any]]]] = [
    ("apart", [{"bbox": bbox} for bbox in APART]),
    ("few", [{"bbox": b} for b in [*APART, *map(by_a_third_of_a_pixel, APART[:2])]]),
    (
        "of crowds",
        [
            *({"bbox": bbox} for bbox in APART),
            *({"bbox": by_a_third_of_a_pixel(bbox), "iscrowd": 1} for bbox in APART),
        ],
    ),
    (
        "of two classes",
        [
            *({"bbox": bbox} for bbox in APART),
            *({"bbox": by_a_third_of_a_pixel(bbox), "category_id": 2} for bbox in APART),
        ],
    ),
    ("by a tenth", [{"bbox": b} for b in [*APART, *([x + 2, y, w, h] for x, y, w, h in APART)]]),
]


@pytest.mark.parametrize("entries", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_objects_that_are_not_there_twice_have_no_line(
    entries: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(written(tmp_path, entries))

    assert not [line for line in caplog.messages if "overlap another one" in line]
