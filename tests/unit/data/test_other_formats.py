"""JPEG 2000, PNM and SGI files: their bits and bands are those of the file, or the file is refused."""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import DataError
from dinoneck.images.decoding import read_pixels

Pixels = np.ndarray[Any, Any]

# (8, 8) with the numbers 0, 65, 130, ..., 4095, which OpenJPEG stored without loss with 12 and with
# 15 bits; Pillow writes 8 and 16
RAMP = np.arange(64).reshape(8, 8) * 65
TWELVE_BITS = base64.b64decode(
    "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcm"
    "VhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABmAAH/k9/hVBIsQqeXlbFDDtYoP97oKcVIuDRWEuF5DpiR"
    "hU9D0Zh+EpvOO8N5vXFJxoU3gmJWFbc5znXqSkAMwCgAB0Rl1SPMU4YLXGfa6ymrhOuAcNhsNhsNhsP/2Q=="
)
FIFTEEN_BITS = base64.b64decode(
    "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDgEB/1IADAAAAAEAAAQEAAH/XAAEQHj/ZAAlAAFDcm"
    "VhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB/AAH/k9/4Y2gSK2cWj4+hghc4l8I/B6xMSk5znOc5z84O"
    "oAAAAAACcIexHNh+bD/2OQe6TrfW0utU3Ovm+b5vm+b7hZgylsI+ioPGpSepFhyqygsUAFlBEACXBg0o82H5sPzYFrq4TrfW0u"
    "rY2+b5vm+b5vm//9k="
)
SIZE_MARKER = b"\xff\x4f\xff\x51"
BITS_AT = 42  # behind the marker, of the first band


def noise(*shape: int) -> Pixels:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def write_jpeg_2000(file: Path, pixels: Pixels, bits: int | None = None) -> Path:
    """Write a file that states other bits of its first band than it has."""
    Image.fromarray(pixels).save(file, irreversible=False)
    content = bytearray(file.read_bytes())
    if bits is not None:
        content[content.index(SIZE_MARKER) + BITS_AT] = bits
    file.write_bytes(content)
    return file


def test_the_alpha_of_jpeg_2000_is_left_out(tmp_path: Path) -> None:
    pixels = noise(40, 50, 4)
    file = write_jpeg_2000(tmp_path / "a.jp2", pixels)
    assert np.array_equal(read_pixels(file).permute(1, 2, 0), pixels[..., :3])


def test_a_fourth_band_of_jpeg_2000_that_the_file_does_not_call_alpha_is_refused(
    tmp_path: Path,
) -> None:
    file = write_jpeg_2000(tmp_path / "infrared.jp2", noise(40, 50, 4))
    file.write_bytes(file.read_bytes().replace(b"cdef", b"free", 1))
    with pytest.raises(DataError, match=r"infrared\.jp2.*4 bands.*array"):
        read_pixels(file)


def test_a_fourth_band_of_jpeg_2000_whose_description_is_cut_is_refused(tmp_path: Path) -> None:
    file = write_jpeg_2000(tmp_path / "infrared.jp2", noise(40, 50, 4))
    content = bytearray(file.read_bytes())
    count_at = content.index(b"cdef") + 4
    content[count_at : count_at + 2] = b"\xff\xff"  # more bands than are described
    file.write_bytes(content)

    with pytest.raises(DataError, match=r"infrared\.jp2.*4 bands.*array"):
        read_pixels(file)


@pytest.mark.parametrize("bits", [None, 12, 16])
def test_jpeg_2000_states_its_range(bits: int | None, tmp_path: Path) -> None:
    """Pillow shifts its numbers to 16 bits."""
    file = tmp_path / "a.j2k"
    file.write_bytes(TWELVE_BITS)
    expected = (RAMP / 4095).astype(np.float32)
    assert np.allclose(read_pixels(file, bits=bits)[0], expected, atol=1e-6)


def test_jpeg_2000_of_15_bits_that_uses_12_is_refused_until_they_are_stated(tmp_path: Path) -> None:
    file = tmp_path / "a.j2k"
    file.write_bytes(FIFTEEN_BITS)
    with pytest.raises(DataError, match=r"a\.j2k.*at most 4095.*bits=12"):
        read_pixels(file)
    assert np.allclose(read_pixels(file, bits=12)[0], RAMP / 4095, atol=1e-6)
    assert np.allclose(read_pixels(file, bits=16)[0], RAMP / 32767, atol=1e-6)


def test_deep_colours_of_jpeg_2000_are_refused(tmp_path: Path) -> None:
    """Pillow rounds 65535 to 256, of which 0 is left."""
    file = write_jpeg_2000(tmp_path / "a.jp2", noise(20, 30, 3), bits=16 - 1)
    with pytest.raises(DataError, match=r"a\.jp2.*16-bit colours.*array"):
        read_pixels(file)


def test_signed_jpeg_2000_is_refused(tmp_path: Path) -> None:
    file = write_jpeg_2000(tmp_path / "a.jp2", noise(20, 30), bits=0x80 | 7)
    with pytest.raises(DataError, match=r"a\.jp2.*signed 8-bit.*array"):
        read_pixels(file)


