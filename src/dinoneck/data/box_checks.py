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

from dinoneck.data.box_entries import FEWEST, BoxOfImage, in_brackets
from dinoneck.data.coco_entries import BBOX
from dinoneck.errors import DataError, in_words

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

_ROUNDING_PX = 2  # by which tools round boxes, or count the last pixel in or out
_MOST_OVER = 0.1  # of ten boxes or more may reach over the edge; else they are of another form
# of the boxes may show nothing, or have no value above 1, by accident; if more do, all boxes are of
# another form, such as shares of the sides
_MOST_LOST = 0.99
# boxes that cover less than this part of their images, from the upper left corner on, are probably
# of smaller copies; of 30 or more boxes it does not happen by chance
_MOST_OF_CORNER = 0.5
_FEWEST_OF_CORNER = 30
X_FIRST = "corners, x1, y1, x2, y2: write x1, y1, x2 - x1, y2 - y1"
Y_FIRST = "corners, y1, x1, y2, x2: write x1, y1, x2 - x1, y2 - y1"


def check_forms(file: Path, boxes: Sequence[BoxOfImage], lost: Counter[str]) -> None:
    """Refuse boxes that are not x, y, width and height in pixels, as far as their images tell.

    Args:
        file: what messages name.
        boxes: all boxes of listed images and of the classes.
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
    bboxes = np.array([entry.bbox for entry in boxes])
    sides = np.array([(entry.image.width, entry.image.height) for entry in boxes])
    finite = np.isfinite(bboxes).all(axis=1)
    bboxes = np.where(finite[:, None], bboxes, 0)

    are_shares = (np.abs(bboxes) <= 1).all(axis=1) & (bboxes[:, 2:] > 0).all(axis=1)
    # in an image of 1 or 2 px a box of 1 px is no share
    are_shares &= sides.min(axis=1) > _ROUNDING_PX
    if are_shares.sum() > _MOST_LOST * count:
        raise DataError(
            f"{file}: {are_shares.sum()} of {count} boxes have no value above 1, "
            f"{_example(boxes[int(are_shares.argmax())])}; expected {BBOX}. "
            f"{_share_remedy(bboxes[are_shares])}"
        )
    left_top = bboxes[:, :2]
    right_bottom = left_top + bboxes[:, 2:]
    over_edge = np.maximum(-left_top, right_bottom - sides).max(axis=1) > _ROUNDING_PX
    if over_edge.sum() > _MOST_OVER * count:
        first = boxes[int(over_edge.argmax())]
        other_form = _other_form(bboxes[over_edge], sides[over_edge])
        message = (
            f"{file}: {over_edge.sum()} of {count} boxes reach over the edge of their image, "
            f"{_example(first)}; expected {BBOX}{other_form}"
        )
        if count >= FEWEST:
            raise DataError(f"{message}. If they are right, cut them at the edge")
        if other_form:
            logger.warning("%s, unless they are right", message)
    if lost.total() > _MOST_LOST * count:
        raise DataError(
            f"{file}: {lost.total()} of {count} boxes show nothing ({in_words(lost)}), "
            f"{_example(boxes[0])}; expected {BBOX}"
        )
    _warn_of_corner(file, bboxes, sides)


def _example(entry: BoxOfImage) -> str:
    return (
        f"such as {in_brackets(entry.bbox)} of {entry.name} in an image of "
        f"{entry.image.width}x{entry.image.height} px (width x height)"
    )


def _other_form(bboxes: Array, sides: Array) -> str:
    """What boxes that reach over the edge seem to be."""
    left_top = bboxes[:, :2]
    size = bboxes[:, 2:]
    order = corner_order(bboxes, sides)
    if order:
        return f". They seem to be {order}"
    lowest = left_top - size / 2
    highest = left_top + size / 2
    if ((lowest >= -_ROUNDING_PX) & (highest <= sides + _ROUNDING_PX)).all():
        return (
            ". They seem to begin at their centre: write x - width / 2, y - height / 2, width, "
            "height"
        )
    return ""


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
    shares = ((bboxes[:, :2] + bboxes[:, 2:]) / sides).max(axis=0)
    if shares.max() < _MOST_OF_CORNER:
        logger.warning(
            "%s: all %d boxes lie in the left %.0f %% and the upper %.0f %% of their images; they "
            "may be of smaller copies of the images",
            file,
            len(bboxes),
            100 * shares[0],
            100 * shares[1],
        )
