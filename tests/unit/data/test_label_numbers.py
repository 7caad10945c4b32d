"""Values of number labels that may mark pixels without a label are named, and quantities are not."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import DataError
from dinoneck.data import DenseLabels, Preprocessing

ONE_PIXEL = Preprocessing(1)
LOWEST = float(np.finfo(np.float32).min)


def spread(low: float, high: float, dtype: str) -> np.ndarray:
    """Numbers (64, 64) from low to high, equally spaced and mixed."""
    steps = np.linspace(low, high, 64 * 64)
    return np.random.RandomState(0).permutation(steps).astype(dtype).reshape(64, 64)


def marked(numbers: np.ndarray, *values: float) -> np.ndarray:
    """The numbers with each value in 4 of 64 rows."""
    label = numbers.copy()
    for number, value in enumerate(values):
        label[4 * number : 4 * number + 4] = value
    return label


def warnings_of(labels: object, caplog: pytest.LogCaptureFixture, **options: object) -> list[str]:
    DenseLabels(**options).cells(labels, ONE_PIXEL)  # type: ignore[arg-type]
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        pytest.param(-2147483648, spread(0, 5000, "i4"), id="the lowest int32"),
        pytest.param(2147483647, spread(0, 5000, "i4"), id="the largest int32"),
        pytest.param(-32768, spread(-5000, 20000, "i2"), id="the lowest int16"),
        pytest.param(-128, spread(-50, 100, "i1"), id="the lowest int8"),
        pytest.param(65535, spread(0, 40000, "u2"), id="the largest uint16"),
        pytest.param(65534, spread(0, 20000, "u2"), id="the second largest uint16"),
        pytest.param(255, spread(0, 180, "u1"), id="the largest uint8, near"),
        pytest.param(LOWEST, spread(0, 1, "f4"), id="the lowest float32"),
        pytest.param(LOWEST, spread(0, 1, "f8"), id="the lowest float32 among float64"),
        pytest.param(-9999, spread(-2000, 30000, "f4"), id="-9999 in a wide range"),
        pytest.param(-9999, spread(0, 1, "f2"), id="-9999 as a half float"),
        pytest.param(-3000, spread(-1500, 9800, "i2"), id="-3000 of MODIS"),
        pytest.param(-28672, spread(0, 16000, "i2"), id="-28672 of MODIS"),
        pytest.param(-99, spread(0, 10, "f4"), id="-99"),
        pytest.param(-1, spread(500, 4500, "f4"), id="the only negative number"),
        pytest.param(float(np.float32(1e30)), spread(0, 1, "f4"), id="1e30"),
        pytest.param(7777, spread(0, 100, "f4"), id="any number that is far and repeats"),
        pytest.param(254, spread(0, 200, "u1"), id="the second largest uint8"),
        pytest.param(253, spread(0, 200, "u1"), id="the third largest uint8"),
    ],
)
def test_a_value_apart_from_all_others_is_named_with_its_share_and_the_remedy(
    value: float, numbers: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    label = marked(numbers, value)
    exact = float(label[0, 0])
    [warning] = warnings_of(label, caplog)
    shown = warning.split("(--nodata ")[1].rstrip(")")
    assert "256 pixels of the labels (6.2%) hold " in warning
    assert float(shown) == exact
    caplog.clear()
    assert not warnings_of(label, caplog, nodata=float(shown))


@pytest.mark.parametrize(
    ("value", "others"),
    [
        (-9999, (0.0, 0.25, 1.0)),
        (-9999, (0, 3000, 10000)),
        (-32768, (0, 100, 9000)),
        (255, (0, 50, 100)),
        (65535, (0, 5000, 20000)),
    ],
)
def test_a_usual_value_far_from_few_others_is_named(
    value: float, others: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    label = np.array([[value, value, *others]], np.float32)
    [warning] = warnings_of(label, caplog)
    assert warning.startswith(f"2 pixels of the labels (40.0%) hold {value}, all others")


def test_all_fill_values_of_a_product_are_named_in_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    label = marked(spread(0, 100, "u1"), 249, 251, 255)
    [warning] = warnings_of(label, caplog)
    assert "768 pixels of the labels (18.8%) hold 249, 251, 255, all others 0 ... 100" in warning
    assert warning.endswith("nodata=(249, 251, 255) (--nodata 249 251 255)")


def test_a_lone_block_below_255_is_named(caplog: pytest.LogCaptureFixture) -> None:
    label = marked(spread(0, 200, "u1"), 253, 254)
    [warning] = warnings_of(label, caplog)
    assert "512 pixels of the labels (12.5%) hold 253, 254, all others 0 ... 200" in warning
    assert warning.endswith(
        "If they mark pixels without a label, pass nodata=(253, 254) (--nodata 253 254)"
    )


def test_values_at_both_ends_are_named(caplog: pytest.LogCaptureFixture) -> None:
    label = marked(spread(0, 1, "f4"), -9999, float(np.float32(1e30)))
    [warning] = warnings_of(label, caplog)
    assert "(--nodata -9999 1.0000000150474662e+30)" in warning


@pytest.mark.parametrize("mark", [99999, 1e20])
def test_quantities_that_are_clipped_at_both_ends_are_no_part_of_a_mark(
    mark: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The ends repeat, and lie far below the mark."""
    label = marked(spread(-20, 120, "f4").clip(0, 100), mark)
    [warning] = warnings_of(label, caplog)
    assert "256 pixels of the labels (6.2%) hold " in warning
    assert "all others 0 ... 100" in warning


