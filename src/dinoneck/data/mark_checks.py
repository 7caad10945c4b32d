"""What annotations say of themselves: turned rectangles, marks that other tools leave out, scores."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from pathlib import Path

from dinoneck.data.box_entries import BoxOfImage
from dinoneck.data.segmentations import rotation_of

logger = logging.getLogger(__name__)

# flags of objects that some tools leave out, and the words by which they are off
_MARKS = ("ignore", "ignored", "deleted", "difficult", "is_group_of")
_NOT_SET = ("", "0", "0.0", "false", "no", "none", "null")


def warn_of_turned_boxes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes whose rectangle was turned after it was drawn."""
    turned = [entry for entry in boxes if entry.shape is None and rotation_of(entry.box)]
    if turned:
        logger.warning(
            "%s: %d of %d boxes are of rectangles that were turned, such as %s by %g degrees "
            "(attributes.rotation); their bbox is that of the rectangle before. Export them as "
            "polygons",
            file,
            len(turned),
            len(boxes),
            turned[0].name,
            rotation_of(turned[0].box),
        )


def warn_of_marked_boxes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes that are marked as no plain objects, which some tools leave out and COCO's evaluation does not."""
    marks_of = operator.attrgetter(*_MARKS)
    without_marks = (None,) * len(_MARKS)
    with_marks = [entry for entry in boxes if marks_of(entry.box) != without_marks]
    for mark in _MARKS:
        marked = [entry for entry in with_marks if _is_set(getattr(entry.box, mark))]
        if marked:
            logger.warning(
                "%s: %d of %d boxes have %s=%s, such as %s; they are objects here, as in COCO's "
                "evaluation. Set iscrowd to 1 if they are regions that count for nothing, or take "
                "them out",
                file,
                len(marked),
                len(boxes),
                mark,
                getattr(marked[0].box, mark),
                marked[0].name,
            )


def _is_set(flag: object) -> bool:
    """Whether a flag is set, as a number, a boolean or a text."""
    return flag is not None and str(flag).strip().lower() not in _NOT_SET


def warn_of_scores(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes with a score, as predictions have."""
    scored = [entry for entry in boxes if isinstance(entry.box.score, int | float)]
    if scored:
        logger.warning(
            "%s: %d of %d boxes have a score, as predictions have, such as %s with %g; all are "
            "used as the truth, whatever their score",
            file,
            len(scored),
            len(boxes),
            scored[0].name,
            scored[0].box.score,
        )
