"""The EXIF orientation of images, and pixels turned upright by it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from dinoneck.text import counted, reason_of

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the pixels upright."""
UPRIGHT = 1
"""The EXIF orientation of pixels that need no turn."""
_SAME_SIDES = (2, 3, 4)  # those that leave width and height as they are
SWAPS_SIDES = (5, 6, 7, 8)
"""Those that exchange width and height."""
FLIPS_X = (2, 3, 6, 7)
"""Those that flip left and right, after they have exchanged the sides."""
FLIPS_Y = (3, 4, 7, 8)
"""Those that flip up and down, after they have exchanged the sides."""
ORIENTED_BY = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Entries of ``Image.info`` that may hold the orientation."""


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which the pixels of an image, as Pillow decodes them, are still to be turned.

    Pillow turns a TIFF itself while it decodes it, so a TIFF with a tag is decoded here and the
    result is 1. Its size is that of the upright image from then on. EXIF that cannot be read is
    ignored, with a warning.
    """
    if image.format == "PNG" and "exif" not in image.info:
        # EXIF may follow the pixels; an error of theirs is not one of EXIF
        image.load()
    orientation = stated_orientation(image)
    if image.format == "TIFF" and orientation != UPRIGHT:
        # Pillow 11 to 13 scrambles a raw TIFF that it maps by its name
        image.filename = ""  # type: ignore[attr-defined]
        image.load()
        return UPRIGHT
    return orientation


def stated_orientation(image: Image.Image) -> int:
    """Return the orientation that the EXIF of an image states, 1 ... 8.

    Of a TIFF that Pillow has not decoded yet it is that of the stored pixels. EXIF that cannot be
    read is ignored, with a warning.
    """
    try:
        # Pillow reads it as it opens a JPEG, and keeps the error for itself
        Image.Exif().load(image.info.get("exif", b""))
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception as error:  # damaged EXIF raises many types of errors
        warn_once(f"{_name_of(image)}: EXIF cannot be read and is ignored ({reason_of(error)})")
        return UPRIGHT
    if isinstance(orientation, int) and orientation in TRANSPOSES:
        return orientation
    return UPRIGHT  # also of damaged tags


def tiff_orientation(image: Image.Image) -> int | None:
    """Return the orientation of a TIFF as it is stored, also once Pillow has turned it; None for other images."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return None
    orientation = tags.get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if isinstance(orientation, int) else UPRIGHT


def size_hides_turn(size: tuple[int, int], orientation: int) -> bool:
    """Whether stored and upright pixels differ and have one size, so that no size tells which of them labels fit.

    Args:
        size: height and width of the image, in pixels.
        orientation: by EXIF.
    """
    height, width = size
    return orientation in _SAME_SIDES or (orientation in TRANSPOSES and height == width)


def hidden_turns(images: Sequence[Path], labels: str) -> str:
    """Return what to say of images whose turn by EXIF no size tells.

    Args:
        images: the images, one or more.
        labels: what they have, such as ``masks``.
    """
    return (
        f"{counted(len(images), 'image')} with {labels} turned or mirrored by the EXIF tag, of the same "
        f"size before and after, such as {images[0]}: {labels} are read as those of the upright "
        "image. If they were drawn on the stored pixels, take the tag out of the files"
    )


def turned_otherwise(masks: Sequence[Any]) -> str:
    """Return what to say of masks that their own EXIF tag turns otherwise than that of their images does them."""
    return (
        f"{counted(len(masks), 'mask')} turned or mirrored by the EXIF tag otherwise than their images, "
        f"such as {masks[0]}: masks are read upright by their own tag. If they fit the images without "
        "it, take the tag out of the masks"
    )


def _name_of(image: Image.Image) -> str:
    """The file of an opened image, or the words for one in memory."""
    for name in (getattr(getattr(image, "fp", None), "name", ""), getattr(image, "filename", "")):
        if isinstance(name, str | os.PathLike) and str(name):
            return str(name)
    return "a PIL image"


@functools.lru_cache(maxsize=10_000)
def warn_once(text: str) -> None:
    """Warn of a file that is read all the same; it may be read every epoch."""
    logger.warning("%s", text)


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its EXIF orientation."""
    transpose = TRANSPOSES.get(read_orientation(image))
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    for key in ORIENTED_BY:
        turned.info.pop(key, None)
    return turned


def turn(pixels: Array, orientation: int) -> Array:
    """Turn pixels (C, H, W) upright by an EXIF orientation, as :func:`upright` does."""
    if orientation == 2:
        return np.flip(pixels, 2)
    if orientation == 3:
        return np.flip(pixels, (1, 2))
    if orientation == 4:
        return np.flip(pixels, 1)
    if orientation == 5:
        return np.swapaxes(pixels, 1, 2)
    if orientation == 6:
        return np.flip(np.swapaxes(pixels, 1, 2), 2)
    if orientation == 7:
        return np.flip(np.swapaxes(pixels, 1, 2), (1, 2))
    if orientation == 8:
        return np.flip(np.swapaxes(pixels, 1, 2), 1)
    return pixels


def turn_vectors(vectors: Array, orientation: int) -> Array:
    """Turn maps of vectors (3, H, W) upright as :func:`turn`, and the vectors with them: x right, y down."""
    return turn_components(turn(vectors, orientation), orientation)


def turn_components(vectors: Array, orientation: int) -> Array:
    """Turn vectors (3, H, W) whose pixels were turned upright by an EXIF orientation: x right, y down."""
    x, y, z = vectors
    if orientation in SWAPS_SIDES:
        x, y = y, x
    if orientation in FLIPS_X:
        x = -x
    if orientation in FLIPS_Y:
        y = -y
    return np.stack([x, y, z])


def turn_back(pixels: Array, orientation: int) -> Array:
    """Turn upright pixels (C, H, W) into those of a file with an EXIF orientation, the inverse of :func:`turn`."""
    if orientation == 6:
        return turn(pixels, 8)
    if orientation == 8:
        return turn(pixels, 6)
    return turn(pixels, orientation)  # the others are their own inverses


def turn_vectors_back(vectors: Array, orientation: int) -> Array:
    """Turn upright maps of vectors (3, H, W) into those of a file, the inverse of :func:`turn_vectors`."""
    if orientation == 6:
        return turn_vectors(vectors, 8)
    if orientation == 8:
        return turn_vectors(vectors, 6)
    return turn_vectors(vectors, orientation)
