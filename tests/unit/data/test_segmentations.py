"""Masks in the forms that tools write: the pixels are those of the plain form."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.coco_run_lengths import run_lengths_of

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


def write_sample(folder: Path, segmentation: Any, **changes: Any) -> Path:
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


def text_of(mask: Any) -> str:
    """Run lengths as COCO's text."""
    return masks.encode(np.asfortranarray(mask))["counts"].decode()  # type: ignore[no-any-return]


def compressed(counts: list[int]) -> str:
    """Any run lengths as COCO's text."""
    runs = masks.frPyObjects({"size": list(SIZE), "counts": counts}, *SIZE)
    return runs["counts"].decode()  # type: ignore[no-any-return]


def without_expectation(cases: list[Any]) -> list[Any]:
    """The segmentations of cases, without what a case expects of them."""
    return [pytest.param(case.values[0], id=case.id) for case in cases]


def encoded(counts: Any, size: Any = SIZE) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


FORMS = [
    pytest.param([POLYGON], "", id="polygon"),
    pytest.param(
        [[10, 8, 34, 8, 34, 16, 10, 16], [10, 16, 34, 16, 34, 23, 10, 23]],
        "",
        id="polygon in two parts",
    ),
    pytest.param(encoded(run_lengths_of(RECTANGLE)), "", id="run lengths"),
    pytest.param(encoded(text_of(RECTANGLE)), "", id="run lengths as text"),
    pytest.param(
        encoded([300, 0, 68, *run_lengths_of(RECTANGLE)[1:]]), "", id="a run of the length 0"
    ),
    pytest.param(
        encoded(text_of(RECTANGLE), (36.0, 52.0)), "whole numbers written", id="sizes with a point"
    ),
    pytest.param(
        encoded([*map(float, run_lengths_of(RECTANGLE))]),
        "whole numbers written",
        id="runs with a point",
    ),
    pytest.param(
        [encoded(text_of(RECTANGLE))], "run lengths in a list", id="run lengths in a list"
    ),
    pytest.param(POLYGON, "polygons written as one flat list", id="flat list"),
    pytest.param(POINTS, "polygons written as lists of points", id="points"),
    pytest.param([POINTS], "polygons written as lists of points", id="points of a part"),
    pytest.param([], "objects without polygons", id="a rectangle"),
    pytest.param([[10, 8, 34, 23]], "objects without polygons", id="corners of the box"),
    pytest.param([[10, 8, 24, 15]], "objects without polygons", id="the box again"),
    pytest.param([10, 8, 24, 15], "objects without polygons", id="the box again, flat"),
    pytest.param(
        [POLYGON, [1, 1, 2, 2]], "parts of masks with fewer than three points", id="a line beside"
    ),
    pytest.param(
        [[5, 5], POLYGON], "parts of masks with fewer than three points", id="a point beside"
    ),
    pytest.param([POLYGON, []], "parts of masks with fewer than three points", id="nothing beside"),
]


@pytest.mark.parametrize(("segmentation", "repair"), FORMS)
def test_every_form_shows_the_same_pixels(segmentation: Any, repair: str, tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, segmentation), masks=True)

    _, target = data[0]

    assert np.array_equal(target["masks"][0].numpy(), RECTANGLE)
    assert target["boxes"][0].tolist() == [10, 8, 34, 23]
    repairs = " ".join(data.repaired)
    assert repair in repairs
    if not repair:
        assert not repairs


TEXTS = [
    pytest.param([list(map(str, POLYGON))], 8, id="parts"),
    pytest.param(list(map(str, POLYGON)), 8, id="one flat list"),
    pytest.param(
        [[[str(x), y] for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)]], 4, id="points"
    ),
]


@pytest.mark.parametrize(("segmentation", "count"), TEXTS)
def test_numbers_of_polygons_may_be_texts(segmentation: Any, count: int, tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, segmentation), masks=True)

    assert np.array_equal(data[0][1]["masks"][0].numpy(), RECTANGLE)
    assert data.repaired["numbers written as text"] == count


