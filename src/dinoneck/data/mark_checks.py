"""What annotations say of themselves: turned rectangles, marks that other tools leave out, scores."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.box_entries import BoxOfImage
from dinoneck.data.coco_entries import CocoBox, is_number
from dinoneck.data.segmentations import degrees_of, rotation_of

logger = logging.getLogger(__name__)

# flags of objects that some tools leave out
_MARKS = (
    "ignore",
    "ignored",
    "deleted",
    "difficult",
    "is_crowd",
    "isCrowd",
    "is_group_of",
    "IsGroupOf",
)
# values, as text, of a flag that is off
_NOT_SET = ("", "0", "0.0", "false", "no", "none", "null")
_SCORES = ("score", "confidence")


def warn_of_turned_boxes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes whose rectangle was turned after it was drawn."""
    turned = []
    for entry in boxes:
        if entry.shape is not None:
            continue
        degrees = rotation_of(entry.box) or degrees_of(entry.box.angle)
        if degrees:
            turned.append((entry, degrees))
    if turned:
        first, degrees = turned[0]
        key = "rotation" if rotation_of(first.box) else "angle"
        logger.warning(
            "%s: %d of %d boxes are of rectangles that were turned, such as %s by %g degrees "
            "(%s); their bbox is that of the rectangle before. Export them as polygons",
            file,
            len(turned),
            len(boxes),
            first.name,
            degrees,
            key,
        )


def warn_of_marks(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes that are marked as no plain objects, or have a score as predictions have.

    Some tools leave such boxes out, and COCO's evaluation does not. Marks may stand in the
    annotation or in its ``attributes``.
    """
    # most boxes have none of these keys: they are left out by one comparison of all values
    keys = (*_MARKS, *_SCORES, "attributes")
    values_of = operator.attrgetter(*keys)
    no_values = (None,) * len(keys)
    with_marks = [entry for entry in boxes if values_of(entry.box) != no_values]
    for mark in _MARKS:
        marked = [entry for entry in with_marks if _is_set(_value_of(entry.box, mark))]
        if marked:
            logger.warning(
                "%s: %d of %d boxes have %s=%s, such as %s; they are objects here, as in COCO's "
                "evaluation. Set iscrowd to 1 if they are regions to ignore, or take them out",
                file,
                len(marked),
                len(boxes),
                mark,
                _value_of(marked[0].box, mark),
                marked[0].name,
            )
    for key in _SCORES:
        scored = [entry for entry in with_marks if _is_score(_value_of(entry.box, key))]
        if scored:
            logger.warning(
                "%s: %d of %d boxes have a %s, as predictions have, such as %s with %s; all are "
                "used as the truth, whatever their %s",
                file,
                len(scored),
                len(boxes),
                key,
                scored[0].name,
                _value_of(scored[0].box, key),
                key,
            )


def _value_of(box: CocoBox, key: str) -> Any:
    """The value of a key of an annotation, or of its attributes."""
    value = getattr(box, key)
    if value is None and isinstance(box.attributes, dict):
        return box.attributes.get(key)
    return value


def _is_set(flag: object) -> bool:
    """Whether a flag is set, as a number, a boolean or a text."""
    return flag is not None and str(flag).strip().lower() not in _NOT_SET


def _is_score(value: object) -> bool:
    """Whether a value is a number, also as a text."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return is_number(value)
