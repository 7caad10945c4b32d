"""Damaged files: EXIF that cannot be read is ignored, pixels that are missing are refused, by every decoder alike."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.images.test_decoding import drawn, road  # noqa: F401 - a fixture
from tests.unit.test_orientation import STORED

from dinoneck import DataError
from dinoneck.data import read_image_size
from dinoneck.images import decoding, jpeg
from dinoneck.images.decoding import read_pixels
from dinoneck.images.orientation import upright

# of Pillow, which do not name the file
pytestmark = [
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),
    pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning"),
]
SHORT, LONG, SIGNED_SHORT, BYTE, ASCII, RATIONAL = 3, 4, 8, 1, 2, 5
ORIENTATION = 0x0112
END = b"\xff\xd9"


def jpeg_bytes(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


# EXIF


def block(
    value: int, *, kind: int = SHORT, count: int = 1, order: str = "II", start: int = 8
) -> bytes:
    """An EXIF block with an orientation of any type."""
    sign = "<" if order == "II" else ">"
    number = {SHORT: "HH", LONG: "I", SIGNED_SHORT: "HH"}.get(kind, "BBBB")
    values = [value] + [0] * (len(number) - 1)
    entry = struct.pack(sign + "HHI", ORIENTATION, kind, count) + struct.pack(
        sign + number, *values
    )
    head = order.encode() + struct.pack(sign + "HI", 42, start)
    return b"Exif\0\0" + head + struct.pack(sign + "H", 1) + entry + bytes(4)


def with_blocks(*blocks: bytes) -> bytes:
    """A JPEG of 41 x 27 px with APP1 segments."""
    plain = jpeg_bytes(drawn("RGB"), quality=95)
    segments = b""
    for content in blocks:
        segments += b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    return plain[:2] + segments + plain[2:]


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
# the blocks, and the orientation that Pillow reads
BLOCKS = [
    *(
        pytest.param([block(6, kind=kind, order=order)], 6, id=f"{name} {order}")
        for kind, name in ((SHORT, "short"), (LONG, "long"), (SIGNED_SHORT, "signed"))
        for order in ("II", "MM")
    ),
    *(
        pytest.param([block(6, kind=kind, order=order)], 1, id=f"{name} {order}")
        for kind, name in ((BYTE, "byte"), (ASCII, "text"), (RATIONAL, "fraction"), (0, "no type"))
        for order in ("II", "MM")
    ),
    pytest.param([block(0)], 1, id="orientation 0"),
    pytest.param([block(9)], 1, id="orientation 9"),
    pytest.param([block(6, count=0)], 1, id="no value"),
    pytest.param([block(6, start=9)], 1, id="wrong place"),
    pytest.param([block(6)[:-6]], 1, id="cut"),
    pytest.param([block(6), block(3)], 6, id="two blocks"),
    pytest.param([b"Exif\0\0"], 1, id="empty"),
    pytest.param([b"exif" + block(6)[4:]], 1, id="other letters"),
    pytest.param([XMP], 6, id="XMP"),
    pytest.param([XMP, block(3)], 3, id="XMP, then EXIF"),
    pytest.param([XMP, block(1)], 1, id="EXIF is stronger than XMP"),
]
JUNK = [
    pytest.param([b"Exif\0\0" + b"X" * 20], id="junk"),
    pytest.param([b"Exif\0\0" + b"X" * 20, block(6)], id="junk, then EXIF"),
    pytest.param([b"Exif\0\0IM" + block(6)[8:]], id="byte order"),
    pytest.param([b"Exif\0\0II"], id="two bytes"),
]


@pytest.mark.parametrize(("blocks", "expected"), BLOCKS)
def test_all_decoders_read_one_orientation(
    blocks: list[bytes],
    expected: int,
    road: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jpg").write_bytes(with_blocks(*blocks))
    (tmp_path / "plain.jpg").write_bytes(with_blocks())
    stored = read_pixels(tmp_path / "plain.jpg").permute(1, 2, 0).numpy()
    back = {6: STORED[8], 8: STORED[6]}.get(expected, STORED[expected])
    found = read_pixels(tmp_path / "a.jpg")
    assert np.array_equal(found.permute(1, 2, 0), back(stored))
    assert read_image_size(tmp_path / "a.jpg") == found.shape[-2:]
    with Image.open(tmp_path / "a.jpg") as image:
        assert torch.equal(read_pixels(image), found)


@pytest.mark.parametrize("blocks", JUNK)
def test_exif_that_cannot_be_read_is_ignored(
    blocks: list[bytes],
    road: list[str],  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a.jpg").write_bytes(with_blocks(*blocks))
    (tmp_path / "plain.jpg").write_bytes(with_blocks())
    with caplog.at_level(logging.WARNING):
        assert read_image_size(tmp_path / "a.jpg") == (27, 41)
        found = read_pixels(tmp_path / "a.jpg")
    assert torch.equal(found, read_pixels(tmp_path / "plain.jpg"))
    assert not caplog.records


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_junk_exif_of_other_formats_is_ignored(suffix: str, tmp_path: Path) -> None:
    image = drawn("RGB")
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + b"X" * 20, **options)
    assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}").permute(1, 2, 0), np.asarray(image))


def test_an_image_that_is_turned_upright_is_not_turned_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_blocks(block(6)))
    with Image.open(tmp_path / "a.jpg") as image:
        turned = upright(image)
        assert turned.size == (27, 41)
        assert upright(turned).size == (27, 41)
        assert torch.equal(read_pixels(turned), read_pixels(tmp_path / "a.jpg"))


# What is no picture


def test_a_missing_file_is_not_there(tmp_path: Path) -> None:
    for read in (read_pixels, read_image_size):
        with pytest.raises(DataError, match=r"there is no image .*gone\.jpg"):
            read(tmp_path / "gone.jpg")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(b"", "0 bytes", id="empty"),
        pytest.param(b"image,crop\na.jpg,1\n", "image,crop", id="a table"),
        pytest.param(b"<!DOCTYPE html><html>", "<!DOCTYPE ht", id="a web page"),
        pytest.param(b"version https://git-lfs", "version http", id="a Git LFS pointer"),
        pytest.param(b"\0\0\0 ftypheic", "ftypheic", id="HEIC"),
        pytest.param(b"II*\0", "TIFF header", id="a TIFF that is cut"),
    ],
)
def test_a_file_that_is_no_picture_is_named_with_its_beginning(
    content: bytes, named: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_pixels(tmp_path / "a.jpg")
    assert f"{tmp_path / 'a.jpg'}" in str(refused.value)
    assert named in str(refused.value)
    assert "BufferedReader" not in str(refused.value)


def test_a_file_of_more_pixels_than_pillow_opens_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 60)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_pixels, read_image_size):
        with pytest.raises(
            DataError, match=r"large.png has by its header more than 2000 px.*tiles"
        ):
            read(tmp_path / "large.png")


def test_the_operators_get_no_exif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(with_blocks(block(6), XMP))
    given = []

    def operator(raw: torch.Tensor) -> torch.Tensor:
        given.append(bytes(raw.numpy()))
        return torch.zeros(3, 27, 41, dtype=torch.uint8)

    monkeypatch.setattr(decoding, "fast_decoder", lambda: operator)
    assert read_pixels(tmp_path / "a.jpg").shape == (3, 41, 27)
    assert b"\xff\xe1" not in given[0][:200]


def test_a_jpeg_header_that_cannot_be_followed_to_a_scan_is_reported() -> None:
    whole = np.frombuffer(with_blocks(block(6)), np.uint8).copy()
    cut = whole[:40].copy()

    assert jpeg.hide_exif(whole)
    assert not jpeg.hide_exif(cut)
