"""Decoding, turning, resizing, normalising: what comes out is what lay in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck.data import Preprocessing
from dinoneck.data.decoding import read_pixels, to_unit_range
from dinoneck.data.preprocessing import resample

RGB = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
PLAIN = Preprocessing(patch_size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_every_form_of_an_image_gives_the_same_tensor(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", Image.fromarray(RGB))
    expected = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255
    forms = [file, str(file), Image.fromarray(RGB), RGB, torch.from_numpy(RGB).permute(2, 0, 1), expected,
             expected.numpy().transpose(1, 2, 0)]  # fmt: skip
    for form in forms:
        assert torch.equal(to_unit_range(read_pixels(form)), expected), type(form)
    for batch in ([RGB, file], np.stack([RGB, RGB]), expected.expand(2, -1, -1, -1)):
        assert torch.equal(PLAIN(batch), expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize("size", [(33, 40), (17, 50), (7, 9), (1, 1), (50, 12)])
def test_area_equals_torch_bit_for_bit(size: tuple[int, int]) -> None:
    """Torch's own form needs the whole image as floats."""
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (50, 67, 3), np.uint8)).permute(2, 0, 1)
    whole = torch.nn.functional.interpolate((image.float() / 255)[None], size=size, mode="area")[0]
    assert torch.equal(Preprocessing(1, size=size, interpolation="area").fitted(image), whole)


def test_bilinear_resizes_eight_bit_images_as_uint8() -> None:
    """As transformers' DINOv3 processor does; the record names the method as the argument does."""
    smooth = np.add.outer(np.arange(60) * 2, np.arange(80))[..., None].repeat(3, axis=2).astype(np.uint8)
    recipe = Preprocessing(1, size=(23, 31))
    new = recipe.fitted(smooth)
    floats = torch.from_numpy(smooth).permute(2, 0, 1)[None] / 255
    in_floats = torch.nn.functional.interpolate(floats, size=(23, 31), mode="bilinear", antialias=True)[0]
    levels = new * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert not torch.equal(new, in_floats)
    assert torch.allclose(new, in_floats, atol=1.01 / 255)
    pillow = np.asarray(Image.fromarray(smooth).resize((31, 23), Image.Resampling.BILINEAR))
    assert np.abs(levels.permute(1, 2, 0).numpy() - pillow).max() <= 1.01
    assert recipe.record()["interpolation"] == "bilinear"
    assert Preprocessing.from_record(recipe.record()) == recipe


def test_images_come_to_a_size_in_four_ways() -> None:
    ramp = np.tile(np.linspace(0, 1, 40, dtype=np.float32)[None, :, None], (20, 1, 3))
    assert PLAIN(ramp, size=(16, 16)).shape == (1, 3, 16, 16)
    assert PLAIN(ramp, size=(16, 16), resize="keep").shape == (1, 3, 8, 16)
    cropped = PLAIN(ramp, size=(16, 16), resize="crop")[0, 0, 0]
    assert cropped.mean().item() == pytest.approx(0.5, abs=0.01)  # the middle
    assert cropped[0].item() == pytest.approx(0.25, abs=0.03)
    padded = Preprocessing(patch_size=2)(ramp, size=(16, 16), resize="pad")
    assert padded.shape == (1, 3, 16, 16)
    assert (padded[..., 8:, :] == 0).all()  # the mean colour
    assert torch.allclose(padded[..., :8, :], Preprocessing(patch_size=2)(ramp, size=(16, 16), resize="keep"))


def test_blur_has_the_fixed_sigma() -> None:
    spot = np.zeros((11, 11, 3), np.float32)
    spot[5, 5] = 1.0
    x = np.arange(-2, 3)
    kernel = np.exp(-(x**2) / (2 * 1.1**2))
    kernel /= kernel.sum()
    got = Preprocessing(patch_size=11, mean=(0, 0, 0), std=(1, 1, 1), blur=5)(spot)[0, 0, 3:8, 3:8].numpy()
    assert np.allclose(got, np.outer(kernel, kernel), atol=1e-6)


def test_records_rebuild() -> None:
    prep = Preprocessing(patch_size=14, size=224, resize="crop", interpolation="bicubic", blur=5)  # type: ignore[arg-type]
    record = json.loads(json.dumps(prep.record()))
    assert (record["blur"], record["resize"], record["pad_to"]) == (5, "crop", "corner")
    assert Preprocessing.from_record(record) == prep
    assert Preprocessing.from_record(Preprocessing().record()) == Preprocessing()
    assert Preprocessing(patch_size=16).changed(size=(32, 64), blur=None) == Preprocessing(16, size=(32, 64))


def test_padding_is_not_valid_and_the_picture_is_what_the_backbone_sees() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad")
    image = torch.rand(3, 16, 64)
    prepared = recipe.prepare(image)
    assert prepared.valid.tolist() == [[True] * 4, [False] * 4, [False] * 4, [False] * 4]
    assert recipe.prepare([image, torch.rand(3, 64, 16)]).valid.tolist() == [[True] * 4] + [[True] + [False] * 3] * 3
    seen = recipe.picture(image)
    assert torch.allclose(seen[:, :16], image, atol=1e-6)
    assert torch.allclose(seen[:, 16:], torch.tensor(recipe.mean).view(3, 1, 1).expand(3, 48, 64))
    cut = Preprocessing(size=(16, 16), resize="crop").picture(image)
    assert torch.allclose(cut, image[:, :, 24:40], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rows", [7, 90])
def test_rows_of_one_pixel_stay_in_their_order(interpolation: Any, rows: int) -> None:
    """Torch shows the first row everywhere where a width of 1 stays 1."""
    x = torch.linspace(0, 1, 40).view(1, 1, 40, 1).expand(1, 3, 40, 1)
    wide = resample(x.expand(1, 3, 40, 4), (rows, 4), interpolation)
    assert torch.allclose(resample(x, (rows, 1), interpolation), wide[..., :1], atol=1e-6)