@pytest.mark.parametrize("segmentation", without_expectation(FORMS))
def test_boxes_alone_do_not_speak_of_masks(
    segmentation: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = BoxImages(write_sample(tmp_path, segmentation))

    assert data[0][1]["boxes"][0].tolist() == [10, 8, 34, 23]
    assert not caplog.messages


REFUSED = [
    pytest.param(None, ["no segmentation"], id="no mask"),
    pytest.param([[*POLYGON, 5]], ["9 numbers"], id="an odd number"),
    pytest.param([["a", "b", "c", "d", "e", "f"]], ["'a'"], id="words"),
    pytest.param("polygon", ["'polygon'"], id="a word"),
    pytest.param({"x": [10, 34], "y": [8, 23]}, ["'x'"], id="coordinates by name"),
    pytest.param([[10, 8, 34, 8, 34, 3e6]], ["3000000.0"], id="far away"),
    pytest.param([[10, 8, None, 8, 34, 23]], ["None"], id="null"),
    pytest.param(
        encoded(text_of(RECTANGLE), SIZE[::-1]),
        ["(52, 36)", "(36, 52)", "exch"],
        id="exchanged sides",
    ),
    pytest.param(encoded([30], (5, 6)), ["(5, 6)", "(36, 52)"], id="another size"),
    pytest.param(encoded([100, 20]), ["120", "1872"], id="too few pixels"),
    pytest.param(encoded([1872, 1]), ["1873", "1872"], id="too many pixels"),
    pytest.param(encoded([-1, 1873]), ["-1"], id="a negative run"),
    pytest.param(encoded([1871.5, 0.5]), ["1871.5"], id="half a pixel"),
    pytest.param(encoded(compressed([100, 20])), ["120", "1872"], id="text that ends early"),
    pytest.param(
        encoded(text_of(RECTANGLE)[:-2]), ["ends within a number"], id="text that ends in a number"
    ),
    pytest.param(
        encoded("~~"), ["'~~'", "'~' is none of COCO's characters"], id="text of other characters"
    ),
    pytest.param(
        encoded("oo"), ["'oo'", "ends within a number: it was cut"], id="a number without an end"
    ),
    pytest.param(
        [[10, 34, 34, 10], [8, 8, 23, 23]], ["all x and then all y"], id="all x and all y"
    ),
    pytest.param(encoded("oooooooooooo0"), ["1872"], id="a number beyond all images"),
    pytest.param(encoded(""), ["add up to 0 pixels", "1872"], id="text without runs"),
    pytest.param(
        encoded(str(text_of(RECTANGLE).encode())), ["counts.decode()"], id="bytes as text"
    ),
]


@pytest.mark.parametrize(("segmentation", "words"), REFUSED)
def test_a_mask_without_exact_reading_is_refused_where_masks_are_asked(
    segmentation: Any, words: list[str], tmp_path: Path
) -> None:
    file = write_sample(tmp_path, segmentation)

    with pytest.raises(DataError) as refused:
        BoxImages(file, masks=True)

    for word in ["leaves.json: annotations[0] (id 69)", *words]:
        assert word in str(refused.value)


@pytest.mark.parametrize("segmentation", without_expectation(REFUSED))
def test_boxes_are_read_beside_masks_that_cannot_be_read(segmentation: Any, tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, segmentation))

    assert data[0][1]["boxes"][0].tolist() == [10, 8, 34, 23]


def test_all_x_and_then_all_y_are_named_also_without_a_box(tmp_path: Path) -> None:
    file = write_sample(tmp_path, [[10, 34, 34], [8, 8, 23]], bbox=None)

    with pytest.raises(DataError, match=r"\(id 69\).*all x and then all y: write x, y, x, y"):
        BoxImages(file)


