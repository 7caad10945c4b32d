"""Boxes are compared with their image, their mask and their area before anything is trained."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import BoxImages

# of pycocotools with numpy 2
Array = np.ndarray[Any, Any]
Corners = tuple[float, float, float, float]
SIZE = HEIGHT, WIDTH = 120, 180
# left, top, right, bottom of objects that lie anywhere, none of them symmetric to another
OBJECTS: list[Corners] = [
    (20, 14, 62, 40),
    (70, 31, 98, 82),
    (110, 9, 171, 29),
    (14, 66, 49, 110),
    (60, 90, 90, 101),
    (120, 55, 163, 97),
    (31, 45, 57, 61),
    (101, 35, 116, 49),
    (8, 42, 19, 60),
    (128, 101, 173, 116),
    (75, 8, 100, 22),
    (140, 36, 170, 50),
]


def bbox_of(corners: Corners) -> list[float]:
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


def outline_of(corners: Corners) -> list[list[float]]:
    left, top, right, bottom = corners
    return [[left, top, right, top, right, bottom, left, bottom]]


def mask_of(corners: Corners) -> Array:
    left, top, right, bottom = map(int, corners)
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def runs_of(sequence: Array) -> list[int]:
    """Run lengths of a sequence of 0 and 1 that begin with the zeros."""
    changes = np.flatnonzero(np.diff(sequence, prepend=0)).tolist()
    return np.diff([0, *changes, sequence.size]).tolist()  # type: ignore[no-any-return]


def run_lengths(mask: Array) -> dict[str, Any]:
    """A mask in COCO's run lengths, which run down the columns."""
    return {"size": list(SIZE), "counts": runs_of(mask.T.ravel())}


