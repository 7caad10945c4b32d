"""A mask around its pixels is the decoded mask without the rest of the image."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Raw
from tests.unit.data.coco_run_lengths import run_lengths_of

from dinoneck.data.segmentations import Mask, crop_mask, decode, read_mask

pytest.importorskip("pycocotools", reason="needs dinoneck[masks]")

SIZE = (30, 40)
RECTANGLE = [5.0, 6.0, 12.0, 6.0, 12.0, 20.0, 5.0, 20.0]


def read(segmentation: Any) -> Mask:
    mask = read_mask(Raw(msgspec.json.encode(segmentation)), SIZE, "annotations[0]")
    assert mask is not None
    return mask


def run_lengths(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"size": SIZE, "counts": run_lengths_of(mask)}


def mask_of(*rectangles: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """A mask of rectangles ``(top, bottom, left, right)``, ends excluded."""
    mask = np.zeros(SIZE, np.uint8)
    for top, bottom, left, right in rectangles:
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
        pytest.param(run_lengths(mask_of((0, 30, 3, 7))), id="whole columns are one run"),
        pytest.param(run_lengths(mask_of((0, 2, 0, 2), (28, 30, 38, 40))), id="two corners"),
        pytest.param(run_lengths(mask_of((10, 11, 20, 21))), id="one pixel"),
    ],
)
def test_a_crop_holds_the_pixels_of_the_mask(shape: Any) -> None:
    encoded = read(shape)
    mask = decode(encoded)
    rows, cols = mask.nonzero()
    top = rows.min()
    bottom = rows.max() + 1
    left = cols.min()
    right = cols.max() + 1

    crop = crop_mask(encoded)

    assert (crop.top, crop.left) == (top, left)
    np.testing.assert_array_equal(crop.pixels, mask[top:bottom, left:right] > 0)


def test_the_crop_of_an_empty_mask_has_no_pixels() -> None:
    crop = crop_mask(read(run_lengths(mask_of())))

    assert crop.pixels.shape == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_are_cropped_as_they_are_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = int(rng.integers(3, 8))
    polygon = rng.uniform(-5, 45, 2 * corners).tolist()
    encoded = read([polygon])
    mask = decode(encoded)

    crop = crop_mask(encoded)

    rebuilt = np.zeros(SIZE, np.uint8)
    height, width = crop.pixels.shape
    rebuilt[crop.top : crop.top + height, crop.left : crop.left + width] = crop.pixels
    np.testing.assert_array_equal(rebuilt, mask)
