"""The three wiring examples: they run as they are printed, stay short, and their numbers are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.biomass import wiring as biomass
from examples.detection import wiring as detection
from examples.pointcloud import rooms
from examples.pointcloud import wiring as pointcloud

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, Tokens, registry
from dinoneck.points import VoxelGrid

LONGEST_FILE = 150
NAME = "biomass_wiring"
del registry._OWN[NAME]  # the example registers its head when it is imported; other tests see the package's own heads


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OWN, NAME, biomass.BiomassHead)


@pytest.mark.parametrize("example", [biomass, detection, pointcloud])
def test_an_example_is_one_short_file(example: object) -> None:
    file = example.__file__  # type: ignore[attr-defined]
    assert len(Path(file).read_text().splitlines()) <= LONGEST_FILE


def test_biomass_learns_and_its_file_predicts_the_same(registered: None) -> None:
    numbers = biomass.main()
    assert numbers["last_loss"] < numbers["first_loss"] / 4
    assert numbers["error"] < numbers["constant"]  # on held-out images
    assert numbers["difference"] == 0.0


def test_the_biomass_file_holds_units_and_refuses_another_backbone(
    registered: None, tmp_path: Path, tiny: Backbone
) -> None:
    head = biomass.BiomassHead(64, num_layers=4).eval()
    head.mean.fill_(40.0)
    path = tmp_path / "biomass.safetensors"
    HeadCheckpoint.from_module(head, backbone=tiny.with_layers(4)).save(path)
    checkpoint = HeadCheckpoint.load(path)
    with pytest.raises(CheckpointError, match="layers"):
        checkpoint.check_backbone(tiny.with_layers(2))
    loaded = checkpoint.build()
    tokens = Tokens.from_sequence(
        [torch.randn(2, 3 + 15, 64)] * 4, image_size=(48, 80), patch_size=16, num_prefix_tokens=3
    )
    grams = loaded.grams(tokens)  # type: ignore[operator]
    assert torch.equal(grams, head.grams(tokens))
    assert torch.allclose(grams, head(tokens) + 40.0)


def test_detection_learns_and_finds_boxes_in_the_images_own_pixels() -> None:
    numbers = detection.main()
    assert numbers["last_loss"] < 0.65 * numbers["first_loss"]
    assert numbers["iou"] > 0.5  # of images that it was not trained on


def test_detected_boxes_follow_the_size_of_the_image() -> None:
    detector = detection.build_detector()
    detector.score_thresh = 0.0
    image, _ = detection.draw(0)
    small = detection.detect(detector, image)["boxes"]
    large = detection.detect(detector, image.repeat_interleave(2, 1).repeat_interleave(2, 2))["boxes"]
    assert large.max() > 1.5 * small.max()
    assert large[:, 2].max() <= 2 * detection.IMAGE_SIZE[1]


def test_pointcloud_features_are_those_of_the_pixels_and_help() -> None:
    numbers = pointcloud.main()
    assert numbers["difference"] < 1e-4
    assert numbers["same"]  # zero-initialised: the network's own logits before the first step
    assert numbers["with_images"] < 0.7 * numbers["without"] < 1.0


def test_links_of_the_pointcloud_lead_to_the_pixel_that_shows_the_point() -> None:
    scene = rooms.room(seed=2, views=2, size=(96, 128), points=1500)
    _, links, features = pointcloud.lift_images(scene, VoxelGrid.from_points(scene.points, size=0.1))
    pixel = links.uv.round().long()
    seen = scene.seen_labels[links.view, pixel[:, 1], pixel[:, 0]]
    assert (seen == scene.labels[links.point]).double().mean() > 0.97  # the others lie at the edge of a poster
    assert features.feats[~features.valid].abs().max() == 0.0
