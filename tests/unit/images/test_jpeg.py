"""The segments of JPEG files, also of odd and damaged ones."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dinoneck.images import jpeg

QUANTISATION, FRAME, SCAN = 0xDB, 0xC0, 0xDA
END = b"\xff\xd9"


def encoded() -> bytes:
    """A JPEG file of noise."""
    noise = np.random.RandomState(0).randint(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def markers(raw: bytes) -> list[int]:
    return [segment.marker for segment in jpeg.segments(raw)]


def start_of(raw: bytes, marker: int) -> int:
    """Where the first segment with a marker begins."""
    [start, *_] = [segment.start for segment in jpeg.segments(raw) if segment.marker == marker]
    return start


def test_bytes_that_fill_up_before_a_marker_are_passed_over() -> None:
    raw = encoded()
    start = start_of(raw, QUANTISATION)
    filled_up = raw[:start] + b"\xff\xff" + raw[start:]

    assert markers(filled_up) == markers(raw)
    assert jpeg.has_end(filled_up)


def test_segments_end_where_no_marker_follows() -> None:
    raw = encoded()
    start = start_of(raw, FRAME)
    with_junk = raw[:start] + b"\0\0" + raw[start:]

    found = markers(with_junk)

    assert found == markers(raw)[: len(found)]
    assert FRAME not in found
    assert not jpeg.has_end(with_junk)


def test_a_header_that_cannot_be_followed_to_a_scan_is_reported() -> None:
    raw = encoded()
    start = start_of(raw, FRAME)
    with_junk = np.frombuffer(raw[:start] + b"\0\0" + raw[start:], np.uint8).copy()

    assert jpeg.hide_exif(np.frombuffer(raw, np.uint8).copy())
    assert not jpeg.hide_exif(with_junk)


def test_a_file_that_lacks_its_end_marker_alone_gets_it() -> None:
    raw = encoded()

    assert jpeg.with_end(raw.removesuffix(END)) == raw


def test_a_file_that_cannot_be_decoded_gets_no_end_marker() -> None:
    raw = bytearray(encoded().removesuffix(END))
    raw[start_of(bytes(raw), FRAME) + 4] = 11  # bits of a value, which no decoder knows

    assert jpeg.with_end(bytes(raw)) is None


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x01\x01\x00"])
def test_a_scan_without_a_component_gets_no_end_marker(content: bytes) -> None:
    raw = encoded()
    start = start_of(raw, SCAN)
    scan = b"\xff\xda" + struct.pack(">H", 2 + len(content)) + content

    assert jpeg.with_end(raw[:start] + scan + bytes([1, 2, 3])) is None
