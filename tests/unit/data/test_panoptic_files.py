"""The forms in which tools write panoptic segments, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import PanopticImages
from dinoneck.data.coco_entries import CocoSegment
from dinoneck.data.segment_checks import check_segments

SIZE = HEIGHT, WIDTH = 10, 14
SKY = 259  # red 3, green 1
CELL = 65538  # red 2, blue 1
IDS = np.full(SIZE, SKY)
IDS[2:7, 3:9] = CELL
COLOURS = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1).astype(np.uint8)
# sky is stuff, class 0; the cell is the first object of class 1
PIXELS = np.where(IDS == SKY, 1000, 2000)


def written(
    folder: Path,
    picture: Image.Image,
    is_things: tuple[Any, Any] = (0, 1),
    segments: tuple[dict[str, Any], ...] = ({"id": SKY}, {"id": CELL}),
) -> Path:
    """Write an image, the PNG of its segments and their JSON; an ``isthing`` of "" is left out."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "image.jpg")
    picture.save(folder / "segments.png")
    categories = []
    for category_id, name, is_thing in zip((4, 9), ("sky", "cell"), is_things, strict=True):
        category = {"id": category_id, "name": name}
        if is_thing != "":
            category["isthing"] = is_thing
        categories.append(category)
    listed = [
        {"category_id": category_id} | segment
        for category_id, segment in zip((4, 9), segments, strict=True)
    ]
    content = {
        "images": [{"id": 3, "file_name": "image.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"image_id": 3, "file_name": "segments.png", "segments_info": listed}],
        "categories": categories,
    }
    file = folder / "segments.json"
    file.write_text(json.dumps(content))
    return file


def opaque() -> Image.Image:
    return Image.fromarray(np.dstack([COLOURS, np.full(SIZE, 255, np.uint8)]))


def test_the_png_of_an_image_is_not_read_as_the_image(tmp_path: Path) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    file.write_text(file.read_text().replace("image.jpg", "segments.png"))
    with pytest.raises(DataError, match=r"segments.png is the image and the PNG .*--images"):
        PanopticImages(file, tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "photos" / "segments.png")
    data = PanopticImages(file, tmp_path, tmp_path / "photos")
    assert data.paths == (tmp_path / "photos" / "segments.png",)


FLAGS: list[tuple[str, tuple[Any, Any]]] = [
    ("numbers", (0, 1)),
    ("truth values", (False, True)),
    ("text", ("0", "1")),
    ("words", ("false", "True")),
    ("floats", (0.0, 1.0)),
]


@pytest.mark.parametrize("flags", [row[1] for row in FLAGS], ids=[row[0] for row in FLAGS])
def test_isthing_is_read_as_tools_write_it(flags: tuple[Any, Any], tmp_path: Path) -> None:
    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS), flags), tmp_path)

    assert data.classes == ("sky", "cell")
    assert data.stuff == {0}
    assert np.array_equal(data.pixels(0), PIXELS)


@pytest.mark.parametrize("missing", ["", None], ids=["no key", "null"])
def test_a_category_that_does_not_say_whether_it_is_a_thing_is_refused(
    missing: Any, tmp_path: Path
) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS), (missing, 1))

    with pytest.raises(DataError, match=r"1 of 2 categories without isthing: 'sky'; write 1"):
        PanopticImages(file, tmp_path)


def test_a_png_with_full_alpha_is_read(tmp_path: Path) -> None:
    data = PanopticImages(written(tmp_path, opaque()), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)


def test_a_png_with_transparent_pixels_is_refused(tmp_path: Path) -> None:
    picture = opaque()
    picture.putpixel((5, 4), (2, 0, 1, 254))
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match=r"segments\.png has transparent pixels.*without alpha"):
        data.pixels(0)


def test_a_png_with_a_palette_is_refused_with_the_remedy(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOURS).convert("P")
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match="has colours of a palette; save it as RGB"):
        data.pixels(0)


def test_a_png_saved_as_bgr_is_refused_with_the_cause(tmp_path: Path) -> None:
    picture = Image.fromarray(np.ascontiguousarray(COLOURS[..., ::-1]))
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match="it was saved as BGR"):
        data.pixels(0)