def written(folder: Path, entries: list[dict[str, Any]]) -> Path:
    """Write an image and annotations with these boxes, masks and areas."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "field.png")
    annotations = [
        {"id": 500 + i, "image_id": 2, "category_id": 8, **entry} for i, entry in enumerate(entries)
    ]
    sample = {
        "images": [{"id": 2, "file_name": "field.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 8, "name": "weed"}],
    }
    file = folder / "field.json"
    file.write_text(json.dumps(sample))
    return file


def outlined(
    change_box: Callable[[Corners], Any] = bbox_of,
    change_mask: Callable[[Corners], Any] = outline_of,
    objects: list[Corners] = OBJECTS,
) -> list[dict[str, Any]]:
    """Annotations of objects, with their boxes and masks as these functions write them."""
    return [
        {"bbox": change_box(corners), "segmentation": change_mask(corners)} for corners in objects
    ]


def refusal(folder: Path, entries: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(DataError) as refused:
        BoxImages(written(folder, entries), **options)
    return str(refused.value)


def warnings_of(
    folder: Path, entries: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> list[str]:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(written(folder, entries))
    return caplog.messages


# Boxes of another form next to right masks
# ------------------------------------------------------------------------------------------------


def moved(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [left + 9, top - 6, width, height]


def from_below(corners: Corners) -> list[float]:
    left, _, width, height = bbox_of(corners)
    return [left, HEIGHT - corners[3], width, height]


def from_right(corners: Corners) -> list[float]:
    _, top, width, height = bbox_of(corners)
    return [WIDTH - corners[2], top, width, height]


def centred(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [left + width / 2, top + height / 2, width, height]


def percent(corners: Corners) -> list[float]:
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return [100 * number / side for number, side in zip(bbox_of(corners), sides, strict=True)]


def x_before_y(corners: Corners) -> list[float]:
    left, top, right, bottom = corners
    return [left, right, top, bottom]


def swapped(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [top, left, height, width]


def lying(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [left, top, height, width]


def halved(corners: Corners) -> list[float]:
    return [number / 2 for number in bbox_of(corners)]


def of_the_next(corners: Corners) -> list[float]:
    return bbox_of(OBJECTS[(OBJECTS.index(corners) + 1) % len(OBJECTS)])


WRONG_BOXES: list[tuple[str, Callable[[Corners], list[float]], str]] = [
    ("corners", lambda corners: list(corners), "corners, x1, y1, x2, y2"),
    ("corners with y first", lambda c: [c[1], c[0], c[3], c[2]], "corners, y1, x1, y2, x2"),
    ("x1, x2, y1, y2", x_before_y, "x1, x2, y1, y2"),
    ("x and y exchanged", swapped, "x and y of the boxes, or of the masks, seem to be exchanged"),
    ("width and height exchanged", lying, "Width and height"),
    ("y from below", from_below, "counted from the lower edge"),
    ("x from the right", from_right, "counted from the right edge"),
    ("at the centre", centred, "begin at their centre"),
    ("percent", percent, "percent"),
    ("moved", moved, "seem to be moved"),
    ("of images of half the size", halved, "another size of the images"),
    ("the whole image", lambda corners: [0, 0, WIDTH, HEIGHT], "boxes cover their whole images"),
    ("of other objects", of_the_next, "lie outside of their boxes"),
]


@pytest.mark.parametrize(
    ("change", "cause"), [pytest.param(*row[1:], id=row[0]) for row in WRONG_BOXES]
)
def test_boxes_of_another_form_are_refused_with_their_cause(
    change: Callable[[Corners], list[float]], cause: str, tmp_path: Path
) -> None:
    # few enough to stay inside their image: else the edge tells first
    objects = [corners for corners in OBJECTS if _fits(change(corners))]
    entries = outlined(change, objects=objects)

    message = refusal(tmp_path, entries)

    assert "field.json" in message
    assert f"of {len(objects)} boxes contradict their masks" in message
    assert cause in message


def _fits(bbox: list[float]) -> bool:
    x, y, width, height = bbox
    return width > 0 and height > 0 and x + width <= WIDTH and y + height <= HEIGHT


def test_the_first_box_and_both_extents_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, outlined(lambda corners: list(corners), objects=OBJECTS[:1]))

    assert "annotations[0] (id 500)" in message
    assert "[20, 14, 62, 40]" in message
    assert "x 20 ... 62, y 14 ... 40" in message


def test_a_wrong_polygon_is_refused_with_its_cause(tmp_path: Path) -> None:
    def in_shares(corners: Corners) -> Any:
        left, top, right, bottom = corners
        return outline_of((left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT))

    message = refusal(tmp_path, outlined(change_mask=in_shares))

    assert "The masks seem to be shares of the image's sides" in message


@pytest.mark.parametrize("number", [1, 12])
def test_polygons_in_shares_without_boxes_are_called_masks(number: int, tmp_path: Path) -> None:
    entries = []
    for left, top, right, bottom in OBJECTS[:number]:
        outline = outline_of((left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT))
        entries.append({"segmentation": outline})

    message = refusal(tmp_path, entries)

    assert f"the masks of {number} of {number} objects have no value above 1" in message
    assert "boxes" not in message
    assert "multiply x by its width and y by its height" in message


def axes_of(corners: Corners) -> Any:
    """An outline as all x and then all y."""
    left, top, right, bottom = corners
    middle = (top + bottom) / 2
    return [[left, right, right, right, left, left], [top, top, middle, bottom, bottom, top]]


def test_all_x_before_all_y_are_named_as_the_cause(tmp_path: Path) -> None:
    message = refusal(tmp_path, outlined(change_mask=axes_of))

    assert "all x and then all y" in message


def test_all_x_before_all_y_that_leave_the_image_are_named_as_masks(tmp_path: Path) -> None:
    message = refusal(tmp_path, [{"segmentation": axes_of(corners)} for corners in OBJECTS])

    assert "the masks of 4 of 12 objects reach over the edge of their image" in message
    assert "They may be all x and then all y" in message


def test_all_x_before_all_y_without_boxes_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    within = [corners for corners in OBJECTS if corners[2] <= HEIGHT]

    messages = warnings_of(tmp_path, [{"segmentation": axes_of(c)} for c in within], caplog)

    [line] = [line for line in messages if "equal length" in line]
    assert f"all {len(within)} objects without bbox has two parts of equal length" in line
    assert "annotations[0] (id 500)" in line


def test_objects_of_two_parts_of_other_lengths_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = []
    for left, top, right, bottom in OBJECTS:
        middle = (left + right) / 2
        parts = [
            *outline_of((left, top, middle - 2, bottom)),
            [middle, top, right, top, right, bottom],
        ]
        entries.append({"segmentation": parts})

    messages = warnings_of(tmp_path, entries, caplog)

    assert not [line for line in messages if "equal length" in line]


def test_masks_beside_their_images_are_refused(tmp_path: Path) -> None:
    def beyond(corners: Corners) -> Any:
        left, top, right, bottom = corners
        return outline_of((left + 400, top, right + 400, bottom + 3))

    message = refusal(tmp_path, outlined(change_mask=beyond))

    assert "empty, or lie outside of their images" in message


# Run lengths
# ------------------------------------------------------------------------------------------------


def along_rows(corners: Corners) -> dict[str, Any]:
    return {"size": list(SIZE), "counts": runs_of(mask_of(corners).ravel())}


def inverted(corners: Corners) -> dict[str, Any]:
    return run_lengths(1 - mask_of(corners))


def upside_down(corners: Corners) -> dict[str, Any]:
    return run_lengths(mask_of(corners)[::-1])


def mirrored(corners: Corners) -> dict[str, Any]:
    return run_lengths(mask_of(corners)[:, ::-1])


def whole(corners: Corners) -> dict[str, Any]:
    return run_lengths(np.ones(SIZE, np.uint8))


def empty(corners: Corners) -> dict[str, Any]:
    return run_lengths(np.zeros(SIZE, np.uint8))


WRONG_RUNS: list[tuple[str, Callable[[Corners], Any], str]] = [
    ("along the rows", along_rows, "counted along the rows; COCO's run down the columns"),
    ("the background", inverted, "begin with the mask; COCO's begin with the background"),
    ("upside down", upside_down, "upside down"),
    ("mirrored", mirrored, "mirrored"),
    ("the whole image", whole, "cover their whole images"),
    ("nothing", empty, "empty"),
]


@pytest.mark.parametrize(
    ("change", "cause"), [pytest.param(*row[1:], id=row[0]) for row in WRONG_RUNS]
)
@pytest.mark.parametrize("form", ["counts", "text"])
def test_run_lengths_beside_their_box_are_refused_with_their_cause(
    form: str, change: Callable[[Corners], Any], cause: str, tmp_path: Path
) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    entries = outlined(change_mask=change)
    if form == "text":
        for entry in entries:
            runs = masks.frPyObjects(entry["segmentation"], *SIZE)
            entry["segmentation"] = {"size": list(SIZE), "counts": runs["counts"].decode()}

    message = refusal(tmp_path, entries)

    assert "12 of 12 boxes contradict their masks" in message
    assert cause in message


def without_boxes(change_mask: Callable[[Corners], Any]) -> list[dict[str, Any]]:
    """Annotations of masks alone."""
    return [{"segmentation": change_mask(corners)} for corners in OBJECTS]


def test_run_lengths_along_the_rows_are_named_without_a_box(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")

    messages = warnings_of(tmp_path, without_boxes(along_rows), caplog)

    [line] = [line for line in messages if "stripes" in line]
    assert "12 of the first 12 objects without bbox are torn into stripes" in line
    assert "such as that of annotations[0] (id 500)" in line


def test_masks_of_the_background_are_named_without_a_box(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")

    messages = warnings_of(tmp_path, without_boxes(inverted), caplog)

    [line] = [line for line in messages if "span their whole image" in line]
    assert "the masks of 12 objects without bbox span" in line
    assert "begin with the pixels that are not in the mask" in line


def test_run_lengths_down_the_columns_are_read_without_a_box(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, without_boxes(lambda c: run_lengths(mask_of(c)))))

    [line] = caplog.messages
    assert line.endswith("repaired: boxes taken from their masks: 12")
    assert data[0][1]["boxes"].tolist() == [list(corners) for corners in OBJECTS]


@pytest.mark.parametrize("masks", [False, True])
def test_empty_masks_are_refused_whether_masks_are_asked_or_not(
    masks: bool, tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    entries = outlined(objects=OBJECTS[:6]) + outlined(change_mask=empty, objects=OBJECTS[6:])

    message = refusal(tmp_path, entries, masks=masks)

    assert "6 of 12 boxes contradict their masks" in message
    assert "empty" in message


def test_masks_beside_boxes_that_were_turned_afterwards_are_refused_with_the_cause(
    tmp_path: Path,
) -> None:
    entries = []
    for i, corners in enumerate(OBJECTS):
        others = OBJECTS[(i + 5) % len(OBJECTS)]
        entries.append(
            {"bbox": bbox_of(corners), "segmentation": outline_of(others), "rotation": 30}
        )

    message = refusal(tmp_path, entries)

    assert "The rectangles are turned (rotation), and the boxes are those before" in message


def test_a_single_empty_mask_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")
    entries = outlined(objects=OBJECTS[:11]) + outlined(change_mask=empty, objects=OBJECTS[11:])

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, entries), masks=True)

    assert data.skipped == {"empty mask": 1}
    assert data.numbers == {2: 11}
    assert "1 of 12 boxes contradict their masks, such as annotations[11]" in caplog.text


@pytest.mark.parametrize(
    "iscrowd", [pytest.param(0, id="an object"), pytest.param(1, id="a crowd region")]
)
def test_a_single_mask_beside_boxes_alone_is_named(
    iscrowd: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = boxed([bbox_of(corners) for corners in OBJECTS])
    entries[4]["segmentation"] = outline_of(OBJECTS[0])
    entries[4]["iscrowd"] = iscrowd

    messages = warnings_of(tmp_path, entries, caplog)

    [line] = [line for line in messages if "contradict" in line]
    assert "1 of 1 boxes contradict their masks, such as annotations[4] (id 504)" in line
    assert "They are used as they are" in line


def test_three_masks_beside_boxes_alone_are_enough_to_refuse(tmp_path: Path) -> None:
    entries = boxed([bbox_of(corners) for corners in OBJECTS])
    for row in (3, 4, 5):
        entries[row]["segmentation"] = outline_of(OBJECTS[row - 3])

    assert "3 of 3 boxes contradict their masks" in refusal(tmp_path, entries)


def test_the_share_of_pixels_in_the_box_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    entries = outlined(change_mask=along_rows, objects=[(20, 14, 62, 40)])
    flat = mask_of((20, 14, 62, 40)).ravel()
    share = flat.reshape(WIDTH, HEIGHT).T[14:40, 20:62].sum() / flat.sum()

    message = refusal(tmp_path, entries, masks=True)

    assert f"{100 * share:.0f} % of its pixels in the box" in message


def test_boxes_are_read_without_pycocotools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    file = written(tmp_path, outlined(change_mask=along_rows))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(file)

    assert data.numbers == {2: 12}
    assert not caplog.messages
    with pytest.raises(ImportError, match="pycocotools"):
        BoxImages(file, masks=True)


def test_polygons_are_compared_without_pycocotools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)

    message = refusal(tmp_path, outlined(swapped, objects=[OBJECTS[0], OBJECTS[6]]))

    assert "exchanged" in message


# What tools write, and what is right
# ------------------------------------------------------------------------------------------------


def rounded_down(corners: Corners) -> list[float]:
    return [float(int(number)) for number in bbox_of(corners)]


def last_pixel_out(corners: Corners) -> list[float]:
    left, top, right, bottom = corners
    return [left, top, right - left - 1, bottom - top - 1]


def from_one(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [left + 1, top + 1, width, height]


def loose(corners: Corners) -> list[float]:
    left, top, width, height = bbox_of(corners)
    return [left - 0.1 * width, top - 0.05 * height, 1.15 * width, 1.2 * height]


def fractional(corners: Corners) -> Any:
    left, top, right, bottom = corners
    return outline_of((left + 0.4, top + 0.7, right + 0.2, bottom - 0.3))


RIGHT: list[tuple[str, Callable[[Corners], Any], Callable[[Corners], Any]]] = [
    ("exact", bbox_of, outline_of),
    ("rounded down", rounded_down, fractional),
    ("without the last pixel", last_pixel_out, outline_of),
    ("counted from 1", from_one, outline_of),
    ("drawn loosely", loose, outline_of),
    ("run lengths", bbox_of, lambda corners: run_lengths(mask_of(corners))),
    ("run lengths, rounded", last_pixel_out, lambda corners: run_lengths(mask_of(corners))),
]


@pytest.mark.parametrize(
    ("change_box", "change_mask"), [pytest.param(*row[1:], id=row[0]) for row in RIGHT]
)
def test_boxes_that_differ_from_masks_as_tools_write_them_are_read_without_a_word(
    change_box: Callable[[Corners], Any],
    change_mask: Callable[[Corners], Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entries = outlined(change_box, change_mask)

    messages = warnings_of(tmp_path, entries, caplog)

    assert not messages


def test_a_box_cut_at_the_edge_fits_a_mask_that_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = outlined(objects=[*OBJECTS[:9]])
    entries.append({"bbox": [150, 80, 30, 40], "segmentation": [[150, 80, 240, 80, 150, 190]]})

    messages = warnings_of(tmp_path, entries, caplog)

    assert not messages


def test_a_mask_of_the_visible_part_of_a_whole_box_is_named_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def upper_third(corners: Corners) -> Any:
        left, top, right, bottom = corners
        return outline_of((left, top, right, top + (bottom - top) / 3))

    [line] = warnings_of(tmp_path, outlined(change_mask=upper_third), caplog)

    assert "12 of 12 boxes are more than twice as large as their masks" in line


def test_the_box_of_a_single_object_may_be_its_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = outlined(lambda corners: [0, 0, WIDTH, HEIGHT], objects=OBJECTS[:1])

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "1 of 1 boxes are more than twice as large as their masks" in line


def test_small_objects_may_be_outlined_loosely(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small: list[Corners] = [
        (20.0 + 9 * i, 30.0 + 5 * i, 26.0 + 9 * i, 35.0 + 5 * i) for i in range(12)
    ]

    def around(corners: Corners) -> Any:
        left, top, right, bottom = corners
        return outline_of((left - 4, top - 4, right + 4, bottom + 4))

    messages = warnings_of(tmp_path, outlined(change_mask=around, objects=small), caplog)

    assert not messages


def test_a_single_wrong_box_among_many_is_named_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = outlined()
    entries[4]["bbox"] = [5, 5, 20, 20]

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "1 of 12 boxes contradict their masks, such as annotations[4] (id 504)" in line
    assert "[5, 5, 20, 20]" in line
    assert "They are used as they are" in line


def test_of_a_single_empty_mask_it_is_said_where_its_box_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = outlined()
    entries[4]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "annotations[4] (id 504)" in line
    assert "its mask is empty" in line
    assert "with masks, these objects are left out" in line
    assert "used as they are" not in line


def test_two_wrong_boxes_of_twelve_are_too_many(tmp_path: Path) -> None:
    entries = outlined()
    entries[4]["bbox"] = [5, 5, 20, 20]
    entries[7]["bbox"] = [5, 30, 20, 20]

    message = refusal(tmp_path, entries)

    assert "2 of 12 boxes contradict their masks" in message


def test_small_objects_that_are_moved_by_little_are_not_called_resized(tmp_path: Path) -> None:
    small: list[Corners] = [
        (10.0 + 4 * i, 12.0 + 3 * i, 16.0 + 4 * i, 17.0 + 3 * i) for i in range(12)
    ]

    def beside(corners: Corners) -> list[float]:
        left, top, width, height = bbox_of(corners)
        return [left + 3, top + 3, width, height]

    message = refusal(tmp_path, outlined(beside, objects=small))

    assert "The masks, or the boxes, seem to be moved" in message


def test_masks_are_compared_also_where_masks_are_asked(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")

    message = refusal(tmp_path, outlined(moved), masks=True)

    assert "12 of 12" in message


# Boxes and their images
# ------------------------------------------------------------------------------------------------


def boxed(bboxes: list[list[float]]) -> list[dict[str, Any]]:
    return [{"bbox": bbox} for bbox in bboxes]


def test_shares_of_the_sides_are_refused(tmp_path: Path) -> None:
    bboxes = [[number / 100 for number in percent(corners)] for corners in OBJECTS]

    message = refusal(tmp_path, boxed(bboxes))

    assert "12 of 12 boxes have no value above 1" in message
    assert "180x120 px" in message
    assert "shares of the image's sides" in message


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        pytest.param([[0.9, 0.5, 0.2, 0.3], [0.1, 0.2, 0.2, 0.2]], "files of YOLO", id="centres"),
        pytest.param([[0.4, 0.5, 0.7, 0.9], [0.3, 0.2, 0.8, 0.6]], "two corners", id="corners"),
        pytest.param([[0.4, 0.5, 0.2, 0.2], [0.3, 0.2, 0.1, 0.1]], "come from YOLO", id="both"),
        pytest.param([[0.0, 0.0, 0.2, 0.2], [0.3, 0.2, 0.1, 0.1]], "multiply them", id="sizes"),
    ],
)
def test_shares_have_the_remedy_of_what_they_are(
    shares: list[list[float]], named: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, boxed(shares))

    assert named in message


def test_corners_that_leave_the_image_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, boxed([list(corners) for corners in OBJECTS]))

    assert "boxes reach over the edge" in message
    assert "corners, x1, y1, x2, y2" in message


def test_centres_that_leave_the_image_are_refused(tmp_path: Path) -> None:
    corners = [(110 + i, 70.0, 178.0, 118.0) for i in range(12)]

    message = refusal(tmp_path, boxed([centred(box) for box in corners]))

    assert "begin at their centre" in message


@pytest.mark.parametrize("number", [1, 3, 9])
def test_few_boxes_that_all_leave_their_image_are_named(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [[-8.0, 20 + 9 * i, 20, 8] for i in range(number)]

    [line] = warnings_of(tmp_path, boxed(bboxes), caplog)

    assert f"{number} of {number} boxes reach over the edge of their image" in line
    assert "such as [-8, 20, 20, 8] of annotations[0]" in line
    assert "They are cut at the edge" in line


def small_box(number: int) -> Corners:
    """A box of 10x10 px, in five rows of twelve."""
    row, column = divmod(number, 12)
    left = 4.0 + 14 * column
    top = 4.0 + 22 * row
    return left, top, left + 10, top + 10


SMALL = [small_box(number) for number in range(60)]


def test_centres_of_which_few_leave_the_image_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corners = [*SMALL, (169, 30, 179, 40), (100, 109, 110, 119)]

    [line] = warnings_of(tmp_path, boxed([centred(box) for box in corners]), caplog)

    assert "2 of 62 boxes reach over the edge" in line
    assert "No box leaves the left or the upper edge" in line
    assert "write x - width / 2, y - height / 2" in line


def test_boxes_that_leave_the_image_by_rounding_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corners = [*SMALL, (-1.9, 60, 9, 70), (172, 30, 181.9, 40), (100, 113, 110, 121.5)]

    messages = warnings_of(tmp_path, boxed([bbox_of(box) for box in corners]), caplog)

    assert not messages


def test_masks_without_boxes_that_leave_the_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beyond = {"segmentation": outline_of((150, 60, 200, 80))}

    lines = warnings_of(tmp_path, [*outlined(), beyond], caplog)

    [line] = [line for line in lines if "over the edge" in line]
    assert "the masks of 1 of 13 objects reach over the edge of their image" in line
    assert "such as the segmentation [[150, 60, 200, 60" in line


AXES = [[150, 200, 200, 150, 170, 160], [60, 60, 80, 80, 70, 75]]
TWO_PARTS = [[150, 60, 200, 60, 200, 80], [20, 20, 40, 20, 40, 40, 20, 40]]


@pytest.mark.parametrize(
    ("segmentation", "is_of_axes"),
    [
        pytest.param(AXES, True, id="lists of one length"),
        pytest.param(TWO_PARTS, False, id="lists of two lengths"),
        pytest.param(TWO_PARTS[:1], False, id="one list"),
    ],
)
def test_two_lists_of_one_length_over_the_edge_may_be_all_x_and_all_y(
    segmentation: list[list[float]], is_of_axes: bool, tmp_path: Path
) -> None:
    message = refusal(tmp_path, [{"segmentation": segmentation}] * 12)

    assert "objects reach over the edge of their image" in message
    assert ("They may be all x and then all y" in message) is is_of_axes


def test_few_boxes_that_leave_the_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at_the_edge = (0, 60, 9, 70)
    over_the_right_edge = (172, 30, 184, 40)
    over_the_lower_edge = (100, 113, 110, 124)
    corners = [*SMALL, at_the_edge, over_the_right_edge, over_the_lower_edge]

    [line] = warnings_of(tmp_path, boxed([bbox_of(box) for box in corners]), caplog)

    assert "2 of 63 boxes reach over the edge of their image" in line
    assert "such as [172, 30, 12, 10] of annotations[61] (id 561) in an image of 180x120 px" in line
    assert "They are cut at the edge" in line


def test_few_boxes_of_sides_that_no_image_has_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [bbox_of(box) for box in SMALL]
    for row in (7, 20, 40):
        bboxes[row][2:] = [300, 300]

    [line] = warnings_of(tmp_path, boxed(bboxes), caplog)

    assert "3 of 60 boxes reach over the edge of their image" in line
    assert "of annotations[7] (id 507)" in line


def test_few_corners_among_many_boxes_are_named_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [bbox_of(box) for box in SMALL]
    for row in (35, 46, 47):
        bboxes[row] = list(SMALL[row])

    [line] = warnings_of(tmp_path, boxed(bboxes), caplog)

    assert "3 of 60 boxes reach over the edge of their image" in line
    assert "They seem to be corners, x1, y1, x2, y2: write x1, y1, x2 - x1, y2 - y1" in line


def test_boxes_that_all_lie_outside_are_refused_with_the_reason(tmp_path: Path) -> None:
    message = refusal(tmp_path, boxed([[500.0 + i, 500, 20, 20] for i in range(4)]))

    assert "4 of 4 boxes show nothing (4 outside)" in message


def test_few_corners_that_leave_the_image_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = warnings_of(tmp_path, boxed([[110, 60, 171, 100], [20, 14, 62, 40]]), caplog)

    assert "1 of 2 boxes reach over the edge" in line
    assert "unless they are right" in line


def test_boxes_of_smaller_copies_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [[2.0 * i, 1.0 * i, 20, 12] for i in range(30)]

    [line] = warnings_of(tmp_path, boxed(bboxes), caplog)

    assert "all 30 boxes lie in the left 43 % and the upper 34 %" in line
    assert "or percent of their sides" in line


def scattered(count: int, factor: float) -> list[list[float]]:
    """Boxes of random places all over the image, times a factor."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(8, 20, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    bboxes: list[list[float]] = (factor * np.concatenate([corners, sizes], axis=1)).tolist()
    return bboxes