def write_pnm(file: Path, pixels: Pixels, largest: int) -> Path:
    height, width = pixels.shape[:2]
    kind = 5 if pixels.ndim == 2 else 6
    numbers = pixels.astype(">u2" if largest > 255 else np.uint8)
    file.write_bytes(f"P{kind}\n{width} {height}\n{largest}\n".encode() + numbers.tobytes())
    return file


def colours(largest: int) -> Pixels:
    return np.linspace(0, largest, 40 * 50 * 3).astype(np.uint16).reshape(40, 50, 3)


@pytest.mark.parametrize("largest", [255, 1023, 4095, 65535])
def test_colours_of_a_pnm_are_shares_of_the_range_that_it_states(
    largest: int, tmp_path: Path
) -> None:
    file = write_pnm(tmp_path / "a.ppm", colours(largest), largest)
    decoded = read_pixels(file).permute(1, 2, 0).numpy() / 255
    assert np.abs(decoded - colours(largest) / largest).max() < 1 / 255


def test_a_pnm_that_states_16_bits_and_uses_12_is_refused(tmp_path: Path) -> None:
    file = write_pnm(tmp_path / "a.ppm", colours(4095), 65535)
    with pytest.raises(DataError, match=r"a\.ppm.*about 0 \.\.\. 4112.*array.*bits=16"):
        read_pixels(file)


@pytest.mark.parametrize("largest", [1000, 1023, 4095, 40000, 65535])
@pytest.mark.parametrize("bits", [None, 16])
def test_grey_of_a_deep_pgm_is_a_share_of_the_range_that_it_states(
    largest: int, bits: int | None, tmp_path: Path
) -> None:
    """The file states its largest value, so that ``bits`` has nothing to add."""
    stored = colours(largest)[..., 0]
    file = write_pnm(tmp_path / "a.pgm", stored, largest)

    shares = read_pixels(file, bits=bits)

    assert shares.shape == (3, 40, 50)
    for channel in shares:
        assert np.allclose(channel, stored / largest, atol=1e-6)


def test_a_pgm_in_digits_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_text("P2\n3 1\n4095\n0 1024 4095\n")
    assert np.allclose(read_pixels(tmp_path / "a.pgm")[0], [[0, 1024 / 4095, 1]])


@pytest.mark.parametrize("largest", [32767, 65535])
def test_a_pgm_that_uses_12_bits_is_refused_until_they_are_stated(
    largest: int, tmp_path: Path
) -> None:
    stored = colours(4095)[..., 0]
    file = write_pnm(tmp_path / "a.pgm", stored, largest)
    with pytest.raises(DataError, match=r"a\.pgm.*at most \d+, which fit 12 bits.*bits=12"):
        read_pixels(file)
    assert np.allclose(read_pixels(file, bits=12)[0], stored / 4095, atol=1e-6)
    assert np.allclose(read_pixels(file, bits=16)[0], stored / largest, atol=1e-6)


def test_a_pgm_that_was_decoded_before_is_refused(tmp_path: Path) -> None:
    file = write_pnm(tmp_path / "a.pgm", colours(4095)[..., 0], 4095)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        image.load()
        with pytest.raises(DataError, match="decoded before.*pass its path"):
            read_pixels(image)


def test_deep_colours_that_were_decoded_before_are_judged_by_their_file(tmp_path: Path) -> None:
    with Image.open(write_pnm(tmp_path / "a.ppm", colours(4095), 65535)) as image:
        image.load()
        with pytest.raises(DataError, match=r"16-bit values of about 0 \.\.\. 4112"):
            read_pixels(image)
        with pytest.raises(DataError, match="bits=12 .*cannot be used"):
            read_pixels(image, bits=12)


def test_an_opened_pgm_is_read_twice_alike(tmp_path: Path) -> None:
    with Image.open(write_pnm(tmp_path / "a.pgm", colours(4095)[..., 0], 4095)) as image:
        assert read_pixels(image).equal(read_pixels(image))


def write_sgi(file: Path, pixels: Pixels) -> Path:
    """Write grey of 16 bits, the lowest row first."""
    height, width = pixels.shape
    header = struct.pack(">HBBHHHH", 474, 0, 2, 2, width, height, 1)
    file.write_bytes(header.ljust(512, b"\0") + pixels[::-1].astype(">u2").tobytes())
    return file


def test_16_bits_of_sgi_are_read(tmp_path: Path) -> None:
    pixels = colours(65535)[..., 0]
    file = write_sgi(tmp_path / "a.sgi", pixels)
    assert np.array_equal(read_pixels(file)[0], pixels >> 8)


def test_12_of_16_bits_of_sgi_are_refused(tmp_path: Path) -> None:
    file = write_sgi(tmp_path / "a.sgi", colours(4095)[..., 0])
    with pytest.raises(DataError, match=r"a\.sgi.*a part of the range.*bits=16"):
        read_pixels(file)
