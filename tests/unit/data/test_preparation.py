"""Images from files to tensors: decoding, resizing, normalising, views, and the memory that this takes."""

from __future__ import annotations

import colorsys
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.test_labels import MODES, ramp
from tests.unit.data.test_labels import PLAIN as UNSCALED

from dinoneck import ConfigError, TokenGrid
from dinoneck.data import Preprocessing, Views, to_image_pixels, to_prepared_pixels
from dinoneck.data.decoding import read_pixels, to_unit_range
from dinoneck.data.preprocessing import resample
from dinoneck.data.views import CHANGES, draws

RGB = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
PLAIN = Preprocessing(patch_size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_every_form_of_an_image_gives_the_same_tensor(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(RGB).save(file)
    expected = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255
    forms = [
        file,
        str(file),
        Image.fromarray(RGB),
        RGB,
        torch.from_numpy(RGB).permute(2, 0, 1),
        expected,
        expected.numpy().transpose(1, 2, 0),
    ]
    for form in forms:
        assert torch.equal(to_unit_range(read_pixels(form)), expected), type(form)
    for batch in ([RGB, file], np.stack([RGB, RGB]), expected.expand(2, -1, -1, -1)):
        assert torch.equal(PLAIN(batch), expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize("size", [(33, 40), (17, 50), (7, 9), (1, 1), (50, 12)])
def test_area_equals_torch_bit_for_bit(size: tuple[int, int]) -> None:
    """Torch's own form needs the whole image as floats."""
    image = torch.from_numpy(
        np.random.RandomState(0).randint(0, 256, (50, 67, 3), np.uint8)
    ).permute(2, 0, 1)
    whole = torch.nn.functional.interpolate((image.float() / 255)[None], size=size, mode="area")[0]
    assert torch.equal(Preprocessing(1, size=size, interpolation="area").fitted(image), whole)


def test_bilinear_resizes_eight_bit_images_as_uint8() -> None:
    """As transformers' DINOv3 processor does."""
    smooth = (
        np.add.outer(np.arange(60) * 2, np.arange(80))[..., None].repeat(3, axis=2).astype(np.uint8)
    )
    levels = Preprocessing(1, size=(23, 31)).fitted(smooth) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    pillow = np.asarray(Image.fromarray(smooth).resize((31, 23), Image.Resampling.BILINEAR))
    assert np.abs(levels.permute(1, 2, 0).numpy() - pillow).max() <= 1.01


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
    assert torch.allclose(
        padded[..., :8, :], Preprocessing(patch_size=2)(ramp, size=(16, 16), resize="keep")
    )


def test_a_tall_image_is_cropped_to_its_middle() -> None:
    brightness = np.linspace(0, 1, 40, dtype=np.float32)
    image = np.tile(brightness[:, None, None], (1, 20, 3))

    cropped = PLAIN(image, size=(16, 16), resize="crop")[0, 0, :, 0]

    assert cropped.mean().item() == pytest.approx(0.5, abs=0.01)
    assert cropped[0].item() == pytest.approx(0.25, abs=0.03)


def test_blur_has_the_fixed_sigma() -> None:
    spot = np.zeros((11, 11, 3), np.float32)
    spot[5, 5] = 1.0
    x = np.arange(-2, 3)
    kernel = np.exp(-(x**2) / (2 * 1.1**2))
    kernel /= kernel.sum()
    got = Preprocessing(patch_size=11, mean=(0, 0, 0), std=(1, 1, 1), blur=5)(spot)[
        0, 0, 3:8, 3:8
    ].numpy()
    assert np.allclose(got, np.outer(kernel, kernel), atol=1e-6)


def test_records_rebuild() -> None:
    prep = Preprocessing(patch_size=14, size=224, resize="crop", interpolation="bicubic", blur=5)  # type: ignore[arg-type]
    record = json.loads(json.dumps(prep.record()))
    assert (record["blur"], record["resize"], record["pad_to"]) == (5, "crop", "corner")
    assert Preprocessing.from_record(record) == prep
    assert Preprocessing.from_record(Preprocessing().record()) == Preprocessing()
    assert Preprocessing(patch_size=16).changed(size=(32, 64), blur=None) == Preprocessing(
        16, size=(32, 64)
    )


@pytest.mark.parametrize("patch_size", [8193, 2**40, (16, 8193)], ids=str)
def test_a_patch_larger_than_any_image_is_refused(patch_size: Any) -> None:
    record = Preprocessing().record() | {"patch_size": patch_size, "resize": "pad"}
    with pytest.raises(ConfigError, match="patch_size is .*; expected 8192 px at most"):
        Preprocessing.from_record(record)


def test_padding_is_not_valid_and_the_picture_is_what_the_backbone_sees() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad")
    image = torch.rand(3, 16, 64)
    prepared = recipe.prepare(image)
    assert prepared.valid.tolist() == [[True] * 4, [False] * 4, [False] * 4, [False] * 4]
    assert (
        recipe.prepare([image, torch.rand(3, 64, 16)]).valid.tolist()
        == [[True] * 4] + [[True] + [False] * 3] * 3
    )
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


@pytest.mark.parametrize("size", [(8, 12), (60, 12), (8, 40)], ids=str)
def test_an_image_of_one_column_is_resampled_as_one_of_equal_columns(size: tuple[int, int]) -> None:
    column = np.random.default_rng(0).integers(0, 256, (40, 1, 3), dtype=np.uint8)
    one = torch.from_numpy(column).permute(2, 0, 1)[None]
    equal = one.repeat(1, 1, 1, 20)

    resampled = resample(one, size, "bilinear")

    assert resampled.dtype == torch.uint8
    difference = resampled.int() - resample(equal, size, "bilinear").int()
    assert difference.abs().max() <= 1  # one rounding in the place of two


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
def test_an_image_becomes_one_column_with_every_row_in_its_place(dtype: torch.dtype) -> None:
    rows = torch.arange(0, 200, 5)  # a ramp of 40 rows, equal in all columns
    image = rows.to(dtype).view(1, 1, 40, 1).repeat(1, 3, 1, 7)

    resampled = resample(image, (8, 1), "bilinear")

    means = rows.float().view(8, 5).mean(dim=1)  # a linear ramp keeps its values
    inner = resampled[0, 0, 1:-1, 0].float()
    assert (inner - means[1:-1]).abs().max() <= (0.5 if dtype == torch.uint8 else 1e-4)


def test_an_image_becomes_one_pixel() -> None:
    image = torch.full((1, 3, 37, 41), 90, dtype=torch.uint8)

    pixel = resample(image, (1, 1), "bilinear")

    assert pixel.tolist() == [[[[90]], [[90]], [[90]]]]


@pytest.mark.parametrize("size", [None, (50, 70), (64, 96)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(90, 150), (151, 60), (33, 40)])
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_every_pixel_shows_its_place(
    size: Any, mode: dict[str, Any], shape: tuple[int, int], interpolation: Any
) -> None:
    if (size, mode["resize"]) == (None, "keep"):
        pytest.skip("a remainder is refused")
    recipe = Preprocessing(16, size=size, interpolation=interpolation, **UNSCALED, **mode)
    image = recipe(ramp(*shape))[0]
    rows, cols = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    points = torch.stack([x, y], dim=-1).double()
    home = to_image_pixels(points, recipe, shape)
    inside = image[2] > 0.999  # no padding
    shown = torch.stack([image[0] * shape[1], image[1] * shape[0]], dim=-1)
    # where kernels are cut off
    border = 3.0 * torch.tensor([shape[1] / 50, shape[0] / 50]).clamp_min(1.0)
    ends = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    inner = inside & ((home > border) & (home < ends - border)).all(dim=-1)
    assert (
        inner.sum()
        > 0.3 * rows * cols * (0.5 if mode["resize"] == "pad" else 1.0) * inside.float().mean()
    )
    step = max(shape[0] / rows, shape[1] / cols, 1.0)
    gaps = shown[inner] - home[inner]
    assert gaps.abs().max() < (0.25 if interpolation == "area" else 0.1) * step
    assert gaps.mean(dim=0).abs().max() < 0.02 * step


@pytest.mark.parametrize("size", [None, (50, 70), (64, 96)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(90, 150), (151, 60), (33, 40)])
def test_points_come_back_from_the_prepared_image(
    size: Any, mode: dict[str, Any], shape: tuple[int, int]
) -> None:
    if (size, mode["resize"]) == (None, "keep"):
        pytest.skip("a remainder is refused")
    recipe = Preprocessing(16, size=size, **mode)
    points = torch.rand(4, 7, 2, dtype=torch.float64) * 40
    prepared = to_prepared_pixels(points, recipe, shape)
    torch.testing.assert_close(to_image_pixels(prepared, recipe, shape), points)


def test_a_patch_is_read_at_a_point_of_the_image() -> None:
    """Every cell holds its number; a cell shows 50 x 50 px of the image, whose rows 50 ... 250 are kept."""
    recipe = Preprocessing(16, size=(64, 128), resize="crop")
    numbers = torch.arange(32.0).view(1, 1, 4, 8)
    centre = torch.tensor([[3 * 50 + 25, 50 + 2 * 50 + 25]])  # of the cell in row 2, column 3
    prepared = to_prepared_pixels(centre, recipe, (300, 400))
    read = TokenGrid(16).sample(numbers, prepared, (64, 128))
    assert read.item() == pytest.approx(2 * 8 + 3)


SCRIPT = """
import re, sys
from dinoneck.data.preprocessing import Preprocessing

def most_kilobytes():
    # resource.getrusage would begin with the memory of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = most_kilobytes()
Preprocessing(size=(240, 480), interpolation=sys.argv[2])(sys.argv[1])
print(most_kilobytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_a_large_jpeg_is_never_whole_in_floats(tmp_path: Path, interpolation: str) -> None:
    rows = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(rows).resize((7000, 5000)).save(tmp_path / "large.jpg", quality=80)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "large.jpg"), interpolation]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes * 1024 < 3.5 * 7000 * 5000 * 3, (
        "pixels as uint8, those of the decoder, of four bytes, and working memory; floats would take "
        "four times the first"
    )


COLOUR = Views.named("color20")
FLIPS: list[list[int]] = [[], [-1], [-2], [-1, -2]]
SET = [["brightness"], ["contrast"], ["brightness", "saturation", "hue"], ["gamma"]]


def image(seed: int = 0, height: int = 9, width: int = 7) -> torch.Tensor:
    """Random colours with a black, a white and a grey pixel, and pure ones."""
    x = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    x[:, 0, :6] = torch.tensor([[0, 1, 0.5, 1, 0, 0], [0, 1, 0.5, 0, 1, 0], [0, 1, 0.5, 0, 0, 1.0]])
    return x


def plain(x: torch.Tensor, drawn: dict[str, float]) -> np.ndarray:
    """Every change in fp64, written out."""
    y = x.double().numpy()
    grey = 0.2989 * y[0] + 0.587 * y[1] + 0.114 * y[2]
    if "brightness" in drawn:
        y = np.clip(y * drawn["brightness"], 0, 1)
    if "contrast" in drawn:
        y = np.clip(grey.mean() + (y - grey.mean()) * drawn["contrast"], 0, 1)
    if "saturation" in drawn:
        grey = 0.2989 * y[0] + 0.587 * y[1] + 0.114 * y[2]
        y = np.clip(grey + (y - grey) * drawn["saturation"], 0, 1)
    if "hue" in drawn:
        for r, c in np.ndindex(*y.shape[1:]):
            h, s, v = colorsys.rgb_to_hsv(*y[:, r, c])
            y[:, r, c] = colorsys.hsv_to_rgb((h + drawn["hue"]) % 1.0, s, v)
    return y ** drawn["gamma"] if "gamma" in drawn else y


def test_the_twenty_patterns_in_their_order() -> None:
    assert [len(Views.named(name)) for name in ("none", "flips4", "color20")] == [1, 4, 20]
    assert [view.flipped for view in COLOUR.views] == FLIPS + [
        flip for flip in FLIPS for _ in range(4)
    ]
    for i, record in enumerate(COLOUR.record()):
        assert [name for name in record if name in CHANGES] == ([] if i < 4 else SET[i % 4])
    little = (1 - 20 / 255, 1 + 20 / 255)
    assert COLOUR.record()[6] == {
        "brightness": little,
        "saturation": little,
        "hue": (-20 / 360, 20 / 360),
    }
    assert COLOUR.record()[:2] == [{}, {"horizontal": True}]
    ranges = [COLOUR.views[i] for i in (4, 5, 7)]
    assert (ranges[0].brightness, ranges[1].contrast, ranges[2].gamma) == ((0.8, 1.2),) * 3


def test_flips_are_exact_and_the_given_image_stays_as_it_is() -> None:
    x = image()
    kept = x.clone()
    for i, flipped in enumerate((x, x.flip(-1), x.flip(-2), x.flip(-1, -2))):
        found = COLOUR.apply(x, i, "a")
        assert torch.equal(found, flipped)
        found.zero_()
        assert torch.equal(x, kept)


@pytest.mark.parametrize("i", [4, 9, 14, 19])  # one of each change, each flip
def test_every_pattern_equals_its_plain_formulation(i: int) -> None:
    """Flip first, then the colour: the flipped image, changed pixel by pixel in fp64 by what was drawn."""
    x = image(i)
    drawn = draws(COLOUR.views[i], i, "field/7")
    assert list(drawn) == SET[i % 4]
    found = COLOUR.apply(x, i, "field/7")
    assert found.min() >= 0 and found.max() <= 1
    turned = x.flip(FLIPS[i // 4 - 1])
    np.testing.assert_allclose(found.numpy(), plain(turned, drawn), atol=2e-6)
    assert not torch.equal(found, turned)


def test_draws_repeat_and_depend_on_image_and_pattern() -> None:
    x = image()
    first = COLOUR.apply(x, 6, "a")
    torch.manual_seed(2)
    assert torch.equal(first, COLOUR.apply(x, 6, "a"))
    assert not torch.equal(first, COLOUR.apply(x, 6, "b"))
    bright = [draws(COLOUR.views[i], i, "a")["brightness"] for i in (4, 8, 12, 16)]
    assert len(set(bright)) == 4
    before = torch.get_rng_state()
    COLOUR.apply(x, 6, "a")
    assert torch.equal(before, torch.get_rng_state())


def test_draws_are_the_same_on_every_machine() -> None:
    """Pinned: another number here would give a store other pixels than those it was begun with."""
    pinned = {
        "brightness": 0.9986779439676288,
        "saturation": 0.9484204407513458,
        "hue": 0.0010315976600764679,
    }
    assert draws(COLOUR.views[14], 14, "Weide/ä") == pinned


def test_records_rebuild_and_differ_between_lists() -> None:
    record = json.loads(json.dumps(COLOUR.record()))
    assert Views(record) == COLOUR and hash(Views(record)) == hash(COLOUR)
    record[7]["gamma"][1] = 1.25
    assert Views(record) != COLOUR != Views.named("flips4")
    assert Views(record).record() != COLOUR.record()