@pytest.mark.parametrize(("count", "factor"), [(60, 0.64), (600, 0.64), (600, 0.75)])
def test_many_boxes_of_smaller_copies_are_named_above_half_of_the_sides(
    count: int, factor: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = warnings_of(tmp_path, boxed(scattered(count, factor)), caplog)

    [line] = [line for line in messages if "smaller copies" in line]
    assert f"all {count} boxes lie in the left" in line


@pytest.mark.parametrize(
    "bboxes",
    [
        pytest.param(scattered(600, 1.0), id="all over the image"),
        pytest.param(scattered(31, 0.7), id="few"),
        pytest.param(scattered(600, 0.9), id="a narrow margin"),
        pytest.param([[x + 32, y + 22, w, h] for x, y, w, h in scattered(600, 0.64)], id="centred"),
        pytest.param(
            [[x + 20, y + 14, w, h] for x, y, w, h in scattered(600, 0.6)], id="off centre"
        ),
        pytest.param([[x, 0.6 * y, w, h] for x, y, w, h in scattered(600, 0.78)], id="a horizon"),
    ],
)
def test_boxes_that_lie_where_objects_do_are_not_called_copies(
    bboxes: list[list[float]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = warnings_of(tmp_path, boxed(bboxes), caplog)

    assert not [line for line in messages if "smaller copies" in line]


def test_exchanged_sides_are_named_before_boxes_over_the_edge(tmp_path: Path) -> None:
    file = written(tmp_path, boxed([bbox_of(corners) for corners in OBJECTS]))
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    file.write_text(json.dumps(content))

    with pytest.raises(DataError, match="width and height are exchanged") as refused:
        BoxImages(file)

    assert "over the edge" not in str(refused.value)


# Boxes and their areas
# ------------------------------------------------------------------------------------------------


def rated(bboxes: list[list[float]], areas: list[Any]) -> list[dict[str, Any]]:
    return [{"bbox": bbox, "area": area} for bbox, area in zip(bboxes, areas, strict=True)]


INNER = [(10.0, 8.0, 60.0, 50.0), (22.0, 14.0, 70.0, 41.0), (5.0, 20.0, 80.0, 60.0)]
AREAS = [50 * 42, 48 * 27, 75 * 40]


def test_areas_tell_corners_without_masks(tmp_path: Path) -> None:
    entries = rated([list(corners) for corners in INNER], AREAS)

    message = refusal(tmp_path, entries)

    assert "annotations[0] (id 500)" in message
    assert "the area 2100" in message
    assert "corners, x1, y1, x2, y2" in message


def test_two_areas_of_corners_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = rated([list(corners) for corners in INNER[:2]], AREAS[:2])

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "the area of 2 of 2 boxes is not width x height" in line


RIGHT_AREAS: list[tuple[str, list[Any]]] = [
    ("exact", AREAS),
    ("of the mask", [0.7 * area for area in AREAS]),
    ("rounded", [area + 0.4 for area in AREAS]),
    ("none", [None, None, None]),
    ("zero", [0, 0, 0]),
    ("of one pixel", [1, 1, 1]),
    ("as text", ["?", "?", "?"]),
]


@pytest.mark.parametrize("areas", [row[1] for row in RIGHT_AREAS], ids=[r[0] for r in RIGHT_AREAS])
def test_areas_that_may_be_right_are_read_without_a_word(
    areas: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = rated([bbox_of(corners) for corners in INNER], areas)

    messages = warnings_of(tmp_path, entries, caplog)

    assert not messages


def test_areas_larger_than_their_boxes_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = rated([bbox_of(corners) for corners in INNER], [9000, 9000, 9000])

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "the area of 3 of 3 boxes is larger than the box" in line


PRODUCTS = [width * height for _, _, width, height in map(bbox_of, OBJECTS)]
WRONG_AREAS: list[tuple[str, Any, str]] = [
    ("ten times", 10 * PRODUCTS[4], "the area of 1 of 12 boxes is larger than the box"),
    ("as text", str(3 * PRODUCTS[4]), "the area of 1 of 12 boxes is larger than the box"),
    ("a tenth", 0.1 * PRODUCTS[4], "the area of 1 of 12 boxes is smaller than the box"),
    ("negative", -5, "the area of 1 of 12 boxes is negative"),
    ("negative as text", "-5", "the area of 1 of 12 boxes is negative"),
]


@pytest.mark.parametrize(
    ("area", "words"), [pytest.param(*row[1:], id=row[0]) for row in WRONG_AREAS]
)
def test_one_area_among_many_that_is_not_of_its_box_is_counted(
    area: Any, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    areas: list[Any] = list(PRODUCTS)
    areas[4] = area

    [line] = warnings_of(tmp_path, rated(list(map(bbox_of, OBJECTS)), areas), caplog)

    assert words in line
    assert "annotations[4] (id 504)" in line


def test_a_box_of_the_whole_image_is_named_by_its_area(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [bbox_of(corners) for corners in OBJECTS]
    bboxes[4] = [0, 0, WIDTH, HEIGHT]

    [line] = warnings_of(tmp_path, rated(bboxes, PRODUCTS), caplog)

    assert "such as annotations[4] (id 504) with the area 330 and the bbox [0, 0, 180, 120]" in line
    assert "that of 11 others is width x height" in line


def test_areas_of_boxes_with_rounded_sides_are_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [[10 + 9 * i, 20, 2, 2] for i in range(12)]
    areas = [4.0] * 10 + [8.9, 1.1]

    messages = warnings_of(tmp_path, rated(bboxes, areas), caplog)

    assert not messages


def test_half_of_the_boxes_as_corners_are_refused_by_their_areas(tmp_path: Path) -> None:
    bboxes = [list(corners) for corners in INNER] + [bbox_of(corners) for corners in INNER]

    message = refusal(tmp_path, rated(bboxes, AREAS + AREAS))

    assert "the area of 3 of 6 boxes is not width x height, such as annotations[0]" in message


def test_corners_are_refused_although_one_area_is_of_something_else(tmp_path: Path) -> None:
    entries = rated([list(corners) for corners in INNER], AREAS)
    entries.append({"bbox": [20, 30, 50, 44], "area": 17})

    message = refusal(tmp_path, entries)

    assert "the area of 3 of 4 boxes" in message


def test_one_box_as_corners_among_many_is_named_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [bbox_of(corners) for corners in OBJECTS]
    areas = [width * height for _, _, width, height in bboxes]
    bboxes[6] = list(OBJECTS[6])

    [line] = warnings_of(tmp_path, rated(bboxes, areas), caplog)

    assert "the area of 1 of 12 boxes is not width x height, such as annotations[6]" in line


def test_an_area_of_a_mask_that_equals_that_of_corners_by_chance_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bboxes = [[2.0, 3, 20 + i % 13, 14 + i // 13] for i in range(120)]
    areas = [0.5 * width * height for _, _, width, height in bboxes]
    areas[5] = (bboxes[5][2] - 2) * (bboxes[5][3] - 3)
    entries = rated([*bboxes, [100, 60, 60, 50]], [*areas, 1800])

    messages = warnings_of(tmp_path, entries, caplog)

    assert not [line for line in messages if "the area" in line]


def test_corners_with_y_first_are_named_so_in_a_wide_image(tmp_path: Path) -> None:
    y_first = [[top, left, bottom, right] for left, top, right, bottom in OBJECTS]

    message = refusal(tmp_path, boxed(y_first))

    assert "They seem to be corners, y1, x1, y2, x2: write x1, y1, x2 - x1, y2 - y1" in message


def test_areas_of_corners_with_y_first_name_both_orders_where_both_fit(tmp_path: Path) -> None:
    y_first = [[top, left, bottom, right] for left, top, right, bottom in INNER]

    message = refusal(tmp_path, rated(y_first, AREAS))

    assert "corners, x1, y1, x2, y2" in message
    assert "or y1, x1, y2, x2, if y comes first" in message


# Masks and their areas
# ------------------------------------------------------------------------------------------------

RING = [20, 10, 60, 10, 60, 40, 20, 40]
HOLE = [30, 15, 50, 15, 50, 35, 30, 35]
BESIDE = [70, 10, 80, 10, 80, 30, 70, 30]


def holed(number: int, area: Any, parts: list[list[float]]) -> list[dict[str, Any]]:
    """Annotations of one form, moved a little from each other."""
    entries = []
    for i in range(number):
        moved_parts = [[value + 2 * i for value in part] for part in parts]
        xs = [x for part in moved_parts for x in part[::2]]
        ys = [y for part in moved_parts for y in part[1::2]]
        bbox = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        entries.append({"bbox": bbox, "segmentation": moved_parts, "area": area})
    return entries


def test_holes_that_are_exported_as_parts_are_refused_by_their_areas(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")

    message = refusal(tmp_path, holed(5, 800, [RING, HOLE]), masks=True)

    assert "5 of 5 masks have a part inside another one" in message
    assert "annotations[0] (id 500)" in message
    assert "its mask has 1200 px, with holes it would have 800 px and its area is 800" in message
    assert "run lengths (RLE)" in message


@pytest.mark.parametrize("area", [None, 1200], ids=["no area", "of the filled mask"])
def test_parts_inside_others_are_named_where_no_area_says_that_they_are_holes(
    area: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, holed(2, area, [RING, HOLE])), masks=True)

    [line] = caplog.messages
    assert "2 of 2 masks have a part inside another one" in line
    assert "They are filled" in line
    assert data[0][1]["masks"].sum(dim=(1, 2)).tolist() == [1200, 1200]


def test_holes_are_no_matter_of_boxes(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, holed(1, 800, [RING, HOLE])))

    assert data[0][1]["boxes"].tolist() == [[20, 10, 60, 40]]


RIGHT_MASK_AREAS: list[tuple[str, Any, list[list[float]]]] = [
    ("exact", 1200, [RING]),
    ("of the box", 40 * 30, [[20, 10, 60, 10, 20, 40]]),
    ("of a triangle", 600, [[20, 10, 60, 10, 20, 40]]),
    ("of two parts", 1400, [RING, BESIDE]),
    ("of parts that overlap", 1400, [RING, [50, 20, 70, 20, 70, 40, 50, 40]]),
    ("counted twice", 1600, [RING, [50, 20, 70, 20, 70, 40, 50, 40]]),
    ("zero", 0, [RING]),
    ("text", "?", [RING]),
]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    ("area", "parts"), [pytest.param(*row[1:], id=row[0]) for row in RIGHT_MASK_AREAS]
)
def test_areas_of_masks_or_boxes_are_read_without_a_word(
    area: Any,
    parts: list[list[float]],
    masks: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("pycocotools")
    file = written(tmp_path, holed(12, area, parts))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(file, masks=masks)

    assert not caplog.messages


@pytest.mark.parametrize("form", ["polygons", "run lengths"])
def test_an_area_that_is_neither_of_mask_nor_of_box_is_named(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")
    change = outline_of if form == "polygons" else lambda c: run_lengths(mask_of(c))
    entries = outlined(change_mask=change, objects=OBJECTS[:3])
    for entry in entries:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    entries[1]["area"] = 300

    [line] = warnings_of(tmp_path, entries, caplog)

    assert "the area of 1 of 3 objects is not that of their mask, such as annotations[1]" in line
    assert "with the area 300, whose mask has 1428 px and its bbox 1428" in line


def zigzag_of(corners: Corners) -> list[list[float]]:
    left, top, right, bottom = corners
    return [[left, top, right, top, left, bottom, right, bottom]]


def closed_zigzag_of(corners: Corners) -> list[list[float]]:
    [outline] = zigzag_of(corners)
    return [[*outline, *outline[:2]]]


def zigzag_of_six(corners: Corners) -> list[list[float]]:
    left, top, right, bottom = corners
    x = (left + right) / 2
    return [[left, top, right, bottom, x, top, x, bottom, right, top, left, bottom]]


@pytest.mark.parametrize("change", [zigzag_of, closed_zigzag_of, zigzag_of_six])
def test_polygons_that_cross_themselves_are_counted(
    change: Callable[[Corners], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")
    entries = outlined(change_mask=outline_of)
    for row in (3, 5):
        entries[row]["segmentation"] = change(OBJECTS[row])
    for entry in entries:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(written(tmp_path, entries), masks=True)

    [line] = caplog.messages
    assert "the polygons of 2 of 12 objects cross themselves" in line
    assert "of annotations[3] (id 503)" in line


SOUND_OUTLINES: list[tuple[str, list[float]]] = [
    ("a rectangle", [20, 10, 60, 10, 60, 40, 20, 40]),
    ("an L", [20, 10, 30, 10, 30, 30, 60, 30, 60, 40, 20, 40]),
    ("a comb", [20, 10, 24, 10, 24, 36, 36, 36, 36, 10, 40, 10, 40, 36, 60, 36, 60, 40, 20, 40]),
    ("an arrow", [20, 10, 60, 25, 20, 40, 30, 25]),
    ("a thin arrow", [20, 10, 60, 25, 20, 40, 56, 25]),
    ("a tip that crosses", [20, 10, 60, 24, 60, 26, 59, 23, 20, 40]),
]


@pytest.mark.parametrize(
    "outline", [row[1] for row in SOUND_OUTLINES], ids=[row[0] for row in SOUND_OUTLINES]
)
def test_outlines_of_few_points_are_read_without_a_word(
    outline: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")
    entries = [{"bbox": [20, 10, 40, 30], "segmentation": [outline]}]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(written(tmp_path, entries), masks=True)

    assert not caplog.messages
