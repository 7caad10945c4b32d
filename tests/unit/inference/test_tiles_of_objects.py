"""Heads of objects in tiles: instances and panoptic segments of large images, every object once and whole.

The tokens show the mean colour of their patch alone, and the head takes connected cells of a colour for
an object, so that what is in an image is known to the pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests import kit
from torch import Tensor

from dinoneck import Backbone, Predictor, Task
from dinoneck.data import Preprocessing
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.inference import coco_objects
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.inference.tile_merging import (
    Detections,
    Tile,
    merge_tiles,
    overlapping_pairs,
    tiles_of,
)
from dinoneck.inference.tiled_objects import TiledSegments
from dinoneck.inference.tiles import Tiling
from dinoneck.tokens import Tokens

CELL = 16  # px of a patch
# the stuff, then the things of every label
COLOURS = {
    "soil": (120, 120, 120),
    "grass": (20, 160, 20),
    "red": (230, 10, 10),
    "blue": (10, 10, 230),
}
LABELS = tuple(COLOURS)
THINGS = ("red", "blue")
TILE = (96, 128)
OVERLAP = 64
# so many px that tiles with the least overlap begin at whole cells
IMAGE_SIZE = (96 + 32 * 5, 128 + 64 * 4)


class CellHead(Head):
    """Finds connected cells of one colour."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed_dim = 64
        labels = LABELS if kind == "panoptic" else THINGS
        things = {"things": THINGS} if kind == "panoptic" else {}
        task: Any = Task("plant", dim=len(labels), kind=kind, labels=labels, **things)  # type: ignore[arg-type]
        self.tasks = (task,)
        self.known = torch.zeros(len(COLOURS), self.embed_dim)  # the token of every colour

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        raise NotImplementedError

    def _classes(self, tokens: Tokens) -> np.ndarray:
        """The number of the colour of every cell (rows, cols)."""
        [patches] = tokens.patches[0]
        distances = torch.cdist(patches, self.known)
        return distances.argmin(dim=1).reshape(tokens.grid).numpy()

    def predict_instances(
        self, tokens: Tokens, size: Any = None, min_score: float | None = None
    ) -> list[dict[str, Tensor]]:
        classes = self._classes(tokens)
        masks = []
        labels = []
        for label, name in enumerate(THINGS):
            regions, count = ndimage.label(classes == LABELS.index(name))
            for number in range(1, count + 1):
                masks.append(np.kron(regions == number, np.ones((CELL, CELL), bool)))
                labels.append(label)
        pixels = torch.from_numpy(np.array(masks).reshape(-1, *size))
        # small pieces have the higher scores
        scores = 1 / (1 + pixels.sum(dim=(1, 2)).float() / CELL**2)
        return [
            {
                "boxes": torch.zeros(len(masks), 4),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "scores": scores,
                "masks": pixels,
            }
        ]

    def predict_panoptic(
        self, tokens: Tokens, size: Any = None, min_score: float | None = None
    ) -> list[Any]:
        classes = self._classes(tokens)
        segments = np.zeros(classes.shape, np.int64)
        entries = []
        for label, name in enumerate(LABELS):
            regions, count = ndimage.label(classes == label)
            if name not in THINGS:
                regions, count = (classes == label).astype(int), int((classes == label).any())
            for number in range(1, count + 1):
                segments[regions == number] = 1 + len(entries)
                area = int((regions == number).sum())
                entries.append(
                    {
                        "id": 1 + len(entries),
                        "category_id": label,
                        "isthing": name in THINGS,
                        "score": 1 / (1 + area),
                    }
                )
        pixels = np.kron(segments, np.ones((CELL, CELL), np.int64))
        return [(torch.from_numpy(pixels), entries)]


def head_of(kind: str, backbone: Backbone) -> CellHead:
    """A head that knows the tokens of the colours."""
    head = CellHead(kind)
    colours = torch.tensor([*COLOURS.values()], dtype=torch.float32) / 255
    images = colours[:, :, None, None].expand(-1, -1, CELL, CELL)
    head.known = backbone(backbone.preprocess(images)).patches[0][:, 0]
    return head


