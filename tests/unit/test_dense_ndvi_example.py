"""The dense NDVI example: nothing of the test is learnt from."""

from __future__ import annotations

import numpy as np
import pytest
from examples.dense_ndvi import __main__ as example

from dinoneck import DataError


def pixels(size: tuple[int, int], tiles: list[example.Tile], side: int) -> np.ndarray:
    """Which pixels some tiles show (height, width), read off an index image."""
    index = np.arange(size[0] * size[1]).reshape(size)
    seen = np.zeros(size, bool)
    for tile in tiles:
        seen.ravel()[example.cut(index, tile, side)] = True
    return seen


@pytest.mark.parametrize(("size", "tile", "patch"), [((960, 1280), 256, 16), ((112, 256), 32, 16)])
def test_nothing_of_the_test_is_learnt_from(size: tuple[int, int], tile: int, patch: int) -> None:
    split = example.split_capture(size, tile, patch)
    learnt, tested = pixels(size, split.train, tile), pixels(size, split.test, tile)
    edge, left = int(size[1] * 0.6), split.part[1].start
    assert learnt[:, :edge].all() and tested[split.part].all() and tested.sum() == tested[split.part].size
    assert np.flatnonzero(learnt.any(axis=0)).max() + tile < np.flatnonzero(tested.any(axis=0)).min() == left
    assert not (learnt & tested).any()
    assert all(side - patch < own.stop <= side for side, own in zip(size, split.part, strict=True))
    with pytest.raises(DataError, match="64x161 px"):
        example.split_capture((64, 161), 64, 16)
    assert all(one.top % patch == 0 == (one.left - left) % patch for one in split.test)
    assert len(set(split.train)) == len(split.train) == 4 * len({(one.top, one.left) for one in split.train})
