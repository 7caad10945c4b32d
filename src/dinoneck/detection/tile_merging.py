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
from dinoneck.inference.tiles import Tiling, tile_starts

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
        overlap = math.ceil(tiling.overlap * side)
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
    :data:`SAME_OBJECT_IOU`, both cut to the pixels that both tiles see. A box that no seam may have
    cut stays, rather than one that ends at a seam; of two alike the one with the higher score
    stays, on a tie the one that lies farther from the seams of its tile. Boxes of one tile are left
    as the detector gave them.

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
    duplicates = _duplicates(detections, tiles)
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
    detections: Sequence[Mapping[str, Tensor]], tiles: Sequence[Tile]
) -> Mapping[int, list[int]]:
    """Number of a detection, counted over all tiles -> those of other tiles that are the same object."""
    first_numbers = np.cumsum([0, *(len(of_tile["scores"]) for of_tile in detections)])
    duplicates: dict[int, list[int]] = defaultdict(list)
    for first in range(len(tiles)):
        for second in range(first + 1, len(tiles)):
            shared = _shared_box(tiles[first], tiles[second])
            if shared is None:
                continue
            pairs = _same_objects(detections[first], detections[second], shared)
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
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], shared: tuple[int, int, int, int]
) -> Tensor:
    """The pairs (n, 2) of detections of two tiles that are one object."""
    ious = box_iou(_cut(first["boxes"], shared), _cut(second["boxes"], shared))
    is_of_class = first["labels"][:, None] == second["labels"]
    # NaN, of boxes that lie outside, is not above
    is_same: Tensor = (ious > SAME_OBJECT_IOU) & is_of_class
    return is_same.nonzero()


def _cut(boxes: Tensor, shared: tuple[int, int, int, int]) -> Tensor:
    """Boxes (n, 4) as far as they lie in a rectangle; those outside have no area."""
    left, top, right, bottom = shared
    low = boxes.new_tensor([left, top, left, top])
    high = boxes.new_tensor([right, bottom, right, bottom])
    return boxes.clamp(min=low, max=high)
