"""Label files of other formats than TIFF: which of them Pillow reads with the numbers that they store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.data.label_notes import FileScale, Rule
from dinoneck.data.label_tiffs import AS_ARRAY
from dinoneck.errors import DataError
from dinoneck.images import deep_colours, png
from dinoneck.images.pnm import range_of
from dinoneck.images.stored_tiles import tile_arguments

_EXACT = ("PNG", "TIFF", "BMP", "GIF", "PPM")
_LOSSY = ("JPEG", "MPO")
# colours that are converted, multiplied by alpha, or padded
_NO_NUMBERS = ("La", "RGBa", "RGBX", "YCbCr", "LAB", "HSV")
_BYTE = 255
BLACK_AND_WHITE: Mapping[int, tuple[int, ...]] = {0: (0, 0, 0), 1: (255, 255, 255)}
"""The colours of a file of 1 bit."""
_NUMPY_SUFFIXES = (".npy", ".npz")


def check_file(image: Image.Image, name: str) -> None:
    """Check that Pillow gives the numbers of an opened file; TIFF files and images of no file pass.

    Raises:
        DataError: naming the cause and the way out.
    """
    if image.format in _LOSSY:
        raise DataError(
            f"{name} is a JPEG picture, which changes numbers near every edge; make the labels again "
            "as PNG or TIFF, or pass them as arrays"
        )
    if image.format not in (None, *_EXACT):
        raise DataError(
            f"{name} is a {image.format} picture; labels are PNG, TIFF, BMP, GIF or PGM, which keep "
            f"every number: if this one does, save it again (Image.open(file).save('label.png')), or "
            f"{AS_ARRAY}"
        )
    if image.format == "TIFF":
        return
    if image.mode in _NO_NUMBERS:
        raise DataError(
            f"{name} is of the mode {image.mode!r}, whose bands are no numbers of a label; expected 1, "
            "L, LA, P, PA, RGB, RGBA, I, I;16 or F: convert it (image.convert('L'))"
        )
    png.check_end(image)
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(
            f"{name} has {image.n_frames} frames; expected one: "  # type: ignore[attr-defined]
            f"{AS_ARRAY}"
        )
    problem = (
        _problem_of_few_bits(image) or _problem_of_deep_colours(image) or _problem_of_format(image)
    )
    if problem:
        raise DataError(f"{name} {problem}")


def _problem_of_few_bits(image: Image.Image) -> str:
    arguments = tile_arguments(image)
    stored = str(arguments[0]) if arguments else ""
    for bits in (2, 4):
        if f"L;{bits}" in stored:
            return (
                f"stores {bits}-bit grey, which Pillow scales to 8 bits; save it as 8-bit grey or a "
                f"palette, or {AS_ARRAY}"
            )
    return ""


def _problem_of_deep_colours(image: Image.Image) -> str:
    largest = range_of(image).largest or 0
    if not image.mode.startswith("I") and (deep_colours.is_deep(image) or largest > _BYTE):
        return f"has several bands of 16 bits, which Pillow cuts to 8; {AS_ARRAY}"
    return ""


def _problem_of_format(image: Image.Image) -> str:
    arguments = tile_arguments(image)
    has_form = image.format == "PPM" or (image.format == "BMP" and image.mode not in ("1", "P"))
    if has_form and not arguments:
        return "was decoded before, and how its numbers are stored is not known any more; pass its path"
    if image.format == "PPM" and image.mode == "1":
        return (
            "is a PBM picture, in which 1 is black and which Pillow inverts; save it as PNG with the "
            f"numbers that are meant, or {AS_ARRAY}"
        )
    if image.format == "BMP" and not _is_exact_bitmap(image, arguments):
        return (
            f"is a BMP picture in a form ({image.mode}, {arguments[0]}) of which Pillow may change "
            "numbers, such as run lengths, 4 bits of grey, 16 bits or alpha; save it as PNG with 8 "
            f"bits, or {AS_ARRAY}"
        )
    if image.format == "GIF":
        return _problem_of_gif(image)
    return ""


def _is_exact_bitmap(image: Image.Image, arguments: tuple[Any, ...]) -> bool:
    if image.mode in ("1", "P"):
        return True
    if image.mode == "L":
        # 4 bits of grey, which Pillow takes for 8, have rows of half as many bytes
        bytes_of_row = arguments[1]
        return not isinstance(bytes_of_row, int) or bytes_of_row >= image.width
    return image.mode == "RGB" and arguments[0] in ("BGR", "BGRX")


def _problem_of_gif(image: Image.Image) -> str:
    for tile in getattr(image, "tile", ()):
        if tuple(tile.extents) != (0, 0, *image.size):
            return f"is a GIF picture that fills a part of its frame; save it as PNG, or {AS_ARRAY}"
    if image.mode != "P":
        return ""
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = [int(index) for index in np.unique(np.asarray(image)) if index < len(palette)]
    colours = {index: tuple(palette[index].tolist()) for index in used}
    if colours.items() <= BLACK_AND_WHITE.items():
        return ""
    is_grey = all(len({*colour}) == 1 for colour in colours.values())
    if is_grey and any(colour[0] != index for index, colour in colours.items()):
        return (
            "is a GIF picture with a palette of greys, and programs number them anew as they save it: "
            "the index and the grey level differ. Save the grey levels as PNG "
            f"(Image.open(file).convert('L').save('label.png')), or {AS_ARRAY}"
        )
    return ""


def scale_of(image: Image.Image) -> FileScale | None:
    """Return the rule from the numbers of a PFM to quantities; None = they are quantities."""
    factor = range_of(image).factor
    if factor == 1.0:
        return None
    return FileScale((Rule(factor),), source="the PFM header", removal="write the scale 1 or -1")


def check_path(path: Path) -> None:
    """Refuse files of arrays by their suffix.

    Raises:
        DataError: with the way to pass them.
    """
    if path.suffix.lower() in _NUMPY_SUFFIXES:
        raise DataError(
            f"{path} is a file of NumPy; expected PNG or TIFF: pass np.load(file) to DenseLabels, or "
            "save it as a 32-bit TIFF (Image.fromarray(array.astype('float32')).save('label.tif'))"
        )
