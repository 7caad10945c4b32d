"""The EXIF orientation of images, and pixels turned upright by it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

Array = np.ndarray[Any, Any]

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
SWAPS_SIDES = (5, 6, 7, 8)
"""Those that exchange width and height."""
FLIPS_X = (2, 3, 6, 7)
"""Those that flip left and right, after they have exchanged the sides."""
FLIPS_Y = (3, 4, 7, 8)
"""Those that flip up and down, after they have exchanged the sides."""
_PNG_SIGNATURE_BYTES = 8
# texts of PNG files in which Pillow finds an orientation
_TEXTS_OF_PNG = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which the pixels of an image, as Pillow decodes them, are still to be turned.

    Pillow turns a TIFF itself while it decodes it, so a TIFF with a tag is decoded here and the
    result is 1. Its size is that of the upright image from then on.
    """
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
    read is ignored, as picture viewers ignore it.
    """
    if image.format == "PNG" and "exif" not in image.info and _states_it_behind_pixels(image):
        # Pillow reads it there; an error of the pixels is not one of EXIF
        image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged EXIF raises many types of errors
        return UPRIGHT
    if isinstance(orientation, int) and orientation in TRANSPOSES:
        return orientation
    return UPRIGHT  # also of damaged tags


def _states_it_behind_pixels(image: Image.Image) -> bool:
    """Whether an opened PNG file has EXIF or XMP behind the pixels, where Pillow has not been yet."""
    file = getattr(image, "fp", None)
    if file is None or file.closed:
        return False
    position = file.tell()
    file.seek(_PNG_SIGNATURE_BYTES)
    is_behind = False
    is_found = False
    while not is_found:
        start = file.read(8)
        if len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start)
        begin = file.read(min(length, max(map(len, _TEXTS_OF_PNG))))
        file.seek(length - len(begin) + 4, 1)  # and the checksum
        is_behind |= kind == b"IDAT"
        is_stated = kind == b"eXIf" or begin.startswith(_TEXTS_OF_PNG)
        is_found = is_behind and is_stated
    file.seek(position)
    return is_found


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its EXIF orientation."""
    if read_orientation(image) == UPRIGHT:
        return image
    return ImageOps.exif_transpose(image)


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
