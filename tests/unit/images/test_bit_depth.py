"""16-bit images are shares of the range of their type, or of the ``bits`` that are stated; values tell nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
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


@pytest.fixture(params=["png", "tiff", "array", "array, big-endian", "colours", "tensor", "PIL"])
def in_form(request: pytest.FixtureRequest, tmp_path: Path) -> InForm:
    """Puts 16-bit pixels (height, width) into one form that images have."""
    form = request.param

    def convert(pixels: Pixels) -> Any:
        if form == "png":
            Image.fromarray(pixels).save(tmp_path / "a.png")
            return tmp_path / "a.png"
        if form == "tiff":
            Image.fromarray(pixels).save(tmp_path / "a.tif")
            return tmp_path / "a.tif"
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


@pytest.mark.parametrize("low", [0, 32768])
@pytest.mark.parametrize("bits", [None, 16])
def test_an_image_that_uses_a_part_of_the_range_is_a_share_of_the_whole(
    low: int, bits: int | None, in_form: InForm
) -> None:
    pixels = ramp(low, low + 4095)

    assert torch.equal(read_pixels(in_form(pixels), bits), as_share(pixels, FULL))


@pytest.mark.parametrize("bits", [8, 12, 15])
def test_the_largest_value_of_the_stated_bits_becomes_one(bits: int, in_form: InForm) -> None:
    largest = (1 << bits) - 1
    pixels = ramp(0, largest)

    assert torch.equal(read_pixels(in_form(pixels), bits), as_share(pixels, largest))


def test_a_value_above_the_stated_bits_is_named(in_form: InForm) -> None:
    with pytest.raises(DataError, match=r"4096.*bits=12"):
        read_pixels(in_form(ramp(0, 4096)), bits=12)


@pytest.mark.parametrize("bits", [7, 17, 12.0, True, "12"])
def test_images_are_not_read_with_bits_outside_8_to_16(bits: Any) -> None:
    with pytest.raises(ConfigError, match="bits is"):
        read_pixels(ramp(0, FULL), bits=bits)


def test_images_of_8_bits_and_floats_do_not_change_with_bits() -> None:
    bytes_ = ramp(0, 255).astype(np.uint8)
    shares = ramp(0, 255).astype(np.float32) / 255

    for image in (bytes_, shares):
        assert torch.equal(read_pixels(image, bits=12), read_pixels(image))


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