def test_a_png_of_one_bit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    picture = Image.fromarray(IDS == SKY)
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match=r"segments\.png has 1 band of bool; save it as RGB"):
        data.pixels(0)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_colours_that_are_not_rgb_are_no_ids(mode: str, tmp_path: Path) -> None:
    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS)), tmp_path)
    bands = [Image.fromarray(np.ascontiguousarray(COLOURS[..., k])) for k in range(3)]
    if mode == "CMYK":
        bands.append(Image.new("L", (WIDTH, HEIGHT), 255))
    Image.merge(mode, bands).save(tmp_path / "segments.png", format="TIFF")

    with pytest.raises(DataError, match=r"segments\.png"):
        data.pixels(0)


# Segments and what the JSON says of them
# ------------------------------------------------------------------------------------------------

BBOX = [3, 2, 6, 5]  # of the cell
STATED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("exact", {"bbox": [0, 0, WIDTH, HEIGHT], "area": 110}, {"bbox": BBOX, "area": 30}),
    ("areas of outlines", {"area": 117}, {"bbox": BBOX, "area": 38}),
    ("boxes alone", {"bbox": [0, 0, WIDTH, HEIGHT]}, {"bbox": BBOX}),
    ("areas alone", {"area": 110.0}, {"area": 30.0}),
    ("without the last pixel", {}, {"bbox": [3, 2, 5, 4], "area": 30}),
    ("corners", {}, {"bbox": [3, 2, 9, 7], "area": 30}),
    ("unknown", {"bbox": [0, 0, 0, 0], "area": 0}, {"bbox": [], "area": None}),
    ("text", {"bbox": "?", "area": "?"}, {"bbox": [1, 2], "area": True}),
    ("covered by others", {"bbox": [0, 0, WIDTH, HEIGHT], "area": 140}, {"area": 30}),
]


@pytest.mark.parametrize(("sky", "cell"), [pytest.param(*row[1:], id=row[0]) for row in STATED])
def test_pixels_that_fit_bbox_and_area_are_read_without_a_word(
    sky: dict[str, Any], cell: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = ({"id": SKY, **sky}, {"id": CELL, **cell})
    file = written(tmp_path, Image.fromarray(COLOURS), segments=segments)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = PanopticImages(file, tmp_path)
        ids = data.pixels(0)

    assert np.array_equal(ids, PIXELS)
    assert not caplog.messages


CONTRADICTED: list[tuple[str, dict[str, Any]]] = [
    ("moved by 4 px", {"bbox": [7, 2, 6, 5], "area": 30}),
    ("half the size", {"bbox": [6, 4, 12, 10], "area": 120}),
]


@pytest.mark.parametrize(
    "stated", [row[1] for row in CONTRADICTED], ids=[r[0] for r in CONTRADICTED]
)
def test_pixels_beside_their_bbox_are_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    segments = ({"id": SKY}, {"id": CELL, **stated})
    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS), segments=segments), tmp_path)

    with pytest.raises(DataError) as refused:
        data.pixels(0)

    message = str(refused.value)
    assert "segments.png: 1 of 1 segments contradict their bbox" in message
    assert f"id {CELL}" in message
    assert str(stated["area"]) in message
    assert "30 pixels span x 3 ... 9, y 2 ... 7" in message


def test_a_segment_that_contradicts_its_area_alone_is_named_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = ({"id": SKY}, {"id": CELL, "area": 99})
    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS), segments=segments), tmp_path)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        ids = data.pixels(0)

    [line] = caplog.messages
    assert "1 of 1 segments contradict their area" in line
    assert "its 30 pixels span x 3 ... 9" in line
    assert np.array_equal(ids, PIXELS)


@pytest.mark.parametrize(
    ("cell", "longest"),
    [
        pytest.param({"bbox": BBOX}, 6, id="a box"),
        pytest.param({"bbox": BBOX, "iscrowd": 1}, None, id="a crowd region"),
        pytest.param({}, None, id="no box"),
        pytest.param({"bbox": [3, 2, 6]}, None, id="three numbers"),
        pytest.param({"bbox": ["3", "2", "6", "5"]}, None, id="texts"),
    ],
)
def test_the_longest_box_is_that_of_things(
    cell: dict[str, Any], longest: float | None, tmp_path: Path
) -> None:
    segments = ({"id": SKY, "bbox": [0, 0, WIDTH, HEIGHT]}, {"id": CELL, **cell})
    file = written(tmp_path, Image.fromarray(COLOURS), segments=segments)

    data = PanopticImages(file, tmp_path)

    assert data.longest_box == longest


def test_there_is_no_longest_box_without_things(tmp_path: Path) -> None:
    segments = ({"id": SKY, "bbox": [0, 0, WIDTH, HEIGHT]}, {"id": CELL, "bbox": BBOX})
    file = written(tmp_path, Image.fromarray(COLOURS), is_things=(0, 0), segments=segments)

    data = PanopticImages(file, tmp_path)

    assert data.longest_box is None