EMPTY = [
    pytest.param([[10, 8, 14, 23]], id="a line"),
    pytest.param([[10, 8, 22, 8, 34, 8]], id="a line of three points"),
    pytest.param([[10.4, 8.4, 10.45, 8.4, 10.45, 8.45]], id="a dot"),
    pytest.param(encoded([HEIGHT * WIDTH]), id="no runs"),
    pytest.param(encoded([HEIGHT * WIDTH, 0]), id="no runs, with an end"),
    pytest.param(encoded(text_of(np.zeros(SIZE, np.uint8))), id="no runs, as text"),
]


@pytest.mark.parametrize("segmentation", EMPTY)
def test_an_object_whose_mask_shows_no_pixel_is_left_out(segmentation: Any, tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, segmentation), masks=True)

    assert data.skipped == {"empty mask": 1}
    assert data.numbers == {4: 1}


def test_masks_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    file = write_sample(tmp_path, [[10, 34], [8, 23]])
    sample = json.loads(file.read_text())
    sample["annotations"] = sample["annotations"][:1]
    file.write_text(json.dumps(sample))

    with pytest.raises(DataError, match=r"masks of all 1 objects are empty.*\[10, 34\]"):
        BoxImages(file, masks=True)


def test_rectangles_alone_are_no_masks(tmp_path: Path) -> None:
    file = write_sample(tmp_path, [])
    sample = json.loads(file.read_text())
    sample["annotations"][1]["segmentation"] = []
    file.write_text(json.dumps(sample))

    with pytest.raises(DataError, match="none of the 2 objects has a mask"):
        BoxImages(file, masks=True)
    assert len(BoxImages(file)[0][1]["boxes"]) == 2


def test_a_turned_rectangle_is_no_mask(tmp_path: Path) -> None:
    file = write_sample(tmp_path, [], attributes={"rotation": 30.5})

    with pytest.raises(DataError, match="turned by 30.5 degrees"):
        BoxImages(file, masks=True)


def test_a_turned_rectangle_is_named_among_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_sample(tmp_path, [], attributes={"rotation": 30.5})

    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(file)

    [line] = caplog.messages
    assert "1 of 2 boxes are of rectangles that were turned" in line
    assert "annotations[0] (id 69) by 30.5 degrees" in line


TURNED = [
    pytest.param({"attributes": {"Rotation": 30}}, "by 30 degrees (rotation)", id="another case"),
    pytest.param({"attributes": {"rotation": "30"}}, "by 30 degrees (rotation)", id="text"),
    pytest.param({"rotation": 30.0}, "by 30 degrees (rotation)", id="beside the box"),
    pytest.param({"angle": 30}, "by 30 degrees (angle)", id="angle"),
]


@pytest.mark.parametrize(("stated", "words"), TURNED)
def test_a_rotation_is_found_wherever_tools_write_it(
    stated: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinoneck"):
        BoxImages(write_sample(tmp_path, [], **stated))

    [line] = caplog.messages
    assert "1 of 2 boxes are of rectangles that were turned" in line
    assert words in line


@pytest.mark.parametrize("rotation", [0, 0.0, 180.0, 360, None, "none"])
def test_a_rectangle_that_was_not_turned_is_a_mask(rotation: Any, tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, [], attributes={"rotation": rotation}), masks=True)

    assert np.array_equal(data[0][1]["masks"][0].numpy(), RECTANGLE)


def test_ground_truth_holds_masks_as_coco_writes_them(tmp_path: Path) -> None:
    data = BoxImages(write_sample(tmp_path, POINTS), masks=True)

    first = data.ground_truth()["annotations"][0]

    assert first["segmentation"] == [POLYGON]
    assert first["area"] == 24 * 15


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_random_masks_add_up(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    # a frame fills the extent of the box, and the pixels inside of it are drawn
    mask[8:23, 10:34] = 1
    mask[9:22, 11:33] = rng.random((13, 22)) < 0.5

    data = BoxImages(write_sample(tmp_path, encoded(text_of(mask))), masks=True)

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
