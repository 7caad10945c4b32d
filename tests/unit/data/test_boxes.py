"""Images with boxes: the dataset gives what the JSON holds, and views move boxes with their pixels."""

from __future__ import annotations

import colorsys
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.box_samples import HEIGHT, WIDTH, content, write
from torchvision import tv_tensors

from dinoneck import DataError
from dinoneck.data import BoxImages, Preprocessing, box_transforms, collate_boxes, to_original

Change = Callable[[dict[str, Any]], Any]
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
BOXES = [[12.0, 8.0, 40.0, 30.0], [60.0, 10.0, 90.0, 52.0], [20.0, 44.0, 50.0, 70.0]]
SIZE = (80, 100)
PLAIN: dict[str, Any] = {"mean": None, "std": None, "photometric": False}


def made(folder: Path, change: Change | None = None, **options: Any) -> BoxImages:
    plain = content()
    if change is not None:
        change(plain)
    return BoxImages(write(folder, plain), **options)


# The dataset
# ------------------------------------------------------------------------------------------------


def test_classes_are_sorted_by_id(tmp_path: Path) -> None:
    """Not by the order of the file."""
    data = made(tmp_path)

    assert data.classes == ("blue", "red")
    assert data.category_ids == (2, 5)


def test_a_dataset_counts_its_images(tmp_path: Path) -> None:
    data = made(tmp_path)

    assert data.ids == (10, 11, 12)
    assert len(data) == 3
    assert data.without_boxes == 1


def test_nothing_is_cut_or_left_out_of_a_right_file(tmp_path: Path) -> None:
    data = made(tmp_path)

    assert data.clipped == 0
    assert not data.skipped


def test_an_image_holds_the_pixels_of_its_file(tmp_path: Path) -> None:
    image, _ = made(tmp_path)[0]

    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    pixels = np.asarray(Image.open(tmp_path / "0.png"))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_boxes_are_the_corners_of_those_in_the_json(tmp_path: Path) -> None:
    boxes = made(tmp_path)[0][1]["boxes"]

    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert boxes.format.value == "XYXY"
    assert boxes.canvas_size == (HEIGHT, WIDTH)
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == [[2, 3, 12, 11], [20, 10, 32, 22.5]]


def test_labels_are_places_among_the_classes(tmp_path: Path) -> None:
    labels = made(tmp_path)[0][1]["labels"]

    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_a_target_holds_the_id_and_the_size_of_its_image(tmp_path: Path) -> None:
    _, target = made(tmp_path)[0]

    assert target["image_id"] == 10
    assert target["size"] == (HEIGHT, WIDTH)


def test_an_image_without_boxes_has_empty_tensors(tmp_path: Path) -> None:
    _, target = made(tmp_path)[2]

    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


def test_items_are_counted_from_the_end_too(tmp_path: Path) -> None:
    _, target = made(tmp_path)[-1]

    assert target["image_id"] == 12


def test_a_transform_is_given_the_image_and_its_target(tmp_path: Path) -> None:
    data = made(tmp_path, transform=lambda image, target: (image.shape, sorted(target)))

    assert data[1] == ((3, HEIGHT, WIDTH), ["boxes", "image_id", "labels", "size"])


def test_the_original_is_not_transformed(tmp_path: Path) -> None:
    data = made(tmp_path, transform=lambda image, target: None)

    _, boxes = data.original(1)

    assert boxes.tolist() == [[0, 0, 40, 30], [5.25, 6, 12.25, 14]]


def make_crowd(content: dict[str, Any]) -> None:
    """Mark the first object as a crowd region."""
    content["annotations"][0]["iscrowd"] = 1


def test_a_crowd_region_is_no_object_and_is_counted(tmp_path: Path) -> None:
    data = made(tmp_path, make_crowd)

    assert data.num_crowds == 1
    assert data[0][1]["labels"].tolist() == [0]
    assert data.numbers == {10: 1, 11: 2, 12: 0}


