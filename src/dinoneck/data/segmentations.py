"""Masks of COCO JSON: polygons and run lengths, their extents, and their pixels.

pycocotools decodes run lengths. It does not check them: of run lengths that end early it returns
memory that nobody wrote. So their total is counted here before it sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from dinoneck.data.coco import CocoBox, Side
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import shorten

Array = np.ndarray[Any, Any]
Extent = tuple[float, float, float, float]
"""Left, top, right and bottom of a mask in pixels."""
# NaN is refused too; beyond this pycocotools overflows
Polygon = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=6)]


class _Polygons(Struct):
    parts: Annotated[list[Polygon], Meta(min_length=1)]


class RunLengths(Struct):
    """A run-length encoded mask, (height, width), as counts or as COCO's text."""

    size: tuple[Side, Side]
    counts: list[Annotated[int, Meta(ge=0)]] | Annotated[str, Meta(pattern=r"^([0-o]*[0-O])?\Z")]


Shape = list[list[float]] | RunLengths
"""Polygons as flat lists x, y, x, y, ..., or run lengths."""


def read_shape(box: CocoBox, image_size: tuple[int, int], where: str) -> Shape:
    """Return the mask of an annotation.

    Args:
        box: the annotation.
        image_size: (height, width) of its image, which run lengths must have.
        where: what messages call the annotation.

    Raises:
        DataError: if there is no mask, or it is written in another way than COCO's.
    """
    value = box.segmentation
    try:
        if isinstance(value, dict):
            shape: Shape = msgspec.convert(value, RunLengths)
        else:
            shape = msgspec.convert({"parts": value}, _Polygons).parts
    except msgspec.ValidationError as error:
        raise DataError(
            f"{where} has the segmentation {shorten(value)}; expected polygons of three points or more "
            f"in pixels, [[x, y, x, y, x, y, ...]], or run lengths with size and counts ({error})"
        ) from None
    if isinstance(shape, RunLengths):
        _check_runs(shape, image_size, where)
    elif any(len(polygon) % 2 for polygon in shape):
        raise DataError(
            f"{where} has a polygon of an odd number of values; expected pairs of x and y"
        )
    return shape


def _check_runs(runs: RunLengths, image_size: tuple[int, int], where: str) -> None:
    if runs.size != image_size:
        raise DataError(
            f"{where} has a mask of {runs.size} (height, width), and its image has {image_size}"
        )
    total = sum(lengths_of(runs.counts))
    if total != image_size[0] * image_size[1]:
        raise DataError(
            f"{where} has a mask whose run lengths add up to {total} pixels; expected the "
            f"{image_size[0] * image_size[1]} of an image of {image_size}: write the mask again"
        )


def lengths_of(counts: Sequence[int] | str) -> list[int]:
    """Return the run lengths that counts or a text of COCO spell.

    A number has 5 bits per character, the lowest first; from the fourth number on it is the
    difference to the last number but one.
    """
    if not isinstance(counts, str):
        return list(counts)
    lengths: list[int] = []
    number = bits = 0
    for character in counts.encode():
        digit = character - ord("0")
        number |= (digit & 31) << bits
        bits += 5
        if digit < 32:  # the last character of a number
            if digit & 16:
                number -= 1 << bits
            lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
            number = bits = 0
    return lengths


def shape_extent(shape: Shape, height: int, width: int) -> Extent | None:
    """Return the extent of a mask; None if it shows no pixel."""
    if not isinstance(shape, RunLengths):
        xs = [x for polygon in shape for x in polygon[0::2]]
        ys = [y for polygon in shape for y in polygon[1::2]]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, w, h = _pycocotools().toBbox(_encoded(shape, height, width)).tolist()
    return (x, y, x + w, y + h) if w and h else None


def pixel_extent(pixels: Array) -> Extent | None:
    """Return the extent of the pixels (H, W) that are not 0; None if there is none."""
    ys, xs = np.nonzero(pixels)
    if not len(xs):
        return None
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def decode(shape: Shape, height: int, width: int) -> Array:
    """Return a mask as (height, width) uint8, 1 inside."""
    pixels: Array = _pycocotools().decode(_encoded(shape, height, width))
    return pixels


@dataclass(frozen=True)
class MaskCrop:
    """The part of a mask around its pixels.

    Attributes:
        top: the first row, in pixels of the image.
        left: the first column.
        pixels: bool (height, width); without rows and columns if the mask shows nothing.
    """

    top: int
    left: int
    pixels: Array


def crop_mask(shape: Shape, height: int, width: int) -> MaskCrop:
    """Return the pixels of :func:`decode` around a mask, without those of the whole image."""
    pixels = decode(shape, height, width).astype(bool)
    extent = pixel_extent(pixels)
    if extent is None:
        return MaskCrop(top=0, left=0, pixels=np.zeros((0, 0), bool))
    left, top, right, bottom = map(int, extent)
    return MaskCrop(top=top, left=left, pixels=pixels[top:bottom, left:right].copy())


def _encoded(shape: Shape, height: int, width: int) -> Any:
    """A mask as the run lengths of pycocotools."""
    mask = _pycocotools()
    if not isinstance(shape, RunLengths):
        return mask.merge(mask.frPyObjects(shape, height, width))
    if isinstance(shape.counts, str):
        return {"size": list(shape.size), "counts": shape.counts}
    return mask.frPyObjects({"size": [height, width], "counts": shape.counts}, height, width)


def check_pycocotools() -> None:
    """Raise the ImportError of masks if pycocotools is not installed."""
    _pycocotools()


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "masks") from error
    return mask
