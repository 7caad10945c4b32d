"""The forms in which tools write panoptic segments, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.data import PanopticImages

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

    with pytest.raises(DataError, match="'sky'"):
        PanopticImages(file, tmp_path)


def test_a_png_with_full_alpha_is_read(tmp_path: Path) -> None:
    data = PanopticImages(written(tmp_path, opaque()), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)


def test_a_png_with_transparent_pixels_is_refused(tmp_path: Path) -> None:
    picture = opaque()
    picture.putpixel((5, 4), (2, 0, 1, 254))
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match="segments.png"):
        data.pixels(0)


def test_a_png_with_a_palette_is_refused_with_the_remedy(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOURS).convert("P")
    data = PanopticImages(written(tmp_path, picture), tmp_path)

    with pytest.raises(DataError, match="segments.png"):
        data.pixels(0)


BBOX = [3, 2, 6, 5]  # of the cell


@pytest.mark.parametrize(
    ("cell", "longest"),
    [
        pytest.param({"bbox": BBOX}, 6, id="a box"),
        pytest.param({"bbox": BBOX, "iscrowd": 1}, None, id="a crowd region"),
        pytest.param({}, None, id="no box"),
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


def test_a_listed_segment_without_pixels_is_refused(tmp_path: Path) -> None:
    only_sky = COLOURS.copy()
    only_sky[:] = COLOURS[0, 0]

    message = refusal(tmp_path, Image.fromarray(only_sky))

    assert f"{SKY}, {CELL}" in message


def test_a_category_of_equal_name_without_segments_is_dropped(tmp_path: Path) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    content = json.loads(file.read_text())
    content["categories"].append({"id": 77, "name": "cell", "isthing": 1})
    file.write_text(json.dumps(content))

    data = PanopticImages(file, tmp_path)

    assert data.classes == ("sky", "cell")
    assert np.array_equal(data.pixels(0), PIXELS)


def test_ids_of_segments_may_be_texts_or_whole_floats(tmp_path: Path) -> None:
    segments = ({"id": str(SKY)}, {"id": float(CELL), "iscrowd": False})

    data = PanopticImages(written(tmp_path, Image.fromarray(COLOURS), segments=segments), tmp_path)

    assert np.array_equal(data.pixels(0), PIXELS)


def test_crowd_segments_are_regions_or_objects(tmp_path: Path) -> None:
    segments = ({"id": SKY}, {"id": CELL, "iscrowd": 1})
    file = written(tmp_path, Image.fromarray(COLOURS), segments=segments)

    regions = PanopticImages(file, tmp_path)
    objects = PanopticImages(file, tmp_path, crowd="objects")

    assert regions.num_crowds == 1
    assert regions.pixels(0)[4, 5] == -2000
    assert objects.pixels(0)[4, 5] == 2000


CHANGES: list[Any] = [
    pytest.param(lambda entries: entries.append(entries[0]), "image_id 3", id="two entries"),
    pytest.param(lambda entries: entries.clear(), "images 3", id="no entry"),
    pytest.param(lambda entries: entries[0].update(image_id=8), "8", id="an unknown image"),
    pytest.param(
        lambda entries: entries[0]["segments_info"][0].update(id=CELL), str(CELL), id="an id twice"
    ),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_entries_that_contradict_each_other_are_refused(
    change: Callable[[list[Any]], None], named: str, tmp_path: Path
) -> None:
    file = written(tmp_path, Image.fromarray(COLOURS))
    content = json.loads(file.read_text())
    change(content["annotations"])
    file.write_text(json.dumps(content))

    with pytest.raises(DataError, match=named):
        PanopticImages(file, tmp_path)


def test_a_png_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, Image.fromarray(COLOURS[:-1]))

    assert "segments.png" in message
