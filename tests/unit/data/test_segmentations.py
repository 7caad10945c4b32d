"""Masks in the forms that tools write: the pixels are those of the plain form."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import BoxImages
from dinoneck.data.segmentations import Nesting, count_in_masks, nesting_of

masks = pytest.importorskip("pycocotools.mask", reason="masks need pycocotools, the extra [masks]")
# pycocotools 2.0.11 with NumPy 2
SIZE = HEIGHT, WIDTH = 36, 52
BBOX = [10, 8, 24, 15]
POLYGON = [10, 8, 34, 8, 34, 23, 10, 23]
POINTS = [[10, 8], [34, 8], [34, 23], [10, 23]]
RECTANGLE = np.zeros(SIZE, np.uint8)
RECTANGLE[8:23, 10:34] = 1
# a second object with a mask as COCO writes it, so that rectangles stand next to masks
OTHER = {
    "id": 70,
    "image_id": 4,
    "category_id": 3,
    "bbox": [40, 2, 6, 6],
    "segmentation": [[40, 2, 46, 2, 46, 8, 40, 8]],
}


def written(folder: Path, segmentation: Any, **changes: Any) -> Path:
    """Write an image with an object of this mask and another one."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "leaf.png")
    entry = {"id": 69, "image_id": 4, "category_id": 3, "bbox": BBOX, "segmentation": segmentation}
    sample = {
        "images": [{"id": 4, "file_name": "leaf.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [entry | changes, OTHER],
        "categories": [{"id": 3, "name": "leaf"}],
    }
    file = folder / "leaves.json"
    file.write_text(json.dumps(sample))
    return file


def column_runs(mask: Any) -> list[int]:
    """Run lengths down the columns, which begin with the background."""
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0)).tolist()
    return np.diff([0, *changes, mask.size]).tolist()  # type: ignore[no-any-return]


def text_of(mask: Any) -> str:
    """Run lengths as COCO's text."""
    return masks.encode(np.asfortranarray(mask))["counts"].decode()  # type: ignore[no-any-return]


def compressed(counts: list[int]) -> str:
    """Any run lengths as COCO's text."""
    runs = masks.frPyObjects({"size": list(SIZE), "counts": counts}, *SIZE)
    return runs["counts"].decode()  # type: ignore[no-any-return]


def encoded(counts: Any, size: Any = SIZE) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


FORMS: list[tuple[str, Any, str]] = [
    ("polygon", [POLYGON], ""),
    (
        "polygon in two parts",
        [[10, 8, 34, 8, 34, 16, 10, 16], [10, 16, 34, 16, 34, 23, 10, 23]],
        "",
    ),
    ("run lengths", encoded(column_runs(RECTANGLE)), ""),
    ("run lengths as text", encoded(text_of(RECTANGLE)), ""),
    ("a run of the length 0", encoded([300, 0, 68, *column_runs(RECTANGLE)[1:]]), ""),
    ("sizes with a point", encoded(text_of(RECTANGLE), (36.0, 52.0)), "whole numbers written"),
    ("runs with a point", encoded([*map(float, column_runs(RECTANGLE))]), "whole numbers written"),
    ("run lengths in a list", [encoded(text_of(RECTANGLE))], "run lengths in a list"),
    ("flat list", POLYGON, "polygons written as one flat list"),
    ("points", POINTS, "polygons written as lists of points"),
    ("points of a part", [POINTS], "polygons written as lists of points"),
    ("a rectangle", [], "objects without polygons"),
    ("corners of the box", [[10, 8, 34, 23]], "objects without polygons"),
    ("the box again", [[10, 8, 24, 15]], "objects without polygons"),
    ("the box again, flat", [10, 8, 24, 15], "objects without polygons"),
    ("a line beside", [POLYGON, [1, 1, 2, 2]], "parts of masks with fewer than three points"),
    ("a point beside", [[5, 5], POLYGON], "parts of masks with fewer than three points"),
    ("nothing beside", [POLYGON, []], "parts of masks with fewer than three points"),
]


@pytest.mark.parametrize(
    ("segmentation", "kind"), [pytest.param(*row[1:], id=row[0]) for row in FORMS]
)
def test_every_form_shows_the_same_pixels(segmentation: Any, kind: str, tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, segmentation), masks=True)

    _, target = data[0]

    assert np.array_equal(target["masks"][0].numpy(), RECTANGLE)
    assert target["boxes"][0].tolist() == [10, 8, 34, 23]
    kinds = " ".join(data.repaired)
    assert kind in kinds
    assert bool(kinds) == bool(kind)


TEXTS: list[tuple[str, Any, int]] = [
    ("parts", [list(map(str, POLYGON))], 8),
    ("one flat list", list(map(str, POLYGON)), 8),
    ("points", [[[str(x), y] for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)]], 4),
]