def painted(seed: int, size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray:
    """The colours of the cells of an image: things of up to 3 cells on a side that do not touch, on stuff."""
    rng = np.random.default_rng(seed)
    rows, cols = size[0] // CELL, size[1] // CELL
    cells = np.zeros((rows, cols), np.int64)
    cells[:, cols // 2 :] = LABELS.index("grass")
    is_free = np.ones((rows, cols), bool)
    for _ in range(200):
        height, width = rng.integers(1, 4, 2)
        top = rng.integers(0, rows - height + 1)
        left = rng.integers(0, cols - width + 1)
        if is_free[top : top + height, left : left + width].all():
            cells[top : top + height, left : left + width] = LABELS.index(THINGS[rng.integers(2)])
            around = (
                slice(max(0, top - 1), top + height + 1),
                slice(max(0, left - 1), left + width + 1),
            )
            is_free[around] = False
    return cells


def image_of(cells: np.ndarray) -> Tensor:
    colours = np.array([*COLOURS.values()], np.uint8)[cells]
    pixels = colours.repeat(CELL, axis=0).repeat(CELL, axis=1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def known_masks(cells: np.ndarray, name: str) -> list[np.ndarray]:
    """The masks of the objects of a label, (height, width) bool."""
    regions, count = ndimage.label(cells == LABELS.index(name))
    return [np.kron(regions == i, np.ones((CELL, CELL), bool)) for i in range(1, count + 1)]


def as_set(masks: Any) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


@pytest.mark.parametrize("seed", range(5))
def test_every_instance_shorter_than_the_overlap_is_found_once_and_whole(
    seed: int, blind: Backbone
) -> None:
    cells = painted(seed)
    predictor = Predictor(head_of("instances", blind), blind, tile=TILE, overlap=OVERLAP)

    [row] = predictor(image_of(cells))

    plants = row["plant"]
    assert isinstance(plants["masks"], CroppedMasks)
    assert plants["masks"].shape == (len(plants["scores"]), *IMAGE_SIZE)
    for label, name in enumerate(THINGS):
        numbers = np.flatnonzero(plants["labels"] == label)
        expected = known_masks(cells, name)
        assert len(numbers) == len(expected) > 2
        assert as_set(plants["masks"].take(numbers)) == as_set(expected)
    assert (np.diff(plants["scores"]) <= 0).all()
    for number, (x0, y0, x1, y1) in enumerate(plants["boxes"].astype(int)):
        assert plants["masks"].rectangle(number) == (x0, y0, x1, y1)


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_segments_of_tiles_are_those_of_the_image(seed: int, blind: Backbone) -> None:
    cells = painted(seed)
    predictor = Predictor(head_of("panoptic", blind), blind, tile=TILE, overlap=OVERLAP)

    [row] = predictor(image_of(cells))

    segments, entries = row["plant"]
    assert segments.shape == IMAGE_SIZE
    assert [entry["id"] for entry in entries] == [*range(1, len(entries) + 1)]
    for label, name in enumerate(LABELS):
        of_label = [entry for entry in entries if entry["category_id"] == label]
        masks = [segments == entry["id"] for entry in of_label]
        if name in THINGS:
            assert as_set(masks) == as_set(known_masks(cells, name))
        else:  # one segment, although it has parts
            is_stuff = np.kron(cells == label, np.ones((CELL, CELL), bool))
            assert as_set(masks) == as_set([is_stuff])
        for entry, mask in zip(of_label, masks, strict=True):
            assert entry["area"] == mask.sum()
            assert entry["isthing"] == (name in THINGS)


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_an_image_that_fits_a_tile_is_predicted_as_without_tiles(
    kind: str, blind: Backbone
) -> None:
    head = head_of(kind, blind)
    small = image_of(painted(0, TILE))
    large = image_of(painted(1))
    [whole] = Predictor(head, blind)(small)

    rows = Predictor(head, blind, tile=TILE)([large, small, large])

    if kind == "instances":
        assert np.array_equal(np.asarray(rows[1]["plant"]["masks"]), whole["plant"]["masks"])
        assert np.array_equal(rows[1]["plant"]["boxes"], whole["plant"]["boxes"])
    else:
        assert np.array_equal(rows[1]["plant"][0], whole["plant"][0])
        assert rows[1]["plant"][1] == whole["plant"][1]
    pytest.importorskip("pycocotools")
    assert coco_objects(rows[1]["plant"]) == coco_objects(whole["plant"])
    assert coco_objects(rows[0]["plant"]) == coco_objects(rows[2]["plant"])


def test_neighbours_share_a_fifth_of_a_tile_unless_told_otherwise(blind: Backbone) -> None:
    head = head_of("instances", blind)
    image = image_of(painted(2))
    [expected] = Predictor(head, blind, tile=TILE, overlap=0.2)(image)

    [row] = Predictor(head, blind, tile=TILE)(image)

    assert np.array_equal(row["plant"]["boxes"], expected["plant"]["boxes"])


def test_numbers_next_to_objects_are_those_of_tiles_without_objects(blind: Backbone) -> None:
    image = image_of(painted(3))
    [expected] = Predictor(kit.head(), blind, tile=TILE)(image)

    heads = {"plants": head_of("instances", blind), "mass": kit.head()}
    [row] = Predictor(heads, blind, tile=TILE)(image)

    assert row["mass"] == expected
    assert len(row["plants"]["plant"]["scores"]) > 5


def test_objects_have_one_view(blind: Backbone) -> None:
    with pytest.raises(ConfigError, match="'plant' predicts objects, which have no mean; pass tta"):
        Predictor(head_of("instances", blind), blind, tta="flip4", tile=TILE)


@pytest.mark.parametrize(
    ("image_size", "tile", "overlap"),
    [
        pytest.param((500, 700), (96, 128), 0.2, id="neighbours"),
        pytest.param((300, 300), (96, 128), 0.8, id="tiles over several others"),
        pytest.param((300, 300), (100, 100), 0, id="none"),
        pytest.param((60, 500), (96, 128), 30, id="one row"),
    ],
)
def test_pairs_of_tiles_are_those_with_pixels_in_common(
    image_size: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    tiles = tiles_of(image_size, Tiling(tile, overlap))
    expected = []
    for first in range(len(tiles)):
        for second in range(first + 1, len(tiles)):
            a, b = tiles[first], tiles[second]
            are_near = abs(a.top - b.top) < a.height and abs(a.left - b.left) < a.width
            if are_near:
                expected.append((first, second))

    assert sorted(overlapping_pairs(tiles)) == expected


# two tiles that share the columns 60 to 100
LEFT = Tile(top=0, left=0, height=100, width=100)
RIGHT = Tile(top=0, left=60, height=100, width=100)
PAIR_SIZE = (100, 160)


def one_mask(rows: slice, cols: slice, score: float, box: Any = (62, 10, 98, 50)) -> Detections:
    mask = np.zeros(PAIR_SIZE, bool)
    mask[rows, cols] = True
    return Detections(
        boxes=torch.tensor([box], dtype=torch.float32),
        scores=torch.tensor([score]),
        labels=torch.tensor([0]),
        masks=CroppedMasks.of_masks([mask], size=PAIR_SIZE),
    )


def test_masks_are_compared_not_their_boxes() -> None:
    """The boxes are alike, and the masks have a third of their pixels in common: 10 of 30 columns."""
    first = one_mask(slice(10, 50), slice(62, 82), 0.6)
    second = one_mask(slice(10, 50), slice(72, 92), 0.7)

    both = merge_tiles([first, second], [LEFT, RIGHT], PAIR_SIZE)

    assert both.scores.tolist() == pytest.approx([0.7, 0.6])


def test_masks_that_two_tiles_see_count_once() -> None:
    """18 of 22 columns are common."""
    first = one_mask(slice(10, 50), slice(64, 84), 0.6)
    second = one_mask(slice(10, 50), slice(66, 86), 0.7)

    both = merge_tiles([first, second], [LEFT, RIGHT], PAIR_SIZE)

    assert both.scores.tolist() == pytest.approx([0.7])
    assert both.masks is not None
    assert both.masks.rectangle(0) == (66, 10, 86, 50)


def test_a_mask_that_a_seam_cuts_is_the_whole_one_of_the_other_tile() -> None:
    """The left tile ends at column 100; within what both see the masks are equal."""
    cut = one_mask(slice(10, 50), slice(80, 100), 0.9, box=(80, 10, 100, 50))
    whole = one_mask(slice(10, 50), slice(80, 130), 0.5, box=(80, 10, 130, 50))

    both = merge_tiles([cut, whole], [LEFT, RIGHT], PAIR_SIZE)

    assert both.scores.tolist() == [0.5]


def test_objects_without_a_pixel_of_their_mask_are_compared_by_their_boxes() -> None:
    empty = slice(0, 0)
    first = one_mask(empty, empty, 0.6)
    same = one_mask(empty, empty, 0.7)
    other = one_mask(empty, empty, 0.5, box=(62, 60, 98, 95))

    assert merge_tiles([first, same], [LEFT, RIGHT], PAIR_SIZE).scores.tolist() == pytest.approx(
        [0.7]
    )
    assert len(merge_tiles([first, other], [LEFT, RIGHT], PAIR_SIZE).scores) == 2


@pytest.mark.parametrize(("resize", "is_refused"), [("crop", True), ("stretch", False)])
def test_an_image_whose_tiles_would_lose_their_sides_is_refused(
    resize: str, is_refused: bool
) -> None:
    """Of an image 300 px high, tiles of 512 x 512 are 300 x 512, of which crop shows 300 columns."""
    preprocess = Preprocessing(patch_size=16, size=(512, 512), resize=resize)  # type: ignore[arg-type]
    tiling = Tiling((512, 512))
    tiling.check_shown((600, 2000), preprocess)
    if is_refused:
        with pytest.raises(DataError, match="300 x 2000 .*its tiles are 300 x 512 in the place of"):
            tiling.check_shown((300, 2000), preprocess)
    else:
        tiling.check_shown((300, 2000), preprocess)


def test_a_thing_that_a_better_one_covers_is_no_segment() -> None:
    small = {"isthing": True, "category_id": 2, "id": 1, "score": 0.7}
    large = {"isthing": True, "category_id": 3, "id": 1, "score": 0.8}
    left = np.zeros((100, 100), np.int64)
    left[40:50, 70:80] = 1
    right = np.zeros((100, 100), np.int64)
    right[30:60, 2:40] = 1  # columns 62 to 100 of the image

    tiled = TiledSegments([LEFT, RIGHT], PAIR_SIZE, num_classes=4)
    tiled.add(LEFT, (left, [small]))
    tiled.add(RIGHT, (right, [large]))
    segments, entries = tiled.merged()

    assert [entry["category_id"] for entry in entries] == [3]
    assert entries[0]["area"] == 30 * 38
    assert (segments > 0).sum() == 30 * 38


def test_stuff_of_two_tiles_is_that_of_the_nearer_middle_and_things_lie_over_it() -> None:
    """The tiles disagree on columns 60 to 100, whose middle is 80; the better of two things is on top."""
    stuff = {"isthing": False, "category_id": 0, "id": 1, "score": 0.9}
    other = {"isthing": False, "category_id": 1, "id": 1, "score": 0.8}
    thing = {"isthing": True, "category_id": 2, "id": 2, "score": 0.7}
    better = {"isthing": True, "category_id": 3, "id": 2, "score": 0.8}
    left = np.ones((100, 100), np.int64)
    left[40:60, 70:90] = 2
    right = np.ones((100, 100), np.int64)
    right[50:70, 10:30] = 2  # columns 70 to 90 of the image
    right[:10] = 0  # nothing is known there

    tiled = TiledSegments([LEFT, RIGHT], PAIR_SIZE, num_classes=4)
    tiled.add(LEFT, (left, [stuff, thing]))
    tiled.add(RIGHT, (right, [other, better]))
    segments, entries = tiled.merged()

    classes = np.array([-1, *(entry["category_id"] for entry in entries)])[segments]
    expected = np.zeros(PAIR_SIZE, np.int64)
    expected[10:, 80:] = 1
    expected[:10, 100:] = -1  # the left tile does not show it
    expected[40:50, 70:90] = 2
    expected[50:70, 70:90] = 3
    assert np.array_equal(classes, expected)
    assert [entry["area"] for entry in entries] == [
        (expected == entry["category_id"]).sum() for entry in entries
    ]
