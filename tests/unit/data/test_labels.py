"""Dense labels cover what the patches of their image show; what is unknown weighs nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import ConfigError, DataError
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.data.labels import count_classes

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
MODES: list[dict[str, Any]] = [
    {"resize": "stretch"},
    {"resize": "keep"},
    {"resize": "crop"},
    {"resize": "pad"},
    {"resize": "pad", "pad_to": "center"},
]
SHAPES = [(61, 97), (97, 53)]  # (height, width) of images, wide and tall


def takes_size(mode: dict[str, Any], size: tuple[int, int] | None) -> bool:
    """Whether SHAPES can be prepared so: without a size, ``keep`` refuses a remainder of the patch."""
    return size is not None or mode["resize"] != "keep"


def pixels(how: DenseLabels, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pixel as a cell: values (K, H, W) and whether it is labelled (H, W)."""
    values, weight = how.cells(label, Preprocessing(1))
    return values[0], weight[0] > 0


def ramp(height: int, width: int) -> np.ndarray:
    """Every pixel holds its place: x / width, y / height, and 1 where there is an image at all."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return np.stack([x / width, y / height, np.ones_like(x)], axis=-1).astype(np.float32)


def patch_sums(images: torch.Tensor, patch: int) -> torch.Tensor:
    cells = images.double().unfold(2, patch, patch).unfold(3, patch, patch)
    return cells.sum(dim=(-1, -2))


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_a_cell_covers_what_its_patch_shows(
    patch: int, mode: dict[str, Any], interpolation: str
) -> None:
    for size in ((64, 64), (45, 71), (120, 90), None):
        if not takes_size(mode, size):
            continue
        recipe = Preprocessing(patch, size=size, interpolation=interpolation, **mode, **PLAIN)  # type: ignore[arg-type]
        for shape in SHAPES:
            positions = ramp(*shape)
            shown = patch_sums(recipe(positions), patch)[0]

            values, weight = DenseLabels().cells(positions, recipe)

            assert values.shape[1:] == shown.shape, (shape, size)
            shown_pixels = shown[2]
            assert torch.allclose(weight[0].double(), shown_pixels, atol=1e-3), (shape, size)
            means = torch.where(shown_pixels > 0, shown / shown_pixels, 0.0)
            assert torch.allclose(values[0].double(), means, atol=1e-4), (shape, size)


def test_nodata_weighs_nothing_through_an_area_resize() -> None:
    stored = np.random.RandomState(0).randint(1, 200, (64, 96)).astype(np.int16)
    is_unknown = np.zeros(stored.shape, bool)
    is_unknown[:5] = True
    is_unknown[:, -9:] = True
    is_unknown[30:34, 40:70] = True
    is_unknown[32:, :32] = True  # one whole cell of 16 prepared pixels, 32 stored ones
    stored[is_unknown] = -9999
    labels = DenseLabels(scale=0.01, offset=-1.0, nodata=-9999)
    recipe = Preprocessing(16, size=(32, 48), interpolation="area")

    values, weight = labels.cells(stored, recipe)

    known_values = np.where(is_unknown, 0.0, stored * 0.01 - 1.0)
    sums = known_values.reshape(2, 32, 3, 32).sum(axis=(1, 3))
    counts = (~is_unknown).reshape(2, 32, 3, 32).sum(axis=(1, 3))
    assert counts[1, 0] == 0
    assert np.allclose(weight[0], counts / 4, atol=1e-4)
    assert np.allclose(values[0, 0], sums / np.maximum(counts, 1), atol=1e-5)


# Reading
# ----------------------------------------------------------------------------------------------------


# what a label of 16 bits is passed as
FORMS = [
    pytest.param(lambda deep, folder: folder / "d.png", id="path of a PNG"),
    pytest.param(lambda deep, folder: str(folder / "d.png"), id="name of a PNG"),
    pytest.param(lambda deep, folder: folder / "d.tif", id="path of a TIFF"),
    pytest.param(lambda deep, folder: Image.fromarray(deep), id="PIL image"),
    pytest.param(lambda deep, folder: deep, id="array"),
    pytest.param(lambda deep, folder: deep[..., None], id="array of one channel"),
    pytest.param(lambda deep, folder: deep.astype(">u2"), id="big-endian array"),
    pytest.param(lambda deep, folder: deep.astype(np.float32), id="array of floats"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_label_gives_the_same_values(
    form: Callable[[np.ndarray, Path], Any], tmp_path: Path
) -> None:
    deep = (np.arange(48).reshape(6, 8) * 1365).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    Image.fromarray(deep).save(tmp_path / "d.tif", compression="tiff_lzw")

    values, is_valid = pixels(DenseLabels(scale=1 / 65535), form(deep, tmp_path))

    expected = torch.tensor(deep.astype(np.float64) / 65535).float()[None]
    assert values.dtype == torch.float32
    assert torch.allclose(values, expected, atol=1e-7)
    assert is_valid.shape == (6, 8)
    assert is_valid.all()


def test_pixels_of_a_float_tiff_that_hold_no_number_are_unknown(tmp_path: Path) -> None:
    lowest_float32 = float(np.finfo(np.float32).min)
    lowest_float64 = float(np.finfo(np.float64).min)  # what GDAL notes; float32 holds it as -inf
    ndvi = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
    ndvi[0, 0] = np.nan
    ndvi[1, 1] = -9999.0
    ndvi[2, 2] = lowest_float32
    ndvi[3, 3] = -np.inf
    Image.fromarray(ndvi).save(tmp_path / "n.tif")
    labels = DenseLabels(nodata=(-9999, lowest_float32, lowest_float64))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, is_valid = pixels(labels, tmp_path / "n.tif")

    assert (~is_valid).nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert values[0][~is_valid].tolist() == [0, 0, 0, 0]
    assert torch.equal(values[0][is_valid], torch.from_numpy(ndvi)[is_valid])


def test_a_pixel_is_unknown_where_one_of_its_bands_is(tmp_path: Path) -> None:
    bands = np.random.RandomState(0).randint(0, 255, (6, 8, 3), np.uint8)
    nodata = bands[0, 0, 1].item()
    Image.fromarray(bands).save(tmp_path / "b.png")

    values, is_valid = pixels(DenseLabels(offset=-1, nodata=nodata), tmp_path / "b.png")

    expected_valid = torch.from_numpy((bands != nodata).all(axis=2))
    shifted = torch.from_numpy(bands).permute(2, 0, 1).float() - 1
    assert torch.equal(is_valid, expected_valid)
    assert torch.equal(values, torch.where(expected_valid, shifted, 0))


# Classes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (120, 90), None])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_every_prepared_pixel_takes_the_class_under_its_centre(
    mode: dict[str, Any], size: tuple[int, int] | None, height: int, width: int
) -> None:
    if not takes_size(mode, size):
        pytest.skip("a remainder is refused")
    recipe = Preprocessing(16, size=size, **mode, **PLAIN)  # type: ignore[arg-type]
    shown = recipe(ramp(height, width))[0]
    is_padding = shown[2] < 1e-6
    is_image = shown[2] > 0.999
    # resampling bends the image's ramp at its borders
    is_inner = torch.zeros_like(is_image)
    is_inner[4:-4, 4:-4] = is_image[4:-4, 4:-4]
    is_inner[:-4, :-4] &= is_image[4:, 4:]
    is_inner[4:, 4:] &= is_image[:-4, :-4]
    columns = np.tile(np.arange(width), (height, 1))
    lines = np.tile(np.arange(height)[:, None], (1, width))

    column_of_pixel = DenseLabels(classes=width).indices(columns, recipe)
    line_of_pixel = DenseLabels(classes=height).indices(lines, recipe)

    assert is_inner.sum() > 100
    for indices, position in (
        (column_of_pixel, shown[0] * width),
        (line_of_pixel, shown[1] * height),
    ):
        assert indices.dtype == torch.int64
        assert indices.shape == (1, *shown.shape[1:])
        distances = (position - (indices[0] + 0.5)).abs()
        assert distances[is_inner].max() < 0.55
        assert (indices[0][is_padding] == -1).all()
        assert (indices[0][is_image] >= 0).all()


class ClassMask(NamedTuple):
    """A mask of classes 0 to 2 with a pixel of 9, no data; as pixels, as a palette file, and as indices."""

    pixels: np.ndarray
    palette: Path
    indices: torch.Tensor


@pytest.fixture
def class_mask(tmp_path: Path) -> ClassMask:
    mask = np.random.RandomState(0).randint(0, 3, (32, 48), np.uint8)
    mask[3, 5] = 9
    palette = Image.frombytes("P", (48, 32), mask.tobytes())
    palette.putpalette([200, 0, 0] * 3 + [7] * 21)
    palette.save(tmp_path / "p.png")
    indices = torch.from_numpy(mask.astype(np.int64))
    indices[3, 5] = -1
    return ClassMask(pixels=mask, palette=tmp_path / "p.png", indices=indices)


CLASSES = DenseLabels(classes=3, nodata=9)


def test_a_pixel_without_data_has_the_index_minus_one(class_mask: ClassMask) -> None:
    indices = CLASSES.indices(class_mask.pixels, Preprocessing(16))

    assert torch.equal(indices[0], class_mask.indices)


def test_a_palette_counts_by_its_indices_and_not_by_its_colours(class_mask: ClassMask) -> None:
    indices = CLASSES.indices([class_mask.pixels, class_mask.palette], Preprocessing(16))

    assert torch.equal(indices, class_mask.indices.expand(2, -1, -1))


def test_cells_of_classes_are_one_where_the_class_is(class_mask: ClassMask) -> None:
    values, is_valid = pixels(CLASSES, class_mask.palette)

    is_class = [class_mask.indices == index for index in range(3)]
    assert torch.equal(is_valid, class_mask.indices >= 0)
    assert torch.equal(values, torch.stack(is_class).float())


def test_indices_of_twice_the_size_are_repeated(class_mask: ClassMask) -> None:
    indices = CLASSES.indices(class_mask.pixels, Preprocessing(16, size=(64, 96)))

    rows_repeated = class_mask.indices.repeat_interleave(2, dim=0)
    assert torch.equal(indices[0], rows_repeated.repeat_interleave(2, dim=1))


def test_indices_of_a_third_of_the_size_are_those_of_the_middle(class_mask: ClassMask) -> None:
    enlarged = np.kron(class_mask.pixels, np.ones((3, 3), np.uint8))

    indices = CLASSES.indices(enlarged, Preprocessing(16, size=(32, 48)))

    assert torch.equal(indices[0], class_mask.indices)


def test_labels_of_bicubic_images_never_shoot_over() -> None:
    """A share above 1 or below 0 is wrong: labels are resized bilinearly."""
    step = np.zeros((32, 32), np.float32)
    step[:, 16:] = 1.0
    recipe = Preprocessing(1, size=(96, 96), interpolation="bicubic", **PLAIN)

    values, _ = DenseLabels().cells(step, recipe)

    assert (values.min(), values.max()) == (0.0, 1.0)
    bilinear, _ = DenseLabels().cells(step, recipe.changed(interpolation="bilinear"))
    assert torch.equal(values, bilinear)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        pytest.param([0, 255], r"class_values=\(0, 255\)", id="two classes"),
        pytest.param([0, 1, 255], "nodata=255", id="unlabelled"),
    ],
)
def test_counting_refuses_255_whose_meaning_a_single_label_does_not_tell(
    values: list[int], remedy: str
) -> None:
    with pytest.raises(DataError, match=remedy):
        count_classes([np.array([values], np.uint8)])


def test_classes_are_counted_to_the_largest_index() -> None:
    masks = [np.array([[0, 1, 9]], np.uint8), np.array([[4, 0, 0]], np.uint8)]

    assert count_classes(masks, nodata=9) == 5


def test_stored_numbers_are_in_target_units_at_their_own_size() -> None:
    stored = np.array([[1.0, -9.0], [3.0, 4.0]], np.float32)

    numbers = DenseLabels(scale=2.0, offset=1.0, nodata=-9).stored_numbers(stored)

    assert numbers.shape == (2, 2, 1)
    assert np.array_equal(numbers[..., 0], [[3.0, np.nan], [7.0, 9.0]], equal_nan=True)


# Colours
# ----------------------------------------------------------------------------------------------------

GREEN = (0, 128, 0)
RED = (255, 0, 0)
BLACK = (0, 0, 0)
COLOURS = np.array([BLACK, GREEN, RED], np.uint8)


def test_colours_are_the_classes_in_their_order() -> None:
    picture = COLOURS[np.array([[0, 1], [2, 1]])]

    indices = DenseLabels(class_colors=[RED, GREEN], nodata=0).indices(picture, Preprocessing(1))

    assert indices[0].tolist() == [[-1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"class_colors": [RED, RED]}, "255,0,0 twice", id="twice"),
        pytest.param({"class_colors": [(1, 2, 256)]}, "256", id="beyond 8 bits"),
        pytest.param({"class_colors": [RED], "classes": 2}, "classes is 2", id="number"),
        pytest.param({"class_colors": [RED], "class_values": [1]}, "both given", id="values too"),
        pytest.param({"class_colors": [BLACK], "nodata": 0}, "grey level 0", id="nodata too"),
    ],
)
def test_colours_that_contradict_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DenseLabels(**options)
