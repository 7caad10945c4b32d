"""16-bit images keep the scale that their file or ``bits`` states; a part of the range is never taken for the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.test_labels import png
from tests.unit.data.tiff_files import DEFLATE, LONG, write_tiff
from torch import Tensor

from dinoneck import ConfigError, DataError
from dinoneck.data import Preprocessing
from dinoneck.images.decoding import read_pixels

Pixels = np.ndarray[Any, Any]
InForm = Callable[[Pixels], Any]
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


def with_offset(offset: int, bits: int) -> Pixels:
    """All values of a camera of fewer bits, with a number added to each."""
    return ramp(offset, offset + (1 << bits) - 1)


# what a camera of fewer bits writes: the image, and what the message has to name
PARTIAL = [
    pytest.param(ramp(0, 255), ["255", "bits=8"], id="8 bits"),
    pytest.param(ramp(0, 1023), ["1023", "bits=10"], id="10 bits"),
    pytest.param(ramp(0, 4095), ["4095", "bits=12", "--bits 12", "bits=16"], id="12 bits"),
    pytest.param(ramp(0, 16383), ["16383", "bits=14"], id="14 bits"),
    pytest.param(ramp(200, 3000), ["3000", "bits=12"], id="12 bits with a pedestal"),
    pytest.param(with_pixels(ramp(0, 4095), FULL, 1), ["65535", "bits=12"], id="one saturated"),
    pytest.param(with_pixels(ramp(0, 4095), 30000, 1), ["30000", "bits=12"], id="one hot"),
    pytest.param(with_pixels(ramp(0, 4095, 100, 90), 40000, 8), ["40000", "bits=12"], id="8 hot"),
    pytest.param(with_pixels(ramp(0, 4095), FULL, 200), ["65535", "bits=12"], id="white border"),
    pytest.param(with_offset(32768, 12), ["32768", "36863", "bits=16"], id="12 bits and 32768"),
    pytest.param(with_offset(32768, 14), ["32768", "49151"], id="14 bits and 32768"),
    pytest.param(with_offset(31744, 12), ["31744", "35839"], id="Hounsfield units and 32768"),
    pytest.param(with_offset(14000, 12), ["14000", "18095"], id="12 bits and 14000"),
    pytest.param(with_pixels(with_offset(32768, 12), 0, 1), ["36863"], id="offset, one dead"),
    pytest.param(
        with_pixels(with_offset(32768, 12), 1000, 1), ["offset", "36"], id="offset, one dark"
    ),
    pytest.param(
        with_pixels(with_offset(32768, 12), 0, 300), ["offset", "bits=16"], id="offset, black edge"
    ),
    pytest.param(
        with_pixels(with_offset(32768, 12), FULL, 1), ["32768"], id="offset, one saturated"
    ),
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


@pytest.fixture(
    params=[
        "png",
        "tiff",
        "tiff, big-endian",
        "array",
        "array, big-endian",
        "colours",
        "tensor",
        "PIL",
    ]
)
def in_form(request: pytest.FixtureRequest, tmp_path: Path) -> InForm:
    """Puts 16-bit pixels (height, width) into one form that images have."""
    form = request.param

    def convert(pixels: Pixels) -> Any:
        if form == "png":
            Image.fromarray(pixels).save(tmp_path / "a.png")
            return tmp_path / "a.png"
        if form == "tiff":
            return write_tiff(tmp_path / "a.tif", pixels)
        if form == "tiff, big-endian":
            return write_tiff(tmp_path / "motorola.tif", pixels, big_endian=True)
        if form == "array":
            return pixels
        if form == "array, big-endian":
            return pixels.astype(">u2")
        if form == "colours":
            return np.stack([pixels] * 3, axis=-1)
        if form == "tensor":
            return torch.from_numpy(pixels)[None]
        return Image.fromarray(pixels)

    return convert


def as_share(pixels: Pixels, largest: int) -> Tensor:
    """Grey pixels (height, width) as three channels from 0 to 1."""
    shares = pixels.astype(np.float32) / largest
    return torch.from_numpy(shares).expand(3, -1, -1)


@pytest.mark.parametrize(("pixels", "named"), PARTIAL)
def test_an_image_that_uses_a_part_of_the_range_is_refused(
    pixels: Pixels, named: list[str], in_form: InForm
) -> None:
    image = in_form(pixels)

    with pytest.raises(DataError) as refused:
        read_pixels(image)

    missing = [word for word in named if word not in str(refused.value)]
    assert missing == []


@pytest.mark.parametrize("pixels", WHOLE)
def test_an_image_that_uses_the_range_is_a_share_of_65535(pixels: Pixels, in_form: InForm) -> None:
    image = in_form(pixels)

    read = read_pixels(image)

    assert torch.equal(read, as_share(pixels, FULL))


@pytest.mark.parametrize(("pixels", "named"), PARTIAL)
def test_16_bits_read_every_image_as_it_is(
    pixels: Pixels, named: list[str], in_form: InForm
) -> None:
    image = in_form(pixels)

    read = read_pixels(image, bits=16)

    assert torch.equal(read, as_share(pixels, FULL))


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12, 13, 14, 15])
def test_the_largest_value_of_the_stated_bits_becomes_one(bits: int, in_form: InForm) -> None:
    largest = (1 << bits) - 1
    pixels = ramp(0, largest)
    image = in_form(pixels)

    read = read_pixels(image, bits=bits)

    assert torch.equal(read, as_share(pixels, largest))
    assert read.min() == 0.0
    assert read.max() == 1.0


def test_the_content_of_an_image_does_not_change_its_scale() -> None:
    dim = ramp(0, 900)

    read = read_pixels(dim, bits=12)

    assert torch.equal(read, as_share(dim, 4095))


def test_a_value_above_the_stated_bits_is_named(in_form: InForm) -> None:
    image = in_form(with_pixels(ramp(0, 4095), 5000, 3))

    # of 3 pixels, or of the 9 numbers of 3 coloured ones
    with pytest.raises(DataError, match=r"5000.*\b[39] of .*4095"):
        read_pixels(image, bits=12)


NOT_BITS = [0, 7, 17, -1, 12.0, "12", True]


@pytest.mark.parametrize("bits", NOT_BITS)
def test_images_are_not_read_with_bits_outside_8_to_16(bits: Any) -> None:
    with pytest.raises(ConfigError, match="bits"):
        read_pixels(ramp(0, 4095), bits=bits)


@pytest.mark.parametrize("bits", NOT_BITS)
def test_a_recipe_has_no_bits_outside_8_to_16(bits: Any) -> None:
    with pytest.raises(ConfigError, match="bits"):
        Preprocessing(bits=bits)


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(LEVELS, id="array of 8 bits"),
        pytest.param(LEVELS.astype(np.float32) / 255, id="floats"),
    ],
)
def test_arrays_of_8_bits_and_floats_do_not_change_with_bits(image: Pixels) -> None:
    assert torch.equal(read_pixels(image, bits=12), read_pixels(image))


def test_files_of_8_bits_do_not_change_with_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(LEVELS).save(file)

    assert torch.equal(read_pixels(file, bits=12), read_pixels(file))


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


def random_values(end: int, shape: tuple[int, ...]) -> Pixels:
    return np.random.RandomState(0).randint(0, end, shape).astype(np.uint16)


@pytest.fixture(params=COLOUR_FILES)
def colour_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where to write colours: the name decides on the kind of file."""
    return tmp_path / str(request.param)


