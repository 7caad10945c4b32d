"""Images with boxes: the dataset gives what the JSON holds, and views move boxes with their pixels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.refusals.data import many
from tests.unit.data.box_samples import HEIGHT, WIDTH, content, write
from torchvision import tv_tensors

from dinoneck.data import BoxImages, Preprocessing, box_transforms, collate_boxes, to_original

Change = Callable[[dict[str, Any]], Any]
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
BOXES = [[12.0, 8.0, 40.0, 30.0], [60.0, 10.0, 90.0, 52.0], [20.0, 44.0, 50.0, 70.0]]
SIZE = HIGH, WIDE = 80, 100
PLAIN: dict[str, Any] = {"mean": None, "std": None, "photometric": False}


def made(folder: Path, change: Change | None = None, **options: Any) -> BoxImages:
    plain = content()
    if change is not None:
        change(plain)
    return BoxImages(write(folder, plain), **options)


# The dataset
# ------------------------------------------------------------------------------------------------


def test_an_item_is_what_the_json_holds(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert (data.classes, data.category_ids) == (("blue", "red"), (2, 5)), (
        "by ascending id, not by the file's order"
    )
    assert (data.ids, len(data), data.without_boxes, data.clipped) == ((10, 11, 12), 3, 1, 0)
    assert not data.skipped
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8
    assert np.array_equal(
        image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "0.png"))
    )
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert (boxes.format.value, boxes.canvas_size, boxes.dtype) == (
        "XYXY",
        (HEIGHT, WIDTH),
        torch.float32,
    )
    assert boxes.tolist() == [[2, 3, 12, 11], [20, 10, 32, 22.5]]
    assert (target["labels"].tolist(), target["labels"].dtype) == ([1, 0], torch.int64)
    assert (target["image_id"], target["size"]) == (10, (HEIGHT, WIDTH))
    _, empty = data[2]
    assert (empty["boxes"].shape, empty["labels"].shape) == ((0, 4), (0,))
    assert data[-1][1]["image_id"] == 12
    seen = made(tmp_path, transform=lambda image, target: (image.shape, sorted(target)))
    assert seen[1] == ((3, HEIGHT, WIDTH), ["boxes", "image_id", "labels", "size"])
    assert seen.original(1)[1].tolist() == [[0, 0, 40, 30], [5.25, 6, 12.25, 14]]


UNUSABLE = [
    ([5, 5, math.inf, 10], "not finite"),
    ([5, 5, 0.5, 10], "too small"),
    ([39.5, 5, 5, 10], "outside"),
]


@pytest.mark.parametrize(("bbox", "reason"), UNUSABLE)
def test_boxes_that_show_nothing_are_left_out_and_counted(
    bbox: list[float], reason: str, tmp_path: Path
) -> None:
    data = made(tmp_path, lambda c: c["annotations"][0].update(bbox=bbox))
    assert (data.skipped, data.clipped, data[0][1]["labels"].tolist()) == ({reason: 1}, 0, [0])


def test_what_is_cut_or_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = made(tmp_path, lambda c: c["annotations"][0].update(bbox=[-5, 20, 15, 40]))
    assert (cut.clipped, cut.skipped) == (1, {})
    assert cut[0][1]["boxes"][0].tolist() == [0, 20, 10, 30]

    def change(c: dict[str, Any]) -> None:
        c["annotations"][0]["iscrowd"] = 1
        c["annotations"][1]["image_id"] = 99

    with caplog.at_level(logging.WARNING, "dinoneck"):
        data = made(tmp_path, change)
    assert data.skipped == {"crowd": 1, "unknown image": 1}
    assert "boxes left out: 1 unknown image (of 4)" in caplog.text
    assert "1 of 4 objects are marked iscrowd=1" in caplog.text
    assert (data.without_boxes, data[0][1]["labels"].tolist()) == (2, [])
    truth = data.ground_truth()["annotations"]
    expected = [(1, [2, 3, 10, 8], 1), (2, [0, 0, 40, 30], 0), (3, [5.25, 6, 7, 8], 0)]
    assert [(box["id"], box["bbox"], box["iscrowd"]) for box in truth] == expected
    part = data.take([2, 0])
    assert (part.ids, part.without_boxes, len(data)) == ((12, 10), 2, 3)
    assert [box["image_id"] for box in part.ground_truth()["annotations"]] == [10]


def test_classes_choose_and_order(tmp_path: Path) -> None:
    data = made(tmp_path, classes=["red", "blue"])
    assert (data.classes, data.category_ids, data[0][1]["labels"].tolist()) == (
        ("red", "blue"),
        (5, 2),
        [0, 1],
    )
    one = made(tmp_path, classes=("blue",))
    assert (one.classes, one.skipped, one[0][1]["labels"].tolist()) == (
        ("blue",),
        {"other class": 2},
        [0],
    )


def test_images_are_found_next_to_the_json_in_images_or_in_the_given_folder(tmp_path: Path) -> None:
    next_to = BoxImages(write(tmp_path / "a", content()))
    (tmp_path / "b").mkdir()
    below = BoxImages(write(tmp_path / "b", content(), tmp_path / "b" / "images"))
    (tmp_path / "c").mkdir()
    shown = BoxImages(write(tmp_path / "c", content(), tmp_path / "d"), tmp_path / "d")
    assert all(torch.equal(data[0][0], next_to[0][0]) for data in (below, shown))
    assert shown.paths[0] == tmp_path / "d" / "0.png"


@pytest.mark.parametrize(
    "bboxes",
    [
        [[10.0, 5.0, 35.0, 26.0]],  # a single box over the edge
        # the edge cuts one of ten
        [
            *([2.0 + i / 8, 4.0, 12.0, 29.0] for i in range(6)),
            *([2.0 + i / 8, 4.0, 12.0, 20.0] for i in range(54)),
        ],
        [[1.0, 1.0 - i / 64, 41.0, 31.0] for i in range(30)],  # the whole image, rounded
        [[25.0, 20.0, 40.0, 30.0], [20.0, 20.0, 38.0, 28.0]],  # two that the edge cuts
    ],
)
def test_boxes_that_may_be_right_are_kept(tmp_path: Path, bboxes: list[list[float]]) -> None:
    """In an image of 40x30 px (width x height)."""
    assert len(many(*bboxes)(tmp_path)[0][1]["labels"]) == len(bboxes)


def segmented(c: dict[str, Any]) -> None:
    """Give each box its mask: polygons, run lengths as counts, run lengths as text, and a triangle."""
    masks = pytest.importorskip("pycocotools.mask")
    plane = np.zeros((HEIGHT, WIDTH), np.uint8)
    plane[10:22, 20:32] = 1
    runs = np.diff(np.flatnonzero(np.diff(plane.T.ravel(), prepend=2, append=2))).tolist()
    whole = np.asfortranarray(np.ones_like(plane))
    shapes = [
        [[2, 3, 12, 3, 12, 11, 2, 11]],
        {"size": [HEIGHT, WIDTH], "counts": runs},
        {"size": [HEIGHT, WIDTH], "counts": masks.encode(whole)["counts"].decode()},
        [[5.25, 6, 12.25, 6, 5.25, 14]],
    ]
    for annotation, shape in zip(c["annotations"], shapes, strict=True):
        annotation["segmentation"] = shape


# pycocotools 2.0.11, NumPy 2.4
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_come_from_polygons_and_run_lengths(tmp_path: Path) -> None:
    data = made(tmp_path, segmented, masks=True)
    masks = data[0][1]["masks"]
    assert isinstance(masks, tv_tensors.Mask)
    expected = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    expected[0, 3:11, 2:12], expected[1, 10:22, 20:32] = 1, 1
    assert torch.equal(masks, expected)
    assert data[1][1]["masks"].sum(dim=(1, 2)).tolist()[0] == HEIGHT * WIDTH
    assert data[2][1]["masks"].shape == (0, HEIGHT, WIDTH)


# Views of them
# ----------------------------------------------------------------------------------------------


def rectangles() -> tuple[torch.Tensor, dict[str, Any]]:
    """A grey image with a red, a green and a blue rectangle: the pixels show where the boxes are."""
    pixels = torch.full((3, *SIZE), 124, dtype=torch.uint8)
    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=True):
        pixels[:, int(top) : int(bottom), int(left) : int(right)] = colour[:, None, None]
    boxes = tv_tensors.BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=SIZE)
    return tv_tensors.Image(pixels), {
        "boxes": boxes,
        "labels": torch.arange(3),
        "image_id": 7,
        "size": SIZE,
    }


def seen(image: torch.Tensor, label: int) -> torch.Tensor:
    """The box around the pixels of a colour."""
    others = [channel for channel in range(3) if channel != label]
    ys, xs = torch.where((image[label] > 0.75) & (image[others] < 0.25).all(dim=0))
    return torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)


@pytest.mark.parametrize("flip", [None, "horizontal", "both"])
@pytest.mark.parametrize("size", [(160, 200), (112, 256)])
def test_boxes_follow_their_pixels(flip: Any, size: tuple[int, int]) -> None:
    view = box_transforms(size, train=True, flip=flip, **PLAIN)
    places = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = view(*rectangles())
        assert image.shape == (3, *size) and target["boxes"].canvas_size == size
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            assert (seen(image, label) - box).abs().max() <= 2.5, (seed, label)
        places.add(tuple(target["boxes"].flatten().round().tolist()))
        assert (target["image_id"], target["size"]) == (7, SIZE)
    assert len(places) == {None: 1, "horizontal": 2, "both": 4}[flip]


def test_a_test_view_only_resizes_and_normalises() -> None:
    """Also boxes that no training would keep stay where they are."""
    image, target = rectangles()
    target["boxes"] = tv_tensors.wrap(
        torch.tensor([[0.0, 0.0, 0.4, 80.0]] * 3), like=target["boxes"]
    )
    outs = [
        box_transforms((64, 96), train=False, flip="both")(image, dict(target)) for _ in range(3)
    ]
    assert all(torch.equal(out[0], outs[0][0]) for out in outs)
    assert torch.allclose(outs[0][1]["boxes"][0], torch.tensor([0.0, 0.0, 0.4 * 96 / 100, 64.0]))
    peer = Preprocessing(size=(64, 96), interpolation="bilinear")(image.as_subclass(torch.Tensor))[
        0
    ]
    assert (outs[0][0] - peer).abs().max() < 0.02, (
        "as backbone.preprocess, up to the rounding of bytes"
    )
    _, small = box_transforms((3, 4), train=True, flip=None, photometric=False)(*rectangles())
    assert (small["labels"].tolist(), len(small["boxes"])) == ([1], 1), (
        "the others are 0.82 and 0.98 px high"
    )


def test_boxes_find_the_way_back_from_a_batch() -> None:
    view = box_transforms((64, 224), train=False)
    images, targets = collate_boxes([view(*rectangles()) for _ in range(2)])
    assert (type(images), images.shape) == (torch.Tensor, (2, 3, 64, 224))
    back = to_original(targets[1]["boxes"], (64, 224), targets[1]["size"])
    assert type(back) is torch.Tensor
    assert torch.allclose(back, torch.tensor(BOXES), atol=1e-5)
    assert to_original(torch.ones(2, 3, 4, dtype=torch.float64), (1, 1), (5, 7))[1, 2].tolist() == [
        7,
        5,
        7,
        5,
    ]
    assert to_original(torch.tensor([1, 3, 5, 7]), (2, 2), (5, 3)).tolist() == [1.5, 7.5, 7.5, 17.5]
