"""PNG files that were cut and filled up with zeros, whose end Pillow takes for pixels."""

from __future__ import annotations

import os
import struct
import zlib

from PIL import Image

from dinoneck.images.deep_colours import file_of

CUT = "image file is truncated"
_SIGNATURE_BYTES = 8
_LENGTH_AND_KIND = struct.Struct(">I4s")
_LENGTH_BYTES = 4
_CHECKSUM = struct.Struct(">I")
PIXELS = b"IDAT"


def check_end(image: Image.Image) -> None:
    """Check that an opened PNG was not filled up with zeros; other images pass.

    Raises:
        OSError: if it was, and pixels are missing.
    """
    source = getattr(image, "fp", None)
    if source is None or source.closed or image.format != "PNG":
        return
    source.seek(-1, os.SEEK_END)
    if source.read() == b"\0" and _has_damaged_pixels(file_of(image)):
        raise OSError(CUT)


def _has_damaged_pixels(file: bytes) -> bool:
    """Return whether a chunk of pixels is cut, or does not fit its checksum."""
    position = _SIGNATURE_BYTES
    while position + _LENGTH_AND_KIND.size <= len(file):
        length, kind = _LENGTH_AND_KIND.unpack_from(file, position)
        content = position + _LENGTH_AND_KIND.size
        after = content + length
        if kind == PIXELS:
            if after + _CHECKSUM.size > len(file):
                return True
            (checksum,) = _CHECKSUM.unpack_from(file, after)
            kind_and_content = memoryview(file)[position + _LENGTH_BYTES : after]
            if zlib.crc32(kind_and_content) != checksum:
                return True
        position = after + _CHECKSUM.size
    return False
