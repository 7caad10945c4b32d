"""Damaged files: what is whole is read with a warning, the rest is refused by name, by every decoder alike."""

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
from tests.unit.data.test_decoding import drawn, road  # noqa: F401 - a fixture
from tests.unit.test_orientation import STORED

from dinoneck import DataError
from dinoneck.data import read_image_size
from dinoneck.images import decoding, orientation
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
def test_exif_that_cannot_be_read_is_ignored_with_a_warning(
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
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert "a.jpg" in warned[0]
    assert "EXIF" in warned[0]


def test_an_image_in_memory_whose_exif_cannot_be_read_is_named_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = Image.open(io.BytesIO(with_blocks(b"Exif\0\0II")))

    with caplog.at_level(logging.WARNING):
        pixels = read_pixels(image)

    assert pixels.shape == (3, 27, 41)
    [record] = caplog.records
    assert record.getMessage().startswith("a PIL image: EXIF cannot be read and is ignored")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_junk_exif_of_other_formats_is_ignored(suffix: str, tmp_path: Path) -> None:
    image = drawn("RGB")
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + b"X" * 20, **options)
    assert np.array_equal(read_pixels(tmp_path / f"a.{suffix}").permute(1, 2, 0), image)


def test_an_image_that_is_turned_upright_is_not_turned_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_blocks(block(6)))
    with Image.open(tmp_path / "a.jpg") as image:
        turned = upright(image)
        assert turned.size == (27, 41)
        assert upright(turned).size == (27, 41)
        assert torch.equal(read_pixels(turned), read_pixels(tmp_path / "a.jpg"))


# The end of a JPEG


def busy() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 56, 3), np.uint8))


def flat() -> Image.Image:
    return Image.new("RGB", (56, 40), (90, 120, 30))


KINDS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True, "quality": 40},
    "restarts by blocks": {"restart_marker_blocks": 3},
    "restarts by rows": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_end_marker_is_read_with_a_warning(
    kind: str,
    mode: str,
    road: list[str],  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, file = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    content = jpeg_bytes(busy().convert(mode), **KINDS[kind])
    whole.write_bytes(content)
    expected = read_pixels(whole)
    for end in (b"", b"\xff", bytes(512)):
        file.write_bytes(content.removesuffix(END) + end)
        orientation.warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert torch.equal(read_pixels(file), expected)
        [warned] = [record.getMessage() for record in caplog.records]
        assert "cut.jpg" in warned
        assert "end marker" in warned
        with Image.open(file) as image:
            assert torch.equal(read_pixels(image), expected)


@pytest.mark.parametrize("picture", [busy, flat])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_lacks_a_byte_of_its_picture_is_refused(
    kind: str, picture: Any, tmp_path: Path
) -> None:
    content = jpeg_bytes(picture(), **KINDS[kind])
    expected = np.asarray(Image.open(io.BytesIO(content)))
    file = tmp_path / "cut.jpg"
    for missing in range(3, 40):
        file.write_bytes(content[:-missing])
        try:
            found = read_pixels(file)
        except DataError as error:
            assert "cut.jpg" in str(error)
            continue
        # the last bytes of a flat picture may say nothing
        assert np.array_equal(found.permute(1, 2, 0), expected), missing


def test_a_progressive_jpeg_that_lacks_its_last_scan_is_refused(tmp_path: Path) -> None:
    """The scans before are a whole picture, which is coarser."""
    content = jpeg_bytes(busy(), progressive=True)
    scans = [i for i in range(len(content)) if content[i : i + 2] == b"\xff\xda"]
    tables = content.rfind(b"\xff\xc4", 0, scans[-1])
    for end in (scans[-1], tables):
        (tmp_path / "cut.jpg").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
            read_pixels(tmp_path / "cut.jpg")


def test_a_jpeg_that_was_filled_up_with_zeros_is_refused(tmp_path: Path) -> None:
    content = jpeg_bytes(busy())
    for length in (len(content) // 2, len(content) - 100, len(content) - 10):
        (tmp_path / "cut.jpg").write_bytes(content[:length] + bytes(4096))
        with pytest.raises(DataError, match=r"cut\.jpg"):
            read_pixels(tmp_path / "cut.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_png_that_was_filled_up_with_zeros_is_refused(mode: str, tmp_path: Path) -> None:
    """Its EXIF may follow the pixels, so reading EXIF decodes it."""
    file = tmp_path / "a.png"
    deep = Image.fromarray(np.random.RandomState(0).randint(0, 65536, (40, 56)).astype(np.uint16))
    image = deep if mode == "I;16" else busy().convert(mode)
    image.save(file)
    content = file.read_bytes()
    for length in (len(content) // 2, len(content) - 60, len(content) - 20):
        file.write_bytes(content[:length] + bytes(400))
        with pytest.raises(DataError, match=r"a\.png"):
            read_pixels(file)


def test_a_whole_png_that_zeros_follow_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    busy().save(file)
    expected = read_pixels(file)
    file.write_bytes(file.read_bytes() + bytes(400))

    pixels = read_pixels(file)

    assert torch.equal(pixels, expected)


# What is no picture


def test_a_missing_file_is_not_there(tmp_path: Path) -> None:
    for read in (read_pixels, read_image_size):
        with pytest.raises(DataError, match=r"there is no image .*gone\.jpg"):
            read(tmp_path / "gone.jpg")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"image,crop\na.jpg,1\n", "image,crop", id="a table"),
        pytest.param(b"<!DOCTYPE html><html>", "<!DOCTYPE ht", id="a web page"),
        pytest.param(b"version https://git-lfs", "version http", id="a Git LFS pointer"),
        pytest.param(b"\0\0\0 ftypheic", "ftypheic", id="HEIC"),
        pytest.param(b"II*\0\x08\0\0\0\0\0", "II", id="a TIFF without tags"),
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
