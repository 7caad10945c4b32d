"""Objects in pictures: a light fill and an outline in the colour of the class, where the mask is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from tests.kit import cli, write_images

from dinoneck import Backbone, MaskHead, ShapeError, Task, save_head
from dinoneck.inference import CroppedMasks
from dinoneck.viz import ReportEntry, boxes_panel, html_report
from dinoneck.viz.objects import objects_of
from dinoneck.viz.style import PALETTE

GREY = np.full((90, 180, 3), 100, np.uint8)
# five pixels of the picture are one of the image
LEFT = np.zeros((90, 180), bool)
LEFT[20:60, 20:60] = True
RIGHT = np.zeros((90, 180), bool)
RIGHT[30:80, 100:150] = True
ANIMALS = Task("animals", dim=2, kind="instances", labels=("cat", "dog"))
FOUND = {
    "boxes": np.array([[20, 20, 60, 60], [100, 30, 150, 80]]),
    "labels": np.array([1, 0]),
    "scores": np.array([0.9, 0.6]),
    "masks": np.stack([LEFT, RIGHT]),
}


def colour(number: int) -> np.ndarray:
    return np.array(ImageColor.getrgb(PALETTE[number]))


@pytest.mark.parametrize("in_crops", [False, True], ids=["dense", "cropped"])
def test_a_mask_has_an_outline_and_a_light_fill_in_the_colour_of_its_class(in_crops: bool) -> None:
    masks: Any = FOUND["masks"]
    if in_crops:
        masks = CroppedMasks.of_masks(masks, size=(90, 180))

    picture = boxes_panel(GREY, {**FOUND, "masks": masks}, classes=ANIMALS.labels)

    pixels = np.asarray(picture).astype(float)
    for row, col, number in ((250, 200, 1), (300, 600, 0)):
        expected = 100 + 0.3 * (colour(number) - 100)
        assert np.abs(pixels[row, col] - expected).max() <= 1
    assert (pixels[250, 100:103] == colour(1)).all(), "the outline of the left object"
    assert (pixels[250, 90:98] == 100).all(), "nothing around it"


def test_an_object_without_pixels_changes_no_pixel_of_the_others() -> None:
    objects = {"labels": np.array([1, 0]), "boxes": FOUND["boxes"]}
    masks = np.stack([LEFT, np.zeros_like(LEFT)])
    alone = {"labels": np.array([1]), "boxes": FOUND["boxes"][:1], "masks": masks[:1]}

    picture = boxes_panel(GREY, {**objects, "masks": masks}, classes=ANIMALS.labels)

    expected = boxes_panel(GREY, alone, classes=ANIMALS.labels)
    left = (slice(0, 450), slice(0, 480))
    assert np.array_equal(np.asarray(picture)[left], np.asarray(expected)[left])


def test_objects_with_known_boxes_keep_their_frames() -> None:
    ring = np.zeros((1, 90, 180), bool)
    ring[0, 40:50, 40:50] = True
    found = {"boxes": np.array([[20, 20, 60, 60]]), "names": ["cat"], "masks": ring}

    without = np.asarray(boxes_panel(GREY, found))
    with_known = np.asarray(boxes_panel(GREY, found, {"boxes": found["boxes"], "names": ["cat"]}))

    assert (without[250, 95:105] == 100).all()
    assert (with_known[250, 95:105] == colour(0)).all(axis=-1).sum() == 3


def test_more_boxes_than_masks_are_refused() -> None:
    with pytest.raises(ShapeError, match="there are 2 boxes and 1 masks for them"):
        boxes_panel(GREY, {**FOUND, "masks": FOUND["masks"][:1]}, classes=ANIMALS.labels)


def test_masks_of_another_rank_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"masks are \(90, 180\); expected \(objects"):
        boxes_panel(GREY, {**FOUND, "masks": LEFT}, classes=ANIMALS.labels)


def test_panoptic_segments_are_objects() -> None:
    task = Task("scene", dim=2, kind="panoptic", labels=("cat", "lawn"))
    segments = np.where(LEFT, 5, 7)
    rows = [
        {"id": 5, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 7, "category_id": 1, "isthing": False, "score": 0.8},
    ]

    objects = objects_of((segments, rows), task)

    assert objects.names == ["cat", "lawn"]
    assert objects.scores == [0.9, 0.8]
    assert objects.boxes.tolist() == [[20, 20, 60, 60], [0, 0, 180, 90]]
    assert np.array_equal(objects.masks[0], LEFT)


def test_a_report_draws_masks_and_counts_the_objects_of_each_class() -> None:
    page = html_report([ReportEntry("a.jpg", {"animals": FOUND}, GREY)], [ANIMALS])

    assert 'id="image-0-over"' in page
    assert "<span>cat 1</span>" in page and "<span>dog 1</span>" in page
    assert "Objects are drawn in the colour of their class with their score." in page
    assert '<th scope="col">cat</th><th scope="col">dog</th>' in page
    assert "<td>1</td><td>1</td>" in page


def test_a_report_of_no_objects_says_so() -> None:
    none = {
        "boxes": np.zeros((0, 4)),
        "labels": np.zeros(0, int),
        "scores": np.zeros(0),
        "masks": np.zeros((0, 90, 180), bool),
    }
    page = html_report([ReportEntry("a.jpg", {"animals": none}, GREY)], [ANIMALS])
    assert "<span>no objects</span>" in page
    assert "<td>0</td><td>0</td>" in page


def test_the_report_of_a_mask_head_shows_images_in_their_own_pixels(
    tiny: Backbone, tmp_path: Path
) -> None:
    """An image of 60 x 150 px is cropped for the backbone, and its masks are not."""
    torch.manual_seed(0)
    head = MaskHead(64, [ANIMALS], num_layers=1, num_queries=4, num_blocks=1, dim=16)
    file = tmp_path / "head.safetensors"
    save_head(file, head, backbone=tiny, preprocess=tiny.preprocess.changed(resize="crop"))
    write_images(tmp_path / "images", ["a.png"], 60, 150)
    shown: list[Image.Image] = []

    def noted(image: Image.Image, *more: Any, **options: Any) -> Image.Image:
        shown.append(image)
        return boxes_panel(image, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinoneck.viz.report.boxes_panel", noted)
        out = tmp_path / "r.html"
        ran = cli("viz", "report", file, tmp_path / "images", "--out", out, "--no-tokens")

    assert ran.code == 0, ran.err
    assert [image.size for image in shown] == [(150, 60)]
    assert 'id="image-0-over"' in out.read_text()
