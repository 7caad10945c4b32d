"""What the values of a set of masks mean is read where it is clear, and refused with both readings where not."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dinoneck.data.label_sets import (
    MaskClasses,
    UsedColours,
    mask_classes,
    survey_masks,
    used_colours,
)
from PIL import Image
from tests.unit.data.tiff_files import nodata_tag, write_tiff

from dinoneck import ConfigError, DataError
from dinoneck.data import DenseLabels, Preprocessing, count_classes
from dinoneck.images.rasters import LabelRaster

ONE_PIXEL = Preprocessing(1)


def mask(*values: int, dtype: str = "u1") -> np.ndarray:
    """A mask of stripes, (6, 4 per value): 24 pixels of each value."""
    return np.repeat(np.array([values] * 6, dtype), 4, axis=1)


def saved(folder: Path, masks: Sequence[np.ndarray], suffix: str = "png") -> list[Path]:
    """Write masks as 0.png, 1.png, ..."""
    files = []
    for number, values in enumerate(masks):
        file = folder / f"{number}.{suffix}"
        Image.fromarray(values).save(file)
        files.append(file)
    return files


def classes_of(
    masks: Any,
    names: Sequence[str] = (),
    *,
    class_values: Sequence[int] = (),
    nodata: Sequence[float] = (),
) -> MaskClasses:
    return mask_classes(survey_masks(masks, nodata), names, class_values)


# Two classes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("white", "dtype"), [(255, "u1"), (255, "u2"), (65535, "u2"), (255, "f4"), (255, "i4")]
)
def test_black_and_white_masks_are_two_classes(
    white: int, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = [mask(0, white, dtype=dtype), mask(0, 0, dtype=dtype), mask(white, dtype=dtype)]
    suffix = "png" if dtype in ("u1", "u2") else "tif"
    classes = classes_of(saved(tmp_path, masks, suffix), ["soil", "crop"])
    assert classes.stored == (0, white)
    assert classes.pixels == {"soil": 72, "crop": 48}
    assert f"0 and {white} alone: they are read as the classes 'soil' and 'crop'" in caplog.text


def test_black_and_white_without_names_are_named_by_their_values() -> None:
    classes = classes_of([mask(0, 255)])
    assert classes.names == ("0", "255")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([[False, True]]), id="bools"),
        pytest.param(np.array([[0, 1]], np.uint8), id="0 and 1"),
        pytest.param(np.array([[0.0, 1.0]], np.float32), id="0.0 and 1.0"),
        pytest.param(Image.fromarray(np.array([[False, True]])), id="1-bit image"),
    ],
)
def test_zero_and_one_stay_two_classes(values: Any) -> None:
    assert classes_of([values], ["soil", "crop"]).stored is None
    assert count_classes([values]) == 2
    assert DenseLabels(classes=2).indices([values], ONE_PIXEL).tolist() == [[[0, 1]]]


def test_a_mask_that_is_all_white_shows_the_second_class() -> None:
    """The set decides, not the single mask."""
    classes = classes_of([mask(255), mask(0)], ["soil", "crop"])
    assert classes.pixels == {"soil": 24, "crop": 24}


def test_white_beside_other_classes_is_no_class() -> None:
    with pytest.raises(DataError, match=r"255 \(24 pixels.*expected class indices 0 ... 1"):
        classes_of([mask(0, 1, 255)], ["soil", "crop"])


def test_white_among_three_names_is_refused_with_the_way_to_two() -> None:
    with pytest.raises(DataError, match=r"255.*0 ... 2.*class_values=\(0, 255\).*--classes"):
        classes_of([mask(0, 255)], ["soil", "crop", "weed"])


def test_the_remedy_for_black_and_white_leads_to_two_classes() -> None:
    masks = [mask(0, 255)]
    with pytest.raises(DataError, match=r"class_values=\(0, 255\)"):
        count_classes(masks)
    with pytest.raises(DataError, match=r"class_values=\(0, 255\)"):
        DenseLabels(classes=2).indices(masks, ONE_PIXEL)
    index = DenseLabels(class_values=(0, 255)).indices(masks, ONE_PIXEL)
    assert index[0].unique(return_counts=True)[1].tolist() == [24, 24]


@pytest.mark.parametrize(
    "forms",
    [
        pytest.param([mask(0, 1), mask(0, 255)], id="0 and 1, 0 and 255"),
        pytest.param([mask(0, 1).astype(bool), mask(0, 255)], id="1 bit and 8 bits"),
        pytest.param([mask(1), mask(0, 65535, dtype="u2")], id="8 bits and 16 bits"),
    ],
)
def test_one_mask_in_two_forms_is_refused(forms: list[np.ndarray], tmp_path: Path) -> None:
    """Programs that shrink PNG files write some of the masks with 1 bit."""
    files = saved(tmp_path, forms)
    for names in ((), ("soil", "crop")):
        with pytest.raises(
            DataError, match=r"0.png holds 0 and 1, .*1.png holds 0 and .*two forms"
        ):
            classes_of(files, names)


def test_white_that_is_nodata_leaves_the_other_form(tmp_path: Path) -> None:
    files = saved(tmp_path, [mask(0, 1), mask(0, 255)])
    classes = classes_of(files, nodata=[255])
    assert classes.pixels == {"0": 48, "1": 24}


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("names", [(), ("soil", "crop"), ("soil", "crop", "weed")])
def test_a_mask_in_the_alpha_is_refused_with_the_way_to_save_it(
    mode: str, names: Sequence[str], tmp_path: Path
) -> None:
    """As tools that cut out write it: all pixels are white, and the background is transparent."""
    files = []
    for number in range(2):
        white = Image.new(mode, (8, 6), "white")
        white.putalpha(Image.fromarray(mask(0, 255)))
        white.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")

    with pytest.raises(DataError, match=r"255 alone, and 48 pixels are transparent.*the alpha"):
        classes_of(files, names)

    for file in files:
        Image.open(file).getchannel("A").save(file)
    assert classes_of(files, ["soil", "crop"]).pixels == {"soil": 48, "crop": 48}


def test_a_mask_in_the_alpha_over_black_is_refused_with_the_way_to_save_it(
    tmp_path: Path,
) -> None:
    black = Image.new("RGBA", (8, 6))
    black.putalpha(Image.fromarray(mask(0, 255)))
    black.save(tmp_path / "a.png")

    with pytest.raises(DataError, match=r"hold 0 alone, and 24 pixels are transparent.*the alpha"):
        classes_of([tmp_path / "a.png"])

    Image.open(tmp_path / "a.png").convert("RGBA").getchannel("A").save(tmp_path / "a.png")
    assert classes_of([tmp_path / "a.png"], ["soil", "crop"]).pixels == {"soil": 24, "crop": 24}


def test_one_class_that_is_neither_black_nor_white_is_no_mask_in_the_alpha() -> None:
    pixels = np.zeros((2, 3, 2), np.uint8)
    pixels[..., 0] = 1
    pixels[:, 1:, 1] = 255

    classes = classes_of(Image.fromarray(pixels, "LA"))

    assert classes.pixels == {"0": 0, "1": 4}


def test_classes_beside_transparent_pixels_are_read() -> None:
    picture = Image.fromarray(np.stack([mask(1, 2), mask(0, 255)], axis=2), "LA")

    assert classes_of([picture], ["soil", "crop", "weed"]).pixels == {
        "soil": 0,
        "crop": 0,
        "weed": 24,
    }


@pytest.mark.parametrize("levels", [(0, 127, 255), (0, 128), (0, 1, 128), (41, 101)])
def test_grey_levels_to_look_at_are_refused_with_the_values_that_read_them(
    levels: tuple[int, ...],
) -> None:
    masks = [mask(*levels), mask(levels[0]), mask(*levels)]
    option = f"class_values=({', '.join(map(str, levels))})"

    with pytest.raises(DataError, match=f"grey levels to look at.*{re.escape(option)}"):
        count_classes(masks)

    assert classes_of(masks, class_values=levels).stored == levels


@pytest.mark.parametrize("largest", [7, 40, 99])
def test_a_set_that_shows_few_of_its_classes_is_counted(largest: int) -> None:
    assert count_classes([mask(0, largest)]) == largest + 1


# Values of classes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [(0, 255), (1, 2, 3), (10, 20, 100), (255, 0), (7, 1, 3), (-1, 0), (3_000_000_000, 0)],
)
def test_class_values_give_each_class_its_number(stored: tuple[int, ...]) -> None:
    label = np.array([stored], np.int64)
    how = DenseLabels(class_values=stored)
    expected = list(range(len(stored)))
    assert how.classes == len(stored)
    assert how.indices(label, ONE_PIXEL)[0].tolist() == [expected]
    shares, _ = how.cells(label, ONE_PIXEL)
    assert shares[0, :, 0].tolist() == torch.eye(len(stored)).tolist()


def test_a_value_of_a_set_that_is_no_class_value_is_refused() -> None:
    with pytest.raises(DataError, match=r"the masks hold .*7"):
        classes_of([mask(0, 255), mask(7, 0)], ["soil", "crop"], class_values=(0, 255))


def test_names_and_class_values_of_another_number_are_refused() -> None:
    with pytest.raises(DataError, match="there are 3 class names and 2 class values; expected one"):
        classes_of([mask(0, 255)], ["soil", "crop", "weed"], class_values=(0, 255))


def test_a_value_that_is_no_class_value_is_refused(tmp_path: Path) -> None:
    [file] = saved(tmp_path, [mask(1, 2, 4)])
    with pytest.raises(DataError, match=r"0.png holds 4 \(24 pixels\).*class values 1, 2, 3"):
        DenseLabels(class_values=(1, 2, 3)).indices(file, ONE_PIXEL)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"class_values": (1, 2), "classes": 3}, "2 class_values"),
        ({"class_values": (1, 1)}, "each value once"),
        ({"class_values": (0, 255), "nodata": 255}, "255 is among"),
        ({"class_values": (1, 2), "scale": 2}, "scale"),
        ({"class_values": ()}, "classes is 0"),
        ({"class_values": (0.5, 1)}, "class_values"),
    ],
)
def test_class_values_that_contradict_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DenseLabels(**options)


def test_class_values_are_read_beside_a_value_that_the_file_marks(tmp_path: Path) -> None:
    values = np.array([[0, 9, 255]], np.uint8)
    file = write_tiff(tmp_path / "m.tif", values, tags=nodata_tag("9"))

    indices = DenseLabels(class_values=(0, 255)).indices(file, ONE_PIXEL)

    assert indices[0].tolist() == [[0, -1, 1]]


def test_a_class_value_that_the_file_marks_is_refused(tmp_path: Path) -> None:
    file = write_tiff(tmp_path / "m.tif", mask(0, 255), tags=nodata_tag("0"))
    with pytest.raises(DataError, match=r"m.tif.*GDAL_NODATA marks 0.*class_values"):
        DenseLabels(class_values=(0, 255)).indices(file, ONE_PIXEL)


@pytest.mark.parametrize(
    ("values", "classes", "named"),
    [
        pytest.param(
            (1, 2, 3),
            3,
            r"from 1.*class_values=range\(1, 4\) \(--class-values 1 2 3\)",
            id="from 1",
        ),
        pytest.param((*range(1, 9),), 8, r"from 1.*--class-values 1 2 ... 8", id="1 ... 8"),
        pytest.param((10, 20, 40), 3, r"class_values=\(10, 20, 40\)", id="as many values"),
        pytest.param((0, 2), 2, r"class_values=\(0, 2\)", id="0 and 2"),
        pytest.param(
            (0, 1, 2, 3),
            3,
            r"from 1 and 0 marks.*nodata=0.*\(--nodata 0 --class-values 1 2 3\).*name 4 classes",
            id="0 as none",
        ),
        pytest.param(
            (10, 20, 30, 40, 50, 60, 95, 100),
            8,
            r"class_values=\(10, .* 100\) \(--class-values 10 20 30 40 50 60 95 100\)",
            id="codes",
        ),
        pytest.param(
            (10, 20, 30), 5, r"3 of 5: .*order of the names.*10 20 30 ...", id="some of the codes"
        ),
        pytest.param(
            (0, 10, 20, 30), 3, r"\(--nodata 0 --class-values 10 20 30\)", id="codes and 0 as none"
        ),
        pytest.param((255,), 2, r"class_values=\(0, 255\)", id="white alone"),
        pytest.param((0, 1, 7), 2, r"7 \(24 pixels\).*raise classes.*nodata", id="one too many"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_what_fits(
    values: tuple[int, ...], classes: int, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        DenseLabels(classes=classes).indices(mask(*values), ONE_PIXEL)


def test_negative_numbers_are_refused_with_nodata_as_the_way() -> None:
    with pytest.raises(DataError, match=r"-1 \(24 pixels\).*--nodata -1 "):
        DenseLabels(classes=2).indices(mask(-1, 0, 1, dtype="i2"), ONE_PIXEL)


@pytest.mark.parametrize("names", [(), ("soil", "crop")])
def test_white_of_two_depths_is_one_mask_in_two_forms(names: Sequence[str]) -> None:
    masks = [mask(0, 255), mask(0, 65535, dtype="u2")]
    with pytest.raises(
        DataError, match=r"holds 0 and 255, .*holds 0 and 65535,.*two forms; save all"
    ) as refused:
        classes_of(masks, names)
    assert "nodata" not in str(refused.value)


def test_a_mask_in_three_forms_is_refused() -> None:
    masks = [mask(0, 1), mask(0, 255), mask(0, 65535, dtype="u2")]
    with pytest.raises(
        DataError,
        match=r"holds 0 and 1, .*holds 0 and 255, .*holds 0 and 65535,.*three forms; save all",
    ):
        classes_of(masks)


def test_nodata_may_be_an_array() -> None:
    index = DenseLabels(classes=2, nodata=np.array([7, 9])).indices(mask(0, 7, 9, 1), ONE_PIXEL)
    assert index[0, 0, ::4].tolist() == [0, -1, -1, 1]


# How many classes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "count"),
    [
        pytest.param([mask(0, 1, 2)], 3, id="one mask"),
        pytest.param([mask(0, 1), mask(0, 4), mask(4, 1)], 5, id="with gaps"),
        pytest.param([mask(3), mask(1, 3), mask(2, 1)], 4, id="from 1"),
        pytest.param([mask(0, 15), mask(0, 15, 7), mask(8, 7)], 16, id="few classes of many"),
        pytest.param([mask(0, 254), mask(0, 254, 255)], 256, id="all of 8 bits"),
        pytest.param([mask(0, 1), mask(0, 2)], 3, id="two masks with one class each"),
        pytest.param([mask(0, 1), mask(0, 1, 2), mask(0, 1, 2, 3)], 4, id="few classes in order"),
    ],
)
def test_classes_are_counted_over_the_set(masks: list[np.ndarray], count: int) -> None:
    assert count_classes(masks) == count


def test_an_index_without_a_pixel_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert count_classes([mask(0, 3)]) == 4
    assert "no pixel of 2 classes: '1', '2'" in caplog.text


def test_classes_in_order_are_counted_where_they_are_spread_over_the_image() -> None:
    """Noise of 4, 6 and 8 classes: no class is one blob."""
    random = np.random.default_rng(0)
    masks = [random.integers(0, high, (32, 32)).astype(np.uint8) for high in (5, 7, 9)]
    assert count_classes(masks) == 9


@pytest.mark.parametrize(
    ("masks", "named"),
    [
        pytest.param([mask(0, 5, 255)], "holds 255.*nodata=255", id="255"),
        pytest.param([mask(0, 5, 65535, dtype="u2")], "holds 65535.*nodata=65535", id="65535"),
        pytest.param([mask(-1, 0, dtype="i2")], "holds -1 .*nodata=-1", id="negative"),
        pytest.param([np.full((2, 2), 0.5)], "0.5 .4 pixels.*label-kind numbers", id="fraction"),
        pytest.param([np.full((2, 2), np.inf)], "inf", id="infinite"),
        pytest.param(
            [mask(0, 24001, dtype="u2")],
            r"object ids.*24001.*\(--class-values 0 24001\)",
            id="a large id",
        ),
        pytest.param(
            [mask(10, 20), mask(20, 95, 100)],
            r"codes of classes.*class_values=\(10, 20, 95, 100\) \(--class-values 10 20 95 100\)",
            id="codes of land cover",
        ),
        pytest.param([np.zeros((4, 4, 3), np.uint8)], "3 bands.*they are equal", id="grey as RGB"),
        pytest.param([np.eye(12).reshape(4, 12, 3)], "3 bands.*colours", id="colours"),
    ],
)
def test_values_that_are_no_classes_are_refused(masks: list[np.ndarray], named: str) -> None:
    with pytest.raises(DataError, match=named):
        count_classes(masks)


def map_of_numbers(low: int, high: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Areas of 8 x 8 px with some noise, (64, 64)."""
    random = np.random.RandomState(seed)
    areas = np.kron(random.rand(8, 8), np.ones((8, 8)))
    shares = (areas + 0.05 * random.rand(64, 64)).clip(0, 1)
    return (low + shares * (high - low)).astype(dtype)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        pytest.param(0, 100, "u1", id="cover in percent"),
        pytest.param(0, 255, "u1", id="bytes"),
        pytest.param(20, 200, "u1", id="a part of the bytes"),
        pytest.param(500, 9000, "u2", id="depth"),
        pytest.param(-200, 900, "i2", id="signed numbers"),
    ],
)
def test_numbers_per_pixel_are_no_classes(low: int, high: int, dtype: str) -> None:
    maps = [map_of_numbers(low, high, dtype, seed) for seed in range(3)]

    with pytest.raises(DataError, match=r"numbers per pixel.*3 masks have 50.*label-kind numbers"):
        count_classes(maps)
    with pytest.raises(DataError, match=r"class indices 0 \.\.\. 2\. They seem to be numbers per"):
        classes_of(maps, ["soil", "crop", "weed"])


