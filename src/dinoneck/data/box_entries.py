"""A box of a COCO JSON with its image and its mask, as the checks see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from dinoneck.data.coco_entries import CocoBox, CocoImage, name_entry
from dinoneck.data.segmentations import (
    RunLengths,
    Shape,
    measure_polygons,
    run_length_extents,
)

Array = np.ndarray[Any, Any]

FEWEST = 10  # objects of which a share says something; of fewer one is many
# A box and a mask of one object may differ: boxes of whole objects next to masks of what is seen,
# boxes and outlines drawn by two people, outlines with few points. COCO and LVIS take boxes from
# masks, and a few of theirs are broken. One in ten that contradict each other are no accident; of
# fewer than ten objects more than half.
MOST_WRONG = 0.1
_MOST_WRONG_OF_FEW = 0.5


@dataclass(slots=True)
class BoxOfImage:
    """A box with its image and its mask.

    Attributes:
        index: its place in ``annotations``.
        box: the annotation.
        bbox: its x, y, width and height; those of the mask where the annotation has none.
        image: its image.
        shape: its mask; None without one, or if it cannot be read.
    """

    index: int
    box: CocoBox
    bbox: tuple[float, float, float, float]
    image: CocoImage
    shape: Shape | None = None

    @property
    def is_of_mask(self) -> bool:
        """Whether the bbox is that of the mask, as the annotation has none."""
        # the annotation's own bbox is passed on as it is; any other one was made from the mask
        return self.bbox is not self.box.bbox

    @property
    def name(self) -> str:
        """What messages call it."""
        return name_entry("annotations", self.index, self.box.id)


@dataclass
class MaskedBoxes:
    """Boxes whose masks can be compared with them, and what the masks measure.

    Attributes:
        entries: the boxes.
        shapes: their masks.
        bboxes: x, y, width and height of the boxes (n, 4).
        sides: width and height of their images (n, 2).
        extents: left, top, right and bottom of the masks (n, 4).
        areas: of polygons, by the shoelace formula (n,); NaN of run lengths, which are counted
            where it is asked for.
    """

    entries: list[BoxOfImage]
    shapes: list[Shape]
    bboxes: Array
    sides: Array
    extents: Array
    areas: Array


def bboxes_of(boxes: Sequence[BoxOfImage]) -> Array:
    """Return x, y, width and height of boxes (n, 4)."""
    numbers = chain.from_iterable([entry.bbox for entry in boxes])
    return np.fromiter(numbers, np.float64).reshape(-1, 4)


def sides_of(boxes: Sequence[BoxOfImage]) -> Array:
    """Return width and height of the images of boxes (n, 2)."""
    sides = chain.from_iterable([(entry.image.width, entry.image.height) for entry in boxes])
    return np.fromiter(sides, np.float64).reshape(-1, 2)


def measure_masks(boxes: Sequence[BoxOfImage]) -> MaskedBoxes:
    """Return the boxes that have a mask; those with run lengths only if pycocotools is installed."""
    drawn = []
    polygons = []
    encoded = []
    run_lengths = []
    for entry in boxes:
        if isinstance(entry.shape, RunLengths):
            encoded.append(entry)
            run_lengths.append(entry.shape)
        elif entry.shape is not None:
            drawn.append(entry)
            polygons.append(entry.shape)
    measured = measure_polygons(polygons)
    try:
        encoded_extents = run_length_extents(run_lengths)
    except ImportError:  # the extra "masks" is needed for masks, and boxes alone do without
        encoded = []
        run_lengths = []
        encoded_extents = np.zeros((0, 4))
    entries = drawn + encoded
    return MaskedBoxes(
        entries=entries,
        shapes=[*polygons, *run_lengths],
        bboxes=bboxes_of(entries),
        sides=sides_of(entries),
        extents=np.concatenate([measured.extents, encoded_extents]),
        areas=np.concatenate([measured.areas, np.full(len(encoded), np.nan)]),
    )


def too_many_wrong(wrong: int, total: int) -> bool:
    """Whether so many of all objects, or segments of an image, contradict each other that it is no accident."""
    most = MOST_WRONG if total >= FEWEST else _MOST_WRONG_OF_FEW
    return wrong > most * total


def in_brackets(bbox: Sequence[float]) -> str:
    """A bbox as text: ``[8, 10, 48.25, 30]``."""
    return f"[{', '.join(f'{number:g}' for number in bbox)}]"
