"""TIFF files as labels: which kinds of numbers Pillow reads as they are.

Some kinds Pillow scales, inverts, cuts, byte-swaps or drops without an error. The layout of a page
tells which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dinoneck.atomic import open_regular
from dinoneck.images import tiff
from dinoneck.images.tiff import TiffLayout

Raw = np.ndarray[Any, Any]

AS_ARRAY = "read it with a raster library and pass an array (H, W) or (H, W, K)"

_STORED_AS_THEY_ARE = (tiff.MIN_IS_BLACK, tiff.RGB, tiff.PALETTE, tiff.CMYK)
# none, CCITT (3), LZW, Adobe and old Deflate, PackBits, LZMA, Zstandard
_LOSSLESS_CODECS = (1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 50000)
_LOSSY_NAMES = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP"}
# (kind, bits) of one band that Pillow reads without a change
_READABLE = (
    (tiff.UNSIGNED, 1),
    (tiff.UNSIGNED, 8),
    (tiff.UNSIGNED, 12),
    (tiff.UNSIGNED, 16),
    (tiff.UNSIGNED, 32),
    (tiff.SIGNED, 8),
    (tiff.SIGNED, 16),
    (tiff.SIGNED, 32),
    (tiff.FLOAT, 32),
)
_READABLE_INDICES = (
    (tiff.UNSIGNED, 1),
    (tiff.UNSIGNED, 2),
    (tiff.UNSIGNED, 4),
    (tiff.UNSIGNED, 8),
)


def has_alpha(layout: TiffLayout) -> bool:
    """Whether the last band is an alpha band."""
    return layout.extra in ((tiff.ALPHA,), (tiff.ALPHA_OF_COREL_DRAW,))


def problem_of(layout: TiffLayout) -> str:
    """Return why Pillow would not give the numbers as they are stored; "" = it does."""
    return (
        _storage_problem(layout)
        or _kind_problem(layout)
        or _meaning_problem(layout)
        or _order_problem(layout)
    )


def _storage_problem(layout: TiffLayout) -> str:
    if layout.compression not in _LOSSLESS_CODECS:
        codec = _LOSSY_NAMES.get(layout.compression, f"method {layout.compression}")
        return (
            f"is compressed by {codec}, which may change numbers; expected LZW, Deflate or "
            f"none: {AS_ARRAY} if they are exact"
        )
    if layout.is_sparse:
        return (
            "is sparse: some of its strips or tiles are not stored; write it in full "
            f"(gdal_translate -co SPARSE_OK=FALSE), or {AS_ARRAY}"
        )
    return ""


def _kind_problem(layout: TiffLayout) -> str:
    if layout.bands > 1:
        if (layout.kind, layout.bits) == (tiff.UNSIGNED, (8,)):
            return ""
        return (
            f"holds {layout.words()}; Pillow reads several bands of 8-bit unsigned integers "
            f"alone: {AS_ARRAY}"
        )
    is_palette = layout.photometric == tiff.PALETTE
    if layout.kind == tiff.UNSIGNED and layout.bits in ((2,), (4,)) and not is_palette:
        return (
            f"stores {layout.bits[0]}-bit grey, which Pillow scales to 8 bits; save it with 8 "
            f"bits, or {AS_ARRAY}"
        )
    readable = _READABLE_INDICES if is_palette else _READABLE
    if len(layout.bits) > 1 or (layout.kind, layout.bits[0]) not in readable:
        problem = f"holds {layout.words()}, which Pillow does not read"
        if layout.kind == tiff.FLOAT:
            return f"{problem}; save it as Float32 (gdal_translate -ot Float32), or {AS_ARRAY}"
        if layout.kind in (tiff.UNSIGNED, tiff.SIGNED):
            return f"{problem}; save it as Int32 (gdal_translate -ot Int32), or {AS_ARRAY}"
        return f"{problem}; {AS_ARRAY}"
    return ""


def _meaning_problem(layout: TiffLayout) -> str:
    # no program inverts floats
    if layout.photometric == tiff.MIN_IS_WHITE and layout.kind != tiff.FLOAT:
        return (
            "says that 0 is white (PhotometricInterpretation 0), and programs disagree "
            f"whether its numbers are inverted; write it with 0 as black, or {AS_ARRAY}"
        )
    if layout.photometric is None and layout.bits[0] < 16:
        return (
            "lacks the tag PhotometricInterpretation, and Pillow would invert its numbers; "
            f"write it with 0 as black, or {AS_ARRAY}"
        )
    if layout.photometric not in (None, tiff.MIN_IS_WHITE, *_STORED_AS_THEY_ARE):
        return (
            "stores colours that are converted on reading (PhotometricInterpretation "
            f"{layout.photometric}); {AS_ARRAY}"
        )
    if tiff.PREMULTIPLIED_ALPHA in layout.extra:
        return f"has numbers that are multiplied by an alpha band; {AS_ARRAY}"
    return ""


def _order_problem(layout: TiffLayout) -> str:
    is_compressed = layout.compression != tiff.UNCOMPRESSED
    if layout.is_big_endian and is_compressed and _is_swapped(layout):
        return (
            f"holds compressed big-endian numbers ({layout.words()}), whose bytes Pillow swaps; "
            f"write it without compression or as little-endian, or {AS_ARRAY}"
        )
    if not layout.is_band_after_band:
        return ""
    if layout.bands == 1 and _is_misread_as_bands(layout):
        return (
            "stores its one band as one of several (PlanarConfiguration 2), and Pillow "
            f"misreads {layout.words()} of this form; write it interleaved (gdal_translate -co "
            f"INTERLEAVE=PIXEL), or {AS_ARRAY}"
        )
    if layout.bands > 1 and not _is_colour(layout):
        return (
            f"stores {layout.bands} bands one after another (PlanarConfiguration 2), which "
            f"Pillow mixes up; write them interleaved, or {AS_ARRAY}"
        )
    return ""


def _is_swapped(layout: TiffLayout) -> bool:
    """Whether Pillow reads the wrong byte order of compressed big-endian numbers."""
    return layout.bits[0] > 16 or (layout.bits[0] == 16 and layout.kind == tiff.SIGNED)


def _is_misread_as_bands(layout: TiffLayout) -> bool:
    """Whether Pillow misreads one uncompressed band whose file calls it one of several.

    It decodes such a band by the first letter of the form, which is right for whole bytes, and
    for 32 bits in the byte order of the machine.
    """
    is_native = layout.bits == (32,) and not layout.is_big_endian
    is_whole = layout.bits in ((1,), (8,)) and layout.photometric != tiff.PALETTE
    is_index = layout.bits == (8,)
    return layout.compression == tiff.UNCOMPRESSED and not (is_native or is_whole or is_index)


def _is_colour(layout: TiffLayout) -> bool:
    """Whether the bands are RGB, RGB with alpha, or CMYK, which Pillow reads in any order."""
    is_rgb = layout.photometric == tiff.RGB and (layout.bands, layout.extra) in (
        (3, ()),
        (4, (tiff.ALPHA,)),
    )
    return is_rgb or (layout.photometric == tiff.CMYK and layout.bands == 4)


def restore(layout: TiffLayout, values: Raw) -> Raw:
    """Return the numbers with the sign that the file gives them, which Pillow does not know."""
    if layout.kind == tiff.UNSIGNED and values.dtype == np.int32 and layout.bits == (32,):
        return np.ascontiguousarray(values).view(np.uint32)
    if layout.kind == tiff.SIGNED and values.dtype == np.uint8:
        return np.ascontiguousarray(values).view(np.int8)
    return values


def unreadable_tiff(path: Path) -> str:
    """Return why Pillow cannot read a file, by its tags; "" = it is no TIFF, or they do not tell."""
    layout = tiff.layout_of_file(path)
    if layout is None:
        return ""
    return problem_of(layout) or _unknown_form(path, layout)


def _unknown_form(path: Path, layout: TiffLayout) -> str:
    try:
        with open_regular(path) as file, Image.open(file):
            return ""
    except UnidentifiedImageError:
        order = "big-endian" if layout.is_big_endian else "little-endian"
        return f"holds {layout.words()}, {order}, which Pillow does not read; {AS_ARRAY}"
    except Exception:  # damaged, or too large to be opened
        return ""