@pytest.mark.parametrize(
    ("segmentation", "count"), [pytest.param(*row[1:], id=row[0]) for row in TEXTS]
)
def test_numbers_of_polygons_may_be_texts(segmentation: Any, count: int, tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, segmentation), masks=True)

    assert np.array_equal(data[0][1]["masks"][0].numpy(), RECTANGLE)
    assert data.repaired["numbers written as text"] == count


@pytest.mark.parametrize("segmentation", [row[1] for row in FORMS], ids=[row[0] for row in FORMS])
def test_boxes_alone_do_not_speak_of_masks(
    segmentation: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(written(tmp_path, segmentation))

    assert data[0][1]["boxes"][0].tolist() == [10, 8, 34, 23]
    assert not caplog.messages


REFUSED: list[tuple[str, Any, list[str]]] = [
    ("no mask", None, ["no segmentation"]),
    ("an odd number", [[*POLYGON, 5]], ["9 numbers"]),
    ("words", [["a", "b", "c", "d", "e", "f"]], ["'a'"]),
    ("a word", "polygon", ["'polygon'"]),
    ("coordinates by name", {"x": [10, 34], "y": [8, 23]}, ["'x'"]),
    ("far away", [[10, 8, 34, 8, 34, 3e6]], ["3000000.0"]),
    ("null", [[10, 8, None, 8, 34, 23]], ["None"]),
    ("exchanged sides", encoded(text_of(RECTANGLE), SIZE[::-1]), ["(52, 36)", "(36, 52)", "exch"]),
    ("another size", encoded([30], (5, 6)), ["(5, 6)", "(36, 52)"]),
    ("too few pixels", encoded([100, 20]), ["120", "1872"]),
    ("too many pixels", encoded([1872, 1]), ["1873", "1872"]),
    ("a negative run", encoded([-1, 1873]), ["-1"]),
    ("half a pixel", encoded([1871.5, 0.5]), ["1871.5"]),
    ("text that ends early", encoded(compressed([100, 20])), ["120", "1872"]),
    ("text that ends in a number", encoded(text_of(RECTANGLE)[:-2]), ["ends within a number"]),
    ("text of other characters", encoded("~~"), ["'~~'", "'~' is none of COCO's characters"]),
    ("a number without an end", encoded("oo"), ["'oo'", "ends within a number: it was cut"]),
    ("all x and all y", [[10, 34, 34, 10], [8, 8, 23, 23]], ["all x and then all y"]),
    ("a number beyond all images", encoded("oooooooooooo0"), ["1872"]),
    ("text without runs", encoded(""), ["add up to 0 pixels", "1872"]),
    ("bytes as text", encoded(str(text_of(RECTANGLE).encode())), ["counts.decode()"]),
]


@pytest.mark.parametrize(
    ("segmentation", "words"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_a_mask_without_exact_reading_is_refused_where_masks_are_asked(
    segmentation: Any, words: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, segmentation)

    with pytest.raises(DataError) as refused:
        BoxImages(file, masks=True)

    for word in ["leaves.json: annotations[0] (id 69)", *words]:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "segmentation", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_boxes_are_read_beside_masks_that_cannot_be_read(segmentation: Any, tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, segmentation))

    assert data[0][1]["boxes"][0].tolist() == [10, 8, 34, 23]


def test_all_x_and_then_all_y_are_named_also_without_a_box(tmp_path: Path) -> None:
    file = written(tmp_path, [[10, 34, 34], [8, 8, 23]], bbox=None)

    with pytest.raises(DataError, match=r"\(id 69\).*all x and then all y: write x, y, x, y"):
        BoxImages(file)


EMPTY: list[tuple[str, Any]] = [
    ("a line", [[10, 8, 14, 23]]),
    ("a line of three points", [[10, 8, 22, 8, 34, 8]]),
    ("a dot", [[10.4, 8.4, 10.45, 8.4, 10.45, 8.45]]),
    ("no runs", encoded([HEIGHT * WIDTH])),
    ("no runs, with an end", encoded([HEIGHT * WIDTH, 0])),
    ("no runs, as text", encoded(text_of(np.zeros(SIZE, np.uint8)))),
]


@pytest.mark.parametrize("segmentation", [row[1] for row in EMPTY], ids=[row[0] for row in EMPTY])
def test_an_object_whose_mask_shows_no_pixel_is_left_out(segmentation: Any, tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, segmentation), masks=True)

    assert data.skipped == {"empty mask": 1}
    assert data.numbers == {4: 1}


def test_masks_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, [[10, 34], [8, 23]])
    sample = json.loads(file.read_text())
    sample["annotations"] = sample["annotations"][:1]
    file.write_text(json.dumps(sample))

    with pytest.raises(DataError, match=r"masks of all 1 objects are empty.*\[10, 34\]"):
        BoxImages(file, masks=True)


