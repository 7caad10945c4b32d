"""A mask around its pixels is the decoded mask without the rest of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dinoneck.data.segmentations import RunLengths, crop_mask, decode

pytest.importorskip("pycocotools", reason="needs dinoneck[masks]")

SIZE = (30, 40)
RECTANGLE = [5.0, 6.0, 12.0, 6.0, 12.0, 20.0, 5.0, 20.0]


def lengths_of(mask: np.ndarray[Any, Any]) -> RunLengths:
    """The run lengths of a mask, column by column, zeros first."""
    values = np.concatenate([[0], mask.T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(values) != 0)
    starts = np.concatenate([[0], ends[:-1]])
    counts = (ends - starts).tolist()
    if mask[0, 0]:
        counts = [0, *counts[1:]] if counts[0] == 0 else [0, *counts]
    return RunLengths(size=mask.shape, counts=counts)


def painted(*parts: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    mask = np.zeros(SIZE, np.uint8)
    for top, bottom, left, right in parts:
        mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param([RECTANGLE], id="a rectangle"),
        pytest.param([[5.3, 6.1, 12.7, 8.4, 7.2, 20.9]], id="fractions"),
        pytest.param([RECTANGLE, [20.0, 1.0, 39.0, 1.0, 30.0, 29.0]], id="two parts"),
        pytest.param([[-9.0, -9.0, 60.0, -9.0, 60.0, 60.0]], id="over the edges"),
        pytest.param([[0.0, 0.0, 40.0, 0.0, 40.0, 30.0, 0.0, 30.0]], id="the whole image"),
        pytest.param(lengths_of(painted((0, 30, 3, 7))), id="whole columns are one run"),
        pytest.param(lengths_of(painted((0, 2, 0, 2), (28, 30, 38, 40))), id="two corners"),
        pytest.param(lengths_of(painted((10, 11, 20, 21))), id="one pixel"),
    ],
)
def test_a_crop_holds_the_pixels_of_the_mask(shape: Any) -> None:
    mask = decode(shape, *SIZE)
    rows, cols = mask.nonzero()

    crop = crop_mask(shape, *SIZE)

    assert (crop.top, crop.left) == (rows.min(), cols.min())
    expected = mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    np.testing.assert_array_equal(crop.pixels, expected > 0)


def test_the_crop_of_an_empty_mask_has_no_pixels() -> None:
    crop = crop_mask(lengths_of(painted()), *SIZE)

    assert crop.pixels.shape == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_are_cropped_as_they_are_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [rng.uniform(-5, 45, 2 * int(rng.integers(3, 8))).tolist()]
    mask = decode(shape, *SIZE)

    crop = crop_mask(shape, *SIZE)

    rebuilt = np.zeros(SIZE, np.uint8)
    height, width = crop.pixels.shape
    rebuilt[crop.top : crop.top + height, crop.left : crop.left + width] = crop.pixels
    np.testing.assert_array_equal(rebuilt, mask)
