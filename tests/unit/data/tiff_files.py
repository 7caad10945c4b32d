"""TIFF files of any kind, written tag by tag: Pillow writes few of the kinds that people have."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from packaging.version import Version

BYTE = 1
ASCII = 2
SHORT = 3
LONG = 4
DEFLATE = 8
SUBFILE_TYPE = 254
GDAL_METADATA = 42112
GDAL_NODATA = 42113
NEEDS_PILLOW_13 = pytest.mark.skipif(
    Version(PIL.__version__) < Version("13"),
    reason="earlier Pillows read no grey TIFF with a second band other than alpha",
)
Tag = tuple[int, Sequence[int] | str]


def tiff(
    values: Any,
    *,
    photometric: int | None = 1,
    compression: int = 1,
    planar: int = 1,
    extra: Sequence[int] = (),
    big_endian: bool = False,
    bits: int | None = None,
    packed: bytes | None = None,
    tags: Mapping[int, Tag] | None = None,
    more_pages: Sequence[tuple[Any, Mapping[int, Tag]]] = (),
) -> bytes:
    """Return a TIFF file of one strip per plane.

    Args:
        values: (H, W) or (H, W, K).
        photometric: 0 = 0 is white, 1 = 0 is black, 2 = RGB, 3 = palette, 5 = CMYK, 8 = CIELAB;
            None = no tag.
        compression: 1 = none, 8 = Deflate.
        planar: 1 = interleaved, 2 = band after band.
        extra: what the bands beyond the colours mean: 0 = unspecified, 2 = alpha.
        big_endian: the byte order.
        bits: per number, if other than those of the dtype.
        packed: the bytes of the strip, if other than those of the values.
        tags: further ones, or others: number -> (type, values).
        more_pages: values and tags of the pages that follow.
    """
    order = ">" if big_endian else "<"
    content = bytearray(b"MM" if big_endian else b"II")
    content += struct.pack(f"{order}HI", 42, 0)
    link = 4  # where the offset of the next page belongs
    pages = [(values, tags or {}), *more_pages]
    for page_values, page_tags in pages:
        array = np.asarray(page_values)
        array = array.reshape(*array.shape[:2], -1)
        entries = _entries(array, photometric, compression, planar, extra, bits)
        strips = _strips(array.astype(array.dtype.newbyteorder(order)), planar)
        if packed is not None:
            strips = [packed]
        offsets = []
        sizes = []
        for strip in strips:
            stored = zlib.compress(strip) if compression == DEFLATE else strip
            offsets.append(len(content))
            sizes.append(len(stored))
            content += stored + b"\0" * (len(stored) % 2)
        entries |= {273: (LONG, offsets), 279: (LONG, sizes)} | dict(page_tags)
        page = _written(entries, content, order)
        struct.pack_into(f"{order}I", content, link, len(content))
        link = len(content) + len(page) - 4
        content += page
    return bytes(content)


def write_tiff(path: Path, values: Any, **options: Any) -> Path:
    """Write a file and return its path."""
    path.write_bytes(tiff(values, **options))
    return path


def nodata_tag(text: str) -> dict[int, Tag]:
    """Return GDAL's tag of a nodata value."""
    return {GDAL_NODATA: (ASCII, text)}


def _entries(
    array: Any,
    photometric: int | None,
    compression: int,
    planar: int,
    extra: Sequence[int],
    bits: int | None,
) -> dict[int, Tag]:
    height, width, bands = array.shape
    kind = {"b": 1, "u": 1, "i": 2, "f": 3, "c": 6}[array.dtype.kind]
    entries: dict[int, Tag] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits or 8 * array.dtype.itemsize] * bands),
        259: (SHORT, [compression]),
        277: (SHORT, [bands]),
        278: (LONG, [height]),
        284: (SHORT, [planar]),
        339: (SHORT, [kind] * bands),
    }
    if photometric is not None:
        entries[262] = (SHORT, [photometric])
    if extra:
        entries[338] = (SHORT, extra)
    return entries


def _strips(array: Any, planar: int) -> list[bytes]:
    if planar == 1:
        return [array.tobytes()]
    return [array[..., band].tobytes() for band in range(array.shape[2])]


def _written(entries: Mapping[int, Tag], content: bytearray, order: str) -> bytes:
    """The page's directory; values of more than four bytes are appended to the content before it."""
    formats = {BYTE: "B", SHORT: "H", LONG: "I"}
    page = struct.pack(f"{order}H", len(entries))
    for number, (kind, values) in sorted(entries.items()):
        if isinstance(values, str):
            raw = values.encode() + b"\0"
            count = len(raw)
        else:
            raw = struct.pack(f"{order}{len(values)}{formats[kind]}", *values)
            count = len(values)
        if len(raw) > 4:
            field = struct.pack(f"{order}I", len(content))
            content += raw + b"\0" * (len(raw) % 2)
        else:
            field = raw.ljust(4, b"\0")
        page += struct.pack(f"{order}HHI", number, kind, count) + field
    return page + struct.pack(f"{order}I", 0)