def test_rectangles_alone_are_no_masks(tmp_path: Path) -> None:
    file = written(tmp_path, [])
    sample = json.loads(file.read_text())
    sample["annotations"][1]["segmentation"] = []
    file.write_text(json.dumps(sample))

    with pytest.raises(DataError, match="none of the 2 objects has a mask"):
        BoxImages(file, masks=True)
    assert len(BoxImages(file)[0][1]["boxes"]) == 2


def test_a_turned_rectangle_is_no_mask(tmp_path: Path) -> None:
    file = written(tmp_path, [], attributes={"rotation": 30.5})

    with pytest.raises(DataError, match="turned by 30.5 degrees"):
        BoxImages(file, masks=True)


def test_a_turned_rectangle_is_named_among_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, [], attributes={"rotation": 30.5})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(file)

    [line] = caplog.messages
    assert "1 of 2 boxes are of rectangles that were turned" in line
    assert "annotations[0] (id 69) by 30.5 degrees" in line


TURNED: list[tuple[str, dict[str, Any], str]] = [
    ("another case", {"attributes": {"Rotation": 30}}, "by 30 degrees (rotation)"),
    ("text", {"attributes": {"rotation": "30"}}, "by 30 degrees (rotation)"),
    ("beside the box", {"rotation": 30.0}, "by 30 degrees (rotation)"),
    ("angle", {"angle": 30}, "by 30 degrees (angle)"),
]


@pytest.mark.parametrize(("stated", "words"), [pytest.param(*row[1:], id=row[0]) for row in TURNED])
def test_a_rotation_is_found_wherever_tools_write_it(
    stated: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(written(tmp_path, [], **stated))

    [line] = caplog.messages
    assert "1 of 2 boxes are of rectangles that were turned" in line
    assert words in line


@pytest.mark.parametrize("rotation", [0, 0.0, 180.0, 360, None, "none"])
def test_a_rectangle_that_was_not_turned_is_a_mask(rotation: Any, tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, [], attributes={"rotation": rotation}), masks=True)

    assert np.array_equal(data[0][1]["masks"][0].numpy(), RECTANGLE)


def test_ground_truth_holds_masks_as_coco_writes_them(tmp_path: Path) -> None:
    data = BoxImages(written(tmp_path, POINTS), masks=True)

    first = data.ground_truth()["annotations"][0]

    assert first["segmentation"] == [POLYGON]
    assert first["area"] == 24 * 15


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_random_masks_add_up(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(SIZE) < 0.5).astype(np.uint8)
    mask[8, 10:34] = mask[22, 10:34] = mask[8:23, 10] = mask[8:23, 33] = 1
    mask[:8] = mask[23:] = mask[:, :10] = mask[:, 34:] = 0

    data = BoxImages(written(tmp_path, encoded(text_of(mask))), masks=True)

    assert np.array_equal(data[0][1]["masks"][0].numpy(), mask)


# Parts inside other parts
# ------------------------------------------------------------------------------------------------

SQUARE = [10, 8, 34, 8, 34, 23, 10, 23]
HOLE = [14, 12, 20, 12, 20, 16, 14, 16]
CORNER = [0, 0, 24, 0, 24, 4, 4, 4, 4, 20, 0, 20]  # an L
BESIDE_CORNER = [10, 8, 20, 8, 20, 16, 10, 16]  # within the extent of the L, not on it


def test_a_part_inside_another_one_is_counted_as_filled_and_as_a_hole() -> None:
    nesting = nesting_of([SQUARE, HOLE], *SIZE)

    assert nesting == Nesting(filled=24 * 15, with_holes=24 * 15 - 6 * 4)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([SQUARE], id="one part"),
        pytest.param([SQUARE, [40, 2, 46, 2, 46, 8, 40, 8]], id="parts apart"),
        pytest.param([CORNER, BESIDE_CORNER], id="a part in the corner of an L"),
        pytest.param([SQUARE, SQUARE], id="the same part twice"),
    ],
)
def test_parts_that_lie_in_no_other_one_are_not_nested(parts: list[list[float]]) -> None:
    assert nesting_of(parts, *SIZE) is None


def test_the_pixels_of_more_than_255_masks_are_counted() -> None:
    # pycocotools 2.0.11 with NumPy 2 raises an OverflowError for so many in one call
    shapes = [[[0, 0, side, 0, side, side, 0, side]] for side in (2, 4, 6)] * 100

    counts = count_in_masks(shapes, [SIZE] * 300)

    assert counts.tolist() == [4.0, 16.0, 36.0] * 100
