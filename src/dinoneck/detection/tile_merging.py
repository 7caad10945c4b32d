"""Large images for detectors: tiles in pixels of the image, and their boxes put together without duplicates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from dinoneck.errors import ConfigError
from dinoneck.inference.tiles import ROUNDING, Tiling, tile_starts

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


def tiles_of(image_size: tuple[int, int], tiling: Tiling) -> list[Tile]:
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
        starts.append(tile_starts(total=total, length=length, overlap=_overlap(tiling, side)))
        lengths.append(length)
    height, width = lengths
    tops, lefts = starts
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def _overlap(tiling: Tiling, side: int) -> int:
    """The least overlap along an axis, in pixels."""
    if isinstance(tiling.overlap, int):
        overlap = tiling.overlap
    else:
        overlap = math.ceil(tiling.overlap * side - ROUNDING)
    overlap = max(overlap, tiling.overlap_for_box(side))
    if overlap >= side:
        raise ConfigError(
            f"overlap is {tiling.overlap!r}, {overlap} of the {side} pixels of a tile, so that tiles "
            "would not move on; choose less, or larger tiles"
        )
    return overlap


def merge_tiles(
    detections: Sequence[Mapping[str, Tensor]], tiles: Sequence[Tile], image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the detections of all tiles of an image, without those that a neighbour found as well.

    Two boxes of one class from two tiles are one object if their intersection over union is above
    :data:`SAME_OBJECT_IOU`. A box that may be cut at a seam is compared within the pixels that both
    tiles see; one that lies inside its tile is whole, and compared with all of the other. Of two
    boxes of one object, the one that lies inside its tile is kept; if both do, or neither, the one
    with the higher score, on a tie the one farther from the seams. Boxes of one tile are left as
    the detector gave them.

    Args:
        detections: per tile ``boxes`` (n, 4) XYXY in pixels of the image, ``scores`` (n,) and
            ``labels`` (n,).
        tiles: of :func:`tiles_of`.
        image_size: (height, width) of the image.

    Returns:
        ``boxes``, ``scores`` and ``labels`` by falling score.
    """
    merged = {
        name: torch.cat([of_tile[name] for of_tile in detections])
        for name in ("boxes", "scores", "labels")
    }
    distances = []
    are_cut = []
    for of_tile, tile in zip(detections, tiles, strict=True):
        distance = _distance_to_seams(of_tile["boxes"], tile, image_size)
        distances.append(distance)
        are_cut.append(distance < CUT_MARGIN * min(tile.height, tile.width))
    # the last key of lexsort is the first to sort by
    by_preference = np.lexsort(
        (
            -torch.cat(distances).numpy(),
            -merged["scores"].numpy(),
            torch.cat(are_cut).numpy(),
        )
    )
    duplicates = _duplicates(detections, tiles, are_cut)
    is_kept = torch.zeros(len(merged["scores"]), dtype=torch.bool)
    for number in by_preference.tolist():
        is_kept[number] = not any(is_kept[other] for other in duplicates[number])
    kept = is_kept.nonzero()[:, 0]
    by_score = kept[merged["scores"][kept].argsort(descending=True, stable=True)]
    return {name: values[by_score] for name, values in merged.items()}


def _distance_to_seams(boxes: Tensor, tile: Tile, image_size: tuple[int, int]) -> Tensor:
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
    detections: Sequence[Mapping[str, Tensor]], tiles: Sequence[Tile], are_cut: Sequence[Tensor]
) -> Mapping[int, list[int]]:
    """Number of a detection, counted over all tiles -> those of other tiles that are the same object.

    ``are_cut`` holds per tile whether its detections may be cut at a seam, (n,).
    """
    first_numbers = np.cumsum([0, *(len(of_tile["scores"]) for of_tile in detections)])
    duplicates: dict[int, list[int]] = defaultdict(list)
    for first in range(len(tiles)):
        for second in range(first + 1, len(tiles)):
            shared = _shared_box(tiles[first], tiles[second])
            if shared is None:
                continue
            is_same = _same_objects(
                detections[first], detections[second], shared, are_cut[first], are_cut[second]
            )
            pairs = is_same.nonzero()
            for in_first, in_second in pairs.tolist():
                number = int(first_numbers[first]) + in_first
                other = int(first_numbers[second]) + in_second
                duplicates[number].append(other)
                duplicates[other].append(number)
    return duplicates


def _shared_box(first: Tile, second: Tile) -> tuple[int, int, int, int] | None:
    """XYXY of the pixels that two tiles see; None = none."""
    left = max(first.left, second.left)
    top = max(first.top, second.top)
    right = min(first.left + first.width, second.left + second.width)
    bottom = min(first.top + first.height, second.top + second.height)
    if left >= right or top >= bottom:
        return None
    return (left, top, right, bottom)


def _same_objects(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    shared: tuple[int, int, int, int],
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
    first_shown = _cut(first["boxes"], shared)
    second_shown = _cut(second["boxes"], shared)
    ious = box_iou(first_shown, second_shown)  # NaN, of boxes outside, is not above the threshold
    # the other tile shows no more of a box that is whole
    with_whole_first = ious.minimum(box_iou(first_shown, second["boxes"]))
    ious = torch.where(is_first_cut[:, None], ious, with_whole_first)
    with_whole_second = ious.minimum(box_iou(first["boxes"], second_shown))
    ious = torch.where(is_second_cut, ious, with_whole_second)
    is_of_class = first["labels"][:, None] == second["labels"]
    return (ious > SAME_OBJECT_IOU) & is_of_class


def _cut(boxes: Tensor, shared: tuple[int, int, int, int]) -> Tensor:
    """Boxes (n, 4) as far as they lie in a rectangle; those outside have no area."""
    left, top, right, bottom = shared
    low = boxes.new_tensor([left, top, left, top])
    high = boxes.new_tensor([right, bottom, right, bottom])
    return boxes.clamp(min=low, max=high)
