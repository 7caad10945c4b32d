"""Masks that are cut to the pixels around their objects say what whole masks say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dinoneck.inference import coco_objects
from dinoneck.inference.cropped_masks import CroppedMasks

SIZES = [(5, 4), (7, 1), (1, 6), (12, 9)]


def masks_of(size: tuple[int, int]) -> np.ndarray:
    """Empty, full and sparse to dense masks, (n, height, width); runs go over the ends of columns."""
    rng = np.random.default_rng(0)
    masks = [np.zeros(size, bool), np.ones(size, bool)]
    for share in (0.1, 0.5, 0.9):
        masks.append(rng.random(size) < share)
        last_cols = np.zeros(size, bool)
        last_cols[:, -2:] = True
        masks.append(last_cols & (rng.random(size) < share))
    return np.array(masks)


@pytest.mark.parametrize("size", SIZES)
def test_masks_come_back_as_they_were(size: tuple[int, int]) -> None:
    masks = masks_of(size)

    cropped = CroppedMasks.of_masks(masks, size=size)

    assert cropped.shape == masks.shape
    assert np.array_equal(np.asarray(cropped), masks)
    assert all(np.array_equal(one, mask) for one, mask in zip(cropped, masks, strict=True))
    assert np.array_equal(np.asarray(cropped[2:4]), masks[2:4])
    assert np.array_equal(cropped.areas(), masks.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(np.arange(8) % 3 == 1, id="bools"),
        pytest.param(np.zeros(8, bool), id="none"),
        pytest.param(torch.arange(8) > 4, id="bools of torch"),
        pytest.param(np.array([5, 0, -1]), id="numbers"),
        pytest.param([2, 2], id="a list"),
        pytest.param([], id="an empty list"),
    ],
)
def test_masks_are_chosen_as_those_of_an_array(index: Any) -> None:
    masks = masks_of((5, 4))
    cropped = CroppedMasks.of_masks(masks, size=(5, 4))

    chosen = cropped[index]

    assert isinstance(chosen, CroppedMasks)
    numbers = np.arange(8)[np.asarray(index, bool if len(index) == 8 else int)]
    assert np.array_equal(np.asarray(chosen), masks[numbers])
    assert np.array_equal(cropped[np.int64(3)], masks[3])


@pytest.mark.parametrize("count", [0, 3])
def test_bools_of_another_number_are_refused(count: int) -> None:
    cropped = CroppedMasks.of_masks(masks_of((5, 4)), size=(5, 4))

    with pytest.raises(IndexError):
        cropped[np.ones(count, bool)]


def test_a_number_as_an_array_is_one_mask() -> None:
    masks = masks_of((5, 4))
    cropped = CroppedMasks.of_masks(masks, size=(5, 4))

    assert np.array_equal(cropped[np.array(3)], masks[3])


@pytest.mark.parametrize("size", SIZES)
def test_run_lengths_are_those_of_pycocotools(size: tuple[int, int]) -> None:
    pytest.importorskip("pycocotools")
    masks = masks_of(size)
    labels = np.zeros(len(masks), np.int64)
    scores = np.linspace(0, 1, len(masks))
    expected = coco_objects({"masks": masks, "labels": labels, "scores": scores})

    cropped = CroppedMasks.of_masks(masks, size=size)
    records = coco_objects({"masks": cropped, "labels": labels, "scores": scores})

    assert records == expected


def test_pixels_of_two_masks_and_of_rectangles_are_counted_where_they_lie() -> None:
    masks = masks_of((12, 9))
    cropped = CroppedMasks.of_masks(masks, size=(12, 9))

    for i in range(len(masks)):
        for j in range(len(masks)):
            assert cropped.shared_area(i, cropped, j) == (masks[i] & masks[j]).sum()
    inside = masks[:, 3:10, 2:7].sum(axis=(1, 2))
    assert np.array_equal(cropped.areas((2, 3, 7, 10)), inside)
    assert not cropped.areas((20, 20, 30, 30)).any()


def test_masks_of_a_tile_move_into_the_image() -> None:
    masks = masks_of((12, 9))
    expected = np.zeros((len(masks), 40, 30), bool)
    expected[:, 5:17, 20:29] = masks

    moved = CroppedMasks.of_masks(masks, size=(12, 9)).moved((5, 20), (40, 30))

    assert np.array_equal(np.asarray(moved), expected)


def test_segments_are_found_by_their_ids() -> None:
    segments = np.kron(np.arange(12).reshape(4, 3) * 70_000, np.ones((150, 2), np.int64))
    ids = [70_000 * number for number in (7, 2, 11)]

    masks = CroppedMasks.of_segments(segments, [*ids, 5])

    for number, segment_id in enumerate(ids):
        assert np.array_equal(masks[number], segments == segment_id)
    assert not masks[3].any()  # there is none of id 5


def test_segments_that_lie_apart_are_found_whole() -> None:
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 40, (600, 30)) * (rng.random((600, 30)) < 0.02)

    masks = CroppedMasks.of_segments(segments, range(1, 40))

    for number in range(39):
        assert np.array_equal(masks[number], segments == number + 1)
