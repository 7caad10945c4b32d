"""A value that some files mark as unlabelled, and others hold unmarked, is named with a file of each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.data.tiff_files import nodata_tag, write_tiff

from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.data.label_sets import survey_masks

ONE_PIXEL = Preprocessing(1)
LOWEST = float(np.finfo(np.float32).min)


def numbers(low: float, high: float, dtype: str, mark: float | None = None) -> np.ndarray:
    """Numbers (32, 32) from low to high, mixed; 8 rows hold the mark."""
    steps = np.linspace(low, high, 32 * 32)
    values = np.random.RandomState(0).permutation(steps).astype(dtype).reshape(32, 32)
    if mark is not None:
        values[:8] = mark
    return values


def half_tagged(folder: Path, values: Any, text: str) -> list[Path]:
    """Four TIFF files of the same values; GDAL's tag is in the second and in the last."""
    files = []
    for number in range(4):
        tags = nodata_tag(text) if number % 2 else None
        files.append(write_tiff(folder / f"{number}.tif", values, tags=tags))
    return files


def warnings_of_marks(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "do not mark it" in message]


@pytest.mark.parametrize(
    ("values", "text", "option"),
    [
        pytest.param(numbers(1, 100, "u1", 0), "0", "0", id="0 in bytes"),
        pytest.param(numbers(0.01, 1, "f4", 0), "0", "0", id="0 in floats"),
        pytest.param(numbers(-5, 5, "f4", -0.5), "-0.5", "-0.5", id="any number, tagged before"),
        pytest.param(numbers(0, 5, "f4", -77), "-77", "-77", id="the lowest number"),
        pytest.param(numbers(0, 5, "i2", 33), "33", "33", id="the largest number"),
        pytest.param(numbers(1, 90, "u2", 65535), "65535", "65535", id="the end of uint16"),
        pytest.param(
            numbers(0, 1, "f4", LOWEST), f"{LOWEST}", f"{LOWEST:.12g}", id="the lowest float"
        ),
    ],
)
def test_a_number_that_half_of_the_files_mark_is_named_with_a_file_of_each(
    values: np.ndarray, text: str, option: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = half_tagged(tmp_path, values, text)
    files.append(write_tiff(tmp_path / "4.tif", values))

    _, weight = DenseLabels().cells(files, ONE_PIXEL)

    assert (weight[1] == 0).sum() == (weight[3] == 0).sum() == 8 * 32
    assert weight[[0, 2, 4]].all()
    [message] = warnings_of_marks(caplog)
    assert message.startswith(f"2 of 5 labels mark {option} as unlabelled (the tag GDAL_NODATA of ")
    assert f"{files[1]})" in message
    assert f"nodata={option} (--nodata {option})" in message
    holders = "2" if option == "-0.5" else "3"
    assert f"and {holders} that do not mark it" in message


def test_a_full_range_of_which_half_of_the_files_mark_the_end_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = half_tagged(tmp_path, numbers(0, 255, "u1"), "255")

    DenseLabels().cells(files, ONE_PIXEL)

    assert "hold it in 2 pixels" in warnings_of_marks(caplog)[0]
    assert str(files[0]) in warnings_of_marks(caplog)[0]


@pytest.mark.parametrize("read", ["survey", "cells", "indices"])
def test_a_class_that_half_of_the_masks_mark_is_named_with_a_file_of_each(
    read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.repeat(np.array([[0, 1, 2]] * 4, np.uint8), 4, axis=1)
    files = half_tagged(tmp_path, mask, "0")

    if read == "survey":
        assert survey_masks(files).pixels == {0: 32, 1: 64, 2: 64}
    elif read == "cells":
        DenseLabels(classes=3).cells(files, ONE_PIXEL)
    else:
        DenseLabels(classes=3).indices(files, ONE_PIXEL)

    [message] = warnings_of_marks(caplog)
    assert message.startswith("2 of 4 labels mark 0 as unlabelled")
    assert f"2 that do not mark it hold it in 32 pixels, such as {files[0]}" in message


def test_nodata_that_is_passed_marks_the_same_pixels_of_all_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = half_tagged(tmp_path, numbers(1, 100, "u1", 0), "0")

    _, weight = DenseLabels(nodata=0).cells(files, ONE_PIXEL)

    assert not weight[:, :8].any()
    assert weight[:, 8:].all()
    assert not warnings_of_marks(caplog)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        pytest.param(numbers(1, 100, "u1"), "0", id="no other file has 0"),
        pytest.param(numbers(0, 100, "u1"), "-9999", id="no byte has it"),
        pytest.param(numbers(0, 1, "f4"), "nan", id="NaN"),
        pytest.param(numbers(0.2, 0.4, "f4"), "0", id="floats without 0"),
    ],
)
def test_a_mark_that_the_other_files_do_not_hold_is_not_named(
    values: np.ndarray, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DenseLabels().cells(half_tagged(tmp_path, values, text), ONE_PIXEL)

    assert not warnings_of_marks(caplog)


def test_files_that_all_mark_a_value_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for number in range(3):
        values = numbers(1, 100, "u1", 0)
        files.append(write_tiff(tmp_path / f"{number}.tif", values, tags=nodata_tag("0")))

    with caplog.at_level(logging.WARNING):
        DenseLabels().cells(files, ONE_PIXEL)

    assert not caplog.records


def test_a_label_without_a_labelled_pixel_is_read_beside_others() -> None:
    unlabelled = np.full((2, 3), 7, np.float32)
    labelled = np.array([[1, 2, 7], [3, 4, 5]], np.float32)

    values, counts = DenseLabels(nodata=7).cells([unlabelled, labelled], ONE_PIXEL)

    assert counts.sum(dim=(1, 2)).tolist() == [0, 5]
    assert values[1, 0].tolist() == [[1, 2, 0], [3, 4, 5]]