def test_a_smooth_map_is_of_numbers() -> None:
    """One area for each value, and the same values in all maps."""
    gradient = np.repeat(np.arange(100, dtype=np.uint8)[None], 40, axis=0)

    with pytest.raises(DataError, match=r"100, 0 \.\.\. 99\. Read numbers without classes"):
        count_classes([gradient, gradient.T])


def hills(top: int, seed: int = 0, size: int = 128) -> np.ndarray:
    """Whole numbers 0 ... top that rise and fall, (size, size)."""
    grid = np.random.RandomState(seed).rand(6, 6).astype(np.float32)
    grid.flat[:2] = (0, 1)
    surface = np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BILINEAR))
    return np.round(surface * top).astype(np.uint8)


def distances(size: int = 64) -> np.ndarray:
    """Of each pixel to the edge, in steps of two pixels."""
    rows, cols = np.indices((size, size))
    from_edge = np.minimum.reduce([rows, cols, size - 1 - rows, size - 1 - cols])
    return (from_edge // 2).astype(np.uint8)


@pytest.mark.parametrize(
    "maps",
    [
        pytest.param([hills(12), hills(12, 1)], id="heights of 0 ... 12"),
        pytest.param([hills(30), hills(30, 1)], id="heights of 0 ... 30"),
        pytest.param([hills(45, size=48), hills(45, 1, size=48)], id="steep heights"),
        pytest.param([hills(26) + 12, hills(26, 1) + 12], id="degrees Celsius of 12 ... 38"),
        pytest.param([hills(20).astype("f4"), hills(20, 1).astype("f4")], id="slopes as floats"),
        pytest.param([hills(12) * 10, hills(12, 1) * 10], id="heights in steps of ten"),
        pytest.param([distances()], id="distances"),
        pytest.param([hills(12), hills(60), hills(12, 1), np.zeros_like(hills(12))], id="mixed"),
    ],
)
def test_whole_numbers_that_change_from_pixel_to_pixel_are_no_classes(
    maps: list[np.ndarray],
) -> None:
    with pytest.raises(DataError, match="numbers per pixel.*small steps.*label-kind numbers"):
        count_classes(maps)


def test_heights_that_are_named_are_classes() -> None:
    names = [f"{height} m" for height in range(13)]

    assert sum(classes_of([hills(12)], names).pixels.values()) == 128 * 128


def fields(num_classes: int, seed: int = 0) -> np.ndarray:
    """Areas of 8 x 8 px, of random classes, (128, 128)."""
    areas = np.random.RandomState(seed).randint(0, num_classes, (16, 16))
    return np.kron(areas, np.ones((8, 8), int)).astype(np.uint8)


def layers(num_classes: int) -> np.ndarray:
    """Layers of a tissue, one below the other, with waves, (256, 256)."""
    waves = (6 * np.sin(np.arange(256) / 20)).astype(int)
    rows = np.arange(256)[:, None] + waves
    return (rows * num_classes // 256).clip(0, num_classes - 1).astype(np.uint8)


@pytest.mark.parametrize(
    "classes",
    [
        pytest.param(fields(10), id="ten classes"),
        pytest.param(fields(45), id="forty-five classes"),
        pytest.param(np.where(fields(4) == 0, fields(20, 1), 0), id="objects on a background"),
        pytest.param(np.where(fields(20) == 1, hills(3), fields(20)), id="one ragged border"),
        pytest.param(layers(12), id="layers"),
        pytest.param(distances(512) // 12, id="rings"),
    ],
)
def test_classes_in_areas_are_no_numbers_per_pixel(classes: np.ndarray) -> None:
    assert count_classes([classes, classes.T]) == classes.max() + 1


def test_numbers_that_are_named_are_classes() -> None:
    names = [f"{percent} %" for percent in range(101)]

    classes = classes_of([map_of_numbers(0, 100, "u1")], names)

    assert sum(classes.pixels.values()) == 64 * 64


def test_many_classes_of_which_each_mask_shows_some_are_counted() -> None:
    random = np.random.RandomState(0)
    masks = []
    for _ in range(20):
        shown = random.choice(150, 40, replace=False).astype(np.uint8)
        masks.append(np.kron(random.choice(shown, (8, 8)), np.ones((8, 8), np.uint8)))
    masks.append(np.arange(150, dtype=np.uint8)[None])

    assert count_classes(masks) == 150


def test_classes_in_order_that_no_pixel_joins_are_counted() -> None:
    """The pixels between them have no label."""
    values = [value for number in range(9) for value in (number, 250)]

    classes = classes_of([mask(*values)], nodata=(250,))

    assert classes.pixels == {str(number): 24 for number in range(9)}


def test_many_objects_are_no_numbers_per_pixel() -> None:
    """60 to 80 ids of 20 pixels each, from 1 on."""
    masks = []
    for count in (60, 70, 80):
        ids = np.zeros((60, 80), np.uint8)
        for number in range(count):
            row = 6 * (number // 10)
            column = 8 * (number % 10)
            ids[row : row + 4, column : column + 5] = number + 1
        masks.append(ids)

    with pytest.raises(DataError, match="object ids.*one area for each"):
        count_classes(masks)


def test_masks_of_one_object_id_each_are_recognised(tmp_path: Path) -> None:
    files = saved(tmp_path, [mask(0, 3), mask(0, 5), mask(0, 9), mask(0, 0)])
    with pytest.raises(DataError, match=r"object ids.*3 masks.*3 in .*0.png.*--instances"):
        count_classes(files)


def test_large_ids_are_refused_without_memory_for_all_numbers() -> None:
    ids = np.array([[0, 24001, 26007, 2_000_000_000]], np.int64)
    with pytest.raises(DataError, match=r"3 numbers up to 2000000000, with gaps"):
        count_classes([ids])


def test_a_single_large_id_is_refused_with_its_number() -> None:
    ids = np.array([[0, 3_000_000_000]], np.int64)
    with pytest.raises(DataError, match=r"not classes: the number 3000000000\. Learn objects"):
        count_classes([ids])


def test_objects_that_are_numbered_from_1_in_each_image_are_recognised() -> None:
    """As scikit-image's label and Cellpose write them."""
    masks = []
    for count in (7, 3, 11):
        ids = np.zeros((40, 60), np.uint8)
        for number in range(count):
            row = 10 * (number // 6)
            column = 10 * (number % 6)
            ids[row : row + 8, column : column + 7] = number + 1
        masks.append(ids)
    with pytest.raises(DataError, match=r"object ids.*1 ... n, with n from 3 to 11"):
        count_classes(masks)


@pytest.mark.parametrize("form", ["layers", "rings"])
def test_classes_in_order_that_border_on_the_next_ones_are_no_objects(form: str) -> None:
    """Horizons of a soil, of which the deepest are missing in some profiles; grades around a centre."""
    rows, cols = np.mgrid[:60, :60]
    from_centre = np.maximum(abs(rows - 30), abs(cols - 30))
    depth = rows if form == "layers" else 60 - 2 * from_centre
    masks = [np.minimum(depth // 8, last).astype(np.uint8) for last in (6, 5, 4, 3)]

    classes = mask_classes(survey_masks(masks))

    assert classes.names == tuple("0123456")


def test_the_tops_of_areas_are_counted() -> None:
    """The picture in the docstring of ``_mean_tops``: 1 has one top, and 2 has three."""
    areas = np.array(
        [
            [0, 1, 1, 0, 0, 2],
            [1, 1, 1, 0, 0, 2],
            [2, 0, 0, 0, 2, 2],
            [0, 0, 2, 0, 0, 0],
        ],
        np.uint8,
    )
    [file] = survey_masks([areas]).files
    assert file.tops == 2.0


def test_named_classes_are_no_object_ids() -> None:
    masks = [mask(0, 1), mask(0, 2), mask(0, 3)]
    names = ["soil", "oats", "rye", "pea"]
    assert classes_of(masks, names).pixels == {"soil": 72, "oats": 24, "rye": 24, "pea": 24}


def test_object_ids_beyond_the_names_are_recognised() -> None:
    masks = [mask(0, 24001, dtype="u2"), mask(0, 24002, dtype="u2")]
    with pytest.raises(DataError, match=r"24001, 24002.*0 ... 1.*object ids"):
        classes_of(masks, ["soil", "cow"])


def smoothed() -> np.ndarray:
    """A disc in white, made smaller with interpolation."""
    rows, columns = np.mgrid[:200, :200]
    disc = np.hypot(rows - 90, columns - 110) < 70
    whole = Image.fromarray(np.where(disc, 255, 0).astype(np.uint8))
    return np.asarray(whole.resize((90, 90), Image.Resampling.BILINEAR))


def test_smoothed_masks_are_recognised() -> None:
    with pytest.raises(DataError, match="grey levels.*smoothed"):
        count_classes([smoothed()])
    with pytest.raises(DataError, match="smoothed"):
        classes_of([smoothed()], ["soil", "crop"])


def test_masks_that_were_jpeg_are_recognised(tmp_path: Path) -> None:
    sharp = Image.fromarray(np.where(smoothed() > 128, 255, 0).astype(np.uint8))
    sharp.save(tmp_path / "mask.jpg")
    grey = np.asarray(Image.open(tmp_path / "mask.jpg"))
    with pytest.raises(DataError, match="smoothed"):
        count_classes([grey])


# Palettes
# ----------------------------------------------------------------------------------------------------

RED_FIRST = [255, 0, 0, 0, 0, 0, 9, 9, 9]
BLACK_FIRST = [0, 0, 0, 255, 0, 0, 9, 9, 9]
LONGER = [0, 0, 0, 255, 0, 0, 200, 100, 0]


def coloured(folder: Path, palettes: Sequence[list[int]], *values: int, suffix: str) -> list[Path]:
    files = []
    for number, palette in enumerate(palettes):
        image = Image.fromarray(mask(*values), "P")
        image.putpalette(palette)
        files.append(folder / f"{number}.{suffix}")
        image.save(files[-1])
    return files


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    "read",
    [
        pytest.param(count_classes, id="count_classes"),
        pytest.param(lambda files: DenseLabels(classes=2).indices(files, ONE_PIXEL), id="indices"),
        pytest.param(lambda files: DenseLabels().cells(files, ONE_PIXEL), id="numbers"),
        pytest.param(survey_masks, id="survey"),
    ],
)
def test_an_index_of_two_colours_is_refused(read: Any, suffix: str, tmp_path: Path) -> None:
    files = coloured(tmp_path, [RED_FIRST, BLACK_FIRST], 0, 1, suffix=suffix)
    with pytest.raises(
        DataError, match=rf"index 0 is black in .*1.{suffix} and red in .*0.{suffix}"
    ):
        read(files)


RED_AS_1 = [0, 0, 0, 255, 0, 0, 0, 255, 0]
RED_AS_2 = [0, 0, 0, 0, 255, 0, 255, 0, 0]


def in_colours(file: Path, palette: Sequence[int], *values: int) -> Path:
    image = Image.fromarray(mask(*values), "P")
    image.putpalette(palette)
    image.save(file)
    return file


@pytest.mark.parametrize("nodata", [None, 2])
def test_a_colour_under_two_indices_is_refused_unless_one_is_nodata(
    nodata: int | None, tmp_path: Path
) -> None:
    first = in_colours(tmp_path / "first.png", RED_AS_1, 0, 1)
    second = in_colours(tmp_path / "second.png", RED_AS_2, 0, 2)
    how = DenseLabels(classes=3 if nodata is None else 2, nodata=nodata)
    if nodata is not None:
        assert how.indices([first, second], ONE_PIXEL)[:, 0, ::4].tolist() == [[0, 1], [0, -1]]
        return
    with pytest.raises(DataError, match=r"red is index 2 in .*second.png and index 1 in .*first"):
        how.indices([first, second], ONE_PIXEL)


def test_a_palette_that_names_few_of_its_indices_is_read(tmp_path: Path) -> None:
    """Programs fill up palettes with black, so that classes beyond it are black as 0 is."""
    short = [0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0]
    files = [in_colours(tmp_path / f"{k}.png", short, 0, k) for k in (1, 2, 3)]
    index = DenseLabels(classes=4).indices(files, ONE_PIXEL)
    assert index[:, 0, ::4].tolist() == [[0, 1], [0, 2], [0, 3]]


def one_bit(file: Path, *values: int) -> Path:
    Image.fromarray(mask(*values) * 255).convert("1").save(file)
    return file


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_beside_a_palette_that_begins_with_white_is_refused(
    suffix: str, tmp_path: Path
) -> None:
    bits = one_bit(tmp_path / f"bits.{suffix}", 0, 1)
    inverted = in_colours(tmp_path / "palette.png", [255, 255, 255, 0, 0, 0], 0, 1)
    with pytest.raises(DataError, match=r"index 0 is white in .*palette.png and black in .*bits"):
        count_classes([bits, inverted])


def test_one_bit_beside_a_palette_that_begins_with_black_is_read(tmp_path: Path) -> None:
    bits = one_bit(tmp_path / "bits.png", 0, 1)
    palette = in_colours(tmp_path / "palette.png", [0, 0, 0, 255, 255, 255], 1, 0)
    index = DenseLabels(classes=2).indices([bits, palette], ONE_PIXEL)
    assert index[:, 0, ::4].tolist() == [[0, 1], [1, 0]]


def test_a_palette_that_begins_with_white_beside_grey_masks_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    palette = [255, 255, 255, 0, 0, 0]
    files = [in_colours(tmp_path / "white.png", palette, 0, 1)]
    files += saved(tmp_path, [mask(0, 1), mask(0, 1)])
    index = DenseLabels(classes=2).indices(files, ONE_PIXEL)
    assert index[0].unique().tolist() == [0, 1]
    [record] = caplog.records
    assert "1 mask has a palette in which 0 is white" in record.getMessage()
    assert "2 masks have 0 and 1 without a palette" in record.getMessage()
    caplog.clear()
    classes_of([*reversed(files)], ["soil", "crop"])
    assert "in which 0 is white and 1 is black, such as" in caplog.text


def test_palettes_that_all_begin_with_white_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    palette = [255, 255, 255, 0, 0, 0]
    files = [in_colours(tmp_path / f"{i}.png", palette, 0, 1) for i in range(2)]
    index = DenseLabels(classes=2).indices(files, ONE_PIXEL)
    assert index[:, 0, ::4].tolist() == [[0, 1], [0, 1]]
    [record] = caplog.records
    assert "2 masks have a palette in which 0 is white and 1 is black" in record.getMessage()
    assert "white is the first class and black the second" in record.getMessage()


def test_grey_levels_that_were_numbered_anew_are_refused(tmp_path: Path) -> None:
    """Programs that shrink PNG files write grey levels 0, 5, 7 as a palette of three."""
    shrunk = in_colours(tmp_path / "shrunk.png", [0, 0, 0, 5, 5, 5, 7, 7, 7], 0, 1, 2)
    files = [shrunk, *saved(tmp_path, [mask(0, 5), mask(5, 7)])]
    match = r"shrunk.png has a palette in which index 1 is grey 5, and .*0.png holds 5 without"
    with pytest.raises(DataError, match=match):
        classes_of(files)
    with pytest.raises(DataError, match=match):
        DenseLabels(classes=8).cells(files, ONE_PIXEL)


def test_a_palette_of_dark_greys_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = in_colours(tmp_path / "shrunk.png", [0, 0, 0, 5, 5, 5, 7, 7, 7], 0, 1, 2)
    assert len(classes_of([file]).names) == 3
    assert "index 1 is grey 5; the indices are read" in caplog.text


@pytest.mark.parametrize(
    ("palette", "others"),
    [
        pytest.param([0, 0, 0, 85, 85, 85, 170, 170, 170], (0, 2), id="greys to look at"),
        pytest.param([0, 0, 0, 1, 1, 1, 2, 2, 2], (0, 2), id="the indices"),
        pytest.param([0, 0, 0, 5, 0, 0, 7, 7, 7], (0, 5, 7), id="one is no grey"),
    ],
)
def test_a_palette_beside_grey_masks_is_read(
    palette: list[int], others: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = in_colours(tmp_path / "palette.png", palette, 0, 1, 2)
    classes = classes_of([file, *saved(tmp_path, [mask(*others)])], [*"abcdefgh"])
    assert classes.pixels["b"] > 0
    assert "palette" not in caplog.text


def test_only_indices_that_occur_need_one_colour(tmp_path: Path) -> None:
    files = coloured(tmp_path, [BLACK_FIRST, LONGER], 0, 1, suffix="png")
    assert count_classes(files) == 2


def test_an_index_without_a_label_may_have_any_colour(tmp_path: Path) -> None:
    files = coloured(tmp_path, [BLACK_FIRST, LONGER], 0, 1, 2, suffix="png")
    index = DenseLabels(classes=2, nodata=2).indices(files, ONE_PIXEL)
    assert index[:, 0, ::4].tolist() == [[0, 1, -1], [0, 1, -1]]


def test_a_grey_mask_beside_palettes_is_read(tmp_path: Path) -> None:
    files = coloured(tmp_path, [BLACK_FIRST], 0, 1, suffix="png")
    Image.fromarray(mask(1, 0)).save(tmp_path / "grey.png")
    index = DenseLabels(classes=2).indices([*files, tmp_path / "grey.png"], ONE_PIXEL)
    assert index[:, 0, ::4].tolist() == [[0, 1], [1, 0]]


# What is logged
# ----------------------------------------------------------------------------------------------------


def test_pixels_that_a_file_marks_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = write_tiff(tmp_path / "m.tif", mask(0, 1, 2), tags=nodata_tag("0"))
    DenseLabels().cells([file, file], ONE_PIXEL)
    assert "48 pixels of the labels have none, by the tag GDAL_NODATA (0)" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    caplog.clear()
    classes_of([file], ["soil", "crop", "weed"])
    assert "24 pixels of the labels have none, by the tag GDAL_NODATA (0)" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(
    "name",
    [
        "SegmentationObject/{}.png",
        "leaf_instances/{}.png",
        "masks/{}_cp_masks.png",
        "m/{}_instanceIds.png",
    ],
)
def test_masks_that_are_called_like_those_of_objects_are_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [tmp_path / name.format(i) for i in range(2)]
    files[0].parent.mkdir()
    for file in files:
        Image.fromarray(mask(0, 1, 2)).save(file)
    assert classes_of(files).names == ("0", "1", "2")
    [record] = caplog.records
    assert f"{files[0]} is called like a mask of objects" in record.getMessage()
    assert "they are read as the classes 0, 1, 2" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "values", "names"),
    [
        pytest.param("SegmentationObject/0.png", (0, 1), (), id="two classes"),
        pytest.param("SegmentationObject/0.png", (0, 1, 2), ("a", "b", "c"), id="named classes"),
        pytest.param("SegmentationClass/0.png", (0, 1, 2), (), id="classes"),
        pytest.param("object_masks/0.png", (0, 1, 2), (), id="objects, perhaps"),
    ],
)
def test_other_masks_are_not_called_like_those_of_objects(
    name: str,
    values: tuple[int, ...],
    names: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / name
    file.parent.mkdir()
    Image.fromarray(mask(*values)).save(file)
    classes_of([file, file], names)
    assert not caplog.records


# Colours of palettes
# ----------------------------------------------------------------------------------------------------


def test_a_label_without_a_palette_uses_no_colours() -> None:
    raster = LabelRaster("mask", mask(0, 1)[..., None])

    assert used_colours(raster) == UsedColours({}, frozenset())


def test_the_colours_in_use_are_those_of_indices_that_the_palette_names() -> None:
    palette = {0: (0, 0, 0), 1: (255, 0, 0), 2: (255, 0, 0), 3: (0, 0, 255)}
    raster = LabelRaster("mask", mask(0, 1, 9)[..., None], palette=palette)

    used = used_colours(raster)

    assert used == UsedColours({0: (0, 0, 0), 1: (255, 0, 0)}, frozenset({0}))
