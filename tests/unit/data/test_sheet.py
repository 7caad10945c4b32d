"""The sheet of a data set: which images are drawn, and labels drawn where they were read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from dinoneck.data import BoxImages, DenseLabels, read_folders, read_masks, summarise
from dinoneck.data.sheet import (
    Box,
    Heat,
    Regions,
    Sample,
    choose_rows,
    draw_sheet,
    draw_tile,
    shortened_name,
    wrapped,
)
from dinoneck.images.colours import CLASSES, NODATA, PALETTE

RED = (255, 0, 0)


def pixel(tile: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    """The colour at a share of the width, and a share of the height of a square picture."""
    colour = tile.getpixel((round(x * 360), round(y * 360)))
    assert isinstance(colour, tuple)
    return colour[:3]  # type: ignore[return-value]


def square(value: int = 100) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((40, 40, 3), value, np.uint8)


def test_rarest_classes_come_first_then_extremes_then_rows_at_equal_distances() -> None:
    shown = {"common": dict.fromkeys(range(50), 1), "rare": {70: 3, 71: 9}, "none": {}}
    rows = choose_rows(100, shown, extremes=[33, 90])
    assert rows[:4] == [71, 0, 33, 90]
    assert len(rows) == len({*rows}) == 16


def test_a_class_that_a_chosen_image_shows_gets_no_image_of_its_own() -> None:
    assert choose_rows(100, {"a": {5: 1}, "b": {5: 1, 6: 9}}, extremes=[])[:2] == [5, 0]


@pytest.mark.parametrize("count", [1, 5, 15, 16, 17])
def test_of_few_images_all_are_drawn(count: int) -> None:
    assert len(choose_rows(count, {}, extremes=[0])) == min(count, 16)


def test_regions_have_a_light_fill_an_outline_and_hatches_where_unlabelled() -> None:
    ids = np.full((40, 40), -1)
    ids[:20] = 0
    ids[:20, 20:] = 1  # has no colour
    regions = Regions(ids, [RED, None], hatched=True)
    tile = draw_tile(Sample(square(), "a", overlay=lambda: regions), None)
    assert np.allclose(pixel(tile, 0.25, 0.25), [146, 70, 70], atol=1)
    assert pixel(tile, 0.498, 0.25) == RED
    assert pixel(tile, 0.75, 0.25) == (100, 100, 100)
    lower = np.asarray(tile)[200:340, :360].reshape(-1, 3)
    assert {tuple(colour) for colour in lower.tolist()} == {NODATA, (100, 100, 100)}


def test_numbers_are_coloured_and_unknown_ones_show_the_image_in_grey() -> None:
    values = np.full((40, 40), np.nan)
    values[:, :20] = 5.0
    heat = Heat(values, low=0.0, high=5.0)
    tile = draw_tile(Sample(square(), "a", overlay=lambda: heat), None)
    assert np.allclose(pixel(tile, 0.25, 0.5), np.array([253, 231, 37]) * 0.7 + 30, atol=1)
    assert pixel(tile, 0.75, 0.5) == (100, 100, 100)


def test_a_box_is_where_the_upright_image_has_it(tmp_path: Path) -> None:
    """The file is stored turned; the image is 20 wide and 40 high when it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), (100, 100, 100)).save(tmp_path / "a.jpg", exif=exif)
    box = Box((5, 10, 15, 30), "bolt", "#ff0000")
    tile = draw_tile(Sample(tmp_path / "a.jpg", "a", size=(40, 20), boxes=[box]), None)
    left = (360 - 210) // 2  # the picture is 210 x 420
    assert tile.getpixel((left + 53, 210)) == RED
    assert tile.getpixel((left + 157, 210)) == RED


def test_large_jpegs_are_decoded_at_a_smaller_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinoneck.data import sheet

    sizes = []
    decode = sheet.decode

    def spy(image: Image.Image, name: str, bits: int | None) -> object:
        sizes.append(image.size)
        return decode(image, name, bits)

    monkeypatch.setattr(sheet, "decode", spy)
    Image.new("RGB", (4000, 3000)).save(tmp_path / "a.jpg")
    tile = draw_tile(Sample(tmp_path / "a.jpg", "a"), None)
    assert sizes == [(1000, 750)]
    assert tile.width == 360


def test_an_image_that_cannot_be_decoded_has_a_tile_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    sheet = draw_sheet([Sample(tmp_path / "a.png", "a")], title="1 image", legend={})
    assert NODATA in {tuple(colour) for colour in np.asarray(sheet).reshape(-1, 3).tolist()}


def test_text_that_is_cut_ends_or_begins_with_an_ellipsis() -> None:
    assert shortened_name("folder/" * 20 + "IMG_1.jpg", 360).startswith("…")
    assert shortened_name("folder/" * 20 + "IMG_1.jpg", 360).endswith("IMG_1.jpg")
    lines = wrapped(["word " * 60], 360, most_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert wrapped(["x" * 100], 360, most_lines=3)[0].endswith("…")


def test_classes_of_masks_have_the_colours_of_the_other_pictures(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 1
    Image.fromarray(square()).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    frame = read_masks(tmp_path / "images", tmp_path / "masks")
    summary = summarise(frame, labels=DenseLabels(classes=2))
    colours = {tuple(colour) for colour in np.asarray(summary.picture()).reshape(-1, 3).tolist()}
    assert {ImageColor.getrgb(colour) for colour in CLASSES[:2]} <= colours
    assert summary.title == "1 of 1 image drawn, with 2 of 2 classes"


@pytest.mark.parametrize("with_masks", [False, True], ids=["boxes", "instances"])
def test_objects_have_the_colour_of_their_class(tmp_path: Path, with_masks: bool) -> None:
    Image.fromarray(square()).save(tmp_path / "a.png")
    entry = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 10, 20, 20],
        "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
    }
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    summary = summarise(BoxImages(tmp_path / "coco.json", tmp_path, masks=with_masks))
    tile = summary.picture().crop((12, 58, 372, 418))
    colour = ImageColor.getrgb(PALETTE[0])
    assert pixel(tile, 0.252, 0.5) == colour


def test_the_sheet_is_written_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    for name in ("rye", "wheat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(square()).save(tmp_path / "images" / name / "a.png")
    summarise(read_folders(tmp_path / "images")).sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        assert opened.format == "PNG"
