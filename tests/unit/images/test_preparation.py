"""Images from files to tensors: decoding, resizing, normalising, views, and the memory that this takes."""

from __future__ import annotations

import colorsys
import json
import math
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
from dinoneck.images.decoding import read_pixels, to_unit_range
from dinoneck.images.preprocessing import resample
from dinoneck.images.views import CHANGES, draws

RGB = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
PLAIN = Preprocessing(patch_size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


UNIT_RGB = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255  # RGB as (3, height, width)


@pytest.fixture
def rgb_file(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    Image.fromarray(RGB).save(file)
    return file


def test_a_file_gives_the_pixels_of_its_array(rgb_file: Path) -> None:
    assert torch.equal(to_unit_range(read_pixels(rgb_file)), UNIT_RGB)


def test_a_path_as_text_gives_the_pixels_of_its_file(rgb_file: Path) -> None:
    assert torch.equal(to_unit_range(read_pixels(str(rgb_file))), UNIT_RGB)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.fromarray(RGB), id="PIL image"),
        pytest.param(RGB, id="uint8 array"),
        pytest.param(torch.from_numpy(RGB).permute(2, 0, 1), id="uint8 tensor"),
        pytest.param(UNIT_RGB, id="float tensor"),
        pytest.param(UNIT_RGB.numpy().transpose(1, 2, 0), id="float array"),
    ],
)
def test_every_form_of_an_image_gives_the_same_tensor(image: Any) -> None:
    assert torch.equal(to_unit_range(read_pixels(image)), UNIT_RGB)


def test_a_list_may_mix_forms_of_images(rgb_file: Path) -> None:
    prepared = PLAIN([RGB, rgb_file])

    assert torch.equal(prepared, UNIT_RGB.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(np.stack([RGB, RGB]), id="array"),
        pytest.param(UNIT_RGB.expand(2, -1, -1, -1), id="tensor"),
    ],
)
def test_a_batch_of_images_is_prepared_as_each_alone(batch: Any) -> None:
    assert torch.equal(PLAIN(batch), UNIT_RGB.expand(2, -1, -1, -1))