def test_a_zero_apart_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    label = marked(spread(28000, 31000, "u2"), 0)
    [warning] = warnings_of(label, caplog)
    assert "hold 0, all others 28000 ... 31000" in warning
    assert "(--nodata 0)" in warning


def test_values_of_several_files_are_counted_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(marked(spread(10, 150, "u1"), 255)).save(files[-1])
    [warning] = warnings_of(files, caplog)
    assert warning.startswith("768 pixels of the labels (6.2%) hold 255, all others 10 ... 150")


def test_nodata_that_is_passed_stays_in_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    label = marked(spread(0, 100, "u1"), 200, 255)
    [warning] = warnings_of(label, caplog, nodata=200)
    assert warning.endswith("pass nodata=(200, 255) (--nodata 200 255)")


def test_nodata_in_converted_numbers_is_named(caplog: pytest.LogCaptureFixture) -> None:
    label = np.array([[-3000, -3000, 1000, 9000]], np.int16)
    warnings = warnings_of(label, caplog, scale=0.0001, nodata=-0.3)
    assert "no label holds the nodata value -0.3, and 2 pixels hold -3000" in warnings[0]
    assert "pass nodata=-3000 (--nodata -3000)" in warnings[0]
    caplog.clear()
    assert not warnings_of(label, caplog, scale=0.0001, nodata=-3000)


def test_nodata_that_no_pixel_has_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(spread(0, 100, "u1"), caplog, scale=0.5, nodata=255)


