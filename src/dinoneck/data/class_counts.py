"""Classes of which the data hold nothing, or too little, named before anything is trained.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from dinoneck.errors import DataError

logger = logging.getLogger(__name__)
_SHOWN = 10  # names in a message: COCO's 80 would fill a screen


def warn_of_empty_classes(counts: Mapping[str, int], noun: str, source: str, remedy: str) -> None:
    """Name the classes that do not occur, in one warning.

    A class that nothing shows is learned by no head and scores as if it were always right.

    Args:
        counts: class name -> how many ``noun`` the data have of it.
        noun: what is counted: ``"pixel"``, ``"box"``, ``"object"`` or ``"row"``.
        source: what messages call the data, such as the name of a file.
        remedy: what to do, as a sentence without a full stop.
    """
    empty = [name for name, count in counts.items() if count == 0]
    warn_of_missing_classes(empty, noun, source, remedy)


def warn_of_missing_classes(names: Sequence[str], noun: str, source: str, remedy: str) -> None:
    """Name classes of which the data hold nothing, in one warning; without names there is none.

    Args:
        names: the classes.
        noun: what the data have of other classes, such as ``"image"``.
        source: what messages call the data.
        remedy: what to do, as a sentence without a full stop.
    """
    if not names:
        return
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    if len(names) > _SHOWN:
        shown += f" and {len(names) - _SHOWN} more"
    classes = "the class" if len(names) == 1 else f"{len(names)} classes:"
    logger.warning("%s: no %s of %s %s. %s", source, noun, classes, shown, remedy)


def check_class_counts(target: str, counts: Mapping[str, int]) -> None:
    """Check that a target has two classes or more, and two images a class on average.

    Args:
        target: its name.
        counts: class -> how many images have it; only classes that some have.

    Raises:
        DataError: naming the target and what it has.
    """
    num_images = sum(counts.values())
    if len(counts) < 2:
        only_class = next(iter(counts), "none")
        raise DataError(
            f"target {target!r} has one class alone, {only_class!r}, in {num_images} images; "
            "expected two classes or more"
        )
    if num_images < 2 * len(counts):
        num_single = sum(count == 1 for count in counts.values())
        raise DataError(
            f"target {target!r} has {len(counts)} classes in {num_images} images, "
            f"{num_single} of them in one image alone; expected 2 images a class on "
            "average. Leave out the column if it holds names or notes, and kind: classification "
            "if it holds numbers"
        )
