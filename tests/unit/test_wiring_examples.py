"""The three wiring examples: they run as they are printed, stay short, and their numbers are right."""

from __future__ import annotations

import pytest
from examples.biomass import wiring as biomass
from examples.detection import wiring as detection
from examples.pointcloud import wiring as pointcloud

from dinoneck import registry

pytestmark = pytest.mark.slow
NAME = "biomass_wiring"
del registry._OWN[NAME]  # the example registers its head when it is imported; other tests see the package's own heads


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OWN, NAME, biomass.BiomassHead)


def test_biomass_learns_and_its_file_predicts_the_same(registered: None) -> None:
    numbers = biomass.main()
    assert numbers["last_loss"] < numbers["first_loss"] / 4
    assert numbers["error"] < numbers["constant"]  # on held-out images
    assert numbers["difference"] == 0.0


def test_detection_learns_and_finds_boxes_in_the_images_own_pixels() -> None:
    numbers = detection.main()
    assert numbers["last_loss"] < 0.65 * numbers["first_loss"]
    assert numbers["iou"] > 0.5  # of images that it was not trained on


def test_pointcloud_features_are_those_of_the_pixels_and_help() -> None:
    numbers = pointcloud.main()
    assert numbers["difference"] < 1e-4
    assert numbers["same"]  # zero-initialised: the network's own logits before the first step
    assert numbers["with_images"] < 0.7 * numbers["without"] < 1.0
