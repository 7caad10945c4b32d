"""Boxes and masks in COCO JSON: what was written is read, in whichever of its forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from PIL import Image

from dinoneck.data import BoxImages
from dinoneck.data.segmentations import (
    Mask,
    area_of,
    count_pixels,
    crop_mask,
    decode,
    extent_of,
    pixel_extent,
    polygon_extent,
    read_mask,
)

HEIGHT, WIDTH = 30, 40
CLASSES = {5: "red", 2: "blue", 9: "green"}
Box = tuple[int, int, int, int]
few_examples = settings(max_examples=25)  # of tests that write a file or read a table for each


@st.composite
def boxes_inside(draw: st.DrawFn) -> Box:
    """Left, top, right, bottom in quarters of a pixel, inside the image; sides of a pixel or more."""
    smallest_side = 4
    left = draw(st.integers(0, 4 * WIDTH - smallest_side))
    top = draw(st.integers(0, 4 * HEIGHT - smallest_side))
    right = draw(st.integers(left + smallest_side, 4 * WIDTH))
    bottom = draw(st.integers(top + smallest_side, 4 * HEIGHT))
    return left, top, right, bottom


objects = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(sorted(CLASSES)), boxes_inside()),
    min_size=1,
    max_size=6,
    unique_by=lambda entry: (entry[0], entry[2]),  # one box has one class
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("0.png", "1.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder


def content_of(objects: list[tuple[int, int, Box]]) -> dict[str, Any]:
    """The JSON of objects: (image, category, corners in quarters of a pixel)."""
    images = []
    for i in range(2):
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
    annotations = []
    for number, (image, category, (left, top, right, bottom)) in enumerate(objects):
        bbox = [left / 4, top / 4, (right - left) / 4, (bottom - top) / 4]
        annotations.append(
            {"id": number, "image_id": 10 + image, "category_id": category, "bbox": bbox}
        )
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def read(folder: Path, content: dict[str, Any], **options: Any) -> BoxImages:
    """The dataset of a JSON that is written for it."""
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return BoxImages(file, **options)


def rows_of(data: BoxImages) -> list[tuple[int, str, list[float]]]:
    """Image, class and corners of all objects, as they are read."""
    rows = []
    for i in range(len(data)):
        for label, corners in zip(data.labels(i).tolist(), data.corners(i).tolist(), strict=True):
            rows.append((i, data.classes[label], corners))
    return rows


def expected_rows(objects: list[tuple[int, int, Box]]) -> list[tuple[int, str, list[float]]]:
    """What is read of objects: those of the first image first."""
    rows = []
    for image, category, box in sorted(objects, key=lambda entry: entry[0]):
        rows.append((image, CLASSES[category], [side / 4 for side in box]))
    return rows


@pytest.mark.slow
@few_examples
@given(objects)
def test_boxes_are_read_as_they_were_written(
    folder: Path, objects: list[tuple[int, int, Box]]
) -> None:
    data = read(folder, content_of(objects))

    assert rows_of(data) == expected_rows(objects)
    assert not data.skipped
    assert data.clipped == 0


@few_examples
@given(objects)
def test_all_objects_are_counted(folder: Path, objects: list[tuple[int, int, Box]]) -> None:
    data = read(folder, content_of(objects))

    assert sum(data.numbers.values()) == len(objects)
    assert sum(data.class_counts.values()) == len(objects)
    assert data.without_boxes == 2 - len({image for image, _, _ in objects})


@few_examples
@given(objects)
def test_the_longest_box_is_the_longest_side_of_all(
    folder: Path, objects: list[tuple[int, int, Box]]
) -> None:
    data = read(folder, content_of(objects))

    sides = []
    for _, _, (left, top, right, bottom) in objects:
        sides += [(right - left) / 4, (bottom - top) / 4]
    assert data.longest_box == max(sides)


def with_ids(change: Callable[[int], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of every id of a JSON."""

    def rewrite(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            for key in ("id", "image_id", "category_id"):
                entry[key] = change(entry[key])
        for entry in [*content["images"], *content["categories"]]:
            entry["id"] = change(entry["id"])

    return rewrite


def with_texts_of_numbers(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["bbox"] = [str(number) for number in entry["bbox"]]


def with_flags(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["iscrowd"] = False


def with_whole_floats(content: dict[str, Any]) -> None:
    for entry in content["images"]:
        entry["width"] = float(entry["width"])
        entry["height"] = float(entry["height"])


@pytest.mark.parametrize(
    "rewrite",
    [
        pytest.param(with_ids(str), id="ids as text"),
        pytest.param(with_ids(float), id="ids with a point"),
        pytest.param(with_texts_of_numbers, id="boxes as text"),
        pytest.param(with_flags, id="flags as false"),
        pytest.param(with_whole_floats, id="sides with a point"),
    ],
)
@few_examples
@given(objects=objects)
def test_what_tools_write_otherwise_is_read(
    folder: Path, rewrite: Callable[[dict[str, Any]], None], objects: list[tuple[int, int, Box]]
) -> None:
    content = content_of(objects)
    rewrite(content)

    data = read(folder, content)

    assert rows_of(data) == expected_rows(objects)


@few_examples
@given(objects, st.permutations(sorted(CLASSES.values())))
def test_asking_for_classes_numbers_them_in_that_order(
    folder: Path, objects: list[tuple[int, int, Box]], classes: list[str]
) -> None:
    data = read(folder, content_of(objects), classes=classes)

    assert list(data.classes) == classes
    assert rows_of(data) == expected_rows(objects)


@few_examples
@given(objects, st.sampled_from(sorted(CLASSES.values())))
def test_objects_of_other_classes_are_left_out_and_counted(
    folder: Path, objects: list[tuple[int, int, Box]], name: str
) -> None:
    data = read(folder, content_of(objects), classes=[name])

    of_class = [row for row in expected_rows(objects) if row[1] == name]
    assert rows_of(data) == of_class
    assert data.skipped.get("other class", 0) == len(objects) - len(of_class)


# masks


masks = st.tuples(st.integers(1, 8), st.integers(1, 9)).flatmap(
    lambda size: st.lists(
        st.lists(st.booleans(), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    ).map(lambda rows: np.array(rows, bool))
)


def run_lengths_of(pixels: np.ndarray[Any, Any]) -> list[int]:
    """The lengths of zeros and ones in turn, zeros first, column by column: COCO's definition."""
    counts = [0]
    value = False
    for pixel in pixels.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def as_text(counts: list[int], size: tuple[int, ...]) -> str:
    """The same mask as COCO's text, by pycocotools."""
    from pycocotools import mask

    encoded = mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return str(encoded["counts"].decode())


def mask_of(counts: list[int] | str, size: Any) -> Mask:
    mask = read_mask(Raw(msgspec.json.encode({"size": size, "counts": counts})), size, "it")
    assert mask is not None
    return mask


forms = pytest.mark.parametrize(
    "form", [pytest.param(lambda counts, _: counts, id="counts"), pytest.param(as_text, id="text")]
)


@forms
@given(pixels=masks)
def test_run_lengths_decode_to_their_pixels(
    form: Callable[..., Any], pixels: np.ndarray[Any, Any]
) -> None:
    counts = form(run_lengths_of(pixels), pixels.shape)

    mask = mask_of(counts, pixels.shape)

    assert count_pixels(counts) == pixels.size
    assert np.array_equal(decode(mask), pixels)
    assert area_of(mask) == pixels.sum()


@forms
@given(pixels=masks)
def test_a_crop_holds_the_pixels_of_its_mask_and_no_empty_rim(
    form: Callable[..., Any], pixels: np.ndarray[Any, Any]
) -> None:
    crop = crop_mask(mask_of(form(run_lengths_of(pixels), pixels.shape), pixels.shape))

    pasted = np.zeros_like(pixels)
    height, width = crop.pixels.shape
    pasted[crop.top : crop.top + height, crop.left : crop.left + width] = crop.pixels
    assert np.array_equal(pasted, pixels)
    if pixels.any():
        assert pixel_extent(crop.pixels) == (0, 0, width, height)
    else:
        assert crop.pixels.size == 0


@given(masks.filter(np.any))
def test_the_extent_of_run_lengths_is_that_of_their_pixels(pixels: np.ndarray[Any, Any]) -> None:
    assert extent_of(mask_of(run_lengths_of(pixels), pixels.shape)) == pixel_extent(pixels)


@given(boxes_inside(), st.integers(-20, 20), st.integers(-20, 20))
def test_a_rectangle_has_its_extent_wherever_it_is(box: Box, right_by: int, down_by: int) -> None:
    left, top, right, bottom = box
    rectangle = [left, top, right, top, right, bottom, left, bottom]
    moved = [number + (down_by if i % 2 else right_by) for i, number in enumerate(rectangle)]

    assert polygon_extent([moved]) == (
        left + right_by,
        top + down_by,
        right + right_by,
        bottom + down_by,
    )


@few_examples
@given(objects)
def test_images_come_with_the_boxes_that_are_read_without_them(
    folder: Path, objects: list[tuple[int, int, Box]]
) -> None:
    data = read(folder, content_of(objects))

    image, target = data[0]

    assert tuple(image.shape) == (3, HEIGHT, WIDTH)
    assert torch.equal(target["boxes"], data.corners(0))
    assert torch.equal(target["labels"], data.labels(0))
