"""Large images for objects: tiles in pixels of the image, and their objects put together without duplicates."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.images.recipe import Size
from dinoneck.inference.cropped_masks import CroppedMasks, Rectangle
from dinoneck.inference.tiles import Tiling, tile_starts, tiling_of

Array = np.ndarray[Any, Any]

DEFAULT_OVERLAP = 0.2
"""The least overlap of neighbouring tiles, as a share of a tile."""
SAME_OBJECT_IOU = 0.5
"""Boxes of two tiles with a larger intersection over union, where both tiles see, are one object."""
CUT_MARGIN = 0.01
"""A box that ends within this share of a tile from a seam may have been cut there."""


class Tile(NamedTuple):
    """A rectangle of an image, in pixels.

    Attributes:
        top: the first row.
        left: the first column.
        height: number of rows.
        width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY, in pixels of the image."""
        return (self.left, self.top, self.left + self.width, self.top + self.height)


@dataclass(frozen=True)
class Detections:
    """The objects of an image, or of a tile of it.

    Attributes:
        boxes: (n, 4) XYXY in pixels of the image.
        scores: (n,).
        labels: (n,) int64.
        masks: n masks in the image; None: there are boxes alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: CroppedMasks | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, numbers: Tensor) -> Detections:
        """Return some of the objects, in this order."""
        masks = None
        if self.masks is not None:
            masks = self.masks.take(numbers.tolist())
        return Detections(self.boxes[numbers], self.scores[numbers], self.labels[numbers], masks)


def copy_to_keep(values: Tensor | Array) -> Tensor:
    """Return a copy in memory of NumPy, for small tensors that stay while those of one tile after the other are freed.

    Torch aligns its memory: where a small tensor of a tile stays among what is freed, the next tile's
    tensors do not fit, and the process grows by them with every tile.
    """
    return torch.from_numpy(np.array(values))


def no_tiles_to_overlap(overlap: int | float) -> ConfigError:
    """Return the error of an overlap for files that were not trained on tiles, where no tile is stated."""
    return ConfigError(
        f"overlap is {overlap!r}, and what predicts was not trained on tiles; give the size of a "
        "tile (tile=, --tile)"
    )


def tiling_for_objects(
    tile: int | tuple[int, int] | None,
    overlap: int | float | None,
    *,
    longest_box: float | None = None,
) -> Tiling | None:
    """Return how images are cut for objects; None: they are not.

    Args:
        tile: (height, width) in pixels of the image, or one number for both; None: no tiles.
        overlap: by how much tiles overlap at least; None: :data:`DEFAULT_OVERLAP`, and for the
            longest box.
        longest_box: of the training, see :class:`dinoneck.inference.tiles.Tiling`.

    Raises:
        ConfigError: for an overlap without tiles, and values that are out of range.
    """
    if tile is None or overlap is not None:
        return tiling_of(tile, overlap)
    return Tiling(cast("tuple[int, int]", tile), DEFAULT_OVERLAP, longest_box=longest_box)


def tiles_of(image_size: Size, tiling: Tiling) -> list[Tile]:
    """Return the tiles of an image, row by row; they cover every pixel.

    They are spread evenly, as few as keep the overlap. A side of the image that is shorter than
    that of a tile is not cut.

    Args:
        image_size: (height, width) in pixels.
        tiling: size and overlap of the tiles.

    Raises:
        ConfigError: if the overlap is as large as a tile.
    """
    lengths = []
    starts = []
    for total, side in zip(image_size, tiling.tile, strict=True):
        length = min(side, total)
        overlap = tiling.overlap_px(side)
        starts.append(tile_starts(total=total, length=length, overlap=overlap))
        lengths.append(length)
    height, width = lengths
    tops, lefts = starts
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def merge_tiles(
    detections: Sequence[Detections], tiles: Sequence[Tile], image_size: Size
) -> Detections:
    """Return the objects of all tiles of an image, without those that a neighbour found as well.

    Two objects of one class from two tiles are one if their intersection over union, of their masks
    or else of their boxes, is above :data:`SAME_OBJECT_IOU`. One whose box may be cut at a seam is
    compared within the pixels that both tiles see; one whose box lies inside its tile is whole, and
    compared with all of the other. Of two that are one object, the whole one is kept; if both are
    whole, or neither, the one with the higher score, on a tie the one farther from the seams. So no
    two objects of a class from two tiles that are kept have a larger intersection over union.
    Objects of one tile are left as the detector gave them.

    Args:
        detections: of every tile, in pixels of the image; all or none have masks.
        tiles: of :func:`tiles_of`.
        image_size: (height, width) of the image.

    Returns:
        The objects by falling score.
    """
    merged = _joined(detections, image_size)
    distances = []
    are_cut = []
    for of_tile, tile in zip(detections, tiles, strict=True):
        distance = _distance_to_seams(of_tile.boxes, tile, image_size)
        distances.append(distance)
        are_cut.append(distance < CUT_MARGIN * min(tile.height, tile.width))
    # the last key of lexsort is the first to sort by
    by_preference = np.lexsort(
        (
            -torch.cat(distances).numpy(),
            -merged.scores.numpy(),
            torch.cat(are_cut).numpy(),
        )
    )
    duplicates = _duplicates(detections, tiles, are_cut)
    is_kept = torch.zeros(len(merged), dtype=torch.bool)
    for number in by_preference.tolist():
        is_kept[number] = not any(is_kept[other] for other in duplicates[number])
    kept = is_kept.nonzero()[:, 0]
    by_score = kept[merged.scores[kept].argsort(descending=True, stable=True)]
    return merged.take(by_score)