@pytest.mark.parametrize("size", [(33, 40), (17, 50), (7, 9), (1, 1), (50, 12)])
def test_area_equals_torch_bit_for_bit(size: tuple[int, int]) -> None:
    """Torch's own form needs the whole image as floats."""
    pixels = np.random.RandomState(0).randint(0, 256, (50, 67, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)

    resized = Preprocessing(1, size=size, interpolation="area").fitted(image)

    floats = (image.float() / 255)[None]
    by_torch = torch.nn.functional.interpolate(floats, size=size, mode="area")[0]
    assert torch.equal(resized, by_torch)


@pytest.fixture
def smooth_image() -> np.ndarray:
    """A diagonal ramp of 60 x 80 px in uint8."""
    brightness = np.add.outer(np.arange(60) * 2, np.arange(80))
    return brightness[..., None].repeat(3, axis=2).astype(np.uint8)


def test_bilinear_resizes_eight_bit_images_as_uint8(smooth_image: np.ndarray) -> None:
    """As transformers' DINOv3 processor does."""
    levels = Preprocessing(1, size=(23, 31)).fitted(smooth_image) * 255

    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_bilinear_is_within_one_level_of_pillow(smooth_image: np.ndarray) -> None:
    levels = Preprocessing(1, size=(23, 31)).fitted(smooth_image) * 255

    by_pillow = Image.fromarray(smooth_image).resize((31, 23), Image.Resampling.BILINEAR)
    differences = levels.permute(1, 2, 0).numpy() - np.asarray(by_pillow)
    assert np.abs(differences).max() <= 1.01


@pytest.fixture
def wide_image() -> np.ndarray:
    """Brightness rises from left to right, 20 x 40 px."""
    brightness = np.linspace(0, 1, 40, dtype=np.float32)
    return np.tile(brightness[None, :, None], (20, 1, 3))


def test_stretch_fills_the_size(wide_image: np.ndarray) -> None:
    stretched = PLAIN(wide_image, size=(16, 16))

    assert stretched.shape == (1, 3, 16, 16)


def test_keep_keeps_the_ratio_of_the_sides(wide_image: np.ndarray) -> None:
    kept = PLAIN(wide_image, size=(16, 16), resize="keep")

    assert kept.shape == (1, 3, 8, 16)


def test_a_wide_image_is_cropped_to_its_middle(wide_image: np.ndarray) -> None:
    cropped = PLAIN(wide_image, size=(16, 16), resize="crop")[0, 0, 0]

    assert cropped.mean().item() == pytest.approx(0.5, abs=0.01)
    assert cropped[0].item() == pytest.approx(0.25, abs=0.03)


def test_pad_adds_the_mean_colour_below_the_kept_image(wide_image: np.ndarray) -> None:
    recipe = Preprocessing(patch_size=2)

    padded = recipe(wide_image, size=(16, 16), resize="pad")

    kept = recipe(wide_image, size=(16, 16), resize="keep")
    assert padded.shape == (1, 3, 16, 16)
    assert torch.allclose(padded[..., :8, :], kept)
    assert (padded[..., 8:, :] == 0).all()  # the mean colour, normalised


def test_a_tall_image_is_cropped_to_its_middle() -> None:
    brightness = np.linspace(0, 1, 40, dtype=np.float32)
    image = np.tile(brightness[:, None, None], (1, 20, 3))

    cropped = PLAIN(image, size=(16, 16), resize="crop")[0, 0, :, 0]

    assert cropped.mean().item() == pytest.approx(0.5, abs=0.01)
    assert cropped[0].item() == pytest.approx(0.25, abs=0.03)


def test_blur_has_the_fixed_sigma() -> None:
    spot = np.zeros((11, 11, 3), np.float32)
    spot[5, 5] = 1.0
    recipe = Preprocessing(patch_size=11, mean=(0, 0, 0), std=(1, 1, 1), blur=5)

    blurred = recipe(spot)[0, 0, 3:8, 3:8].numpy()

    x = np.arange(-2, 3)
    kernel = np.exp(-(x**2) / (2 * 1.1**2))
    kernel /= kernel.sum()
    assert np.allclose(blurred, np.outer(kernel, kernel), atol=1e-6)


def test_a_record_states_the_settings() -> None:
    recipe = Preprocessing(size=224, resize="crop", blur=5)  # type: ignore[arg-type]

    record = recipe.record()

    assert record["blur"] == 5
    assert record["resize"] == "crop"
    assert record["pad_to"] == "corner"


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Preprocessing(), id="defaults"),
        pytest.param(
            Preprocessing(patch_size=14, size=224, resize="crop", interpolation="bicubic", blur=5),  # type: ignore[arg-type]
            id="other settings",
        ),
    ],
)
def test_a_record_that_was_json_rebuilds_the_recipe(recipe: Preprocessing) -> None:
    record = json.loads(json.dumps(recipe.record()))

    assert Preprocessing.from_record(record) == recipe


def test_changed_settings_replace_those_of_the_recipe() -> None:
    changed = Preprocessing(patch_size=16).changed(size=(32, 64), blur=None)

    assert changed == Preprocessing(16, size=(32, 64))


@pytest.mark.parametrize("patch_size", [8193, 2**40, (16, 8193)], ids=str)
def test_a_patch_larger_than_any_image_is_refused(patch_size: Any) -> None:
    record = Preprocessing().record() | {"patch_size": patch_size, "resize": "pad"}

    with pytest.raises(ConfigError, match="patch_size is .*; expected 8192 px at most"):
        Preprocessing.from_record(record)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"mean": (), "std": ()}, "expected one number per channel", id="no channel"),
        pytest.param(
            {"mean": (0.5, math.nan, 0.5)}, r"mean\[1\] is nan; a finite number", id="NaN"
        ),
        pytest.param(
            {"std": (0.5, math.inf, 0.5)}, r"std\[1\] is inf; a finite number", id="infinity"
        ),
    ],
)
def test_colours_are_scaled_by_finite_numbers_alone(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**settings)


