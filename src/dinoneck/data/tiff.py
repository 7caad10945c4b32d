"""What TIFF files say of their bands, numbers and pages, where Pillow reads a part of them without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError, counted

SUBFILE_TYPE = 254
WIDTH = 256
BITS = 258
COMPRESSION = 259
PHOTOMETRIC = 262
BANDS = 277
PLANES = 284
EXTRA_BANDS = 338
SAMPLE_FORMAT = 339

MASK = 4  # a bit of the subfile type
WHITE_IS_ZERO = 0
LAB = 8
NOT_COMPRESSED = 1
# bands that are colours, by photometric interpretation; others are of one band
COLOURS = {2: 3, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
# associated and unassociated alpha, and what Corel Draw writes for it
ALPHA = (1, 2, 999)
SIGNED = 2
SEPARATE = 2  # bands in planes of their own
BYTE = 8  # bits
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers"}
KINDS[6] = "complex numbers"
BIG_MAGIC = (b"II+\0", b"MM\0+")
MAGIC = (b"II*\0", b"MM\0*", *BIG_MAGIC)
HEADER = 8  # bytes; BigTIFF has twice as many


def tags_of(image: Image.Image) -> Mapping[int, Any] | None:
    """Return the tags of an opened TIFF file; None for other images."""
    if image.format != "TIFF":
        return None
    tags: Mapping[int, Any] | None = getattr(image, "tag_v2", None)
    return tags


def check_numbers(image: Image.Image, name: str) -> None:
    """Check that Pillow reads all bands of a TIFF file but alpha, and their numbers as they are.

    Other images pass.

    Raises:
        DataError: naming the bands, the numbers or the missing tag, and the remedy.
    """
    tags = tags_of(image)
    if tags is None:
        return
    bands = tags.get(BANDS, 1)
    photometric = tags.get(PHOTOMETRIC)
    if photometric is None and bands == 1:
        raise DataError(
            f"{name} is a TIFF without the tag PhotometricInterpretation, so 0 may be black or "
            "white; write the tag, or pass an array"
        )
    colours = COLOURS.get(photometric, 1)  # type: ignore[arg-type]
    extra = bands - colours
    if extra > 0:
        meanings = tags.get(EXTRA_BANDS, ())
        # Pillow, OpenCV and many others write no tag for alpha
        has_alpha = not meanings or meanings[0] in ALPHA
        if extra > 1 or not has_alpha:
            raise DataError(
                f"{name} is a TIFF of {counted(bands, 'band')}; expected grey or RGB, with or "
                "without alpha: write a file of the bands to use, or pass them as an array "
                "(H, W, 3)"
            )
    # of uncompressed bands Pillow reads each value as two
    is_deep = max(tags.get(BITS, (1,))) > BYTE and tags.get(COMPRESSION, 1) == NOT_COMPRESSED
    if has_planes(image) and (is_deep or photometric == LAB):
        raise DataError(
            f"{name} is a TIFF whose {counted(bands, 'band')} of {tags[BITS][0]} bits are stored "
            "one after another, which Pillow reads wrongly; write it with interleaved bands, or "
            "pass an array"
        )
    if tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED and image.mode == "L":
        raise DataError(
            f"{name} is a TIFF of signed 8-bit values; expected unsigned ones: shift them, and "
            "write the file again or pass an array"
        )


def check_pages(image: Image.Image, name: str) -> None:
    """Check that an opened TIFF file is one picture: other pages are smaller, as overviews are, or masks.

    Raises:
        DataError: if another page has the same size.
    """
    if tags_of(image) is None or not getattr(image, "is_animated", False):
        return
    first = image.size
    page = 1
    while True:
        try:
            image.seek(page)
        except EOFError:
            break
        tags = tags_of(image) or {}
        is_mask = tags.get(SUBFILE_TYPE, 0) & MASK
        if image.size == first and not is_mask:
            raise DataError(
                f"{name} holds several pages of {first[0]}x{first[1]} px (width x height), such "
                f"as the first and number {page + 1}; expected one image: write the page to use "
                "as a file, or pass it as an array"
            )
        page += 1
    image.seek(0)


def has_planes(image: Image.Image) -> bool:
    """Return whether an opened TIFF file has several bands that are stored one after another."""
    tags = tags_of(image)
    return tags is not None and tags.get(BANDS, 1) > 1 and tags.get(PLANES, 1) == SEPARATE


def is_white_zero(image: Image.Image) -> bool:
    """Return whether 0 is white in an opened TIFF file."""
    tags = tags_of(image)
    return tags is not None and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def describe(path: Path) -> str | None:
    """Return the bands and numbers of a TIFF file in words; None if it is not one, or its tags cannot be read."""
    try:
        with open_regular(path) as file:
            header = file.read(HEADER)
            if not header.startswith(MAGIC):
                return None
            if header.startswith(BIG_MAGIC):
                header += file.read(HEADER)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bands = tags.get(BANDS, 1)
            bits = tags.get(BITS, (1,))[0]
            kind = KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "values of another kind")
            packing = tags.get(COMPRESSION, 1)
            is_negative = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
            has_size = WIDTH in tags
    except Exception:  # damaged ones raise many types of errors
        return None
    if not has_size:
        return None
    of_bands = f"{counted(bands, 'band')} of {bits}-bit {kind}"
    if is_negative:
        of_bands += " with 0 as white"
    if packing not in TiffImagePlugin.COMPRESSION_INFO:
        return f"{of_bands} in the compression {packing}"
    return of_bands