def two_images(folder: Path, pngs: tuple[str, str]) -> Path:
    """Write two images of one segment each, with these PNG files."""
    file = written(folder, Image.fromarray(COLOURS))
    content = json.loads(file.read_text())
    content["images"] = []
    annotations = []
    for i, png in enumerate(pngs):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{i}.jpg")
        Image.fromarray(COLOURS).save(folder / png)
        content["images"].append(
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
        )
        annotations.append({**content["annotations"][0], "image_id": i, "file_name": png})
    content["annotations"] = annotations
    file.write_text(json.dumps(content))
    return file


def test_one_png_of_two_images_is_refused(tmp_path: Path) -> None:
    file = two_images(tmp_path, ("a.png", "a.png"))

    with pytest.raises(DataError, match=r"the file_name 'a\.png' stands more than once"):
        PanopticImages(file, tmp_path)


def test_exchanged_png_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = two_images(tmp_path, ("1.png", "0.png"))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        PanopticImages(file, tmp_path)

    [line] = caplog.messages
    assert (
        "2 of 2 images have a PNG that is called like another image, such as 0.jpg with 1.png"
        in line
    )


ENDINGS = [("1_panoptic.png", "0_panoptic.png"), ("seg-1.png", "seg-0.png")]


@pytest.mark.parametrize("pngs", ENDINGS, ids=["an ending", "a beginning"])
def test_exchanged_png_files_with_names_of_their_own_are_named(
    pngs: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = two_images(tmp_path, pngs)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        PanopticImages(file, tmp_path)

    [line] = caplog.messages
    assert f"such as 0.jpg with {pngs[0]}" in line


@pytest.mark.parametrize(
    "pngs",
    [
        pytest.param(("0_panoptic.png", "1_panoptic.png"), id="an ending"),
        pytest.param(("a.png", "b.png"), id="other names"),
        pytest.param(("10.png", "11.png"), id="numbers of their own"),
        pytest.param(("0_panoptic.png", "1_segments.png"), id="two endings"),
    ],
)
def test_png_files_that_are_called_like_their_images_or_none_have_no_line(
    pngs: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = two_images(tmp_path, pngs)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        PanopticImages(file, tmp_path)

    assert not caplog.messages


# Pictures of other kinds in the place of colours
# ------------------------------------------------------------------------------------------------

SMALL_IDS = np.where(IDS == SKY, 1, 2).astype(np.uint8)
SMALL = ({"id": 1}, {"id": 2})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
def test_a_grey_png_holds_small_ids_as_they_are(dtype: Any, tmp_path: Path) -> None:
    picture = Image.fromarray(SMALL_IDS.astype(dtype))

    data = PanopticImages(written(tmp_path, picture, segments=SMALL), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)


def test_ids_beyond_8_bits_are_read_from_a_grey_png_of_16_bits(tmp_path: Path) -> None:
    picture = Image.fromarray(np.where(IDS == SKY, 259, 700).astype(np.uint16))

    data = PanopticImages(written(tmp_path, picture, segments=({"id": 259}, {"id": 700})), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)


def refusal(folder: Path, picture: Image.Image, **options: Any) -> str:
    data = PanopticImages(written(folder, picture, **options), folder)
    with pytest.raises(DataError) as refused:
        data.pixels(0)
    return str(refused.value)


def test_a_grey_png_of_other_ids_is_refused_as_grey(tmp_path: Path) -> None:
    message = refusal(tmp_path, Image.fromarray(COLOURS).convert("L"))

    assert "It has 1 band (mode L); save it as RGB" in message


def test_equal_colours_are_refused_as_grey(tmp_path: Path) -> None:
    message = refusal(tmp_path, Image.fromarray(SMALL_IDS).convert("RGB"), segments=SMALL)

    assert "All its colours are grey, and red alone fits" in message


def test_a_listed_segment_without_pixels_is_refused(tmp_path: Path) -> None:
    only_sky = COLOURS.copy()
    only_sky[:] = COLOURS[0, 0]

    message = refusal(tmp_path, Image.fromarray(only_sky))

    assert f"segments.png lists the ids {CELL}, which the picture does not show" in message


def test_white_is_named_as_void(tmp_path: Path) -> None:
    colours = COLOURS.copy()
    colours[0] = 255

    message = refusal(tmp_path, Image.fromarray(colours))

    assert "16777215 is white, which some tools write where nothing is known; write 0" in message


def test_ids_of_categories_are_named_as_those_of_classes(tmp_path: Path) -> None:
    classes = np.where(IDS == SKY, 4, 9).astype(np.uint8)
    colours = np.stack([classes, 0 * classes, 0 * classes], axis=-1)

    message = refusal(tmp_path, Image.fromarray(colours))

    assert "They are ids of categories: the PNG seems to show classes" in message


def test_segments_whose_ids_are_those_of_categories_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = np.where(IDS == SKY, 4, 9).astype(np.uint8)
    file = written(tmp_path, Image.fromarray(classes), segments=({"id": 4}, {"id": 9}))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = PanopticImages(file, tmp_path)

    [line] = caplog.messages
    assert "the id of all 2 segments is that of their category" in line
    assert np.array_equal(data.pixels(0), PIXELS)


def test_the_ids_of_another_image_are_named_as_such(tmp_path: Path) -> None:
    file = two_images(tmp_path, ("a.png", "b.png"))
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        for segment in entry["segments_info"]:
            segment["id"] += entry["image_id"]
    file.write_text(json.dumps(content))

    with pytest.raises(DataError, match="They are those of the image 0: correct file_name"):
        PanopticImages(file, tmp_path).pixels(1)


def test_an_entry_of_segments_that_repeats_another_one_is_dropped(tmp_path: Path) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    content = json.loads(file.read_text())
    content["annotations"] *= 2
    file.write_text(json.dumps(content))

    data = PanopticImages(file, tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)
    assert data.repaired == {"entries that repeat an earlier one, dropped": 1}


def test_a_category_of_equal_name_without_segments_is_dropped(tmp_path: Path) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    content = json.loads(file.read_text())
    content["categories"].append({"id": 77, "name": "cell", "isthing": 1})
    file.write_text(json.dumps(content))

    data = PanopticImages(file, tmp_path)

    assert data.classes == ("sky", "cell")
    assert np.array_equal(data.pixels(0), PIXELS)


def test_one_segment_of_many_beside_its_bbox_is_named_and_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    png_ids = np.arange(1, 25).repeat(4, axis=0).reshape(6, 4, 4).transpose(1, 0, 2).reshape(4, 24)
    segments = []
    for segment_id in range(1, 25):
        rows, columns = np.nonzero(png_ids == segment_id)
        bbox = [
            int(columns.min()),
            int(rows.min()),
            int(np.ptp(columns)) + 1,
            int(np.ptp(rows)) + 1,
        ]
        segments.append(CocoSegment(id=segment_id, category_id=1, bbox=bbox))
    segments[5].bbox = [20, 30, 9, 9]

    with caplog.at_level(logging.WARNING, "dinoneck"):
        check_segments(png_ids, segments, tmp_path / "segments.png")

    [line] = caplog.messages
    assert "segments.png: 1 of 24 segments contradict their bbox" in line
    assert line.endswith("The pixels are used as they are")


def test_ids_of_segments_may_be_texts_or_whole_floats(tmp_path: Path) -> None:
    segments = ({"id": str(SKY)}, {"id": float(CELL), "iscrowd": False})

    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS), segments=segments), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)
    assert data.repaired == {
        "numbers written as text": 1,
        "whole numbers written with a point": 1,
        "flags written as true, false, null or text": 1,
    }


def test_crowd_segments_are_counted_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = ({"id": SKY}, {"id": CELL, "iscrowd": 1})
    file = written(tmp_path, Image.fromarray(COLOURS), segments=segments)

    with caplog.at_level(logging.WARNING, "dinoneck"):
        regions = PanopticImages(file, tmp_path)
    objects = PanopticImages(file, tmp_path, crowd="objects")

    [line] = caplog.messages
    assert "1 of 2 objects are marked iscrowd=1" in line
    assert regions.pixels(0)[4, 5] == -2000
    assert objects.pixels(0)[4, 5] == 2000


def test_annotations_of_images_that_are_not_listed_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    sample = json.loads(file.read_text())
    for image_id in (8, 9):
        other = sample["annotations"][0] | {"image_id": image_id, "file_name": f"{image_id}.png"}
        sample["annotations"].append(other)
    file.write_text(json.dumps(sample))

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = PanopticImages(file, tmp_path)

    [line] = caplog.messages
    assert "annotations left out: 2 of 3, of images that the file does not list" in line
    assert "such as image_id 8" in line
    assert data.skipped == {"unknown image": 2}
    assert np.array_equal(data.pixels(0), PIXELS)