def test_images_that_are_padded_at_two_places_have_no_common_offset() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad", pad_to="center")

    prepared = recipe.prepare([torch.rand(3, 32, 64), torch.rand(3, 64, 32)])

    assert np.isnan(prepared.offset).all()


FIRST_ROW_VALID = [[True] * 4, [False] * 4, [False] * 4, [False] * 4]


def test_patches_of_padding_are_not_valid() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad")
    wide = torch.rand(3, 16, 64)

    prepared = recipe.prepare(wide)

    assert prepared.valid.tolist() == FIRST_ROW_VALID


def test_images_that_are_padded_otherwise_share_the_patches_valid_in_any() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad")
    wide = torch.rand(3, 16, 64)
    tall = torch.rand(3, 64, 16)

    prepared = recipe.prepare([wide, tall])

    first_patch_of_row = [True, False, False, False]
    assert prepared.valid.tolist() == [[True] * 4, *[first_patch_of_row] * 3]


def test_the_picture_of_a_padded_image_has_the_mean_colour_below_it() -> None:
    recipe = Preprocessing(size=(64, 64), resize="pad")
    image = torch.rand(3, 16, 64)

    picture = recipe.picture(image)

    mean_colour = torch.tensor(recipe.mean).view(3, 1, 1)
    assert torch.allclose(picture[:, :16], image, atol=1e-6)
    assert torch.allclose(picture[:, 16:], mean_colour.expand(3, 48, 64))


