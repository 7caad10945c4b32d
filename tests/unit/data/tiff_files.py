"""TIFF files written by hand, for what Pillow does not write: any bands, numbers, tags and byte order."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]

WIDTH = 256
HEIGHT = 257
BITS = 258
COMPRESSION = 259
PHOTOMETRIC = 262
STRIPS = 273
BANDS = 277
ROWS_PER_STRIP = 278
STRIP_BYTES = 279
PLANES = 284
EXTRA_BANDS = 338
SAMPLE_FORMAT = 339
SUBFILE_TYPE = 254

DEFLATE = 8
FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}
SHORT, LONG = 3, 4
ENTRY_BYTES = 12


def write_tiff(
    file: Path,
    *pages: Pixels,
    photometric: int = 1,
    extra: tuple[int, ...] = (),
    bits: int | None = None,
    order: str = "<",
    planar: bool = False,
    deflate: bool = False,
    tags: Mapping[int, int] | None = None,
    without: tuple[int, ...] = (),
) -> Path:
    """Write pages (H, W) or (H, W, bands) of any numbers.

    Args:
        file: to write.
        *pages: the numbers.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK, 8 CIELab.
        extra: meanings of the bands behind the colours: 0 unspecified, 1 and 2 alpha.
        bits: what the file says of a value; None = those of the array.
        order: of bytes, ``<`` or ``>``.
        planar: the bands lie one after another.
        deflate: compress.
        tags: further tags of one number, of all pages.
        without: tags to leave out.
    """
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(order + "HI", 42, 0)
    link = 4  # where the place of the next page is written
    for page in pages:
        pixels = page.reshape(*page.shape[:2], -1)
        height, width, bands = pixels.shape
        pixels = pixels.astype(pixels.dtype.newbyteorder(order))
        planes = [pixels[..., i] for i in range(bands)] if planar else [pixels]
        strips = [plane.tobytes() for plane in planes]
        if deflate:
            strips = [zlib.compress(strip) for strip in strips]
        places = []
        for strip in strips:
            places.append(len(content))
            content += strip + b"\0" * (len(strip) % 2)
        entries: dict[int, tuple[int, list[int]]] = {
            WIDTH: (LONG, [width]),
            HEIGHT: (LONG, [height]),
            BITS: (SHORT, [bits or 8 * pixels.dtype.itemsize] * bands),
            COMPRESSION: (SHORT, [DEFLATE if deflate else 1]),
            PHOTOMETRIC: (SHORT, [photometric]),
            STRIPS: (LONG, places),
            BANDS: (SHORT, [bands]),
            ROWS_PER_STRIP: (LONG, [height]),
            STRIP_BYTES: (LONG, [len(strip) for strip in strips]),
            PLANES: (SHORT, [2 if planar else 1]),
            SAMPLE_FORMAT: (SHORT, [FORMATS[pixels.dtype.kind]] * bands),
        }
        if extra:
            entries[EXTRA_BANDS] = (SHORT, list(extra))
        for tag, value in (tags or {}).items():
            entries[tag] = (SHORT, [value])
        for tag in without:
            del entries[tag]
        content[link : link + 4] = struct.pack(order + "I", len(content))
        directory, link = _directory(entries, len(content), order)
        content += directory
    file.write_bytes(bytes(content))
    return file


def _directory(
    entries: Mapping[int, tuple[int, list[int]]], start: int, order: str
) -> tuple[bytes, int]:
    """The bytes of a directory that begins at ``start``, and where the place of the next one belongs."""
    link = start + 2 + ENTRY_BYTES * len(entries)
    listed = struct.pack(order + "H", len(entries))
    values = b""
    for tag in sorted(entries):
        kind, numbers = entries[tag]
        packed = struct.pack(order + {SHORT: "H", LONG: "I"}[kind] * len(numbers), *numbers)
        listed += struct.pack(order + "HHI", tag, kind, len(numbers))
        if len(packed) <= 4:
            listed += packed.ljust(4, b"\0")
        else:
            listed += struct.pack(order + "I", link + 4 + len(values))
            values += packed
    return listed + bytes(4) + values, link