def test_the_band_of_a_value_is_named(caplog: pytest.LogCaptureFixture) -> None:
    label = np.dstack([spread(0, 1, "f4"), marked(spread(0, 500, "f4"), -9999)])
    [warning] = warnings_of(label, caplog)
    assert "(6.2%) in band 1 hold -9999, all others 0 ... 500" in warning


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(np.array([[0, 120, 254, 255]], "f4"), id="all of 8 bits"),
        pytest.param(np.array([[0, 255]], "f4"), id="two values"),
        pytest.param(np.array([[-9999, -9998, 3]], "f4"), id="near others"),
        pytest.param(np.array([[255]], "f4"), id="one value"),
        pytest.param(np.zeros((4, 4), "f4"), id="all equal"),
        pytest.param(np.clip(spread(0, 300, "i4"), 0, 255).astype("u1"), id="saturated"),
        pytest.param(marked(spread(-3, 30, "i2"), -1), id="-1 among negative numbers"),
        pytest.param(np.array([[0, 0, 1, 2, 2, 40]] * 9, "u1"), id="counts, of which one is large"),
        pytest.param(np.array([[*range(50), 127]], "u1"), id="one pixel that is large"),
    ],
)
def test_quantities_are_not_named(label: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(label, caplog)


# Zero
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(spread(500, 4500, "u2"), id="millimetres"),
        pytest.param(spread(0.3, 10, "f4"), id="metres"),
        pytest.param(spread(30, 250, "u1"), id="8 bits"),
    ],
)
def test_zeros_far_below_all_distances_are_named(
    numbers: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    label = marked(numbers, 0)
    [warning] = warnings_of(label, caplog)
    assert warning.startswith("256 pixels of the labels (6.2%) hold 0, all others ")
    assert warning.endswith("pass nodata=0 (--nodata 0)")
    caplog.clear()
    assert not warnings_of(label, caplog, nodata=0)


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(marked(spread(0, 1, "f4"), 0), id="shares"),
        pytest.param(marked(spread(0, 1, "f4") ** 3, 0), id="shares that are mostly small"),
        pytest.param(marked(spread(1, 100, "u1"), 0), id="percent"),
        pytest.param(marked(spread(1, 2000, "u2"), 0), id="16 bits"),
        pytest.param(marked(spread(-1, 1, "f4"), 0), id="an index with negative numbers"),
        pytest.param(np.array([[0, 5, 10, 15, 20]] * 9, "u1"), id="a few steps"),
        pytest.param(np.array([[0.0, 0.5, 1.0]] * 9), id="halves"),
    ],
)
def test_zeros_that_are_quantities_are_not_named(
    label: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    assert not warnings_of(label, caplog)


# What labels say of themselves
# ----------------------------------------------------------------------------------------------------


def test_numbers_of_two_kinds_are_named(caplog: pytest.LogCaptureFixture) -> None:
    shares = np.array([[0.0, 0.5, 1.0]], np.float32)
    percent = np.array([[0, 50, 100]], np.uint8)
    DenseLabels().cells([shares, percent], ONE_PIXEL)
    assert "float32 (label 0" in caplog.text
    assert "uint8 (label 1" in caplog.text


# Numbers beyond float32
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8", "f8"])
def test_whole_numbers_that_float32_rounds_are_named(
    dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    dates = np.array([[20260101, 20260102, 20260104]], dtype)
    [warning] = warnings_of(dates, caplog)
    assert warning.startswith("1 pixel of the labels hold whole numbers that float32 rounds")
    assert "20260101 as 20260100" in warning
    caplog.clear()
    assert not warnings_of(dates, caplog, offset=-20260000.0)
    values, _ = DenseLabels(offset=-20260000.0).cells(dates, ONE_PIXEL)
    assert values.flatten().tolist() == [101, 102, 104]


def test_floats_that_differ_by_little_more_than_float32_rounds_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    northing = spread(5_000_000.0, 5_000_010.0, "f8")
    [warning] = warnings_of(northing, caplog)
    assert "differ by little more than float32 rounds them" in warning
    caplog.clear()
    assert not warnings_of(northing, caplog, offset=-5e6)


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(spread(0, 1 << 24, "i4"), id="whole numbers up to 2 ** 24"),
        pytest.param(spread(0, 3000, "f8"), id="heights"),
        pytest.param(np.array([[1 << 25, 3_000_000_000 // 256 * 256]], "u4"), id="exact ones"),
    ],
)
def test_numbers_that_float32_holds_are_not_named(
    label: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    assert not warnings_of(label, caplog)


def test_a_usual_value_beyond_float32_is_compared_without_a_warning_of_numpy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    label = marked(spread(0, 1, "f8"), -9999)
    label[40] = 1e39
    with pytest.raises(DataError, match=r"infinite or beyond 3.4e\+38"):
        DenseLabels().cells(label, ONE_PIXEL)
    warnings_of(label, caplog, nodata=[-9999.0, float("inf")])


# Grey pictures in colours
# ----------------------------------------------------------------------------------------------------


def in_colours(*greys: int) -> Image.Image:
    return Image.fromarray(np.array([greys], np.uint8)).convert("RGB")


def test_grey_pictures_in_colours_are_one_band_which_is_stated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values, _ = DenseLabels().cells([in_colours(1, 5), in_colours(2, 7)], ONE_PIXEL)
    assert values.tolist() == [[[[1, 5]]], [[[2, 7]]]]
    assert "2 labels of grey pictures that were saved in colours" in caplog.text


def test_the_bands_of_grey_pictures_may_be_stated(caplog: pytest.LogCaptureFixture) -> None:
    values, _ = DenseLabels().cells(in_colours(1, 5), ONE_PIXEL, bands=3)
    assert values.tolist() == [[[[1, 5]]] * 3]
    assert not caplog.text


def test_another_number_of_bands_is_refused() -> None:
    coloured = Image.fromarray(np.array([[[1, 2, 3]]], np.uint8))
    with pytest.raises(DataError, match="label 0 .* bands that differ, and bands is 1"):
        DenseLabels().cells([coloured], ONE_PIXEL, bands=1)
    with pytest.raises(DataError, match="label 0 has 1 band, and bands is 3"):
        DenseLabels().cells(np.zeros((2, 2), np.uint8), ONE_PIXEL, bands=3)


# Numbers that were stored otherwise
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        pytest.param(
            spread(-50, 3000, "i2").view("u2"), "negative numbers.*view.np.int16", id="negative"
        ),
        pytest.param(
            spread(0, 40000, "u2").view("i2"), "above 32767.*view.np.uint16", id="above 32767"
        ),
        pytest.param(spread(0, 100, "u2") * 256, "high byte.*by 256", id="high byte"),
        pytest.param(spread(0, 100, "u2").byteswap(), "other byte order", id="swapped"),
        pytest.param(spread(0, 255, "u2") * 257, "stretched to 16.*by 257", id="stretched"),
    ],
)
def test_numbers_that_were_stored_otherwise_are_named(
    numbers: np.ndarray, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    [warning] = warnings_of(numbers, caplog)
    assert re.search(
        f"1 label, such as label 0 .an array.: the numbers seem to be .*{named}", warning
    )


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(spread(0, 65535, "u2"), id="the whole range"),
        pytest.param(spread(-30000, 30000, "i2"), id="both signs"),
        pytest.param(spread(-32768, 20000, "i2"), id="to the lowest"),
        pytest.param(spread(0, 300, "u2") * 100, id="steps of 100"),
    ],
)
def test_numbers_of_16_bits_are_not_named(
    numbers: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    assert not warnings_of(numbers, caplog)


# Palettes
# ----------------------------------------------------------------------------------------------------


def with_palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(np.arange(len(colours), dtype=np.uint8)[None]).convert("P")
    image.putpalette([part for colour in colours for part in colour])
    return image


def test_a_palette_of_other_numbers_is_named_and_its_indices_are_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    label = with_palette((0, 0, 0), (5, 5, 5), (0, 90, 10))
    values, _ = DenseLabels().cells(label, ONE_PIXEL)
    assert values.flatten().tolist() == [0, 1, 2]
    assert "1 label with a palette, such as label 0 (a PIL image)" in caplog.text


def test_a_palette_of_the_same_numbers_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of(with_palette((0, 0, 0), (1, 1, 1), (2, 2, 2)), caplog)


# Tensors and modes that are no numbers as they are
# ----------------------------------------------------------------------------------------------------

HALVES = torch.tensor([[0.0, 0.5, 2.0]])


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(HALVES.to(torch.float8_e5m2), id="8-bit floats"),
        pytest.param(HALVES.bfloat16(), id="bfloat16"),
        pytest.param(HALVES.to_sparse(), id="sparse"),
        pytest.param(HALVES.clone().requires_grad_(), id="with a gradient"),
    ],
)
def test_tensors_are_read_by_their_values(label: torch.Tensor) -> None:
    values, _ = DenseLabels().cells(label, ONE_PIXEL)
    assert values.flatten().tolist() == [0.0, 0.5, 2.0]


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "YCbCr", "LAB", "HSV"])
def test_modes_whose_bands_are_no_numbers_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode '{mode}', whose bands are no numbers"):
        DenseLabels().cells(Image.new(mode, (4, 4)), ONE_PIXEL)


