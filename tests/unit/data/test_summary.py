"""The lines of a data summary: facts of what was read, the same for every data set of a kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinoneck.data import (
    BoxImages,
    DenseLabels,
    NormalLabels,
    read_folders,
    read_masks,
    read_table,
    summarise,
)
from dinoneck.data.cells import IMAGES
from dinoneck.data.summary import MOST_LINES, image_line, summarise_table
from dinoneck.data.table import Table


def grey(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("L", size, value)


def table(folder: Path, columns: dict[str, list[Any]], **options: Any) -> pd.DataFrame:
    """A table of as many images, all different, as the columns have rows."""
    names = []
    for number in range(len(next(iter(columns.values())))):
        names.append(f"{number}.png")
        grey(number).save(folder / names[-1])
    frame = pd.DataFrame({"image": names, **columns})
    targets = [name for name in columns if name not in options.values()]
    return read_table(frame, folder, targets, **options)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        pytest.param(
            [0, 0, 4, 1, None],
            "score: numbers 0 1 4, in 2 1 1 images; 4 known, 1 missing",
            id="few-numbers",
        ),
        pytest.param(
            [*range(11)],
            "score: numbers, min 0, 25 % 2.5, median 5, 75 % 7.5, max 10; 11 known, 0 missing",
            id="many-numbers",
        ),
        pytest.param(
            ["rye", "oat", "rye", None],
            "score: 2 classes: oat 1, rye 2; 3 known, 1 missing",
            id="classes",
        ),
        pytest.param(
            [*"abcdefghijkl", *"aab"],
            "score: 12 classes: a 3, b 2, c 1, d 1, 4 more, i 1, j 1, k 1, l 1; 15 known, 0 missing",
            id="many-classes",
        ),
    ],
)
def test_a_target_begins_with_how_it_is_read(tmp_path: Path, values: list[Any], line: str) -> None:
    summary = summarise(table(tmp_path, {"score": values}))
    assert line in summary.lines()


def test_several_labels_are_counted_with_images_that_have_none(tmp_path: Path) -> None:
    frame = table(
        tmp_path, {"damage": ["crack; rust", "rust", "none", None]}, multilabel={"damage": ()}
    )
    lines = summarise(frame).lines()
    assert "damage: 2 labels: crack 1, rust 2; 1 image with none, 1 with an unknown one" in lines


def test_columns_of_several_labels_are_one_line(tmp_path: Path) -> None:
    frame = table(tmp_path, {"crack": [0, 1, 0], "rust": [1, 1, 0]})
    summary = summarise_table(Table.from_frame(frame), label_columns={"tags": ["crack", "rust"]})
    assert summary.facts["targets"] == {
        "tags": {"kind": "labels", "counts": {"crack": 1, "rust": 2}, "none": 1, "unknown": 0}
    }


def test_an_image_has_no_label_only_where_every_label_is_known(tmp_path: Path) -> None:
    frame = table(tmp_path, {"crack": [None, 1, 0], "rust": [0, None, 0]})
    summary = summarise_table(Table.from_frame(frame), label_columns={"tags": ["crack", "rust"]})
    assert summary.facts["targets"]["tags"] == {
        "kind": "labels",
        "counts": {"crack": 1, "rust": 0},
        "none": 1,
        "unknown": 2,
    }
    assert sorted(sample.texts for sample in summary.samples) == [
        ["tags crack unknown"],
        ["tags crack, rust unknown"],
        ["tags none"],
    ]


def test_a_name_with_a_comma_is_in_quotes(tmp_path: Path) -> None:
    summary = summarise(table(tmp_path, {"kind": ["a, b", "c", "c"]}))
    assert "kind: 2 classes: 'a, b' 1, c 2; 3 known, 0 missing" in summary.lines()


def test_a_file_without_a_header_is_named(tmp_path: Path) -> None:
    frame = table(tmp_path, {"mass": [1.0, 2.0]})
    empty = Path(frame["images"].iloc[1])
    empty.write_bytes(b"")
    assert summarise(frame).lines()[0] == (
        f"2 images: PNG L 1, 1 without a header that Pillow reads (the first: {empty})"
    )


def test_images_are_counted_by_format_mode_size_and_turn(tmp_path: Path) -> None:
    grey(1).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "b.jpg", exif=turned)
    line = image_line([tmp_path / "a.png", tmp_path / "b.jpg"])
    assert line == (
        "2 images: PNG L 1, JPEG RGB 1; 1 turned by EXIF; sizes: width 4 ... 8, height 6 ... 8 px, 2 "
        "distinct"
    )


@pytest.mark.parametrize("in_file", [True, False], ids=["file", "memory"])
def test_values_of_16_bits_are_of_the_images_that_are_drawn(tmp_path: Path, in_file: bool) -> None:
    values = np.full((6, 8), 4095, np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    line = image_line([path if in_file else values])
    assert "16 bits, values to 4095 of 65535 in 1 image drawn" in line


def test_groups_folds_and_what_a_reader_left_out_have_lines(tmp_path: Path) -> None:
    frame = table(
        tmp_path,
        {"mass": [1.0, 2.0, 3.0], "plot": ["p", "p", "q"], "part": ["x", "y", "y"]},
        group="plot",
        fold_column="part",
    )
    frame.attrs["left_out"] = {"files of other formats (.heic)": 3, "folders called _…": 1}
    lines = summarise(frame).lines()
    assert "groups: 2, of 1 to 2 images" in lines
    assert "folds: x 1, y 2" in lines
    assert "left out: 3 files of other formats (.heic), 1 folder called _…" in lines


def test_images_of_identical_content_are_named_where_their_classes_differ(tmp_path: Path) -> None:
    for name, value in (("rye/b", 1), ("wheat/a", 1), ("wheat/c", 2), ("wheat/d", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        grey(value).save(tmp_path / f"{name}.png")
    summary = summarise(read_folders(tmp_path))
    assert summary.lines()[-1] == (
        "4 images have the bytes of another, in 2 sets: rye/b.png (rye) = wheat/a.png (wheat)"
    )


def test_images_of_equal_size_and_other_bytes_are_not_identical(tmp_path: Path) -> None:
    for name, value in (("a/1.bmp", 1), ("b/1.bmp", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        grey(value).save(tmp_path / name)
    summary = summarise(read_folders(tmp_path))
    assert summary.lines()[-1] == "no two images have the same bytes"


def masks(folder: Path, *values: np.ndarray[Any, Any]) -> pd.DataFrame:
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number, mask in enumerate(values):
        height, width = mask.shape[:2]
        grey(number, (width, height)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return read_masks(folder / "images", folder / "masks")


def test_masks_of_classes_show_shares_of_pixels_and_what_is_unlabelled(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:2] = 1
    mask[2:3] = 255
    labels = DenseLabels(classes=2, nodata=255)
    lines = summarise(masks(tmp_path, mask, np.full_like(mask, 255)), labels=labels).lines()
    assert "masks: 2 of 2 images, 1 without a labelled pixel" in lines
    assert "2 classes of pixels: 0 77.8 %, 1 22.2 %; unlabelled 55.0 %: 255" in lines


def test_numbers_per_pixel_show_their_range_in_target_units(tmp_path: Path) -> None:
    mask = np.arange(100, dtype=np.uint8).reshape(10, 10)
    summary = summarise(masks(tmp_path, mask), labels=DenseLabels(scale=0.1, nodata=0))
    assert (
        "numbers per pixel: min 0.1, 25 % 2.55, median 5, 75 % 7.45, max 9.9; unlabelled 1.0 %: 0"
        in summary.lines()
    )


def test_surface_normals_are_counted(tmp_path: Path) -> None:
    normals = np.full((4, 4, 3), 128, np.uint8)
    normals[..., 2] = 255
    summary = summarise(masks(tmp_path, normals), labels=NormalLabels())
    assert "masks: 1 of 1 image, surface normals" in summary.lines()


def boxes(folder: Path) -> BoxImages:
    """Three images: two objects of which one is cut, one crowd region, nothing."""
    entries = []
    for number in range(3):
        grey(number, (40, 30)).save(folder / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 5]},
        {"id": 2, "image_id": 0, "category_id": 1, "bbox": [30, 10, 11, 15]},
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 20], "iscrowd": 1},
    ]
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return BoxImages(folder / "coco.json", folder)


def test_boxes_show_counts_sides_crowds_and_cuts(tmp_path: Path) -> None:
    lines = summarise(boxes(tmp_path)).lines()
    assert lines[2:] == [
        "boxes: 2, per image min 0, median 0, max 2; 2 images without",
        "2 classes: bolt 2, nut 0",
        "width of boxes in px: min 10, 25 % 10, median 10, 75 % 10, max 10",
        "height of boxes in px: min 5, 25 % 7.5, median 10, 75 % 12.5, max 15",
        "1 crowd region, 1 box cut at the edge of the image",
        "no two images have the same bytes",
    ]


def test_crowd_regions_are_drawn_too(tmp_path: Path) -> None:
    samples = {sample.name: sample for sample in summarise(boxes(tmp_path)).samples}
    [crowd] = samples["1.png"].boxes
    assert (crowd.name, list(crowd.corners)) == ("crowd", [0, 0, 20, 20])


def test_a_part_that_is_not_read_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for number in range(2):
            grey(number, (40, 30)).save(tmp_path / part / f"{part}{number}.png")
            (tmp_path / part / f"{part}{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: train\nval: val\nnames: [bolt]\n")
    train = BoxImages(tmp_path / "data.yaml")
    val = BoxImages(tmp_path / "data.yaml", part="val")
    assert "parts: train 2; not read: val" in summarise(train).lines()
    assert "parts: train 2, val 2" in summarise({"train": train, "val": val}).lines()


def test_parts_of_one_file_count_its_cuts_once(tmp_path: Path) -> None:
    images = boxes(tmp_path)
    summary = summarise({"train": images.take([0, 2]), "val": images.take([1])})
    assert "parts: train 2, val 1" in summary.lines()
    assert summary.facts["objects"]["cut"] == 1


def test_images_that_are_trained_on_and_held_out_are_named(tmp_path: Path) -> None:
    images = boxes(tmp_path)
    summary = summarise({"train": images, "val": images.take([1])})
    assert summary.lines()[-1] == (
        "2 images have the bytes of another: 1.png (part train) = 1.png (part val)"
    )


def test_many_targets_are_fifteen_lines_and_all_are_in_the_facts(tmp_path: Path) -> None:
    columns = {f"target{number}": [1.0, 2.0] for number in range(30)}
    summary = summarise(table(tmp_path, columns))
    lines = summary.lines()
    assert len(lines) == MOST_LINES
    assert "19 more targets: target11, target12" in lines[-2]
    assert len(summary.to_dict()["targets"]) == 30


def test_the_facts_are_json(tmp_path: Path) -> None:
    summary = summarise(table(tmp_path, {"mass": [1.0, None], "crop": ["rye", None]}))
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False)) == summary.to_dict()


def test_names_without_files_as_of_a_store_are_counted_and_not_drawn() -> None:
    frame = pd.DataFrame({IMAGES: ["a", "b"], "mass": [1.0, 2.0]}, index=["a", "b"])
    summary = summarise(frame)
    assert summary.lines()[0] == "2 images"
    assert summary.jpeg is None
