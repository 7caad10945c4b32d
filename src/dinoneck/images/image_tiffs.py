"""TIFF files as images: where Pillow reads a part of their bands, numbers and pages without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinoneck.errors import DataError
from dinoneck.images import tiff
from dinoneck.text import counted

Raw = np.ndarray[Any, Any]

# bands that are colours, by photometric interpretation; others are of one band
COLOURS = {
    tiff.RGB: 3,
    tiff.CMYK: 4,
    tiff.YCBCR: 3,
    tiff.CIELAB: 3,
    tiff.ICCLAB: 3,
    tiff.ITULAB: 3,
}
KINDS_OF_ALPHA = (tiff.PREMULTIPLIED_ALPHA, tiff.ALPHA, tiff.ALPHA_OF_COREL_DRAW)
BYTE = 8  # bits
# most pixels of a picture are transparent or opaque; infrared has few of 0 or 255
_LEAST_SHARE_AT_ENDS = 0.5
# GDAL and rasterio tag any fourth band of 8 bits as alpha. A tag counts for more than no tag: a band
# of many levels is no alpha where few pixels are at the ends, unless it runs from one to the other,
# or where it has the texture of a picture: alpha between the ends is an edge or a ramp
_LEAST_LEVELS = 20
_LEAST_STATED_SHARE = 0.05
_LEAST_STATED_SHARE_AT_EACH_END = 0.0005
_LEAST_SHARE_OF_TEXTURE = 0.15
_MOST_BEND = 4  # levels; a ramp that is dithered by one level is bent by so many
_WITH_ALPHA = ("LA", "RGBA")  # modes of Pillow


def check_numbers(image: Image.Image, name: str) -> None:
    """Check that Pillow reads all bands of a TIFF file but alpha, and their numbers as they are.

    Other images pass.

    Raises:
        DataError: naming the bands, the numbers or the missing tag, and the remedy.
    """
    layout = tiff.layout_of(image)
    if layout is None:
        return
    if layout.photometric is None and layout.bands == 1:
        raise DataError(
            f"{name} is a TIFF without the tag PhotometricInterpretation, so 0 may be black or "
            "white; write the tag, or pass an array"
        )
    if layout.is_sparse:
        raise DataError(
            f"{name} is a sparse TIFF: some of its strips or tiles are not stored; write it in full "
            "(gdal_translate -co SPARSE_OK=FALSE), or pass an array"
        )
    _check_bands(layout, name)
    # of uncompressed bands Pillow reads each value as two
    is_deep = max(layout.bits) > BYTE and layout.compression == tiff.UNCOMPRESSED
    if has_planes(image) and (is_deep or layout.photometric == tiff.CIELAB):
        raise DataError(
            f"{name} is a TIFF whose {counted(layout.bands, 'band')} of {max(layout.bits)} bits "
            "are stored one after another, which Pillow reads wrongly; write it with interleaved "
            "bands, or pass an array"
        )
    if layout.kind == tiff.SIGNED and image.mode == "L":
        raise DataError(
            f"{name} is a TIFF of signed 8-bit values; expected unsigned ones: shift them, and "
            "write the file again or pass an array"
        )


def _check_bands(layout: tiff.TiffLayout, name: str) -> None:
    """Check that a file has no other bands than grey or colours, and alpha."""
    extra = layout.bands - COLOURS.get(layout.photometric, 1)  # type: ignore[arg-type]
    if extra <= 0:
        return
    # Pillow, OpenCV and many others write no tag for alpha, see check_alpha()
    has_alpha = not layout.extra or layout.extra[0] in KINDS_OF_ALPHA
    if extra > 1 or not has_alpha:
        raise DataError(
            f"{name} is a TIFF of {counted(layout.bands, 'band')}; expected grey or RGB, with or "
            "without alpha: write a file of the bands to use, or pass them as an array (H, W, 3)"
        )


def check_alpha(image: Image.Image, name: str) -> None:
    """Check by its pixels that the band behind grey or RGB is alpha, and not infrared.

    Other images pass.

    Raises:
        DataError: if a fourth band that no tag explains is neither transparent nor opaque in most
            pixels that are not black; if a band that is tagged as alpha is so almost nowhere, or has
            the texture of a picture.
    """
    layout = tiff.layout_of(image)
    if layout is None:
        return
    if tiff.is_alpha_open(layout):
        _check_open_alpha(image, name)
    elif layout.extra[:1] and layout.extra[0] in KINDS_OF_ALPHA and image.mode in _WITH_ALPHA:
        _check_stated_alpha(image, name)


def _check_open_alpha(image: Image.Image, name: str) -> None:
    *colours, fourth = (np.asarray(band) for band in image.split())
    is_shown = _is_not_black(colours)
    if is_shown.any():
        fourth = fourth[is_shown]
    at_ends = np.count_nonzero((fourth == 0) | (fourth == np.iinfo(fourth.dtype).max))
    if at_ends < _LEAST_SHARE_AT_ENDS * fourth.size:
        raise DataError(
            f"{name} is a TIFF of 4 bands that does not say what the fourth is (ExtraSamples), and its "
            f"values {fourth.min()} ... {fourth.max()} are no alpha: write a file of the bands to "
            "use, or pass them as an array (H, W, 3)"
        )


def _check_stated_alpha(image: Image.Image, name: str) -> None:
    *colours, alpha = (np.asarray(band) for band in image.split())
    counts = np.bincount(alpha.ravel(), minlength=256)
    if np.count_nonzero(counts) < _LEAST_LEVELS:
        return
    shares = counts[[0, 255]] / alpha.size
    runs_from_end_to_end = shares.min() >= _LEAST_STATED_SHARE_AT_EACH_END
    reaches_ends = shares.sum() >= _LEAST_STATED_SHARE or runs_from_end_to_end
    if reaches_ends and not _has_texture(alpha, _is_not_black(colours)):
        return
    raise DataError(
        f"{name} is a TIFF whose last band is tagged as alpha (ExtraSamples), as rasterio and GDAL tag "
        f"any fourth band, and its values {alpha.min()} ... {alpha.max()} are no alpha: write a file of "
        "the bands to use, or pass them as an array (H, W, 3)"
    )


def _is_not_black(colours: Sequence[Raw]) -> Raw:
    """Which pixels lie outside of the black border of an orthomosaic, where infrared is 0 too, (H, W) bool."""
    return np.asarray(np.any([band > 0 for band in colours], axis=0))


def _has_texture(band: Raw, is_shown: Raw) -> bool:
    """Whether much of a band (H, W) is neither at an end of its range, nor near one, nor on a ramp."""
    is_between = (band > 0) & (band < np.iinfo(band.dtype).max)
    # of every pixel but the two first and last of a row: neither it nor the two on each side of it is
    # at an end
    is_far_from_ends = is_between[:, 2:-2].copy()
    is_far_from_ends &= is_between[:, :-4] & is_between[:, 1:-3]
    is_far_from_ends &= is_between[:, 3:-1] & is_between[:, 4:]
    # by how much the step to the next pixel differs from that to the one before; 0 on a ramp
    levels = band.astype(np.int16)
    bend = np.abs(levels[:, 1:-3] - 2 * levels[:, 2:-2] + levels[:, 3:-1])
    with_texture = int((is_far_from_ends & (bend > _MOST_BEND)).sum())
    shown = max(1, int(is_shown.sum()))
    return with_texture >= _LEAST_SHARE_OF_TEXTURE * shown


def check_pages(image: Image.Image, name: str) -> None:
    """Check that an opened TIFF file is one picture: other pages are smaller, as overviews are, or masks.

    Raises:
        DataError: naming the page that is none of these, or that the first page is a preview.
    """
    if tiff.layout_of(image) is None:
        return
    problem = tiff.problem_of_pages(pages_of(image))
    if problem:
        raise DataError(
            f"{name} {problem}; expected one image: write the picture to use as a file, or pass it "
            "as an array"
        )


def pages_of(image: Image.Image) -> list[ImageFileDirectory_v2]:
    """Return the tags of each page of an opened TIFF file, whose position stays."""
    file = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    pages = [*tiff.tiff_pages(file)]
    file.seek(position)
    return pages


def has_planes(image: Image.Image) -> bool:
    """Return whether an opened TIFF file has several bands that are stored one after another."""
    layout = tiff.layout_of(image)
    return layout is not None and layout.bands > 1 and layout.is_band_after_band


def is_white_zero(image: Image.Image) -> bool:
    """Return whether 0 is white in an opened TIFF file."""
    layout = tiff.layout_of(image)
    return layout is not None and layout.photometric == tiff.MIN_IS_WHITE


def describe(path: Path) -> str | None:
    """Return the bands and numbers of a TIFF file in words; None if it is not one, or its tags cannot be read."""
    layout = tiff.layout_of_file(path)
    if layout is None:
        return None
    words = layout.words()
    if layout.photometric == tiff.MIN_IS_WHITE:
        words += " with 0 as white"
    if layout.compression not in TiffImagePlugin.COMPRESSION_INFO:
        words += f" in the compression {layout.compression}"
    return words