def _joined(detections: Sequence[Detections], image_size: Size) -> Detections:
    """The objects of all tiles, one tile after the other."""
    masks = None
    if detections[0].masks is not None:
        masks = CroppedMasks([], [], size=image_size)
        for of_tile in detections:
            of_tile_masks = cast("CroppedMasks", of_tile.masks)
            masks.crops += of_tile_masks.crops
            masks.corners += of_tile_masks.corners
    return Detections(
        boxes=torch.cat([of_tile.boxes for of_tile in detections]),
        scores=torch.cat([of_tile.scores for of_tile in detections]),
        labels=torch.cat([of_tile.labels for of_tile in detections]),
        masks=masks,
    )


def _distance_to_seams(boxes: Tensor, tile: Tile, image_size: Size) -> Tensor:
    """The pixels (n,) between boxes (n, 4) and the nearest edge of their tile that is inside the image; else inf."""
    height, width = image_size
    left, top, right, bottom = tile.box
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    distance = torch.full((len(boxes),), math.inf)
    if left > 0:
        distance = distance.minimum(x0 - left)
    if top > 0:
        distance = distance.minimum(y0 - top)
    if right < width:
        distance = distance.minimum(right - x1)
    if bottom < height:
        distance = distance.minimum(bottom - y1)
    return distance


def _duplicates(
    detections: Sequence[Detections], tiles: Sequence[Tile], are_cut: Sequence[Tensor]
) -> Mapping[int, list[int]]:
    """Number of a detection, counted over all tiles -> those of other tiles that are the same object.

    ``are_cut`` holds per tile whether its detections may be cut at a seam, (n,).
    """
    first_numbers = np.cumsum([0, *(len(of_tile) for of_tile in detections)])
    duplicates: dict[int, list[int]] = defaultdict(list)
    for first, second in overlapping_pairs(tiles):
        if not len(detections[first]) or not len(detections[second]):
            continue
        is_same = _same_objects(
            detections[first],
            detections[second],
            shared=_shared_rectangle(tiles[first], tiles[second]),
            is_first_cut=are_cut[first],
            is_second_cut=are_cut[second],
        )
        for in_first, in_second in is_same.nonzero().tolist():
            number = int(first_numbers[first]) + in_first
            other = int(first_numbers[second]) + in_second
            duplicates[number].append(other)
            duplicates[other].append(number)
    return duplicates


