"""The EXIF and XMP blocks of JPEG files, hidden from decoders that read damaged ones otherwise than Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np

_SCAN = 0xDA
_APP1 = 0xE1  # EXIF and XMP
_COMMENT = 0xFE
END_OF_IMAGE = b"\xff\xd9"


def hide_exif(raw: np.ndarray[Any, Any]) -> bool:
    """Make a comment of every EXIF and XMP block, in place, so that a decoder does not turn the pixels.

    Args:
        raw: the bytes of a JPEG file.

    Returns:
        Whether the header could be followed to the first scan.
    """
    view = raw.data
    position = 2  # after the marker of the start
    while position + 4 <= len(view) and view[position] == 0xFF:
        marker = view[position + 1]
        if marker == _SCAN:
            return True
        if marker == 0xFF:  # a byte that fills up
            position += 1
            continue
        if marker == _APP1:
            raw[position + 1] = _COMMENT
        length = view[position + 2] << 8 | view[position + 3]  # with its own two bytes
        if length < 2:
            return False
        position += 2 + length
    return False
