"""Images with boxes: the dataset gives what the JSON holds, and views move boxes with their pixels."""

from __future__ import annotations

import colorsys
import gc
import logging
import math
import pickle
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

from dinoneck import DataError
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


def test_an_image_beside_the_json_and_another_one_in_images_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, content())
    write(tmp_path / "images", content())
    assert BoxImages(file).paths[1] == tmp_path / "1.png"  # the same pixels
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "1.png")
    with pytest.raises(DataError) as error:
        BoxImages(file)
    assert f"names 1.png, which may be {tmp_path}/1.png or {tmp_path}/images/1.png" in str(
        error.value
    )
    assert BoxImages(file, tmp_path / "images").paths[1] == tmp_path / "images" / "1.png"
    assert BoxImages(file, tmp_path).paths[1] == tmp_path / "1.png"


def test_a_file_that_is_listed_under_two_ids_is_refused_with_a_remedy_that_works(
    tmp_path: Path,
) -> None:
    """As two exports that are joined list it."""
    twice = content()
    twice["images"].append({**twice["images"][0], "id": 99})
    twice["annotations"][1]["image_id"] = 99
    with pytest.raises(DataError) as error:
        BoxImages(write(tmp_path, twice))
    assert "the file_name '0.png' stands more than once; list each file once" in str(error.value)
    once = content()
    assert BoxImages(write(tmp_path, once)).numbers[10] == 2


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        pytest.param("labels", "images", id="labels"),
        pytest.param("Masks_train2017", "train_images", id="masks of a part"),
    ],
)
def test_masks_beside_the_json_are_no_images(masks: str, images: str, tmp_path: Path) -> None:
    file = write(tmp_path / masks, content())
    assert BoxImages(file).paths[0] == tmp_path / masks / "0.png"
    write(tmp_path / "unused", content(), tmp_path / images)
    (tmp_path / images / "0.png").rename(tmp_path / images / "0.JPG")
    with pytest.raises(DataError) as error:
        BoxImages(file)
    mask = tmp_path / masks / "0.png"
    image = tmp_path / images / "0.JPG"
    assert f"names 0.png: {mask} seems to be the mask of {image}" in str(error.value)
    assert BoxImages(file, tmp_path / masks).paths[0] == mask


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


@pytest.mark.parametrize("options", [{"zoom": True}, {"crop": True}, {"zoom": True, "crop": True}])
def test_zoomed_and_cropped_boxes_follow_their_pixels(options: dict[str, bool]) -> None:
    view = box_transforms((160, 200), train=True, flip=None, **PLAIN, **options)
    compared, places = 0, set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = view(*rectangles())
        assert image.shape == (3, 160, 200)
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            if min(box[2] - box[0], box[3] - box[1]) > 8:  # else antialiasing hides the edges
                assert (seen(image, label) - box).abs().max() <= 2.5, (seed, label)
                compared += 1
        places.add(tuple(target["boxes"].flatten().round().tolist()))
    assert compared >= 12
    assert len(places) > 3


def areas(options: dict[str, bool]) -> torch.Tensor:
    """The areas of the boxes of many views, as shares of the image."""
    view = box_transforms(100, train=True, flip=None, **PLAIN, **options)
    boxes = torch.cat([view(*rectangles())[1]["boxes"] for _ in range(40)])
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 100**2


def test_zoom_makes_objects_smaller_and_crop_makes_them_larger() -> None:
    plain = areas({})
    assert areas({"zoom": True}).mean() < 0.9 * plain.mean()
    assert areas({"crop": True}).mean() > 1.1 * plain.mean()


def test_zoom_fills_up_with_the_mean_colour_and_masks_with_nothing() -> None:
    mean = (0.2, 0.4, 0.6)
    view = box_transforms(
        (160, 200), train=True, flip=None, photometric=False, zoom=True, mean=mean, std=(1, 1, 1)
    )
    zoomed = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = rectangles()
        target["masks"] = tv_tensors.Mask(torch.ones(3, *SIZE, dtype=torch.uint8))
        out, found = view(image, target)
        outside = found["masks"][0] == 0
        if outside.any():
            zoomed += 1
            rows, cols = torch.where(outside)
            assert out[:, rows.max(), cols.max()].abs().max() < 0.01  # normalised by its mean
    assert 2 <= zoomed <= 10  # half of the images