def test_the_picture_of_a_cropped_image_is_its_middle() -> None:
    recipe = Preprocessing(size=(16, 16), resize="crop")
    image = torch.rand(3, 16, 64)

    picture = recipe.picture(image)

    assert torch.allclose(picture, image[:, :, 24:40], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rows", [7, 90])
def test_rows_of_one_pixel_stay_in_their_order(interpolation: Any, rows: int) -> None:
    """Torch shows the first row everywhere where a width of 1 stays 1."""
    narrow = torch.linspace(0, 1, 40).view(1, 1, 40, 1).expand(1, 3, 40, 1)
    wide = narrow.expand(1, 3, 40, 4)

    resampled = resample(narrow, (rows, 1), interpolation)

    resampled_wide = resample(wide, (rows, 4), interpolation)
    assert torch.allclose(resampled, resampled_wide[..., :1], atol=1e-6)


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


SIZES_AND_MODES = [
    pytest.param(size, mode, id=f"{size}-{mode['resize']}-{mode.get('pad_to', 'corner')}")
    for size in (None, (50, 70), (64, 96))
    for mode in MODES
    if size is not None or mode["resize"] != "keep"  # such a remainder of the patch is refused
]


@pytest.mark.parametrize(("size", "mode"), SIZES_AND_MODES)
@pytest.mark.parametrize("shape", [(90, 150), (151, 60), (33, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_every_pixel_shows_its_place(
    size: tuple[int, int] | None, mode: dict[str, Any], shape: tuple[int, int], interpolation: Any
) -> None:
    height, width = shape
    recipe = Preprocessing(16, size=size, interpolation=interpolation, **UNSCALED, **mode)

    x_share, y_share, coverage = recipe(ramp(height, width))[0]

    rows, cols = coverage.shape
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    centres = torch.stack([x, y], dim=-1).double()
    expected = to_image_pixels(centres, recipe, shape)
    shown = torch.stack([x_share * width, y_share * height], dim=-1)
    is_image = coverage > 0.999  # no padding
    border = 3.0 * torch.tensor([width / 50, height / 50]).clamp_min(1.0)  # kernels are cut off
    end = torch.tensor([width, height], dtype=torch.float64)
    is_inner = is_image & ((expected > border) & (expected < end - border)).all(dim=-1)
    errors = shown[is_inner] - expected[is_inner]
    pixel = max(height / rows, width / cols, 1.0)  # of the coarser image
    assert errors.abs().max() < (0.25 if interpolation == "area" else 0.1) * pixel
    assert errors.mean(dim=0).abs().max() < 0.02 * pixel
    smallest_share = 0.15 if mode["resize"] == "pad" else 0.3
    assert is_inner.sum() > smallest_share * is_image.sum()  # enough pixels were compared


@pytest.mark.parametrize(("size", "mode"), SIZES_AND_MODES)
@pytest.mark.parametrize("shape", [(90, 150), (151, 60), (33, 40)], ids=str)
def test_points_come_back_from_the_prepared_image(
    size: tuple[int, int] | None, mode: dict[str, Any], shape: tuple[int, int]
) -> None:
    recipe = Preprocessing(16, size=size, **mode)
    points = torch.rand(4, 7, 2, dtype=torch.float64) * 40

    prepared = to_prepared_pixels(points, recipe, shape)

    torch.testing.assert_close(to_image_pixels(prepared, recipe, shape), points)


def test_a_patch_is_read_at_a_point_of_the_image() -> None:
    """Every cell holds its number; a cell shows 50 x 50 px of the image, whose rows 50 ... 250 are kept."""
    recipe = Preprocessing(16, size=(64, 128), resize="crop")
    cell_numbers = torch.arange(32.0).view(1, 1, 4, 8)
    row, col = 2, 3
    cell_centre = torch.tensor([[col * 50 + 25, 50 + row * 50 + 25]])

    prepared = to_prepared_pixels(cell_centre, recipe, (300, 400))
    number = TokenGrid(16).sample(cell_numbers, prepared, (64, 128))

    assert number.item() == pytest.approx(row * 8 + col)


SCRIPT = """
import re, sys
from dinoneck.images.preprocessing import Preprocessing

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
    file = tmp_path / "large.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).resize((7000, 5000)).save(file, quality=80)
    command = [sys.executable, "-c", SCRIPT, str(file), interpolation]

    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    # pixels as uint8, those of the decoder, of four bytes, and working memory;
    # floats would take four times the first
    pixels_in_bytes = 7000 * 5000 * 3
    assert int(output) * 1024 < 3.5 * pixels_in_bytes


COLOUR = Views.named("color20")
NO_FLIP: list[int] = []
FLIPS = [NO_FLIP, [-1], [-2], [-1, -2]]  # axes that are flipped, in the order of the list
CHANGES_OF_COLOUR = [["brightness"], ["contrast"], ["brightness", "saturation", "hue"], ["gamma"]]


def image(seed: int = 0, height: int = 9, width: int = 7) -> torch.Tensor:
    """Random colours, and six pixels at the limits of colour spaces."""
    x = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    black = [0.0, 0.0, 0.0]
    white = [1.0, 1.0, 1.0]
    grey = [0.5, 0.5, 0.5]
    red = [1.0, 0.0, 0.0]
    green = [0.0, 1.0, 0.0]
    blue = [0.0, 0.0, 1.0]
    x[:, 0, :6] = torch.tensor([black, white, grey, red, green, blue]).T
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


@pytest.mark.parametrize(("name", "length"), [("none", 1), ("flips4", 4), ("color20", 20)])
def test_named_lists_have_their_length(name: str, length: int) -> None:
    assert len(Views.named(name)) == length


def test_four_flips_come_first_and_then_each_four_times() -> None:
    flips = [view.flipped for view in COLOUR.views]

    no_flip, left_right, top_bottom, both = FLIPS
    assert flips[:4] == FLIPS
    assert flips[4:8] == [no_flip] * 4
    assert flips[8:12] == [left_right] * 4
    assert flips[12:16] == [top_bottom] * 4
    assert flips[16:] == [both] * 4


def test_every_flip_has_the_four_changes_of_colour_in_their_order() -> None:
    changes = []
    for record in COLOUR.record():
        changes.append([name for name in record if name in CHANGES])

    assert changes[:4] == [[]] * 4
    assert changes[4:] == CHANGES_OF_COLOUR * 4


def test_ranges_of_the_changes_of_colour() -> None:
    without_flip = COLOUR.record()[4:8]

    within_20_levels = (1 - 20 / 255, 1 + 20 / 255)
    within_20_degrees = (-20 / 360, 20 / 360)
    assert without_flip == [
        {"brightness": (0.8, 1.2)},
        {"contrast": (0.8, 1.2)},
        {
            "brightness": within_20_levels,
            "saturation": within_20_levels,
            "hue": within_20_degrees,
        },
        {"gamma": (0.8, 1.2)},
    ]


def test_records_of_flips_hold_what_is_flipped_alone() -> None:
    assert COLOUR.record()[:2] == [{}, {"horizontal": True}]


FLIPPED_AXES = [
    pytest.param(0, (), id="none"),
    pytest.param(1, (-1,), id="left and right"),
    pytest.param(2, (-2,), id="top and bottom"),
    pytest.param(3, (-1, -2), id="both"),
]


@pytest.mark.parametrize(("view", "axes"), FLIPPED_AXES)
def test_flips_are_exact(view: int, axes: tuple[int, ...]) -> None:
    flipped = COLOUR.apply(image(), view, "a")

    assert torch.equal(flipped, image().flip(axes))


@pytest.mark.parametrize(("view", "axes"), FLIPPED_AXES)
def test_a_view_shares_no_memory_with_the_given_image(view: int, axes: tuple[int, ...]) -> None:
    given = image()

    COLOUR.apply(given, view, "a").zero_()

    assert torch.equal(given, image())


@pytest.mark.parametrize(
    ("view", "flip", "changes"),
    [
        pytest.param(4, (), ["brightness"], id="brightness"),
        pytest.param(9, (-1,), ["contrast"], id="left and right, contrast"),
        pytest.param(
            14, (-2,), ["brightness", "saturation", "hue"], id="top and bottom, small changes"
        ),
        pytest.param(19, (-1, -2), ["gamma"], id="both flips, gamma"),
    ],
)
def test_every_pattern_equals_its_plain_formulation(
    view: int, flip: tuple[int, ...], changes: list[str]
) -> None:
    """Flip first, then the colour: pixel by pixel in fp64 by what was drawn."""
    x = image(seed=view)
    drawn = draws(COLOUR.views[view], view, "field/7")

    changed = COLOUR.apply(x, view, "field/7")

    flipped = x.flip(flip)
    assert list(drawn) == changes
    np.testing.assert_allclose(changed.numpy(), plain(flipped, drawn), atol=2e-6)
    assert not torch.equal(changed, flipped)
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_draws_of_one_image_and_pattern_repeat() -> None:
    torch.manual_seed(1)
    first = COLOUR.apply(image(), 6, "a")
    torch.manual_seed(2)

    again = COLOUR.apply(image(), 6, "a")

    assert torch.equal(again, first)


def test_draws_depend_on_the_name_of_the_image() -> None:
    of_a = COLOUR.apply(image(), 6, "a")
    of_b = COLOUR.apply(image(), 6, "b")

    assert not torch.equal(of_a, of_b)


def test_draws_depend_on_the_pattern() -> None:
    patterns_with_brightness = (4, 8, 12, 16)

    brightness = [draws(COLOUR.views[i], i, "a")["brightness"] for i in patterns_with_brightness]

    assert len(set(brightness)) == 4


def test_draws_leave_the_random_state_of_torch_as_it_is() -> None:
    before = torch.get_rng_state()

    COLOUR.apply(image(), 6, "a")

    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_the_same_on_every_machine() -> None:
    """Pinned: another number here would give a store other pixels than those it was begun with."""
    drawn = draws(COLOUR.views[14], 14, "Weide/ä")

    assert drawn == {
        "brightness": 0.9986779439676288,
        "saturation": 0.9484204407513458,
        "hue": 0.0010315976600764679,
    }


def test_a_record_that_was_json_rebuilds_the_views() -> None:
    record = json.loads(json.dumps(COLOUR.record()))

    rebuilt = Views(record)

    assert rebuilt == COLOUR
    assert hash(rebuilt) == hash(COLOUR)


def test_views_with_another_range_differ() -> None:
    record = json.loads(json.dumps(COLOUR.record()))
    record[7]["gamma"][1] = 1.25

    other = Views(record)

    assert other != COLOUR
    assert other.record() != COLOUR.record()


def test_lists_of_other_views_differ() -> None:
    assert Views.named("flips4") != COLOUR
