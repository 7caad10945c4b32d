"""The wiring examples and the NDVI example: they run as they are printed, and their numbers are right."""

from __future__ import annotations

import numpy as np
import pytest
from examples.biomass import wiring as biomass
from examples.dense_ndvi import __main__ as example
from examples.detection import wiring as detection
from examples.pointcloud import wiring as pointcloud

from dinoneck import DataError, registry

NAME = "biomass_wiring"
# the example registers its head when it is imported; other tests see the package's own heads
del registry.REGISTERED[NAME]


@pytest.mark.slow
def test_biomass_learns_and_its_file_predicts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.REGISTERED, NAME, biomass.BiomassHead)
    numbers = biomass.main()
    assert numbers["last_loss"] < numbers["first_loss"] / 4
    assert numbers["error"] < numbers["constant"]  # on held-out images
    assert numbers["difference"] == 0.0


@pytest.mark.slow
def test_detection_learns_and_finds_boxes_in_the_images_own_pixels() -> None:
    numbers = detection.main()
    assert numbers["last_loss"] < 0.65 * numbers["first_loss"]
    assert numbers["iou"] > 0.5  # of images that it was not trained on


@pytest.mark.slow
def test_pointcloud_features_are_those_of_the_pixels_and_help() -> None:
    numbers = pointcloud.main()
    assert numbers["difference"] < 1e-4
    assert numbers["same"]  # zero-initialised: the network's own logits before the first step
    assert numbers["with_images"] < 0.7 * numbers["without"] < 1.0


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
    assert (
        learnt[:, :edge].all()
        and tested[split.part].all()
        and tested.sum() == tested[split.part].size
    )
    assert (
        np.flatnonzero(learnt.any(axis=0)).max() + tile
        < np.flatnonzero(tested.any(axis=0)).min()
        == left
    )
    assert not (learnt & tested).any()
    assert all(side - patch < own.stop <= side for side, own in zip(size, split.part, strict=True))
    with pytest.raises(DataError, match="64x161 px"):
        example.split_capture((64, 161), 64, 16)
    assert all(one.top % patch == 0 == (one.left - left) % patch for one in split.test)
    assert (
        len(set(split.train))
        == len(split.train)
        == 4 * len({(one.top, one.left) for one in split.train})
    )
