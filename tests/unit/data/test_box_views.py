"""Boxes follow their pixels through every view, seeds repeat them, and boxes find the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import box_iou

from dinoneck import ConfigError, DataError
from dinoneck.data import Preprocessing, box_transforms, collate_boxes, to_original

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
BOXES = [[12.0, 8.0, 40.0, 30.0], [60.0, 10.0, 90.0, 52.0], [20.0, 44.0, 50.0, 70.0]]
HEIGHT, WIDTH = 80, 100
PLAIN: dict[str, Any] = {"mean": None, "std": None, "photometric": False}


def rectangles() -> tuple[torch.Tensor, dict[str, Any]]:
    """A grey image with a red, a green and a blue rectangle: the pixels show where the boxes are."""
    pixels = torch.full((3, HEIGHT, WIDTH), 124, dtype=torch.uint8)
    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=True):
        pixels[:, int(top) : int(bottom), int(left) : int(right)] = colour[:, None, None]
    return tv_tensors.Image(pixels), {
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=(HEIGHT, WIDTH)),
        "labels": torch.arange(3),
        "image_id": 7,
        "size": (HEIGHT, WIDTH),
    }


def seen(image: torch.Tensor, label: int) -> torch.Tensor:
    """The box around the pixels of a colour."""
    others = [channel for channel in range(3) if channel != label]
    ys, xs = torch.where((image[label] > 0.75) & (image[others] < 0.25).all(dim=0))
    return torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)


OPTIONS: list[dict[str, Any]] = [
    {"flip": None},
    {"flip": "horizontal"},
    {"flip": "both"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(160, 200), (112, 256)])
def test_boxes_follow_their_pixels(options: dict[str, Any], size: Any) -> None:
    view = box_transforms(size, train=True, **PLAIN, **options)
    tested, places = 0, set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = view(*rectangles())
        assert image.shape == (3, *((size, size) if isinstance(size, int) else size))
        assert target["boxes"].canvas_size == tuple(image.shape[1:])
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            if min(box[2] - box[0], box[3] - box[1]) > 8:
                assert (seen(image, label) - box).abs().max() <= 2.5, (seed, label)
                tested += 1
        places.add(tuple(target["boxes"].flatten().round().tolist()))
        assert (target["image_id"], target["size"]) == (7, (HEIGHT, WIDTH))
    assert tested >= 12
    assert len(places) > 1 or options == {"flip": None}, "the option changes nothing"


def test_flips_in_plain_numbers() -> None:
    found = {"horizontal": set(), "both": set()}  # type: ignore[var-annotated]
    for name, kinds in found.items():
        view = box_transforms((HEIGHT, WIDTH), train=True, flip=name, **PLAIN)  # type: ignore[arg-type]
        for seed in range(32):
            torch.manual_seed(seed)
            kinds.add(tuple(view(*rectangles())[1]["boxes"][0].tolist()))
    as_is, across = (12, 8, 40, 30), (60, 8, 88, 30)
    assert found["horizontal"] == {as_is, across}
    assert found["both"] == {as_is, across, (12, 50, 40, 72), (60, 50, 88, 72)}


def test_a_test_view_only_resizes_and_normalises() -> None:
    """Also boxes that no training would keep stay where they are."""
    image, target = rectangles()
    target["boxes"] = tv_tensors.wrap(torch.tensor([[0.0, 0.0, 0.4, 80.0]] * 3), like=target["boxes"])
    view = box_transforms((64, 96), train=False, flip="both")
    outs = [view(image, dict(target)) for _ in range(3)]
    assert all(torch.equal(out[0], outs[0][0]) for out in outs)
    assert torch.allclose(outs[0][1]["boxes"][0], torch.tensor([0.0, 0.0, 0.4 * 96 / 100, 64.0]))
    recipe = Preprocessing(size=(64, 96), interpolation="bilinear")
    peer = recipe(image.as_subclass(torch.Tensor))[0]
    assert (outs[0][0] - peer).abs().max() < 0.02, "as backbone.preprocess, up to the rounding of bytes"


def test_colours_change_without_trading_places() -> None:
    view = box_transforms((80, 100), train=True, flip=None, mean=None, std=None)
    image, target = rectangles()
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out, boxes = view(image, target)
        assert torch.equal(boxes["boxes"], target["boxes"])
        for (left, top, _, _), channel in zip(BOXES, range(3), strict=True):
            assert int(out[:, int(top) + 5, int(left) + 5].argmax()) == channel
        changed += not torch.allclose(out, image.float() / 255, atol=1e-3)
    assert 4 <= changed <= 16


def test_small_boxes_leave_training_with_their_labels() -> None:
    image, target = rectangles()
    _, out = box_transforms((3, 4), train=True, flip=None, photometric=False)(image, target)
    assert out["labels"].tolist() == [1], "the others are 0.82 and 0.98 px high"
    assert len(out["boxes"]) == 1


def test_boxes_find_the_way_back() -> None:
    image, target = rectangles()
    _, out = box_transforms((64, 224), train=False)(image, target)
    back = to_original(out["boxes"], (64, 224), target["size"])
    assert type(back) is torch.Tensor
    assert torch.allclose(back, torch.tensor(BOXES), atol=1e-5)
    assert box_iou(back, torch.tensor(BOXES)).diagonal().min() > 0.9999
    assert to_original(torch.zeros(0, 4), (64, 224), (80, 100)).shape == (0, 4)
    assert to_original(torch.ones(2, 3, 4, dtype=torch.float64), (1, 1), (5, 7))[1, 2].tolist() == [7, 5, 7, 5]
    with pytest.raises(DataError, match=r"torch.int64; expected floating-point"):  # scales would be rounded to 0
        to_original(torch.ones(1, 4, dtype=torch.int64), (64, 224), (30, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is"),
        ({"flip": "vertical"}, "flip 'vertical'"),
        ({"mean": None}, "mean is None"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        box_transforms(**{"size": 64, "train": True, **options})


def test_a_batch_is_stacked_and_targets_are_listed() -> None:
    view = box_transforms((48, 64), train=False)
    batch = [view(*rectangles()) for _ in range(2)]
    images, targets = collate_boxes(batch)
    assert (type(images), images.shape) == (torch.Tensor, (2, 3, 48, 64))
    assert torch.equal(images[1], batch[1][0])
    assert [target["image_id"] for target in targets] == [7, 7]
    assert isinstance(targets[0]["boxes"], tv_tensors.BoundingBoxes)
