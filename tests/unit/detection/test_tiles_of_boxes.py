"""Large images are cut into tiles for detectors, and every box and mask of them is found once, whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests import kit
from tests.unit.detection import coloured_boxes, rf_detr_files
from torch import Tensor

from dinoneck import Predictor, STAPyramid
from dinoneck.detection import DetectionHead, Detector, RfDetr
from dinoneck.errors import ConfigError
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.inference.tile_merging import Detections, Tile, merge_tiles, tiles_of
from dinoneck.inference.tiles import Tiling

TILE = (96, 128)
LEFT = Tile(top=0, left=0, height=100, width=100)
RIGHT = Tile(top=0, left=60, height=100, width=100)
IMAGE_SIZE = (100, 160)  # of both: they share the columns 60 to 100


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Boxes XYXY, score and label, one per row."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(boxes=table[:, :4], scores=table[:, 4], labels=table[:, 5].long())


def detector_of(size: tuple[int, int] = TILE) -> Detector:
    torch.manual_seed(0)
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    for name, parameter in head.named_parameters():
        if name.endswith("cls_logits.bias"):
            torch.nn.init.zeros_(parameter)  # an untrained one gives no box
    return Detector(head, kit.backbone(), size)


def merged(left: Detections, right: Detections) -> Detections:
    return merge_tiles([left, right], [LEFT, RIGHT], IMAGE_SIZE)


@pytest.mark.parametrize(
    ("image_size", "tile", "overlap"),
    [
        pytest.param((480, 640), (96, 128), 0.2, id="several"),
        pytest.param((97, 129), (96, 128), 0.2, id="one pixel more"),
        pytest.param((50, 1000), (96, 128), 31, id="one row, shorter than a tile"),
        pytest.param((1000, 128), (96, 128), 0, id="no overlap"),
    ],
)
def test_tiles_cover_every_pixel_and_keep_the_overlap(
    image_size: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    tiles = tiles_of(image_size, Tiling(tile, overlap))

    shown = np.zeros(image_size, np.int64)
    for top, left, height, width in tiles:
        assert (height, width) == (min(tile[0], image_size[0]), min(tile[1], image_size[1]))
        assert top + height <= image_size[0] and left + width <= image_size[1]
        shown[top : top + height, left : left + width] += 1
    assert shown.min() == 1
    for axis in range(2):
        starts = sorted({one[axis] for one in tiles})
        least = overlap if isinstance(overlap, int) else overlap * tile[axis]
        assert all(b - a <= tile[axis] - least for a, b in pairwise(starts))


def test_an_overlap_as_large_as_a_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match="100 of the 100 pixels of a tile"):
        tiles_of((500, 500), Tiling((100, 100), 0.999))


def test_an_object_that_two_tiles_see_counts_once_with_the_higher_score() -> None:
    both = merged(
        detections((70, 10, 90, 30, 0.6, 0)),
        detections((71, 10, 91, 30, 0.7, 0)),
    )
    assert both.boxes.tolist() == [[71, 10, 91, 30]]
    assert both.scores.tolist() == pytest.approx([0.7])


def test_an_object_that_a_seam_cuts_is_the_whole_one_of_the_other_tile() -> None:
    """The left tile ends at column 100 and sees two thirds of it, with the higher score."""
    both = merged(
        detections((80, 10, 100, 30, 0.9, 0)),
        detections((80, 10, 110, 30, 0.5, 0)),
    )
    assert both.boxes.tolist() == [[80, 10, 110, 30]]


def test_on_a_tie_the_object_farther_from_the_seam_stays() -> None:
    """The left one is 8 px from column 100, the right one 12 px from column 60."""
    both = merged(
        detections((73, 10, 92, 30, 0.5, 0)),
        detections((72, 10, 91, 30, 0.5, 0)),
    )
    assert both.boxes.tolist() == [[72, 10, 91, 30]]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param((70, 10, 90, 30, 0.6, 0), (70, 10, 90, 30, 0.7, 1), id="two classes"),
        pytest.param((62, 10, 80, 30, 0.6, 0), (80, 10, 98, 30, 0.7, 0), id="two places"),
        pytest.param((5, 10, 55, 30, 0.6, 0), (105, 10, 155, 30, 0.7, 0), id="outside the strip"),
    ],
)
def test_different_objects_stay(left: Any, right: Any) -> None:
    both = merged(detections(left), detections(right))
    assert both.scores.tolist() == pytest.approx([0.7, 0.6])  # by falling score


def test_boxes_of_one_tile_stay_as_the_detector_gave_them() -> None:
    both = merged(
        detections((70, 10, 90, 30, 0.6, 0), (71, 10, 91, 30, 0.5, 0)),
        detections(),
    )
    assert both.scores.tolist() == pytest.approx([0.6, 0.5])


def see_rectangles(images: Tensor) -> list[dict[str, Tensor]]:
    """A detector that finds every red and blue rectangle to the pixel; small pieces get high scores."""
    found = []
    for image in images:
        rows = []
        for label, channel in enumerate((0, 2)):
            regions, count = ndimage.label((image[channel] > 0.8) & (image[1] < 0.3))
            for y, x in ndimage.find_objects(regions, count):
                score = 1 / (1 + (y.stop - y.start) * (x.stop - x.start))
                rows.append((x.start, y.start, x.stop, y.stop, score, label))
        seen = detections(*rows)
        found.append({"boxes": seen.boxes, "scores": seen.scores, "labels": seen.labels})
    return found


def see_masks(images: Tensor) -> list[dict[str, Tensor]]:
    """As :func:`see_rectangles`, with logits of the pixels of each."""
    predictions = see_rectangles(images)
    for prediction in predictions:
        logits = torch.full((len(prediction["boxes"]), *images.shape[2:]), -1.0)
        for number, (x0, y0, x1, y1) in enumerate(prediction["boxes"].int().tolist()):
            logits[number, y0:y1, x0:x1] = 1.0
        prediction["masks"] = logits
    return predictions


def rectangles_in(image: Tensor, count: int, longest: int) -> list[list[float]]:
    """Draw rectangles that do not touch; return their boxes."""
    rng = np.random.default_rng(0)
    taken = np.zeros(image.shape[1:], bool)
    boxes = []
    while len(boxes) < count:
        height, width = (int(side) for side in rng.integers(6, longest, 2))
        top = int(rng.integers(0, image.shape[1] - height))
        left = int(rng.integers(0, image.shape[2] - width))
        if taken[max(0, top - 2) : top + height + 2, max(0, left - 2) : left + width + 2].any():
            continue
        taken[top : top + height, left : left + width] = True
        colour = list(coloured_boxes.COLOURS.values())[len(boxes) % 2]
        image[:, top : top + height, left : left + width] = torch.tensor(colour, dtype=torch.uint8)[
            :, None, None
        ]
        boxes.append([float(left), float(top), float(left + width), float(top + height)])
    return boxes


def test_every_object_shorter_than_the_overlap_is_found_once_and_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = torch.full((3, 500, 700), 128, dtype=torch.uint8)
    boxes = rectangles_in(image, count=150, longest=30)
    detector = detector_of()
    monkeypatch.setattr(detector, "forward", see_rectangles)

    [prediction] = detector.predict(image, min_score=0.0, tile=TILE, overlap=32, max_boxes=1000)

    assert sorted(prediction["boxes"].tolist()) == sorted(boxes)
    assert len(prediction["names"]) == len(boxes)


def test_masks_of_tiles_lie_where_their_objects_do(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((3, 500, 700), 128, dtype=torch.uint8)
    boxes = rectangles_in(image, count=150, longest=30)
    detector = detector_of()
    monkeypatch.setattr(detector, "forward", see_masks)

    [prediction] = detector.predict(image, min_score=0.0, tile=TILE, overlap=32, max_boxes=1000)

    masks = prediction["masks"]
    assert isinstance(masks, CroppedMasks)
    assert masks.shape == (len(boxes), 500, 700)
    assert sorted(prediction["boxes"].tolist()) == sorted(boxes)
    for number, box in enumerate(prediction["boxes"].int().tolist()):
        assert masks.rectangle(number) == tuple(box)
        assert masks.crops[number].all()


def test_without_tiles_masks_are_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((3, *TILE), 128, dtype=torch.uint8)
    rectangles_in(image, count=5, longest=30)
    detector = detector_of()
    monkeypatch.setattr(detector, "forward", see_masks)

    [whole] = detector.predict(image, min_score=0.0)
    [tiled] = detector.predict(image, min_score=0.0, tile=TILE)

    assert whole["masks"].shape == (5, *TILE)
    assert whole["masks"].dtype == torch.bool
    assert np.array_equal(np.asarray(tiled["masks"]), whole["masks"].numpy())


def test_a_detector_of_masks_gives_those_of_tiles() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = RfDetr(
        ("cell",), (0,), 1, image_size=96, num_windows=1, masks=True, queries=20, encoder_layers=4
    )
    rf_detr_files.spread_scores_and_boxes(network)
    detector = Detector(network, None, (96, 96))
    parts = [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in range(2)]
    of_parts = detector.predict(parts, min_score=0.0)

    [prediction] = detector.predict(
        torch.cat(parts, dim=2), min_score=0.0, tile=96, overlap=0, batch_size=2
    )

    expected = torch.zeros(len(prediction["scores"]), 96, 192, dtype=torch.bool)
    scores = torch.cat([part["scores"] for part in of_parts])
    expected[: len(of_parts[0]["scores"]), :, :96] = of_parts[0]["masks"]
    expected[len(of_parts[0]["scores"]) :, :, 96:] = of_parts[1]["masks"]
    by_score = scores.argsort(descending=True, stable=True)
    assert len(prediction["masks"]) == len(scores) > 10
    assert np.asarray(prediction["masks"]).any()
    assert np.array_equal(np.asarray(prediction["masks"]), expected[by_score].numpy())


def test_tiles_without_overlap_are_predicted_as_images_of_their_own() -> None:
    detector = detector_of()
    parts = [torch.randint(0, 256, (3, *TILE), dtype=torch.uint8) for _ in range(4)]
    mosaic = torch.cat([torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)], dim=1)

    [prediction] = detector.predict(mosaic, min_score=0.0, tile=TILE, overlap=0)

    expected_boxes = []
    for number, part in enumerate(detector.predict(parts, min_score=0.0)):
        row, col = divmod(number, 2)
        shift = torch.tensor([col * TILE[1], row * TILE[0], col * TILE[1], row * TILE[0]])
        expected_boxes += (part["boxes"] + shift).tolist()
    assert len(expected_boxes) > 0
    order = np.lexsort(np.transpose(expected_boxes))
    found_order = np.lexsort(prediction["boxes"].numpy().T)
    torch.testing.assert_close(
        prediction["boxes"][found_order], torch.tensor(expected_boxes)[order], atol=1e-3, rtol=0
    )


def test_an_image_that_fits_a_tile_is_predicted_as_a_whole_among_large_ones() -> None:
    detector = detector_of()
    small = torch.randint(0, 256, (3, 80, 100), dtype=torch.uint8)
    large = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    [whole] = detector.predict(small, min_score=0.0)

    predictions = detector.predict([large, small, large], min_score=0.0, tile=TILE)

    torch.testing.assert_close(predictions[1]["boxes"], whole["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(predictions[0]["boxes"], predictions[2]["boxes"], atol=1e-3, rtol=0)
    assert predictions[0]["boxes"][:, 2].max() > 128  # beyond the first tile


def test_a_predictor_cuts_for_its_detector(tmp_path: Path) -> None:
    detector = detector_of()
    detector.save(tmp_path / "boxes.safetensors")
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    [expected] = detector.predict(image, min_score=0.0, tile=TILE, overlap=16)

    predictor = Predictor(tmp_path / "boxes.safetensors", tile=TILE, overlap=16)
    [prediction] = predictor(image, min_score=0.0)

    assert torch.equal(prediction["boxes"], expected["boxes"])


def test_an_overlap_without_tiles_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap is 16, and what predicts was not trained"):
        detector_of().predict(torch.zeros(3, 96, 128), overlap=16)


def test_a_small_box_inside_a_tile_leaves_a_large_one_that_is_cut() -> None:
    """The large one begins in the strip, whose left half the small one fills."""
    both = merge_tiles(
        [detections((82, 10, 98, 30, 0.6, 0)), detections((80, 8, 180, 32, 0.95, 0))],
        tiles_of((100, 180), Tiling((100, 100), 20)),
        (100, 180),
    )
    assert both.scores.tolist() == pytest.approx([0.95, 0.6])


def test_the_overlap_of_one_call_holds_where_the_detector_has_its_tiles() -> None:
    detector = detector_of()
    detector.use_tiles(TILE)
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    [overlapping] = detector.predict(image, min_score=0.0)
    [expected] = detector.predict(image, min_score=0.0, tile=TILE, overlap=64)

    [prediction] = detector.predict(image, min_score=0.0, overlap=64)

    assert torch.equal(prediction["boxes"], expected["boxes"])
    assert not torch.equal(prediction["boxes"], overlapping["boxes"])