def test_crowds_may_be_read_as_objects(tmp_path: Path) -> None:
    data = made(tmp_path, make_crowd, crowd="objects")

    assert data.num_crowds == 0
    assert data.numbers[10] == 2


def test_the_ground_truth_holds_crowds(tmp_path: Path) -> None:
    data = made(tmp_path, make_crowd)

    annotations = data.ground_truth()["annotations"]

    assert [annotation["id"] for annotation in annotations] == [1, 2, 3, 4]
    assert [annotation["iscrowd"] for annotation in annotations] == [1, 0, 0, 0]
    assert [annotation["bbox"] for annotation in annotations] == [
        [2, 3, 10, 8],
        [20, 10, 12, 12.5],
        [0, 0, 40, 30],
        [5.25, 6, 7, 8],
    ]


def test_a_part_of_a_dataset_has_the_images_that_are_taken(tmp_path: Path) -> None:
    data = made(tmp_path, make_crowd)

    part = data.take([2, 0])

    assert part.ids == (12, 10)
    assert part.without_boxes == 1
    assert part.sizes == [(HEIGHT, WIDTH)] * 2
    assert len(data) == 3
    [annotation, _] = part.ground_truth()["annotations"]
    assert annotation["image_id"] == 10


def test_classes_are_in_the_order_that_is_given(tmp_path: Path) -> None:
    data = made(tmp_path, classes=["red", "blue"])

    assert data.classes == ("red", "blue")
    assert data.category_ids == (5, 2)
    assert data[0][1]["labels"].tolist() == [0, 1]


def test_objects_of_classes_that_are_not_given_are_left_out(tmp_path: Path) -> None:
    data = made(tmp_path, classes=("blue",))

    assert data.classes == ("blue",)
    assert data.skipped == {"other class": 2}
    assert data[0][1]["labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("images", "given"),
    [
        pytest.param("boxes", None, id="next to the JSON"),
        pytest.param("boxes/images", None, id="in images"),
        pytest.param("elsewhere", "elsewhere", id="in the given folder"),
    ],
)
def test_images_are_found(images: str, given: str | None, tmp_path: Path) -> None:
    file = write(tmp_path / "boxes", content(), tmp_path / images)

    if given is None:
        data = BoxImages(file)
    else:
        data = BoxImages(file, tmp_path / given)

    assert data.paths[0] == tmp_path / images / "0.png"
    pixels = np.asarray(Image.open(tmp_path / images / "0.png"))
    assert np.array_equal(data[0][0].permute(1, 2, 0).numpy(), pixels)


def runs_down_columns(mask: np.ndarray[Any, Any]) -> list[int]:
    """Run lengths of a mask, which begin with the background."""
    is_start = np.diff(mask.T.ravel(), prepend=2, append=2)
    return np.diff(np.flatnonzero(is_start)).tolist()  # type: ignore[no-any-return]


def segmented(content: dict[str, Any]) -> None:
    """Give each box its mask: polygons, run lengths as counts, run lengths as text, and a triangle."""
    masks = pytest.importorskip("pycocotools.mask")
    rectangle = np.zeros((HEIGHT, WIDTH), np.uint8)
    rectangle[10:22, 20:32] = 1
    whole = np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8))
    size = [HEIGHT, WIDTH]
    shapes = [
        [[2, 3, 12, 3, 12, 11, 2, 11]],
        {"size": size, "counts": runs_down_columns(rectangle)},
        {"size": size, "counts": masks.encode(whole)["counts"].decode()},
        [[5.25, 6, 12.25, 6, 5.25, 14]],
    ]
    for annotation, shape in zip(content["annotations"], shapes, strict=True):
        annotation["segmentation"] = shape


# pycocotools 2.0.11, NumPy 2.4
def test_masks_come_from_polygons_and_run_lengths(tmp_path: Path) -> None:
    data = made(tmp_path, segmented, masks=True)

    masks = data[0][1]["masks"]

    assert isinstance(masks, tv_tensors.Mask)
    expected = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    expected[0, 3:11, 2:12] = 1
    expected[1, 10:22, 20:32] = 1
    assert torch.equal(masks, expected)