def test_a_seed_repeats_zoom_and_crop() -> None:
    view = box_transforms(96, train=True, flip="both", zoom=True, crop=True)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(torch.stack([view(*rectangles())[0] for _ in range(4)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_images_without_boxes_are_zoomed_and_cropped() -> None:
    view = box_transforms(64, train=True, zoom=True, crop=True)
    for seed in range(6):
        torch.manual_seed(seed)
        image, target = rectangles()
        target["boxes"] = tv_tensors.wrap(torch.zeros(0, 4), like=target["boxes"])
        target["labels"] = torch.zeros(0, dtype=torch.int64)
        out, found = view(image, target)
        assert out.shape == (3, 64, 64)
        assert found["boxes"].shape == (0, 4)


def test_boxes_below_the_shortest_side_leave_training_with_their_labels() -> None:
    view = box_transforms((40, 50), train=True, flip=None, photometric=False, min_box_px=12)
    _, target = view(*rectangles())  # boxes of 14 x 11, 15 x 21 and 15 x 13 px
    assert target["labels"].tolist() == [1, 2]
    assert len(target["boxes"]) == 2


def test_held_out_images_are_not_zoomed_or_cropped_and_keep_their_small_boxes() -> None:
    plain = box_transforms((64, 96), train=False)(*rectangles())
    options = box_transforms((64, 96), train=False, zoom=True, crop=True, min_box_px=90)
    image, target = options(*rectangles())
    assert torch.equal(image, plain[0])
    assert torch.equal(target["boxes"], plain[1]["boxes"])


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


def hue(image: torch.Tensor) -> float:
    """Return the mean hue of an image in degrees."""
    red, green, blue = image.mean(dim=(1, 2)).tolist()
    return 360.0 * colorsys.rgb_to_hsv(red, green, blue)[0]


def test_a_training_view_changes_colours_but_not_their_hue() -> None:
    """Ripe and unripe fruit differ by their hue alone."""
    colour = torch.tensor([160, 100, 80], dtype=torch.uint8)  # no change brings it to 0 or 255
    image = tv_tensors.Image(colour[:, None, None].expand(3, *SIZE))
    boxes = tv_tensors.BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=SIZE)
    target = {"boxes": boxes, "labels": torch.arange(3)}
    view = box_transforms(size=SIZE, train=True, mean=None, std=None)

    torch.manual_seed(0)
    views = [view(image, target)[0] for _ in range(20)]

    assert len({round(seen.mean().item(), 3) for seen in views}) > 5
    hues = [hue(seen) for seen in views]
    assert hues == pytest.approx([hue(image / 255.0)] * 20, abs=2.0)


def test_an_image_of_sixteen_bits_comes_to_eight(tmp_path: Path) -> None:
    data = made(tmp_path)
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")

    image, _ = data[0]

    assert image.dtype == torch.uint8
    expected = torch.from_numpy(np.round(grey / 65535.0 * 255.0)).to(torch.uint8)
    assert torch.equal(image.as_subclass(torch.Tensor), expected.expand(3, -1, -1))


def test_a_dataset_travels_to_worker_processes(tmp_path: Path) -> None:
    data = made(tmp_path, transform=box_transforms(size=SIZE, train=False))

    copy = pickle.loads(pickle.dumps(data))

    assert copy.ids == data.ids
    for (image, target), (expected_image, expected_target) in zip(copy, data, strict=True):
        assert torch.equal(image, expected_image)
        assert torch.equal(target["boxes"], expected_target["boxes"])
        assert torch.equal(target["labels"], expected_target["labels"])


# Without masks, and Python's garbage collector
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda data: data.mask_crops(0), id="crops"),
        pytest.param(lambda data: data.pixels(0), id="pixels"),
    ],
)
def test_masks_that_were_not_read_are_refused_with_the_option(
    read: Callable[[BoxImages], object], tmp_path: Path
) -> None:
    data = BoxImages(write(tmp_path, content()))

    with pytest.raises(DataError, match="the masks were not read; make the dataset with masks="):
        read(data)


@pytest.mark.parametrize("is_enabled", [True, False], ids=["enabled", "disabled"])
def test_reading_leaves_the_garbage_collector_as_it_was(is_enabled: bool, tmp_path: Path) -> None:
    file = write(tmp_path, content())
    was_enabled = gc.isenabled()
    try:
        gc.enable() if is_enabled else gc.disable()

        BoxImages(file)

        assert gc.isenabled() is is_enabled
    finally:
        gc.enable() if was_enabled else gc.disable()