# Two units in one set


@pytest.mark.parametrize(
    ("first", "second", "factor"),
    [
        pytest.param(spread(0, 0.9, "f4"), spread(0, 90, "f4"), 100, id="shares and percent"),
        pytest.param(spread(500, 9000, "u2"), spread(50, 900, "u2"), 10, id="mm and cm"),
        pytest.param(spread(500, 9000, "f4"), spread(0.5, 9, "f4"), 1000, id="mm and m"),
        pytest.param(spread(0, 1, "f4"), spread(0, 255, "f4"), 255, id="shares and grey levels"),
    ],
)
def test_labels_of_two_units_are_named_with_a_label_of_each(
    first: np.ndarray, second: np.ndarray, factor: int, caplog: pytest.LogCaptureFixture
) -> None:
    messages = warnings_of([first, second] * 3, caplog)

    [message] = [message for message in messages if "two groups" in message]
    assert f"a factor of about {factor}: 3 have numbers up to about" in message
    assert "such as label 0" in message
    assert "such as label 1" in message


@pytest.mark.parametrize(
    "tops",
    [
        pytest.param([0, 0, 0, 90, 80, 95], id="empty labels"),
        pytest.param([3, 9, 90, 80, 95, 70], id="few low labels"),
        pytest.param([2, 9, 30, 70, 80, 95], id="low and high labels"),
        pytest.param([5, 6, 7, 20, 60, 100], id="labels between the groups"),
        pytest.param([1, 1, 1, 30, 30, 30], id="no power of ten"),
        pytest.param([0.9, 0.9, 90, 90], id="two of each"),
    ],
)
def test_labels_of_one_unit_are_not_named(
    tops: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    labels = [spread(0, top, "f4") for top in tops]

    assert not [message for message in warnings_of(labels, caplog) if "two groups" in message]