def test_masks_come_from_run_lengths_as_text(tmp_path: Path) -> None:
    data = made(tmp_path, segmented, masks=True)

    whole = data[1][1]["masks"][0]

    assert whole.sum() == HEIGHT * WIDTH


def test_an_image_without_objects_has_no_masks(tmp_path: Path) -> None:
    data = made(tmp_path, segmented, masks=True)

    assert data[2][1]["masks"].shape == (0, HEIGHT, WIDTH)


# Views of them
# ----------------------------------------------------------------------------------------------


def rectangles() -> tuple[torch.Tensor, dict[str, Any]]:
    """A grey image with a red, a green and a blue rectangle: the pixels show where the boxes are."""
    pixels = torch.full((3, *SIZE), 124, dtype=torch.uint8)
    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=True):
        pixels[:, int(top) : int(bottom), int(left) : int(right)] = colour[:, None, None]
    target = {
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=SIZE),
        "labels": torch.arange(3),
        "image_id": 7,
        "size": SIZE,
    }
    return tv_tensors.Image(pixels), target


def box_of_colour(image: torch.Tensor, label: int) -> torch.Tensor:
    """The box around the pixels of a colour."""
    others = [channel for channel in range(3) if channel != label]
    is_colour = (image[label] > 0.75) & (image[others] < 0.25).all(dim=0)
    ys, xs = torch.where(is_colour)
    return torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)