@pytest.mark.parametrize("channels", [3, 4])
def test_both_bytes_of_colours_count_where_bits_are_stated(
    colour_file: Path, channels: int
) -> None:
    colours = random_values(4096, (9, 7, channels))
    write_colours(colour_file, colours)

    read = read_pixels(colour_file, bits=12)

    expected = torch.from_numpy(colours[..., :3].astype(np.float32) / 4095).permute(2, 0, 1)
    assert torch.equal(read, expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_an_opened_file_of_colours_is_read_as_the_file(colour_file: Path, channels: int) -> None:
    write_colours(colour_file, random_values(4096, (9, 7, channels)))

    with Image.open(colour_file) as opened:
        read = read_pixels(opened, bits=12)

    assert torch.equal(read, read_pixels(colour_file, bits=12))


@pytest.fixture(params=[8, 12, 14], ids=["8 bits", "12 bits", "14 bits"])
def colour_bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def partial_colours(colour_bits: int) -> Pixels:
    """Colours of fewer bits, with one saturated value."""
    colours = random_values(1 << colour_bits, (30, 40, 3))
    colours[3, 4, 0] = FULL
    return colours


def test_colours_that_use_a_part_of_the_range_are_refused(
    colour_file: Path, partial_colours: Pixels, colour_bits: int
) -> None:
    write_colours(colour_file, partial_colours)

    with pytest.raises(DataError, match=f"bits={colour_bits}"):
        read_pixels(colour_file)


def test_colours_read_with_16_bits_keep_the_high_byte(
    colour_file: Path, partial_colours: Pixels
) -> None:
    write_colours(colour_file, partial_colours)

    read = read_pixels(colour_file, bits=16)

    assert np.array_equal(read.permute(1, 2, 0), partial_colours >> 8)


def test_colours_of_the_whole_range_keep_the_high_byte(colour_file: Path) -> None:
    colours = random_values(FULL + 1, (9, 7, 3))
    write_colours(colour_file, colours)

    read = read_pixels(colour_file)

    assert np.array_equal(read.permute(1, 2, 0), colours >> 8)


def test_black_colours_are_black(tmp_path: Path) -> None:
    file = write_colours(tmp_path / "a.png", np.zeros((5, 6, 3), np.uint16))

    read = read_pixels(file)

    assert not read.any()


@pytest.fixture
def grey_with_alpha() -> Pixels:
    return random_values(FULL + 1, (5, 6, 2))


@pytest.fixture
def grey_with_alpha_file(grey_with_alpha: Pixels, tmp_path: Path) -> Path:
    rows = [row.tobytes() for row in grey_with_alpha.astype(">u2")]
    file = tmp_path / "a.png"
    file.write_bytes(png(16, 4, rows, 6))
    return file


def test_grey_with_alpha_of_16_bits_is_read_as_its_high_byte(
    grey_with_alpha: Pixels, grey_with_alpha_file: Path
) -> None:
    """Pillow gives its high byte alone."""
    read = read_pixels(grey_with_alpha_file)

    high_byte = grey_with_alpha[..., 0] >> 8
    assert np.array_equal(read, np.stack([high_byte] * 3))


def test_grey_with_alpha_of_16_bits_has_no_other_bits(grey_with_alpha_file: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png.*bits=12.*array"):
        read_pixels(grey_with_alpha_file, bits=12)


# What a file states


def levels_of(dtype: type) -> Pixels:
    """From black to white in 35 x 6 px."""
    return np.linspace(0, np.iinfo(dtype).max, 35 * 6).reshape(35, 6).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "big_endian"),
    [
        pytest.param(np.uint8, False, id="8 bits"),
        pytest.param(np.uint8, True, id="8 bits, big-endian"),
        pytest.param(np.uint16, False, id="16 bits"),
    ],
)
def test_a_file_whose_white_is_zero_is_inverted(
    dtype: type, big_endian: bool, tmp_path: Path
) -> None:
    """Pillow inverts 8 bits only."""
    pixels = levels_of(dtype)
    inverted = np.iinfo(dtype).max - pixels
    file = write_tiff(tmp_path / "a.tif", inverted, photometric=0, big_endian=big_endian)

    read = read_pixels(file)

    assert torch.equal(read, read_pixels(pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_compressed_file_whose_white_is_zero_is_inverted(dtype: type, tmp_path: Path) -> None:
    pixels = levels_of(dtype)
    inverted = np.iinfo(dtype).max - pixels
    file = write_tiff(tmp_path / "a.tif", inverted, photometric=0, compression=DEFLATE)

    read = read_pixels(file)

    assert torch.equal(read, read_pixels(pixels))


def test_a_big_endian_file_of_16_bits_whose_white_is_zero_is_refused(tmp_path: Path) -> None:
    """Pillow opens none."""
    inverted = FULL - levels_of(np.uint16)
    file = write_tiff(tmp_path / "a.tif", inverted, photometric=0, big_endian=True)

    with pytest.raises(DataError, match=r"a\.tif.*16-bit.*white.*array"):
        read_pixels(file)


@pytest.fixture
def white_is_zero_of_12_bits(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "a.tif", 4095 - ramp(0, 4095), photometric=0)


def test_a_file_of_12_bits_whose_white_is_zero_is_refused_without_bits(
    white_is_zero_of_12_bits: Path,
) -> None:
    with pytest.raises(DataError, match="bits=12"):
        read_pixels(white_is_zero_of_12_bits)


def test_white_is_zero_within_the_stated_bits(white_is_zero_of_12_bits: Path) -> None:
    read = read_pixels(white_is_zero_of_12_bits, bits=12)

    assert torch.equal(read, read_pixels(ramp(0, 4095), bits=12))


def pack_12_bits(values: Pixels) -> Pixels:
    """Two values in three bytes, as TIFF packs them."""
    first = values[:, ::2]
    second = values[:, 1::2]
    high_byte = first >> 4
    shared_byte = (first & 15) << 4 | second >> 8
    low_byte = second & 255
    packed = np.stack([high_byte, shared_byte, low_byte], axis=-1)
    return packed.reshape(len(values), -1).astype(np.uint8)


@pytest.mark.parametrize("bits", [None, 12, 16])
def test_a_tiff_of_12_bits_states_its_range(bits: int | None, tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 40).astype(int).reshape(5, 8)
    width = {256: (LONG, [8])}  # a row of 12 bytes is one of 8 values
    file = write_tiff(tmp_path / "a.tif", pack_12_bits(values), bits=12, tags=width)

    read = read_pixels(file, bits=bits)

    assert torch.equal(read, as_share(values, 4095))


# The record


def test_the_record_has_no_bits_where_none_are_set() -> None:
    assert "bits" not in Preprocessing().record()


def test_the_record_holds_bits_where_they_are_set() -> None:
    record = Preprocessing(bits=12).record()

    assert record == {**Preprocessing().record(), "bits": 12}


@pytest.mark.parametrize("bits", [None, 12])
def test_a_record_that_was_json_rebuilds_the_bits(bits: int | None) -> None:
    recipe = Preprocessing(bits=bits)
    record = json.loads(json.dumps(recipe.record()))

    assert Preprocessing.from_record(record) == recipe


def test_bits_are_changed_as_other_settings() -> None:
    assert Preprocessing().changed(bits=12) == Preprocessing(bits=12)


@pytest.fixture
def recipe_of_12_bits() -> Preprocessing:
    return Preprocessing(16, mean=(0, 0, 0), std=(1, 1, 1), bits=12)


def test_a_recipe_prepares_a_file_with_its_bits(
    recipe_of_12_bits: Preprocessing, tmp_path: Path
) -> None:
    pixels = ramp(0, 4095, 32, 48)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    prepared = recipe_of_12_bits(tmp_path / "a.png")

    assert torch.equal(prepared, as_share(pixels, 4095)[None])


def test_a_recipe_shows_a_picture_with_its_bits(recipe_of_12_bits: Preprocessing) -> None:
    pixels = ramp(0, 4095, 32, 48)

    picture = recipe_of_12_bits.picture(pixels)

    assert torch.equal(picture, as_share(pixels, 4095))


def test_a_changed_recipe_keeps_its_bits(recipe_of_12_bits: Preprocessing) -> None:
    too_large = ramp(0, 4095, 32, 48) * 3

    with pytest.raises(DataError, match="bits=12"):
        recipe_of_12_bits.changed(size=(16, 16))(too_large)
