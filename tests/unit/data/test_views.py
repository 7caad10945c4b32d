"""Augmentation patterns: which they are, what they do to pixels, and that they do it again."""

from __future__ import annotations

import colorsys
import json
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import ConfigError, DataError
from dinoneck.data import Views
from dinoneck.data.views import LIMITS, draws

COLOUR = Views.named("color20")
PINNED_BRIGHTNESS = {"brightness": 0.029282761317216938}
PINNED_HSV = {"hue": -0.3371242882546781, "saturation": -0.05157955924865429, "value": 0.0014563731671667773}
SET = [["brightness"], ["contrast"], ["hue", "saturation", "value"], ["gamma"]]


def image(seed: int = 0, height: int = 9, width: int = 7) -> torch.Tensor:
    """Random colours with a black, a white and a grey pixel, and pure ones."""
    x = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    x[:, 0, :6] = torch.tensor([[0, 1, 0.5, 1, 0, 0], [0, 1, 0.5, 0, 1, 0], [0, 1, 0.5, 0, 0, 1.0]])
    return x


def per_pixel(x: torch.Tensor, hue: float = 0.0, saturation: float = 0.0, value: float = 0.0) -> np.ndarray:
    """HSV shifts by the standard library, pixel by pixel in fp64; greys keep their saturation of 0."""
    out = np.empty(x.shape)
    for r, c in np.ndindex(*x.shape[1:]):
        h, s, v = colorsys.rgb_to_hsv(*(float(band) for band in x[:, r, c]))
        s = min(max(s + saturation, 0.0), 1.0) if s > 0 else 0.0
        out[:, r, c] = colorsys.hsv_to_rgb((h + hue / 360) % 1.0, s, min(max(v + value, 0.0), 1.0))
    return out


def plain(x: torch.Tensor, drawn: dict[str, float]) -> np.ndarray:
    """Every change in fp64, written out."""
    y = x.double().numpy()
    if "brightness" in drawn:
        y = np.clip(y * (1 + drawn["brightness"]), 0, 1)
    if "contrast" in drawn:
        grey = (0.2989 * y[0] + 0.587 * y[1] + 0.114 * y[2]).mean()
        y = np.clip(grey + (y - grey) * (1 + drawn["contrast"]), 0, 1)
    if {"hue", "saturation", "value"} & set(drawn):
        y = per_pixel(torch.from_numpy(y), **{k: v for k, v in drawn.items() if k in ("hue", "saturation", "value")})
    return y ** drawn["gamma"] if "gamma" in drawn else y


def test_the_twenty_patterns_in_their_order() -> None:
    assert [len(Views.named(name)) for name in ("none", "flips4", "color20")] == [1, 4, 20]
    flips = [(False, False), (True, False), (False, True), (True, True)]
    assert [COLOUR.flips(i) for i in range(20)] == flips + [flip for flip in flips for _ in range(4)]
    for i, record in enumerate(COLOUR.record()):
        assert [name for name in record if name in LIMITS] == ([] if i < 4 else SET[i % 4])
    assert COLOUR.record()[6] == {
        "horizontal": False,
        "vertical": False,
        "hue": [-20.0, 20.0],
        "saturation": [-20 / 255, 20 / 255],
        "value": [-20 / 255, 20 / 255],
    }
    ranges = [COLOUR.views[i] for i in (4, 5, 7)]
    assert (ranges[0].brightness, ranges[1].contrast, ranges[2].gamma) == ((-0.2, 0.2), (-0.2, 0.2), (0.8, 1.2))


def test_flips_are_exact_and_the_given_image_stays_as_it_is() -> None:
    x = image()
    kept = x.clone()
    expected = [x, x.flip(-1), x.flip(-2), x.flip(-1, -2)]
    for i, flipped in enumerate(expected):
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
    assert found.shape == x.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    horizontal, vertical = COLOUR.flips(i)
    turned = x.flip([axis for axis, on in ((-1, horizontal), (-2, vertical)) if on])
    np.testing.assert_allclose(found.numpy(), plain(turned, drawn), atol=2e-6)
    assert not torch.equal(found, turned)


def test_draws_repeat_and_depend_on_image_and_pattern() -> None:
    x = image()
    torch.manual_seed(1)
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
    assert draws(COLOUR.views[4], 4, "field/0001") == PINNED_BRIGHTNESS
    assert draws(COLOUR.views[14], 14, "Weide/ä") == PINNED_HSV


def test_records_rebuild_and_differ_between_lists() -> None:
    record = json.loads(json.dumps(COLOUR.record()))
    assert Views.from_record(record) == COLOUR and hash(Views.from_record(record)) == hash(COLOUR)
    record[7]["gamma"][1] = 1.25
    assert Views.from_record(record) != COLOUR != Views.named("flips4")
    assert Views.from_record(record).record() != COLOUR.record()


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ([{"brightnes": [0, 1]}], "'brightnes'.*'brightness'"),
        ([{}, {"gamma": [2, 1]}], "gamma of a view is 2 ... 1"),
        ([{"gamma": [0, 1]}], "0.01 <= low"),
        ([], r"\(\)"),
        (["horizontal"], "'horizontal'"),
        ([{"hue": 10}], "hue of a view is 10"),
        ([{"turns": 4}], "turns of a view is 4"),
        ("flips4", "'flips4'"),
    ],
)
def test_records_that_are_refused(record: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Views.from_record(record)


def test_other_bad_lists() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'color20'"):
        Views.named("color21")
    with pytest.raises(ConfigError, match="expected one View or more"):
        Views(({},))  # type: ignore[arg-type]


@pytest.mark.parametrize("i", [-1, 20])
def test_there_is_no_such_pattern(i: Any) -> None:
    with pytest.raises(DataError, match=r"view .* does not exist; these are 0 ... 19"):
        COLOUR.apply(image(), i, "a")
    with pytest.raises(DataError, match="does not exist"):
        COLOUR.flips(i)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.zeros(1, 4, 4), r"shape \(1, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.full((3, 4, 4), -2.0), "before normalisation"),
    ],
)
def test_images_that_are_refused(image: torch.Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        COLOUR.apply(image, 1, "a")