def overlapping_pairs(tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of tiles of :func:`tiles_of` that have pixels in common, the smaller first."""
    numbers = {(tile.top, tile.left): number for number, tile in enumerate(tiles)}
    tops_near = _overlapping_starts({tile.top for tile in tiles}, tiles[0].height)
    lefts_near = _overlapping_starts({tile.left for tile in tiles}, tiles[0].width)
    for first, tile in enumerate(tiles):
        for top in tops_near[tile.top]:
            for left in lefts_near[tile.left]:
                second = numbers[top, left]
                if second > first:
                    yield first, second


def _overlapping_starts(starts: set[int], length: int) -> dict[int, list[int]]:
    """Start of a tile along an axis -> the starts of tiles that overlap it, itself among them."""
    in_order = sorted(starts)
    near: dict[int, list[int]] = {}
    for start in in_order:
        first = bisect_right(in_order, start - length)
        end = bisect_left(in_order, start + length)
        near[start] = in_order[first:end]
    return near


def _shared_rectangle(first: Tile, second: Tile) -> Rectangle:
    """XYXY of the pixels that two overlapping tiles see."""
    left = max(first.left, second.left)
    top = max(first.top, second.top)
    right = min(first.left + first.width, second.left + second.width)
    bottom = min(first.top + first.height, second.top + second.height)
    return (left, top, right, bottom)


def _same_objects(
    first: Detections,
    second: Detections,
    *,
    shared: Rectangle,
    is_first_cut: Tensor,
    is_second_cut: Tensor,
) -> Tensor:
    """Whether detections of two tiles are one object, (n, m).

    Args:
        first: the n detections of a tile.
        second: the m detections of the other one.
        shared: XYXY of the pixels that both tiles see.
        is_first_cut: whether those of the first tile may be cut at a seam.
        is_second_cut: whether those of the second tile may be.
    """
    is_of_class = first.labels[:, None] == second.labels
    if first.masks is None or second.masks is None:
        ious = _ious_of_boxes(first.boxes, second.boxes, shared)
    else:
        of_masks = _ious_of_masks(first.masks, second.masks, shared, is_of_class)
        of_boxes = _ious_of_boxes(first.boxes, second.boxes, shared)
        # objects that are too small for a pixel of their mask are compared by their boxes
        is_first_empty = torch.from_numpy(first.masks.areas() == 0)
        is_second_empty = torch.from_numpy(second.masks.areas() == 0)
        are_empty = is_first_empty[:, None] & is_second_empty
        ious = _Ious(
            shown=_chosen(are_empty, of_boxes.shown, of_masks.shown),
            with_all_of_first=_chosen(
                are_empty, of_boxes.with_all_of_first, of_masks.with_all_of_first
            ),
            with_all_of_second=_chosen(
                are_empty, of_boxes.with_all_of_second, of_masks.with_all_of_second
            ),
        )
    # the other tile shows no more of an object that is whole
    with_whole_first = ious.shown.minimum(ious.with_all_of_second)
    smallest = torch.where(is_first_cut[:, None], ious.shown, with_whole_first)
    with_whole_second = smallest.minimum(ious.with_all_of_first)
    smallest = torch.where(is_second_cut, smallest, with_whole_second)
    return (smallest > SAME_OBJECT_IOU) & is_of_class


def _chosen(are_empty: Tensor, of_boxes: Tensor, of_masks: Tensor) -> Tensor:
    """The values of boxes for pairs of empty masks, and those of masks for all others, (n, m)."""
    return torch.where(are_empty, of_boxes.to(of_masks), of_masks)


class _Ious(NamedTuple):
    """Intersections over union of the n objects of a tile and the m of another one, (n, m) each.

    Attributes:
        shown: of what lies in the pixels that both tiles see.
        with_all_of_first: of the whole first object, and of the second what both tiles see.
        with_all_of_second: of the whole second object, and of the first what both tiles see.
    """

    shown: Tensor
    with_all_of_first: Tensor
    with_all_of_second: Tensor


def _ious_of_boxes(first: Tensor, second: Tensor, shared: Rectangle) -> _Ious:
    """Those of boxes (n, 4) and (m, 4)."""
    from torchvision.ops import box_iou  # heads of numbers and maps do without torchvision

    first_shown = _cut(first, shared)
    second_shown = _cut(second, shared)
    # of boxes outside it is NaN, which is not above the threshold
    return _Ious(
        shown=box_iou(first_shown, second_shown),
        with_all_of_first=box_iou(first, second_shown),
        with_all_of_second=box_iou(first_shown, second),
    )


def _ious_of_masks(
    first: CroppedMasks, second: CroppedMasks, shared: Rectangle, is_candidate: Tensor
) -> _Ious:
    """Those of masks, each of which lies in its tile; 0 for pairs that are no candidates (n, m)."""
    first_areas = first.areas()
    second_areas = second.areas()
    first_shown = first.areas(shared)
    second_shown = second.areas(shared)
    # an intersection over union is at most the ratio of the areas
    smaller = np.minimum(first_shown[:, None], second_shown)
    larger = np.maximum(first_shown[:, None], second_shown)
    is_near = is_candidate.numpy() & (smaller > SAME_OBJECT_IOU * larger)
    in_both: Array = np.zeros(is_near.shape, np.int64)
    for i, j in np.argwhere(is_near).tolist():
        # what two masks have in common lies in both tiles
        in_both[i, j] = first.shared_area(i, second, j)
    return _Ious(
        shown=_iou(in_both, first_shown, second_shown),
        with_all_of_first=_iou(in_both, first_areas, second_shown),
        with_all_of_second=_iou(in_both, first_shown, second_areas),
    )


def _iou(in_both: Array, first_areas: Array, second_areas: Array) -> Tensor:
    """Intersections over union (n, m), from pixels in both (n, m) and in each (n,) and (m,)."""
    union = first_areas[:, None] + second_areas - in_both
    return torch.from_numpy(in_both / np.maximum(union, 1))


def _cut(boxes: Tensor, shared: Rectangle) -> Tensor:
    """Boxes (n, 4) as far as they lie in a rectangle; those outside have no area."""
    left, top, right, bottom = shared
    low = boxes.new_tensor([left, top, left, top])
    high = boxes.new_tensor([right, bottom, right, bottom])
    return boxes.clamp(min=low, max=high)
