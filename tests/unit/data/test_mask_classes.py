"""Which classes the values and colours of a set of masks are, and what certainly is no class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.data.labels import ClassLabels, read_class_cells
from dinoneck.data.masks import ClassOptions, MaskClasses, mask_classes, survey_masks
from dinoneck.errors import DataError

GREEN = (0, 128, 0)
RED = (255, 0, 0)
BLACK = (0, 0, 0)
COLOURS = ClassOptions(names=("soil", "crop"), colours=(BLACK, GREEN))


def row(*values: int, dtype: str = "u1") -> np.ndarray:
    """A mask of one row."""
    return np.array([values], dtype)


def classes_of(*masks: Any, **stated: Any) -> MaskClasses:
    options = ClassOptions(**stated)
    return mask_classes(survey_masks(list(masks), options), options)


def palette_file(path: Path, values: np.ndarray, colours: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(values, "P")
    image.putpalette([level for colour in colours for level in colour])
    image.save(path)
    return path


# Values
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "stated", "names", "stored", "unlabelled"),
    [
        pytest.param([row(0, 2)], {}, ("0", "1", "2"), None, (), id="indices"),
        pytest.param([row(0), row(1)], {"names": "abc"}, ("a", "b", "c"), None, (), id="names"),
        pytest.param([row(0, 255)], {}, ("0", "255"), (0, 255), (), id="0 and 255"),
        pytest.param([row(0, 255)], {"names": "ab"}, ("a", "b"), (0, 255), (), id="0, 255 named"),
        pytest.param(
            [row(0, 65535, dtype="u2")], {}, ("0", "65535"), (0, 65535), (), id="0 and 65535"
        ),
        pytest.param([row(0, 255), row(1)], {}, ("0", "1"), None, (255,), id="255 of another mask"),
        pytest.param(
            [row(0, 1, 255)], {"names": "ab"}, ("a", "b"), None, (255,), id="beside names"
        ),
        pytest.param(
            [row(0, 255)], {"names": "abc"}, ("a", "b", "c"), None, (255,), id="three names"
        ),
        pytest.param([row(0, 254, 255)], {}, tuple(map(str, range(255))), None, (255,), id="254"),
        pytest.param(
            [row(3, 1, 255)], {"values": (1, 3)}, ("1", "3"), (1, 3), (255,), id="beside values"
        ),
        pytest.param([row(1, 255)], {"values": (1, 255)}, ("1", "255"), (1, 255), (), id="a value"),
        pytest.param(
            [row(0, 255)],
            {"names": tuple(map(str, range(256)))},
            tuple(map(str, range(256))),
            None,
            (),
            id="256 names",
        ),
        pytest.param(
            [row(1, 255, dtype="u2")], {}, tuple(map(str, range(256))), None, (), id="16 bits"
        ),
    ],
)
def test_classes_are_decided_over_all_masks(
    masks: list[np.ndarray],
    stated: dict[str, Any],
    names: tuple[str, ...],
    stored: tuple[int, ...] | None,
    unlabelled: tuple[int, ...],
) -> None:
    classes = classes_of(*masks, **stated)

    assert (classes.names, classes.stored) == (names, stored)
    assert classes.unlabelled_values == unlabelled


def test_pixels_of_classes_and_without_a_label_are_counted() -> None:
    masked = np.ma.masked_equal(row(0, 0, 1, 7), 7)

    classes = classes_of(masked, row(255, 255, 1), row(9), names=("a", "b", "c"), nodata=(9,))

    assert classes.pixels == {"a": 2, "b": 2, "c": 0}
    assert classes.unlabelled == 1 + 2 + 1


@pytest.mark.parametrize(
    ("masks", "stated", "named"),
    [
        pytest.param([row(0, 5, 5)], {"names": "ab"}, "holds 5 in 2 pixels", id="beyond the names"),
        pytest.param([row(0, 5)], {"values": (0, 1)}, "holds 5 in 1 pixel", id="no class value"),
        pytest.param([row(-1, 1, dtype="i2")], {}, "-1, 1", id="negative"),
        pytest.param([row(0, 3000, dtype="u2")], {}, "3000.*--class-values", id="beyond 255"),
        pytest.param([np.array([[0.5]])], {}, "0.5.*--label-kind numbers", id="fraction"),
        pytest.param([row(9)], {"nodata": (9,)}, "all pixels", id="all nodata"),
        pytest.param([row(255)], {}, "255 alone", id="all 255"),
        pytest.param([row(1)], {"names": "ab", "values": (1,)}, "2 class names", id="names"),
        pytest.param(
            [np.array([[RED, GREEN]], np.uint8)], {}, "colours.*--class-colors", id="colours"
        ),
    ],
)
def test_values_that_are_no_class_are_refused(
    masks: list[Any], stated: dict[str, Any], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        classes_of(*masks, **stated)


def test_a_mask_with_a_value_outside_the_classes_is_named(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(row(number)).save(tmp_path / f"{number}.png")

    with pytest.raises(DataError, match=r"2\.png holds 2"):
        classes_of(*sorted(tmp_path.iterdir()), names="ab")


def test_a_grey_mask_saved_in_colours_is_read_by_its_levels(tmp_path: Path) -> None:
    Image.fromarray(row(0, 1, 2)).convert("RGB").save(tmp_path / "a.png")

    assert classes_of(tmp_path / "a.png").pixels == {"0": 1, "1": 1, "2": 1}


# Palettes
# ----------------------------------------------------------------------------------------------------


def test_an_index_with_two_colours_is_refused(tmp_path: Path) -> None:
    first = palette_file(tmp_path / "1.png", row(0, 1), [BLACK, GREEN])
    second = palette_file(tmp_path / "2.png", row(0, 1), [BLACK, RED])

    with pytest.raises(
        DataError, match=r"index 1 is RGB 255,0,0 in .*2\.png and 0,128,0 in .*1\.png"
    ):
        classes_of(first, second)


def test_colours_of_indices_without_a_pixel_or_label_may_differ(tmp_path: Path) -> None:
    first = palette_file(tmp_path / "1.png", row(0, 1, 2), [BLACK, GREEN, RED])
    second = palette_file(tmp_path / "2.png", row(0, 2, 2), [BLACK, RED, GREEN])

    assert classes_of(first, second, nodata=(2,)).names == ("0", "1")


def test_transparent_pixels_of_a_mask_have_no_label(tmp_path: Path) -> None:
    """Of a palette with transparency, and of grey with alpha."""
    palette = Image.fromarray(row(0, 1, 1), "P")
    palette.putpalette([*BLACK, *GREEN])
    palette.save(tmp_path / "1.png", transparency=0)
    grey = np.stack([row(0, 1, 1), row(255, 255, 0)], axis=-1)
    Image.fromarray(grey, "LA").save(tmp_path / "2.png")

    classes = classes_of(tmp_path / "2.png")

    assert classes.pixels == {"0": 1, "1": 1}
    assert classes.unlabelled == 1
    assert classes_of(tmp_path / "1.png").pixels["1"] == 2


# Colours
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["RGB", "palette", "grey"])
def test_colours_are_read_from_every_form_of_a_picture(form: str, tmp_path: Path) -> None:
    index = row(1, 0, 1)
    white = (255, 255, 255)
    path = tmp_path / "a.png"
    if form == "palette":
        palette_file(path, index, [BLACK, white])
    else:
        Image.fromarray(index * 255).convert("L" if form == "grey" else "RGB").save(path)
    options = ClassOptions(colours=(white, BLACK))

    classes = mask_classes(survey_masks([path], options), options)

    assert classes.names == ("255,255,255", "0,0,0")
    assert classes.unlabelled_values == ()
    assert ClassLabels(classes.coding).stored_indices(path).tolist() == [[0, 1, 0]]


def test_a_colour_without_a_class_is_refused_with_file_colour_and_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[GREEN, RED, RED]], np.uint8)).save(tmp_path / "7.png")

    with pytest.raises(DataError, match=r"7\.png has the colour 255,0,0 in 2 pixels"):
        mask_classes(survey_masks([tmp_path / "7.png"], COLOURS), COLOURS)


def test_nodata_of_masks_of_colours_is_a_grey_level() -> None:
    picture = np.array([[BLACK, GREEN, RED]], np.uint8)

    classes = classes_of(picture, colours=(GREEN, RED), nodata=(0,))

    assert (classes.unlabelled, classes.pixels) == (1, {"0,128,0": 1, "255,0,0": 1})


# Cells
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(
    ("values", "stated"),
    [
        pytest.param((0, 1, 2, 255), {}, id="255 unlabelled"),
        pytest.param((0, 255), {}, id="two classes"),
        pytest.param((1, 3, 9), {"values": (3, 1), "nodata": (9,)}, id="class values"),
    ],
)
def test_cells_of_one_reading_are_those_of_the_decided_classes(
    resize: Any, values: tuple[int, ...], stated: dict[str, Any]
) -> None:
    recipe = Preprocessing(8, size=(24, 32), resize=resize)
    masks = list(np.random.RandomState(0).choice(values, (3, 40, 52)).astype(np.uint8))

    cells = read_class_cells(masks, recipe, ClassOptions(**stated))

    reader = ClassLabels(cells.classes.coding)
    for mask, shares, weight in zip(masks, cells.values, cells.weight, strict=True):
        index = reader.stored_indices(mask)
        for k, share in enumerate(shares):
            hits = np.where(index >= 0, index == k, np.nan).astype(np.float32)
            expected_share, expected_weight = DenseLabels().cells(hits, recipe)
            assert torch.allclose(share, expected_share[0, 0], atol=1e-5)
            assert torch.allclose(weight, expected_weight[0])
