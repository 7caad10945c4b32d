"""Whether the pixels of panoptic segments are those of which ``segments_info`` states bbox and area.

Small ids, 1, 2, 3 and so on, occur in every image: the PNG of another image has them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.area_checks import mask_area_tolerance
from dinoneck.data.box_entries import too_many_wrong
from dinoneck.data.coco_entries import BBOX, CocoSegment, is_number
from dinoneck.data.segmentations import Extent, pixel_extent
from dinoneck.errors import DataError
from dinoneck.images.orientation import warn_once

Array = np.ndarray[Any, Any]

_ROUNDING_PX = 2  # by which tools round boxes, or count the last pixel in or out
# Other segments may cover a part of one whose bbox and area are those of the whole object. What is
# left has at least this share of the area.
_LEAST_LEFT = 0.5


@dataclass
class _ShownSegment:
    """A segment, and what its pixels measure."""

    segment: CocoSegment
    extent: Extent
    area: int


def check_segments(png_ids: Array, segments: Sequence[CocoSegment], png: Path) -> None:
    """Compare the pixels of an image's segments with their ``bbox`` and ``area``, where they have these.

    Args:
        png_ids: the ids of the pixels (H, W).
        segments: those that the PNG shows.
        png: what messages name.

    Raises:
        DataError: if the bbox of more than one in ten contradicts the pixels, of fewer than ten
            segments of more than half; fewer, and areas that differ, are named in a warning.
    """
    num_rated = 0
    misplaced: list[_ShownSegment] = []
    resized: list[_ShownSegment] = []
    for segment in segments:
        bbox = _bbox_of(segment)
        area = _area_of(segment)
        if bbox is None and area is None:
            continue
        mask = png_ids == segment.id
        extent = pixel_extent(mask)
        if extent is None:
            continue
        num_rated += 1
        shown = _ShownSegment(segment, extent, area=int(mask.sum()))
        if _may_be_partly_hidden(bbox, area, shown):
            continue
        if bbox is not None and not _is_extent(bbox, extent):
            misplaced.append(shown)
        elif area is not None and not _is_area(area, shown):
            resized.append(shown)
    if misplaced:
        message = (
            f"{png}: {len(misplaced)} of {num_rated} segments contradict their bbox, "
            f"{_example(misplaced[0])}. The PNG seems to be moved, or of another image; pair it with "
            "its image, or write the bbox of its pixels"
        )
        if too_many_wrong(len(misplaced), num_rated):
            raise DataError(message)
        warn_once(f"{message}. The pixels are used as they are")
    if resized:
        warn_once(
            f"{png}: {len(resized)} of {num_rated} segments contradict their area, "
            f"{_example(resized[0])}. The PNG may be of another image, or the area of another "
            "version of it; the pixels are used as they are"
        )


def _example(shown: _ShownSegment) -> str:
    segment = shown.segment
    left, top, right, bottom = shown.extent
    return (
        f"such as id {segment.id} with the bbox {segment.bbox} ({BBOX}) and the area {segment.area}: "
        f"its {shown.area} pixels span x {left:g} ... {right:g}, y {top:g} ... {bottom:g}"
    )


def _bbox_of(segment: CocoSegment) -> list[float] | None:
    """The bbox as four numbers; None if there is none."""
    bbox = segment.bbox
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return None
    return bbox if any(bbox) else None


def _area_of(segment: CocoSegment) -> float | None:
    """The area; None if there is none, or 0, which tools write where they know none."""
    if is_number(segment.area) and segment.area > 0:
        return float(segment.area)
    return None


def _is_area(area: float, shown: _ShownSegment) -> bool:
    """Whether an area is that of the pixels or of an outline around them."""
    left, top, right, bottom = shown.extent
    sides = np.array([[right - left, bottom - top]])
    [tolerance] = mask_area_tolerance(np.array([area]), sides)
    return bool(abs(area - shown.area) <= tolerance)


def _is_extent(bbox: list[float], extent: Extent) -> bool:
    """Whether a bbox is that of the pixels. It may be corners: the PNG alone says where a segment is."""
    x, y, width, height = bbox
    is_box = _difference(extent, (x, y, x + width, y + height)) <= _ROUNDING_PX
    return is_box or _difference(extent, (x, y, width, height)) <= _ROUNDING_PX


def _may_be_partly_hidden(
    bbox: list[float] | None, area: float | None, shown: _ShownSegment
) -> bool:
    """Whether the pixels may be what other segments leave of an object with this bbox and area."""
    if bbox is None or area is None or not _LEAST_LEFT * area <= shown.area < area:
        return False
    x, y, width, height = bbox
    left, top, right, bottom = shown.extent
    return (
        left >= x - _ROUNDING_PX
        and top >= y - _ROUNDING_PX
        and right <= x + width + _ROUNDING_PX
        and bottom <= y + height + _ROUNDING_PX
    )


def _difference(extent: Extent, corners: Extent) -> float:
    return max(abs(a - b) for a, b in zip(extent, corners, strict=True))
