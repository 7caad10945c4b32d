"""Which TIFF and PNG files Pillow reads exactly, and rasterio for the others; rasterio writes the files."""

from __future__ import annotations

import itertools
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import ConfigError, DataError
from dinoneck.images.decoding import read_image_size, read_pixels
from dinoneck.images.pixels import read_header
from dinoneck.images.rasters import read_label
from dinoneck.images.storage import read_storage

rasterio = pytest.importorskip("rasterio")
Array = np.ndarray[Any, Any]
SIZE = (21, 37)


def write_tiff(path: Path, bands: Array, **options: Any) -> Path:
    """Write bands (K, H, W) by rasterio."""
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
            file.write(bands)
    return path


def write_png(path: Path, rows: Array, bits: int, colour_type: int, width: int) -> Path:
    """Write rows of bytes as they are stored."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(
        signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


def write_colours(path: Path, colours: Array) -> Path:
    """Write colours (H, W, 3 or 4) of 16 bits as a PNG, which Pillow cannot."""
    kind = 2 if colours.shape[-1] == 3 else 6
    return write_png(path, colours.astype(">u2"), 16, kind, width=colours.shape[1])


def numbers(dtype: str, bands: int = 1) -> Array:
    random = np.random.default_rng(0)
    if dtype.startswith("float"):
        return random.normal(size=(bands, *SIZE)).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, (bands, *SIZE), dtype, endpoint=True)


@pytest.fixture
def no_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)


# whether Pillow may read: interleaved little-endian files of one band, and colours of 8 bits
KINDS = [
    pytest.param("uint8", 1, True, id="uint8"),
    pytest.param("uint16", 1, True, id="uint16"),
    pytest.param("int16", 1, True, id="int16"),
    pytest.param("int32", 1, True, id="int32"),
    pytest.param("float32", 1, True, id="float32"),
    pytest.param("uint8", 3, True, id="RGB"),
    pytest.param("int8", 1, False, id="int8"),
    pytest.param("uint32", 1, False, id="uint32"),
    pytest.param("float64", 1, False, id="float64"),
    pytest.param("uint8", 2, False, id="two bands"),
    pytest.param("uint8", 5, False, id="five bands"),
    pytest.param("uint16", 3, False, id="16-bit colours"),
    pytest.param("float32", 3, False, id="float colours"),
]


@pytest.mark.parametrize(("dtype", "bands", "by_pillow"), KINDS)
def test_labels_are_the_numbers_that_are_stored(
    dtype: str, bands: int, by_pillow: bool, tmp_path: Path
) -> None:
    stored = numbers(dtype, bands)
    photometric = "RGB" if bands == 3 else "MINISBLACK"
    codecs = ((None, 1), ("lzw", 1), ("lzw", 2), ("deflate", 2), ("zstd", 1))
    for codec, order, interleave in itertools.product(codecs, ("LITTLE", "BIG"), ("PIXEL", "BAND")):
        compression, predictor = codec
        options: dict[str, Any] = {"ENDIANNESS": order, "interleave": interleave}
        if compression is not None:
            options.update(compress=compression, predictor=predictor)
        file = write_tiff(tmp_path / "a.tif", stored, photometric=photometric, **options)

        read = read_label(file).values

        assert np.array_equal(read, stored.transpose(1, 2, 0)), options
    storage = read_storage(write_tiff(tmp_path / "a.tif", stored, photometric=photometric))
    assert storage is not None
    assert storage.has_exact_numbers == by_pillow


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_labels_of_few_bits_are_not_scaled(bits: int, tmp_path: Path) -> None:
    stored = (numbers("uint16") % (1 << bits)).astype("uint16" if bits > 8 else "uint8")
    file = write_tiff(tmp_path / "a.tif", stored, nbits=bits)

    assert np.array_equal(read_label(file).values[..., 0], stored[0])


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_where_0_is_white_images_are_shown_so_and_labels_are_as_they_are_stored(
    bits: int, tmp_path: Path
) -> None:
    stored = (numbers("uint16").astype(int) % (1 << bits)).astype("uint16" if bits > 8 else "uint8")
    file = write_tiff(tmp_path / "a.tif", stored, nbits=bits, photometric="MINISWHITE")
    inverted = (1 << bits) - 1 - stored[0]

    assert np.array_equal(read_label(file).values[..., 0], stored[0])
    pixels = read_pixels(file)[0].float()
    shares = pixels / pixels.max()
    assert torch.allclose(shares, torch.from_numpy(inverted / inverted.max()).float(), atol=2e-3)


def test_tiles_that_are_not_stored_are_zero(tmp_path: Path) -> None:
    stored = np.zeros((1, 64, 64), np.uint8)
    stored[:, :16, :16] = 3
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    file = write_tiff(tmp_path / "a.tif", stored, sparse_ok=True, **tiles)

    assert np.array_equal(read_label(file).values[..., 0], stored[0])


@pytest.mark.parametrize("bits", [2, 4])
def test_png_labels_of_few_bits_are_not_scaled(bits: int, tmp_path: Path) -> None:
    stored = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16) % (1 << bits)
    packed = np.packbits(
        np.unpackbits(stored[..., None], axis=2)[..., 8 - bits :].reshape(8, -1), 1
    )
    file = write_png(tmp_path / "a.png", packed, bits, colour_type=0, width=16)

    assert np.array_equal(read_label(file).values[..., 0], stored)


@pytest.mark.parametrize(("colour_type", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_both_bytes_of_a_deep_png_count(colour_type: int, bands: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (8, 16, bands)).astype(">u2")
    if bands in (2, 4):
        stored[..., -1] = 65535
    file = write_png(tmp_path / "a.png", stored, 16, colour_type, width=16)
    colours = stored[..., : 3 if bands > 2 else 1].astype(np.uint16)

    assert np.array_equal(read_label(file).values, colours)
    expected = torch.from_numpy(colours.transpose(2, 0, 1).astype(np.float32) / 65535)
    assert torch.equal(read_pixels(file), expected.expand(3, -1, -1))
    with Image.open(file) as opened, pytest.raises(DataError, match="16 bits"):
        read_pixels(opened)


def test_what_rasterio_reads_is_refused_by_its_name_without_it(
    no_rasterio: None, tmp_path: Path
) -> None:
    Image.fromarray(numbers("uint8")[0]).save(tmp_path / "plain.tif")
    stored = np.zeros((4, 6, 3), ">u2")
    deep = write_png(tmp_path / "deep.png", stored, 16, colour_type=2, width=6)

    assert read_pixels(tmp_path / "plain.tif").dtype == torch.uint8
    for read in (read_pixels, read_label):
        with pytest.raises(ImportError, match=r"deep.png.*dinoneck\[geo\]"):
            read(deep)


def test_a_band_that_the_file_calls_alpha_is_left_out(tmp_path: Path) -> None:
    bands = numbers("uint16", 4)
    alpha = write_tiff(tmp_path / "alpha.tif", bands, photometric="RGB", alpha="yes")
    infrared = write_tiff(tmp_path / "infrared.tif", bands, photometric="RGB", alpha="no")

    expected = torch.from_numpy(bands[:3].astype(np.float32) / 65535)
    assert torch.equal(read_pixels(alpha), expected)
    with pytest.raises(DataError, match=r"4 bands.*bands=\(1, 2, 3\)"):
        read_pixels(infrared)


def test_the_bands_that_are_stated_are_read_in_their_order(tmp_path: Path) -> None:
    bands = numbers("uint8", 5)
    file = write_tiff(tmp_path / "a.tif", bands)
    expected = torch.from_numpy(bands[[3, 2, 1]])

    assert torch.equal(read_pixels(file, bands=(4, 3, 2)), expected)
    assert torch.equal(read_pixels(bands.transpose(1, 2, 0), bands=(4, 3, 2)), expected)
    assert torch.equal(read_pixels(file, bands=(5,)), torch.from_numpy(bands[4]).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("bands", "error"), [((0, 1, 2), ConfigError), ((1, 2), ConfigError), ((1, 2, 9), DataError)]
)
def test_bands_that_are_not_there_are_refused(
    bands: tuple[int, ...], error: type[Exception], tmp_path: Path
) -> None:
    file = write_tiff(tmp_path / "a.tif", numbers("uint8", 5))

    with pytest.raises(error, match="bands is"):
        read_pixels(file, bands=bands)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_in_0_to_1_are_read_and_others_are_refused(dtype: str, tmp_path: Path) -> None:
    shares = np.abs(numbers(dtype))
    shares /= shares.max()
    file = write_tiff(tmp_path / "a.tif", shares)

    assert torch.equal(read_pixels(file)[0], torch.from_numpy(shares[0].astype(np.float32)))
    with pytest.raises(DataError, match=r"0 \.\.\. 1"):
        read_pixels(write_tiff(file, shares * 2))


def test_several_pages_are_refused_and_overviews_are_not(tmp_path: Path) -> None:
    page = Image.fromarray(numbers("uint8")[0])
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    overviews = write_tiff(tmp_path / "overviews.tif", np.zeros((1, 64, 64), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(overviews, "r+") as file:
            file.build_overviews([2, 4])

    for read in (read_pixels, read_label, read_header):
        with pytest.raises(DataError, match=r"pages.tif has 2 pages"):
            read(tmp_path / "pages.tif")
    assert read_image_size(overviews) == (64, 64)


HEADERS = [
    pytest.param("a.jpg", Image.new("RGB", (5, 3)), 6, ("JPEG", "RGB", 8), id="jpeg"),
    pytest.param("a.png", Image.new("I;16", (5, 3)), 1, ("PNG", "I;16", 16), id="png"),
    pytest.param("a.tif", Image.new("F", (5, 3)), 8, ("TIFF", "F", 32), id="tiff"),
]


@pytest.mark.parametrize(("name", "image", "orientation", "stated"), HEADERS)
def test_a_header_states_size_mode_bits_and_turn(
    name: str,
    image: Image.Image,
    orientation: int,
    stated: tuple[str, str, int],
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)

    header = read_header(tmp_path / name)

    assert (header.format, header.mode, header.bits) == stated
    assert header.is_turned == (orientation != 1)
    assert header.size == ((5, 3) if header.is_turned else (3, 5))


def test_the_header_of_a_file_that_pillow_does_not_open_is_read(tmp_path: Path) -> None:
    header = read_header(write_tiff(tmp_path / "a.tif", numbers("float64", 5)))

    assert header.size == SIZE
    assert (header.mode, header.bits) == ("5 bands", 64)
