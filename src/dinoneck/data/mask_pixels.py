"""Tell from pixels whether files look like masks: one band, few colours, or black and white in JPEG.

Of each kind of file in a folder, only the first ``MAX_OPENED`` files are opened, with Pillow. For a file
that cannot be read all answers are False: the code that loads it later raises the error. Neither
pandas nor torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

LABEL_SUFFIXES = (".gif", ".pgm", ".pfm")
"""Suffixes of formats in which masks are read, but no images."""
MAX_OPENED = 3
"""How many files of one kind are opened."""
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", *LABEL_SUFFIXES)
# modes of Pillow
_MODES_8_BIT = ("1", "L", "P")  # one band of at most 8 bits; "P" has a palette
_MODES_ONE_BAND = (*_MODES_8_BIT, "I", "I;16", "I;16B")  # whole numbers or a palette
_MODES_WIDE = ("I", "I;16", "I;16B", "F")  # one band of more than 8 bits
_MAX_MASK_COLOURS = 64  # a photo has thousands
# JPEG blurs the edges between black and white. Measured on masks of lines that are 1 to 9 pixels
# wide, at quality 50: 98.7 % of the pixels stay within 40 grey levels of black or white. In a
# screenshot of a report 80 % do.
_BLACK_OR_WHITE_LEVELS = 40  # of 256: the darkest count as black, the brightest as white
_MIN_BLACK_AND_WHITE_SHARE = 0.95
_MIN_SHARE_OF_EACH = 0.001  # of the pixels must be black, and as many white
_MAX_COUNTED_PIXELS = (
    50_000_000  # counting the colours of a file takes less than a second up to here
)


def is_lossless(file: Path) -> bool:
    """Return whether the suffix of a file is that of a lossless format."""
    return file.suffix.lower() in _LOSSLESS_SUFFIXES


def has_one_band(file: Path) -> bool:
    """Return whether a lossless file has one band of whole numbers, or a palette."""
    return is_lossless(file) and _mode(file) in _MODES_ONE_BAND


def has_few_colours(file: Path) -> bool:
    """Return whether a file has as few colours, or grey levels, as a mask."""
    num_colours = _num_colours(file)
    return num_colours is not None and num_colours <= _MAX_MASK_COLOURS


def has_many_colours(file: Path) -> bool:
    """Return whether a file has more colours, or grey levels, than a mask."""
    num_colours = _num_colours(file)
    return num_colours is not None and num_colours > _MAX_MASK_COLOURS


def has_grey_levels(file: Path) -> bool:
    """Return whether a file has one band of 8 bits with more levels than a mask.

    It may be a grey photo, or a mask of numbers.
    """
    return _mode(file) in _MODES_8_BIT and has_many_colours(file)


def is_black_and_white(file: Path) -> bool:
    """Return whether nearly all pixels are black or white, within JPEG's losses, and some are each."""
    histograms = _inspect(file, _rgb_histograms)
    if not histograms:
        return False
    for band in range(3):  # red, green, blue
        counts = histograms[256 * band : 256 * (band + 1)]
        total = sum(counts)
        black = sum(counts[:_BLACK_OR_WHITE_LEVELS])
        white = sum(counts[-_BLACK_OR_WHITE_LEVELS:])
        if black + white < _MIN_BLACK_AND_WHITE_SHARE * total:
            return False
        if min(black, white) < _MIN_SHARE_OF_EACH * total:
            return False
    return True


def are_flat(masks: Sequence[Path], images: Sequence[Path]) -> bool:
    """Return whether the first masks look flat-coloured, and the first images do not.

    Flat-coloured masks have few colours or, in a lossy format, are black and white.
    """
    some_masks = masks[:MAX_OPENED]
    some_images = images[:MAX_OPENED]
    if not all(map(has_many_colours, some_images)):
        return False
    if all(map(is_lossless, some_masks)):
        return all(map(has_few_colours, some_masks))
    if any(map(is_black_and_white, some_images)):
        return False
    return all(map(is_black_and_white, some_masks))


def are_of_one_size(masks: Sequence[Path], images: Sequence[Path]) -> bool:
    """Return whether the first masks have the sizes of the first images, up to a rotation by EXIF."""
    for mask, image in zip(masks[:MAX_OPENED], images[:MAX_OPENED], strict=False):
        mask_size = _size(mask)
        image_size = _size(image)
        if mask_size is None or image_size is None:
            return False
        if sorted(mask_size) != sorted(image_size):
            return False
    return True


def looks_like_photo(file: Path, image: Path) -> bool:
    """Return whether a file that is named like the mask of an image is a photo itself.

    A photo has many colours. A grey file is one only if its image is grey too and the file is lossy:
    a lossless grey file may be a mask of numbers.
    """
    mode = _mode(file)
    if mode is None or mode in _MODES_WIDE:
        return False
    if not has_many_colours(file) or is_black_and_white(file):
        return False
    if mode in _MODES_8_BIT:
        return not is_lossless(file) and _mode(image) in _MODES_8_BIT
    return True


def _mode(file: Path) -> str | None:
    return _inspect(file, lambda image: image.mode)


def _size(file: Path) -> tuple[int, int] | None:
    return _inspect(file, lambda image: image.size)


def _num_colours(file: Path) -> int | None:
    """Return the number of colours, at most ``_MAX_MASK_COLOURS + 1``; None if they are not counted."""
    return _inspect(file, _count_colours)


def _inspect(file: Path, inspect: Callable[[Image], T]) -> T | None:
    """Open a file and return what ``inspect`` returns for it; None if the file cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return inspect(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _count_colours(image: Image) -> int | None:
    if image.width * image.height > _MAX_COUNTED_PIXELS:
        return None
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode not in _MODES_WIDE:
        image = image.convert("RGB")
    counts = image.getcolors(_MAX_MASK_COLOURS)  # None if there are more
    return _MAX_MASK_COLOURS + 1 if counts is None else len(counts)


def _rgb_histograms(image: Image) -> list[int] | None:
    """Return the histograms of red, green and blue, one after the other: 3 x 256 counts."""
    if image.width * image.height > _MAX_COUNTED_PIXELS:
        return None
    return image.convert("RGB").histogram()
