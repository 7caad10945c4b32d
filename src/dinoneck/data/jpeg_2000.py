"""What JPEG 2000 files say of their fourth band: Pillow takes it for alpha, and it may be infrared."""

from __future__ import annotations

import struct

from PIL import Image

from dinoneck.data.deep_colours import file_of
from dinoneck.errors import DataError

# the box of channel definitions: a count, and three numbers for each channel
DEFINITIONS = b"cdef"
DEFINITION = struct.Struct(">HHH")
OPACITY = (1, 2)  # plain and premultiplied
START_OF_PIXELS = b"jp2c"  # the box of pixels; definitions come before it


def check_alpha(image: Image.Image, name: str) -> None:
    """Check that the last band of an opened JPEG 2000 file is alpha if Pillow takes it for it.

    Other images pass.

    Raises:
        DataError: if the file does not say that it is alpha.
    """
    if image.format != "JPEG2000" or image.mode not in ("RGBA", "LA"):
        return
    header, _, _ = file_of(image).partition(START_OF_PIXELS)
    if not _defines_alpha(header):
        raise DataError(
            f"{name} is a JPEG 2000 file of {len(image.mode)} bands, and does not say that the "
            "last one is alpha; expected grey or RGB, with or without alpha: write a file of the "
            "bands to use, or pass them as an array (H, W, 3)"
        )


def _defines_alpha(header: bytes) -> bool:
    start = header.find(DEFINITIONS)
    if start < 0:
        return False
    content = header[start + len(DEFINITIONS) :]
    count = int.from_bytes(content[:2], "big")
    definitions = content[2 : 2 + count * DEFINITION.size]
    if len(definitions) < count * DEFINITION.size:
        return False
    return any(kind in OPACITY for _, kind, _ in DEFINITION.iter_unpack(definitions))