def views_of_seeds(view: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Twelve views of the rectangles."""
    views = []
    for seed in range(12):
        torch.manual_seed(seed)
        views.append(view(*rectangles()))
    return views


def number_of_places(views: list[tuple[torch.Tensor, dict[str, Any]]]) -> int:
    """How many of the views have boxes at places of their own."""
    places = {tuple(target["boxes"].flatten().round().tolist()) for _, target in views}
    return len(places)


OF_SIZES = pytest.mark.parametrize("size", [(160, 200), (112, 256)])


@pytest.mark.parametrize("flip", [None, "horizontal", "both"])
@OF_SIZES
def test_boxes_follow_their_pixels(flip: Any, size: tuple[int, int]) -> None:
    views = views_of_seeds(box_transforms(size, train=True, flip=flip, **PLAIN))

    for image, target in views:
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            assert (box_of_colour(image, label) - box).abs().max() <= 2.5, label


@OF_SIZES
def test_a_training_view_has_its_size_and_keeps_the_facts_of_the_image(
    size: tuple[int, int],
) -> None:
    views = views_of_seeds(box_transforms(size, train=True, flip="both", **PLAIN))

    for image, target in views:
        assert image.shape == (3, *size)
        assert target["boxes"].canvas_size == size
        assert target["image_id"] == 7
        assert target["size"] == SIZE


@pytest.mark.parametrize(
    ("flip", "places"),
    [
        pytest.param(None, 1, id="none"),
        pytest.param("horizontal", 2, id="horizontal"),
        pytest.param("both", 4, id="both"),
    ],
)
@OF_SIZES
def test_views_are_flipped_in_all_ways_that_are_asked(
    flip: Any, places: int, size: tuple[int, int]
) -> None:
    views = views_of_seeds(box_transforms(size, train=True, flip=flip, **PLAIN))

    assert number_of_places(views) == places


OF_ZOOM_AND_CROP = pytest.mark.parametrize(
    "options",
    [
        pytest.param({"zoom": True}, id="zoom"),
        pytest.param({"crop": True}, id="crop"),
        pytest.param({"zoom": True, "crop": True}, id="both"),
    ],
)


@OF_ZOOM_AND_CROP
def test_zoomed_and_cropped_boxes_follow_their_pixels(options: dict[str, bool]) -> None:
    view = box_transforms((160, 200), train=True, flip=None, **PLAIN, **options)

    compared = 0
    for image, target in views_of_seeds(view):
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            shortest = min(box[2] - box[0], box[3] - box[1])
            if shortest > 8:  # else antialiasing hides the edges
                assert (box_of_colour(image, label) - box).abs().max() <= 2.5, label
                compared += 1
    assert compared >= 12


@OF_ZOOM_AND_CROP
def test_zoomed_and_cropped_views_have_their_size_and_differ(options: dict[str, bool]) -> None:
    view = box_transforms((160, 200), train=True, flip=None, **PLAIN, **options)

    views = views_of_seeds(view)

    for image, _ in views:
        assert image.shape == (3, 160, 200)
    assert number_of_places(views) > 3


def mean_area(**options: bool) -> float:
    """The mean area of the boxes of many views, as a share of the image."""
    view = box_transforms(100, train=True, flip=None, **PLAIN, **options)
    boxes = torch.cat([view(*rectangles())[1]["boxes"] for _ in range(40)])
    widths = boxes[:, 2] - boxes[:, 0]
    heights = boxes[:, 3] - boxes[:, 1]
    return float((widths * heights).mean()) / 100**2


def test_zoom_makes_objects_smaller() -> None:
    assert mean_area(zoom=True) < 0.9 * mean_area()


def test_crop_makes_objects_larger() -> None:
    assert mean_area(crop=True) > 1.1 * mean_area()


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


def test_a_test_view_draws_nothing() -> None:
    view = box_transforms((64, 96), train=False, flip="both")

    images = [view(*rectangles())[0] for _ in range(3)]

    assert torch.equal(images[1], images[0])
    assert torch.equal(images[2], images[0])


def test_a_test_view_keeps_boxes_that_no_training_would_keep() -> None:
    image, target = rectangles()
    narrow = torch.tensor([[0.0, 0.0, 0.4, 80.0]] * 3)
    target["boxes"] = tv_tensors.wrap(narrow, like=target["boxes"])

    _, resized = box_transforms((64, 96), train=False, flip="both")(image, target)

    assert torch.allclose(resized["boxes"][0], torch.tensor([0.0, 0.0, 0.4 * 96 / 100, 64.0]))


def test_a_test_view_resizes_and_normalises_as_the_backbone() -> None:
    """Up to the rounding of bytes."""
    image, target = rectangles()
    preprocess = Preprocessing(size=(64, 96), interpolation="bilinear")
    [expected] = preprocess(image.as_subclass(torch.Tensor))

    resized, _ = box_transforms((64, 96), train=False, flip="both")(image, target)

    assert (resized - expected).abs().max() < 0.02


def test_boxes_below_a_pixel_leave_training() -> None:
    view = box_transforms((3, 4), train=True, flip=None, photometric=False)

    _, target = view(*rectangles())

    assert target["labels"].tolist() == [1], "the others are 0.82 and 0.98 px high"
    assert len(target["boxes"]) == 1


def test_a_batch_is_a_plain_tensor() -> None:
    view = box_transforms((64, 224), train=False)

    images, _ = collate_boxes([view(*rectangles()) for _ in range(2)])

    assert type(images) is torch.Tensor
    assert images.shape == (2, 3, 64, 224)


def test_boxes_find_the_way_back_from_a_batch() -> None:
    view = box_transforms((64, 224), train=False)
    _, targets = collate_boxes([view(*rectangles()) for _ in range(2)])

    boxes = to_original(targets[1]["boxes"], (64, 224), targets[1]["size"])

    assert type(boxes) is torch.Tensor
    assert torch.allclose(boxes, torch.tensor(BOXES), atol=1e-5)


def test_boxes_of_any_leading_dimensions_find_the_way_back() -> None:
    boxes = to_original(torch.ones(2, 3, 4, dtype=torch.float64), (1, 1), (5, 7))

    assert boxes[1, 2].tolist() == [7, 5, 7, 5]


def test_whole_numbers_find_the_way_back_to_fractions() -> None:
    box = to_original(torch.tensor([1, 3, 5, 7]), (2, 2), (5, 3))

    assert box.tolist() == [1.5, 7.5, 7.5, 17.5]


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
