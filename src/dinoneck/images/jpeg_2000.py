"""JPEG 2000 files: their bits, which Pillow shifts, and their fourth band, which may be infrared."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from PIL import Image

from dinoneck.errors import DataError
from dinoneck.images.bit_depth import FILE_BITS
from dinoneck.images.deep_colours import file_of

# the box of channel definitions: a count, and three numbers for each channel
DEFINITIONS = b"cdef"
DEFINITION = struct.Struct(">HHH")
OPACITY = (1, 2)  # plain and premultiplied
START_OF_PIXELS = b"jp2c"  # the box of pixels; definitions come before it

# the markers at the start of the coded pixels, and where the bands are counted from there on
START_AND_SIZE = b"\xff\x4f\xff\x51"
COUNT_AT = 40
BAND = struct.Struct(">BBB")  # bits and sign, and two steps
SIGN = 0x80
BYTE = 8  # bits


@dataclass(frozen=True)
class Numbers:
    """The numbers of a JPEG 2000 file.

    Attributes:
        bits: per number, of the deepest band.
        is_signed: whether a band has negative numbers.
    """

    bits: int
    is_signed: bool


def numbers_of(image: Image.Image) -> Numbers | None:
    """Return the numbers of an opened JPEG 2000 file; None for other images."""
    if image.format != "JPEG2000":
        return None
    file = file_of(image)
    start = file.find(START_AND_SIZE) + COUNT_AT
    count = int.from_bytes(file[start : start + 2], "big")
    bands = file[start + 2 : start + 2 + count * BAND.size]
    bits = 0
    is_signed = False
    for first, _, _ in BAND.iter_unpack(bands):
        bits = max(bits, (first & ~SIGN) + 1)
        is_signed = is_signed or bool(first & SIGN)
    return Numbers(bits, is_signed)


def check_numbers(image: Image.Image, name: str) -> None:
    """Check that Pillow reads all bands of an opened JPEG 2000 file but alpha, and no changed numbers.

    Other images pass.

    Raises:
        DataError: if it has signed numbers, colours of more than 8 bits, or a last band that Pillow
            takes for alpha and the file does not.
    """
    numbers = numbers_of(image)
    if numbers is None:
        return
    if numbers.is_signed:
        raise DataError(
            f"{name} is a JPEG 2000 file of signed {numbers.bits}-bit numbers; expected unsigned "
            "ones: bring them to 0 ... 1 and pass an array of floats"
        )
    is_grey = image.mode.startswith("I;16")
    most_bits = FILE_BITS if is_grey else BYTE
    if numbers.bits > most_bits:
        # as it rounds 65535 to 8 bits, it comes to 256, which becomes 0
        raise DataError(
            f"{name} is a JPEG 2000 file of {numbers.bits}-bit colours, of which Pillow reads white "
            "as black; save it with 8 bits, or pass an array"
        )
    if image.mode in ("RGBA", "LA") and not _defines_alpha(file_of(image)):
        raise DataError(
            f"{name} is a JPEG 2000 file of {len(image.mode)} bands, and does not say that the "
            "last one is alpha; expected grey or RGB, with or without alpha: write a file of the "
            "bands to use, or pass them as an array (H, W, 3)"
        )


def _defines_alpha(file: bytes) -> bool:
    header, _, _ = file.partition(START_OF_PIXELS)
    _, box, content = header.partition(DEFINITIONS)
    if not box:
        return False
    count = int.from_bytes(content[:2], "big")
    definitions = content[2 : 2 + count * DEFINITION.size]
    if len(definitions) < count * DEFINITION.size:
        return False
    return any(kind in OPACITY for _, kind, _ in DEFINITION.iter_unpack(definitions))
