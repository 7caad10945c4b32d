"""The masks of objects in pictures: a light fill and an outline in the colour of the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFilter

from dinoneck.errors import ShapeError
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.task_facts import TaskFacts, output_name
from dinoneck.viz import style

Array = np.ndarray[Any, Any]


class PredictedObjects(NamedTuple):
    """What a predictor or detector gives for an image, of instances, boxes or panoptic segments.

    Attributes:
        classes: the number of the class of each object.
        scores: of each.
        masks: of each; None of boxes alone.
    """

    classes: list[int]
    scores: list[float]
    masks: CroppedMasks | None


def read_objects(objects: Any) -> PredictedObjects:
    """Read the objects of an image.

    Args:
        objects: a dict with ``labels``, ``scores`` and, of some, ``masks``; or segments (height,
            width) and their rows.

    Raises:
        ShapeError: if masks are not (n, height, width).
    """
    if isinstance(objects, tuple):
        segments, rows = objects
        return PredictedObjects(
            classes=[int(row["category_id"]) for row in rows],
            scores=[float(row["score"]) for row in rows],
            masks=CroppedMasks.of_segments(np.asarray(segments), [row["id"] for row in rows]),
        )
    masks = objects.get("masks")
    return PredictedObjects(
        classes=np.asarray(objects["labels"]).astype(int).tolist(),
        scores=np.asarray(objects["scores"]).astype(float).tolist(),
        masks=None if masks is None else cropped(masks),
    )


class ImageObjects(NamedTuple):
    """The objects of an image, as :func:`dinoneck.viz.boxes_panel` takes them.

    Attributes:
        boxes: (n, 4) around the masks, XYXY in pixels.
        names: of their classes.
        scores: of each; of panoptic segments too.
        masks: of each.
    """

    boxes: Array
    names: list[str]
    scores: list[float]
    masks: CroppedMasks

    def counts(self) -> Counter[str]:
        """Return name of a class -> how many objects of it there are."""
        return Counter(self.names)


def objects_of(objects: Any, task: TaskFacts) -> ImageObjects:
    """Return the objects in the row of a :class:`dinoneck.Predictor`, of a task of instances or panoptic segments.

    Args:
        objects: a dict with ``masks``, ``labels`` and ``scores``, or segments (height, width) and
            their rows.
        task: whose labels name the classes; without labels they are numbers.

    Raises:
        ShapeError: if masks are missing, or not (n, height, width).
    """
    predicted = read_objects(objects)
    masks = predicted.masks
    if masks is None:
        raise ShapeError(f"the objects of {task.name!r} have no masks; expected one for each")
    names = [output_name(task, number) for number in predicted.classes]
    rectangles = [masks.rectangle(number) for number in range(len(masks))]
    boxes = np.array(rectangles, np.float64).reshape(-1, 4)
    return ImageObjects(boxes, names, predicted.scores, masks)


def cropped(masks: Any) -> CroppedMasks:
    """Return masks (n, height, width) cut to the pixels around their objects.

    Raises:
        ShapeError: if they have another rank.
    """
    if isinstance(masks, CroppedMasks):
        return masks
    planes = np.asarray(masks).astype(bool, copy=False)
    if planes.ndim != 3:
        raise ShapeError(f"masks are {planes.shape}; expected (objects, height, width)")
    _, height, width = planes.shape
    return CroppedMasks.of_masks(planes, size=(height, width))


def draw_masks(sheet: Image.Image, masks: CroppedMasks, colours: Sequence[str]) -> Image.Image:
    """Return a picture with masks over it, each in its colour; the picture may be larger or smaller than the image."""
    pixels = np.asarray(sheet, np.float64).copy()
    height, width = masks.size
    across = sheet.width / width
    down = sheet.height / height
    for number, colour in enumerate(colours):
        left, top, right, bottom = masks.rectangle(number)
        if left == right or top == bottom:
            continue
        # the rectangle around the object in pixels of the picture
        first_col = round(left * across)
        first_row = round(top * down)
        num_cols = max(1, round(right * across) - first_col)
        num_rows = max(1, round(bottom * down) - first_row)
        shape = _resized(masks.crops[number], num_cols, num_rows)
        outline = shape & ~_inside(shape)
        shape = shape[: sheet.height - first_row, : sheet.width - first_col]
        outline = outline[: sheet.height - first_row, : sheet.width - first_col]

        area = pixels[first_row : first_row + num_rows, first_col : first_col + num_cols]
        rgb = np.array(ImageColor.getrgb(colour)[:3], np.float64)
        area[shape] += style.MASK_OPACITY * (rgb - area[shape])
        area[outline] = rgb
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _resized(mask: Array, width: int, height: int) -> Array:
    """A mask in this number of pixels, with smooth edges."""
    picture = Image.fromarray(255 * mask.astype(np.uint8))
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    is_set: Array = resized >= 128
    return is_set


def _inside(mask: Array) -> Array:
    """The pixels of a mask that are further from its edge than the outline is wide."""
    padding = style.OUTLINE_PX
    padded = np.pad(255 * mask.astype(np.uint8), padding)
    shrunk = Image.fromarray(padded).filter(ImageFilter.MinFilter(2 * padding + 1))
    is_inside: Array = np.asarray(shrunk)[padding:-padding, padding:-padding] > 0
    return is_inside
