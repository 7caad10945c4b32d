"""The segments of JPEG files: EXIF blocks to hide from decoders, and files that lack their end marker alone."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_END = 0xD9
_SCAN = 0xDA
_APP1 = 0xE1  # EXIF and XMP
_COMMENT = 0xFE
# of frames that are coded in scans of all coefficients, and in progressive scans
_FRAMES = (0xC0, 0xC1, 0xC2)
END_OF_IMAGE = bytes([0xFF, _END])
_FIRST_RESTART = 0xD0
_RESTARTS = 8
_COEFFICIENTS = 64  # of a block
# of bytes that a cut file is completed with: with one of them about a third of the files that lack
# a few bits give the same picture, with 12 one in a million
_FILLINGS = 12
_FILLING_BYTES = 64  # before the end, and after each restart
# at the end of a whole file; more of them fill up a sector of a disk
_MOST_CODED_ZEROS = 2
# what follows the coded bits of a scan: a marker that neither escapes 0xFF nor restarts the coder
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class Segment:
    """A segment of a JPEG file.

    Attributes:
        marker: its second byte.
        start: where the marker begins in the file.
        content: what follows the length.
    """

    marker: int
    start: int
    content: bytes


def segments(raw: bytes | memoryview) -> Iterator[Segment]:
    """Yield the segments of a JPEG file without the coded bits, as far as they can be followed."""
    view = memoryview(raw)
    position = 2  # after the marker of the start
    while position + 4 <= len(view):
        if view[position] != 0xFF:
            return
        marker = view[position + 1]
        if marker == 0xFF:  # a byte that fills up
            position += 1
            continue
        if marker == _END:
            return
        length = view[position + 2] << 8 | view[position + 3]  # with its own two bytes
        after = position + 2 + length
        if length < 2 or after > len(view):
            return
        yield Segment(marker, position, bytes(view[position + 4 : after]))
        position = after
        if marker == _SCAN:
            following = _AFTER_SCAN.search(view, position)
            if following is None:
                return
            position = following.start()


def has_end(raw: bytes) -> bool:
    """Return whether an end marker follows a scan."""
    last = None
    for segment in segments(raw):
        last = segment
    if last is None or last.marker != _SCAN:
        return False
    following = _AFTER_SCAN.search(raw, last.start + 2)
    return following is not None and raw[following.start() + 1] == _END


def hide_exif(raw: np.ndarray[Any, Any]) -> bool:
    """Make a comment of every EXIF and XMP block, in place, so that a decoder does not turn the pixels.

    Decoders differ in what they read of a damaged EXIF block.

    Returns:
        Whether the header could be followed to the first scan.
    """
    for segment in segments(raw.data):
        if segment.marker == _APP1:
            raw[segment.start + 1] = _COMMENT
        elif segment.marker == _SCAN:
            return True
    return False


def with_end(raw: bytes) -> bytes | None:
    """Return a JPEG file that lacks its end marker alone with that marker; None if more is missing.

    A decoder replaces coded bits that are missing by what follows, and ignores what follows the last
    one. So the picture is whole if it does not depend on the bytes that are put before the end.
    """
    coded = _without_padding(raw)
    if coded.endswith(END_OF_IMAGE) or not _has_all_scans(coded):
        return None
    pictures = []
    for filling in _fillings():
        picture = _pixels(coded + filling + END_OF_IMAGE)
        if picture is None:
            return None
        pictures.append(picture)
    for picture in pictures[1:]:
        if not np.array_equal(picture, pictures[0]):
            return None
    return coded + END_OF_IMAGE


def _without_padding(raw: bytes) -> bytes:
    """The file without the zeros that fill up what was not written, and without half of an end marker."""
    cut = raw.rstrip(b"\x00")
    zeros = len(raw) - len(cut)
    if 0 < zeros <= _MOST_CODED_ZEROS:
        return raw
    if not cut.endswith(b"\xff"):
        return cut
    if zeros:
        return cut + b"\x00"  # a coded byte of 0xFF
    return cut[:-1]


@functools.cache
def _fillings() -> list[bytes]:
    """Bytes to put before the end: none, and coded bits of no meaning, also after restarts of the coder."""
    random = np.random.default_rng(0)
    fillings = [b""]
    for _ in range(_FILLINGS):
        filling = _random_bytes(random)
        for i in range(2 * _RESTARTS):
            filling += bytes([0xFF, _FIRST_RESTART + i % _RESTARTS]) + _random_bytes(random)
        fillings.append(filling)
    return fillings


def _random_bytes(random: np.random.Generator) -> bytes:
    # 0xFF would begin a marker
    return random.integers(0, 0xFF, _FILLING_BYTES, np.uint8).tobytes()


def _pixels(raw: bytes) -> np.ndarray[Any, Any] | None:
    """The pixels of a JPEG file; None if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


def _has_all_scans(raw: bytes) -> bool:
    """Whether the scans give every coefficient of every component to the last bit."""
    missing: set[tuple[int, int]] = set()
    has_frame = False
    for segment in segments(raw):
        content = segment.content
        # a scan has a count, two bytes for each component, and three bytes; one component at least
        if segment.marker == _SCAN and len(content) < 6:
            return False
        if segment.marker in _FRAMES:
            has_frame = True
            # after bits, height, width and a count, three bytes for each component; the first names it
            for component in content[6::3]:
                missing |= {(component, k) for k in range(_COEFFICIENTS)}
        elif segment.marker == _SCAN:
            # the components with their tables, the first and the last coefficient, their bits
            components = content[1:-3:2]
            first, last, bits = content[-3:]
            if bits & 0x0F:
                continue  # without the lowest bit
            for component in components:
                missing -= {(component, k) for k in range(first, last + 1)}
    return has_frame and not missing
