"""Boxes and masks that show nothing are left out and counted; those that contradict each other are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.box_samples import content, write

from dinoneck import DataError
from dinoneck.data import BoxImages


def made(folder: Path, *boxes: dict[str, Any], **options: Any) -> BoxImages:
    """Boxes of the first image, of 30 x 40 px; the class is red unless it is stated."""
    entries = [{"id": i, "image_id": 10, "category_id": 5} | box for i, box in enumerate(boxes)]
    return BoxImages(write(folder, content() | {"annotations": entries}), **options)


def square(left: float, top: float = 2) -> dict[str, Any]:
    """A square of 6 px with its polygon."""
    right, bottom = left + 6, top + 6
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"bbox": [left, top, 6, 6], "segmentation": [polygon]}


GOOD = square(2)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        pytest.param({"bbox": [5, 5, 0, 10]}, "too small", id="no area"),
        pytest.param({"bbox": [5, 5, 0.5, 10]}, "too small", id="half a pixel"),
        pytest.param({"bbox": [50, 5, 5, 10]}, "outside", id="outside"),
        pytest.param({"bbox": [39.5, 5, 5, 10]}, "outside", id="half a pixel inside"),
        pytest.param({"bbox": None}, "without box", id="no box"),
        pytest.param({"bbox": []}, "without box", id="an empty box"),
        pytest.param(GOOD, "twice", id="twice"),
        pytest.param(GOOD | {"segmentation": []}, "twice", id="twice, once without a mask"),
    ],
)
def test_a_box_that_shows_nothing_new_is_left_out_and_counted(
    box: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    data = made(tmp_path, GOOD, square(20), box)

    assert data.skipped == {reason: 1}
    assert "annotations[2] (id 2)" in data.first_skipped[reason]
    assert data.corners(0).tolist() == [[2, 2, 8, 8], [20, 2, 26, 8]]


def test_more_than_half_left_out_are_refused_with_the_first_one(tmp_path: Path) -> None:
    small = {"bbox": [5, 5, 0.5, 0.5]}
    smaller = {"bbox": [5, 5, 0.1, 0.1]}

    with pytest.raises(DataError, match=r"2 of 3 .*2 too small.*annotations\[1\]"):
        made(tmp_path, GOOD, small, smaller)


def test_equal_boxes_of_one_class_with_other_masks_are_two_objects(tmp_path: Path) -> None:
    triangle = GOOD | {"segmentation": [[2, 2, 8, 2, 8, 8]]}

    assert made(tmp_path, GOOD, triangle).numbers[10] == 2


def test_a_crowd_region_around_an_object_is_not_the_object_twice(tmp_path: Path) -> None:
    data = made(tmp_path, GOOD, GOOD | {"iscrowd": 1})

    assert data.numbers[10] == 1
    assert data.num_crowds == 1
    assert not data.skipped


def test_one_box_with_two_classes_is_two_objects(tmp_path: Path) -> None:
    data = made(tmp_path, GOOD, GOOD | {"category_id": 2})

    assert data.corners(0).tolist() == [[2, 2, 8, 8]] * 2


@pytest.mark.parametrize(
    ("bbox", "corners", "clipped"),
    [
        pytest.param([-5, 20, 15, 40], [0, 20, 10, 30], 1, id="over two edges"),
        pytest.param([30, 20, 10.001, 10], [30, 20, 40, 30], 0, id="rounded"),
    ],
)
def test_a_box_over_the_edge_is_cut_and_counted(
    bbox: list[float], corners: list[float], clipped: int, tmp_path: Path
) -> None:
    data = made(tmp_path, {"bbox": bbox})

    assert data.corners(0).tolist() == [corners]
    assert data.clipped == clipped
    assert not data.skipped


# Masks
# ----------------------------------------------------------------------------------------------------

RUNS_OF_NOTHING = {"size": [30, 40], "counts": [30 * 40]}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        pytest.param(None, "without mask", id="null"),
        pytest.param([[20, 2, 23, 5]], "without mask", id="two points"),
        pytest.param(RUNS_OF_NOTHING, "empty mask", id="no pixel"),
    ],
)
def test_an_object_without_a_mask_is_left_out_and_counted_where_masks_are_asked(
    segmentation: Any, reason: str, tmp_path: Path
) -> None:
    bare = square(20) | {"segmentation": segmentation}

    masks = made(tmp_path, GOOD, bare, masks=True)
    boxes = made(tmp_path, GOOD, bare)

    assert masks.skipped == {reason: 1}
    assert masks.numbers[10] == 1
    assert boxes.numbers[10] == 2


@pytest.mark.parametrize("segmentation", [[], [[20, 2, 26, 8]], [20, 2, 26, 8]])
def test_a_rectangle_beside_masks_is_its_box(segmentation: Any, tmp_path: Path) -> None:
    drawn = square(20) | {"segmentation": segmentation}

    data = made(tmp_path, GOOD, drawn, masks=True)

    assert data.rectangles == 1
    assert data[0][1]["masks"][1].nonzero().tolist() == [
        [y, x] for y in range(2, 8) for x in range(20, 26)
    ]


def test_rectangles_alone_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--boxes"):
        made(tmp_path, GOOD | {"segmentation": []}, masks=True)


def test_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 without mask"):
        made(tmp_path, {"bbox": [2, 2, 6, 6]}, {"bbox": [20, 2, 6, 6]}, masks=True)


def test_a_mask_that_reaches_beyond_its_box_is_counted_and_kept(tmp_path: Path) -> None:
    shifted = square(20) | {"bbox": [23, 2, 6, 6]}
    rounded = square(30) | {"bbox": [31, 3, 4, 4]}

    data = made(tmp_path, shifted, rounded, masks=True)

    assert data.masks_beyond_boxes == 1
    assert data.corners(0).tolist() == [[23, 2, 29, 8], [31, 3, 35, 7]]
    assert data[0][1]["masks"][0, 2:8, 20:26].all()


def test_a_mask_without_a_pixel_in_its_box_is_refused(tmp_path: Path) -> None:
    elsewhere = square(20) | {"bbox": [2, 20, 6, 6]}

    with pytest.raises(DataError, match=r"annotations\[1\].*\[2\.0, 20\.0, 6\.0, 6\.0\]"):
        made(tmp_path, GOOD, elsewhere, masks=True)
