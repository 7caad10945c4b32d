"""16-bit images keep the scale that their file or ``bits`` states; a part of the range is never taken for the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.test_labels import png
from tests.unit.data.tiff_files import DEFLATE, LONG, write_tiff

from dinoneck import ConfigError, DataError
from dinoneck.data import Preprocessing
from dinoneck.data.decoding import read_pixels

Pixels = np.ndarray[Any, Any]
FULL = 65535


def ramp(low: int, high: int, height: int = 24, width: int = 31) -> Pixels:
    """All values from the lowest to the highest in equal steps."""
    return np.linspace(low, high, height * width).round().reshape(height, width).astype(np.uint16)


def with_pixels(pixels: Pixels, value: int, count: int) -> Pixels:
    """The image with a value at ``count`` places, spread over it."""
    changed = pixels.copy()
    places = np.linspace(0, pixels.size - 1, count).astype(int)
    changed.ravel()[places] = value
    return changed


def hazy(low: int, high: int) -> Pixels:
    return np.random.RandomState(0).randint(low, high, (40, 50)).astype(np.uint16)


# what a camera of fewer bits writes: the image, and what the message has to name
PARTIAL = [
    pytest.param(ramp(0, 255), ("255", "bits=8"), id="8 bits"),
    pytest.param(ramp(0, 1023), ("1023", "bits=10"), id="10 bits"),
    pytest.param(ramp(0, 4095), ("4095", "bits=12", "--bits 12", "bits=16"), id="12 bits"),
    pytest.param(ramp(0, 16383), ("16383", "bits=14"), id="14 bits"),
    pytest.param(ramp(200, 3000), ("3000", "bits=12"), id="12 bits with a pedestal"),
    pytest.param(with_pixels(ramp(0, 4095), FULL, 1), ("65535", "bits=12"), id="one saturated"),
    pytest.param(with_pixels(ramp(0, 4095), 30000, 1), ("30000", "bits=12"), id="one hot"),
    pytest.param(
        with_pixels(ramp(0, 4095, 100, 90), 40000, 8), ("40000", "bits=12"), id="eight hot"
    ),
    pytest.param(with_pixels(ramp(0, 4095), FULL, 200), ("65535", "bits=12"), id="white border"),
    pytest.param(ramp(32768, 36863), ("32768", "36863", "bits=16"), id="12 bits and 32768"),
    pytest.param(ramp(32768, 49151), ("32768", "49151"), id="14 bits and 32768"),
    pytest.param(ramp(31744, 35839), ("31744", "35839"), id="Hounsfield units and 32768"),
    pytest.param(ramp(14000, 18095), ("14000", "18095"), id="12 bits and 14000"),
    pytest.param(with_pixels(ramp(32768, 36863), 0, 1), ("36863",), id="offset, one dead"),
    pytest.param(
        with_pixels(ramp(32768, 36863), 0, 300), ("offset", "bits=16"), id="offset, black border"
    ),
    pytest.param(with_pixels(ramp(32768, 36863), FULL, 1), ("32768",), id="offset, one saturated"),
]
WHOLE = [
    pytest.param(ramp(0, FULL), id="all values"),
    pytest.param(ramp(0, 20000), id="dark, more than 14 bits"),
    pytest.param(ramp(0, 4095) * 16, id="12 bits shifted to the left"),
    pytest.param(hazy(20000, 40000), id="fog"),
    pytest.param(hazy(8000, 20000), id="fog at dusk"),
    pytest.param(np.zeros((8, 9), np.uint16), id="black"),
    pytest.param(np.full((8, 9), FULL, np.uint16), id="white"),
    pytest.param(np.full((8, 9), 30000, np.uint16), id="one grey"),
    pytest.param(with_pixels(np.zeros((20, 20), np.uint16), FULL, 90), id="silhouette"),
    pytest.param(np.array([[0, 20000], [40000, FULL]], np.uint16), id="four pixels"),
]


def forms(pixels: Pixels, folder: Path) -> dict[str, Any]:
    """A 16-bit image as file, array, tensor and PIL image."""
    Image.fromarray(pixels).save(folder / "a.png")
    write_tiff(folder / "a.tif", pixels)
    write_tiff(folder / "motorola.tif", pixels, big_endian=True)
    return {
        "png": folder / "a.png",
        "tiff": folder / "a.tif",
        "tiff, big-endian": folder / "motorola.tif",
        "array": pixels,
        "array, big-endian": pixels.astype(">u2"),
        "colours": np.stack([pixels] * 3, axis=-1),
        "tensor": torch.from_numpy(pixels)[None],
        "PIL": Image.fromarray(pixels),
    }


@pytest.mark.parametrize(("pixels", "named"), PARTIAL)
def test_an_image_that_uses_a_part_of_the_range_is_refused(
    pixels: Pixels, named: tuple[str, ...], tmp_path: Path
) -> None:
    for form, image in forms(pixels, tmp_path).items():
        with pytest.raises(DataError) as refused:
            read_pixels(image)
        for word in named:
            assert word in str(refused.value), form


@pytest.mark.parametrize("pixels", WHOLE)
def test_an_image_that_uses_the_range_is_a_share_of_65535(pixels: Pixels, tmp_path: Path) -> None:
    expected = torch.from_numpy(pixels.astype(np.float32) / FULL).expand(3, -1, -1)
    for form, image in forms(pixels, tmp_path).items():
        assert torch.equal(read_pixels(image), expected), form


@pytest.mark.parametrize(("pixels", "named"), PARTIAL)
def test_16_bits_read_every_image_as_it_is(
    pixels: Pixels, named: tuple[str, ...], tmp_path: Path
) -> None:
    expected = torch.from_numpy(pixels.astype(np.float32) / FULL).expand(3, -1, -1)
    for form, image in forms(pixels, tmp_path).items():
        assert torch.equal(read_pixels(image, bits=16), expected), form


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12, 13, 14, 15])
def test_the_largest_value_of_the_stated_bits_becomes_one(bits: int, tmp_path: Path) -> None:
    pixels = ramp(0, (1 << bits) - 1)
    expected = torch.from_numpy(pixels.astype(np.float32) / ((1 << bits) - 1)).expand(3, -1, -1)
    for form, image in forms(pixels, tmp_path).items():
        read = read_pixels(image, bits=bits)
        assert torch.equal(read, expected), form
        assert (read.min(), read.max()) == (0.0, 1.0), form


def test_the_content_of_an_image_does_not_change_its_scale() -> None:
    dim = ramp(0, 900)
    assert torch.equal(
        read_pixels(dim, bits=12), torch.from_numpy(dim / np.float32(4095))[None].expand(3, -1, -1)
    )


def test_a_value_above_the_stated_bits_is_named(tmp_path: Path) -> None:
    pixels = with_pixels(ramp(0, 4095), 5000, 3)
    for form, image in forms(pixels, tmp_path).items():
        with pytest.raises(DataError, match=r"5000.*\b[39] of .*4095"):
            read_pixels(image, bits=12)
        assert form


@pytest.mark.parametrize("bits", [0, 7, 17, -1, 12.0, "12", True])
def test_bits_outside_8_to_16_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match="bits"):
        read_pixels(ramp(0, 4095), bits=bits)
    with pytest.raises(ConfigError, match="bits"):
        Preprocessing(bits=bits)


def test_images_of_8_bits_and_floats_do_not_change_with_bits(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", levels, levels.astype(np.float32) / 255):
        assert torch.equal(read_pixels(image, bits=12), read_pixels(image))


# Colours of 16 bits


def write_colours(file: Path, colours: Pixels) -> Path:
    """Write colours (H, W, 3 or 4) of 16 bits, which Pillow cannot."""
    if file.suffix == ".png":
        kind = 2 if colours.shape[-1] == 3 else 6
        rows = [row.tobytes() for row in colours.astype(">u2")]
        file.write_bytes(png(16, kind, rows, colours.shape[1]))
        return file
    options: dict[str, Any] = {"extra": (2,)} if colours.shape[-1] == 4 else {}
    options["big_endian"] = "motorola" in file.stem
    options["compression"] = DEFLATE if "packed" in file.stem else 1
    return write_tiff(file, colours, photometric=2, **options)


COLOUR_FILES = ("a.png", "a.tif", "motorola.tif", "packed.tif", "packed motorola.tif")


@pytest.mark.parametrize("name", COLOUR_FILES)
@pytest.mark.parametrize("channels", [3, 4])
def test_both_bytes_of_colours_count_where_bits_are_stated(
    name: str, channels: int, tmp_path: Path
) -> None:
    colours = np.random.RandomState(0).randint(0, 4096, (9, 7, channels)).astype(np.uint16)
    file = write_colours(tmp_path / name, colours)
    expected = torch.from_numpy(colours[..., :3].astype(np.float32) / 4095).permute(2, 0, 1)
    assert torch.equal(read_pixels(file, bits=12), expected)
    with Image.open(file) as image:
        assert torch.equal(read_pixels(image, bits=12), expected)


@pytest.mark.parametrize("name", COLOUR_FILES)
def test_colours_that_use_a_part_of_the_range_are_refused(name: str, tmp_path: Path) -> None:
    shape = (30, 40, 3)
    for largest, bits in ((255, 8), (4095, 12), (16383, 14)):
        colours = np.random.RandomState(0).randint(0, largest + 1, shape).astype(np.uint16)
        colours[3, 4, 0] = FULL
        file = write_colours(tmp_path / name, colours)
        with pytest.raises(DataError, match=f"bits={bits}"):
            read_pixels(file)
        assert np.array_equal(read_pixels(file, bits=16).permute(1, 2, 0), colours >> 8)


@pytest.mark.parametrize("name", COLOUR_FILES)
def test_colours_of_the_whole_range_keep_the_high_byte(name: str, tmp_path: Path) -> None:
    colours = np.random.RandomState(0).randint(0, FULL + 1, (9, 7, 3)).astype(np.uint16)
    file = write_colours(tmp_path / name, colours)
    assert np.array_equal(read_pixels(file).permute(1, 2, 0), colours >> 8)


def test_black_colours_are_black(tmp_path: Path) -> None:
    file = write_colours(tmp_path / "a.png", np.zeros((5, 6, 3), np.uint16))
    assert not read_pixels(file).any()


def test_grey_with_alpha_of_16_bits_has_no_other_bits(tmp_path: Path) -> None:
    """Pillow gives its high byte alone."""
    values = np.random.RandomState(0).randint(0, FULL + 1, (5, 6, 2)).astype(">u2")
    (tmp_path / "a.png").write_bytes(png(16, 4, [row.tobytes() for row in values], 6))
    grey = read_pixels(tmp_path / "a.png")
    assert np.array_equal(grey, np.stack([values[..., 0] >> 8] * 3))
    with pytest.raises(DataError, match=r"a\.png.*bits=12.*array"):
        read_pixels(tmp_path / "a.png", bits=12)


# What a file states


@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_is_zero_at_every_depth(kind: type, big_endian: bool, tmp_path: Path) -> None:
    """Pillow inverts 8 bits only, and opens no big-endian file of 16."""
    largest = np.iinfo(kind).max
    pixels = np.linspace(0, largest, 35 * 6).reshape(35, 6).astype(kind)
    file = write_tiff(tmp_path / "a.tif", largest - pixels, photometric=0, big_endian=big_endian)
    if kind is np.uint16 and big_endian:
        with pytest.raises(DataError, match=r"a\.tif.*16-bit.*white.*array"):
            read_pixels(file)
        return
    read = read_pixels(file)
    assert torch.equal(read, read_pixels(pixels))
    packed = write_tiff(tmp_path / "b.tif", largest - pixels, photometric=0, compression=DEFLATE)
    assert torch.equal(read_pixels(packed), read)


def test_white_is_zero_within_the_stated_bits(tmp_path: Path) -> None:
    pixels = ramp(0, 4095)
    file = write_tiff(tmp_path / "a.tif", 4095 - pixels, photometric=0)
    with pytest.raises(DataError, match="bits=12"):
        read_pixels(file)
    assert torch.equal(read_pixels(file, bits=12), read_pixels(pixels, bits=12))


def test_a_tiff_of_12_bits_states_its_range(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 40).astype(int).reshape(5, 8)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    # a row of 12 bytes is one of 8 values
    rows = packed.reshape(5, 12).astype(np.uint8)
    file = write_tiff(tmp_path / "a.tif", rows, bits=12, tags={256: (LONG, [8])})
    expected = torch.from_numpy(values.astype(np.float32) / 4095).expand(3, -1, -1)
    for bits in (None, 12, 16):
        assert torch.equal(read_pixels(file, bits=bits), expected)


# The record


def test_the_record_holds_bits_only_where_they_are_set() -> None:
    without, stated = Preprocessing(), Preprocessing(bits=12)
    assert "bits" not in without.record()
    assert stated.record() == {**without.record(), "bits": 12}
    for recipe in (without, stated):
        assert Preprocessing.from_record(json.loads(json.dumps(recipe.record()))) == recipe
    assert without.changed(bits=12) == stated


def test_a_recipe_reads_its_images_with_its_bits(tmp_path: Path) -> None:
    pixels = ramp(0, 4095, 32, 48)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    recipe = Preprocessing(16, mean=(0, 0, 0), std=(1, 1, 1), bits=12)
    expected = torch.from_numpy(pixels.astype(np.float32) / 4095).expand(1, 3, -1, -1)
    assert torch.equal(recipe(tmp_path / "a.png"), expected)
    assert torch.equal(recipe.picture(pixels), expected[0])
    with pytest.raises(DataError, match="bits=12"):
        recipe.changed(size=(16, 16))(pixels * 3)
