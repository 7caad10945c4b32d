"""From an uploaded file to pixels: the format and the size are checked before a pixel is decoded."""

from __future__ import annotations

import math

from PIL import Image
from starlette.datastructures import UploadFile
from torch import Tensor

from dinoneck.data.decoding import read_pixels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, Refusal, first_line
from dinoneck.grid import patch_pair
from dinoneck.serve.uploads import quoted

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 50_000_000
MAX_PATCHES = 4096
Image.init()  # loads the formats now, and not within the first request


def default_limit(recipe: Preprocessing) -> int:
    """Return the largest number of pixels of an image; attention costs the square of those that are not resized."""
    return MAX_PIXELS if recipe.size is not None else MAX_PATCHES * math.prod(patch_pair(recipe.patch_size))


def open_image(upload: UploadFile, recipe: Preprocessing, max_pixels: int) -> Image.Image:
    """Return the image with its header read and checked; its pixels are still compressed.

    Raises:
        Refusal: 422 if it is not an image, or has several frames; 413 if it, or what it is resized to, is too large.
    """
    name = f"{quoted(upload.filename)} ({upload.size} bytes)"
    try:
        image = Image.open(upload.file, formats=FORMATS)
        is_animated = getattr(image, "is_animated", False) and image.format != "MPO"
    except Image.DecompressionBombError as error:
        raise Refusal(413, "too_many_pixels", f"{name}: {error}; expected {max_pixels} pixels at most") from None
    except Exception:  # decoders raise many types of errors on damaged bytes
        expected = f"expected a complete image as {', '.join(FORMATS)}"
        raise Refusal(422, "not_an_image", f"{name} cannot be read; {expected}. Convert it") from None
    if is_animated:
        raise Refusal(422, "animated", f"{name} has several frames or pages; expected one image. Send a single frame")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # older Pillow opens 16-bit PNGs as I
        found = f"{name} holds 32-bit values ({image.mode}) of unknown range"
        raise Refusal(422, "unfit", f"{found}; expected 8 or 16 bits per channel. Save it with 8 bits")
    sides = image.size
    prepared = max(_prepared_pixels(sides, recipe), _prepared_pixels(sides[::-1], recipe))  # EXIF may turn it
    if max(math.prod(sides), prepared) > max_pixels:
        found = f"{name} is {sides[0]}x{sides[1]} px (width x height) and is resized to up to {prepared} pixels"
        raise Refusal(413, "too_many_pixels", f"{found}; expected {max_pixels} pixels at most. Crop it, or shrink it")
    return image


def _prepared_pixels(sides: tuple[int, int], recipe: Preprocessing) -> int:
    """The most pixels of an image that is resized to cover the head's size, or filled up to whole patches."""
    if recipe.size is not None:
        scale = max(target / side for target, side in zip(recipe.size, sides, strict=True))
        return math.ceil(math.prod(sides) * scale**2)
    pairs = zip(sides, patch_pair(recipe.patch_size), strict=True)
    return math.prod(math.ceil(side / patch) * patch for side, patch in pairs)


def decode(image: Image.Image, upload: UploadFile) -> Tensor:
    """Return the pixels (3, H, W) of an opened image, upright.

    Raises:
        Refusal: 422 if the bytes are damaged or the values cannot be used.
    """
    name = f"{quoted(upload.filename)} ({upload.size} bytes)"
    try:
        return read_pixels(image)
    except DataError as error:
        raise Refusal(422, "unfit", f"{name}: {error}") from None
    except Exception as error:  # decoders raise many types of errors on damaged bytes
        reason = quoted(first_line(error) or type(error).__name__)
        found = f"{name} cannot be decoded: {reason}; expected a complete image"
        raise Refusal(422, "broken_image", f"{found}. Send it again, or save it again") from None
