"""strokes.json: what is read and written, what is refused, and which pixels a stroke covers."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.painting import PaintedImage, Stroke, Strokes
from dinoneck.painting.strokes import (
    LARGEST_FILE,
    MOST_POINTS,
    UNPAINTED,
    check_mask_names,
    problem_of_classes,
    windows_of_segment,
)

CLASSES = ("crop", "weed", "soil")
HASH = "0123456789abcdef" * 4
DOCUMENT: dict[str, Any] = {
    "format": "dinoneck strokes",
    "version": 1,
    "classes": [*CLASSES],
    "images": [
        {
            "name": "a/0001.jpg",
            "sha256": HASH,
            "width": 12,
            "height": 8,
            "strokes": [
                {"class": "crop", "radius": 2.5, "points": [[1.0, 2.0], [9.5, 4.25]]},
                {"class": None, "radius": 1.0, "points": [[3.5, 3.5]]},
            ],
        },
        {"name": "b.jpg", "sha256": "f" * 64, "width": 3, "height": 4, "strokes": []},
    ],
}


def written(document: Any, folder: Path) -> Path:
    file = folder / "strokes.json"
    file.write_text(json.dumps(document))
    return file


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


def covers(stroke: Stroke, x: float, y: float) -> bool:
    """Whether a point lies within the radius of a stroke, segment by segment."""
    points = [*stroke.points]
    if len(points) == 1:
        points *= 2
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        along = 0.0
        if length:
            along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length
        along = min(max(along, 0.0), length)
        unit_x, unit_y = ((x1 - x0) / length, (y1 - y0) / length) if length else (0.0, 0.0)
        if math.hypot(x - x0 - along * unit_x, y - y0 - along * unit_y) <= stroke.radius:
            return True
    return False


def test_a_file_is_read_and_written_again_without_a_change(tmp_path: Path) -> None:
    strokes = Strokes.read(written(DOCUMENT, tmp_path))

    assert strokes.classes == CLASSES
    first, second = strokes.images
    assert (first.name, first.sha256, first.height, first.width) == ("a/0001.jpg", HASH, 8, 12)
    assert first.strokes[0] == Stroke("crop", 2.5, ((1.0, 2.0), (9.5, 4.25)))
    assert first.strokes[1].label is None
    assert second.strokes == ()
    assert json.loads(json.dumps(strokes.to_document())) == DOCUMENT


def test_a_mask_holds_the_pixels_within_the_radius_of_the_line() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        height, width = random.integers(1, 24, 2).tolist()
        strokes = []
        for label in random.choice([*CLASSES, ""], 4):
            points = random.uniform(-6, 30, (random.integers(1, 5), 2))
            radius = float(random.uniform(0.3, 6))
            strokes.append(Stroke(label or None, radius, tuple(map(tuple, points.tolist()))))
        image = PaintedImage("a", HASH, height=height, width=width, strokes=tuple(strokes))

        mask = image.mask(CLASSES)

        expected = np.full((height, width), UNPAINTED)
        for row in range(height):
            for col in range(width):
                for stroke in strokes:  # later ones win
                    if covers(stroke, col + 0.5, row + 0.5):
                        is_erased = stroke.label is None
                        number = UNPAINTED if is_erased else CLASSES.index(str(stroke.label))
                        expected[row, col] = number
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param((-900_000.0, -700_000.0), (900_000.0, 700_300.0), id="through the photo"),
        pytest.param((10.5, 20.25), (390.0, 300_000.0), id="out of it"),
        pytest.param((3.0, 5.0), (380.0, 290.0), id="inside"),
    ],
)
def test_a_long_segment_is_painted_exactly_and_in_little_of_the_photo(
    start: tuple[float, float], end: tuple[float, float]
) -> None:
    height, width, radius = 300, 400, 2.5
    stroke = Stroke("crop", radius, (start, end))
    image = PaintedImage("a", HASH, height=height, width=width, strokes=(stroke,))

    mask = image.mask(CLASSES)

    rows, cols = np.mgrid[:height, :width] + 0.5
    along = np.subtract(end, start)
    share = ((cols - start[0]) * along[0] + (rows - start[1]) * along[1]) / (along**2).sum()
    share = share.clip(0, 1)
    distance = np.hypot(cols - start[0] - share * along[0], rows - start[1] - share * along[1])
    assert np.array_equal(mask != UNPAINTED, distance <= radius)
    assert (mask != UNPAINTED).any()
    windows = windows_of_segment(start, end, radius, height=height, width=width)
    num_pixels = sum((w.bottom - w.top) * (w.right - w.left) for w in windows)
    assert num_pixels < height * width / 4


def test_a_segment_far_from_the_photo_costs_nothing() -> None:
    far = windows_of_segment((500.0, -9e5), (500.0, 9e5), 3.0, height=30, width=40)

    assert not list(far)


def test_a_point_is_a_disc_and_its_edge_belongs_to_it() -> None:
    point = Stroke("weed", 1.0, ((2.5, 1.5),))  # the centre of the pixel in row 1, column 2
    image = PaintedImage("a", HASH, height=3, width=5, strokes=(point,))

    assert (image.mask(CLASSES) == 1).astype(int).tolist() == [
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0],
    ]


def test_a_later_stroke_covers_an_earlier_one_and_an_eraser_uncovers() -> None:
    everything = Stroke("crop", 9.0, ((1.0, 1.0),))
    middle = Stroke("soil", 0.5, ((1.5, 0.5),))
    right = Stroke(None, 0.5, ((2.5, 0.5),))
    image = PaintedImage("a", HASH, height=1, width=3, strokes=(everything, middle, right))

    assert image.mask(CLASSES).tolist() == [[0, 2, UNPAINTED]]


def test_numbers_follow_the_classes_of_the_caller() -> None:
    strokes = Strokes.from_document(DOCUMENT)

    reordered = strokes.with_classes(("soil", "straw", "weed", "crop"))

    [image, _] = reordered.images
    assert set(np.unique(image.mask(reordered.classes))) == {3, UNPAINTED}
    with pytest.raises(DataError, match="'crop', which is not among weed, soil"):
        strokes.with_classes(("weed", "soil"))


def first_stroke(document: dict[str, Any]) -> dict[str, Any]:
    stroke: dict[str, Any] = document["images"][0]["strokes"][0]
    return stroke


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "is no file of strokes"),
    "another format": (changed(lambda d: d.update(format="coco")), "is no file of strokes"),
    "a newer version": (changed(lambda d: d.update(version=2)), "has the version 2"),
    "True as the version": (changed(lambda d: d.update(version=True)), "has the version True"),
    "no images": (changed(lambda d: d.pop("images")), "images"),
    "one class": (changed(lambda d: d.update(classes=["crop"])), "expected 2 ... 255 names"),
    "too many classes": (
        changed(lambda d: d.update(classes=[f"c{i}" for i in range(256)])),
        "expected 2 ... 255 names",
    ),
    "a class twice": (
        changed(lambda d: d.update(classes=["crop", "weed", "crop"])),
        "expected each name once",
    ),
    "a class of blanks": (
        changed(lambda d: d.update(classes=["crop", "weed", " "])),
        "a class is called ' '",
    ),
    "an unknown class": (
        changed(lambda d: first_stroke(d).update({"class": "corp"})),
        "'corp', which is not among crop, weed, soil. Did you mean 'crop'?",
    ),
    "a class that is a number": (
        changed(lambda d: first_stroke(d).update({"class": 1})),
        "images[0].strokes[0].class",
    ),
    "no radius": (changed(lambda d: first_stroke(d).pop("radius")), "radius"),
    "a radius of 0": (changed(lambda d: first_stroke(d).update(radius=0)), "radius"),
    "a negative radius": (changed(lambda d: first_stroke(d).update(radius=-2)), "radius"),
    "no points": (changed(lambda d: first_stroke(d).update(points=[])), "points"),
    "a point of three numbers": (
        changed(lambda d: first_stroke(d).update(points=[[1, 2, 3]])),
        "points",
    ),
    "a point that is far away": (
        changed(lambda d: first_stroke(d).update(points=[[1e9, 2]])),
        "points",
    ),
    "a point of text": (changed(lambda d: first_stroke(d).update(points=[["1", 2]])), "points"),
    "a width of 0": (changed(lambda d: d["images"][0].update(width=0)), "width"),
    "a width with a fraction": (changed(lambda d: d["images"][0].update(width=1.5)), "width"),
    "more pixels than a picture has": (
        changed(lambda d: d["images"][0].update(width=100_000, height=100_000)),
        "100000x100000 pixels",
    ),
    "a hash that is none": (
        changed(lambda d: d["images"][0].update(sha256="A" * 64)),
        "expected 64 hexadecimal digits",
    ),
    "a photo twice": (
        changed(lambda d: d["images"].append(d["images"][0])),
        "lists 1 photo twice: 'a/0001.jpg'",
    ),
    "a photo without a name": (changed(lambda d: d["images"][0].update(name="")), "name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_no_page_writes_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    document, message = REFUSED[case]

    with pytest.raises(DataError) as refused:
        Strokes.read(written(document, tmp_path))

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is damaged: it is no JSON", id="empty"),
        pytest.param(b'{"format": "dinoneck str', "is damaged: it is no JSON", id="cut"),
        pytest.param(b"\xff\xfe\x00", "is damaged: it is no JSON", id="binary"),
        pytest.param(b"[" * 100_000, "is damaged: it is no JSON", id="nested"),
        pytest.param(
            json.dumps(DOCUMENT).replace("9.5", "NaN").encode(), "is damaged", id="not a number"
        ),
        pytest.param(
            json.dumps(DOCUMENT).replace("9.5", "1e999").encode(), "is damaged", id="infinite"
        ),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "strokes.json"
    file.write_bytes(content)

    with pytest.raises(DataError, match=message):
        Strokes.read(file)


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "strokes.json"
    with file.open("wb") as opened:
        opened.truncate(LARGEST_FILE + 1)

    with pytest.raises(DataError, match="larger than 64 MB"):
        Strokes.read(file)


def test_more_points_than_a_person_paints_are_refused() -> None:
    points = [[1.0, 1.0]] * (MOST_POINTS + 1)
    document = changed(lambda d: first_stroke(d).update(points=points))

    with pytest.raises(DataError, match="more than 1000000 points"):
        Strokes.from_document(document)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_numbers_of_a_document_in_memory_are_finite(value: float) -> None:
    with pytest.raises(DataError):
        Strokes.from_document(changed(lambda d: first_stroke(d).update(points=[[value, 1.0]])))
    with pytest.raises(DataError):
        Strokes.from_document(changed(lambda d: first_stroke(d).update(radius=value)))


def test_classes_to_paint_are_named_once_and_printable() -> None:
    assert problem_of_classes(CLASSES) == ""
    assert "printable" in problem_of_classes(("crop", "we\ned"))


def test_a_mask_of_classes_without_that_of_a_stroke_names_it() -> None:
    stroke = Stroke("weed", 2.0, ((1.0, 1.0),))
    image = PaintedImage("a.jpg", HASH, height=4, width=4, strokes=(stroke,))

    with pytest.raises(DataError, match=r"a\.jpg.*'weed'"):
        image.mask(("crop", "soil"))


def test_a_stroke_along_a_corner_of_the_photo_paints_what_it_covers_of_it() -> None:
    """Both begin and end outside of the photo; the second one passes beyond its corner."""
    stroke = Stroke("crop", 1.0, ((-6.0, 12.0), (12.0, -6.0)))
    beyond = Stroke("crop", 1.0, ((-20.0, 14.0), (14.0, -20.0)))

    masks = [
        PaintedImage("a", HASH, height=30, width=30, strokes=(one,)).mask(CLASSES)
        for one in (stroke, beyond)
    ]

    rows, cols = np.mgrid[:30, :30] + 0.5
    assert np.array_equal(masks[0] != UNPAINTED, abs(rows + cols - 6) <= 2**0.5)
    assert (masks[1] == UNPAINTED).all()


def test_two_photos_have_two_masks() -> None:
    check_mask_names(["a/1.jpg", "b/1.jpg", "a/1.b.jpg"])
    with pytest.raises(DataError, match=r"'a/1.jpg' and 'a/1.png' would have one mask, a/1.png"):
        check_mask_names(["a/1.jpg", "a/1.png"])


def test_an_eraser_of_everything_leaves_a_mask_without_a_class() -> None:
    everything = Stroke("crop", 9.0, ((1.0, 1.0),))
    eraser = Stroke(None, 20.0, ((1.0, 1.0),))
    image = PaintedImage("a", HASH, height=4, width=4, strokes=(everything, eraser))

    assert (image.mask(CLASSES) == UNPAINTED).all()
    assert Image.fromarray(image.mask(CLASSES)).mode == "L"
