"""Whether boxes are what COCO calls a bbox, as far as their images tell.

A file with boxes of another form trains without an error, and finds nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.box_entries import FEWEST, BoxOfImage, in_brackets, sides_of
from dinoneck.data.coco_entries import BBOX
from dinoneck.errors import DataError
from dinoneck.text import in_words, shorten

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

_ROUNDING_PX = 2  # by which tools round boxes, or count the last pixel in or out
_ROUNDING = 0.01  # of a side: boxes that people draw in a smaller copy of the image
_MOST_OVER = 0.1  # of ten boxes or more may reach over the edge; else they are of another form
_MOST_OVER_OF_FEW = 0.5  # the same of fewer than ten boxes
_FEWEST_CENTRES = 2  # boxes over the edge; a single one may be drawn loosely
# of the boxes may show nothing, or have no value above 1, by accident; if more do, all boxes are of
# another form, such as shares of the sides
_MOST_LOST = 0.99
# Boxes drawn in a smaller copy of the images all lie in the upper left corner of the images. If 30
# boxes or more end before the middle of both sides, this does not happen by chance.
_MOST_OF_CORNER = 0.5
_FEWEST_OF_CORNER = 30
# If they reach further, up to 0.8 of the sides, three more facts are needed. The first boxes begin at
# the left and upper edge, as a copy does. The free stripe at the right is as large a share of the width
# as the one at the bottom of the height, as a copy is smaller by one factor. And 20 boxes or more
# begin nearer to the left edge than the free stripe is wide, and likewise in y: each object of a photo
# would be as near to the right edge as often, so this has a chance of 2^-40.
_MOST_OF_LARGER_CORNER = 0.8
_FEWEST_NEARER = 20
_EDGE = 0.05  # share of a side, from the edge to the first box
_EQUAL_SHARES = 0.05  # difference of the two shares of sides at which the last boxes end
# of the boxes may be as large as their images by accident, and a box is if it has so much of both
# sides
_MOST_WHOLE = 0.9
_MOST_OF_SIDES = 0.99
_PERCENT = 100.0  # of a side
X_FIRST = "corners, x1, y1, x2, y2: write x1, y1, x2 - x1, y2 - y1"
Y_FIRST = "corners, y1, x1, y2, x2: write x1, y1, x2 - x1, y2 - y1"


def check_forms(file: Path, boxes: Sequence[BoxOfImage], bboxes: Array, lost: Counter[str]) -> None:
    """Raise a DataError for boxes that are not x, y, width and height in pixels, as far as their images tell.

    Args:
        file: what messages name.
        boxes: all boxes of listed images and of the classes.
        bboxes: of them (n, 4).
        lost: reason -> how many of the boxes show nothing.

    Raises:
        DataError: if more than 99 % of the boxes have no value above 1, as shares of the sides have,
            in images of more than 2 px; if 10 boxes or more are given and more than one in ten
            reaches over the edge by more than 2 px, which is more than rounding; or if more than
            99 % show nothing.
    """
    count = len(boxes)
    if not count:
        return
    sides = sides_of(boxes)
    bboxes = _finite(bboxes)
    _check_shares(file, boxes, bboxes, sides)
    _check_edges(file, boxes, bboxes, sides)
    if lost.total() > _MOST_LOST * count:
        raise DataError(
            f"{file}: {lost.total()} of {count} boxes show nothing ({in_words(lost)}), "
            f"{_example(boxes[0])}; expected {BBOX}"
        )
    _warn_of_corner(file, bboxes, sides)
    _warn_of_whole_images(file, boxes, bboxes, sides)


def reaching_over_edge(boxes: Sequence[BoxOfImage], bboxes: Array) -> list[BoxOfImage]:
    """Return the boxes that reach over the edge of their images by more than rounding.

    Args:
        boxes: all boxes of listed images.
        bboxes: of them (n, 4).
    """
    if not boxes:
        return []
    beyond = _beyond(_finite(bboxes), sides_of(boxes))
    is_over = beyond.max(axis=1) > _ROUNDING_PX
    return [boxes[row] for row in np.flatnonzero(is_over).tolist()]


def _finite(bboxes: Array) -> Array:
    """Boxes (n, 4) with zeros in the place of those that are not finite."""
    is_finite = np.isfinite(bboxes).all(axis=1, keepdims=True)
    return np.where(is_finite, bboxes, 0)


def _beyond(bboxes: Array, sides: Array) -> Array:
    """By how many pixels boxes leave their images in x and in y (n, 2), below 0 inside of them."""
    left_top = bboxes[:, :2]
    beyond: Array = np.maximum(-left_top, left_top + bboxes[:, 2:] - sides)
    return beyond


def _check_shares(file: Path, boxes: Sequence[BoxOfImage], bboxes: Array, sides: Array) -> None:
    """Raise a DataError for numbers that are shares of the sides of the images."""
    are_shares = (np.abs(bboxes) <= 1).all(axis=1) & (bboxes[:, 2:] > 0).all(axis=1)
    # in an image of 1 or 2 px a box of 1 px is no share
    are_shares &= sides.min(axis=1) > _ROUNDING_PX
    if are_shares.sum() <= _MOST_LOST * len(boxes):
        return
    first = boxes[int(are_shares.argmax())]
    if first.is_of_mask:
        raise DataError(
            f"{file}: the masks of {are_shares.sum()} of {len(boxes)} objects have no value above 1, "
            f"{_mask_example(first)}; expected pixels. They seem to be shares of the image's sides: "
            "multiply x by its width and y by its height"
        )
    raise DataError(
        f"{file}: {are_shares.sum()} of {len(boxes)} boxes have no value above 1, "
        f"{_example(first)}; expected {BBOX}. {_share_remedy(bboxes[are_shares])}"
    )


def _check_edges(file: Path, boxes: Sequence[BoxOfImage], bboxes: Array, sides: Array) -> None:
    """Raise a DataError if many boxes reach over the edge of their images; of fewer than ten, or few, warn."""
    count = len(boxes)
    beyond = _beyond(bboxes, sides)
    over_edge = beyond.max(axis=1) > _ROUNDING_PX
    num_over = int(over_edge.sum())
    if not num_over:
        return
    first = boxes[int(over_edge.argmax())]
    other_form = ""
    if first.is_of_mask:
        message = (
            f"{file}: the masks of {num_over} of {count} objects reach over the edge of their image, "
            f"{_mask_example(first)}; expected polygons in pixels, x, y, x, y, ...{_axes_note(first)}"
        )
    else:
        message = (
            f"{file}: {num_over} of {count} boxes reach over the edge of their image, "
            f"{_example(first)}; expected {BBOX}"
        )
        other_form = _other_form(bboxes[over_edge], sides[over_edge])
    is_many = num_over > _MOST_OVER * count
    if is_many and count >= FEWEST:
        raise DataError(f"{message}{other_form}. If they are right, cut them at the edge")
    if is_many and (other_form or num_over > _MOST_OVER_OF_FEW * count):
        logger.warning("%s%s, unless they are right. They are cut at the edge", message, other_form)
    elif not is_many and num_over >= _FEWEST_CENTRES and _lie_inside_as_centres(bboxes, sides):
        # boxes at the left and upper edge begin less than half of their size from it, centres never
        logger.warning(
            "%s. No box leaves the left or the upper edge, and all lie inside if they begin at their "
            "centre: if they do, write x - width / 2, y - height / 2, width, height",
            message,
        )
    else:
        _warn_of_cut_boxes(file, boxes, bboxes, sides, beyond)


def _warn_of_cut_boxes(
    file: Path, boxes: Sequence[BoxOfImage], bboxes: Array, sides: Array, beyond: Array
) -> None:
    """Warn of boxes that leave their images by more than people and tools round.

    Args:
        file: what messages name.
        boxes: all boxes.
        bboxes: of them (n, 4).
        sides: width and height of their images (n, 2).
        beyond: by how many pixels they leave them in x and in y (n, 2).
    """
    is_cut = (beyond > np.maximum(_ROUNDING_PX, _ROUNDING * sides)).any(axis=1)
    num_cut = int(is_cut.sum())
    if not num_cut:
        return
    first = boxes[int(is_cut.argmax())]
    if first.is_of_mask:
        logger.warning(
            "%s: the masks of %d of %d objects reach over the edge of their image, %s. They are cut "
            "at the edge",
            file,
            num_cut,
            len(boxes),
            _mask_example(first),
        )
        return
    logger.warning(
        "%s: %d of %d boxes reach over the edge of their image, %s; expected %s%s. They are cut at "
        "the edge",
        file,
        num_cut,
        len(boxes),
        _example(first),
        BBOX,
        _other_form(bboxes[is_cut], sides[is_cut]),
    )


def _example(entry: BoxOfImage) -> str:
    return (
        f"such as {in_brackets(entry.bbox)} of {entry.name} in an image of "
        f"{entry.image.width}x{entry.image.height} px (width x height)"
    )


def _mask_example(entry: BoxOfImage) -> str:
    return (
        f"such as the segmentation {shorten(entry.box.segmentation)} of {entry.name} in an image of "
        f"{entry.image.width}x{entry.image.height} px (width x height)"
    )


def _axes_note(entry: BoxOfImage) -> str:
    """What two lists of one length in the place of polygons may be."""
    parts = entry.box.segmentation
    if not isinstance(parts, list) or len(parts) != 2:
        return ""
    first, second = parts
    if not isinstance(first, list) or not isinstance(second, list) or len(first) != len(second):
        return ""
    return ". They may be all x and then all y"


def _other_form(bboxes: Array, sides: Array) -> str:
    """What boxes that reach over the edge seem to be."""
    order = corner_order(bboxes, sides)
    if order:
        return f". They seem to be {order}"
    if _lie_inside_as_centres(bboxes, sides):
        return (
            ". They seem to begin at their centre: write x - width / 2, y - height / 2, width, "
            "height"
        )
    return ""


def _lie_inside_as_centres(bboxes: Array, sides: Array) -> bool:
    """Whether all boxes lie in their images if their first two numbers are their centre."""
    centres = bboxes[:, :2]
    half_sizes = bboxes[:, 2:] / 2
    is_right_of_left_top = centres - half_sizes >= -_ROUNDING_PX
    is_left_of_right_bottom = centres + half_sizes <= sides + _ROUNDING_PX
    return bool((is_right_of_left_top & is_left_of_right_bottom).all())


def corner_order(bboxes: Array, sides: Array) -> str:
    """What boxes seem to hold if they hold corners, with the remedy; empty if they do not.

    Args:
        bboxes: four numbers each (n, 4).
        sides: width and height of their images (n, 2).
    """
    first = bboxes[:, :2]
    last = bboxes[:, 2:]
    if (last <= first).any():
        return ""
    is_x_first = bool((last <= sides + _ROUNDING_PX).all())
    is_y_first = bool((last <= sides[:, ::-1] + _ROUNDING_PX).all())
    if is_x_first and is_y_first:
        return f"{X_FIRST} (or y1, x1, y2, x2, if y comes first)"
    if is_x_first:
        return X_FIRST
    if is_y_first:
        return Y_FIRST
    return ""


def _share_remedy(bboxes: Array) -> str:
    """What four numbers below 1 seem to be, and what makes pixels of them.

    Args:
        bboxes: (n, 4), all values in -1 ... 1.
    """
    sizes = bboxes[:, 2:]
    fit_from_corner = bool((bboxes[:, :2] + sizes <= 1).all())
    fit_from_centre = bool(
        (bboxes[:, :2] >= sizes / 2).all() and (bboxes[:, :2] + sizes / 2 <= 1).all()
    )
    are_corners = bool((sizes > bboxes[:, :2]).all())
    if fit_from_centre and not fit_from_corner:
        return (
            "They seem to be centre and size in shares of the image's sides, as in files of YOLO: "
            "supervision converts those (DetectionDataset.from_yolo, as_coco)"
        )
    if are_corners and not fit_from_corner:
        return (
            "They seem to be two corners in shares of the image's sides: write left, top, right - "
            "left, bottom - top, times its width and height"
        )
    if fit_from_centre:
        return (
            "They seem to be shares of the image's sides: multiply them by its width and height. If "
            "they come from YOLO, the first two are the centre: take half of the size off first"
        )
    return "They seem to be shares of the image's sides: multiply them by its width and height"


def _warn_of_corner(file: Path, bboxes: Array, sides: Array) -> None:
    """Warn of boxes that all lie in the upper left part of their images."""
    if len(bboxes) < _FEWEST_OF_CORNER:
        return
    left_top = bboxes[:, :2]
    right_bottom = left_top + bboxes[:, 2:]
    shares = (right_bottom / sides).max(axis=0)
    if shares.max() < _MOST_OF_CORNER or _seem_of_smaller_copies(left_top / sides, shares):
        logger.warning(
            "%s: all %d boxes lie in the left %.0f %% and the upper %.0f %% of their images; they "
            "may be of smaller copies of the images%s",
            file,
            len(bboxes),
            100 * shares[0],
            100 * shares[1],
            ", or percent of their sides" if right_bottom.max() <= _PERCENT else "",
        )


def _warn_of_whole_images(
    file: Path, boxes: Sequence[BoxOfImage], bboxes: Array, sides: Array
) -> None:
    """Warn of boxes of which nearly all are as large as their images, as those of image labels are."""
    is_whole = (bboxes[:, 2:] >= _MOST_OF_SIDES * sides).all(axis=1)
    num_whole = int(is_whole.sum())
    if len(boxes) >= FEWEST and num_whole > _MOST_WHOLE * len(boxes):
        logger.warning(
            "%s: %d of %d boxes cover their whole image, such as %s of %s. If they are labels of "
            "images, train a head of classes: class folders, or a table (--csv)",
            file,
            num_whole,
            len(boxes),
            in_brackets(boxes[int(is_whole.argmax())].bbox),
            boxes[int(is_whole.argmax())].name,
        )


def _seem_of_smaller_copies(starts: Array, shares: Array) -> bool:
    """Whether boxes keep away from the right and the lower edge alone, from both alike.

    Args:
        starts: left and top of the boxes, as shares of the sides of their images (n, 2).
        shares: the largest of right and bottom (2,).
    """
    if shares.max() >= _MOST_OF_LARGER_CORNER or abs(shares[0] - shares[1]) > _EQUAL_SHARES:
        return False
    begins_at_edge = bool((starts.min(axis=0) < _EDGE).all())
    num_nearer = (starts < 1 - shares).sum(axis=0)
    return begins_at_edge and int(num_nearer.min()) >= _FEWEST_NEARER
