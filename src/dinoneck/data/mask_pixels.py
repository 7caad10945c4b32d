"""Whether the pixels of files look like those of masks: one band, few colours, or JPEG's black and white.

Files are opened with Pillow, of a folder the first ones. A file that cannot be read looks like
nothing: whoever reads it says what is wrong. Neither pandas nor torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

Fact = TypeVar("Fact")

LABEL_SUFFIXES = (".gif", ".pgm", ".pfm")
"""Formats of masks that are none of images."""
OPENED = 3
"""Files of a kind that are opened."""
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", *LABEL_SUFFIXES)
_ONE_BYTE = ("1", "L", "P")  # Pillow's names of one band, and of palettes
_ONE_BAND = (*_ONE_BYTE, "I", "I;16", "I;16B")
_WIDE = ("I", "I;16", "I;16B", "F")  # of more than 8 bits
_MOST_COLOURS = 64  # of a mask in colours; a photo has thousands
# JPEG changes black and white along edges: of masks of lines 1 to 9 pixels wide, at quality 50,
# 98.7 % of the pixels stay this near to black or white; a screenshot of a report has 80 %
_NEAR_BLACK_OR_WHITE = 40  # of 255
_SHARE_BLACK_AND_WHITE = 0.95
_LEAST_OF_EACH = 0.001  # of the pixels black, and of them white
_MOST_PIXELS = 50_000_000  # of a file whose colours are counted: less than a second


def is_lossless(file: Path) -> bool:
    """Whether the suffix of a file is that of a format without losses."""
    return file.suffix.lower() in _LOSSLESS_SUFFIXES


def has_one_band(file: Path) -> bool:
    """Whether a file without losses has one band of whole numbers, or a palette."""
    return is_lossless(file) and _mode(file) in _ONE_BAND


def has_few_colours(file: Path) -> bool:
    """Whether a file has no more colours, or grey levels, than a mask has."""
    colours = _colours(file)
    return colours is not None and colours <= _MOST_COLOURS


def has_many_colours(file: Path) -> bool:
    """Whether a file has more colours, or grey levels, than a mask has."""
    colours = _colours(file)
    return colours is not None and colours > _MOST_COLOURS


def has_grey_levels(file: Path) -> bool:
    """Whether a file has one band of 8 bits with more levels than a mask has: a grey photo, or a mask of numbers."""
    return _mode(file) in _ONE_BYTE and has_many_colours(file)


def is_black_and_white(file: Path) -> bool:
    """Whether nearly all pixels of a file are black or white, up to what JPEG makes of them, and some are each."""
    histograms = _ask(file, _histograms)
    if not histograms:
        return False
    for band in range(3):
        counts = histograms[256 * band : 256 * (band + 1)]
        total = sum(counts)
        black = sum(counts[:_NEAR_BLACK_OR_WHITE])
        white = sum(counts[-_NEAR_BLACK_OR_WHITE:])
        if black + white < _SHARE_BLACK_AND_WHITE * total:
            return False
        if min(black, white) < _LEAST_OF_EACH * total:
            return False
    return True


def are_flat(masks: Sequence[Path], images: Sequence[Path]) -> bool:
    """Whether the first of some files have few colours, or JPEG's black and white, and those of others not."""
    some_masks = masks[:OPENED]
    some_images = images[:OPENED]
    if not all(map(has_many_colours, some_images)):
        return False
    if all(map(is_lossless, some_masks)):
        return all(map(has_few_colours, some_masks))
    return all(map(is_black_and_white, some_masks)) and not any(
        map(is_black_and_white, some_images)
    )


def are_of_one_size(masks: Sequence[Path], images: Sequence[Path]) -> bool:
    """Whether the first of some files have the sizes of the first of others, which EXIF may turn."""
    for mask, image in zip(masks[:OPENED], images[:OPENED], strict=False):
        mask_size = _size(mask)
        image_size = _size(image)
        if mask_size is None or image_size is None or sorted(mask_size) != sorted(image_size):
            return False
    return True


def looks_like_photo(file: Path, image: Path) -> bool:
    """Whether a file that is called like the mask of an image is a photo itself.

    It has many colours, and as many bands as the image. A grey file without losses may hold numbers.
    """
    mode = _mode(file)
    if mode in (None, *_WIDE) or not has_many_colours(file) or is_black_and_white(file):
        return False
    if mode in _ONE_BYTE:
        return not is_lossless(file) and _mode(image) in _ONE_BYTE
    return True


def _mode(file: Path) -> str | None:
    return _ask(file, lambda image: image.mode)


def _size(file: Path) -> tuple[int, int] | None:
    return _ask(file, lambda image: image.size)


def _colours(file: Path) -> int | None:
    """The number of colours of a file, up to one more than a mask has; None if it is not counted."""
    return _ask(file, _count_colours)


def _ask(file: Path, question: Callable[[Image], Fact]) -> Fact | None:
    """What a function says of a file that is opened; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return question(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _count_colours(image: Image) -> int | None:
    if image.width * image.height > _MOST_PIXELS:
        return None
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode not in _WIDE:
        image = image.convert("RGB")
    counts = image.getcolors(_MOST_COLOURS)
    return _MOST_COLOURS + 1 if counts is None else len(counts)


def _histograms(image: Image) -> list[int] | None:
    """The histograms of red, green and blue, one after the other."""
    if image.width * image.height > _MOST_PIXELS:
        return None
    return image.convert("RGB").histogram()
